"""The one training loop, behind pre-training, guide, refining, fine-tuning and the detector of key regions alike.

Everything random at a step is a function of the seed, the phase and the step's number, so a checkpoint needs weights,
optimizer and position alone, and a resumed run ends with the same bytes as an uninterrupted one.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from fieldmark.checkpoint import Checkpoint
from fieldmark.hardware import Hardware
from fieldmark.parallel import Share
from fieldmark.phases import Phase, TrainingError, learning_rate_at
from fieldmark.sampling import Sampler
from fieldmark.stage import Progress, log


@dataclass(frozen=True)
class Batch:
    """The photos of one step.

    Attributes:
        rows: (B,) indices of the photos, of all devices together.
        upcoming: those of the next step, to be decoded meanwhile; none at the last step.
        generator: source of the draws that all devices share; on the CPU, so that each of them draws the same.
    """

    rows: np.ndarray
    upcoming: np.ndarray
    generator: torch.Generator


class Lesson(ABC):
    """One phase of training: which photos it draws, and what the model owes to them."""

    # The key of the configuration to lower when the loss explodes.
    rate_key = "learning_rate"

    def __init__(self, phase: Phase, sampler: Sampler, image_ids: Sequence[str]) -> None:
        """Draw the batches of ``phase`` with ``sampler``, whose indices point into ``image_ids``."""
        self.phase, self.sampler, self.image_ids = phase, sampler, image_ids

    @abstractmethod
    def prepare(self) -> torch.optim.Optimizer:
        """Freeze what the phase freezes and make its optimizer.

        The rate of a group of parameters is its ``scale`` times the phase's rate at the step.
        """

    @abstractmethod
    def loss(self, wrapped: nn.Module, batch: Batch) -> Tensor:
        """This process's part of the loss of a batch: the parts add up to the whole.

        Args:
            wrapped: the model, as Fabric set it up; in whatever mode the step before left it.
            batch: what to learn.
        """

    def stepped(self, batch: Batch) -> None:  # noqa: B027 (most lessons have nothing left to do)
        """Called after the weights have learned the batch."""


def learn(
    model: nn.Module,
    lessons: Sequence[Lesson],
    share: Share,
    hardware: Hardware,
    *,
    seed: int,
    checkpoint: Path,
    identity: str,
    measures: Sequence[str],
    validate: Callable[[], dict[str, float]] | None = None,
) -> pl.DataFrame:
    """Take all lessons in turn, resuming from ``checkpoint`` if it is of the same run; the weights change in place.

    Of several processes, started by :mod:`fieldmark.processes`, each calls this; the first one validates and saves.

    Args:
        model: what to train; it is left in evaluation mode.
        lessons: the phases.
        share: this process's part of every batch.
        hardware: devices, precision, and how often to save.
        seed: of all draws.
        checkpoint: file to resume from and to save to; the caller removes it once the result is safe.
        identity: what else the run depends on; a checkpoint of another is not used.
        measures: columns of what ``validate`` gives.
        validate: measures the model on validation photos, at the end of each lesson.

    Returns:
        A row for every hundredth of each lesson: phase, step, epoch, loss, learning_rate, gradient_norm, and the
        measures in its last one.

    Raises:
        TrainingError: if the loss or the gradient is not finite; names the step and the photos.
    """
    log.info("computing on %s", hardware)
    # The number of processes is left out: with another one, a run goes on to the same end within rounding.
    settings = repr([seed, [asdict(lesson.phase) for lesson in lessons], hardware.accelerator, hardware.precision])
    whole = hashlib.sha256(f"{identity} {settings}".encode())
    for tensor in model.state_dict().values():
        whole.update(tensor.cpu().numpy().tobytes())
    keeper = Checkpoint(checkpoint, whole.hexdigest(), hardware.checkpoint_seconds)
    # The first process may delete what a killed one left beside the checkpoint.
    with share.fabric.rank_zero_first():
        resumed = keeper.load()
    rows: list[dict] = list(resumed["history"]) if resumed else []
    first_lesson, first_step = (resumed["phase"], resumed["step"]) if resumed else (0, 0)
    share.agree((first_lesson, first_step), checkpoint)
    if resumed:
        model.load_state_dict(resumed["model"])
        log.info("resuming %s at step %d", lessons[first_lesson].phase.name, first_step)
    for number, lesson in enumerate(lessons):
        if number < first_lesson:
            continue
        step, state = (first_step, resumed["optimizer"]) if resumed and number == first_lesson else (0, None)
        _Run(share, model, lesson, number, seed, rows, keeper).go(step, state)
        if validate is not None and share.fabric.is_global_zero:
            model.eval()
            measured = validate()
            rows[-1] |= measured
            log.info("%s: %s", lesson.phase.name, ", ".join(f"{name} {value:.3f}" for name, value in measured.items()))
        share.end_phase()
    model.eval()
    kinds = {"step": pl.Int32, **dict.fromkeys(measures, pl.Float32)}
    return pl.DataFrame([{**row, **{name: row.get(name) for name in measures}} for row in rows], schema_overrides=kinds)


class _Run:
    """The steps of one lesson."""

    def __init__(
        self,
        share: Share,
        model: nn.Module,
        lesson: Lesson,
        number: int,
        seed: int,
        rows: list[dict],
        keeper: Checkpoint,
    ) -> None:
        self.share, self.model, self.lesson, self.number = share, model, lesson, number
        self.seed, self.rows, self.keeper = seed, rows, keeper

    def go(self, first: int, optimizer_state: dict | None) -> None:
        """Run from step ``first`` to the end, appending to the history."""
        phase, fabric = self.lesson.phase, self.share.fabric
        wrapped, optimizer = fabric.setup(self.model, self.lesson.prepare())
        if optimizer_state is not None:
            # Only now are the weights on their device, which the state follows.
            optimizer.load_state_dict(optimizer_state)
        progress = Progress(phase.name, phase.steps * phase.batch_size)
        progress.skip(first * phase.batch_size)
        every = max(1, phase.steps // 100)
        upcoming = self._drawn(first)
        for step in range(first, phase.steps):
            chosen, upcoming = upcoming, self._drawn(step + 1)
            loss, norm = self._step(step, Batch(chosen, upcoming, self._generator(step)), wrapped, optimizer)
            progress.add(phase.batch_size, f"loss {loss:.3f}")
            if step % every == every - 1 or step == phase.steps - 1:
                self.rows.append(self._history(step, loss, norm))
            if step + 1 < phase.steps:
                self.keeper.save(fabric, lambda s=step: self._state(s + 1, optimizer))  # type: ignore[misc]

    def _drawn(self, step: int) -> np.ndarray:
        """The step's batch, of all devices together: indices of photos; none after the last step."""
        size = self.lesson.phase.batch_size
        return self.lesson.sampler.positions(step * size, size) if step < self.lesson.phase.steps else np.arange(0)

    def _generator(self, step: int) -> torch.Generator:
        """Seed the draws of a step.

        Dropout and stochastic depth draw from the global generator, in each process for its own photos; views from one
        of their own, for the whole batch.
        """
        key = [self.seed, self.number, step]
        torch.manual_seed(int(np.random.SeedSequence([*key, self.share.fabric.global_rank]).generate_state(2)[0]))
        return torch.Generator().manual_seed(int(np.random.SeedSequence([*key, 0]).generate_state(2)[1]))

    def _step(
        self, step: int, batch: Batch, wrapped: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[float, float]:
        phase, share = self.lesson.phase, self.share
        rate = learning_rate_at(phase, step)
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * group["scale"] * rate
        loss = self.lesson.loss(wrapped, batch)
        optimizer.zero_grad(set_to_none=True)
        share.backward(loss)
        norm = share.fabric.clip_gradients(wrapped, optimizer, max_norm=phase.clip, error_if_nonfinite=False)
        assert norm is not None  # None stands for clipping by value
        values = float(share.total(loss.detach())), float(norm)
        if not all(map(math.isfinite, values)):
            names = ", ".join(self.lesson.image_ids[row] for row in batch.rows[:8])
            raise TrainingError(
                f"{phase.name}, step {step}: loss {values[0]}, gradient norm {values[1]}; photos {names}, …. Lower "
                f"{self.lesson.rate_key} ({phase.learning_rate}) or use precision 32-true, and look at these photos"
            )
        optimizer.step()
        self.lesson.stepped(batch)
        return values

    def _history(self, step: int, loss: float, norm: float) -> dict:
        phase = self.lesson.phase
        return {
            "phase": phase.name,
            "step": step,
            "epoch": (step + 1) * phase.batch_size / len(self.lesson.image_ids),
            "loss": loss,
            "learning_rate": phase.learning_rate * learning_rate_at(phase, step),
            "gradient_norm": norm,
        }

    def _state(self, step: int, optimizer: torch.optim.Optimizer) -> dict:
        return {
            "phase": self.number,
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": self.rows,
        }

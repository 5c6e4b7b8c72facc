"""The one training loop, behind pre-training, guide, refining and fine-tuning alike.

Everything random at a step is a function of the seed and the step's number, so a checkpoint needs weights, optimizer
and the step alone, and a resumed run ends with the same bytes as an uninterrupted one.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from fieldmark.checkpoint import Checkpoint
from fieldmark.crops import KeyRegions
from fieldmark.fusion import withhold
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.losses import Total, itself, marginal_loss, weighted_cross_entropy
from fieldmark.mixing import Mixture, draw_mixture
from fieldmark.models import Classifier
from fieldmark.parallel import Share, open_fabric
from fieldmark.phases import Phase, TrainingError, learning_rate_at, prepare, train_mode
from fieldmark.photosets import PhotoSet
from fieldmark.sampling import Sampler
from fieldmark.stage import Progress, log
from fieldmark.views import Augmentation, collate, decode_side, normalise, random_views


def batch_loss(
    model: nn.Module,
    images: Tensor,
    photos: PhotoSet,
    rows: np.ndarray,
    phase: Phase,
    beside: Mapping[str, Tensor] | None = None,
    mixture: Mixture | None = None,
    total: Total = itself,
) -> tuple[Tensor, Tensor]:
    """Loss of one batch, and its embeddings: cross entropy on targets plus the marginal loss on coarse taxa.

    Of a part of a batch: its part of the loss, where ``total`` sums over all parts.

    Args:
        model: a classifier.
        images: (B, 3, S, S) views.
        photos: the training set.
        rows: (B,) which of its photos these are.
        phase: smoothing and weight of the marginal loss.
        beside: further inputs of the model: metadata and crops.
        mixture: how the views were mixed with one another, if they were.
        total: sum over the parts of the batch.
    """
    device = images.device
    target, taxon = (torch.from_numpy(a[rows]).to(device) for a in (photos.target, photos.taxon))
    weight = torch.from_numpy(photos.weight[rows]).to(device)
    asked = target if mixture is None else mixture.pairs(target)
    embedding, logits = model(images, target=asked, **(beside or {}))
    if mixture is not None:
        # Each view counts twice, once with either photo's target, by their shares.
        logits, weight = torch.cat([logits, logits]), mixture.weights(weight)
        target, taxon = (mixture.pairs(values).T.flatten() for values in (target, taxon))
    loss = weighted_cross_entropy(logits, target, weight, phase.label_smoothing, total)
    if phase.marginal_weight and len(photos.taxon_of_class):
        taxon_of_class = torch.from_numpy(photos.taxon_of_class).to(device)
        untargeted = weight * (target < 0)
        loss = loss + phase.marginal_weight * marginal_loss(logits, taxon, taxon_of_class, untargeted, total)
    return loss, embedding


def train(
    model: Classifier,
    phases: Sequence[tuple[Phase, Sampler]],
    photos: PhotoSet,
    augmentation: Augmentation,
    hardware: Hardware,
    *,
    seed: int,
    checkpoint: Path,
    identity: str,
    validate: Callable[[Classifier], float] | None = None,
) -> pl.DataFrame:
    """Train ``model`` in place through all phases, resuming from ``checkpoint`` if it is of the same run.

    Of several processes, started by :mod:`fieldmark.processes`, each calls this; the first one validates and saves.

    Args:
        model: what to train.
        phases: each with the sampler that forms its batches.
        photos: the photos that the samplers' indices point into.
        augmentation: strength of the random views.
        hardware: devices, precision, memory.
        seed: of all draws.
        checkpoint: file to resume from and to save to; the caller removes it once the result is safe.
        identity: what else the run depends on (the code's fingerprint); a checkpoint of another is not used.
        validate: gives top-1 accuracy on the validation photos, asked at the end of each phase.

    Returns:
        A ``history`` table, about a hundred rows per phase.

    Raises:
        TrainingError: if the loss or the gradient is not finite; names the step and the photos.
    """
    share = Share(open_fabric(hardware))
    # The printed model shows what its weights do not: dropout and stochastic depth.
    settings = repr([seed, [asdict(phase) for phase, _ in phases], asdict(augmentation), model.architecture, model])
    # The number of processes is left out: with another one, a run goes on to the same end within rounding.
    settings += f" {hardware.accelerator} {hardware.precision}"
    start = hashlib.sha256()
    for tensor in model.state_dict().values():
        start.update(tensor.cpu().numpy().tobytes())
    whole = hashlib.sha256(f"{identity} {settings} {photos.digest()} {start.hexdigest()}".encode()).hexdigest()
    keeper = Checkpoint(checkpoint, whole, hardware.checkpoint_seconds)
    # The first process may delete what a killed one left beside the checkpoint.
    with share.fabric.rank_zero_first():
        resumed = keeper.load()
    rows: list[dict] = list(resumed["history"]) if resumed else []
    first_phase, first_step = (resumed["phase"], resumed["step"]) if resumed else (0, 0)
    share.agree((first_phase, first_step), checkpoint)
    if resumed:
        model.load_state_dict(resumed["model"])
        log.info("resuming %s at step %d", phases[first_phase][0].name, first_step)
    side = decode_side(model.architecture.image_size)
    cropped = len(photos.context.boxes) > 0
    cache = hardware.cache_mb * 2**20 // (2 if cropped else 1)
    with ExitStack() as stack:
        store = stack.enter_context(PhotoStore(photos.paths, side, cache, hardware.decode_threads))
        crops = None
        if cropped:
            region = KeyRegions(photos.context.boxes, model.architecture.crop_margin)
            crops = stack.enter_context(PhotoStore(photos.paths, side, cache, hardware.decode_threads, region))
        for number, (phase, sampler) in enumerate(phases):
            if number < first_phase:
                continue
            optimizer_state = resumed["optimizer"] if resumed and number == first_phase else None
            run = _PhaseRun(share, model, phase, number, sampler, photos, (store, crops), augmentation, seed)
            run.go(first_step if number == first_phase else 0, optimizer_state, rows, keeper)
            if validate is not None and share.fabric.is_global_zero:
                model.eval()
                rows[-1]["val_top1"] = validate(model)
                log.info("%s: top-1 on val %.3f", phase.name, rows[-1]["val_top1"])
            share.end_phase()
    model.eval()
    return pl.DataFrame(rows, schema_overrides={"val_top1": pl.Float32})


class _PhaseRun:
    """The steps of one phase."""

    def __init__(
        self,
        share: Share,
        model: Classifier,
        phase: Phase,
        number: int,
        sampler: Sampler,
        photos: PhotoSet,
        stores: tuple[PhotoStore, PhotoStore | None],
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.share, self.model, self.phase, self.number = share, model, phase, number
        self.sampler, self.photos = sampler, photos
        self.store, self.crops = stores
        self.augmentation, self.seed = augmentation, seed

    def go(self, first: int, optimizer_state: dict | None, rows: list[dict], keeper: Checkpoint) -> None:
        """Run from step ``first`` to the end, appending to ``rows``."""
        phase, fabric = self.phase, self.share.fabric
        wrapped, optimizer = fabric.setup(self.model, prepare(self.model, phase))
        if optimizer_state is not None:
            # Only now are the weights on their device, which the state follows.
            optimizer.load_state_dict(optimizer_state)
        progress = Progress(phase.name, phase.steps * phase.batch_size)
        progress.skip(first * phase.batch_size)
        every = max(1, phase.steps // 100)
        upcoming = self._rows(first)
        for step in range(first, phase.steps):
            chosen = upcoming
            if step + 1 < phase.steps:
                upcoming = self._rows(step + 1)
            loss, norm = self._step(step, chosen, upcoming, wrapped, optimizer)
            progress.add(phase.batch_size, f"loss {loss:.3f}")
            if step % every == every - 1 or step == phase.steps - 1:
                rows.append(self._history(step, loss, norm))
            if step + 1 < phase.steps:
                keeper.save(fabric, lambda s=step: self._state(s + 1, optimizer, rows))  # type: ignore[misc]

    def _rows(self, step: int) -> np.ndarray:
        """The step's batch, of all devices together: indices of photos."""
        return self.sampler.positions(step * self.phase.batch_size, self.phase.batch_size)

    def _step(
        self, step: int, whole: np.ndarray, upcoming: np.ndarray, wrapped: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[float, float]:
        phase, share = self.phase, self.share
        chosen = whole[share.place]
        # Dropout and stochastic depth draw from the global generator, in each process for its own photos; views from
        # one of their own, for the whole batch.
        key = [self.seed, self.number, step]
        torch.manual_seed(int(np.random.SeedSequence([*key, share.fabric.global_rank]).generate_state(2)[0]))
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([*key, 0]).generate_state(2)[1]))
        views = self._views(self.store, whole, upcoming, generator)
        beside = self._beside(whole, upcoming, generator)
        # A photo's partner is one of the same process; shares and patches are the same in all.
        mixture = draw_mixture(len(views), self.augmentation, generator)
        if mixture is not None:
            views = mixture.images(views)
            beside = {name: mixture.inputs(values) for name, values in beside.items()}
        train_mode(self.model, phase)
        rate = learning_rate_at(phase, step)
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * group["scale"] * rate
        with share.batch_statistics(self.model):
            loss, embedding = batch_loss(wrapped, views, self.photos, chosen, phase, beside, mixture, share.total)
        optimizer.zero_grad(set_to_none=True)
        share.backward(loss)
        norm = share.fabric.clip_gradients(wrapped, optimizer, max_norm=phase.clip, error_if_nonfinite=False)
        assert norm is not None  # None stands for clipping by value
        values = float(share.total(loss.detach())), float(norm)
        if not all(map(math.isfinite, values)):
            names = ", ".join(self.photos.image_ids[row] for row in whole[:8])
            raise TrainingError(
                f"{phase.name}, step {step}: loss {values[0]}, gradient norm {values[1]}; photos {names}, …. "
                f"Lower learning_rate ({phase.learning_rate}) or use precision 32-true, and look at these photos"
            )
        optimizer.step()
        if self.model.blend is not None:
            target = torch.from_numpy(self.photos.target[whole]).to(embedding.device)
            self.model.blend.update(share.whole(embedding, len(whole)), target)
        return values

    def _views(self, store: PhotoStore, whole: np.ndarray, upcoming: np.ndarray, generator: torch.Generator) -> Tensor:
        """A random view of each photo of this process, or of its key region; the next step's are decoded meanwhile."""
        place, side = self.share.place, self.model.architecture.image_size
        batch, sizes = (part.to(self.share.fabric.device) for part in collate(store.get(whole[place])))
        store.prefetch(upcoming[place])
        views = random_views(batch, sizes, side, self.augmentation, generator, place, len(whole))
        return normalise(views, self.model.normalisation)

    def _beside(self, whole: np.ndarray, upcoming: np.ndarray, generator: torch.Generator) -> dict[str, Tensor]:
        """What the model takes beside the photos: views of their key regions, drawn on their own, and metadata."""
        beside = {}
        if self.crops is not None:
            beside["crops"] = self._views(self.crops, whole, upcoming, generator)
        if len(self.photos.context.metadata):
            # Drawn for the whole batch, as the views are.
            encoded = torch.from_numpy(self.photos.context.metadata[whole])
            encoded = withhold(encoded, self.model.architecture.metadata.dropout, generator)[self.share.place]
            beside["metadata"] = encoded.to(self.share.fabric.device)
        return beside

    def _history(self, step: int, loss: float, norm: float) -> dict:
        phase = self.phase
        return {
            "phase": phase.name,
            "step": step,
            "epoch": (step + 1) * phase.batch_size / len(self.photos.paths),
            "loss": loss,
            "learning_rate": phase.learning_rate * learning_rate_at(phase, step),
            "gradient_norm": norm,
            "val_top1": None,
        }

    def _state(self, step: int, optimizer: torch.optim.Optimizer, rows: list[dict]) -> dict:
        return {
            "phase": self.number,
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": rows,
        }

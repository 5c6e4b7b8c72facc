"""Training of the detector of key regions.

As in ``fieldmark/training.py``, everything random at a step is a function of the seed and the step's number, so a
checkpoint needs weights, optimizer and step alone, and a resumed run ends with the same bytes.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning_fabric
import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from fieldmark.boxes import Floats, into_windows, known_boxes, visible_windows
from fieldmark.checkpoint import Checkpoint
from fieldmark.detector import Detector
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.models import freeze_norms
from fieldmark.phases import Phase, TrainingError, learning_rate_at
from fieldmark.sampling import EpochSampler
from fieldmark.stage import Progress, log
from fieldmark.views import collate, sample_rectangles

# Smallest share of a photo's area that a random crop covers, and of a box's area that must stay visible in it.
_MIN_CROP, _MIN_VISIBLE = 0.4, 0.5


@dataclass(frozen=True)
class BoxedPhotos:
    """Photos to train on, in parallel arrays.

    Attributes:
        image_ids: names, for messages.
        paths: files.
        boxes: (N, 4) true boxes, relative to the part of each photo that decoding keeps.
        contents: hashes of the files, as they were when they were listed.
    """

    image_ids: Sequence[str]
    paths: Sequence[str]
    boxes: Floats
    contents: Sequence[str] = ()

    def digest(self) -> str:
        """Hash of everything that training on these photos depends on."""
        whole = hashlib.sha256("\n".join([*self.image_ids, *self.paths, *self.contents]).encode())
        whole.update(np.ascontiguousarray(self.boxes).tobytes())
        return whole.hexdigest()


def boxed_photos(manifest: pl.DataFrame, splits: Sequence[str]) -> BoxedPhotos:
    """The photos of some splits that have a box to train on.

    Raises:
        TrainingError: if there is none.
    """
    rows, boxes = known_boxes(manifest.filter(pl.col("split").is_in(list(splits))))
    inside = into_windows(boxes, visible_windows(rows["width"].to_numpy(), rows["height"].to_numpy()))
    usable = (inside[:, 2:] > 0).all(axis=1)
    if not usable.any():
        raise TrainingError(
            f"no photo of the splits {', '.join(splits)} has a box, so no detector can be trained. Add boxes to the "
            "data (docs/data.md says how), or set detection.method: activation, which needs none"
        )
    rows = rows.filter(pl.Series(usable))
    names, paths, contents = (rows[column].to_list() for column in ("image_id", "path", "sha256"))
    return BoxedPhotos(names, paths, inside[usable].astype(np.float32), contents)


def random_boxed_views(
    batch: Tensor, sizes: Tensor, boxes: Tensor, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random crop of each photo, mirrored or not, squeezed into a square, and the box in it.

    Where a crop would lose more than half of the box, the whole photo is shown instead.

    Args:
        batch: (B, 3, H, W) padded photos, uint8.
        sizes: (B, 2) true height and width of each, pixels.
        boxes: (B, 4) x, y, width, height relative to the photos.
        side: of the views, pixels.
        generator: source of all draws; on the CPU, so that every device sees the same views.

    Returns:
        (B, 3, side, side) float32 in [0, 1]; (B, 4) boxes in pixels of these, cut to them.
    """
    draws = torch.rand(len(batch), 5, generator=generator).to(batch.device)
    area = _MIN_CROP + (1 - _MIN_CROP) * draws[:, 0]
    stretch = torch.exp((2 * draws[:, 1] - 1) * math.log(4 / 3) / 2)
    extent = torch.stack([area.sqrt() * stretch, area.sqrt() / stretch], dim=1).clamp(max=1)  # (B, 2): x, y
    start = draws[:, 2:4] * (1 - extent)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    shown = torch.minimum(high, start + extent) - torch.maximum(low, start)
    enough = shown.clamp(min=0).prod(dim=1) >= _MIN_VISIBLE * boxes[:, 2:].prod(dim=1)
    extent = torch.where(enough[:, None], extent, torch.ones_like(extent))
    start = torch.where(enough[:, None], start, torch.zeros_like(start))
    low, high = (((edge - start) / extent).clamp(0, 1) for edge in (low, high))
    mirrored = (draws[:, 4] < 0.5)[:, None]
    x = torch.where(mirrored, torch.stack([1 - high[:, 0], 1 - low[:, 0]], 1), torch.stack([low[:, 0], high[:, 0]], 1))
    inside = torch.stack([x[:, 0], low[:, 1], x[:, 1] - x[:, 0], high[:, 1] - low[:, 1]], dim=1)
    sign = torch.where(mirrored, torch.tensor([1.0, -1.0], device=batch.device), torch.ones(2, device=batch.device))
    centre = (start + extent / 2).flip(1) * sizes
    straight = torch.zeros(len(batch), device=batch.device)
    return sample_rectangles(batch, sizes, centre, extent.flip(1) * sizes * sign, straight, side), inside * side


def _optimizer(model: Detector, phase: Phase) -> torch.optim.Optimizer:
    """AdamW, faster on what starts at random; without weight decay on biases and norms."""
    model.requires_grad_(True)
    freeze_norms(model.backbone.body)
    pretrained = {id(parameter) for parameter in model.backbone.body.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            scale = 1.0 if id(parameter) in pretrained else phase.head_multiplier
            decay = phase.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    settings = [{"params": params, "scale": scale, "weight_decay": decay} for (scale, decay), params in groups.items()]
    return torch.optim.AdamW(settings, lr=phase.learning_rate, fused=True)


def train_boxes(
    model: Detector,
    photos: BoxedPhotos,
    phase: Phase,
    hardware: Hardware,
    *,
    seed: int,
    checkpoint: Path,
    identity: str,
    validate: Callable[[Detector], dict[str, float]] | None = None,
) -> pl.DataFrame:
    """Train ``model`` in place, resuming from ``checkpoint`` if it is of the same run.

    Args:
        model: what to train; the norms of its backbone stay as they are.
        photos: what to train on.
        phase: steps, batch size and rates; the rates of what starts at random are ``head_multiplier`` times higher.
        hardware: devices, precision, memory.
        seed: of all draws.
        checkpoint: file to resume from and to save to; the caller removes it once the result is safe.
        identity: what else the run depends on (the code's fingerprint); a checkpoint of another is not used.
        validate: gives ``mean_iou``, ``ap50`` and ``ap`` on the validation photos, asked at the end.

    Returns:
        A ``detection_history`` table, about a hundred rows.

    Raises:
        TrainingError: if the loss or the gradient is not finite; names the step and the photos.
    """
    fabric = hardware.one_device()
    log.info("computing on %s", hardware)
    start = hashlib.sha256()
    for tensor in model.state_dict().values():
        start.update(tensor.cpu().numpy().tobytes())
    settings = [seed, asdict(phase), model.architecture, hardware.accelerator, hardware.precision]
    whole = hashlib.sha256(f"{identity} {settings!r} {photos.digest()} {start.hexdigest()}".encode()).hexdigest()
    keeper = Checkpoint(checkpoint, whole, hardware.checkpoint_seconds)
    resumed = keeper.load()
    rows: list[dict] = list(resumed["history"]) if resumed else []
    if resumed:
        model.load_state_dict(resumed["model"])
        log.info("resuming at step %d", resumed["step"])
    first = resumed["step"] if resumed else 0
    side = model.architecture.image_size
    with PhotoStore(photos.paths, side, hardware.cache_mb * 2**20, hardware.decode_threads) as store:
        run = _Run(fabric, model, photos, store, phase, seed)
        run.go(first, resumed["optimizer"] if resumed else None, rows, keeper)
    model.eval()
    if validate is not None:
        rows[-1] |= {f"val_{name}": value for name, value in validate(model).items()}
    kinds = {"step": pl.Int32} | dict.fromkeys(["val_mean_iou", "val_ap50", "val_ap"], pl.Float32)
    return pl.DataFrame(rows, schema_overrides=kinds)


class _Run:
    """The steps of a training run."""

    def __init__(
        self,
        fabric: lightning_fabric.Fabric,
        model: Detector,
        photos: BoxedPhotos,
        store: PhotoStore,
        phase: Phase,
        seed: int,
    ) -> None:
        self.fabric, self.model, self.photos, self.store = fabric, model, photos, store
        self.phase, self.seed = phase, seed
        self.sampler = EpochSampler(np.arange(len(photos.paths)), seed)

    def go(self, first: int, optimizer_state: dict | None, rows: list[dict], keeper: Checkpoint) -> None:
        """Run from step ``first`` to the end, appending to ``rows``."""
        phase, fabric = self.phase, self.fabric
        wrapped, optimizer = fabric.setup(self.model, _optimizer(self.model, phase))
        if optimizer_state is not None:
            # Only now are the weights on their device, which the state follows.
            optimizer.load_state_dict(optimizer_state)
        progress = Progress(phase.name, phase.steps * phase.batch_size)
        progress.skip(first * phase.batch_size)
        every = max(1, phase.steps // 100)
        for step in range(first, phase.steps):
            loss, norm = self._step(step, wrapped, optimizer)
            progress.add(phase.batch_size, f"loss {loss:.3f}")
            if step % every == every - 1 or step == phase.steps - 1:
                rows.append(self._history(step, loss, norm))
            if step + 1 < phase.steps:
                keeper.save(fabric, lambda s=step: self._state(s + 1, optimizer, rows))  # type: ignore[misc]

    def _chosen(self, step: int) -> np.ndarray:
        """The step's batch: indices of photos."""
        return self.sampler.positions(step * self.phase.batch_size, self.phase.batch_size)

    def _step(self, step: int, wrapped: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        phase, device = self.phase, self.fabric.device
        draws = np.random.SeedSequence([self.seed, step, self.fabric.global_rank]).generate_state(2)
        torch.manual_seed(int(draws[0]))  # stochastic depth of backbones that have it
        generator = torch.Generator().manual_seed(int(draws[1]))
        chosen = self._chosen(step)
        batch, sizes = (part.to(device) for part in collate(self.store.get(chosen)))
        if step + 1 < phase.steps:
            self.store.prefetch(self._chosen(step + 1))
        boxes = torch.from_numpy(self.photos.boxes[chosen]).to(device)
        views, inside = random_boxed_views(batch, sizes, boxes, self.model.architecture.image_size, generator)
        self.model.train()
        self.model.backbone.body.eval()
        rate = learning_rate_at(phase, step)
        for group in optimizer.param_groups:
            group["lr"] = phase.learning_rate * group["scale"] * rate
        loss = wrapped(views, inside)
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(wrapped, optimizer, max_norm=phase.clip, error_if_nonfinite=False)
        assert norm is not None  # None stands for clipping by value
        values = float(loss.detach()), float(norm)
        if not all(map(math.isfinite, values)):
            names = ", ".join(self.photos.image_ids[row] for row in chosen[:8])
            raise TrainingError(
                f"{phase.name}, step {step}: loss {values[0]}, gradient norm {values[1]}; photos {names}, …. "
                f"Lower detection.learning_rate ({phase.learning_rate}) or use precision 32-true"
            )
        optimizer.step()
        return values

    def _history(self, step: int, loss: float, norm: float) -> dict:
        phase = self.phase
        return {
            "step": step,
            "epoch": (step + 1) * phase.batch_size / len(self.photos.paths),
            "loss": loss,
            "learning_rate": phase.learning_rate * learning_rate_at(phase, step),
            "gradient_norm": norm,
            **dict.fromkeys(["val_mean_iou", "val_ap50", "val_ap"]),
        }

    def _state(self, step: int, optimizer: torch.optim.Optimizer, rows: list[dict]) -> dict:
        return {
            "step": step,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": rows,
        }

"""Training of the detector of key regions: from photos with boxes to a detector, on as many devices as there are."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from fieldmark.artifacts import write_table
from fieldmark.boxes import Floats, box_scores, into_windows, known_boxes, visible_windows
from fieldmark.detector import Detector, DetectorArchitecture, detect, save_detector
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.loop import Batch, Lesson, learn
from fieldmark.models import freeze_norms
from fieldmark.parallel import Share, open_fabric
from fieldmark.phases import Phase, TrainingError
from fieldmark.processes import is_first_process, run_on_all_devices
from fieldmark.sampling import EpochSampler
from fieldmark.stage import log
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
    batch: Tensor,
    sizes: Tensor,
    boxes: Tensor,
    side: int,
    generator: torch.Generator,
    part: slice = slice(None),
    whole: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A random crop of each photo, mirrored or not, squeezed into a square, and the box in it.

    Where a crop would lose more than half of the box, the whole photo is shown instead.

    Args:
        batch: (B, 3, H, W) padded photos, uint8.
        sizes: (B, 2) true height and width of each, pixels.
        boxes: (B, 4) x, y, width, height relative to the photos.
        side: of the views, pixels.
        generator: source of all draws; on the CPU, so that every device sees the same views.
        part: which photos of a larger batch these are; a photo's view is the same however the batch is divided.
        whole: photos of the larger batch.

    Returns:
        (B, 3, side, side) float32 in [0, 1]; (B, 4) boxes in pixels of these, cut to them.
    """
    draws = torch.rand(whole or len(batch), 5, generator=generator)[part].to(batch.device)
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

    Of several processes, started by :mod:`fieldmark.processes`, each calls this; the first one validates and saves.

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
    share = Share(open_fabric(hardware))
    side = model.architecture.image_size

    def measured() -> dict[str, float]:
        assert validate is not None
        return {f"val_{name}": value for name, value in validate(model).items()}

    with PhotoStore(photos.paths, side, hardware.cache_mb * 2**20, hardware.decode_threads) as store:
        table = learn(
            model,
            [_Boxes(phase, seed, model, photos, store, share)],
            share,
            hardware,
            seed=seed,
            checkpoint=checkpoint,
            identity=f"{identity} {model.architecture} {photos.digest()}",
            measures=["val_mean_iou", "val_ap50", "val_ap"],
            validate=None if validate is None else measured,
        )
    return table.drop("phase")


class _Boxes(Lesson):
    """Views of photos to the box in each."""

    rate_key = "detection.learning_rate"

    def __init__(
        self, phase: Phase, seed: int, model: Detector, photos: BoxedPhotos, store: PhotoStore, share: Share
    ) -> None:
        super().__init__(phase, EpochSampler(np.arange(len(photos.paths)), seed), photos.image_ids)
        self.model, self.photos, self.store, self.share = model, photos, store, share

    def prepare(self) -> torch.optim.Optimizer:
        return _optimizer(self.model, self.phase)

    def loss(self, wrapped: nn.Module, batch: Batch) -> Tensor:
        place, device = self.share.place, self.share.fabric.device
        rows = batch.rows[place]
        photos, sizes = (part.to(device) for part in collate(self.store.get(rows)))
        self.store.prefetch(batch.upcoming[place])
        boxes = torch.from_numpy(self.photos.boxes[rows]).to(device)
        side, count = self.model.architecture.image_size, len(batch.rows)
        views, inside = random_boxed_views(photos, sizes, boxes, side, batch.generator, place, count)
        self.model.train()
        self.model.backbone.body.eval()
        loss, cells = wrapped(views, inside)
        return loss / self.share.total(cells).clamp(min=1)


@dataclass(frozen=True)
class DetectorPlan:
    """All settings of a job that trains a detector.

    Attributes:
        architecture: what to train.
        weights: what its backbone starts from.
        phase: how to train.
        hardware: devices, precision, memory.
        seed: of all draws.
        code: fingerprint of the stage's code; a checkpoint of other code is not resumed.
    """

    architecture: DetectorArchitecture
    weights: str
    phase: Phase
    hardware: Hardware
    seed: int
    code: str


def fit_detector(photos: BoxedPhotos, val: pl.DataFrame, plan: DetectorPlan, detector: Path, history: Path) -> None:
    """Train a detector and write it with its history, in as many processes as there are devices.

    Args:
        photos: what to train on.
        val: rows of the manifest, whose boxes measure it; may be empty.
        plan: how to train.
        detector: where the detector goes.
        history: where the ``detection_history`` table goes.
    """
    work = partial(_fit_detector, photos, val, plan, detector, history)
    if plan.hardware.processes == 1:
        work()
    else:
        run_on_all_devices(work, plan.hardware, detector.parent / f".{detector.stem}.processes")


def _fit_detector(photos: BoxedPhotos, val: pl.DataFrame, plan: DetectorPlan, detector: Path, history: Path) -> None:
    judges, truth = known_boxes(val)

    def measure(model: Detector) -> dict[str, float]:
        scores = box_scores(*detect(model, judges["path"].to_list(), plan.hardware), truth)
        return {name: scores[name] for name in ("mean_iou", "ap50", "ap")}

    log.info("training on the boxes of %d photos; those of %d val photos judge", len(photos.paths), len(judges))
    checkpoint = detector.parent / f".{detector.stem}.checkpoint.pt"
    model = Detector(plan.architecture, plan.weights, plan.seed)
    table = train_boxes(
        model,
        photos,
        plan.phase,
        plan.hardware,
        seed=plan.seed,
        checkpoint=checkpoint,
        identity=plan.code,
        validate=measure if len(judges) else None,
    )
    if is_first_process():
        write_table(table, "detection_history", history)
        save_detector(model, detector)
        checkpoint.unlink(missing_ok=True)

"""Training of classifiers: how a batch of photos becomes a loss, for every stage from pre-training to fine-tuning."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from fieldmark.crops import KeyRegions
from fieldmark.fusion import withhold
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.loop import Batch, Lesson, learn
from fieldmark.losses import Total, itself, marginal_loss, weighted_cross_entropy
from fieldmark.mixing import Mixture, draw_mixture
from fieldmark.models import Classifier
from fieldmark.parallel import Share, open_fabric
from fieldmark.phases import Phase, prepare, train_mode
from fieldmark.photosets import PhotoSet
from fieldmark.sampling import Sampler
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
    settings = f"{identity} {asdict(augmentation)} {model.architecture} {model} {photos.digest()}"
    side = decode_side(model.architecture.image_size)
    cropped = len(photos.context.boxes) > 0
    cache = hardware.cache_mb * 2**20 // (2 if cropped else 1)

    with ExitStack() as stack:
        store = stack.enter_context(PhotoStore(photos.paths, side, cache, hardware.decode_threads))
        crops = None
        if cropped:
            region = KeyRegions(photos.context.boxes, model.architecture.crop_margin)
            crops = stack.enter_context(PhotoStore(photos.paths, side, cache, hardware.decode_threads, region))
        lessons = [
            _Classification(phase, sampler, model, photos, (store, crops), augmentation, share)
            for phase, sampler in phases
        ]
        return learn(
            model,
            lessons,
            share,
            hardware,
            seed=seed,
            checkpoint=checkpoint,
            identity=settings,
            measures=["val_top1"],
            validate=None if validate is None else lambda: {"val_top1": validate(model)},
        )


class _Classification(Lesson):
    """Views of photos, and of their key regions, to classes."""

    def __init__(
        self,
        phase: Phase,
        sampler: Sampler,
        model: Classifier,
        photos: PhotoSet,
        stores: tuple[PhotoStore, PhotoStore | None],
        augmentation: Augmentation,
        share: Share,
    ) -> None:
        super().__init__(phase, sampler, photos.image_ids)
        self.model, self.photos, self.augmentation, self.share = model, photos, augmentation, share
        self.store, self.crops = stores
        self._embedding = torch.zeros(0)

    def prepare(self) -> torch.optim.Optimizer:
        return prepare(self.model, self.phase)

    def loss(self, wrapped: nn.Module, batch: Batch) -> Tensor:
        views, beside = self._views(self.store, batch), self._beside(batch)
        # A photo's partner is one of the same process; shares and patches are the same in all.
        mixture = draw_mixture(len(views), self.augmentation, batch.generator)
        if mixture is not None:
            views = mixture.images(views)
            beside = {name: mixture.inputs(values) for name, values in beside.items()}
        train_mode(self.model, self.phase)
        rows = batch.rows[self.share.place]
        with self.share.batch_statistics(self.model):
            loss, embedding = batch_loss(
                wrapped, views, self.photos, rows, self.phase, beside, mixture, self.share.total
            )
        self._embedding = embedding.detach()
        return loss

    def stepped(self, batch: Batch) -> None:
        if self.model.blend is not None:
            target = torch.from_numpy(self.photos.target[batch.rows]).to(self._embedding.device)
            self.model.blend.update(self.share.whole(self._embedding, len(batch.rows)), target)

    def _views(self, store: PhotoStore, batch: Batch) -> Tensor:
        """A random view of each photo of this process, or of its key region; the next step's are decoded meanwhile."""
        place, side = self.share.place, self.model.architecture.image_size
        photos, sizes = (part.to(self.share.fabric.device) for part in collate(store.get(batch.rows[place])))
        store.prefetch(batch.upcoming[place])
        views = random_views(photos, sizes, side, self.augmentation, batch.generator, place, len(batch.rows))
        return normalise(views, self.model.normalisation)

    def _beside(self, batch: Batch) -> dict[str, Tensor]:
        """What the model takes beside the photos: views of their key regions, drawn on their own, and metadata."""
        beside = {}
        if self.crops is not None:
            beside["crops"] = self._views(self.crops, batch)
        if len(self.photos.context.metadata):
            # Drawn for the whole batch, as the views are.
            encoded = torch.from_numpy(self.photos.context.metadata[batch.rows])
            encoded = withhold(encoded, self.model.architecture.metadata.dropout, batch.generator)[self.share.place]
            beside["metadata"] = encoded.to(self.share.fabric.device)
        return beside

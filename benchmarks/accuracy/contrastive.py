"""SimCLR (Chen et al. 2020) on this project's views and optimizer: self-supervised pre-training to compare with.

The loss is pytorch-metric-learning's NT-Xent. Labels are not looked at; foreign photos teach as much as others.
"""

from collections.abc import Sequence

import numpy as np
import torch
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss
from torch import Tensor, nn

from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.models import Classifier
from fieldmark.phases import Phase, learning_rate_at, prepare, train_mode
from fieldmark.sampling import EpochSampler
from fieldmark.stage import Progress
from fieldmark.views import Augmentation, collate, decode_side, normalise, random_views

# Photos of a step: each one's other view is to be found among theirs. More would not fit the memory of small machines.
TEMPERATURE = 0.1
PHOTOS = 64
PROJECTED = 128


class Projected(nn.Module):
    """A classifier's embedding, and the small network above it that the loss looks at and nobody keeps."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.projection = nn.Sequential(
            nn.Linear(model.width, model.width), nn.ReLU(), nn.Linear(model.width, PROJECTED)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised views to (B, P)."""
        return self.projection(self.model.embed(images))


def train_contrastive(
    model: Classifier,
    paths: Sequence[str],
    phase: Phase,
    augmentation: Augmentation,
    hardware: Hardware,
    seed: int,
    photos: int = PHOTOS,
) -> None:
    """Train the backbone and neck in place.

    Args:
        model: starts from pretrained weights.
        paths: photos, labeled and unlabeled.
        phase: rates and what is frozen. As many views pass the network as in its steps of its batch size, but in
            fewer and larger steps, since the loss lives on comparisons.
        augmentation: of both views of a photo.
        hardware: one of its devices is used.
        seed: of the order, the views and the projection.
        photos: of a step, each in two views.
    """
    steps = max(1, phase.steps * phase.batch_size // (2 * photos))
    torch.manual_seed(seed)
    whole = Projected(model)
    optimizer = prepare(model, phase)
    optimizer.add_param_group({"params": list(whole.projection.parameters()), "scale": phase.head_multiplier})
    fabric = hardware.one_device()
    wrapped, optimizer = fabric.setup(whole, optimizer)
    loss_of = SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))
    order = EpochSampler(np.arange(len(paths)), seed)
    side = model.architecture.image_size
    progress = Progress("contrastive", steps * photos)
    shortened = Phase(phase.name, steps, phase.batch_size, phase.learning_rate, warmup=phase.warmup)
    with PhotoStore(list(paths), decode_side(side), hardware.cache_mb * 2**20, hardware.decode_threads) as store:
        for step in range(steps):
            rows = order.positions(step * photos, photos)
            batch, sizes = (part.to(fabric.device) for part in collate(store.get(rows)))
            generator = torch.Generator().manual_seed(
                int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] % 2**63)
            )
            first, second = (
                normalise(random_views(batch, sizes, side, augmentation, generator), model.normalisation)
                for _ in range(2)
            )
            train_mode(model, phase)
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * group["scale"] * learning_rate_at(shortened, step)
            projected = wrapped(torch.cat([first, second])).float()
            loss = loss_of(projected[:photos], projected[photos:])
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            torch.nn.utils.clip_grad_norm_(whole.parameters(), phase.clip)
            optimizer.step()
            progress.add(photos, f"loss {float(loss.detach()):.3f}")
    model.eval()

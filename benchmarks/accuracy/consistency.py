"""FixMatch (Sohn et al. 2020) and FreeMatch (Wang et al. 2023), on this project's views, sampler and optimizer.

Short versions for comparison on equal terms: the same backbone, start, learning rates and frozen layers
as the recipe they stand beside, and as many photos through the network at each step. What is left out is what that
excludes: the averaged copy of the weights, batches of hundreds of photos, and FreeMatch's fairness term.

At each step a weak view of every unlabeled photo is named by the network as it stands; where it is surer than a
threshold, a strong view of the same photo is to get the same name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.losses import weighted_cross_entropy
from fieldmark.models import Classifier, freeze_norms
from fieldmark.phases import Phase, learning_rate_at, prepare
from fieldmark.sampling import BalancedSampler, EpochSampler
from fieldmark.stage import Progress
from fieldmark.views import Augmentation, collate, decode_side, normalise, random_views

# A weak view: nearly the whole photo, perhaps mirrored.
WEAK = Augmentation(min_scale=0.8, rotation=0.0, color=0.0, erase=0.0, flip=True)


class FixedThreshold:
    """FixMatch: the same threshold for all classes, from the first step to the last.

    The published .95 is a share of the confidence that labels teach: with label smoothing e over C classes a network
    learns to stop at 1 − e + e / C, here .90, and would never be as sure as .95.
    """

    def __init__(self, classes: int, smoothing: float, value: float = 0.95) -> None:
        self.value = value * (1 - smoothing + smoothing / classes)

    def passes(self, probabilities: Tensor) -> Tensor:
        """(B, C) probabilities of weak views to (B,) whether the photo takes part."""
        return probabilities.max(dim=1).values >= self.value


class AdaptiveThreshold:
    """FreeMatch: running mean of the confidence, lowered for classes that the network predicts rarely."""

    def __init__(self, classes: int, momentum: float = 0.99) -> None:
        self.momentum = momentum
        self.overall = torch.tensor(1.0 / classes)
        self.by_class = torch.full((classes,), 1.0 / classes)

    def passes(self, probabilities: Tensor) -> Tensor:
        """(B, C) probabilities of weak views to (B,) whether the photo takes part; updates the running means."""
        confidence, label = probabilities.max(dim=1)
        self.overall, self.by_class = self.overall.to(confidence.device), self.by_class.to(confidence.device)
        self.overall = torch.lerp(confidence.mean(), self.overall, self.momentum)
        self.by_class = torch.lerp(probabilities.mean(dim=0), self.by_class, self.momentum)
        return confidence >= self.overall * (self.by_class / self.by_class.max())[label]


@dataclass(frozen=True)
class Photos:
    """Labeled photos with their classes, and unlabeled ones."""

    labeled: Sequence[str]
    target: np.ndarray
    unlabeled: Sequence[str]


def train_consistency(
    model: Classifier,
    photos: Photos,
    phase: Phase,
    strong: Augmentation,
    threshold: FixedThreshold | AdaptiveThreshold,
    hardware: Hardware,
    seed: int,
    labeled_share: float = 0.5,
) -> None:
    """Train in place.

    Args:
        model: what to start from.
        photos: what to train on.
        phase: steps, rates, label smoothing and what is frozen; of its batch size ``labeled_share`` are labeled
            photos, and the rest unlabeled ones, each counted twice: its weak and its strong view.
        strong: strength of the strong views, and of the views of labeled photos.
        threshold: which unlabeled photos take part.
        hardware: one of its devices is used.
        seed: of the order and of all views.
        labeled_share: of the views of a step.
    """
    labels = round(phase.batch_size * labeled_share)
    others = (phase.batch_size - labels) // 2
    count = len(photos.labeled)
    known = BalancedSampler(np.arange(count), photos.target, seed)
    unknown = EpochSampler(np.arange(count, count + len(photos.unlabeled)), seed + 1)
    fabric = hardware.one_device()
    wrapped, optimizer = fabric.setup(model, prepare(model, phase))
    side = model.architecture.image_size
    progress = Progress(phase.name, phase.steps * phase.batch_size)
    everything = [*photos.labeled, *photos.unlabeled]
    with PhotoStore(everything, decode_side(side), hardware.cache_mb * 2**20, hardware.decode_threads) as store:
        for step in range(phase.steps):
            first, second = known.positions(step * labels, labels), unknown.positions(step * others, others)
            generator = torch.Generator().manual_seed(
                int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] % 2**63)
            )
            views = {}
            for name, rows, how in (("labeled", first, strong), ("weak", second, WEAK), ("strong", second, strong)):
                batch, sizes = (part.to(fabric.device) for part in collate(store.get(rows)))
                views[name] = normalise(random_views(batch, sizes, side, how, generator), model.normalisation)
            model.train()
            if phase.frozen_norms:
                freeze_norms(model.backbone)
            with torch.no_grad():
                probabilities = wrapped(views["weak"])[1].softmax(dim=1)
            sure = threshold.passes(probabilities)
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * group["scale"] * learning_rate_at(phase, step)
            logits = wrapped(torch.cat([views["labeled"], views["strong"]]))[1]
            target = torch.from_numpy(photos.target[first]).to(fabric.device)
            alike = torch.ones(labels, device=fabric.device)
            # As all recipes smooth; docs/results.md tells what came of leaving it out, as published.
            loss = weighted_cross_entropy(logits[:labels], target, alike, phase.label_smoothing)
            named = probabilities.argmax(dim=1)
            own = functional.cross_entropy(
                logits[labels:], named, reduction="none", label_smoothing=phase.label_smoothing
            )
            loss = loss + (own * sure).mean()
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), phase.clip)
            optimizer.step()
            progress.add(
                phase.batch_size, f"loss {float(loss.detach()):.3f}, {float(sure.float().mean()):.0%} take part"
            )
    model.eval()


def one_phase(phases: Sequence[Phase]) -> Phase:
    """A recipe's first phase with the steps of all of them: the methods know no stages."""
    return replace(phases[0], steps=sum(phase.steps for phase in phases))

"""Losses of every training stage, each a mean over the batch weighted by the photos' weights."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Total = Callable[[Tensor], Tensor]


def itself(part: Tensor) -> Tensor:
    """The total over the parts of a batch where it has one part only."""
    return part


def weighted_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor, smoothing: float = 0.0, total: Total = itself
) -> Tensor:
    """Cross entropy with label smoothing (Szegedy et al. 2016), photos weighted; photos without target are left out.

    Args:
        logits: (B, C).
        target: (B,) class of each photo, −1 for none.
        weight: (B,) non-negative.
        smoothing: probability mass spread evenly over all classes.
        total: sum over the parts of the batch, of which this may be one.

    Returns:
        Scalar; zero if no photo has a target. The parts' losses add up to that of the batch.
    """
    losses = functional.cross_entropy(
        logits.float(), target, ignore_index=-1, label_smoothing=smoothing, reduction="none"
    )
    weight = weight * (target >= 0)
    return (losses * weight).sum() / total(weight.sum()).clamp(min=1e-12)


def marginal_loss(
    logits: Tensor, taxon: Tensor, taxon_of_class: Tensor, weight: Tensor, total: Total = itself
) -> Tensor:
    """Negative log of the probability that the classes of a photo's coarse taxon hold together.

    What the organisers of Semi-iNat 2021 train on photos of which only the phylum is known (Su and Maji 2021).

    Args:
        logits: (B, C).
        taxon: (B,) coarse taxon of each photo; −1 for photos without one, which are left out.
        taxon_of_class: (C,) coarse taxon of each class.
        weight: (B,) non-negative.
        total: sum over the parts of the batch, of which this may be one.

    Returns:
        Scalar; zero if no photo has a taxon to which a class belongs. The parts' losses add up to that of the batch.
    """
    inside = taxon_of_class[None, :] == taxon[:, None]  # (B, C)
    weight = weight * ((taxon >= 0) & inside.any(dim=1))
    log_probability = functional.log_softmax(logits.float(), dim=1)
    # Rows without an inside class have weight zero; they are filled so that no −inf reaches the gradient.
    inside = inside | ~inside.any(dim=1, keepdim=True)
    losses = -torch.logsumexp(log_probability.masked_fill(~inside, -torch.inf), dim=1)
    return (losses * weight).sum() / total(weight.sum()).clamp(min=1e-12)

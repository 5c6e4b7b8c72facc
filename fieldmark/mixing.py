"""Mixup and cutmix: views of two photos in one, on whole batches and on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fieldmark.views import Augmentation


@dataclass(frozen=True)
class Mixture:
    """How each view of a batch is mixed with another of it.

    Attributes:
        partner: (B,) the other view of each.
        share: of the view itself, in (0, 1].
        patch: rows from, rows to, columns from, columns to, as shares of the side, that are the partner's (cutmix, Yun
            et al. 2019); None: both are averaged by their shares (mixup, Zhang et al. 2018).
    """

    partner: Tensor
    share: float
    patch: tuple[float, float, float, float] | None = None

    def images(self, views: Tensor) -> Tensor:
        """(B, 3, S, S) views, mixed."""
        other = views[self.partner.to(views.device)]
        if self.patch is None:
            return torch.lerp(other, views, self.share)
        top, bottom, left, right = (round(edge * views.shape[-1]) for edge in self.patch)
        mixed = views.clone()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        return mixed

    def inputs(self, values: Tensor) -> Tensor:
        """Other inputs of a model, mixed likewise: crops as images, metadata by their shares."""
        if values.ndim == 4:
            return self.images(values)
        return torch.lerp(values[self.partner.to(values.device)], values, self.share)

    def pairs(self, values: Tensor) -> Tensor:
        """(B,) values to (B, 2): each photo's own and its partner's."""
        return torch.stack([values, values[self.partner.to(values.device)]], dim=1)

    def weights(self, weight: Tensor) -> Tensor:
        """(B,) weights to (2B,): the photos' own by their share, then the partners' by theirs."""
        own, other = self.pairs(weight).unbind(dim=1)
        return torch.cat([own * self.share, other * (1 - self.share)])


def draw_mixture(count: int, how: Augmentation, generator: torch.Generator) -> Mixture | None:
    """A mixture for a batch of ``count`` views, or None if neither kind is switched on.

    With both on, a coin decides for each batch. Shares follow Beta(a, a) of the kind's parameter a. All draws come from
    ``generator``, on the CPU; without either kind nothing is drawn.
    """
    if not (how.mixup or how.cutmix):
        return None
    cut = how.cutmix > 0 and (how.mixup == 0 or bool(torch.rand(1, generator=generator) < 0.5))
    parameter = torch.tensor([how.cutmix if cut else how.mixup])
    first, second = (torch._standard_gamma(parameter, generator=generator) for _ in range(2))
    share = float(first / (first + second).clamp(min=1e-30))
    partner = torch.randperm(count, generator=generator)
    if not cut:
        return Mixture(partner, share)
    side = (1 - share) ** 0.5
    top, left = (float(edge) * (1 - side) for edge in torch.rand(2, generator=generator))
    return Mixture(partner, share, (top, top + side, left, left + side))

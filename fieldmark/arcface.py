"""The additive angular margin head (ArcFace, Deng et al. 2019) with sub-centers and margins by class frequency.

Why not a library's: pytorch-metric-learning's ``SubCenterArcFaceLoss`` has one margin for all classes, and gives a loss
where the stages need logits, for label smoothing, photo weights, photos without target, the loss over coarse taxa and
prototypes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class HeadSettings:
    """``models.*.head`` of the config.

    Attributes:
        loss: softmax (a linear head), or arcface: cosines with an angular margin while training.
        scale: cosines are multiplied with it; sets how sharp the softmax can be.
        margin: angle, radians, that every class is pushed away from its photos.
        rare_margin: added to it for a class with a single labeled photo, less for more photos.
        margin_exponent: how fast that falls: a class with n photos has margin + rare_margin · n^−margin_exponent
            (Ha et al. 2020, "Google Landmark Recognition 2020 Competition Third Place Solution").
        subcenters: centers per class, of which the nearest counts (Deng et al. 2020).
    """

    loss: Literal["softmax", "arcface"] = "softmax"
    scale: float = 30.0
    margin: float = 0.3
    rare_margin: float = 0.0
    margin_exponent: float = 0.36
    subcenters: int = 1


LINEAR = HeadSettings()


def class_margins(counts: Tensor, settings: HeadSettings) -> Tensor:
    """The margin of each class, radians, from its number of labeled photos, (C,) to (C,)."""
    return settings.margin + settings.rare_margin * counts.clamp(min=1).float() ** -settings.margin_exponent


def with_margin(cosine: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Cosines with the angle to the target widened by its margin.

    Where θ + m would pass π, cos(θ + m) would rise again; there, cos θ − m·sin m takes its place, which falls
    throughout. Only the targets' entries are computed, so memory does not grow with the classes.

    Args:
        cosine: (B, C).
        target: (B, T) classes of each photo, several where photos are mixed; −1 for none.
        margin: (C,) radians, each in [0, π).

    Returns:
        (B, C); a new tensor.
    """
    # A photo mixed with one of its class names it twice; its angle is widened once.
    repeated = (target[:, :, None] == target[:, None, :]).tril(-1).any(dim=2)
    known = (target >= 0) & ~repeated
    column = target.clamp(min=0)
    own = cosine.gather(1, column)
    m = margin.to(cosine.dtype)[column]
    # At sin θ = 0 the root has no finite slope; float32 holds cosines no more exactly than this anyway.
    sine = (1 - own * own).clamp(min=1e-7).sqrt()
    widened = own * m.cos() - sine * m.sin()
    widened = torch.where(own > -m.cos(), widened, own - m * m.sin())
    # Added, not put in place: the column of a target that is none (0) may be that of another target of the photo.
    return cosine.scatter_add(1, column, torch.where(known, widened - own, 0.0))


class CosineHead(nn.Module):
    """Scaled cosines to class centers, with margins while training and without at inference.

    The core is computed in float32 whatever the autocast: bfloat16 has three significant digits, fewer than a small
    angle needs.
    """

    margins: Tensor

    def __init__(self, width: int, outputs: int, settings: HeadSettings) -> None:
        """Centers at random directions; margins as of classes with one photo, until told the counts."""
        super().__init__()
        self.settings, self.outputs = settings, outputs
        self.weight = nn.Parameter(torch.empty(outputs * settings.subcenters, width))
        nn.init.normal_(self.weight, std=1 / math.sqrt(width))
        # Not part of the model file: inference knows no margins.
        self.register_buffer("margins", class_margins(torch.ones(outputs), settings), persistent=False)

    def set_counts(self, counts: Tensor) -> None:
        """Set each class's margin from its number of labeled photos, ``counts`` of shape (outputs,)."""
        self.margins.copy_(class_margins(counts, self.settings))

    def forward(self, embedding: Tensor, target: Tensor | None = None) -> Tensor:
        """(B, D) embeddings to (B, outputs) logits; with margins at ``target``, (B,) or (B, T), if it is given."""
        with torch.autocast(embedding.device.type, enabled=False):
            precise = torch.promote_types(embedding.dtype, torch.float32)
            unit, centers = (functional.normalize(part.to(precise), dim=1) for part in (embedding, self.weight))
            cosine = unit @ centers.T
            if self.settings.subcenters > 1:
                cosine = cosine.view(len(unit), self.outputs, self.settings.subcenters).amax(dim=2)
            if target is not None:
                cosine = with_margin(cosine, target.view(len(unit), -1), self.margins)
            return self.settings.scale * cosine

    def extra_repr(self) -> str:
        """What the weights do not show; a checkpoint is valid for the same head only."""
        return f"outputs={self.outputs}, {self.settings}"

"""Class prototypes that share in a classifier's decision, for classes with few labels."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PrototypeBlend(nn.Module):
    """Blend of linear logits with similarities to class means, leaning on the means where labels are few.

    A class with n labeled photos takes the share beta = strength / (strength + n) of its logit from
    ``scale * cos(embedding, prototype)``: the nearest-class-mean rule of SimpleShot (Wang et al. 2019), which needs
    no training and so suffers least in the tail. Prototypes are running means of the embeddings seen in training.
    """

    prototypes: Tensor
    share: Tensor

    def __init__(self, embedding: int, outputs: int, scale: float = 16.0, momentum: float = 0.9) -> None:
        """Start with zero prototypes and zero shares: until told class counts, only the linear logits count."""
        super().__init__()
        self.scale, self.momentum = scale, momentum
        self.register_buffer("prototypes", torch.zeros(outputs, embedding))
        self.register_buffer("share", torch.zeros(outputs))

    def set_counts(self, counts: Tensor, strength: float) -> None:
        """Set each class's share from its number of labeled photos, ``counts`` of shape (outputs,)."""
        self.share.copy_(strength / (strength + counts.clamp(min=0).float()))

    @torch.no_grad()
    def update(self, embedding: Tensor, target: Tensor) -> None:
        """Move the prototypes of the classes in this batch towards the mean of their embeddings.

        Args:
            embedding: (B, D) embeddings.
            target: (B,) class of each; −1 for photos that have none.
        """
        unit = functional.normalize(embedding.float(), dim=1)
        for cls in target[target >= 0].unique():
            mean = functional.normalize(unit[target == cls].mean(dim=0), dim=0)
            old = self.prototypes[cls]
            keep = self.momentum if bool(old.any()) else 0.0
            self.prototypes[cls] = functional.normalize(keep * old + (1 - keep) * mean, dim=0)

    def forward(self, embedding: Tensor, linear_logits: Tensor) -> Tensor:
        """(B, D) embeddings and (B, C) logits to (B, C) blended logits, in float32 whatever the autocast."""
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = functional.normalize(embedding.float(), dim=1) @ self.prototypes.T
            return torch.lerp(linear_logits.float(), self.scale * cosine, self.share)

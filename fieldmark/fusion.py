"""Encoded places and dates, fused with the embedding of what a photo shows."""

import torch
from torch import Tensor, nn

from fieldmark.metadata import WIDTHS, MetadataSettings


def withhold(encoded: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B, E) encoded metadata with all entries of a random ``share`` of the rows set to zero, as if missing."""
    kept = torch.rand(len(encoded), 1, generator=generator) >= share
    return encoded * kept.to(encoded.device)


class _Residual(nn.Module):
    """x + f(x) with two layers, as in the geo-prior's network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, width), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class MetadataFusion(nn.Module):
    """Embeds encoded metadata and joins them with the embedding of the photo."""

    def __init__(self, embedding: int, settings: MetadataSettings) -> None:
        """For photo embeddings of width ``embedding``; added metadata start as zero, so as to disturb nothing."""
        super().__init__()
        self.settings = settings
        self.inputs = WIDTHS[settings.encoding]
        self.network = nn.Sequential(
            nn.Linear(self.inputs, settings.width),
            nn.ReLU(),
            *(_Residual(settings.width) for _ in range(settings.blocks)),
        )
        self.width = embedding + settings.width
        self.out: nn.Module = nn.Identity()
        if settings.fusion == "add":
            self.width = embedding
            last = nn.Linear(settings.width, embedding)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.out = last

    def forward(self, embedding: Tensor, encoded: Tensor | None) -> Tensor:
        """(B, D) embeddings and (B, E) encoded metadata, None where all are missing, to (B, width) fused ones."""
        if encoded is None:
            encoded = embedding.new_zeros(len(embedding), self.inputs)
        own = self.out(self.network(encoded))
        return embedding + own if self.settings.fusion == "add" else torch.cat([embedding, own], dim=1)

    def extra_repr(self) -> str:
        """What the weights do not show; a checkpoint is valid for the same settings only."""
        return str(self.settings)

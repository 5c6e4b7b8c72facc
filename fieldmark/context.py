"""What a model may look at beside the photo: its place and date, and its key region."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from fieldmark.artifacts import ArtifactError, read_table
from fieldmark.metadata import COLUMNS, encode
from fieldmark.models import Architecture


def _nothing() -> np.ndarray:
    return np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True)
class Context:
    """Inputs of N photos beside their pixels; both arrays are empty where a model takes none.

    Attributes:
        metadata: (N, E) float32, as :func:`fieldmark.metadata.encode` makes them.
        boxes: (N, 4) float32, the key region's left, top, width and height as shares of the photo.
    """

    metadata: np.ndarray = field(default_factory=_nothing)
    boxes: np.ndarray = field(default_factory=_nothing)


@dataclass(frozen=True)
class ContextTables:
    """Where the context of photos is looked up.

    Attributes:
        photos: a manifest or a shard: the metadata of at least the photos asked for.
        boxes: tables of key regions, all shards that hold a photo asked for; empty if no model crops.
    """

    photos: pl.DataFrame
    boxes: Sequence[str | Path] = ()

    def of(self, image_ids: Sequence[str], architecture: Architecture) -> Context:
        """The context of some photos, in their order, as far as a model of this architecture takes it.

        Raises:
            ArtifactError: if the model crops and a photo has no row in the tables of boxes.
        """
        asked = pl.DataFrame({"image_id": pl.Series(list(image_ids), dtype=pl.String)})
        context = {}
        if architecture.metadata.encoding != "none":
            rows = asked.join(
                self.photos.select("image_id", *COLUMNS), on="image_id", how="left", maintain_order="left"
            )
            context["metadata"] = encode(rows, architecture.metadata)
        if architecture.streams == "photo_and_crop":
            context["boxes"] = self._boxes_of(asked)
        return Context(**context)

    def contents(self, image_ids: Sequence[str]) -> str:
        """Hash of the photos' bytes, as they were when they were listed; empty for tables that do not tell."""
        if "sha256" not in self.photos.columns:
            return ""
        asked = pl.DataFrame({"image_id": pl.Series(list(image_ids), dtype=pl.String)})
        rows = asked.join(self.photos.select("image_id", "sha256"), on="image_id", how="left", maintain_order="left")
        return hashlib.sha256(" ".join(map(str, rows["sha256"])).encode()).hexdigest()

    def _boxes_of(self, asked: pl.DataFrame) -> np.ndarray:
        if not self.boxes:
            raise ArtifactError("the model sees crops of key regions, but no table of boxes was given")
        corners = ["x", "y", "width", "height"]
        wanted = asked.join(read_table("boxes", self.boxes), on="image_id", how="left", maintain_order="left")
        without = wanted.filter(pl.col("x").is_null())
        if not without.is_empty():
            raise ArtifactError(
                f"{self.boxes[0]} and its sibling shards: {without.height} photos have no key region, the first is "
                f"{without['image_id'][0]!r}; expected one row for every photo; delete them and run the workflow again"
            )
        return wanted.select(corners).to_numpy().astype(np.float32)

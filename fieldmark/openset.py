"""An open-set, semi-supervised benchmark out of any fully labeled data set, by a seeded split."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from fieldmark.artifacts import TAXA
from fieldmark.readers.candidates import image_id_of, relative_path
from fieldmark.readers.listing import PHOTO_COLUMNS, Listing
from fieldmark.tables import DataError

FOREIGN = "-1"  # the class id of a foreign photo in a truth table


@dataclass(frozen=True)
class OpenSet:
    """How a fully labeled data set is split.

    Attributes:
        in_class_share: share of the classes that are in-class; all photos of the others become unlabeled.
        labeled_per_class: labeled photos of each in-class class.
        val_per_class: val photos of each in-class class.
        test_per_class: test photos of each in-class class; what is left becomes unlabeled.
    """

    in_class_share: float
    labeled_per_class: int
    val_per_class: int
    test_per_class: int

    def __post_init__(self) -> None:
        if not 0 < self.in_class_share <= 1:
            raise DataError(f"data.openset.in_class_share: expected a share in (0, 1], found {self.in_class_share}")
        for name in ("labeled_per_class", "val_per_class", "test_per_class"):
            if getattr(self, name) < 1:
                raise DataError(f"data.openset.{name}: expected at least 1, found {getattr(self, name)}")

    @property
    def needed(self) -> int:
        """Photos that an in-class class needs at least, with one left over to be unlabeled."""
        return self.labeled_per_class + self.val_per_class + self.test_per_class + 1


def class_stream(seed: int, *names: str) -> np.random.Generator:
    """Random numbers of one class's own, so that photos added to it leave the draws of the others as they are."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.Generator(np.random.PCG64([seed, int.from_bytes(digest[:8], "big")]))


def split_openset(
    listing: Listing, openset: OpenSet, seed: int, coarse_taxa: Sequence[str]
) -> tuple[Listing, pl.DataFrame]:
    """Split a fully labeled listing into labeled, unlabeled, val and test photos.

    Unlabeled photos keep the taxa in ``coarse_taxa``, as Semi-iNat tells kingdom and phylum of each; val and test
    photos keep none.

    Args:
        listing: every photo with its label; splits are ignored.
        openset: how many of what.
        seed: of every draw.
        coarse_taxa: taxon columns that unlabeled photos keep.

    Returns:
        The listing of the benchmark, whose classes are the in-class ones, and the truth of its unlabeled and test
        photos, for scoring only: columns image_id and class_id, the name of the class or -1 for foreign; by image_id.

    Raises:
        DataError: if a photo has no label, or fewer than two classes have enough photos.
    """
    unlabeled = listing.photos.filter(pl.col("label").is_null())
    if not unlabeled.is_empty():
        raise DataError(f"data.openset: every photo needs a label, but {unlabeled['file'][0]!r} has none")
    counts = {str(label): int(count) for label, count in listing.photos["label"].value_counts().iter_rows()}
    names = [name for name in listing.classes["name"] if name in counts]
    eligible = [name for name in names if counts[name] >= openset.needed]
    wanted = max(2, round(openset.in_class_share * len(names)))
    if len(eligible) < wanted:
        raise DataError(
            f"data.openset: {wanted} in-class classes of at least {openset.needed} photos are asked for, but only "
            f"{len(eligible)} of {len(names)} classes have as many; lower in_class_share or the numbers per class"
        )
    drawn = class_stream(seed, "classes").choice(len(eligible), size=wanted, replace=False)
    chosen = {eligible[position] for position in drawn}
    photos = _assign(listing.photos, chosen, openset, seed)
    photos = _with_known_taxa(photos, listing.classes, coarse_taxa)
    classes = listing.classes.filter(pl.col("name").is_in(sorted(chosen)))
    truth = _truth(photos, classes, listing)
    visible = photos.with_columns(pl.when(pl.col("split").is_in(["labeled", "val"])).then(pl.col("label")))
    return Listing(listing.root, visible.select(*PHOTO_COLUMNS), classes, listing.refused), truth


def _assign(photos: pl.DataFrame, chosen: set[str], openset: OpenSet, seed: int) -> pl.DataFrame:
    parts = []
    for (label,), group in photos.sort("label", "file").group_by("label", maintain_order=True):
        name = str(label)
        splits = np.full(group.height, "unlabeled", dtype=object)
        if name in chosen:
            order = class_stream(seed, "photos", name).permutation(group.height)
            ends = np.cumsum([openset.labeled_per_class, openset.val_per_class, openset.test_per_class])
            for split, part in zip(("labeled", "val", "test"), np.split(order, ends), strict=False):
                splits[part] = split
        parts.append(group.with_columns(pl.Series("split", splits.tolist(), dtype=pl.String)))
    return pl.concat(parts)


def _with_known_taxa(photos: pl.DataFrame, classes: pl.DataFrame, coarse_taxa: Sequence[str]) -> pl.DataFrame:
    of_class = classes.select(pl.col("name").alias("label"), *(pl.col(t).alias(f"class_{t}") for t in TAXA))
    joined = photos.join(of_class, on="label", how="left")
    told = pl.col("split").is_in(["labeled", "unlabeled"])
    return joined.with_columns(
        pl.when(told).then(pl.coalesce(pl.col(taxon), pl.col(f"class_{taxon}"))).alias(taxon)
        if taxon in coarse_taxa
        else pl.lit(None, dtype=pl.String).alias(taxon)
        for taxon in TAXA
    )


def _truth(photos: pl.DataFrame, classes: pl.DataFrame, listing: Listing) -> pl.DataFrame:
    hidden = photos.filter(pl.col("split").is_in(["unlabeled", "test"]))
    ids = [image_id_of(relative_path(file, listing.root)) for file in hidden["file"]]
    in_class = pl.col("label").is_in(classes["name"].to_list())
    return hidden.select(
        pl.Series("image_id", ids, dtype=pl.String),
        pl.when(in_class).then(pl.col("label")).otherwise(pl.lit(FOREIGN)).alias("class_id"),
    ).sort("image_id")

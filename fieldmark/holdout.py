"""Val photos drawn from the labeled ones, for data whose source keeps none aside."""

import logging

import numpy as np
import polars as pl

from fieldmark.openset import class_stream
from fieldmark.readers.listing import DataError, Listing

log = logging.getLogger("fieldmark")


def hold_out(listing: Listing, per_class: int, seed: int) -> Listing:
    """Move ``per_class`` labeled photos of each class to val; each class keeps one labeled photo at least.

    Args:
        listing: as its source has it, without val photos.
        per_class: how many; of classes with fewer to spare, all but one.
        seed: of the draws, which are each class's own: photos added to one class leave the others' val as it is.

    Returns:
        The listing, with the split ``val`` for these photos.

    Raises:
        DataError: if there are val photos already, or no class has a photo to spare.
    """
    if (listing.photos["split"] == "val").any():
        raise DataError("data.val_per_class: expected 0, because the data have val photos of their own")
    photos = listing.photos.with_row_index("row")
    rows: list[int] = []
    for (label,), group in photos.filter(split="labeled").sort("label", "file").group_by("label", maintain_order=True):
        drawn = class_stream(seed, "val", str(label)).permutation(group.height)[: min(per_class, group.height - 1)]
        rows += group["row"].to_numpy()[np.sort(drawn)].tolist()
    if not rows:
        raise DataError(
            f"{listing.root}: no class has more than one labeled photo, so none can be held out as val "
            f"(data.val_per_class: {per_class}); label more photos, or give val photos of your own"
        )
    log.info("%d labeled photos were drawn as val photos, at most %d a class", len(rows), per_class)
    split = pl.when(pl.col("row").is_in(rows)).then(pl.lit("val")).otherwise("split").alias("split")
    return Listing(listing.root, photos.with_columns(split).drop("row"), listing.classes, listing.refused)

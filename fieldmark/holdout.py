"""Val photos drawn from the labeled ones, for data whose source keeps none aside."""

import logging
from dataclasses import dataclass

import polars as pl

from fieldmark.artifacts import TAXA
from fieldmark.openset import class_stream
from fieldmark.tables import DataError

log = logging.getLogger("fieldmark")


@dataclass(frozen=True)
class HoldOut:
    """How many labeled photos of each class become val photos, and the seed of the draws."""

    per_class: int
    seed: int


def hold_out(photos: pl.DataFrame, classes: pl.DataFrame, plan: HoldOut) -> pl.DataFrame:
    """Move some labeled photos of each class to val; each class keeps one labeled photo at least.

    Photos of the same bytes count as one: a copy of a val photo is no use as a label. Of classes with fewer photos to
    spare, all but one are moved. Draws are each class's own: photos added to one leave the others' val as it is.

    Args:
        photos: usable ones, rows of a ``manifest`` table, none of them in val.
        classes: columns class_id and name.
        plan: how many.

    Returns:
        The same rows, with the split ``val`` for those drawn. They keep no coarse taxon that test photos do not have.

    Raises:
        DataError: if no class has a photo to spare.
    """
    labeled = photos.filter(pl.col("split") == "labeled").sort("image_id").unique("sha256", maintain_order=True)
    drawn: list[str] = []
    for class_id, name in classes.select("class_id", "name").iter_rows():
        own = labeled.filter(pl.col("class_id") == class_id)["image_id"].to_list()
        order = class_stream(plan.seed, "val", name).permutation(len(own))
        drawn += [own[place] for place in order[: max(0, min(plan.per_class, len(own) - 1))]]
    if not drawn:
        raise DataError(
            "no class has more than one usable labeled photo, so none can be held out as val "
            f"(data.val_per_class: {plan.per_class}); label more photos, or give val photos of your own"
        )
    log.info("%d labeled photos were drawn as val photos, at most %d a class", len(drawn), plan.per_class)
    held = pl.col("image_id").is_in(drawn)
    test = photos.filter(pl.col("split") == "test")
    unknown = [taxon for taxon in TAXA if test[taxon].null_count() == test.height]
    return photos.with_columns(
        pl.when(held).then(pl.lit("val")).otherwise("split").alias("split"),
        *(pl.when(~held).then(pl.col(taxon)).alias(taxon) for taxon in unknown),
    )

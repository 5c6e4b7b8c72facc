"""Section "Look-alikes": the classes that the ensemble confuses most, side by side."""

from dataclasses import dataclass

import polars as pl

from fieldmark.artifacts import read_table
from fieldmark.report.album import Strip, spread_out
from fieldmark.report.inputs import Material

_PAIRS_SHOWN = 8
_PHOTOS_SHOWN = 4


@dataclass(frozen=True)
class Pair:
    """Two classes: labeled photos of both, and how often one was taken for the other."""

    first: Strip
    second: Strip
    sentences: list[str]
    confused: Strip | None


@dataclass(frozen=True)
class LookalikesSection:
    """The most confused pairs.

    Attributes:
        pairs: most confused first.
        errors: photos that were named wrongly.
        photos: all that were scored.
        covered: the errors that lie in the pairs shown.
    """

    pairs: list[Pair]
    errors: int
    photos: int
    covered: int


def confused_pairs(confusion: pl.DataFrame) -> pl.DataFrame:
    """Unordered pairs of classes by how often one was predicted as the other.

    Returns:
        columns first < second, forth (first taken for second), back and total; the largest total first.
    """
    wrong = confusion.filter(pl.col("class_id") != pl.col("predicted"))
    forward = pl.col("class_id") < pl.col("predicted")
    return (
        wrong.group_by(
            pl.min_horizontal("class_id", "predicted").alias("first"),
            pl.max_horizontal("class_id", "predicted").alias("second"),
        )
        .agg(pl.col("count").filter(forward).sum().alias("forth"), pl.col("count").filter(~forward).sum().alias("back"))
        .with_columns((pl.col("forth") + pl.col("back")).alias("total"))
        .sort("total", "first", "second", descending=[True, False, False])
    )


def lookalikes_section(material: Material) -> LookalikesSection:
    """Collect the section."""
    confusion = read_table("confusion", material.inputs.confusion)
    pairs = confused_pairs(confusion)
    totals = dict(confusion.group_by("class_id").agg(pl.col("count").sum()).iter_rows())
    shown = pairs.head(_PAIRS_SHOWN)
    mistaken = _mistaken_val_photos(material)
    return LookalikesSection(
        pairs=[_pair(material, row, totals, mistaken) for row in shown.iter_rows(named=True)],
        errors=int(pairs["total"].sum()),
        photos=int(confusion["count"].sum()),
        covered=int(shown["total"].sum()),
    )


def _mistaken_val_photos(material: Material) -> pl.DataFrame:
    """Validation photos that the ensemble names wrongly: image_id, class_id, predicted."""
    val = material.manifest.filter(pl.col("split") == "val").select("image_id", "class_id")
    first = material.predictions.select("image_id", pl.col("class_ids").arr.first().alias("predicted"))
    return val.join(first, on="image_id").filter(pl.col("class_id") != pl.col("predicted")).sort("image_id")


def _pair(material: Material, row: dict, totals: dict[int, int], mistaken: pl.DataFrame) -> Pair:
    a, b = row["first"], row["second"]
    counts = [(a, b, row["forth"]), (b, a, row["back"])]
    sentences = [
        # The figures stay on one line.
        f"{material.names[true]} taken for {material.names[other]}: "
        + f"{count} of {totals[true]}".replace(" ", "\xa0")
        for true, other, count in counts
        if count
    ]
    confused = None
    both = mistaken.filter(pl.col("class_id").is_in([a, b]) & pl.col("predicted").is_in([a, b]))
    if both.height:
        pictures = material.album.pictures(both["image_id"].head(_PHOTOS_SHOWN).to_list())
        confused = Strip("Confused validation photos", f"{both.height} in all", pictures)
    return Pair(_sample(material, a), _sample(material, b), sentences, confused)


def _sample(material: Material, class_id: int) -> Strip:
    own = material.manifest.filter((pl.col("split") == "labeled") & (pl.col("class_id") == class_id))
    pictures = material.album.pictures(spread_out(own["image_id"].to_list(), _PHOTOS_SHOWN))
    return Strip(material.names[class_id], f"{own.height} labeled", pictures)

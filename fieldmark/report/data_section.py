"""Section "The photos": counts, the long tail, key regions, rejected photos, and samples of a few classes."""

from dataclasses import dataclass

import polars as pl

from fieldmark.artifacts import SPLITS, TAXA
from fieldmark.report.album import Strip, spread_out
from fieldmark.report.charts import Figure, Series, steps
from fieldmark.report.inputs import Material
from fieldmark.report.rounds_section import Measure
from fieldmark.report.wording import metric_name, percent, split_name

_CLASSES_SHOWN = 6
_PHOTOS_SHOWN = 8
_REASONS_SHOWN = 12


@dataclass(frozen=True)
class DataSection:
    """What the template shows of the photos.

    Attributes:
        photos: how many.
        labeled: how many of them.
        unlabeled: how many of them.
        classes: how many.
        columns: of the table of splits.
        splits: its rows, and how long a bar of the count is, of the longest.
        tail: chart of the labeled photos of each class.
        regions: how well key regions fit the boxes of validation photos; empty if that was not measured.
        boxed: how many validation photos these figures are of.
        rejected: how many, and why: reason, count and one file.
        rejected_count: how many in all.
        strips: photos of a few classes.
    """

    photos: int
    labeled: int
    unlabeled: int
    classes: int
    columns: list[str]
    splits: list[tuple[list[str], float]]
    tail: Figure
    regions: list[Measure]
    boxed: int
    rejected: list[tuple[str, int, str]]
    rejected_count: int
    strips: list[Strip]


def data_section(material: Material) -> DataSection:
    """Collect the section."""
    manifest, rejected = material.manifest, material.rejected
    columns, splits = split_table(manifest)
    counts = dict(manifest["split"].value_counts().iter_rows())
    reasons = (
        rejected.group_by("reason")
        .agg(pl.len().alias("count"), pl.col("path").min())
        .sort("count", "reason", descending=[True, False])
    )
    regions = material.pick("detection", "val", "key_region")
    return DataSection(
        photos=manifest.height,
        labeled=counts.get("labeled", 0),
        unlabeled=counts.get("unlabeled", 0),
        classes=material.classes.height,
        columns=columns,
        splits=splits,
        tail=_tail_chart(material.classes),
        regions=_region_measures(material),
        boxed=max((row["count"] for row in regions.values()), default=0),
        rejected=list(reasons.select("reason", "count", "path").head(_REASONS_SHOWN).iter_rows()),
        rejected_count=rejected.height,
        strips=_class_strips(material),
    )


def split_table(manifest: pl.DataFrame) -> tuple[list[str], list[tuple[list[str], float]]]:
    """How many photos each split has, and of how many of them what is known: header, and rows with a bar's length.

    Columns that nothing is known in are left out.
    """
    known = {"class": "class_id"} | {taxon: taxon for taxon in TAXA if taxon != "class"}
    known |= {"class (taxon)": "class", "place": "latitude", "date": "date", "box": "box_x"}
    known = {name: column for name, column in known.items() if manifest[column].null_count() < manifest.height}
    most = max(manifest["split"].value_counts()["count"].to_list(), default=1)
    rows = []
    for split in SPLITS:
        photos = manifest.filter(pl.col("split") == split)
        if photos.is_empty():
            continue
        shares = [1 - photos[column].null_count() / photos.height for column in known.values()]
        cells = ["all" if share == 1 else "none" if share == 0 else percent(share, 0) for share in shares]
        rows.append(([split_name(split), f"{photos.height:,}", *cells], photos.height / most))
    return ["Split", "Photos", *(f"{name[0].upper()}{name[1:]}" for name in known)], rows


def _tail_chart(classes: pl.DataFrame) -> Figure:
    counts = classes["labeled_count"].sort(descending=True).to_list()
    caption = f"The long tail: {min(counts)} to {max(counts)} labeled photos a class"
    return steps(caption, [Series("labeled photos", "s2", [], counts)], "classes, most labeled first", "labeled photos")


def _region_measures(material: Material) -> list[Measure]:
    """What the evaluation found of the key regions, with what the full photos would score beside it."""
    full = material.pick("detection", "val", "full_photo")
    return [
        Measure(
            metric_name(metric),
            percent(row["value"]),
            f"{percent(full[metric]['value'])} for the full photos" if metric in full else "",
        )
        for metric, row in material.pick("detection", "val", "key_region").items()
    ]


def _class_strips(material: Material) -> list[Strip]:
    labeled = material.manifest.filter(pl.col("split") == "labeled")
    ranked = material.classes.sort("labeled_count", "class_id", descending=[True, False])
    strips = []
    for class_id in spread_out(ranked["class_id"].to_list(), _CLASSES_SHOWN):
        photos = labeled.filter(pl.col("class_id") == class_id)["image_id"].to_list()
        note = f"{len(photos)} labeled photo{'s' if len(photos) != 1 else ''}"
        pictures = material.album.pictures(spread_out(photos, _PHOTOS_SHOWN))
        strips.append(Strip(material.names[class_id], note, pictures))
    return strips

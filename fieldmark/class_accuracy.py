"""Which classes are named well and which not, and every photo that is named wrongly: for people to look at."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from fieldmark.evaluation import Labels
from fieldmark.predictions import TopLists


def class_table(
    confusion: pl.DataFrame, classes: pl.DataFrame, pseudo_labels: pl.DataFrame | None, labels: Mapping[int, str]
) -> pl.DataFrame:
    """One row per class, worst first: how often it is named rightly, what it is taken for, what was learned from.

    Args:
        confusion: a ``confusion`` table.
        classes: all classes.
        pseudo_labels: the last round's; None where there are no rounds.
        labels: what to call each class.

    Returns:
        Columns class_name, labeled and pseudo_labels (photos learned from), photos (scored ones), right (of these),
        accuracy (null without photos, and then last), taken_for (its most frequent wrong name, null if none) and times.
    """
    names = pl.DataFrame(
        {"class_id": list(labels), "class_name": list(labels.values())}, schema_overrides={"class_id": pl.Int32}
    )
    right = pl.col("class_id") == pl.col("predicted")
    scored = confusion.group_by("class_id").agg(
        pl.col("count").sum().alias("photos"), pl.col("count").filter(right).sum().alias("right")
    )
    wrong = (
        confusion.filter(~right)
        .sort("count", "predicted", descending=[True, False])
        .group_by("class_id", maintain_order=True)
        .first()
        .join(names.rename({"class_id": "predicted", "class_name": "taken_for"}), on="predicted")
        .select("class_id", "taken_for", pl.col("count").alias("times"))
    )
    table = names.join(classes.select("class_id", labeled="labeled_count"), on="class_id")
    if pseudo_labels is not None:
        chosen = pseudo_labels.filter("selected").group_by("class_id").agg(pl.len().alias("pseudo_labels"))
        table = table.join(chosen, on="class_id", how="left").with_columns(pl.col("pseudo_labels").fill_null(0))
    table = table.join(scored, on="class_id", how="left").join(wrong, on="class_id", how="left")
    table = table.with_columns(pl.col("photos", "right", "times").fill_null(0)).with_columns(
        pl.when(pl.col("photos") > 0).then(pl.col("right") / pl.col("photos")).alias("accuracy")
    )
    before = [name for name in ("class_name", "labeled", "pseudo_labels") if name in table.columns]
    ordered = table.sort("accuracy", "photos", "class_name", descending=[False, True, False], nulls_last=True)
    return ordered.select(*before, "photos", "right", "accuracy", "taken_for", "times")


def mistakes(predictions: TopLists, truth: Labels, manifest: pl.DataFrame, labels: Mapping[int, str]) -> pl.DataFrame:
    """The photos whose most probable class is not theirs, the surest mistakes first.

    Args:
        predictions: of n photos.
        truth: (n,) their true class ids.
        manifest: tells the paths.
        labels: what to call each class.

    Returns:
        Columns path, class_name (the true one), named (the predicted one) and probability.
    """
    first = predictions.class_ids[:, 0]
    rows = np.flatnonzero(first != truth)
    found = pl.DataFrame(
        {
            "image_id": [predictions.image_ids[row] for row in rows],
            "class_name": [labels[label] for label in truth[rows].tolist()],
            "named": [labels[label] for label in first[rows].tolist()],
            "probability": predictions.probabilities[rows, 0].astype(np.float64),
        },
        schema={"image_id": pl.String, "class_name": pl.String, "named": pl.String, "probability": pl.Float64},
    )
    found = found.join(manifest.select("image_id", "path"), on="image_id")
    ordered = found.sort("probability", "path", descending=[True, False])
    return ordered.select("path", "class_name", "named", "probability")

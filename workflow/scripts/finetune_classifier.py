"""S9/S10: fine-tune the classifier on labeled and, if given, pseudo-labeled photos; also the supervised baseline."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from fieldmark.artifacts import read_table
from fieldmark.context import ContextTables
from fieldmark.fitting import Plan, Task, fit
from fieldmark.photosets import photo_set
from fieldmark.taxa import coarse_taxon_codes
from fieldmark.validation import Validation


def classification_task(manifest: pl.DataFrame, classes: pl.DataFrame, pseudo: pl.DataFrame | None) -> Task:
    """Labeled photos, selected photos with their pseudo-labels, and the other unlabeled ones with coarse taxa only."""
    of_photo, of_class = coarse_taxon_codes(manifest, classes)
    rows = manifest.with_columns(
        pl.Series("taxon", of_photo),
        pl.col("class_id").cast(pl.Int64).alias("target"),
        pl.lit(1.0).alias("weight"),
    ).select("image_id", "path", "split", "taxon", "target", "weight")
    labeled = rows.filter(pl.col("split") == "labeled")
    unlabeled = rows.filter(pl.col("split") == "unlabeled").with_columns(pl.lit(-1, pl.Int64).alias("target"))
    selected = unlabeled.head(0)
    if pseudo is not None:
        chosen = pseudo.filter("selected").select(
            "image_id", pl.col("class_id").cast(pl.Int64).alias("target"), pl.col("weight").cast(pl.Float64)
        )
        selected = unlabeled.drop("target", "weight").join(chosen, on="image_id").select(unlabeled.columns)
        unlabeled = unlabeled.join(chosen, on="image_id", how="anti")
    parts, first = {}, 0
    for name, frame in (("labeled", labeled), ("pseudo", selected), ("unlabeled", unlabeled)):
        parts[name] = np.arange(first, first + len(frame))
        first += len(frame)
    counts = np.bincount(labeled["target"].to_numpy(), minlength=len(classes))
    everything = pl.concat([labeled, selected.sort("image_id"), unlabeled])
    return Task(photo_set(everything, of_class), parts, len(classes), counts=counts)


def finetune_classifier(
    manifest: Path,
    classes: Path,
    pseudo_labels: Path | None,
    source: str,
    plan: Plan,
    weights: Path,
    history: Path,
    boxes: Sequence[str] = (),
) -> None:
    """Fine-tune by one recipe; without ``pseudo_labels``, on the labeled photos alone.

    Other arguments as in :func:`fieldmark.fitting.fit`. Validation photos are only looked at, for the history.
    """
    photos, known = read_table("manifest", manifest), read_table("classes", classes)
    task = classification_task(
        photos, known, None if pseudo_labels is None else read_table("pseudo_labels", pseudo_labels)
    )
    val = photos.filter(pl.col("split") == "val")
    tables = ContextTables(photos, boxes)
    validation = None
    if len(val):
        validation = Validation(
            val["image_id"].to_list(), val["path"].to_list(), val["class_id"].to_numpy(), plan.hardware, tables
        )
    fit(task, source, plan, weights, history, validation, tables)


if "snakemake" in globals():
    finetune_classifier(
        manifest=Path(snakemake.input.manifest),
        classes=Path(snakemake.input.classes),
        pseudo_labels=Path(snakemake.input.pseudo_labels) if snakemake.input.get("pseudo_labels") else None,
        source=snakemake.input.get("weights") or snakemake.params.model["weights"],
        plan=Plan.of_job(snakemake),
        weights=Path(snakemake.output.weights),
        history=Path(snakemake.output.history),
        boxes=list(snakemake.input.get("boxes", [])),
    )

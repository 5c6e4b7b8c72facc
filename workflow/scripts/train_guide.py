"""S5, first half: train the guide that will judge unlabeled photos.

Beside the labeled classes, the guide has one output for each foreign cluster (a kept cluster far from every labeled
class), so that photos of no labeled class have somewhere to go other than the nearest look-alike.
"""

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


def guide_task(manifest: pl.DataFrame, classes: pl.DataFrame, clusters: pl.DataFrame, kept: pl.DataFrame) -> Task:
    """Train on labeled photos, and on unlabeled photos of foreign clusters as further classes."""
    number = len(classes)
    labeled = manifest.filter(pl.col("split") == "labeled").select(
        "image_id", "path", pl.col("class_id").cast(pl.Int64).alias("target")
    )
    names = (
        kept.filter(pl.col("kept") & pl.col("foreign"))
        .sort("cluster")
        .select("cluster")
        .with_row_index("target", offset=number)
        .cast({"target": pl.Int64})
    )
    foreign = (
        clusters.join(names, on="cluster")
        .join(manifest.filter(pl.col("split") == "unlabeled").select("image_id", "path"), on="image_id")
        .select("image_id", "path", "target")
        .sort("image_id")
    )
    rows = pl.concat([labeled.sort("image_id"), foreign])
    parts = {"labeled": np.arange(len(labeled)), "foreign": np.arange(len(labeled), len(rows))}
    counts = np.bincount(rows["target"].to_numpy(), minlength=number + len(names))
    return Task(photo_set(rows), parts, number, foreign=len(names), counts=counts)


def train_guide(
    manifest: Path,
    classes: Path,
    clusters: Path,
    kept_clusters: Path,
    source: str,
    plan: Plan,
    weights: Path,
    history: Path,
    boxes: Sequence[str] = (),
) -> None:
    """Train the guide; arguments as in :func:`fieldmark.fitting.fit`."""
    photos = read_table("manifest", manifest)
    task = guide_task(
        photos,
        read_table("classes", classes),
        read_table("clusters", clusters),
        read_table("kept_clusters", kept_clusters),
    )
    fit(task, source, plan, weights, history, tables=ContextTables(photos, boxes))


if "snakemake" in globals():
    train_guide(
        manifest=Path(snakemake.input.manifest),
        classes=Path(snakemake.input.classes),
        clusters=Path(snakemake.input.clusters),
        kept_clusters=Path(snakemake.input.kept_clusters),
        source=snakemake.input.weights,
        plan=Plan.of_job(snakemake),
        weights=Path(snakemake.output.weights),
        history=Path(snakemake.output.history),
        boxes=list(snakemake.input.get("boxes", [])),
    )

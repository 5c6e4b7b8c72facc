"""S4: weakly supervised pre-training, with the ids of the kept clusters as if they were labels."""

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


def cluster_task(manifest: pl.DataFrame, clusters: pl.DataFrame, kept: pl.DataFrame) -> Task:
    """Train on photos of kept clusters; targets number the kept clusters from zero."""
    numbers = kept.filter("kept").sort("cluster").select("cluster").with_row_index("target").cast({"target": pl.Int64})
    rows = (
        clusters.join(numbers, on="cluster").join(manifest.select("image_id", "path"), on="image_id").sort("image_id")
    )
    counts = np.bincount(rows["target"].to_numpy(), minlength=len(numbers))
    return Task(photo_set(rows), {"clusters": np.arange(len(rows))}, len(numbers), counts=counts)


def pretrain_backbone(
    manifest: Path,
    clusters: Path,
    kept_clusters: Path,
    source: str,
    plan: Plan,
    weights: Path,
    history: Path,
    boxes: Sequence[str] = (),
) -> None:
    """Train the backbone to tell the kept clusters apart; arguments as in :func:`fieldmark.fitting.fit`."""
    photos = read_table("manifest", manifest)
    task = cluster_task(
        photos,
        read_table("clusters", clusters),
        read_table("kept_clusters", kept_clusters),
    )
    fit(task, source, plan, weights, history, tables=ContextTables(photos, boxes))


if "snakemake" in globals():
    pretrain_backbone(
        manifest=Path(snakemake.input.manifest),
        clusters=Path(snakemake.input.clusters),
        kept_clusters=Path(snakemake.input.kept_clusters),
        source=snakemake.input.get("weights") or snakemake.params.model["weights"],
        plan=Plan.of_job(snakemake),
        weights=Path(snakemake.output.weights),
        history=Path(snakemake.output.history),
        boxes=list(snakemake.input.get("boxes", [])),
    )

"""S7: refine the pre-trained backbone on the fine-grained subclusters of the selected photos."""

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


def subcluster_task(manifest: pl.DataFrame, subclusters: pl.DataFrame) -> Task:
    """Train on labeled and selected photos; targets are their subclusters."""
    rows = (
        subclusters.join(manifest.select("image_id", "path"), on="image_id")
        .with_columns(pl.col("subcluster").rank("dense").cast(pl.Int64).sub(1).alias("target"))
        .sort("image_id")
    )
    counts = np.bincount(rows["target"].to_numpy())
    return Task(photo_set(rows), {"clusters": np.arange(len(rows))}, len(counts), counts=counts)


def refine_backbone(
    manifest: Path,
    subclusters: Path,
    source: str,
    plan: Plan,
    weights: Path,
    history: Path,
    boxes: Sequence[str] = (),
) -> None:
    """Train the backbone to tell the subclusters apart; arguments as in :func:`fieldmark.fitting.fit`."""
    photos = read_table("manifest", manifest)
    task = subcluster_task(photos, read_table("subclusters", subclusters))
    fit(task, source, plan, weights, history, tables=ContextTables(photos, boxes))


if "snakemake" in globals():
    refine_backbone(
        manifest=Path(snakemake.input.manifest),
        subclusters=Path(snakemake.input.subclusters),
        source=snakemake.input.weights,
        plan=Plan.of_job(snakemake),
        weights=Path(snakemake.output.weights),
        history=Path(snakemake.output.history),
        boxes=list(snakemake.input.get("boxes", [])),
    )

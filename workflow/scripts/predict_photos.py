"""S12: class probabilities of a shard's validation and test photos, averaged over test-time views."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from fieldmark.artifacts import read_table, write_table
from fieldmark.context import ContextTables
from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import load_classifier
from fieldmark.predictions import to_table


def predict_photos(
    shard: Path,
    weights: Path,
    views: ViewPlan,
    top_k: int,
    hardware: Hardware,
    target: Path,
    boxes: Sequence[str] = (),
) -> None:
    """Write the predictions of a shard's val and test photos.

    Args:
        shard: a ``shard`` table.
        weights: the classifier's model file.
        views: which views to average.
        top_k: classes kept per photo.
        hardware: device and precision.
        target: where the ``predictions`` table goes.
        boxes: the shard's ``boxes`` table, for models of two streams.
    """
    photos = read_table("shard", shard).filter(pl.col("split").is_in(["val", "test"]))
    model = load_classifier(weights)
    context = ContextTables(photos, boxes).of(photos["image_id"].to_list(), model.architecture)
    _, probabilities = infer(model, photos["path"].to_list(), views, hardware, context=context)
    write_table(to_table(photos["image_id"].to_list(), probabilities, top_k), "predictions", target)


if "snakemake" in globals():
    predict_photos(
        shard=Path(snakemake.input.shard),
        weights=Path(snakemake.input.weights),
        views=ViewPlan(**snakemake.params.views),
        top_k=snakemake.params.top_k,
        hardware=Hardware.of_job(snakemake),
        target=Path(snakemake.output[0]),
        boxes=list(snakemake.input.get("boxes", [])),
    )

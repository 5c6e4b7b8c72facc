"""S5, second half: the guide's embedding and probabilities of every labeled and unlabeled photo of a shard.

In self-training the guide is the last model that was fine-tuned.
"""

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


def score_photos(
    shard: Path,
    guide: Path,
    views: ViewPlan,
    top_k: int,
    hardware: Hardware,
    target: Path,
    boxes: Sequence[str] = (),
) -> None:
    """Write the guide's judgement of a shard's labeled and unlabeled photos.

    Args:
        shard: a ``shard`` table.
        guide: the guide's model file.
        views: which views to average.
        top_k: classes kept per photo.
        hardware: device and precision.
        target: where the ``guide_scores`` table goes.
        boxes: the shard's ``boxes`` table, for models of two streams.
    """
    photos = read_table("shard", shard).filter(pl.col("split").is_in(["labeled", "unlabeled"]))
    model = load_classifier(guide)
    classes = model.architecture.classes
    context = ContextTables(photos, boxes).of(photos["image_id"].to_list(), model.architecture)
    embeddings, probabilities = infer(model, photos["path"].to_list(), views, hardware, context=context)
    table = to_table(photos["image_id"].to_list(), probabilities[:, :classes], top_k).with_columns(
        pl.Series("embedding", embeddings, dtype=pl.Array(pl.Float32, embeddings.shape[1])),
        pl.Series("foreign_probability", probabilities[:, classes:].sum(axis=1), dtype=pl.Float32),
    )
    write_table(table, "guide_scores", target)


if "snakemake" in globals():
    score_photos(
        shard=Path(snakemake.input.shard),
        guide=Path(snakemake.input.weights),
        views=ViewPlan(flip=True),
        top_k=snakemake.params.top_k,
        hardware=Hardware.of_job(snakemake),
        target=Path(snakemake.output[0]),
        boxes=list(snakemake.input.get("boxes", [])),
    )

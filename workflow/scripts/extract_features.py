"""S1: embed every photo of a shard with the best model so far; for the linear probe, with pretrained weights."""

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
from fieldmark.models import Architecture, ModelSettings, build_classifier, load_classifier


def extract_features(
    shard: Path,
    splits: Sequence[str],
    source: str,
    model: ModelSettings,
    hardware: Hardware,
    target: Path,
    boxes: Sequence[str] = (),
) -> None:
    """Write the embeddings of a shard's photos of some splits.

    Args:
        shard: a ``shard`` table.
        splits: whose photos are embedded.
        source: a fieldmark model file, or what :func:`fieldmark.models.load_pretrained` takes.
        model: backbone and image size.
        hardware: device and precision.
        target: where the ``features`` table goes; embeddings are unit vectors, averaged over a photo and its mirror
            image.
        boxes: the shard's ``boxes`` table, for models of two streams.
    """
    photos = read_table("shard", shard).filter(pl.col("split").is_in(splits))
    if Path(source).suffix == ".safetensors" and source != model.weights:
        classifier = load_classifier(source)
    else:
        architecture = Architecture(model.backbone, 0, 1, 0, False, model.image_size)
        classifier = build_classifier(architecture, source, seed=0, backbone_alone=True)
    context = ContextTables(photos, boxes).of(photos["image_id"].to_list(), classifier.architecture)
    embeddings, _ = infer(classifier, photos["path"].to_list(), ViewPlan(flip=True), hardware, context=context)
    column = pl.Series("embedding", embeddings, dtype=pl.Array(pl.Float32, embeddings.shape[1]))
    write_table(pl.DataFrame([photos["image_id"], column]), "features", target)


if "snakemake" in globals():
    extract_features(
        shard=Path(snakemake.input.shard),
        splits=snakemake.params.splits,
        source=snakemake.input.get("weights") or snakemake.params.model["weights"],
        model=ModelSettings.of(snakemake.params.model),
        hardware=Hardware.of_job(snakemake),
        target=Path(snakemake.output[0]),
        boxes=list(snakemake.input.get("boxes", [])),
    )

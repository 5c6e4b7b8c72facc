"""Divide the manifest into shards, which are embedded and predicted independently of each other."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Sequence

import polars as pl

from fieldmark.artifacts import SCHEMAS, write_table
from fieldmark.manifest import read_manifest, shard_of


def shard_manifest(manifest: str, shards: Sequence[str]) -> None:
    """Write one "shard" table for each target.

    A photo's shard depends on its id alone, so a photo more or less changes the bytes of one shard only.

    Args:
        manifest: the "manifest" table.
        shards: the targets, shard 0 first.
    """
    photos = read_manifest(manifest)
    number = pl.Series([shard_of(image_id, len(shards)) for image_id in photos["image_id"]], dtype=pl.Int64)
    columns = photos.select(SCHEMAS["shard"].names)
    for shard, target in enumerate(shards):
        write_table(columns.filter(number == shard), "shard", target)


if "snakemake" in globals():
    shard_manifest(manifest=snakemake.input[0], shards=list(snakemake.output))

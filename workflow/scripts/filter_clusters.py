"""Measure every cluster, keep those that pass the rules, and note why the others are dropped."""

from fieldmark.stage import log, start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Sequence

import polars as pl

from fieldmark.artifacts import read_table, write_table
from fieldmark.cluster_filter import FilterRules, describe_clusters, judge_clusters
from fieldmark.clustering import (
    class_ids_of,
    combine,
    paths_by_model,
    photos_of,
    project,
    read_embeddings,
    rows_of,
)
from fieldmark.taxa import known_taxa


def filter_clusters(
    manifest: str,
    features: Sequence[str],
    clusters: str,
    target: str,
    coarse_taxa: Sequence[str],
    pca_dim: int,
    neighbours: int,
    rules: FilterRules,
) -> None:
    """Write the ``kept_clusters`` table: one row per cluster.

    Args:
        manifest: the photos.
        features: ``features`` shards, …/{model}/features/{shard}.parquet, of one or several models.
        clusters: the ``clusters`` table of the labeled and unlabeled photos.
        target: where the table goes.
        coarse_taxa: taxon columns known for unlabeled photos; the finest of them gives the purity.
        pca_dim: components kept of each model's features.
        neighbours: nearest neighbours of each photo that enter the agreement.
        rules: what a cluster must satisfy.
    """
    photos = photos_of(read_table("manifest", manifest))
    members = rows_of(read_table("clusters", clusters), photos["image_id"], clusters)
    matrices = read_embeddings("features", paths_by_model(features, "features"), photos["image_id"])
    points = combine([project(matrix, pca_dim, whiten=False) for matrix in matrices])
    taxa = known_taxa(photos, coarse_taxa)
    taxon = photos[taxa[-1]] if taxa else pl.Series([None] * photos.height, dtype=pl.String)
    measures = describe_clusters(
        points,
        members["cluster"].to_numpy().astype("int64"),
        members["distance"].to_numpy(),
        class_ids_of(photos),
        taxon,
        neighbours,
    )
    judged = judge_clusters(measures, rules)
    kept = judged.filter("kept")
    log.info(
        "kept %d of %d clusters with %d of %d photos; %d of the kept ones look foreign",
        kept.height,
        judged.height,
        kept["size"].sum(),
        photos.height,
        kept["foreign"].sum(),
    )
    write_table(judged, "kept_clusters", target)


if "snakemake" in globals():
    filter_clusters(
        manifest=snakemake.input.manifest,
        features=list(snakemake.input.features),
        clusters=snakemake.input.clusters,
        target=snakemake.output[0],
        rules=FilterRules(**snakemake.params.rules),
        **snakemake.params.settings,
    )

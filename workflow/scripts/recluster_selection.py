"""Cluster the labeled and the selected unlabeled photos of each class once more, finer, by the guide's embeddings."""

from fieldmark.stage import log, start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Sequence

import numpy as np
import polars as pl

from fieldmark.artifacts import read_table, write_table
from fieldmark.clustering import (
    NO_CLASS,
    cluster_groups,
    combine,
    paths_by_model,
    photos_of,
    project,
    read_embeddings,
    subclusters_per_class,
)


def recluster_selection(
    manifest: str,
    scores: Sequence[str],
    pseudo_labels: str,
    target: str,
    pca_dim: int,
    photos_per_subcluster: float,
    max_subclusters: int,
    iterations: int,
    seed: int,
) -> None:
    """Write the ``subclusters`` table: one row per labeled photo and selected unlabeled photo.

    Args:
        manifest: the photos.
        scores: ``guide_scores`` shards, …/{model}/guide/scores/{shard}.parquet, of one or several models.
        pseudo_labels: class of each selected unlabeled photo.
        target: where the table goes.
        pca_dim: whitened components kept of each model's embeddings.
        photos_per_subcluster: photos of a class that make a subcluster.
        max_subclusters: most subclusters of a class.
        iterations: rounds of k-means.
        seed: of all draws.
    """
    photos = photos_of(read_table("manifest", manifest))
    labeled = photos.filter(pl.col("split") == "labeled").select("image_id", "class_id")
    chosen = read_table("pseudo_labels", pseudo_labels).filter("selected").select("image_id", "class_id")
    members = pl.concat([labeled, chosen]).sort("image_id")
    matrices = read_embeddings("guide_scores", paths_by_model(scores, "guide/scores"), members["image_id"])
    points = combine([project(matrix, pca_dim, whiten=True) for matrix in matrices])
    _, groups = np.unique(members["class_id"].to_numpy(), return_inverse=True)
    counts = subclusters_per_class(np.bincount(groups), photos_per_subcluster, max_subclusters)
    # Inside one class all photos are equal: labels seed nothing here.
    unseeded = np.full(members.height, NO_CLASS, dtype=np.int64)
    found = cluster_groups(points, groups.astype(np.int64), counts, unseeded, iterations, seed)
    log.info(
        "%d labeled and %d selected photos of %d classes in %d subclusters",
        labeled.height,
        chosen.height,
        len(counts),
        found.cluster.max() + 1,
    )
    write_table(members.with_columns(subcluster=pl.Series(found.cluster)), "subclusters", target)


if "snakemake" in globals():
    recluster_selection(
        manifest=snakemake.input.manifest,
        scores=list(snakemake.input.scores),
        pseudo_labels=snakemake.input.pseudo_labels,
        target=snakemake.output[0],
        **snakemake.params.settings,
    )

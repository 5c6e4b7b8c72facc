"""Split the labeled and unlabeled photos into clusters by their features, within coarse taxa where these are known."""

from fieldmark.stage import log, start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Sequence

import numpy as np
import polars as pl

from fieldmark.artifacts import read_table, write_table
from fieldmark.clustering import (
    NO_CLASS,
    allot_clusters,
    class_ids_of,
    cluster_groups,
    combine,
    learned_photos,
    paths_by_model,
    project,
    read_embeddings,
)
from fieldmark.taxa import known_taxa, taxon_groups


def cluster_photos(
    manifest: str,
    classes: str,
    features: Sequence[str],
    target: str,
    coarse_taxa: Sequence[str],
    pca_dim: int,
    clusters_per_class: float,
    min_photos_per_cluster: int,
    labeled_seeds: bool,
    iterations: int,
    seed: int,
) -> None:
    """Write the ``clusters`` table: one row per labeled or unlabeled photo.

    Args:
        manifest: the photos.
        classes: the labeled classes; their number sets the number of clusters.
        features: ``features`` shards, …/{model}/features/{shard}.parquet, of one or several models.
        target: where the table goes.
        coarse_taxa: taxon columns within which photos are clustered, where unlabeled photos carry them.
        pca_dim: whitened components kept of each model's features.
        clusters_per_class: clusters wanted, as a multiple of the number of labeled classes.
        min_photos_per_cluster: there are at most as many clusters as leave this many photos to each on average.
        labeled_seeds: whether the means of the labeled classes are the first centroids, or all are drawn.
        iterations: rounds of k-means.
        seed: of all draws.
    """
    photos = learned_photos(manifest)
    matrices = read_embeddings("features", paths_by_model(features, "features"), photos["image_id"])
    points = combine([project(matrix, pca_dim, whiten=True) for matrix in matrices])
    taxa = known_taxa(photos, coarse_taxa)
    groups = taxon_groups(photos, taxa)
    sizes = np.bincount(groups).tolist()
    wanted = max(1, round(clusters_per_class * read_table("classes", classes).height))
    counts = allot_clusters(sizes, wanted, min_photos_per_cluster)
    log.info(
        "%d photos, %d features: %d clusters wanted, %d possible, in %d groups by %s",
        *points.shape,
        wanted,
        sum(counts),
        len(counts),
        " and ".join(taxa) or "nothing",
    )
    seeds = class_ids_of(photos) if labeled_seeds else np.full(photos.height, NO_CLASS)
    found = cluster_groups(points, groups, counts, seeds, iterations, seed)
    log.info("%d clusters; median size %d", found.cluster.max() + 1, np.median(np.bincount(found.cluster)))
    table = pl.DataFrame(
        {
            "image_id": photos["image_id"],
            "cluster": found.cluster,
            "distance": found.distance,
            "runner_up_distance": found.runner_up_distance,
        }
    )
    write_table(table, "clusters", target)


if "snakemake" in globals():
    cluster_photos(
        manifest=snakemake.input.manifest,
        classes=snakemake.input.classes,
        features=list(snakemake.input.features),
        target=snakemake.output[0],
        **snakemake.params.settings,
    )

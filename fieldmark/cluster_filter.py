"""Which clusters are worth learning from: their measures, the rules that drop them, and which look foreign.

All measures but the spread are taken on centred features that are not whitened: a second view of the evidence, not
the space in which the clusters were made.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from fieldmark.clustering import NO_CLASS, Floats, Integers, class_means, unit_rows
from fieldmark.neighbours import nearest_neighbours


class ClusterFilterError(ValueError):
    """No cluster passes the rules, or there is no labeled photo to compare clusters with."""


@dataclass(frozen=True)
class FilterRules:
    """What a cluster must satisfy to be kept; the names are the keys of the config's section ``filter``."""

    min_size: int  # photos
    max_size_ratio: float  # times the mean size; a share of all photos would drop ordinary clusters where few are made
    spread_quantile: float  # of the spread of the clusters whose size is right
    min_neighbour_agreement: float  # between 0 and 1
    min_coarse_purity: float  # between 0 and 1
    foreign_quantile: float  # of the similarity to the nearest class, among kept clusters


def neighbour_agreement(found: Integers, cluster: Integers) -> Floats:
    """Mean over each cluster's members of the share of their nearest neighbours that lie in the same cluster.

    A cluster with fewer other members than neighbours can hold no more of them than these: the share is of that
    number, so that small clusters are not judged by their size again. A cluster of one photo gets 0.

    Args:
        found: (n, k) nearest neighbours of each photo.
        cluster: (n,) cluster ids from 0.

    Returns:
        (clusters,) values between 0 and 1.
    """
    inside = ((cluster[np.maximum(found, 0)] == cluster[:, None]) & (found >= 0)).sum(axis=1)
    size = np.bincount(cluster)
    possible = np.minimum(found.shape[1], size - 1)
    total = np.bincount(cluster, weights=inside)
    return (total / np.maximum(possible * size, 1)).astype(np.float32)


def coarse_purity(cluster: pl.Series, taxon: pl.Series) -> list[float | None]:
    """Share of the commonest taxon among each cluster's photos of known taxon; None where none is known."""
    frame = pl.DataFrame({"cluster": cluster, "taxon": taxon})
    counts = frame.drop_nulls("taxon").group_by("cluster", "taxon").len()
    purity = counts.group_by("cluster").agg(pl.col("len").max() / pl.col("len").sum())
    every = frame.select("cluster").unique().sort("cluster")
    return every.join(purity, on="cluster", how="left", maintain_order="left")["len"].to_list()


def describe_clusters(
    points: Floats, cluster: Integers, distance: Floats, class_ids: Integers, taxon: pl.Series, neighbours: int
) -> pl.DataFrame:
    """Measure every cluster.

    Args:
        points: (n, d) unit rows of centred features; the labeled ones' class means are the prototypes of SimpleShot
            (Wang et al., 2019).
        cluster: (n,) ids 0 to K - 1, none of them empty.
        distance: (n,) of each photo to its centroid.
        class_ids: (n,) class of each labeled photo, :data:`fieldmark.clustering.NO_CLASS` for the others.
        taxon: (n,) finest coarse taxon, null where unknown.
        neighbours: nearest neighbours looked at for each photo.

    Returns:
        One row per cluster with the columns of ``kept_clusters`` but for kept, foreign and reason.

    Raises:
        ClusterFilterError: if no photo is labeled.
    """
    prototypes, classes = class_means(points, class_ids)
    if not len(classes):
        raise ClusterFilterError("the manifest has no labeled photo; expected some of every class to tell")
    size = np.bincount(cluster)
    order = np.argsort(cluster, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    similarity = unit_rows(np.add.reduceat(points[order], starts, axis=0)) @ prototypes.T  # (clusters, classes)
    return pl.DataFrame(
        {
            "cluster": np.arange(len(size)),
            "size": size,
            "spread": np.bincount(cluster, weights=distance) / size,
            "neighbour_agreement": neighbour_agreement(nearest_neighbours(points, neighbours), cluster),
            "coarse_purity": pl.Series(coarse_purity(pl.Series(cluster), taxon), dtype=pl.Float64),
            "labeled_share": np.bincount(cluster, weights=class_ids != NO_CLASS) / size,
            "nearest_class": classes[similarity.argmax(axis=1)],
            "nearest_class_similarity": similarity.max(axis=1),
        }
    )


def judge_clusters(measures: pl.DataFrame, rules: FilterRules) -> pl.DataFrame:
    """Add kept, foreign and reason: the first rule that a cluster fails, in words, or nothing if it is kept.

    A cluster looks foreign when it holds no labeled photo and its similarity to the nearest class is under the
    ``foreign_quantile`` of the kept clusters. That is independent of being kept.

    Raises:
        ClusterFilterError: if no cluster is kept; the message counts what each rule dropped.
    """
    largest = rules.max_size_ratio * float(measures["size"].sum()) / measures.height
    right_size = measures.filter(pl.col("size").is_between(rules.min_size, largest))
    # With no cluster of the right size the limit is never looked at.
    spread = right_size["spread"].quantile(rules.spread_quantile, "linear") or 0.0
    reasons = [_reason(row, rules, largest, spread) for row in measures.iter_rows(named=True)]
    judged = measures.with_columns(pl.Series("reason", reasons, dtype=pl.String)).with_columns(
        (pl.col("reason") == "").alias("kept")
    )
    kept = judged.filter("kept")
    if kept.is_empty():
        raise ClusterFilterError(_nothing_kept(reasons))
    threshold = kept["nearest_class_similarity"].quantile(rules.foreign_quantile, "linear")
    foreign = (pl.col("labeled_share") == 0) & (pl.col("nearest_class_similarity") < threshold)
    return judged.with_columns(foreign.alias("foreign"))


def _reason(row: dict[str, float], rules: FilterRules, largest: float, spread: float) -> str:
    purity = row["coarse_purity"]
    if row["size"] < rules.min_size:
        return f"too few photos: {row['size']}, min_size is {rules.min_size}"
    if row["size"] > largest:
        return f"too many photos: {row['size']}, max_size_ratio allows {largest:.0f}"
    if row["spread"] > spread:
        return f"too spread: mean distance {row['spread']:.3f}, spread_quantile is {spread:.3f}"
    if row["neighbour_agreement"] < rules.min_neighbour_agreement:
        return (
            f"neighbours elsewhere: agreement {row['neighbour_agreement']:.3f}, "
            f"min_neighbour_agreement is {rules.min_neighbour_agreement:g}"
        )
    if purity is not None and purity < rules.min_coarse_purity:
        return f"mixed coarse taxa: purity {purity:.3f}, min_coarse_purity is {rules.min_coarse_purity:g}"
    return ""


def _nothing_kept(reasons: list[str]) -> str:
    rules = [reason.partition(":")[0] for reason in reasons]
    counts = ", ".join(f"{rules.count(rule)} {rule}" for rule in dict.fromkeys(sorted(rules)))
    return (
        f"all {len(reasons)} clusters were dropped ({counts}); loosen filter.min_size, filter.max_size_ratio, "
        "filter.spread_quantile, filter.min_neighbour_agreement or filter.min_coarse_purity, "
        "or make fewer clusters with cluster.clusters_per_class"
    )

"""Measures of clusters against naive recomputation, and every rule with its reason."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldmark.artifacts import read_table
from fieldmark.cluster_filter import (
    ClusterFilterError,
    FilterRules,
    coarse_purity,
    describe_clusters,
    judge_clusters,
    neighbour_agreement,
)
from fieldmark.clustering import NO_CLASS, project, unit_rows
from tests.test_clustering import draw_photos, run
from tests.test_neighbours import naive_neighbours
from workflow.scripts.filter_clusters import filter_clusters

LOOSE = FilterRules(
    min_size=1,
    max_size_ratio=4.0,
    spread_quantile=1.0,
    min_neighbour_agreement=0.0,
    min_coarse_purity=0.0,
    foreign_quantile=0.5,
)


def measures(**changes: list[float | None]) -> pl.DataFrame:
    columns: dict[str, list[float | None]] = {
        "cluster": [0, 1, 2, 3],
        "size": [10, 20, 30, 40],
        "spread": [0.1, 0.2, 0.3, 0.4],
        "neighbour_agreement": [0.9, 0.8, 0.7, 0.6],
        "coarse_purity": [1.0, 0.9, None, 0.7],
        "labeled_share": [0.0, 0.1, 0.0, 0.0],
        "nearest_class": [0, 1, 2, 3],
        "nearest_class_similarity": [0.1, 0.2, 0.3, 0.4],
    }
    return pl.DataFrame(columns | changes)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return unit_rows(np.random.default_rng(1).normal(size=(120, 5)))


def test_agreement_equals_the_naive_one(points: np.ndarray) -> None:
    cluster = np.concatenate([[3], np.random.default_rng(3).integers(3, size=119)])
    found = naive_neighbours(points, 50)
    agreement = neighbour_agreement(found, cluster)
    for label in range(4):
        members = np.flatnonzero(cluster == label)
        possible = min(50, len(members) - 1)
        inside = [sum(cluster[other] == label for other in found[member]) for member in members]
        assert agreement[label] == pytest.approx(np.mean(inside) / possible if possible else 0, abs=1e-6)
    assert agreement[3] == 0  # a single photo


def test_neighbours_that_were_not_found_never_agree() -> None:
    assert neighbour_agreement(np.array([[1, -1], [0, -1], [-1, -1]]), np.array([0, 0, 0])).tolist() == [
        pytest.approx(2 / 6)
    ]


def test_purity_is_of_photos_with_a_known_taxon() -> None:
    taxon = pl.Series(["a", "a", "b", None, None, None, "b"])
    assert coarse_purity(pl.Series([0, 0, 0, 0, 1, 1, 2]), taxon) == [pytest.approx(2 / 3), None, 1.0]


def test_description_equals_the_naive_one(points: np.ndarray) -> None:
    rng = np.random.default_rng(4)
    cluster = np.concatenate([np.arange(5), rng.integers(5, size=115)])
    distance = rng.random(120).astype(np.float32)
    labels = np.where(rng.random(120) < 0.3, rng.integers(4, 7, size=120), NO_CLASS)
    taxon = pl.Series([None] * 120, dtype=pl.String)
    table = describe_clusters(points, cluster, distance, labels, taxon, 6)
    assert table["coarse_purity"].null_count() == 5
    for row in table.iter_rows(named=True):
        members = cluster == row["cluster"]
        centroid = points[members].mean(axis=0)
        cosines = {}
        for label in (4, 5, 6):
            prototype = points[labels == label].mean(axis=0)
            cosines[label] = centroid @ prototype / np.linalg.norm(centroid) / np.linalg.norm(prototype)
        assert row["size"] == members.sum()
        assert row["spread"] == pytest.approx(distance[members].mean(), abs=1e-6)
        assert row["labeled_share"] == pytest.approx((labels[members] != NO_CLASS).mean())
        assert row["nearest_class"] == max(cosines, key=cosines.__getitem__)
        assert row["nearest_class_similarity"] == pytest.approx(max(cosines.values()), abs=1e-5)
    with pytest.raises(ClusterFilterError, match="no labeled photo"):
        describe_clusters(points, cluster, distance, np.full(120, NO_CLASS), taxon, 6)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, ["", "", "", ""]),
        ({"min_size": 20}, ["too few photos: 10, min_size is 20", "", "", ""]),
        ({"max_size_ratio": 1.2}, ["", "", "", "too many photos: 40, max_size_ratio allows 30"]),
        ({"spread_quantile": 0.5}, ["", "", *(f"too spread: mean distance {s}, " for s in ("0.300", "0.400"))]),
        ({"min_neighbour_agreement": 0.65}, ["", "", "", "neighbours elsewhere: agreement 0.600, "]),
        ({"min_coarse_purity": 0.8}, ["", "", "", "mixed coarse taxa: purity 0.700, min_coarse_purity is 0.8"]),
        # The first failing rule gives the reason.
        ({"max_size_ratio": 1.2, "min_coarse_purity": 0.95}, ["", "mixed", "", "too many"]),
        # Clusters of the wrong size do not move the limit of the spread: it is 0.25 here, between 0.2 and 0.3.
        ({"min_size": 20, "max_size_ratio": 1.2, "spread_quantile": 0.5}, ["too few", "", "too spread", "too many"]),
    ],
)
def test_rules_and_reasons(change: dict[str, float], reasons: list[str]) -> None:
    judged = judge_clusters(measures(), replace(LOOSE, **change))  # type: ignore[arg-type]
    for found, expected in zip(judged["reason"], reasons, strict=True):
        assert found.startswith(expected)
        assert bool(found) == bool(expected)
    assert judged["kept"].to_list() == [not reason for reason in reasons]


def test_foreign_clusters_are_dissimilar_and_hold_no_labeled_photo() -> None:
    # Threshold: the median of the similarities, 0.25; cluster 1 is under it too but holds labeled photos.
    assert judge_clusters(measures(), LOOSE)["foreign"].to_list() == [True, False, False, False]
    everything = judge_clusters(measures(), replace(LOOSE, foreign_quantile=1.0))
    assert everything["foreign"].to_list() == [True, False, True, False]
    assert not judge_clusters(measures(), replace(LOOSE, foreign_quantile=0.0))["foreign"].any()


def test_dropping_everything_names_the_keys() -> None:
    with pytest.raises(ClusterFilterError, match=r"all 4 clusters .*4 too few photos.*filter\.min_size.*filter\.min_c"):
        judge_clusters(measures(), replace(LOOSE, min_size=1000))


def test_stage_tells_foreign_blobs(tmp_path: Path) -> None:
    photos = draw_photos(classes=6, foreign=6, noise=0.1)
    clusters = run(photos, tmp_path, clusters_per_class=2, min_photos_per_cluster=5)
    target = tmp_path / "kept_clusters.parquet"
    features = [str(path) for path in (tmp_path / "round0").rglob("*.parquet")]
    arguments = (str(tmp_path / "manifest.parquet"), features, str(tmp_path / "clusters.parquet"), str(target))
    filter_clusters(*arguments, ["family"], 12, 5, replace(LOOSE, min_size=5, foreign_quantile=0.6))
    kept = read_table("kept_clusters", target)
    first = target.read_bytes()
    filter_clusters(*arguments, ["family"], 12, 5, replace(LOOSE, min_size=5, foreign_quantile=0.6))
    assert target.read_bytes() == first

    truth = photos.truth[np.argsort(photos.image_id)]
    points = project(photos.points[np.argsort(photos.image_id)].astype(np.float16), 12, whiten=False)
    cluster = clusters["cluster"].to_numpy()
    agreement = neighbour_agreement(naive_neighbours(points, 5), cluster)
    np.testing.assert_allclose(kept["neighbour_agreement"], agreement, atol=1e-6)
    assert kept["size"].to_list() == np.bincount(cluster).tolist()
    assert (kept["coarse_purity"] == 1).all()
    flagged = np.isin(cluster, kept.filter("foreign")["cluster"].to_numpy())
    assert flagged.sum() >= 60
    assert (truth[flagged] >= 6).all()

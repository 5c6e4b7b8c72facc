"""Clustering on Gaussian blobs, against naive recomputation; and the photo sets that the other tests share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from fieldmark.artifacts import SCHEMAS, TAXA, read_table, write_table
from fieldmark.clustering import (
    NO_CLASS,
    ClusteringError,
    allot_clusters,
    class_means,
    cluster_groups,
    combine,
    draw_centroids,
    embeddings_of,
    number_by_first,
    paths_by_model,
    photos_of,
    project,
    rows_of,
    spherical_kmeans,
    subclusters_per_class,
    unit_rows,
)
from workflow.scripts.cluster_photos import cluster_photos


@dataclass
class Photos:
    """A made-up photo set: one Gaussian blob of features per true class, the first of which are the labeled ones."""

    image_id: list[str]
    truth: np.ndarray  # (n,) true class, labeled or foreign
    split: list[str]
    family: list[str | None]
    points: np.ndarray  # (n, d)
    classes: int  # labeled classes

    @property
    def class_id(self) -> list[int | None]:
        return [int(t) if s == "labeled" else None for t, s in zip(self.truth, self.split, strict=True)]

    def write_tables(self, folder: Path) -> tuple[str, str]:
        """Write manifest and class table; families of classes are those of their photos."""
        count = len(self.image_id)
        columns: dict[str, object] = {name: [None] * count for name in SCHEMAS["manifest"].names}
        columns |= {
            "image_id": self.image_id,
            "path": self.image_id,
            "split": self.split,
            "class_id": self.class_id,
            "family": self.family,
            "width": [1] * count,
            "height": [1] * count,
            "sha256": self.image_id,
            "phash": [0] * count,
        }
        manifest, classes = folder / "manifest.parquet", folder / "classes.parquet"
        write_table(typed("manifest", columns), "manifest", manifest)
        of_class = [self.family[int(np.flatnonzero(self.truth == c)[0])] for c in range(self.classes)]
        none = [None] * self.classes
        columns = {
            "class_id": range(self.classes),
            "name": [f"class {c}" for c in range(self.classes)],
            "title": none,
            **{taxon: none for taxon in TAXA},
            "family": of_class,
            "labeled_count": [self.class_id.count(c) for c in range(self.classes)],
        }
        write_table(typed("classes", columns), "classes", classes)
        return str(manifest), str(classes)

    def write_features(self, folder: Path, model: str, shards: int) -> list[str]:
        """Write the features in shards, dealt out one by one."""
        paths = []
        for shard in range(shards):
            rows = np.arange(shard, len(self.image_id), shards)
            table = pa.table(
                {
                    "image_id": [self.image_id[row] for row in rows],
                    "embedding": fixed_lists(self.points[rows].astype(np.float16)),
                }
            )
            paths.append(str(folder / "round0" / model / "features" / f"{shard}.parquet"))
            write_table(table, "features", paths[-1])
        return paths


def typed(kind: str, columns: dict[str, object]) -> pa.Table:
    return pa.table({name: pa.array(columns[name], SCHEMAS[kind].field(name).type) for name in SCHEMAS[kind].names})


def fixed_lists(matrix: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).ravel()), matrix.shape[1])


def draw_photos(
    classes: int = 4, foreign: int = 4, labeled: int = 4, unlabeled: int = 20, noise: float = 0.25, seed: int = 0
) -> Photos:
    """Draw blobs in 12 dimensions; even classes are of family "a", odd ones of "b"; ids tell nothing of the class."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes + foreign, 12))
    truth = np.repeat(np.arange(classes + foreign), [labeled + unlabeled] * classes + [unlabeled] * foreign)
    split = (["labeled"] * labeled + ["unlabeled"] * unlabeled) * classes + ["unlabeled"] * (unlabeled * foreign)
    points = centres[truth] + noise * rng.normal(size=(len(truth), 12))
    names = [f"{number:05d}" for number in rng.permutation(len(truth))]
    return Photos(names, truth, split, ["ab"[t % 2] for t in truth], points, classes)


def agreement_of_partitions(cluster: np.ndarray, truth: np.ndarray) -> float:
    """Share of photos whose cluster's commonest true class is theirs."""
    return sum(np.bincount(truth[cluster == c]).max() for c in np.unique(cluster)) / len(truth)


@pytest.fixture(scope="module")
def unit_points() -> np.ndarray:
    return unit_rows(np.random.default_rng(1).normal(size=(300, 6)))


def test_paths_are_grouped_by_model() -> None:
    paths = ["results/round1/b/features/1.parquet", "results/round1/a/features/0.parquet"]
    paths += ["results/round1/b/features/0.parquet"]
    grouped = paths_by_model(paths, "features")
    assert list(grouped) == ["round1/a", "round1/b"]
    assert [path.name for path in grouped["round1/b"]] == ["0.parquet", "1.parquet"]
    scores = [f"results/round{r}/a/guide/scores/0.parquet" for r in range(2)]
    assert list(paths_by_model(scores, "guide/scores")) == ["round0/a", "round1/a"]
    with pytest.raises(ClusteringError, match="guide/scores"):
        paths_by_model(paths, "guide/scores")
    with pytest.raises(ClusteringError, match="ROUND/MODEL/features"):
        paths_by_model(["features/0.parquet"], "features")


def test_photos_of_hides_classes_of_unlabeled_photos() -> None:
    manifest = pl.DataFrame(
        {"image_id": ["d", "c", "b", "a"], "split": ["labeled", "unlabeled", "val", "test"], "class_id": [3, 2, 1, 0]}
    )
    assert photos_of(manifest).rows() == [("c", "unlabeled", None), ("d", "labeled", 3)]


def test_rows_of_keeps_the_wanted_order_and_names_what_is_missing() -> None:
    frame = pl.DataFrame({"image_id": ["a", "b", "c"], "value": [1, 2, 3]})
    assert rows_of(frame, pl.Series(["c", "a"]), "here")["value"].to_list() == [3, 1]
    with pytest.raises(ClusteringError, match=r"here: 1 of 2 photos .* 'z'"):
        rows_of(frame, pl.Series(["c", "z"]), "here")


def test_embeddings_that_are_not_finite_are_refused() -> None:
    matrix = np.zeros((2, 3), dtype=np.float16)
    matrix[1, 2] = np.inf
    with pytest.raises(ClusteringError, match="'b'"):
        embeddings_of(pl.DataFrame({"image_id": ["a", "b"], "embedding": matrix}), "features of m")


def test_projection_whitens_or_keeps_the_cosines() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(400, 5)) * [9, 5, 3, 1, 0.5] + 7
    whitened = project(features, 64, whiten=True)
    assert whitened.shape == (400, 5)
    np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), 1, atol=1e-5)
    centred = features - features.mean(axis=0)
    precision = np.linalg.inv(np.cov(features.T))
    mahalanobis = centred @ precision @ centred.T
    norm = np.sqrt(np.diag(mahalanobis))
    np.testing.assert_allclose(whitened @ whitened.T, mahalanobis / norm[:, None] / norm, atol=1e-3)

    plain = project(features, 64, whiten=False)
    np.testing.assert_allclose(plain @ plain.T, unit_rows(centred) @ unit_rows(centred).T, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "rank", "whiten", "kept"),
    [(100, 20, False, 15), (3, 20, False, 2), (100, 6, True, 6), (120, 20, True, 12), (30, 20, True, 8)],
)
def test_projection_is_limited_by_the_photos_and_the_rank(count: int, rank: int, whiten: bool, kept: int) -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, 20))
    assert project(features, 15, whiten).shape == (count, kept)


@pytest.mark.parametrize("count", [1, 8])
def test_equal_embeddings_are_refused(count: int) -> None:
    with pytest.raises(ClusteringError, match="the same"):
        project(np.full((count, 4), 0.1, dtype=np.float16), 4, whiten=True)


def test_models_have_equal_weight(unit_points: np.ndarray) -> None:
    other = unit_rows(unit_points[:, :2])
    joined = combine([unit_points, other])
    np.testing.assert_allclose(joined @ joined.T, (unit_points @ unit_points.T + other @ other.T) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "clusters", "min_photos", "expected"),
    [
        ([600, 300, 100], 10, 5, [6, 3, 1]),
        ([1000, 1, 1], 5, 5, [3, 1, 1]),
        ([10, 10], 100, 5, [2, 2]),  # more clusters wanted than photos allow
        ([50, 50, 50], 1, 5, [1, 1, 1]),  # at least one each
        ([2, 100], 11, 10, [1, 10]),
    ],
)
def test_clusters_are_split_in_proportion(
    sizes: list[int], clusters: int, min_photos: int, expected: list[int]
) -> None:
    assert allot_clusters(sizes, clusters, min_photos) == expected


def test_subclusters_per_class_round_and_clip() -> None:
    assert subclusters_per_class(np.array([1, 14, 15, 25, 500]), 10, 8) == [1, 1, 2, 3, 8]


def test_class_means_largest_class_first(unit_points: np.ndarray) -> None:
    labels = np.array([5] * 2 + [3] * 4 + [9] * 4 + [NO_CLASS] * 290)
    means, classes = class_means(unit_points, labels)
    assert classes.tolist() == [3, 9, 5]
    expected = unit_points[:2].mean(axis=0)
    np.testing.assert_allclose(means[2], expected / np.linalg.norm(expected), atol=1e-6)


def test_drawn_centroids_keep_the_seeds_and_reach_far_blobs() -> None:
    axes = np.eye(6, dtype=np.float32)
    blobs = unit_rows(np.repeat(axes, 50, axis=0) + 0.01 * np.random.default_rng(4).normal(size=(300, 6)))
    drawn = draw_centroids(blobs, axes[:2], 6, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn[:2], axes[:2])
    assert sorted(drawn.argmax(axis=1)) == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(draw_centroids(blobs, axes, 2, np.random.default_rng(0)), axes[:2])
    # Equal photos are drawn once: there are only six different ones.
    assert len(draw_centroids(np.repeat(axes, 9, axis=0), axes[:1], 20, np.random.default_rng(0))) == 6


def test_kmeans_assigns_to_the_nearest_centroid(unit_points: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    centroids, found = spherical_kmeans(unit_points, unit_points[:20], 10, seed=0)
    cosine = unit_points @ centroids.T
    best_two = np.sort(cosine, axis=1)[:, ::-1][:, :2]
    np.testing.assert_array_equal(found.cluster, cosine.argmax(axis=1))
    np.testing.assert_allclose(found.distance, 1 - best_two[:, 0], atol=1e-5)
    np.testing.assert_allclose(found.runner_up_distance, 1 - best_two[:, 1], atol=1e-5)
    assert "WARNING" not in "".join(capfd.readouterr())


def test_empty_clusters_are_dropped_and_one_cluster_has_no_runner_up() -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    initial = np.repeat(np.eye(3, dtype=np.float32), 3, axis=0)  # three times too many
    centroids, found = spherical_kmeans(points, initial, 5, seed=0)
    assert len(centroids) == len(np.unique(found.cluster)) == 3
    np.testing.assert_allclose(found.distance, 0, atol=1e-6)
    _, single = spherical_kmeans(points, points[:1], 5, seed=0)
    assert set(single.cluster) == {0}
    assert set(single.runner_up_distance) == {2.0}


def test_seeds_lead_the_clusters_of_their_class() -> None:
    photos = draw_photos(classes=6, foreign=0, noise=0.1)
    points = project(photos.points, 12, whiten=False)
    labels = np.array([NO_CLASS if c is None else c for c in photos.class_id])
    found = cluster_groups(points, np.zeros(len(points), dtype=np.int64), [6], labels, 1, seed=0)
    assert agreement_of_partitions(found.cluster, photos.truth) == 1
    assert found.cluster.max() + 1 == 6


def test_number_by_first() -> None:
    assert number_by_first(np.array([7, 2, 7, 0, 2])).tolist() == [0, 1, 0, 2, 1]


def run(photos: Photos, folder: Path, shards: int = 2, **changes: object) -> pl.DataFrame:
    manifest, classes = photos.write_tables(folder)
    features = photos.write_features(folder, "lite0", shards)
    settings: dict[str, object] = {
        "coarse_taxa": ["family"],
        "pca_dim": 12,
        "clusters_per_class": 3,
        "min_photos_per_cluster": 5,
        "labeled_seeds": True,
        "iterations": 10,
        "seed": 1,
    }
    target = folder / "clusters.parquet"
    cluster_photos(manifest, classes, features, str(target), **(settings | changes))  # type: ignore[arg-type]
    return read_table("clusters", target)


def in_order(photos: Photos) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(photos.image_id)
    return photos.truth[order], np.array(photos.family, dtype=object)[order]


def test_stage_finds_the_blobs_within_their_families(tmp_path: Path) -> None:
    photos = draw_photos()
    table = run(photos, tmp_path)
    truth, family = in_order(photos)
    cluster = table["cluster"].to_numpy()
    assert table["image_id"].to_list() == sorted(photos.image_id)
    assert sorted(set(cluster)) == list(range(12))
    assert number_by_first(cluster).tolist() == cluster.tolist()
    assert agreement_of_partitions(cluster, truth) > 0.95
    assert all(len(set(family[cluster == c])) == 1 for c in range(12))
    assert (table["distance"] <= table["runner_up_distance"] + 1e-5).all()


def test_stage_parts_families_whose_photos_look_alike(tmp_path: Path) -> None:
    photos = draw_photos()
    photos.family = [str(number % 3) if number % 4 else None for number in range(len(photos.family))]
    table = run(photos, tmp_path)
    _, family = in_order(photos)
    assert all(len(set(family[table["cluster"].to_numpy() == c])) == 1 for c in set(table["cluster"]))


def test_without_labeled_seeds_labels_do_not_matter(tmp_path: Path) -> None:
    photos = draw_photos()
    drawn = run(photos, tmp_path / "drawn", labeled_seeds=False)
    assert not drawn.equals(run(photos, tmp_path / "seeded"))
    labeled = np.array(photos.split) == "labeled"
    photos.truth[labeled] = photos.truth[labeled][::-1].copy()
    assert not np.array_equal(photos.truth, draw_photos().truth)
    assert drawn.equals(run(photos, tmp_path / "exchanged", labeled_seeds=False))


def test_rounds_without_unlabeled_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusteringError, match=r"unlabeled split has no photos.*; add some, or set track: supervised"):
        run(draw_photos(foreign=0, unlabeled=0), tmp_path)


def test_more_clusters_than_photos_and_repeated_photos(tmp_path: Path) -> None:
    photos = draw_photos(classes=2, foreign=1, labeled=2, unlabeled=3)
    everything = run(photos, tmp_path, clusters_per_class=100, min_photos_per_cluster=1, coarse_taxa=[])
    assert everything["cluster"].n_unique() > 10
    photos.points[:] = photos.points[np.arange(len(photos.points)) % 2]
    two = run(photos, tmp_path, clusters_per_class=100, min_photos_per_cluster=1, coarse_taxa=[])
    assert two["cluster"].n_unique() == 2


def test_stage_is_deterministic_and_blind_to_the_order_of_rows(tmp_path: Path) -> None:
    photos = draw_photos()
    first = run(photos, tmp_path / "first")
    again = (tmp_path / "first" / "clusters.parquet").read_bytes()
    run(photos, tmp_path / "first")
    assert (tmp_path / "first" / "clusters.parquet").read_bytes() == again

    order = np.random.default_rng(5).permutation(len(photos.image_id))
    shuffled = Photos(
        [photos.image_id[row] for row in order],
        photos.truth[order],
        [photos.split[row] for row in order],
        [photos.family[row] for row in order],
        photos.points[order],
        photos.classes,
    )
    assert run(shuffled, tmp_path / "second", shards=5).equals(first)
    assert not run(photos, tmp_path / "first", seed=2).equals(first)


def test_two_models_are_combined_and_a_missing_photo_is_named(tmp_path: Path) -> None:
    photos = draw_photos(noise=1.0)
    manifest, classes = photos.write_tables(tmp_path)
    features = photos.write_features(tmp_path, "lite0", 2)
    alone = run(photos, tmp_path)
    photos.points = photos.points + np.random.default_rng(6).normal(size=photos.points.shape)
    features += photos.write_features(tmp_path, "resnet", 3)
    target = tmp_path / "clusters.parquet"
    cluster_photos(manifest, classes, features, str(target), ["family"], 12, 3, 5, True, 10, 1)
    assert not read_table("clusters", target).equals(alone)
    with pytest.raises(ClusteringError, match="features of round0/resnet: "):
        cluster_photos(manifest, classes, features[:-1], str(target), ["family"], 12, 3, 5, True, 10, 1)

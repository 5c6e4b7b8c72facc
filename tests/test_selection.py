"""Pseudo-labels and subclusters on blobs, against naive recomputation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from fieldmark.artifacts import read_table, write_table
from fieldmark.clustering import ClusteringError, paths_by_model
from fieldmark.evidence import (
    Evidence,
    read_scores,
)
from fieldmark.selection import SelectionError, SelectionRules, class_quotas, loss_weights, select_photos
from tests.test_clustering import Photos, agreement_of_partitions, draw_photos, fixed_lists
from workflow.scripts.recluster_selection import recluster_selection
from workflow.scripts.select_pseudo_labels import select_pseudo_labels

RULES = SelectionRules(
    min_confidence=0.5, min_in_class_score=0.0, selected_share=None, max_per_class_ratio=100.0, uniform_weight=0.5
)


def guide_table(ids: list[str], points: np.ndarray, logits: np.ndarray, foreign: np.ndarray, k: int) -> pa.Table:
    """Softmax over the classes and one foreign class, cut to the k best classes."""
    power = np.exp(np.column_stack([logits, foreign]))
    probabilities = (power / power.sum(axis=1, keepdims=True)).astype(np.float32)
    best = np.argsort(-probabilities[:, :-1], axis=1)[:, :k]
    return pa.table(
        {
            "image_id": ids,
            "embedding": fixed_lists(points.astype(np.float16)),
            "class_ids": fixed_lists(best.astype(np.int32)),
            "probabilities": fixed_lists(np.take_along_axis(probabilities, best, axis=1)),
            "foreign_probability": probabilities[:, -1],
        }
    )


def write_scores(photos: Photos, folder: Path, model: str = "lite0", shards: int = 2, noise: float = 0.5) -> list[str]:
    """Scores of a guide that knows the class centres, and doubts where a photo is far from all of them."""
    rng = np.random.default_rng(9)
    centres = np.stack([photos.points[photos.truth == c].mean(axis=0) for c in range(photos.classes)])
    logits = -((photos.points[:, None] - centres) ** 2).sum(axis=2) + noise * rng.normal(
        size=(len(photos.points), photos.classes)
    )
    paths = []
    for shard in range(shards):
        rows = np.arange(shard, len(photos.image_id), shards)
        ids = [photos.image_id[row] for row in rows]
        table = guide_table(ids, photos.points[rows], logits[rows], np.full(len(rows), -6.0), k=3)
        paths.append(str(folder / "round0" / model / "guide" / "scores" / f"{shard}.parquet"))
        write_table(table, "guide_scores", paths[-1])
    return paths


def wanted(photos: Photos) -> tuple[pl.Series, np.ndarray]:
    """What to ask of their scores: the photos in order, and the classes."""
    return pl.Series(sorted(photos.image_id)), np.arange(photos.classes)


def run_selection(photos: Photos, folder: Path, rules: SelectionRules, shards: int = 2) -> pl.DataFrame:
    manifest, classes = photos.write_tables(folder)
    target = folder / "pseudo_labels.parquet"
    scores = write_scores(photos, folder, shards=shards)
    select_pseudo_labels(manifest, classes, scores, str(target), ["family"], 5, 0.5, 4, rules)
    return read_table("pseudo_labels", target)


def evidence(position: list[int], score: list[float], **changes: np.ndarray) -> Evidence:
    count = len(position)
    yes, one = np.ones(count, dtype=np.bool_), np.ones(count, dtype=np.float32)
    whole = Evidence(np.array(position), yes, one, one, yes, np.array(score, dtype=np.float32))
    return replace(whole, **changes)


def test_quotas() -> None:
    counts = np.array([6, 3, 1])
    assert class_quotas(counts, 100, 1.0, 0.0).tolist() == [60, 30, 10]
    assert class_quotas(counts, 100, 1.5, 1.0).tolist() == [50, 50, 50]
    assert class_quotas(counts, 30, 2.0, 0.5).tolist() == [28, 19, 13]
    assert class_quotas(counts, 1, 1.0, 0.0).tolist() == [1, 1, 1]


def test_a_share_takes_the_best_scored_within_quotas() -> None:
    position = [0] * 8 + [1] * 2
    score = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.55, 0.1]
    rules = replace(RULES, min_in_class_score=None, selected_share=0.6)
    chosen = select_photos(evidence(position, score), np.array([2, 2]), rules)
    assert np.flatnonzero(chosen).tolist() == [0, 1, 2, 3, 4, 8]
    capped = replace(rules, max_per_class_ratio=1.0)
    chosen = select_photos(evidence(position, score), np.array([2, 2]), capped)
    assert np.flatnonzero(chosen).tolist() == [0, 1, 2, 8, 9]


def test_a_fixed_threshold() -> None:
    chosen = select_photos(
        evidence([0, 0, 1, 1], [0.9, 0.2, 0.5, 0.4]), np.array([2, 2]), replace(RULES, min_in_class_score=0.4)
    )
    assert chosen.tolist() == [True, False, True, True]


def test_the_surer_half_of_the_selection_counts_fully() -> None:
    found = evidence([0] * 5, [0.8, 0.6, 0.4, 0.2, 0.9], confidence=np.array([1, 0.5, 1, 1, 1.0]))
    weights = loss_weights(found, np.array([True, True, True, True, False]))
    np.testing.assert_allclose(weights, [1, 0.5, 0.4 / 0.5, 0.2 / 0.5, 0], atol=1e-6)
    nothing = evidence([0, 0], [0.0, 0.0], confidence=np.array([0.7, 0.9]))
    np.testing.assert_allclose(loss_weights(nothing, np.ones(2, dtype=np.bool_)), [0.7, 0.9], atol=1e-6)


@pytest.mark.parametrize("flaw", ["possible", "agreed", "confidence"])
def test_photos_without_agreement_or_confidence_are_never_selected(flaw: str) -> None:
    flawed = evidence([0, 0], [0.9, 0.8], **{flaw: np.array([0, 1]).astype(bool if flaw != "confidence" else float)})
    assert select_photos(flawed, np.array([2]), RULES).tolist() == [False, True]


def test_selecting_nothing_names_the_keys() -> None:
    none = evidence([0, 0], [0.9, 0.8], agreed=np.zeros(2, dtype=np.bool_))
    with pytest.raises(SelectionError, match=r"select\.min_confidence or select\.min_in_class_score"):
        select_photos(none, np.array([2]), RULES)


@pytest.mark.parametrize("both", [(None, None), (0.5, 0.5)])
def test_exactly_one_threshold(both: tuple[float | None, float | None]) -> None:
    with pytest.raises(SelectionError, match=r"select\.min_in_class_score and select\.selected_share"):
        replace(RULES, min_in_class_score=both[0], selected_share=both[1])


def test_stage_selects_in_class_photos_with_their_classes(tmp_path: Path) -> None:
    photos = draw_photos(classes=6, foreign=12, noise=0.6)
    rules = replace(RULES, min_in_class_score=None, selected_share=0.25, max_per_class_ratio=1.5)
    table = run_selection(photos, tmp_path, rules)
    truth = dict(zip(photos.image_id, photos.truth, strict=True))
    family = dict(zip(photos.image_id, photos.family, strict=True))
    unlabeled = [name for name, split in zip(photos.image_id, photos.split, strict=True) if split == "unlabeled"]
    assert table["image_id"].to_list() == sorted(unlabeled)
    chosen = table.filter("selected")
    assert chosen.height == 90
    assert np.bincount(chosen["class_id"]).max() <= 23  # 1.5 × 90 / 6, rounded up
    assert np.mean([truth[i] == c for i, c in chosen.select("image_id", "class_id").rows()]) > 0.9
    assert all(family[i] == "ab"[c % 2] for i, c in chosen.select("image_id", "class_id").rows())
    inside = np.array([truth[name] < 6 for name in table["image_id"]])
    score = table["in_class_score"].to_numpy()
    assert np.mean(score[inside][:, None] > score[~inside]) > 0.9  # the area under the ROC curve


def test_stage_is_blind_to_the_order_of_rows(tmp_path: Path) -> None:
    photos = draw_photos(noise=0.6)
    rules = replace(RULES, min_in_class_score=0.2)
    first = run_selection(photos, tmp_path / "a", rules, shards=2)
    assert run_selection(photos, tmp_path / "b", rules, shards=5).equals(first)


def test_self_training_without_unlabeled_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusteringError, match=r"unlabeled split has no photos.*; add some, or set track: supervised"):
        run_selection(draw_photos(foreign=0, unlabeled=0), tmp_path, RULES)


def test_models_are_averaged(tmp_path: Path) -> None:
    photos = draw_photos(noise=0.6)
    manifest, classes = photos.write_tables(tmp_path)
    target = tmp_path / "pseudo_labels.parquet"
    one, other = write_scores(photos, tmp_path, "a", noise=0.0), write_scores(photos, tmp_path, "b", noise=2.0)
    tables = {}
    for name, scores in {"one": one, "other": other, "both": other + one}.items():
        select_pseudo_labels(manifest, classes, scores, str(target), [], 5, 0.0, 1, RULES)
        tables[name] = read_table("pseudo_labels", target)
    same = (tables["one"]["class_id"] == tables["other"]["class_id"]).to_numpy()
    assert same.any()
    # Embeddings are the same in both models, so only the probabilities differ, and the score is linear in them.
    mean = (tables["one"]["in_class_score"] + tables["other"]["in_class_score"]) / 2
    np.testing.assert_allclose(
        tables["both"]["in_class_score"].filter(pl.Series(same)), mean.filter(pl.Series(same)), atol=1e-5
    )


def test_guides_of_two_rounds_count_as_two(tmp_path: Path) -> None:
    photos = draw_photos(noise=0.6)
    manifest, classes = photos.write_tables(tmp_path)
    target = tmp_path / "pseudo_labels.parquet"
    first = write_scores(photos, tmp_path, noise=2.0)
    later = [path.replace("round0", "round1") for path in write_scores(photos, tmp_path / "b", noise=0.0)]
    for path, moved in zip(write_scores(photos, tmp_path / "b", noise=0.0), later, strict=True):
        Path(moved).parent.mkdir(parents=True, exist_ok=True)
        Path(path).rename(moved)
    one, other = (read_scores(paths_by_model(paths, "guide/scores"), *wanted(photos)) for paths in (first, later))
    both = read_scores(paths_by_model(first + later, "guide/scores"), *wanted(photos))
    np.testing.assert_allclose(both.probabilities, (one.probabilities + other.probabilities) / 2, atol=1e-6)
    np.testing.assert_allclose(both.embeddings @ both.embeddings.T, one.embeddings @ one.embeddings.T, atol=1e-5)
    select_pseudo_labels(manifest, classes, first + later, str(target), [], 5, 0.0, 1, RULES)


def test_propagated_labels_are_righter_where_the_guide_guesses(tmp_path: Path) -> None:
    photos = draw_photos(noise=0.6)
    manifest, classes = photos.write_tables(tmp_path)
    scores = write_scores(photos, tmp_path, noise=20.0)
    truth = dict(zip(photos.image_id, photos.truth, strict=True))
    right = {}
    for share in (0.0, 0.8):
        target = str(tmp_path / f"{share}.parquet")
        select_pseudo_labels(manifest, classes, scores, target, ["family"], 5, share, 5, RULES)
        table = read_table("pseudo_labels", target)
        inside = table.filter(pl.col("image_id").replace_strict(truth, return_dtype=pl.Int64) < photos.classes)
        right[share] = np.mean([truth[i] == c for i, c in inside.select("image_id", "class_id").rows()])
    assert right[0.8] > right[0.0] + 0.05


def test_recluster_keeps_classes_apart(tmp_path: Path) -> None:
    photos = draw_photos(classes=6, foreign=6, noise=0.3)
    pseudo = run_selection(photos, tmp_path, replace(RULES, min_in_class_score=0.3))
    scores = [str(path) for path in (tmp_path / "round0").rglob("*.parquet")]
    target = tmp_path / "subclusters.parquet"
    arguments = (str(tmp_path / "manifest.parquet"), scores, str(tmp_path / "pseudo_labels.parquet"), str(target))
    recluster_selection(*arguments, pca_dim=8, photos_per_subcluster=8, max_subclusters=3, iterations=10, seed=1)
    table, content = read_table("subclusters", target), target.read_bytes()
    recluster_selection(*arguments, pca_dim=8, photos_per_subcluster=8, max_subclusters=3, iterations=10, seed=1)
    assert target.read_bytes() == content

    truth = dict(zip(photos.image_id, photos.truth, strict=True))
    labeled = [name for name, split in zip(photos.image_id, photos.split, strict=True) if split == "labeled"]
    assert set(table["image_id"]) == set(labeled) | set(pseudo.filter("selected")["image_id"])
    own = table.filter(pl.col("image_id").is_in(labeled))
    assert all(truth[name] == label for name, label in own.select("image_id", "class_id").rows())
    assert sorted(table["subcluster"].unique()) == list(range(table["subcluster"].n_unique()))
    assert agreement_of_partitions(table["subcluster"].to_numpy(), table["class_id"].to_numpy()) == 1
    for _, members in table.group_by("class_id"):
        assert members["subcluster"].n_unique() == min(max(int(members.height / 8 + 0.5), 1), 3)

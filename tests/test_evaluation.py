from fractions import Fraction
from math import comb

import numpy as np
import polars as pl
import pytest

from fieldmark.artifacts import read_table, write_table
from fieldmark.evaluation import (
    accuracy_scores,
    at,
    auroc,
    auroc_interval,
    bootstrap_macro,
    cluster_scores,
    confusion_table,
    filter_scores,
    macro_accuracy,
    mcnemar_p,
    paired_scores,
    purity,
    scores_table,
    selection_scores,
    stratified_folds,
    tail_classes,
    wilson_interval,
)


def values(scores):
    return {score.metric: score.value for score in scores}


# Newcombe 1998, table I (81 of 263, 15 of 148, 0 of 20, 1 of 29), four decimals.
@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_has_published_values(hits, count, low, high):
    found = wilson_interval(hits, count)
    assert found == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(count - hits, count)
    assert mirrored == pytest.approx((1 - found[1], 1 - found[0]))


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (3, 2), (-1, 4)])
def test_wilson_interval_refuses_nonsense(hits, count):
    with pytest.raises(ValueError, match="0 <= hits <= count"):
        wilson_interval(hits, count)


def test_accuracies_equal_naive_ones():
    draws = np.random.default_rng(1)
    labels = draws.integers(0, 8, size=90) * 3  # class ids with gaps
    class_ids = np.stack([draws.permutation(24)[:6] for _ in labels]).astype(np.int32)
    class_ids[::3, 0] = labels[::3]
    tail = np.array([3, 6], np.int32)
    scores = accuracy_scores(at("model", "val", 1, "m"), class_ids, labels, tail, seed=1, resamples=200)
    per_class = {c: np.mean(class_ids[labels == c, 0] == c) for c in np.unique(labels)}
    expected = {
        "top1": np.mean([row[0] == c for row, c in zip(class_ids, labels, strict=True)]),
        "top5": np.mean([c in row[:5] for row, c in zip(class_ids, labels, strict=True)]),
        "macro": np.mean(list(per_class.values())),
        "tail": np.mean([per_class[3], per_class[6]]),
    }
    assert values(scores) == pytest.approx(expected)
    assert all(score.low <= score.value <= score.high for score in scores)
    assert {(s.stage, s.round, s.member, s.split) for s in scores} == {("model", 1, "m", "val")}
    assert scores[-1].count == np.isin(labels, tail).sum()


def test_accuracy_refuses_foreign_photos_and_leaves_out_a_tail_without_photos():
    one = np.zeros((1, 1), np.int32)
    with pytest.raises(ValueError, match="labeled class"):
        accuracy_scores(at("model", "val"), one, np.array([-1]), np.array([0]), 1, 10)
    scores = accuracy_scores(at("model", "val"), one, np.array([0]), np.array([1]), 1, 10)
    assert list(values(scores)) == ["top1", "top5", "macro"]


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
    draws = np.random.default_rng(2)
    labels = np.repeat(np.arange(4), 250)
    hits = draws.random(1000) < 0.7
    low, high = bootstrap_macro(hits, labels, seed=5, resamples=1000)
    assert (low, high) == bootstrap_macro(hits, labels, seed=5, resamples=1000)
    assert (low, high) != bootstrap_macro(hits, labels, seed=6, resamples=1000)
    value = macro_accuracy(hits, labels)
    half = 1.96 * np.sqrt(value * (1 - value) / 1000)
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.006)


def test_the_tail_is_the_third_with_the_fewest_labels():
    classes = pl.DataFrame({"class_id": range(7), "labeled_count": [5, 2, 9, 2, 2, 8, 1]})
    assert tail_classes(classes).tolist() == [1, 6]
    assert tail_classes(classes[:2]).tolist() == [1]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (3, 11), (40, 22)])
def test_mcnemar_equals_the_exact_binomial(first, second):
    trials = first + second
    tail = sum(Fraction(comb(trials, i), 2**trials) for i in range(min(first, second) + 1))
    assert mcnemar_p(first, second) == pytest.approx(float(min(Fraction(1), 2 * tail)))


def test_mcnemar_survives_many_photos():
    assert 0 < mcnemar_p(50_000, 51_000) < 0.002
    assert mcnemar_p(0, 20_000) == 0.0


def test_paired_difference_equals_a_bootstrap_over_photos():
    draws = np.random.default_rng(3)
    first = draws.random(400) < 0.8
    second = np.where(draws.random(400) < 0.7, first, draws.random(400) < 0.6)
    difference, p_value = paired_scores(at("comparison", "test", member="a - b"), first, second, 1, 4000)
    assert difference.value == pytest.approx(first.mean() - second.mean())
    rows = draws.integers(400, size=(4000, 400))
    naive = np.quantile(first[rows].mean(axis=1) - second[rows].mean(axis=1), [0.025, 0.975])
    assert (difference.low, difference.high) == pytest.approx(naive, abs=0.01)
    assert p_value.value == mcnemar_p(int((first & ~second).sum()), int((second & ~first).sum()))
    same = paired_scores(at("comparison", "test"), first, first, 1, 10)
    assert [score.value for score in same] == [0, 1]


def test_purity_equals_the_naive_count():
    draws = np.random.default_rng(4)
    clusters, labels = draws.integers(-2, 6, size=80), draws.integers(-1, 4, size=80)
    naive = sum(max(np.sum(labels[clusters == c] == y) for y in np.unique(labels)) for c in np.unique(clusters))
    assert purity(clusters, labels) == pytest.approx(naive / 80)
    inside = labels >= 0
    expected = {"purity_in_class": purity(clusters[inside], labels[inside]), "purity_overall": naive / 80}
    assert values(cluster_scores(at("cluster", "unlabeled", 0), clusters, labels)) == pytest.approx(expected)
    assert list(values(cluster_scores(at("cluster", "unlabeled"), clusters, np.full(80, -1)))) == ["purity_overall"]


def test_filter_scores_count_photos():
    clusters = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    labels = np.array([5, 5, -1, -1, -1, 5, 4, 4])
    found = values(filter_scores(at("filter", "unlabeled", 0), clusters, labels, np.array([0, 2]), np.array([1])))
    assert found == pytest.approx(
        {
            "purity_in_class": 3 / 4,
            "purity_overall": 3 / 5,
            "in_class_share": 4 / 5,
            "in_class_recall": 4 / 5,
            "foreign_precision": 1.0,
            "foreign_recall": 2 / 3,
        }
    )
    none = np.array([], dtype=np.int32)
    nothing = values(filter_scores(at("filter", "unlabeled", 0), clusters, labels, none, none))
    assert nothing == {"in_class_recall": 0.0, "foreign_recall": 0.0}


def test_auroc_equals_all_pairs():
    draws = np.random.default_rng(5)
    scores, positive = draws.integers(0, 6, size=60) / 5, draws.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    area = auroc(scores, positive)
    assert area == pytest.approx(np.mean(pairs))
    low, high = auroc_interval(area, int(positive.sum()), int((~positive).sum()))
    assert low < area < high
    assert auroc_interval(1.0, 5, 5) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        auroc(scores, np.ones(60, bool))


def pseudo_labels(rows):
    return pl.DataFrame(rows, schema=["image_id", "class_id", "in_class_score", "selected"], orient="row").with_columns(
        pl.col("class_id").cast(pl.Int32),
        confidence=pl.col("in_class_score").cast(pl.Float32) * 0 + 0.5,
        neighbour_agreement=pl.lit(1.0, pl.Float32),
        weight=pl.lit(1.0, pl.Float32),
    )


def test_selection_scores_count_photos():
    table = pseudo_labels(
        [("a", 1, 0.9, True), ("b", 2, 0.8, True), ("c", 1, 0.7, True), ("d", 1, 0.2, False), ("e", 0, 0.1, False)]
    )
    found = values(selection_scores(at("select", "unlabeled", 0), table, np.array([1, 1, -1, 1, -1])))
    assert found == pytest.approx(
        {
            "precision": 1 / 3,
            "recall": 1 / 3,
            "foreign_share": 1 / 3,
            "label_accuracy": 1 / 2,
            "auroc_in_class_score": 5 / 6,
            "auroc_confidence": 0.5,
        }
    )
    empty = table.with_columns(selected=pl.lit(False))
    assert list(values(selection_scores(at("select", "unlabeled", 0), empty, np.array([1] * 5)))) == ["recall"]


def test_folds_are_even_by_class_and_seeded():
    labels = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 7, 8, 9])
    order = np.random.default_rng(6).permutation(45)
    folds = stratified_folds(labels[order], 2, seed=1)
    for class_id in range(9):
        counts = np.bincount(folds[labels[order] == class_id], minlength=2)
        assert abs(counts[0] - counts[1]) <= 1
    assert sorted(np.bincount(folds)) == [22, 23]
    assert folds.tolist() == stratified_folds(labels[order], 2, seed=1).tolist()
    assert folds.tolist() != stratified_folds(labels[order], 2, seed=2).tolist()


def test_confusion_counts_every_pair():
    table = confusion_table(np.array([0, 0, 1, 0]), np.array([0, 1, 1, 1]))
    assert table.rows() == [(0, 0, 1), (0, 1, 2), (1, 1, 1)]


def test_scores_table_keeps_nulls_and_fits_its_schema(tmp_path):
    scores = cluster_scores(at("cluster", "unlabeled", 2), np.array([0, 1]), np.array([0, -1]))
    write_table(scores_table(scores), "scores", tmp_path / "s.parquet")
    assert read_table("scores", tmp_path / "s.parquet")["low"].null_count() == 2
    write_table(scores_table([]), "scores", tmp_path / "none.parquet")

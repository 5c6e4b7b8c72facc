import numpy as np
import pytest

from fieldmark.artifacts import ArtifactError, read_table, write_table
from fieldmark.predictions import (
    by_member,
    lists_to_table,
    member_of,
    read_lists,
    round_of,
    to_table,
    top_classes,
)
from tests.dense import to_dense


def random_probabilities(seed, count, classes):
    draws = np.random.default_rng(seed)
    return draws.dirichlet(np.full(classes, 0.3), size=count).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 7, 12])
def test_top_classes_match_a_naive_sort(k):
    dense = np.round(random_probabilities(1, 50, 7), 1).astype(np.float32)  # rounding makes many ties
    class_ids, probabilities = top_classes(dense, k)
    for row, ids, values in zip(dense, class_ids, probabilities, strict=True):
        expected = sorted(range(7), key=lambda c: (-row[c], c))[:k]
        assert ids.tolist() == expected
        assert values.tolist() == [row[c] for c in expected]


def test_ties_and_negative_zero_come_by_class_id():
    class_ids, values = top_classes(np.array([[0.0, -0.0, 0.5, 0.5]], dtype=np.float32), 4)
    assert class_ids.tolist() == [[2, 3, 0, 1]]
    assert values.tolist() == [[0.5, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize("bad", [np.nan, -0.1, np.inf])
def test_invalid_probabilities_are_refused(bad):
    with pytest.raises(ValueError, match="finite and not negative"):
        top_classes(np.array([[0.5, bad]], dtype=np.float32), 1)


def test_logits_and_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match=r"photo 'b' sum to 3\.000"):
        to_table(["a", "b"], np.array([[0.5, 0.5], [1, 2]], dtype=np.float32), 2)
    with pytest.raises(ValueError, match="1 photos need as many rows"):
        to_table(["a"], np.zeros((2, 3), dtype=np.float32), 2)
    with pytest.raises(ValueError, match="at least 1"):
        to_table(["a"], np.zeros((1, 3), dtype=np.float32), 0)


def test_dense_round_trip_is_exact_and_a_cut_is_spread_evenly(tmp_path):
    dense = random_probabilities(2, 20, 6)
    ids = [f"p{i:02}" for i in range(20)]
    write_table(to_table(ids, dense, 6), "predictions", tmp_path / "full.parquet")
    found_ids, found = to_dense(read_table("predictions", tmp_path / "full.parquet"), 6)
    assert found_ids == ids
    np.testing.assert_array_equal(found, dense)

    frame = to_table(ids, dense, 2)
    _, filled = to_dense(frame, 6)
    np.testing.assert_allclose(filled.sum(axis=1), 1, atol=1e-6)
    for before, after in zip(dense, filled, strict=True):
        best = np.argsort(-before, kind="stable")[:2]
        others = np.setdiff1d(np.arange(6), best)
        np.testing.assert_array_equal(after[best], before[best])
        np.testing.assert_allclose(after[others], (1 - before[best].sum()) / 4, atol=1e-6)


def test_shards_are_joined_and_sorted_and_an_empty_one_is_welcome(tmp_path):
    dense = random_probabilities(3, 4, 5)
    write_table(to_table(["d", "c"], dense[:2], 3), "predictions", tmp_path / "0.parquet")
    write_table(to_table(["a", "b"], dense[2:], 3), "predictions", tmp_path / "1.parquet")
    write_table(to_table([], np.zeros((0, 5), np.float32), 3), "predictions", tmp_path / "2.parquet")
    lists = read_lists([tmp_path / f"{i}.parquet" for i in range(3)], 5)
    assert lists.image_ids == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(lists.class_ids, top_classes(dense[[2, 3, 1, 0]], 3)[0])
    assert lists.rows_of(["c", "a"], "m").class_ids.tolist() == lists.class_ids[[2, 0]].tolist()
    with pytest.raises(ArtifactError, match=r"round0/x/y: 1 of 2 expected photos have no prediction.*'z'"):
        lists.rows_of(["a", "z"], "round0/x/y")
    assert read_lists(tmp_path / "2.parquet", 5).class_ids.shape == (0, 3)


def test_a_photo_in_two_shards_and_an_unknown_class_are_refused(tmp_path):
    table = lists_to_table(["a"], np.array([[4]], np.int32), np.array([[0.5]], np.float32))
    for name in ("0", "1"):
        write_table(table, "predictions", tmp_path / f"{name}.parquet")
    with pytest.raises(ArtifactError, match="'a' is predicted twice"):
        read_lists([tmp_path / "0.parquet", tmp_path / "1.parquet"], 5)
    with pytest.raises(ArtifactError, match="class ids must be 0 to 3"):
        read_lists(tmp_path / "0.parquet", 4)


def test_members_come_from_paths():
    paths = [
        "results/round1/lite0/layerwise/predictions/001.parquet",
        "results/round1/lite0/layerwise/predictions/000.parquet",
        "/data/results/baseline/lite0/probe/predictions/all.parquet",
    ]
    groups = by_member(paths)
    assert list(groups) == ["baseline/lite0/probe", "round1/lite0/layerwise"]
    assert [path.name for path in groups["round1/lite0/layerwise"]] == ["000.parquet", "001.parquet"]
    for wrong in (
        "results/ensemble/predictions.parquet",
        "a/roundx/m/r/predictions/0.parquet",
        "round1/m/r/p/0.parquet",
    ):
        with pytest.raises(ValueError, match="expected a path such as"):
            member_of(wrong)


def test_rounds_come_from_runs():
    assert (round_of("round0"), round_of("round12"), round_of("baseline")) == (0, 12, None)
    with pytest.raises(ValueError, match="'rounds'"):
        round_of("rounds")

"""Boxes: geometry, the table, and the measures against naive computations."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.artifacts import read_table, write_table
from fieldmark.boxes import (
    FULL,
    average_precision,
    box_scores,
    box_table,
    into_windows,
    known_boxes,
    out_of_windows,
    paired_iou,
    visible_windows,
)


def naive_average_precision(scores: list[float], hits: list[bool], count: int) -> float:
    """COCO's definition word by word: at each recall, the best precision of any threshold that reaches it."""
    total = 0.0
    for step in range(101):
        best = 0.0
        for size in range(1, len(scores) + 1):
            order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:size]
            right = sum(hits[row] for row in order)
            if right / count >= np.linspace(0, 1, 101)[step]:
                best = max(best, right / size)
        total += best / 101
    return total


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=9), st.integers(0, 3))
def test_average_precision_equals_the_naive_one(found: list[tuple[int, bool]], missed: int) -> None:
    scores, hits = [score / 4 for score, _ in found], [hit for _, hit in found]
    count = max(1, sum(hits) + missed)
    expected = naive_average_precision(scores, hits, count)
    assert average_precision(np.array(scores), np.array(hits, dtype=bool), count) == pytest.approx(expected)


def test_average_precision_of_known_cases() -> None:
    yes, no = np.ones(3, dtype=bool), np.zeros(3, dtype=bool)
    scores = np.array([0.9, 0.8, 0.7])
    assert average_precision(scores, yes, 3) == pytest.approx(1.0)
    assert average_precision(scores, no, 3) == 0.0
    assert average_precision(scores[:0], yes[:0], 3) == 0.0
    # Half the boxes found, all of them right: recalls 0 … 0.5 are reached.
    assert average_precision(scores[:2], yes[:2], 4) == pytest.approx(51 / 101)
    # A sure mistake first halves the precision everywhere.
    assert average_precision(np.array([0.9, 0.1]), np.array([False, True]), 1) == pytest.approx(0.5)


def naive_iou(one: list[float], other: list[float], cells: int = 40) -> float:
    """By counting small cells, for boxes whose edges lie on the grid."""
    grid = [
        [
            x <= (i + 0.5) / cells <= x + w and y <= (j + 0.5) / cells <= y + h
            for i in range(cells)
            for j in range(cells)
        ]
        for x, y, w, h in (one, other)
    ]
    both, any_ = np.logical_and(*grid).sum(), np.logical_or(*grid).sum()
    return both / any_


EDGES = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2)


@given(EDGES, EDGES)
def test_iou_equals_counting_cells(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    first, second = ([value / 40 for value in box] for box in (one, other))
    assert paired_iou(np.array([first]), np.array([second]))[0] == pytest.approx(naive_iou(first, second))


def test_iou_of_boxes_without_area_is_zero() -> None:
    empty = np.array([[0.5, 0.5, 0.0, 0.0]])
    assert paired_iou(empty, empty)[0] == 0.0


def test_windows_are_what_decoding_keeps() -> None:
    windows = visible_windows(np.array([100, 100, 400, 100]), np.array([100, 200, 100, 500]))
    assert windows.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0.25, 0, 0.5, 1], [0, 0.3, 1, 0.4]]


def test_boxes_go_into_windows_and_back() -> None:
    windows = visible_windows(np.array([400, 300]), np.array([100, 200]))
    boxes = np.array([[0.3, 0.1, 0.2, 0.5], [0.0, 0.2, 1.0, 0.3]])
    assert out_of_windows(into_windows(boxes, windows), windows) == pytest.approx(boxes)
    # At the left end of a long photo nothing of the box is seen; across the edge, half.
    cut = into_windows(np.array([[0.0, 0.0, 0.2, 1.0], [0.2, 0.0, 0.1, 1.0]]), windows[[0, 0]])
    assert cut[0, 2] == 0 and cut[1] == pytest.approx([0, 0, 0.1, 1])


def test_known_boxes_are_relative_to_the_photo() -> None:
    none = {"box_x": None, "box_y": None, "box_w": None, "box_h": None}
    rows = [
        {"image_id": "a", "width": 200, "height": 100, "box_x": 20.0, "box_y": 30.0, "box_w": 100.0, "box_h": 50.0},
        {"image_id": "b", "width": 200, "height": 100, **none},
    ]
    found, boxes = known_boxes(pl.DataFrame(rows))
    assert found["image_id"].to_list() == ["a"] and boxes == pytest.approx(np.array([[0.1, 0.3, 0.5, 0.5]]))


def test_the_table_takes_the_full_photo_where_nothing_is_found(tmp_path: Path) -> None:
    boxes = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.1, 0.1], [0.2, 0.2, 0.0, 0.3], [-0.1, 0.0, 1.2, 1.0]])
    scores = np.array([0.9, 0.2, 0.9, 0.5])
    write_table(box_table(["a", "b", "c", "d"], boxes, scores, 0.3), "boxes", tmp_path / "boxes.parquet")
    table = read_table("boxes", tmp_path / "boxes.parquet")
    assert table.columns == ["image_id", "x", "y", "width", "height", "score"]
    rows = table.drop("image_id").to_numpy()
    assert rows[0] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.9])
    assert rows[1].tolist() == rows[2].tolist() == [*FULL, 0.0]
    assert rows[3] == pytest.approx([*FULL, 0.5])  # cut to the photo


def test_a_score_of_zero_is_never_a_find() -> None:
    assert box_table(["a"], np.array([[0.1, 0.1, 0.1, 0.1]]), np.zeros(1), 0.0)["width"].to_list() == [1.0]


def test_a_table_of_no_photos_has_its_columns(tmp_path: Path) -> None:
    write_table(box_table([], np.zeros((0, 4)), np.zeros(0), 0.3), "boxes", tmp_path / "boxes.parquet")
    assert read_table("boxes", tmp_path / "boxes.parquet").height == 0


def test_scores_of_perfect_and_of_no_boxes() -> None:
    truth = np.array([[0.1, 0.1, 0.5, 0.5], [0.2, 0.0, 0.5, 1.0]])
    perfect = box_scores(truth, np.array([0.9, 0.8]), truth)
    assert perfect == pytest.approx({"mean_iou": 1.0, "ap50": 1.0, "ap": 1.0, "found_share": 1.0})
    nothing = box_scores(np.tile(FULL, (2, 1)), np.zeros(2), truth)
    assert nothing == pytest.approx({"mean_iou": (0.25 + 0.5) / 2, "ap50": 0.0, "ap": 0.0, "found_share": 0.0})


def test_ap_is_the_mean_over_the_thresholds() -> None:
    truth = np.array([[0.0, 0.0, 1.0, 1.0]])
    # IoU 0.72 is enough for 0.5, 0.55, 0.6, 0.65 and 0.7.
    scores = box_scores(np.array([[0.0, 0.0, 0.72, 1.0]]), np.ones(1), truth)
    assert scores["ap50"] == pytest.approx(1.0) and scores["ap"] == pytest.approx(0.5)

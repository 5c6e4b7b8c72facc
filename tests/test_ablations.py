"""The benchmarks of the supervised track: what is compared with what, and that lists in full lose nothing."""

import numpy as np
import polars as pl
import pytest

from benchmarks.ablation_supervised import annotated_boxes, ladder, summary, table, with_steps
from benchmarks.topk_loss import measure
from fieldmark.fitting import StageSettings
from fieldmark.models import ModelSettings
from fieldmark.views import Augmentation


def test_each_rung_adds_one_part_at_the_same_compute() -> None:
    rungs = ladder(ModelSettings("test_resnet", "none", 32), Augmentation())
    assert [(r.model.head.loss, r.model.metadata.encoding, r.model.streams) for r in rungs] == [
        ("softmax", "none", "photo"),
        ("arcface", "none", "photo"),
        ("arcface", "sphere", "photo"),
        *[("arcface", "sphere", "photo_and_crop")] * 2,
        ("arcface", "sphere", "photo"),
        ("arcface", "sphere", "photo_and_crop"),
    ]
    assert [r.augmentation.color for r in rungs] == [0, 0, 0, 0, 0.3, 0.3, 0.3]
    names = [rung.name for rung in rungs]
    assert [rung.against for rung in rungs] == [None, *names[:4], names[2], names[5]]
    assert [rung.votes for rung in rungs] == [True] * 5 + [False] * 2
    stage = StageSettings([{"steps": 150}, {"steps": 60}])
    steps = [[phase["steps"] for phase in with_steps(stage, r.passes, None).phases] for r in rungs]
    assert steps == [[150, 60]] * 3 + [[75, 30]] * 2 + [[150, 60]] * 2


def test_the_table_tells_the_difference_to_the_rung_before() -> None:
    hits = {"a": [np.array([True, False, False, False])] * 2, "b": [np.array([True, True, False, False])] * 2}
    frame = summary(hits, {"b": "a"})
    assert frame["difference"].to_list() == [None, 0.25] and frame["top1"].to_list() == [0.25, 0.5]
    assert "| b | 50.0 | 0.0 | a | +25.0 |" in table(frame)


def test_annotated_boxes_are_shares_and_the_full_photo_where_there_is_none() -> None:
    rows = {"image_id": ["a", "b"], "width": [200, 9], "height": [100, 9], "box_x": [50.0, None], "box_y": [10.0, None]}
    found = annotated_boxes(pl.DataFrame(rows | {"box_w": [100.0, None], "box_h": [50.0, None]}))
    assert found.select(pl.col("x", "y", "width", "height", "score").round(4)).rows() == [
        pytest.approx((0.25, 0.1, 0.5, 0.5, 1.0)),
        (0.0, 0.0, 1.0, 1.0, 0.0),
    ]


def test_lists_of_all_classes_lose_nothing_and_short_ones_little() -> None:
    tallies = measure(photos=60, classes=40, members=3, sizes=[5, 40], seed=0)
    full, short = tallies[40], tallies[5]
    assert full.same_first == full.same_five == full.photos == 60
    assert (full.first, full.five) == (full.dense_first, full.dense_five)
    assert full.cut == pytest.approx(0, abs=1e-3) and short.cut > 0.01
    assert short.same_first >= 55

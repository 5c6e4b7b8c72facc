"""From tables to training sets: shares of batches, and what each stage trains on."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from fieldmark.photosets import mixed_sampler, photo_set, times_seen
from fieldmark.taxa import coarse_taxon_codes
from tests.test_taxa import CLASSES, PHOTOS
from workflow.scripts.finetune_classifier import classification_task
from workflow.scripts.pretrain_backbone import cluster_task
from workflow.scripts.refine_backbone import subcluster_task
from workflow.scripts.train_guide import guide_task

ROWS = pl.DataFrame(
    {
        "image_id": [f"p{number}" for number in range(9)],
        "path": [f"p{number}.jpg" for number in range(9)],
        "target": [0, 0, 0, 0, 1, 2, -1, -1, -1],
    }
)
PARTS = {"labeled": np.arange(5), "pseudo": np.arange(5, 6), "unlabeled": np.arange(6, 9), "foreign": np.arange(0)}


def draw(steps: int = 10, **changes: Any) -> np.ndarray:
    how: dict[str, Any] = {"shares": {}, "balanced": False, "batch_size": 6, "seed": 1, "parts": PARTS, **changes}
    parts, shares = how.pop("parts"), how.pop("shares")
    sampler = mixed_sampler(photo_set(ROWS), parts, shares, **how)
    return np.stack([sampler.positions(step * how["batch_size"], how["batch_size"]) for step in range(steps)])


def test_a_photo_set_fills_in_weights_and_taxa() -> None:
    plain = photo_set(ROWS)
    assert plain.weight.tolist() == [1] * 9 and plain.taxon.tolist() == [-1] * 9 and len(plain.taxon_of_class) == 0
    assert (plain.weight.dtype, plain.target.dtype) == (np.float32, np.int64)
    full = ROWS.with_columns(weight=pl.lit(0.5), taxon=pl.lit(3))
    assert photo_set(full, np.array([3])).weight.tolist() == [0.5] * 9
    assert photo_set(full).digest() != plain.digest() == photo_set(ROWS).digest()


def test_batches_hold_the_shares_of_their_parts() -> None:
    drawn = draw(shares={"labeled": 3, "pseudo": 1, "unlabeled": 2})
    for batch in drawn:
        assert [int(np.isin(batch, PARTS[name]).sum()) for name in PARTS] == [3, 1, 2, 0]


def test_parts_without_share_or_photos_are_left_out() -> None:
    drawn = draw(shares={"labeled": 0.5, "pseudo": 0.5, "unlabeled": 0.0, "foreign": 1.0})
    for batch in drawn:
        assert [int(np.isin(batch, PARTS[name]).sum()) for name in PARTS] == [3, 3, 0, 0]


@pytest.mark.parametrize("shares", [{}, {"a": 0.6, "b": 0.2}, {"a": 1.0}])
def test_photos_are_seen_as_often_as_the_sampler_draws_them(shares: dict[str, float]) -> None:
    photos = photo_set(pl.DataFrame({"image_id": list("abcdefgh"), "path": list("abcdefgh"), "target": [0] * 8}))
    parts = {"a": np.arange(3), "b": np.arange(3, 8), "c": np.arange(0)}
    sampler = mixed_sampler(photos, parts, shares, balanced=False, batch_size=8, seed=1)
    drawn = np.concatenate([sampler.positions(start, 8) for start in range(0, 480, 8)])
    counted = {
        name: np.isin(drawn, rows).sum() / len(rows) for name, rows in parts.items() if np.isin(drawn, rows).any()
    }
    assert times_seen(parts, shares, 480) == pytest.approx(counted)


def test_without_any_shares_all_parts_count_alike() -> None:
    for batch in draw():
        assert [int(np.isin(batch, PARTS[name]).sum()) for name in PARTS] == [2, 2, 2, 0]


def test_balanced_batches_let_targets_take_turns_but_not_photos_without_one() -> None:
    drawn = draw(40, balanced=True, shares={"labeled": 1, "pseudo": 0, "unlabeled": 1})
    target = ROWS["target"].to_numpy()[drawn]
    assert (target == 0).sum() == (target == 1).sum() == 60
    assert np.bincount(drawn[target < 0])[6:].tolist() == [40, 40, 40]
    plain = ROWS["target"].to_numpy()[draw(40, shares={"labeled": 1})]
    assert (plain == 0).sum() == 4 * (plain == 1).sum()


def test_the_order_depends_on_the_seed_and_differs_between_parts() -> None:
    assert draw(seed=3).tolist() == draw(seed=3).tolist() != draw(seed=4).tolist()
    twins = draw(parts={"labeled": np.arange(5), "clusters": np.arange(5)}, batch_size=10)
    assert any(batch[:5].tolist() != batch[5:].tolist() for batch in twins)


def test_nothing_to_train_on_is_reported_with_the_parts() -> None:
    with pytest.raises(ValueError, match=r"no photos to train on \(foreign: 0; shares \{\}\)"):
        draw(parts={"foreign": np.arange(0)})
    with pytest.raises(ValueError, match=r"\(labeled: 5; shares \{'labeled': 0\}\)"):
        draw(parts={"labeled": np.arange(5)}, shares={"labeled": 0})


CLUSTERS = pl.DataFrame({"image_id": ["a", "c", "e", "f", "g", "h"], "cluster": [4, 4, 4, 7, 7, 9]})
KEPT = pl.DataFrame({"cluster": [9, 7, 4], "kept": [False, True, True], "foreign": [False, True, False]})


def test_pretraining_takes_photos_of_kept_clusters_numbered_from_zero() -> None:
    task = cluster_task(PHOTOS, CLUSTERS, KEPT)
    assert task.photos.image_ids == ["a", "c", "e", "f", "g"]
    assert task.photos.paths[0] == "photos/a"
    assert task.photos.target.tolist() == [0, 0, 0, 1, 1]
    assert (task.classes, task.foreign, task.counts.tolist()) == (2, 0, [3, 2])


def test_the_guide_takes_labels_and_unlabeled_photos_of_foreign_clusters() -> None:
    clusters = pl.concat([CLUSTERS, pl.DataFrame({"image_id": ["b"], "cluster": [7]})])
    task = guide_task(PHOTOS, CLASSES, clusters, KEPT)
    assert task.photos.image_ids == ["a", "b", "c", "f", "g"]  # b, though in a foreign cluster, by its label alone
    assert task.photos.target.tolist() == [0, 1, 1, 3, 3]
    assert {name: rows.tolist() for name, rows in task.parts.items()} == {"labeled": [0, 1, 2], "foreign": [3, 4]}
    assert (task.classes, task.foreign, task.counts.tolist()) == (3, 1, [1, 2, 0, 2])


def test_the_guide_manages_without_foreign_clusters() -> None:
    task = guide_task(PHOTOS, CLASSES, CLUSTERS, KEPT.with_columns(foreign=pl.lit(False)))
    assert task.photos.image_ids == ["a", "b", "c"] and task.foreign == 0 and len(task.parts["foreign"]) == 0


def test_refining_takes_subclusters_as_classes() -> None:
    subclusters = pl.DataFrame({"image_id": ["e", "a", "b", "c"], "class_id": [1, 0, 1, 1], "subcluster": [8, 2, 5, 8]})
    task = subcluster_task(PHOTOS, subclusters)
    assert task.photos.image_ids == ["a", "b", "c", "e"]
    assert task.photos.target.tolist() == [0, 1, 2, 2]
    assert (task.classes, task.counts.tolist()) == (3, [1, 1, 2])


def test_fine_tuning_takes_labels_selected_pseudo_labels_and_bare_photos() -> None:
    pseudo = pl.DataFrame(
        {
            "image_id": ["e", "f", "g", "h"],
            "class_id": [1, 2, 0, 0],
            "selected": [True, True, False, False],
            "weight": [0.9, 0.7, 0.0, 0.0],
        },
        schema_overrides={"weight": pl.Float32},
    )
    task = classification_task(PHOTOS, CLASSES, pseudo)
    assert task.photos.image_ids == ["a", "b", "c", "e", "f", "g", "h"]
    assert task.photos.target.tolist() == [0, 1, 1, 1, 2, -1, -1]
    np.testing.assert_allclose(task.photos.weight, [1, 1, 1, 0.9, 0.7, 1, 1])
    assert {name: rows.tolist() for name, rows in task.parts.items()} == {
        "labeled": [0, 1, 2],
        "pseudo": [3, 4],
        "unlabeled": [5, 6],
    }
    assert task.counts.tolist() == [1, 2, 0]  # of trusted labels
    of_photo, of_class = coarse_taxon_codes(PHOTOS, CLASSES)
    assert task.photos.taxon.tolist() == of_photo[[0, 1, 2, 4, 5, 6, 7]].tolist()
    assert task.photos.taxon_of_class.tolist() == of_class.tolist()


def test_the_baseline_has_no_pseudo_labels_and_never_sees_val_or_test() -> None:
    task = classification_task(PHOTOS, CLASSES, None)
    assert task.photos.image_ids == ["a", "b", "c", "e", "f", "g", "h"]
    assert task.photos.target.tolist() == [0, 1, 1, -1, -1, -1, -1] and len(task.parts["pseudo"]) == 0

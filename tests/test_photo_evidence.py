"""What speaks for a photo: guides and labeled neighbours, weighed and spread, against naive recomputation."""

import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldmark import evidence as evidence_module
from fieldmark import neighbours as neighbours_module
from fieldmark.artifacts import read_table, write_table
from fieldmark.clustering import paths_by_model, rows_of, unit_rows
from fieldmark.evidence import (
    EvidenceError,
    GuideScores,
    class_positions,
    dense_probabilities,
    in_class_score,
    neighbour_votes,
    propagate_scores,
    read_scores,
    weigh_evidence,
)
from fieldmark.neighbours import nearest_neighbours
from fieldmark.taxa import consistent_classes
from tests.test_clustering import draw_photos
from tests.test_selection import guide_table, wanted, write_scores


def test_positions_of_classes_with_gaps() -> None:
    assert class_positions(np.array([7, -1, 2, 40]), np.array([2, 7, 40]), "classes").tolist() == [1, -1, 0, 2]
    with pytest.raises(EvidenceError, match="here: class 8"):
        class_positions(np.array([8]), np.array([2, 7, 40]), "here")


def test_lists_become_dense() -> None:
    table = pl.DataFrame(
        guide_table(["a", "b"], np.ones((2, 2)), np.log([[0.5, 0.2, 0.1], [0.1, 0.3, 0.4]]), np.log([0.2, 0.2]), 2)
    )
    dense = dense_probabilities(table, np.array([0, 1, 2]), "guide")
    np.testing.assert_allclose(dense, [[0.5, 0.2, 0], [0, 0.3, 0.4]], atol=1e-6)
    with pytest.raises(EvidenceError, match="class 2"):
        dense_probabilities(table, np.array([0, 1]), "guide")
    above = table.with_columns(pl.lit(0.5, dtype=pl.Float32).alias("foreign_probability"))
    with pytest.raises(EvidenceError, match=r"'a' sum to 1\.200"):
        dense_probabilities(above, np.array([0, 1, 2]), "guide")


def test_in_class_score_needs_both_views() -> None:
    score = in_class_score(np.array([0.9, 0.9, 0.1, 0.5]), np.array([0.9, -0.2, 0.9, 1.0000001]))
    np.testing.assert_allclose(score, [0.81, 0, 0.09, 0.5], atol=1e-6)


def test_votes_equal_the_naive_ones() -> None:
    rng = np.random.default_rng(1)
    cosine, voted = rng.uniform(-0.2, 1, size=(30, 6)).astype(np.float32), rng.integers(4, size=(30, 6))
    counts = np.array([3, 12, 5, 7])
    votes = neighbour_votes(cosine, voted, counts)
    for row in range(30):
        naive = [0.0] * 4
        for similarity, label in zip(cosine[row], voted[row], strict=True):
            naive[label] += max(similarity, 0) / counts[label] ** 0.5
        np.testing.assert_allclose(votes[row], np.array(naive) / sum(naive), atol=1e-5)
    assert not neighbour_votes(-cosine[:1].clip(0), voted[:1], counts).any()


def scored(probabilities: np.ndarray, embeddings: np.ndarray) -> GuideScores:
    """Scores as they are read."""
    return GuideScores(probabilities, embeddings, probabilities.argmax(axis=1))


def test_evidence_equals_the_naive_one() -> None:
    rng = np.random.default_rng(2)
    embeddings = unit_rows(rng.normal(size=(60, 5)))
    probabilities = (rng.dirichlet(np.full(5, 0.5), size=60)).astype(np.float32)
    scores = scored(probabilities[:, :4], embeddings)
    positions = np.where(np.arange(60) < 24, np.arange(60) % 4, -1)
    combination = rng.integers(2, size=60)
    allowed = np.array([[True] * 4, [True, False, True, False]])
    found = weigh_evidence(scores, positions, combination, allowed, neighbours=7)
    for row, photo in enumerate(range(24, 60)):
        open_classes = np.flatnonzero(allowed[combination[photo]])
        masked = {c: scores.probabilities[photo, c] for c in open_classes}
        best = max(masked, key=masked.__getitem__)
        guides = [g for g in range(24) if positions[g] in open_classes]
        nearest = sorted(guides, key=lambda g: -(embeddings[g] @ embeddings[photo]))[:7]
        votes = dict.fromkeys(open_classes, 0.0)
        for guide in nearest:
            votes[positions[guide]] += max(embeddings[guide] @ embeddings[photo], 0) / 6**0.5
        assert found.position[row] == best
        assert found.confidence[row] == pytest.approx(masked[best] / sum(masked.values()), abs=1e-5)
        assert found.neighbour_agreement[row] == pytest.approx(votes[best] / sum(votes.values()), abs=1e-5)
        assert found.agreed[row] == (max(votes, key=votes.__getitem__) == best)
        similarity = embeddings[nearest[0]] @ embeddings[photo]
        assert found.in_class_score[row] == pytest.approx(masked[best] * max(similarity, 0), abs=1e-5)


def test_without_voting_neighbours_the_guide_alone_decides() -> None:
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.full(4, 0.5), size=40).astype(np.float32)
    scores = scored(probabilities, unit_rows(rng.normal(size=(40, 5))))
    positions = np.where(np.arange(40) < 12, np.arange(40) % 4, -1)
    combination, allowed = np.zeros(40, dtype=np.int64), np.ones((1, 4), dtype=np.bool_)
    asked, alone = (weigh_evidence(scores, positions, combination, allowed, neighbours) for neighbours in (5, 0))
    assert not asked.agreed.all() and alone.agreed.all()
    assert not alone.neighbour_agreement.any()
    np.testing.assert_array_equal(alone.in_class_score, asked.in_class_score)
    np.testing.assert_array_equal(alone.position, asked.position)


def test_photo_without_a_possible_class_keeps_the_guide_s_choice_and_no_evidence() -> None:
    scores = scored(
        np.array([[1, 0], [0, 1], [0.2, 0.7], [0.2, 0]], dtype=np.float32),
        unit_rows(np.ones((4, 3))),
    )
    # Photo 2 may be of no class at all; photo 3 only of class 1, which the guide does not list.
    allowed = np.array([[False, False], [False, True]])
    found = weigh_evidence(scores, np.array([0, 1, -1, -1]), np.array([1, 1, 0, 1]), allowed, 5)
    assert found.position.tolist() == [1, 0]
    assert not found.possible.any()
    assert not found.agreed.any()
    assert found.confidence.tolist() == found.in_class_score.tolist() == found.neighbour_agreement.tolist() == [0, 0]


def test_the_guide_s_choice_outlives_propagation() -> None:
    scores = scored(np.array([[0, 1, 0], [0, 0, 1]], dtype=np.float32), unit_rows(np.ones((2, 3))))
    positions, combination, allowed = np.array([1, -1]), np.arange(2), np.array([[True] * 3, [False] * 3])
    spread = propagate_scores(scores, positions, combination, allowed, 1, 0.8)
    # Its taxon has no class, so nothing is left of what the guide said of it.
    assert spread.probabilities[1].argmax() != 2
    assert weigh_evidence(spread, positions, combination, allowed, 5).position.tolist() == [2]


def test_no_probability_spreads_to_a_photo_of_another_taxon() -> None:
    points = unit_rows(np.array([[1, 0.00], [1, 0.01], [1, 0.02], [1, 0.03]]))
    scores = scored(np.array([[1, 0], [0.5, 0.4], [0.9, 0.0], [0.5, 0.4]], dtype=np.float32), points)
    allowed = np.array([[True, True], [True, True], [True, False], [False, True]])
    found = propagate_scores(scores, np.array([0, -1, -1, -1]), np.arange(4), allowed, 3, 0.8)
    assert found.embeddings is scores.embeddings and found.probabilities[0].tolist() == [1, 0]
    # Photo 3 may be of class 1 alone: its own share of class 0 reaches nobody.
    free = propagate_scores(scores, np.array([0, -1, -1, -1]), np.arange(4), np.ones((4, 2), dtype=np.bool_), 3, 0.8)
    assert found.probabilities[1, 0] < free.probabilities[1, 0]


def dense_mean(paths: list[str], image_ids: pl.Series, classes: int) -> np.ndarray:
    """Mean of all guides' probabilities, by a table of photos by classes for each of them."""
    guides = paths_by_model(paths, "guide/scores")
    mean = np.zeros((len(image_ids), classes), dtype=np.float32)
    for name, shards in guides.items():
        scores, dense = rows_of(read_table("guide_scores", shards), image_ids, name), np.zeros_like(mean)
        np.put_along_axis(dense, scores["class_ids"].to_numpy(), scores["probabilities"].to_numpy(), axis=1)
        mean += dense / np.float32(len(guides))
    return mean


def dense_walk(first: np.ndarray, labeled: np.ndarray, graph: np.ndarray, share: float) -> np.ndarray:
    """The steps of propagation, each on the whole table."""
    number = (graph >= 0).sum(axis=1, keepdims=True).astype(np.float32)
    spread = first
    for _ in range(neighbours_module._STEPS):
        total = np.zeros_like(first)
        for near in graph.T:
            total += spread[near] * (near >= 0)[:, None]
        spread = np.where(labeled[:, None], first, share * total / number + (1 - share) * first)
    return spread


def test_scores_are_read_and_spread_by_parts_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "_CLASSES_AT_ONCE", 4)
    monkeypatch.setattr(neighbours_module, "_ROWS_AT_ONCE", 50)
    monkeypatch.setattr(evidence_module, "_ROWS_AT_ONCE", 50)
    photos = draw_photos(classes=11, noise=0.6)
    image_ids, class_ids = wanted(photos)
    paths = [path for number in range(3) for path in write_scores(photos, tmp_path, f"m{number}", noise=number)]
    scores = read_scores(paths_by_model(paths, "guide/scores"), image_ids, class_ids)
    expected = dense_mean(paths, image_ids, photos.classes)
    assert scores.probabilities.tobytes() == expected.tobytes()

    rng = np.random.default_rng(6)
    taxa = {"kingdom": ["x", "y", None], "phylum": ["p", "q", None]}
    of_photo = pl.DataFrame({name: rng.choice(np.array(names), len(image_ids)) for name, names in taxa.items()})
    of_class = pl.DataFrame({name: rng.choice(np.array(names), len(class_ids)) for name, names in taxa.items()})
    combination, allowed = consistent_classes(of_photo, of_class, list(taxa))
    assert len(allowed) == 9
    truth = np.array([dict(zip(photos.image_id, photos.truth, strict=True))[name] for name in image_ids])
    positions = np.where((truth < photos.classes) & (np.arange(len(truth)) % 4 == 0), truth, -1)
    graph, labeled = nearest_neighbours(scores.embeddings, 4), positions >= 0
    own_choice = expected.argmax(axis=1)
    first = expected * allowed[combination]
    first[labeled] = np.eye(photos.classes)[positions[labeled]]
    expected = dense_walk(first, labeled, graph, 0.7)
    apart = propagate_scores(scores, positions, combination, allowed, 4, 0.7)
    found = propagate_scores(scores, positions, combination, allowed, 4, 0.7, in_place=True)
    assert apart.probabilities.tobytes() == found.probabilities.tobytes() == expected.tobytes()
    assert found.probabilities is scores.probabilities and found.probabilities is not apart.probabilities

    allowed[0] = False  # these photos can be of no class, so they keep the guides' own first choice
    weighed = weigh_evidence(found, positions, combination, allowed, 5)
    open_to = (expected * allowed[combination])[~labeled]
    assert weighed.possible.tolist() == open_to.any(axis=1).tolist() and not weighed.possible.all()
    np.testing.assert_array_equal(
        weighed.position, np.where(weighed.possible, open_to.argmax(axis=1), own_choice[~labeled])
    )


def test_the_selection_holds_one_table_of_photos_by_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with 500,000 photos and 10,000 classes, where it is 20 GB: blocks of a few per cent of its rows or columns."""
    photos, classes = 600, 4000
    monkeypatch.setattr(neighbours_module, "_CLASSES_AT_ONCE", 100)
    monkeypatch.setattr(evidence_module, "_ROWS_AT_ONCE", 30)
    rng = np.random.default_rng(7)
    ids = [f"{number:03d}" for number in range(photos)]
    shards = {guide: [tmp_path / f"{guide}.parquet"] for guide in "ab"}
    for paths in shards.values():
        logits = rng.normal(size=(photos, classes))
        table = guide_table(ids, rng.normal(size=(photos, 3)), logits, np.full(photos, -6.0), k=5)
        write_table(table, "guide_scores", paths[0])
    positions = np.where(np.arange(photos) < 300, np.arange(photos), -1)
    combination, allowed = np.arange(photos) % 4, rng.random((4, classes)) < 0.5
    tracemalloc.start()
    try:
        scores = read_scores(shards, pl.Series(ids), np.arange(classes))
        scores = propagate_scores(scores, positions, combination, allowed, 3, 0.5, in_place=True)
        weigh_evidence(scores, positions, combination, allowed, 5)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * scores.probabilities.nbytes
    finally:
        tracemalloc.stop()

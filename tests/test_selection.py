"""Pseudo-labels and subclusters on blobs, against naive recomputation."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from fieldmark import evidence as evidence_module
from fieldmark import neighbours as neighbours_module
from fieldmark.artifacts import read_table, write_table
from fieldmark.clustering import paths_by_model, rows_of, unit_rows
from fieldmark.evidence import (
    Evidence,
    EvidenceError,
    GuideScores,
    class_positions,
    consistent_classes,
    dense_probabilities,
    in_class_score,
    neighbour_votes,
    propagate_scores,
    read_scores,
    weigh_evidence,
)
from fieldmark.neighbours import nearest_neighbours
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


def test_taxa_allow_classes_unless_both_are_known_and_differ() -> None:
    photos = pl.DataFrame({"kingdom": ["x", None, "x", "y"], "phylum": ["p", None, None, "r"]})
    classes = pl.DataFrame({"kingdom": ["x", "x", "y", "x"], "phylum": ["p", "q", "s", None]})
    combination, allowed = consistent_classes(photos, classes, ["kingdom", "phylum"])
    expected = [[True, False, False, True], [True] * 4, [True, True, False, True], [False] * 4]
    np.testing.assert_array_equal(allowed[combination], expected)
    assert consistent_classes(photos, classes, [])[1].tolist() == [[True] * 4]


def test_evidence_equals_the_naive_one() -> None:
    rng = np.random.default_rng(2)
    embeddings = unit_rows(rng.normal(size=(60, 5)))
    probabilities = (rng.dirichlet(np.full(5, 0.5), size=60)).astype(np.float32)
    scores = GuideScores(probabilities[:, :4], embeddings)
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
    scores = GuideScores(probabilities, unit_rows(rng.normal(size=(40, 5))))
    positions = np.where(np.arange(40) < 12, np.arange(40) % 4, -1)
    combination, allowed = np.zeros(40, dtype=np.int64), np.ones((1, 4), dtype=np.bool_)
    asked, alone = (weigh_evidence(scores, positions, combination, allowed, neighbours) for neighbours in (5, 0))
    assert not asked.agreed.all() and alone.agreed.all()
    assert not alone.neighbour_agreement.any()
    np.testing.assert_array_equal(alone.in_class_score, asked.in_class_score)
    np.testing.assert_array_equal(alone.position, asked.position)


def test_photo_without_a_possible_class_keeps_the_guide_s_choice_and_no_evidence() -> None:
    scores = GuideScores(
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


def test_no_probability_spreads_to_a_photo_of_another_taxon() -> None:
    points = unit_rows(np.array([[1, 0.00], [1, 0.01], [1, 0.02], [1, 0.03]]))
    scores = GuideScores(np.array([[1, 0], [0.5, 0.4], [0.9, 0.0], [0.5, 0.4]], dtype=np.float32), points)
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
    first = expected * allowed[combination]
    first[labeled] = np.eye(photos.classes)[positions[labeled]]
    expected = dense_walk(first, labeled, graph, 0.7)
    apart = propagate_scores(scores, positions, combination, allowed, 4, 0.7)
    found = propagate_scores(scores, positions, combination, allowed, 4, 0.7, in_place=True)
    assert apart.probabilities.tobytes() == found.probabilities.tobytes() == expected.tobytes()
    assert found.probabilities is scores.probabilities and found.probabilities is not apart.probabilities

    allowed[0] = False  # these photos can be of no class, so they keep the first choice of all
    weighed = weigh_evidence(found, positions, combination, allowed, 5)
    open_to = (expected * allowed[combination])[~labeled]
    assert weighed.possible.tolist() == open_to.any(axis=1).tolist() and not weighed.possible.all()
    np.testing.assert_array_equal(
        weighed.position, np.where(weighed.possible, open_to.argmax(axis=1), expected[~labeled].argmax(axis=1))
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

"""The graph of similar photos, and how class probabilities spread along it, against naive recomputation."""

import numpy as np
import pytest

from fieldmark import neighbours
from fieldmark.clustering import unit_rows
from fieldmark.neighbours import nearest_neighbours, propagate


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return unit_rows(np.random.default_rng(1).normal(size=(120, 5)))


def naive_neighbours(points: np.ndarray, neighbours: int) -> np.ndarray:
    cosine = points @ points.T
    np.fill_diagonal(cosine, -np.inf)
    return np.argsort(-cosine, axis=1)[:, :neighbours]


def test_neighbours_equal_the_naive_ones(points: np.ndarray) -> None:
    np.testing.assert_array_equal(nearest_neighbours(points, 7), naive_neighbours(points, 7))
    assert nearest_neighbours(points[:4], 10).shape == (4, 3)


def test_a_photo_is_never_its_own_neighbour_even_among_equal_photos() -> None:
    equal = np.repeat(np.eye(2, dtype=np.float32), 6, axis=0)
    found = nearest_neighbours(equal, 3)
    assert found.shape == (12, 3)
    assert not (found == np.arange(12)[:, None]).any()


def test_the_inverted_file_misses_few(points: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_EXACT_SEARCH", 100)
    monkeypatch.setattr(neighbours, "_CELLS_SEARCHED", 12)
    many = unit_rows(np.random.default_rng(2).normal(size=(3000, 5)))
    found = nearest_neighbours(many, 5)
    np.testing.assert_array_equal(found, nearest_neighbours(many, 5))
    naive = naive_neighbours(many, 5)
    hits = [len(set(row) & set(expected)) for row, expected in zip(found, naive, strict=True)]
    assert np.mean(hits) > 4.5


def test_probabilities_spread_as_the_naive_walk_says(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    count, classes, share = 30, 4, 0.7
    probabilities = rng.dirichlet(np.full(classes + 1, 0.5), size=count)[:, :classes].astype(np.float32)
    labels = np.where(np.arange(count) < 6, np.arange(count) % classes, -1)
    graph = np.stack([rng.permutation(np.delete(np.arange(count), row))[:5] for row in range(count)])
    graph[7, 3:] = -1
    graph[8] = -1
    given = probabilities.copy()
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(neighbours, "_CLASSES_AT_ONCE", 3)
    found = propagate(probabilities, labels, graph, share)
    np.testing.assert_array_equal(probabilities, given)

    expected = [np.eye(classes)[labels[row]] if labels[row] >= 0 else given[row] for row in range(count)]
    first = list(expected)
    for _ in range(neighbours._STEPS):
        before = list(expected)
        for row in np.flatnonzero(labels < 0):
            near = [before[other] for other in graph[row] if other >= 0]
            taken = np.mean(near, axis=0) if near else np.zeros(classes)
            expected[row] = share * taken + (1 - share) * first[row]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found.sum(axis=1) <= 1 + 1e-5).all()


def test_a_doubted_photo_among_sure_ones_gets_their_class() -> None:
    """A chain: the labeled photo's class reaches the photo that the guide takes for foreign, and no further one."""
    near, far = [[1.0, 0.02 * step] for step in range(8)], [[-1.0, 0.02 * step] for step in range(8)]
    points = unit_rows(np.array(near + far))
    probabilities = np.full((16, 2), 0.05, dtype=np.float32)
    probabilities[:8, 0] = 0.9
    probabilities[4] = 0.05
    labels = np.full(16, -1)
    labels[0] = 0
    found = propagate(probabilities, labels, nearest_neighbours(points, 3), 0.8)
    assert found[4, 0] > 0.5 and found[8:].max() < 0.06


def test_nothing_spreads_with_share_zero(points: np.ndarray) -> None:
    probabilities = np.random.default_rng(5).dirichlet(np.ones(4), size=len(points))[:, :3].astype(np.float32)
    labels = np.full(len(points), -1)
    found = propagate(probabilities, labels, nearest_neighbours(points, 4), 0.0)
    np.testing.assert_array_equal(found, probabilities)

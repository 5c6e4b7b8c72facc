"""The ensemble: members' probabilities in a weighted arithmetic mean, and three ways to find the weights.

Weights are never negative and sum to one. Without that normalisation an evolutionary search overfits the
validation photos, as Purucker and Beel measured over 71 data sets (CMA-ES for post hoc ensembling in AutoML: a
great success and salvageable failure, AutoML 2023).

Members give top-k lists, so the mean is taken over each photo's *candidates* alone: the classes that any member
lists. A class that no member lists gets every member's share of what its cut left over, which is never more than
any candidate gets, so nothing is lost and memory stays independent of the number of classes.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fieldmark.predictions import Floats, Ints, TopLists, unlisted_share

Weights = npt.NDArray[np.float64]

GREEDY_STEPS = 50
_BLOCK_VALUES = 1 << 20
_COMBINED_ROWS = 4096


@dataclass(frozen=True)
class Candidates:
    """The classes that at least one member lists for a photo, with every member's probability of them.

    Attributes:
        class_ids: (n, M) ascending; the number of classes pads the end of a shorter row.
        probabilities: (N, n, M), −1 at the padding so that it never wins.
        unlisted: (N, n), a member's probability of each class that it does not list.
    """

    class_ids: Ints
    probabilities: Floats
    unlisted: Floats


def find_candidates(members: Sequence[TopLists], classes: int) -> Candidates:
    """Bring members' lists of the same photos, in the same order, to common candidates.

    Args:
        members: N members' lists of n photos, each of its own length k.
        classes: C, the number of classes.

    Raises:
        ValueError: if there is no member or the members' photos differ.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member")
    if any(member.image_ids != members[0].image_ids for member in members):
        raise ValueError("all members must predict the same photos, in the same order")
    listed = np.sort(np.concatenate([member.class_ids for member in members], axis=1), axis=1)
    listed[:, 1:][listed[:, 1:] == listed[:, :-1]] = classes
    listed.sort(axis=1)
    width = int((listed < classes).sum(axis=1).max(initial=1))
    class_ids = np.ascontiguousarray(listed[:, :width])

    # One ascending key per (row, class) lets a single binary search place a member's whole list.
    offsets = np.arange(len(class_ids), dtype=np.int64)[:, None] * (classes + 1)
    keys = (class_ids + offsets).ravel()
    unlisted = np.stack([unlisted_share(member.probabilities, classes) for member in members])
    probabilities = np.repeat(unlisted[:, :, None], width, axis=2)
    for member, values in zip(members, probabilities, strict=True):
        places = np.searchsorted(keys, (member.class_ids + offsets).ravel())
        values.reshape(-1)[places] = member.probabilities.ravel()
    probabilities[:, class_ids == classes] = -1.0
    return Candidates(class_ids, probabilities, unlisted)


def weighted_mean(probabilities: Floats, weights: npt.NDArray[np.floating]) -> Floats:
    """Members' probabilities (N, n, M) under several weightings (P, N) → (P, n, M).

    Summed member by member rather than by a matrix product, whose rounding depends on the number of threads.
    """
    factors = np.asarray(weights, dtype=np.float32)
    total = np.zeros((len(factors), *probabilities.shape[1:]), dtype=np.float32)
    for member, values in enumerate(probabilities):
        total += factors[:, member, None, None] * values
    return total


class Objective:
    """How good weights are on labeled photos: top-1 accuracy, with the likelihood as a tie-breaker.

    Accuracy alone is piecewise constant: on a few hundred photos most steps of a search change nothing, and it
    would wander blindly over a plateau. So the geometric mean of the probabilities of the true classes, between 0
    and 1, is added to the number of photos that are right. It weighs less than one photo and never outvotes
    accuracy, but tells which way leads off a plateau, and prefers confident margins among equals.
    """

    def __init__(self, members: Sequence[TopLists], labels: npt.NDArray[np.integer], classes: int) -> None:
        """Prepare the objective.

        Args:
            members: N members' lists of the same n photos, in the same order.
            labels: (n,) true class ids.
            classes: C, the number of classes.

        Raises:
            ValueError: if there is no photo, no member, or the members' photos differ.
        """
        if len(labels) == 0:
            raise ValueError("ensemble weights need at least one labeled validation photo")
        found = find_candidates(members, classes)
        self.members = len(members)
        self.count = len(labels)
        true = found.class_ids == labels[:, None]
        listed = true.any(axis=1)
        column = true.argmax(axis=1)
        of_true = found.probabilities[:, np.arange(self.count), column]
        self._of_true = np.where(listed, of_true, found.unlisted).astype(np.float64)  # (N, n)

        # Where all members agree on the first class, so does every mean of them: only the others need a search.
        first = np.stack([member.class_ids[:, 0] for member in members])
        agree = (first == first[0]).all(axis=0)
        self._sure_hits = int((first[0] == labels)[agree].sum())
        self._true_column = np.where(listed, column, -1)[~agree]
        self._probabilities = np.ascontiguousarray(found.probabilities[:, ~agree])

    def hits(self, weights: Weights) -> npt.NDArray[np.int64]:
        """How many photos each weighting (P, N) gets right → (P,)."""
        hits = np.full(len(weights), self._sure_hits, dtype=np.int64)
        _, rows, width = self._probabilities.shape
        step = max(1, _BLOCK_VALUES // (len(weights) * width))
        for begin in range(0, rows, step):
            block = slice(begin, begin + step)
            winner = weighted_mean(self._probabilities[:, block], weights).argmax(axis=2)  # ties: smaller class id
            hits += (winner == self._true_column[block]).sum(axis=1)
        return hits

    def likelihood(self, weights: Weights) -> npt.NDArray[np.float64]:
        """Geometric mean of the true classes' probabilities under each weighting (P, N) → (P,)."""
        means = ((row[:, None] * self._of_true).sum(axis=0) for row in weights)
        return np.array([np.exp(np.log(np.maximum(mean, 1e-12)).mean()) for mean in means])

    def __call__(self, weights: Weights) -> npt.NDArray[np.float64]:
        """The score of each weighting (P, N), higher is better → (P,)."""
        return (self.hits(weights) + self.likelihood(weights)) / self.count


def uniform_weights(members: int) -> Weights:
    """The same weight for each of N members."""
    return np.full(members, 1.0 / members)


def greedy_weights(objective: Objective, steps: int = GREEDY_STEPS) -> Weights:
    """Ensemble selection with replacement: add, step by step, the member that helps most.

    Caruana et al., Ensemble selection from libraries of models, ICML 2004. The weights are the counts after the
    best step. Of equal members the first is taken, of equal steps the earliest, so the result is deterministic.

    Args:
        objective: scores weights on labeled photos.
        steps: how many members are drawn.

    Returns:
        (N,) weights.
    """
    counts = np.zeros(objective.members)
    best, best_score = counts, -np.inf
    for step in range(1, steps + 1):
        scores = objective((counts + np.eye(objective.members)) / step)
        chosen = int(scores.argmax())
        counts[chosen] += 1
        if scores[chosen] > best_score:
            best, best_score = counts / step, scores[chosen]
    return best


@dataclass(frozen=True)
class Generation:
    """Top-1 accuracy in one generation of the search: of its best weights, and the mean of all of them."""

    generation: int
    best: float
    mean: float


def normalise(points: npt.NDArray[np.float64]) -> Weights:
    """Points of the search space (P, N) as weights: |x| / Σ|x|, which reaches a weight of zero, unlike softmax."""
    sizes = np.abs(points)
    totals = sizes.sum(axis=1, keepdims=True)
    return np.where(totals > 0, sizes / np.where(totals > 0, totals, 1.0), 1.0 / points.shape[1])


def evolve_weights(
    objective: Objective,
    seed: int,
    sigma: float = 0.2,
    population: int = 25,
    evaluations_per_member: int = 50,
) -> tuple[Weights, list[Generation]]:
    """Search for weights with CMA-ES (Hansen; Purucker and Beel 2023 for the settings), from uniform weights on.

    Args:
        objective: scores weights on labeled photos.
        seed: of the search's draws.
        sigma: σ₀, the first step size, where a uniform weight is 1 / N.
        population: weightings per generation.
        evaluations_per_member: the budget is this times N evaluations, but at least one generation.

    Returns:
        (N,) the best weights that were seen, never worse on the objective than uniform ones; and the generations.
    """
    start = uniform_weights(objective.members)
    if objective.members == 1:
        return start, []
    with warnings.catch_warnings():  # it only says that plotting, which is not used, lacks a package
        warnings.filterwarnings("ignore", message=".*matplotlib.*")
        import cma  # here, because it takes seconds that uniform and greedy weights can do without

    draws = np.random.Generator(np.random.PCG64(seed))
    options = {
        "seed": np.nan,  # leaves numpy's global state alone; all draws come from `randn`
        "randn": lambda *shape: draws.standard_normal(shape),
        "popsize": population,
        "verbose": -10,  # silent, and reads no file of options while it runs
    }
    search = cma.CMAEvolutionStrategy(start, sigma, options)
    best, best_score = start, objective(start[None])[0]
    generations = []
    for generation in range(max(1, evaluations_per_member * objective.members // population)):
        points = np.asarray(search.ask())
        weights = normalise(points)
        hits = objective.hits(weights)
        scores = (hits + objective.likelihood(weights)) / objective.count
        search.tell(list(points), list(-scores))
        winner = int(scores.argmax())
        accuracy = hits / objective.count
        generations.append(Generation(generation, float(accuracy[winner]), float(accuracy.mean())))
        if scores[winner] > best_score:
            best, best_score = weights[winner], scores[winner]
        if search.stop():
            break
    return best, generations


def combine(
    members: Sequence[TopLists], weights: npt.NDArray[np.floating], classes: int
) -> tuple[list[str], Ints, Floats]:
    """The weighted mean of members' predictions, as lists as long as the longest member's.

    Args:
        members: N members' lists of the same n photos, in the same order.
        weights: (N,), not negative, sum 1.
        classes: C, the number of classes.

    Returns:
        the photos, their class ids (n, k), best first and ties by class id, and probabilities (n, k).

    Raises:
        ValueError: if the weights do not fit the members or are off the simplex, or the members' photos differ.
    """
    if len(weights) != len(members) or (weights < 0).any() or abs(float(weights.sum()) - 1) > 1e-4:
        raise ValueError(f"expected {len(members)} weights of at least 0 with sum 1, got {np.asarray(weights)}")
    image_ids = members[0].image_ids
    k = max(member.class_ids.shape[1] for member in members)
    class_ids = np.empty((len(image_ids), k), dtype=np.int32)
    probabilities = np.empty((len(image_ids), k), dtype=np.float32)
    for begin in range(0, len(image_ids), _COMBINED_ROWS):
        rows = slice(begin, begin + _COMBINED_ROWS)
        block = [TopLists(m.image_ids[rows], m.class_ids[rows], m.probabilities[rows]) for m in members]
        found = find_candidates(block, classes)
        mean = weighted_mean(found.probabilities, weights[None])[0]
        order = np.argsort(-mean, axis=1, kind="stable")[:, :k]
        class_ids[rows] = np.take_along_axis(found.class_ids, order, axis=1)
        probabilities[rows] = np.take_along_axis(mean, order, axis=1)
    return image_ids, class_ids, probabilities

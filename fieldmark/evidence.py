"""What speaks for an unlabeled photo being of a labeled class, and of which.

Two views that fail on different photos: the guide model's probabilities, with the foreign classes among the
alternatives, and the nearest labeled photos in its embedding space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import polars as pl

from fieldmark.artifacts import read_table
from fieldmark.clustering import NO_CLASS, Floats, Integers, combine, embeddings_of, rows_of, unit_rows
from fieldmark.neighbours import nearest_neighbours, propagate

Booleans = npt.NDArray[np.bool_]

# float16 and float32 rounding of a sum of probabilities.
_SUM_TOLERANCE = 0.01
# Bounds the memory of tables of photos by classes.
_ROWS_AT_ONCE = 32_768


class EvidenceError(ValueError):
    """Guide scores contradict the class table."""


@dataclass(frozen=True)
class GuideScores:
    """Guide scores of n photos, of one or several guides together, over c classes in ascending order of their ids."""

    probabilities: Floats  # (n, c) mean over the guides; what a row lacks to 1 is foreign, or beyond the lists
    embeddings: Floats  # (n, sum of the guides' widths) unit rows; inner products are the mean of the guides' cosines
    first: Integers  # (n,) position of the class that the guides themselves find most probable


@dataclass(frozen=True)
class Evidence:
    """What speaks for each of n unlabeled photos being of a labeled class; classes as positions in the class table."""

    position: Integers  # (n,) class that the guide finds most probable among those of the photo's coarse taxa
    possible: Booleans  # (n,) whether the guide gives any probability to a class of the photo's coarse taxa
    confidence: Floats  # (n,) its probability among these classes
    neighbour_agreement: Floats  # (n,) share of the votes of the nearest labeled photos for it
    agreed: Booleans  # (n,) whether it is also the neighbours' first choice, if any vote
    in_class_score: Floats  # (n,) see in_class_score()


def class_positions(labels: Integers, class_ids: Integers, where: str) -> Integers:
    """Return the position of each class id in ``class_ids`` (ascending), -1 for photos without a class.

    Raises:
        EvidenceError: if a class is not in ``class_ids``; ``where`` names their table.
    """
    position = np.minimum(np.searchsorted(class_ids, labels), len(class_ids) - 1)
    unknown = (class_ids[position] != labels) & (labels != NO_CLASS)
    if unknown.any():
        raise EvidenceError(f"{where}: class {labels[unknown][0]} is missing; delete the table and run again")
    return np.where(labels == NO_CLASS, -1, position)


def dense_probabilities(
    scores: pl.DataFrame, class_ids: Integers, where: str, mean: Floats | None = None, guides: int = 1
) -> Floats:
    """Spread the top-k lists of ``guide_scores`` over all c classes: (n, c), zero outside the lists.

    Args:
        scores: n rows.
        class_ids: (c,) ids of the classes, ascending.
        where: what messages call the scores.
        mean: (n, c) table to which they are added, each divided by ``guides``; None: a new one.
        guides: how many are added up to the mean.

    Raises:
        EvidenceError: if a class is not in ``class_ids`` (ascending), or a row's probabilities exceed 1 together with
            its foreign probability.
    """
    listed = scores["class_ids"].to_numpy().astype(np.int64)  # (n, k)
    position = class_positions(listed, class_ids, f"class table, as used by {where}")
    probabilities = scores["probabilities"].to_numpy().astype(np.float32)
    total = probabilities.sum(axis=1) + scores["foreign_probability"].to_numpy()
    if (total > 1 + _SUM_TOLERANCE).any():
        worst = int(total.argmax())
        raise EvidenceError(
            f"{where}: probabilities and foreign probability of {scores['image_id'][worst]!r} sum to "
            f"{total[worst]:.3f}; expected at most 1: the alternatives to a class are the other "
            "labeled classes and the foreign ones"
        )
    if mean is None:
        mean = np.zeros((scores.height, len(class_ids)), dtype=np.float32)
    mean[np.arange(scores.height)[:, None], position] += probabilities / np.float32(guides)
    return mean


def read_scores(paths: Mapping[str, Sequence[Path]], image_ids: pl.Series, class_ids: Integers) -> GuideScores:
    """Read each guide's ``guide_scores`` shards of ``image_ids`` (in their order) and average over the guides.

    Args:
        paths: shards by guide, of several models or rounds.
        image_ids: the n photos wanted; their mean embedding is the centre from which directions are measured.
        class_ids: (c,) ascending ids of the labeled classes.

    Raises:
        EvidenceError: see :func:`dense_probabilities`.
        fieldmark.clustering.ClusteringError: if a photo has no scores, or its embedding is not finite.
    """
    probabilities = np.zeros((len(image_ids), len(class_ids)), dtype=np.float32)
    units = []
    for guide, shards in paths.items():
        where = f"guide scores of {guide}"
        scores = rows_of(read_table("guide_scores", shards), image_ids, where)
        dense_probabilities(scores, class_ids, where, probabilities, len(paths))
        embeddings = embeddings_of(scores, where)
        units.append(unit_rows(embeddings - embeddings.mean(axis=0, dtype=np.float64)))
    return GuideScores(probabilities, combine(units), probabilities.argmax(axis=1))


def in_class_score(probability: Floats, similarity: Floats) -> Floats:
    """Score how surely a photo is of a labeled class; comparable between photos, not a probability.

    The product of two views that fail on different foreign photos: the guide's probability of the class it names,
    with the foreign classes among the alternatives, and the cosine to the nearest labeled photo, zero if negative.

    Args:
        probability: (n,) largest class probability, foreign classes included in the sum to 1.
        similarity: (n,) largest cosine to a labeled photo, of centred embeddings.

    Returns:
        (n,) values between 0 and 1.
    """
    return (probability * np.clip(similarity, 0, 1)).astype(np.float32)


def propagate_scores(
    scores: GuideScores,
    positions: Integers,
    combination: Integers,
    allowed: Booleans,
    neighbours: int,
    share: float,
    *,
    in_place: bool = False,
) -> GuideScores:
    """Let the guides' probabilities spread to similar photos, see :func:`fieldmark.neighbours.propagate`.

    Args:
        scores: of n labeled and unlabeled photos.
        positions: (n,) class of each labeled photo as its position in the class table, -1 for unlabeled ones.
        combination: (n,) each photo's combination of coarse taxa.
        allowed: (combinations, c) whether the combination allows the class; what guides give to others does not spread.
        neighbours: most similar photos that a photo listens to.
        share: what it takes over from them.
        in_place: overwrite the probabilities of ``scores``, a table that may be too large to be held twice.
    """
    graph = nearest_neighbours(scores.embeddings, neighbours)
    out = scores.probabilities if in_place else None
    spread = propagate(scores.probabilities, positions, graph, share, allowed=(combination, allowed), out=out)
    return replace(scores, probabilities=spread)


def neighbour_votes(cosine: Floats, voted: Integers, labeled_counts: Integers) -> Floats:
    """Let the nearest labeled photos vote on each photo's class.

    A vote weighs the cosine, zero if negative, divided by the square root of the class's labeled photos. Undivided,
    frequent classes win by their number; divided by the number itself, one stray photo of a rare class would outvote
    many of a frequent one.

    Args:
        cosine: (n, k) similarity of each photo to its nearest labeled photos.
        voted: (n, k) classes of these, as positions 0 to c - 1.
        labeled_counts: (c,) labeled photos of each class.

    Returns:
        (n, c) shares that sum to 1, or to 0 where no neighbour has a positive cosine.
    """
    weight = np.maximum(cosine, 0) / np.sqrt(labeled_counts)[voted].astype(np.float32)
    votes = np.zeros((len(voted), len(labeled_counts)), dtype=np.float32)
    for column in range(voted.shape[1]):
        votes[np.arange(len(voted)), voted[:, column]] += weight[:, column]
    total = votes.sum(axis=1, keepdims=True)
    votes /= np.where(total > 0, total, np.float32(1))
    return votes


def weigh_photos(
    probabilities: Floats, queries: Floats, labeled: Floats, labeled_positions: Integers, neighbours: int
) -> Evidence:
    """Weigh both views for n photos to which the same classes are open.

    Args:
        probabilities: (n, c) guide's probabilities, zero for the classes that are not open.
        queries: (n, d) unit rows of the photos.
        labeled: (m, d) unit rows of the labeled photos of the open classes.
        labeled_positions: (m,) their classes, as positions 0 to c - 1.
        neighbours: how many of them vote, limited to m; 0: none does, and every photo counts as agreed upon.
    """
    index = faiss.IndexFlatIP(labeled.shape[1])
    index.add(np.ascontiguousarray(labeled))
    cosine, found = index.search(np.ascontiguousarray(queries), min(max(neighbours, 1), len(labeled)))
    voters = found[:, :neighbours]
    counts = np.bincount(labeled_positions, minlength=probabilities.shape[1])
    # Classes that are not open have no labeled photo here and get no vote; 1 only avoids a division by zero.
    votes = neighbour_votes(cosine[:, :neighbours], labeled_positions[voters], np.maximum(counts, 1))
    rows = np.arange(len(queries))
    best = probabilities.argmax(axis=1)
    largest, total = probabilities[rows, best], probabilities.sum(axis=1)
    possible = total > 0
    named = (votes.argmax(axis=1) == best) & votes.any(axis=1)
    return Evidence(
        position=best,
        possible=possible,
        confidence=largest / np.where(possible, total, 1),
        neighbour_agreement=votes[rows, best] * possible,
        agreed=possible & (named if neighbours else True),
        in_class_score=in_class_score(largest, cosine[:, 0]),
    )


def weigh_evidence(
    scores: GuideScores,
    labeled_positions: Integers,
    combination: Integers,
    allowed: Booleans,
    neighbours: int,
) -> Evidence:
    """Weigh both views for every unlabeled photo, among the classes that its coarse taxa allow.

    Args:
        scores: of n labeled and unlabeled photos.
        labeled_positions: (n,) class of each labeled photo as its position in the class table, -1 for unlabeled ones.
        combination: (n,) each photo's combination of coarse taxa.
        allowed: (combinations, c) whether the combination allows the class.
        neighbours: labeled photos that vote; 0: the guide alone decides.

    Returns:
        The evidence for the unlabeled photos, in order. Where no class is both allowed and in the guide's list,
        ``possible`` is false, the class is the guide's first choice of all, and every figure is zero.
    """
    unlabeled = np.flatnonzero(labeled_positions < 0)
    labeled = np.flatnonzero(labeled_positions >= 0)
    nothing = np.zeros(len(unlabeled), dtype=np.float32)
    never = np.zeros(len(unlabeled), dtype=np.bool_)
    # What spreads between photos leaves out the classes that are not open, so this is from before.
    choice = scores.first[unlabeled]
    whole = Evidence(choice, never, nothing, nothing.copy(), never.copy(), nothing.copy())
    for number, open_classes in enumerate(allowed):
        guides = labeled[open_classes[labeled_positions[labeled]]]
        members = np.flatnonzero(combination[unlabeled] == number)
        for start in range(0, len(members) if len(guides) else 0, _ROWS_AT_ONCE):
            block = members[start : start + _ROWS_AT_ONCE]
            part = weigh_photos(
                scores.probabilities[unlabeled[block]] * open_classes,
                scores.embeddings[unlabeled[block]],
                scores.embeddings[guides],
                labeled_positions[guides],
                neighbours,
            )
            whole.position[block] = np.where(part.possible, part.position, choice[block])
            whole.possible[block] = part.possible
            whole.confidence[block] = part.confidence
            whole.neighbour_agreement[block] = part.neighbour_agreement
            whole.agreed[block] = part.agreed
            whole.in_class_score[block] = part.in_class_score
    return whole

"""Measures of every stage against the truth, each with an interval where one is defined.

Names of the metrics in tables of scores:

- ``top1``, ``top5``: share of photos whose true class is the first, or among the first five, predictions.
- ``macro``: mean over classes of the share of each class's photos that are right, so that rare classes count.
- ``tail``: the same over the third of the classes with the fewest labeled photos.
- ``top1_difference``, ``mcnemar_p``: of two members on the same photos.
- ``purity_in_class``: share of in-class photos that are of their cluster's most frequent in-class class.
- ``purity_overall``: the same with foreign photos. Truth does not tell foreign classes apart, so all of them count
  as one class and a cluster of foreign photos alone counts as pure: read it beside ``purity_in_class``.
- ``in_class_share``, ``in_class_recall``: of the photos in kept clusters, how many are in-class; of the in-class
  photos, how many are in kept clusters. ``foreign_precision`` and ``foreign_recall`` are the like for foreign
  photos in the clusters that were marked as foreign.
- ``precision``: share of the selected photos that are in-class and rightly labeled; ``recall``: their share of all
  in-class photos; ``foreign_share``: of the selected photos; ``label_accuracy``: of the selected in-class ones.
- ``auroc_in_class_score``, ``auroc_confidence``: how well each tells in-class from foreign photos.
- ``mean_iou``, ``ap50``, ``ap``, ``found_share``: of the key regions, see :func:`fieldmark.boxes.box_scores`.

Labels are class ids; :data:`FOREIGN` marks a photo of none of the labeled classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from fieldmark.predictions import Ints

FOREIGN = -1
Labels = npt.NDArray[np.integer]
Flags = npt.NDArray[np.bool_]
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """One row of a table of scores; ``low`` and ``high`` bound the 95 % interval."""

    stage: str
    round: int | None
    member: str | None
    split: str
    metric: str
    value: float
    low: float | None
    high: float | None
    count: int


def scores_table(scores: Sequence[Score]) -> pl.DataFrame:
    """Scores as the rows of a ``scores`` table, in the order given."""
    kinds = {"round": pl.Int32, "count": pl.Int64} | dict.fromkeys(["value", "low", "high"], pl.Float64)
    names = list(Score.__dataclass_fields__)
    return pl.DataFrame(
        [asdict(score) for score in scores], schema={name: kinds.get(name, pl.String) for name in names}
    )


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927), which stays honest near 0, near 1 and for few photos.

    Raises:
        ValueError: if there is nothing to count or more hits than photos.
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"expected 0 <= hits <= count with a positive count, got {hits} of {count}")
    share, square = hits / count, _NORMAL_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _NORMAL_95 / (1 + square / count) * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def macro_accuracy(hits: Flags, labels: Labels) -> float:
    """Mean over the classes that occur of the share of their photos that are right."""
    counts = np.bincount(labels)
    right = np.bincount(labels, weights=hits)
    occur = counts > 0
    return float((right[occur] / counts[occur]).mean())


def bootstrap_macro(hits: Flags, labels: Labels, seed: int, resamples: int) -> tuple[float, float]:
    """The 95 % percentile interval of :func:`macro_accuracy` over resampled photos.

    A class that no photo of a resample shows is left out of that resample's mean.
    """
    draws = np.random.Generator(np.random.PCG64(seed))
    compact = np.unique(labels, return_inverse=True)[1]
    values = np.empty(resamples)
    for index in range(resamples):
        rows = draws.integers(len(labels), size=len(labels))
        values[index] = macro_accuracy(hits[rows], compact[rows])
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def tail_classes(classes: pl.DataFrame) -> Ints:
    """The third of the classes (at least one) with the fewest labeled photos; ties by class id."""
    ranked = classes.sort("labeled_count", "class_id")["class_id"].to_numpy()
    return np.sort(ranked[: max(1, len(ranked) // 3)])


def accuracy_scores(
    where: Score, class_ids: Ints, labels: Labels, tail: Ints, seed: int, resamples: int
) -> list[Score]:
    """``top1``, ``top5``, ``macro`` and ``tail`` of one member on one split.

    Args:
        where: stage, round, member and split of the scores; its other values are replaced.
        class_ids: (n, k) predicted, best first; with k < 5 top-5 looks at k.
        labels: (n,) true class ids, none of them foreign.
        tail: the class ids that ``tail`` looks at.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ValueError: if there is no photo, or one is foreign.
    """
    if len(labels) == 0 or (labels < 0).any():
        raise ValueError(f"{where.stage} {where.member}: accuracy needs photos, each of a labeled class")
    right = class_ids == labels[:, None]
    scores = [
        proportion(where, "top1", int(right[:, 0].sum()), len(labels)),
        proportion(where, "top5", int(right[:, :5].any(axis=1).sum()), len(labels)),
    ]
    in_tail = np.isin(labels, tail)
    for metric, rows in (("macro", np.ones(len(labels), dtype=bool)), ("tail", in_tail)):
        if rows.any():
            hits, of = right[rows, 0], labels[rows]
            low, high = bootstrap_macro(hits, of, seed, resamples)
            scores.append(_score(where, metric, macro_accuracy(hits, of), low, high, len(of)))
    return scores


def _score(where: Score, metric: str, value: float, low: float | None, high: float | None, count: int) -> Score:
    return Score(where.stage, where.round, where.member, where.split, metric, value, low, high, count)


def proportion(where: Score, metric: str, hits: int, count: int) -> Score:
    """The share of ``hits`` in a positive ``count`` with its Wilson interval."""
    return _score(where, metric, hits / count, *wilson_interval(hits, count), count)


def at(stage: str, split: str, round_: int | None = None, member: str | None = None) -> Score:
    """Where a score belongs, for the functions that fill in what was measured."""
    return Score(stage, round_, member, split, "", 0.0, None, None, 0)


def mcnemar_p(first_only: int, second_only: int) -> float:
    """Two-sided exact p-value (McNemar 1947) that two members are equally good.

    Args:
        first_only: photos that only the first member gets right.
        second_only: photos that only the second member gets right.
    """
    trials = first_only + second_only
    if trials == 0:
        return 1.0
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    wins = np.arange(min(first_only, second_only) + 1)
    log_terms = log_factorial[trials] - log_factorial[wins] - log_factorial[trials - wins] - trials * np.log(2)
    return min(1.0, float(2 * np.exp(log_terms).sum()))


def paired_scores(where: Score, first: Flags, second: Flags, seed: int, resamples: int) -> list[Score]:
    """``top1_difference``, first minus second, with a paired bootstrap interval, and ``mcnemar_p``.

    Resampling photos is resampling the counts of "only the first right", "only the second right" and "the same".

    Args:
        where: stage, round, member and split of the scores.
        first: (n,) which photos the first member gets right.
        second: (n,) the same of the second, on the same photos in the same order.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    count = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    draws = np.random.Generator(np.random.PCG64(seed))
    shares = np.array([only_first, only_second, count - only_first - only_second]) / count
    drawn = draws.multinomial(count, shares, size=resamples)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / count, [0.025, 0.975])
    difference = (only_first - only_second) / count
    return [
        _score(where, "top1_difference", difference, float(low), float(high), count),
        _score(where, "mcnemar_p", mcnemar_p(only_first, only_second), None, None, only_first + only_second),
    ]


def purity(clusters: Labels, labels: Labels) -> float:
    """Share of photos that are of their cluster's most frequent label (Manning et al. 2008, chapter 16)."""
    pairs, counts = np.unique(np.stack([clusters, labels]), axis=1, return_counts=True)
    starts = np.flatnonzero(np.diff(pairs[0], prepend=pairs[0][0] - 1))
    return float(np.maximum.reduceat(counts, starts).sum() / len(clusters))


def cluster_scores(where: Score, clusters: Labels, labels: Labels) -> list[Score]:
    """``purity_overall`` and, where there are in-class photos, ``purity_in_class`` of clustered photos."""
    scores = []
    for metric, rows in (("purity_in_class", labels != FOREIGN), ("purity_overall", np.ones(len(labels), bool))):
        if rows.any():
            value = purity(clusters[rows], labels[rows])
            scores.append(_score(where, metric, value, None, None, int(rows.sum())))
    return scores


def filter_scores(where: Score, clusters: Labels, labels: Labels, kept: Labels, foreign: Labels) -> list[Score]:
    """What filtering clusters did: purity and in-class share of what is kept, and how foreign the foreign ones are.

    Args:
        where: stage, round, member and split of the scores.
        clusters: (n,) each photo's cluster.
        labels: (n,) true class ids or :data:`FOREIGN`.
        kept: clusters kept as candidates of labeled classes.
        foreign: clusters marked as foreign.
    """
    in_class = labels != FOREIGN
    in_kept, in_foreign = np.isin(clusters, kept), np.isin(clusters, foreign)
    scores = cluster_scores(where, clusters[in_kept], labels[in_kept])
    shares = {
        "in_class_share": in_class[in_kept],
        "in_class_recall": in_kept[in_class],
        "foreign_precision": ~in_class[in_foreign],
        "foreign_recall": in_foreign[~in_class],
    }
    return scores + [
        proportion(where, name, int(flags.sum()), len(flags)) for name, flags in shares.items() if len(flags)
    ]


def auroc(scores: npt.NDArray[np.floating], positive: Flags) -> float:
    """Probability that a positive photo scores higher than a negative one, ties counting half.

    Raises:
        ValueError: if there is no positive or no negative photo.
    """
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        raise ValueError("AUROC needs at least one positive and one negative photo")
    ranks = pl.Series(scores).rank("average").to_numpy()
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def auroc_interval(area: float, ones: int, zeros: int) -> tuple[float, float]:
    """The 95 % interval of an AUROC of ``ones`` positive and ``zeros`` negative photos (Hanley and McNeil 1982)."""
    both_ones, both_zeros = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (ones - 1) * (both_ones - area**2) + (zeros - 1) * (both_zeros - area**2)
    half = _NORMAL_95 * float(np.sqrt(max(spread, 0.0) / (ones * zeros)))
    return max(0.0, area - half), min(1.0, area + half)


def selection_scores(where: Score, pseudo_labels: pl.DataFrame, labels: Labels) -> list[Score]:
    """How good the selection of unlabeled photos is; a share of nothing is left out.

    Args:
        where: stage, round, member and split of the scores.
        pseudo_labels: n rows of such a table.
        labels: (n,) their true class ids or :data:`FOREIGN`.
    """
    in_class = labels != FOREIGN
    selected = pseudo_labels["selected"].to_numpy()
    right = pseudo_labels["class_id"].to_numpy() == labels
    shares = {
        "precision": right[selected],
        "recall": (selected & right)[in_class],
        "foreign_share": ~in_class[selected],
        "label_accuracy": right[selected & in_class],
    }
    scores = [proportion(where, name, int(flags.sum()), len(flags)) for name, flags in shares.items() if len(flags)]
    ones, zeros = int(in_class.sum()), int((~in_class).sum())
    for column in ("in_class_score", "confidence"):
        if ones and zeros:
            area = auroc(pseudo_labels[column].to_numpy(), in_class)
            scores.append(_score(where, f"auroc_{column}", area, *auroc_interval(area, ones, zeros), len(labels)))
    return scores


def stratified_folds(labels: Labels, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Assign photos to folds so that each class, and the whole, is spread as evenly as it can be.

    Args:
        labels: (n,) class ids.
        folds: how many.
        seed: of the order within each class.

    Returns:
        (n,) fold of each photo, 0 … folds − 1.
    """
    draws = np.random.Generator(np.random.PCG64(seed))
    order = np.lexsort((draws.random(len(labels)), labels))
    assigned = np.empty(len(labels), dtype=np.int64)
    assigned[order] = np.arange(len(labels)) % folds
    return assigned


def confusion_table(labels: Labels, predicted: Labels) -> pl.DataFrame:
    """How often each class was predicted as which, the diagonal included, as rows of a ``confusion`` table."""
    frame = pl.DataFrame({"class_id": labels, "predicted": predicted})
    return frame.group_by("class_id", "predicted").agg(pl.len().alias("count")).sort("class_id", "predicted")

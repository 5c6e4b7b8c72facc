"""Guided selection: which unlabeled photos get pseudo-labels, and how much each counts.

Both views of the evidence must name the same class; a score against foreign photos and quotas per class then decide
which of these photos are taken.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from fieldmark.clustering import Floats, Integers
from fieldmark.evidence import Booleans, Evidence


class SelectionError(ValueError):
    """Nothing can be selected, or the rules contradict themselves."""


@dataclass(frozen=True)
class SelectionRules:
    """What a photo must satisfy to be selected; the names are the keys of the config's section ``select``."""

    min_confidence: float  # guide's probability of the class, given that the photo is of a labeled class
    min_in_class_score: float | None  # fixed threshold; this or selected_share, the other is None
    selected_share: float | None  # of the unlabeled photos, the best-scored ones
    max_per_class_ratio: float  # a class may have this multiple of its share of the selection
    uniform_weight: float  # 0: a class's share is its share of the labeled photos; 1: all classes' shares are equal

    def __post_init__(self) -> None:
        """Check that there is one threshold.

        Raises:
            SelectionError: if both or none of the two thresholds are given.
        """
        if (self.min_in_class_score is None) == (self.selected_share is None):
            raise SelectionError(
                "select.min_in_class_score and select.selected_share: expected a number for one of them and null for "
                f"the other, found {self.min_in_class_score} and {self.selected_share}"
            )


def class_quotas(labeled_counts: Integers, total: int, ratio: float, uniform_weight: float) -> Integers:
    """Return how many of ``total`` selected photos each class may have, at least one.

    A class's share is its share of the labeled photos, mixed with the equal share 1 / c by ``uniform_weight``; the
    quota is ``ratio`` times that share of the total, rounded up.
    """
    share = (1 - uniform_weight) * labeled_counts / labeled_counts.sum() + uniform_weight / len(labeled_counts)
    # The small number keeps a product such as 3.0000000000000004 from counting as 4.
    quota: Integers = np.maximum(np.ceil(ratio * share * total - 1e-9), 1).astype(np.int64)
    return quota


def loss_weights(evidence: Evidence, selected: Booleans) -> Floats:
    """Weigh the selected photos in fine-tuning: fully where both views are sure, less towards the threshold.

    A photo's weight is the guide's confidence in its class times its in-class score relative to the median of the
    selected, at most 1. So a wide selection can hold the harder photos, which teach most, without the foreign ones
    among them having the same say (the idea of SoftMatch, Chen et al. 2023, with a weight that needs no scale).

    Args:
        evidence: for n unlabeled photos.
        selected: (n,) which are taken; at least one.

    Returns:
        (n,) between 0 and 1; 0 for photos that are not selected.
    """
    score = evidence.in_class_score
    middle = np.median(score[selected])
    trust = np.minimum(score / middle, 1) if middle > 0 else np.ones_like(score)
    return np.where(selected, evidence.confidence * trust, 0).astype(np.float32)


def select_photos(evidence: Evidence, labeled_counts: Integers, rules: SelectionRules) -> Booleans:
    """Choose the photos on which both views agree, the best-scored first, within the quotas of the classes.

    With ``selected_share`` = s exactly s times n photos are chosen (rounded), fewer where agreement and quotas do not
    leave as many. With ``min_in_class_score`` the quotas relate to the number of photos that reach it.

    Args:
        evidence: for n unlabeled photos.
        labeled_counts: (c,) labeled photos of each class.
        rules: thresholds and quotas.

    Returns:
        (n,) whether the photo is selected.

    Raises:
        SelectionError: if no photo is.
    """
    score = evidence.in_class_score
    eligible = evidence.possible & evidence.agreed & (evidence.confidence >= rules.min_confidence)
    if rules.min_in_class_score is not None:
        eligible &= score >= rules.min_in_class_score
        total = int(eligible.sum())
    else:
        total = min(int(eligible.sum()), round((rules.selected_share or 0) * len(score)))
    quota = class_quotas(labeled_counts, total, rules.max_per_class_ratio, rules.uniform_weight)
    # Best score first; photos of equal score stay in the order of their ids.
    ranked = np.flatnonzero(eligible)
    ranked = ranked[np.argsort(-score[ranked], kind="stable")]
    rank = pl.DataFrame({"class": evidence.position[ranked]}).select(pl.int_range(pl.len()).over("class")).to_series()
    chosen = ranked[rank.to_numpy() < quota[evidence.position[ranked]]][:total]
    if not len(chosen):
        raise SelectionError(
            f"no unlabeled photo of {len(score)} is selected: guide and neighbours agree on "
            f"{int(evidence.agreed.sum())}, {int(eligible.sum())} of them pass the thresholds; lower "
            "select.min_confidence or select.min_in_class_score, raise select.selected_share, "
            "or check that the guide has learned anything"
        )
    selected = np.zeros(len(score), dtype=np.bool_)
    selected[chosen] = True
    return selected

"""Which weights of the ensemble are submitted. Apart from the search itself, so that a report needs no optimizer."""

import math

import polars as pl

METHODS = ("uniform", "greedy", "evolutionary")
AUTO = "auto"


def chosen_method(method: str, scores: pl.DataFrame) -> str:
    """The method whose weights make the submission.

    Args:
        method: one of :data:`METHODS`, or ``auto``: on the half of the validation photos that it was not fitted to, the
            simplest within one standard error of the best (the rule of Breiman et al. 1984 for pruning trees). One
            photo more of a few hundred is no reason to trust weights that a search found. The error is that of
            Agresti and Coull (1998), as the usual one vanishes where hardly any photo is named wrongly.
        scores: the table of scores that ``fit_ensemble`` writes.
    """
    if method != AUTO:
        return method
    held_out = scores.filter(pl.col("split") == "val_report")
    value = dict(held_out.select("member", "value").iter_rows())
    best, photos = max(value[name] for name in METHODS), held_out["count"][0]
    share = (best * photos + 2) / (photos + 4)
    good_enough = best - math.sqrt(share * (1 - share) / (photos + 4))
    return next(name for name in METHODS if value[name] >= good_enough)

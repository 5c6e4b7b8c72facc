"""Which weights of the ensemble are submitted. Apart from the search itself, so that a report needs no optimizer."""

import polars as pl

METHODS = ("uniform", "greedy", "evolutionary")
AUTO = "auto"


def chosen_method(method: str, scores: pl.DataFrame) -> str:
    """The method whose weights make the submission.

    Args:
        method: one of :data:`METHODS`, or ``auto``: the one that is best on the half of the validation photos that it
            was not fitted to; of equals the simpler. A few hundred photos are soon learned by heart by a search.
        scores: the table of scores that ``fit_ensemble`` writes.
    """
    if method != AUTO:
        return method
    held_out = scores.filter(pl.col("split") == "val_report")
    value = dict(held_out.select("member", "value").iter_rows())
    return max(METHODS, key=lambda name: value[name])

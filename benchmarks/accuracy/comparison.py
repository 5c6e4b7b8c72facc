"""Statistics over seeds: means, paired differences, and the share of the gap to the oracle that is closed.

Intervals are of a bootstrap that draws seeds and test photos, each with replacement, so they hold the spread of both;
with three seeds the spread of seeds is itself known only roughly, and with one it is not in the interval at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

Hits = npt.NDArray[np.float64]  # (seeds, photos), 1 where the first class is right
RESAMPLES = 2000
_SEED = 1


def interval(values: Hits, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (seeds, photos) values over seeds and photos."""
    rng = np.random.default_rng(_SEED)
    seeds, photos = values.shape
    means = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(photos, size=photos)].mean() for _ in range(resamples)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Measured:
    """One method over its seeds.

    Attributes:
        method: as in the table of accuracies.
        member: model and recipe, or what votes.
        steps: optimizer steps that lead to it, where that can be told.
        seeds: their numbers.
        hits: (seeds, photos) whether each test photo is right.
        macro: (seeds,) macro accuracy.
        tail: (seeds,) macro accuracy of the rarest third of the classes.
    """

    method: str
    member: str
    steps: int | None
    seeds: tuple[int, ...]
    hits: Hits
    macro: npt.NDArray[np.float64]
    tail: npt.NDArray[np.float64]

    @property
    def top1(self) -> float:
        """Mean over seeds and photos."""
        return float(self.hits.mean())

    def of_seeds(self, seeds: tuple[int, ...]) -> Hits:
        """(seeds, photos) of some of its seeds, in their order."""
        return self.hits[[self.seeds.index(seed) for seed in seeds]]


def read_accuracies(folder: Path) -> dict[tuple[str, str], Measured]:
    """All methods of a data set, from ``seed1/accuracy.parquet`` and so on.

    Raises:
        ValueError: if two seeds were not measured on as many test photos.
    """
    by_seed = {
        int(path.parent.name.removeprefix("seed")): pl.read_parquet(path)
        for path in sorted(folder.glob("seed*/accuracy.parquet"))
    }
    frame = pl.concat([own.with_columns(pl.lit(seed).alias("seed")) for seed, own in by_seed.items()])
    if frame["hits"].list.len().n_unique() != 1:
        raise ValueError(f"{folder}: expected the same test photos for every seed; remove the tables of older runs")
    found = {}
    for (method, member), own in frame.sort("seed").group_by(["method", "member"], maintain_order=True):
        found[str(method), str(member)] = Measured(
            str(method),
            str(member),
            own["steps"][0],
            tuple(own["seed"]),
            np.array(own["hits"].to_list(), dtype=np.float64),
            own["macro"].to_numpy(),
            own["tail"].to_numpy(),
        )
    return found


@dataclass(frozen=True)
class Difference:
    """First minus second on the same seeds and photos, or another figure of both, as shares, with its interval."""

    value: float
    low: float
    high: float
    seeds: int


def difference(first: Measured, second: Measured) -> Difference | None:
    """The paired difference over the seeds that both have; None if they share none."""
    common = tuple(seed for seed in first.seeds if seed in second.seeds)
    if not common:
        return None
    values = first.of_seeds(common) - second.of_seeds(common)
    return Difference(float(values.mean()), *interval(values), len(common))


def closed_gap(ours: Measured, supervised: Measured, oracle: Measured) -> Difference | None:
    """Share of the way from a supervised model to an oracle, over the seeds that all three have.

    Each draw of the bootstrap takes the same seeds and photos of all three. Where the gap is small against its own
    spread, so is what the share can tell: its interval is wide, and None stands for no gap at all.
    """
    common = tuple(seed for seed in ours.seeds if seed in supervised.seeds and seed in oracle.seeds)
    if not common:
        return None
    three = np.stack([one.of_seeds(common) for one in (ours, supervised, oracle)])
    own, low, high = three.mean(axis=(1, 2))
    if high <= low:
        return None
    rng = np.random.default_rng(_SEED)
    _, seeds, photos = three.shape
    shares = []
    for _ in range(RESAMPLES):
        drawn = three[:, rng.integers(seeds, size=seeds)][:, :, rng.integers(photos, size=photos)].mean(axis=(1, 2))
        gap = drawn[2] - drawn[1]
        # Of a draw without a gap, ours is infinitely far beyond it, or behind.
        shares.append((drawn[0] - drawn[1]) / gap if gap > 0 else np.copysign(np.inf, drawn[0] - drawn[1]))
    # The nearest draw, not a mean of two, which could be infinite.
    interval_low, interval_high = np.quantile(shares, [0.025, 0.975], method="nearest")
    return Difference(float((own - low) / (high - low)), float(interval_low), float(interval_high), len(common))


def best(measured: Mapping[tuple[str, str], Measured], methods: tuple[str, ...]) -> Measured | None:
    """The method with the highest mean among some families; of equal ones the first."""
    own = [one for one in measured.values() if one.method in methods]
    return max(own, key=lambda one: one.top1, default=None)

"""Which photos form a batch: pure functions of the seed and the step, so that resuming needs no sampler state."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Sampler(Protocol):
    """Anything that names the photos of a batch."""

    def positions(self, start: int, count: int) -> np.ndarray:
        """Indices of the photos at places ``start`` … ``start + count − 1`` of an endless sequence."""
        ...


def _permutation(length: int, *key: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key))).permutation(length)


class EpochSampler:
    """Every photo once per epoch, in a new random order each time."""

    def __init__(self, members: np.ndarray, seed: int) -> None:
        """Draw from ``members``, indices of photos; at least one."""
        if len(members) == 0:
            raise ValueError("a sampler needs at least one photo")
        self._members, self._seed = np.asarray(members, dtype=np.int64), seed
        self._epoch, self._order = -1, self._members

    def positions(self, start: int, count: int) -> np.ndarray:
        """Indices of the photos at places ``start`` … ``start + count − 1``."""
        chosen = np.empty(count, dtype=np.int64)
        for offset in range(count):
            epoch, place = divmod(start + offset, len(self._members))
            if epoch != self._epoch:
                self._epoch, self._order = epoch, _permutation(len(self._members), self._seed, epoch)
            chosen[offset] = self._members[self._order[place]]
        return chosen


class BalancedSampler:
    """Every group (class, cluster) equally often, and inside a group every photo equally often.

    Groups follow one another in a random order drawn anew each time all had their turn; a group's own photos
    likewise (class-aware sampling, Shen et al. 2016; DeepCluster's sampler uniform over clusters).
    """

    def __init__(self, members: np.ndarray, groups: np.ndarray, seed: int) -> None:
        """Draw from ``members``, indices of photos; ``groups`` holds the group of each."""
        if len(members) == 0:
            raise ValueError("a sampler needs at least one photo")
        names = np.unique(groups)
        self._photos = [np.asarray(members)[groups == name].astype(np.int64) for name in names]
        self._groups = EpochSampler(np.arange(len(names)), seed)
        self._inside = [EpochSampler(photos, seed + 1 + number) for number, photos in enumerate(self._photos)]

    def positions(self, start: int, count: int) -> np.ndarray:
        """Indices of the photos at places ``start`` … ``start + count − 1``."""
        groups = self._groups.positions(start, count)
        turns = np.arange(start, start + count) // len(self._photos)
        return np.array([self._inside[g].positions(int(t), 1)[0] for g, t in zip(groups, turns, strict=True)])


class MixedSampler:
    """Fixed shares of each batch from several samplers, as in training on labels beside pseudo-labels."""

    def __init__(self, parts: Sequence[tuple[Sampler, float]], batch_size: int) -> None:
        """Split ``batch_size`` in proportion to the shares given, at least one photo to each part."""
        total = sum(share for _, share in parts)
        edges = np.round(np.cumsum([share / total for _, share in parts]) * batch_size).astype(int)
        self._counts = np.diff(edges, prepend=0)
        if (self._counts < 1).any():
            raise ValueError(f"batch_size: {batch_size} is too small for parts of {[share for _, share in parts]}")
        self._samplers = [sampler for sampler, _ in parts]
        self._batch_size = batch_size

    def positions(self, start: int, count: int) -> np.ndarray:
        """Indices of the photos of the batch that begins at ``start``; whole batches only."""
        if start % self._batch_size or count != self._batch_size:
            raise ValueError(f"expected whole batches of {self._batch_size}, got {count} from {start}")
        step = start // self._batch_size
        drawn = [
            sampler.positions(step * int(size), int(size))
            for sampler, size in zip(self._samplers, self._counts, strict=True)
        ]
        return np.concatenate(drawn)

"""Samplers: what they promise about shares, and that a slice never depends on how the sequence was asked for."""

import itertools
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.sampling import BalancedSampler, EpochSampler, MixedSampler, Sampler

MEMBERS = np.array([3, 8, 20, 21, 40, 41, 42])
GROUPS = np.array([0, 0, 5, 5, 5, 5, 9])


def epoch(seed: int = 1) -> Sampler:
    return EpochSampler(MEMBERS, seed)


def balanced(seed: int = 1) -> Sampler:
    return BalancedSampler(MEMBERS, GROUPS, seed)


def test_every_photo_comes_once_per_epoch_in_a_new_order() -> None:
    drawn = epoch().positions(0, 7 * 20).reshape(20, 7)
    assert all(sorted(order) == MEMBERS.tolist() for order in drawn)
    assert len({tuple(order) for order in drawn}) > 15


def test_groups_come_equally_often_and_photos_of_a_group_equally_often() -> None:
    group_of = dict(zip(MEMBERS.tolist(), GROUPS.tolist(), strict=True))
    drawn = balanced().positions(0, 3 * 40).tolist()
    for first in range(0, len(drawn), 3):
        assert sorted(group_of[photo] for photo in drawn[first : first + 3]) == [0, 5, 9]
    counts = Counter(drawn)
    assert [counts[photo] for photo in MEMBERS.tolist()] == [20, 20, 10, 10, 10, 10, 40]


@pytest.mark.parametrize("make", [epoch, balanced])
@given(cuts=st.lists(st.integers(0, 60), min_size=1, max_size=6), shuffle=st.randoms(use_true_random=False))
def test_any_slicing_in_any_order_gives_the_same_sequence(
    make: Callable[[], Sampler], cuts: list[int], shuffle: random.Random
) -> None:
    whole = make().positions(0, 60)
    edges = sorted({0, 60, *cuts})
    spans = list(itertools.pairwise(edges))
    shuffle.shuffle(spans)
    sampler = make()
    for first, last in spans:
        assert sampler.positions(first, last - first).tolist() == whole[first:last].tolist()


@pytest.mark.parametrize("make", [epoch, balanced])
def test_the_order_depends_on_the_seed_alone(make: Callable[[int], Sampler]) -> None:
    assert make(4).positions(5, 30).tolist() == make(4).positions(5, 30).tolist()
    assert make(4).positions(5, 30).tolist() != make(5).positions(5, 30).tolist()


def test_mixed_batches_hold_the_shares_and_are_a_function_of_the_start() -> None:
    parts = [(EpochSampler(np.arange(0, 10), 1), 0.5), (EpochSampler(np.arange(10, 100), 2), 0.3), (balanced(), 0.2)]
    sampler = MixedSampler(parts, 20)
    batches = [sampler.positions(step * 20, 20) for step in range(9)]
    for batch in batches:
        assert len(batch) == 20
        assert (batch[:10] < 10).all() and (batch[10:16] >= 10).all() and np.isin(batch[16:], MEMBERS).all()
    assert Counter(np.concatenate([batch[:10] for batch in batches]).tolist()) == dict.fromkeys(range(10), 9)
    again = MixedSampler(parts, 20)
    for step in (7, 0, 3):
        assert again.positions(step * 20, 20).tolist() == batches[step].tolist()


@given(
    shares=st.lists(st.floats(0.05, 3), min_size=1, max_size=4),
    batch_size=st.integers(1, 64),
)
def test_mixed_counts_are_the_shares_to_within_one_photo_or_refused(shares: list[float], batch_size: int) -> None:
    parts = [(EpochSampler(np.array([number]), 0), share) for number, share in enumerate(shares)]
    try:
        drawn = MixedSampler(parts, batch_size).positions(0, batch_size)
    except ValueError as error:
        assert "too small" in str(error)
        assert min(shares) / sum(shares) * batch_size < 2
        return
    counts = np.bincount(drawn, minlength=len(shares))
    assert counts.sum() == batch_size and counts.min() >= 1
    assert np.abs(counts - np.array(shares) / sum(shares) * batch_size).max() <= 1 + 1e-9


def test_a_batch_too_small_for_its_parts_is_refused_with_key_and_shares() -> None:
    with pytest.raises(ValueError, match=r"batch_size: 2 is too small for parts of \[0\.9, 0\.1\]"):
        MixedSampler([(epoch(), 0.9), (balanced(), 0.1)], 2)


@pytest.mark.parametrize(("start", "count"), [(3, 4), (0, 3), (4, 8)])
def test_mixed_batches_cannot_be_cut(start: int, count: int) -> None:
    with pytest.raises(ValueError, match="whole batches of 4"):
        MixedSampler([(epoch(), 1.0)], 4).positions(start, count)


def test_samplers_need_a_photo() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="at least one photo"):
        EpochSampler(nothing, 0)
    with pytest.raises(ValueError, match="at least one photo"):
        BalancedSampler(nothing, nothing, 0)

"""What keeping the best k classes of each photo costs and saves: ``python -m benchmarks.topk_loss``.

Members' probabilities are drawn: each photo's true class and its look-alikes stand out, members agree in part, and
accuracy is near what iNat 2021 saw. The mean of the members' top-k lists, as the workflow computes it, is compared with
the mean of all their probabilities.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from fieldmark.ensemble import combine
from fieldmark.predictions import Floats, Ints, TopLists, top_classes

LOOKALIKES = 8
BLOCK = 250


@dataclass
class Tally:
    """Sums over photos: right by the lists and by dense probabilities, same first class, same first five."""

    photos: int = 0
    first: int = 0
    dense_first: int = 0
    five: int = 0
    dense_five: int = 0
    same_first: int = 0
    same_five: int = 0
    cut: float = 0.0


def draw_members(truth: Ints, classes: int, members: int, draws: np.random.Generator) -> list[Floats]:
    """Dense probabilities (n, C) of each member."""
    rows = np.arange(len(truth))[:, None]
    common = draws.normal(0, 1.0, (len(truth), classes)).astype(np.float32)
    group = (truth[:, None] // LOOKALIKES) * LOOKALIKES + np.arange(LOOKALIKES)
    common[rows, np.minimum(group, classes - 1)] += 5.0
    common[rows[:, 0], truth] += draws.gamma(4.0, 1.2, len(truth)).astype(np.float32)
    found = []
    for _ in range(members):
        logits = common + draws.normal(0, 1.2, common.shape).astype(np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits, dtype=np.float32)
        found.append(shares / shares.sum(axis=1, keepdims=True))
    return found


def compare(dense: Floats, lists: Ints, truth: Ints, tally: Tally) -> None:
    """Add a block of photos: the dense mean (n, C), and the first classes of the mean of lists (n, 5)."""
    best, _ = top_classes(dense, 5)
    tally.photos += len(truth)
    tally.first += int((lists[:, 0] == truth).sum())
    tally.dense_first += int((best[:, 0] == truth).sum())
    tally.five += int((lists == truth[:, None]).any(axis=1).sum())
    tally.dense_five += int((best == truth[:, None]).any(axis=1).sum())
    tally.same_first += int((lists[:, 0] == best[:, 0]).sum())
    tally.same_five += int((np.sort(lists, axis=1) == np.sort(best, axis=1)).all(axis=1).sum())


def measure(photos: int, classes: int, members: int, sizes: list[int], seed: int) -> dict[int, Tally]:
    """Tallies by k."""
    draws = np.random.default_rng(seed)
    tallies = {k: Tally() for k in sizes}
    for first in range(0, photos, BLOCK):
        count = min(BLOCK, photos - first)
        truth = draws.integers(0, classes, count).astype(np.int32)
        dense = draw_members(truth, classes, members, draws)
        mean = np.mean(dense, axis=0)
        names = [f"{number:07d}" for number in range(first, first + count)]
        for k, tally in tallies.items():
            lists = [TopLists(names, *top_classes(one, k)) for one in dense]
            _, class_ids, _ = combine(lists, np.full(members, 1 / members), classes)
            compare(mean, class_ids[:, :5], truth, tally)
            tally.cut += float(sum((1 - one.probabilities.sum(axis=1)).sum() for one in lists)) / members
    return tallies


def main() -> None:
    """Print a table: by k, memory against dense, probability cut off, accuracies and agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 20, 50, 100, 200])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tallies = measure(options.photos, options.classes, options.members, options.sizes, options.seed)
    print(f"{options.photos} photos, {options.classes} classes, mean of {options.members} members")
    print("| k | memory / dense | ten members, 500,000 photos | cut off | top-1 | top-5 | same first | same five |")
    print("| --- " * 8 + "|")
    for k, tally in tallies.items():
        ratio, size = 2 * k / options.classes, 10 * 500_000 * k * 8 / 1e9
        shares = [100 * value / tally.photos for value in (tally.cut, tally.first, tally.five)]
        same = [100 * value / tally.photos for value in (tally.same_first, tally.same_five)]
        print(f"| {k} | {ratio:.4f} | {size:.1f} GB |" + "".join(f" {value:.2f} % |" for value in [*shares, *same]))
    tally = next(iter(tallies.values()))
    first, five = 100 * tally.dense_first / tally.photos, 100 * tally.dense_five / tally.photos
    print(
        f"| dense | 1 | {10 * 500_000 * options.classes * 4 / 1e9:.0f} GB | 0.00 % | {first:.2f} % | {five:.2f} % | | |"
    )


if __name__ == "__main__":
    main()

"""The graph of most similar photos, and what spreads along it."""

import faiss
import numpy as np
import numpy.typing as npt

from fieldmark.clustering import Floats, Integers

# Up to here a search through all pairs takes a minute or two; beyond, an inverted file looks at a few per cent of them.
_EXACT_SEARCH = 100_000
_CELLS_SEARCHED = 24
# What a photo takes over from one as far away as this many steps is small (0.8^10 = 0.11), and three gave as much.
_STEPS = 10
# Bound the memory beside the table itself: 500,000 photos by 10,000 classes are 20 GB, not to be held twice.
_ROWS_AT_ONCE = 4096
_CLASSES_AT_ONCE = 64


def nearest_neighbours(points: Floats, neighbours: int) -> Integers:
    """Find the most similar other rows of each of n unit rows.

    Exact up to 100,000 rows; beyond, faiss's inverted file with a fixed seed, which misses few.

    Args:
        points: (n, d) unit rows.
        neighbours: how many to find, limited to n - 1.

    Returns:
        (n, neighbours) row numbers, the most similar first; -1 where the inverted file found no more.
    """
    count, dim = points.shape
    points = np.ascontiguousarray(points)
    index: faiss.Index = faiss.IndexFlatIP(dim)
    if count > _EXACT_SEARCH:
        index = faiss.IndexIVFFlat(index, dim, int(4 * np.sqrt(count)), faiss.METRIC_INNER_PRODUCT)
        index.train(points)
        index.nprobe = _CELLS_SEARCHED
    index.add(points)
    neighbours = min(neighbours, count - 1)
    found = index.search(points, neighbours + 1)[1]
    # A photo is its own nearest neighbour, unless several photos are equal: take it out wherever it stands.
    own = found == np.arange(count)[:, None]
    own[~own.any(axis=1), -1] = True
    others: Integers = found[~own].reshape(count, neighbours).astype(np.int64)
    return others


def propagate(
    probabilities: Floats,
    labels: Integers,
    neighbours: Integers,
    share: float,
    *,
    allowed: tuple[Integers, npt.NDArray[np.bool_]] | None = None,
    out: Floats | None = None,
) -> Floats:
    """Let class probabilities spread from photo to photo, so that look-alikes are judged together.

    At each step a photo's probabilities become the mean of its neighbours', as far as ``share`` goes, and its own
    first ones for the rest; labeled photos stay certain. Label propagation as in Zhou et al. (2004) and, on learned
    features, Iscen et al. (CVPR 2019), but over directed neighbours of equal weight, which did no worse here than
    weights by similarity, and better than symmetric ones.

    Args:
        probabilities: (n, c) of the labeled classes; a row sums to at most 1, the rest being foreign.
        labels: (n,) class of the labeled photos, as positions 0 to c - 1, and -1 for the others.
        neighbours: (n, k) most similar photos of each; -1 for none.
        share: what a photo takes over from its neighbours, between 0 (nothing) and 1 (excluded).
        allowed: the (n,) number of each photo's group, and (groups, c) whether it allows the class; what photos give
            to other classes counts as zero. None: every class is allowed.
        out: (n, c) table that the result goes into, which may be ``probabilities`` itself; None: a new one.

    Returns:
        (n, c); rows sum to at most 1, those of labeled photos are certain.
    """
    labeled = np.flatnonzero(labels >= 0)
    result = np.empty_like(probabilities) if out is None else out
    for start in range(0, probabilities.shape[1], _CLASSES_AT_ONCE):
        block = slice(start, start + _CLASSES_AT_ONCE)
        first = probabilities[:, block].copy()
        if allowed is not None:
            groups, open_classes = allowed
            first *= open_classes[:, block][groups]
        first[labeled] = labels[labeled, None] == np.arange(start, start + first.shape[1])
        result[:, block] = _spread(first, labeled, neighbours, share)
    return result


def _spread(first: Floats, labeled: Integers, neighbours: Integers, share: float) -> Floats:
    """The steps of :func:`propagate` for some of the classes, which do not depend on one another."""
    number = np.maximum((neighbours >= 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
    spread = first
    for _ in range(_STEPS):
        following = np.empty_like(first)
        for start in range(0, len(first), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            total = np.zeros_like(first[rows])
            for near in neighbours[rows].T:
                total += spread[near] * (near >= 0)[:, None]
            following[rows] = share * total / number[rows] + (1 - share) * first[rows]
        following[labeled] = first[labeled]
        spread = following
    return spread

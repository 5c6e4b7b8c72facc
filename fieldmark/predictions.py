"""Predictions: top-k lists in tables, dense arrays in memory, and the name of the member that made them.

A table of predictions keeps the best k classes of each photo. What the cut at k loses is not forgotten: the rest
of the probability is spread evenly over the classes that are not listed, so a member's predictions always sum
to one and members that were cut at different k can be averaged.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from fieldmark.artifacts import ArtifactError, read_table

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TopLists:
    """One member's predictions: the best classes of each photo.

    Attributes:
        image_ids: the photos, sorted. Length n.
        class_ids: (n, k), best class first.
        probabilities: (n, k) of those classes.
    """

    image_ids: list[str]
    class_ids: Ints
    probabilities: Floats

    def rows_of(self, image_ids: Sequence[str], source: str) -> "TopLists":
        """The lists of just these photos, in this order.

        Raises:
            ArtifactError: if a photo has no prediction; ``source`` is named in the message.
        """
        row = {image_id: index for index, image_id in enumerate(self.image_ids)}
        missing = [image_id for image_id in image_ids if image_id not in row]
        if missing:
            raise ArtifactError(
                f"{source}: {len(missing)} of {len(image_ids)} expected photos have no prediction, "
                f"the first is {missing[0]!r}; delete its prediction tables and run the workflow again"
            )
        rows = np.array([row[image_id] for image_id in image_ids], dtype=np.int64)
        return TopLists(list(image_ids), self.class_ids[rows], self.probabilities[rows])


def top_classes(probabilities: Floats, k: int) -> tuple[Ints, Floats]:
    """The k most probable classes of each row, best first; of equal ones the smaller class id comes first.

    Exact and without a full sort: a non-negative float32 orders like its bits, so probability and class id
    fit into one integer key.

    Args:
        probabilities: (n, C), not negative.
        k: 1 to C; a larger k means C.

    Returns:
        class ids (n, k) and their probabilities (n, k).

    Raises:
        ValueError: if a value is negative or not finite, or k is not positive.
    """
    dense = np.ascontiguousarray(probabilities, dtype=np.float32) + np.float32(0)  # −0.0 becomes 0.0
    if k < 1:
        raise ValueError(f"k must be at least 1, but it is {k}")
    if not (np.isfinite(dense).all() and (dense >= 0).all()):
        raise ValueError("probabilities must be finite and not negative; check the model that made them")
    count, classes = dense.shape
    k = min(k, classes)
    mask = np.uint64(0xFFFFFFFF)
    keys = dense.view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= mask - np.arange(classes, dtype=np.uint64)
    if k < classes:
        keys = np.partition(keys, classes - k, axis=1)[:, classes - k :]
    keys = np.sort(keys, axis=1)[:, ::-1]
    class_ids = (mask - (keys & mask)).astype(np.int32)
    best = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return class_ids.reshape(count, k), best.reshape(count, k)


def to_table(image_ids: Sequence[str], probabilities: Floats, k: int) -> pl.DataFrame:
    """Dense probabilities as a ``predictions`` table of top-k lists.

    Args:
        image_ids: the photos. Length n.
        probabilities: (n, C) over the labeled classes, column = class id.
        k: length of the lists; at most C are kept.

    Raises:
        ValueError: if the lengths differ, a value is negative or not finite, or a row sums to more than one.
    """
    if probabilities.ndim != 2 or len(image_ids) != len(probabilities):
        raise ValueError(f"{len(image_ids)} photos need as many rows of probabilities, got {probabilities.shape}")
    totals = probabilities.sum(axis=1, dtype=np.float64)
    if (totals > 1.01).any():
        raise ValueError(
            f"probabilities of photo {image_ids[int(totals.argmax())]!r} sum to {totals.max():.3f}, "
            "expected at most 1; are these logits?"
        )
    return lists_to_table(image_ids, *top_classes(probabilities, k))


def lists_to_table(image_ids: Sequence[str], class_ids: Ints, probabilities: Floats) -> pl.DataFrame:
    """Top-k lists, class ids (n, k) and probabilities (n, k), as a ``predictions`` table."""
    k = class_ids.shape[1]

    def column(values: npt.NDArray[np.generic], kind: type[pl.DataType]) -> pl.Series:
        # An empty numpy array has lost its width for polars, so a shard without photos is built from a list.
        return pl.Series(values if len(values) else [], dtype=pl.Array(kind, k))

    return pl.DataFrame(
        {
            "image_id": pl.Series(list(image_ids), dtype=pl.String),
            "class_ids": column(class_ids, pl.Int32),
            "probabilities": column(probabilities, pl.Float32),
        }
    )


def unlisted_share(probabilities: Floats, classes: int) -> Floats:
    """What each class that is not listed gets of the probability that the cut at k took away.

    Args:
        probabilities: (n, k) listed probabilities.
        classes: C, the number of classes.

    Returns:
        (n,): (1 − listed sum) / (C − k), and 0 where nothing is cut.
    """
    count, k = probabilities.shape
    if k >= classes:
        return np.zeros(count, dtype=np.float32)
    rest = 1.0 - probabilities.sum(axis=1, dtype=np.float64)
    return (np.clip(rest, 0.0, 1.0) / (classes - k)).astype(np.float32)


def read_lists(sources: str | Path | Iterable[str | Path], classes: int) -> TopLists:
    """Read one member's predictions, all of its shards, sorted by photo.

    Raises:
        ArtifactError: if a table is missing or damaged, a photo is in two shards, or a class id is unknown.
    """
    paths = [sources] if isinstance(sources, str | Path) else list(sources)
    frame = read_table("predictions", paths)
    class_ids = frame["class_ids"].to_numpy()
    if class_ids.size and (class_ids.min() < 0 or class_ids.max() >= classes):
        raise ArtifactError(
            f"{paths[0]}: class ids must be 0 to {classes - 1}, as in the table of classes, "
            f"found {class_ids.min()} to {class_ids.max()}; was the data changed after the prediction?"
        )
    lists = TopLists(frame["image_id"].to_list(), class_ids, frame["probabilities"].to_numpy())
    for before, after in itertools.pairwise(lists.image_ids):
        if before == after:
            raise ArtifactError(f"{paths[0]} and its sibling shards: photo {after!r} is predicted twice")
    return lists


def member_of(path: str | Path) -> str:
    """The member that made a table of predictions: ``results/{run}/{model}/{recipe}/predictions/{shard}.parquet``.

    Example:
        >>> member_of("results/round1/lite0/layerwise/predictions/000.parquet")
        'round1/lite0/layerwise'

    Raises:
        ValueError: if the path is not of that form.
    """
    parts = Path(path).parts
    if len(parts) < 5 or parts[-2] != "predictions" or not re.fullmatch(r"round\d+|baseline", parts[-5]):
        raise ValueError(
            f"{path}: expected a path such as results/round0/MODEL/RECIPE/predictions/SHARD.parquet "
            "or results/baseline/MODEL/RECIPE/predictions/SHARD.parquet"
        )
    return "/".join(parts[-5:-2])


def by_member(paths: Iterable[str | Path]) -> dict[str, list[Path]]:
    """Group tables of predictions by the member that made them; members and their shards are sorted by name."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(Path(path) for path in paths):
        groups.setdefault(member_of(path), []).append(path)
    return dict(sorted(groups.items()))


def round_of(run: str) -> int | None:
    """The round's number in a run's or a folder's name: ``round2`` → 2, ``baseline`` → None.

    Raises:
        ValueError: if the name is neither.
    """
    if run == "baseline":
        return None
    match = re.fullmatch(r"round(\d+)", run)
    if match is None:
        raise ValueError(f"{run!r}: expected 'baseline' or 'round' and a number, such as 'round0'")
    return int(match[1])

"""Photos that are in training and, as they are or hardly changed, in val or test as well.

They make every figure too good. Copies of the same bytes are certain. Near duplicates, photos that were resized,
recompressed or touched up, are found by the Hamming distance of their 64-bit perceptual hashes (pHash, Zauner 2010).
"""

import logging
from typing import Literal

import faiss
import numpy as np
import polars as pl

logger = logging.getLogger(__name__)

Leaks = Literal["report", "drop", "drop_near"]
TRAINING = ("labeled", "unlabeled")
HELD_OUT = ("val", "test")
_AT_ONCE = 65_536  # hashes looked up in one call


def find_leaks(photos: pl.DataFrame, near_bits: int) -> pl.DataFrame:
    """Training photos that are also in val or test; their number and some examples go to the log.

    All pairs of hashes are compared, at about 200 million pairs a second on one core: a minute for 300,000 photos
    against 40,000.

    Args:
        photos: a "manifest" table.
        near_bits: bits of 64 in which two perceptual hashes may differ for near duplicates.

    Returns:
        Columns image_id, path, exact (whether the bytes are the same) and reason, ordered by image_id.
    """
    training = photos.filter(pl.col("split").is_in(TRAINING)).sort("image_id")
    held_out = photos.filter(pl.col("split").is_in(HELD_OUT)).sort("image_id")
    twins = held_out.select("sha256", "phash", twin="path", twin_split="split")
    exact = training.join(twins.unique("sha256", keep="first", maintain_order=True).drop("phash"), on="sha256")
    rest = training.join(exact, on="image_id", how="anti")
    near = _nearest(rest, twins, near_bits).join(
        twins.unique("phash", keep="first", maintain_order=True), left_on="near_hash", right_on="phash"
    )
    place = pl.format("{} in {}", "twin", "twin_split")
    found = pl.concat(
        [
            exact.select("image_id", "path", exact=True, reason=pl.format("the same bytes as {}", place)),
            near.select(
                "image_id",
                "path",
                exact=False,
                reason=pl.format("a near duplicate ({} of 64 bits of the perceptual hash differ) of {}", "bits", place),
            ),
        ]
    ).sort("image_id")
    for kind, part in found.group_by("exact", maintain_order=True):
        _report("the same bytes as" if kind[0] else "nearly the same picture as", part)
    return found


def _report(kind: str, leaked: pl.DataFrame) -> None:
    examples = "; ".join(f"{path} is {reason}" for path, reason in leaked.select("path", "reason").head(5).iter_rows())
    logger.warning("%d training photos are %s one in val or test: %s", leaked.height, kind, examples)


def _nearest(training: pl.DataFrame, held_out: pl.DataFrame, near_bits: int) -> pl.DataFrame:
    """The rows of ``training`` within ``near_bits`` of a hash in ``held_out``: with that hash, and the distance."""
    known, asked = (np.unique(part["phash"].to_numpy()) for part in (held_out, training))
    if not len(known) or not len(asked):
        return training.clear().with_columns(near_hash=pl.lit(0, pl.UInt64), bits=pl.lit(0, pl.Int32))
    index = faiss.IndexBinaryFlat(64)
    index.add(_bytes(known))
    distance, place = np.empty(len(asked), dtype=np.int32), np.empty(len(asked), dtype=np.int64)
    for start in range(0, len(asked), _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        found_distance, found_place = index.search(_bytes(asked[block]), 1)
        distance[block], place[block] = found_distance[:, 0], found_place[:, 0]
    close = pl.DataFrame({"phash": asked, "near_hash": known[place], "bits": distance}).filter(
        pl.col("bits") <= near_bits
    )
    return training.join(close, on="phash")


def _bytes(hashes: np.ndarray) -> np.ndarray:
    """(n,) uint64 to (n, 8) uint8; the order of the bytes does not matter to the distance."""
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(-1, 8)

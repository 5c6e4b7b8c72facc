"""The manifest: every usable photo of every split, checked by decoding it, with its size, hashes and labels."""

import hashlib
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
import polars as pl

from fieldmark.artifacts import read_table
from fieldmark.holdout import HoldOut, hold_out
from fieldmark.images import PhotoError, decode_resized, read_bytes
from fieldmark.leaks import Leaks, find_leaks
from fieldmark.readers.candidates import check_labeled
from fieldmark.stage import Progress
from fieldmark.tables import DataError

logger = logging.getLogger(__name__)

_HASH_SIDE = 64  # twice the side that the perceptual hash shrinks photos to
_LEAST_VAL = 2
_BLOCK = 4096  # photos given to the threads at once: a future for each of millions would fill the memory
_NO_BOX = pl.lit(None, dtype=pl.Float64)
_REJECTED = ["path", "reason", "split", pl.col("image_id").alias("candidate_id")]


class Inspection(NamedTuple):
    """What decoding tells about a photo: upright size in pixels, hash of its bytes, 64-bit perceptual hash."""

    width: int
    height: int
    sha256: str
    phash: int


class Manifest(NamedTuple):
    """The usable photos (a "manifest" table) and the others (a "rejected" table)."""

    photos: pl.DataFrame
    rejected: pl.DataFrame


def inspect_photo(path: str | Path, root: str | Path) -> Inspection:
    """Decode a photo to its last byte and measure it.

    The perceptual hash is pHash (Zauner 2010) of the upright photo, so a rotated copy with the matching EXIF
    orientation has the same one.

    Args:
        path: the photo.
        root: the data folder, which no link in the path may leave.

    Raises:
        PhotoError: if it cannot be used.
    """
    real, home = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([real, home]) != home:
        raise PhotoError(path, "a link that leaves the data folder")
    data = read_bytes(path)
    image, (width, height) = decode_resized(path, data, _HASH_SIDE, max_aspect=4.0)
    bits = np.packbits(imagehash.phash(image).hash.flatten()).tobytes()
    return Inspection(width, height, hashlib.sha256(data).hexdigest(), int.from_bytes(bits, "big"))


def build_manifest(
    candidates: pl.DataFrame,
    classes: pl.DataFrame,
    refused: pl.DataFrame,
    root: Path,
    max_rejected_share: float,
    leaks: Leaks,
    near_bits: int,
    workers: int,
    held_out: HoldOut | None = None,
) -> Manifest:
    """Open every candidate and keep those that can be used.

    Args:
        candidates: from :func:`fieldmark.readers.candidates.to_candidates`.
        classes: columns class_id and name.
        refused: columns path and reason, of files that the reader refused; they count as rejected, of no known split.
        root: the data folder.
        max_rejected_share: above this share of unusable photos the data set as a whole is taken for broken.
        leaks: what to do with labeled and unlabeled photos that are also in val or test: ``report`` logs them,
            ``drop`` also rejects those of the same bytes, ``drop_near`` the near duplicates too.
        near_bits: see :func:`fieldmark.leaks.find_leaks`.
        workers: decoding threads.
        held_out: how val photos are drawn from the usable labeled ones, if they are.

    Raises:
        DataError: if more than ``max_rejected_share`` are unusable, a class has no usable labeled photo left, or there
            are fewer than two usable val photos.
    """
    checked, broken = _inspect_all(candidates, root, workers)
    rejected = pl.concat([refused, broken], how="diagonal")
    _check_share(rejected, candidates.height + refused.height, max_rejected_share)
    photos = _fit_boxes(checked)
    if held_out is not None:
        photos = hold_out(photos, classes, held_out)
    leaked = find_leaks(photos, near_bits).filter(leaks == "drop_near" or pl.col("exact"))
    why = ""
    if leaks != "report" and not leaked.is_empty():
        labeled = photos.filter(pl.col("split") == "labeled").join(leaked, on="image_id", how="semi").height
        if labeled:
            why = f" ({labeled} were dropped as copies of photos of val or test, because data.leaks is {leaks})"
        dropped = photos.join(leaked.select("image_id", "reason"), on="image_id")
        photos = photos.join(leaked, on="image_id", how="anti")
        rejected = pl.concat([rejected, dropped.select(_REJECTED)])
    _warn_of_disputed(photos, classes)
    check_labeled(photos, classes, str(root), why)
    val = photos.filter(pl.col("split") == "val").height
    if val < _LEAST_VAL:
        raise DataError(
            f"{root}: {val} val photos are usable, expected at least {_LEAST_VAL}, half to fit votes on, half "
            "to judge them by; keep more of the labeled photos aside, or have them drawn with data.val_per_class"
        )
    return Manifest(photos.sort("image_id"), rejected.sort("path", "reason"))


def _inspect_all(candidates: pl.DataFrame, root: Path, workers: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The usable candidates with what decoding told, and the others as rows of a "rejected" table."""

    def outcome(path: str) -> Inspection | PhotoError:
        try:
            return inspect_photo(path, root)
        except PhotoError as error:
            return error

    outcomes: list[Inspection | PhotoError] = []
    paths = candidates["path"].to_list()
    progress = Progress("check photos", len(paths))
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), _BLOCK):
            for result in pool.map(outcome, paths[start : start + _BLOCK]):
                outcomes.append(result)
                progress.add(1)
    usable = pl.Series([isinstance(result, Inspection) for result in outcomes], dtype=pl.Boolean)
    measured = pl.DataFrame(
        [result for result in outcomes if isinstance(result, Inspection)],
        schema={"width": pl.Int32, "height": pl.Int32, "sha256": pl.String, "phash": pl.UInt64},
        orient="row",
    )
    reasons = [result.reason for result in outcomes if isinstance(result, PhotoError)]
    broken = candidates.filter(~usable).with_columns(pl.Series("reason", reasons, dtype=pl.String))
    return pl.concat([candidates.filter(usable), measured], how="horizontal"), broken.select(_REJECTED)


def _check_share(rejected: pl.DataFrame, total: int, max_rejected_share: float) -> None:
    if rejected.is_empty():
        return
    counts = Counter(rejected["reason"].to_list())
    summary = "; ".join(f"{count} × {reason}" for reason, count in counts.most_common(10))
    message = f"{rejected.height} of {total} photos cannot be used: {summary}; the first is {rejected['path'][0]!r}"
    if rejected.height > max_rejected_share * total:
        raise DataError(f"{message}. That is more than data.max_rejected_share, {max_rejected_share}; mend or raise it")
    logger.warning("%s", message)


def _warn_of_disputed(photos: pl.DataFrame, classes: pl.DataFrame) -> None:
    """Name a photo that is there twice, labeled as two classes: one of the labels is wrong."""
    known = photos.drop_nulls("class_id").join(classes.select("class_id", "name"), on="class_id").sort("path")
    disputed = known.filter(pl.col("class_id").n_unique().over("sha256") > 1)
    if not disputed.is_empty():
        first = disputed.filter(pl.col("sha256") == disputed["sha256"][0]).unique("class_id", maintain_order=True)
        told = " and ".join(f"{path} as {name!r}" for path, name in first.select("path", "name").head(2).iter_rows())
        logger.warning(
            "%d labeled photos are the same as another, to the byte, and of another class: %s; correct or remove one",
            disputed.height,
            told,
        )


def _fit_boxes(photos: pl.DataFrame) -> pl.DataFrame:
    """Cut boxes to their photo; one that lies outside it altogether is nulled."""
    left, right = (pl.col("box_x") + side for side in (0, pl.col("box_w")))
    top, bottom = (pl.col("box_y") + side for side in (0, pl.col("box_h")))
    left, right = (edge.clip(0, pl.col("width")) for edge in (left, right))
    top, bottom = (edge.clip(0, pl.col("height")) for edge in (top, bottom))
    inside = (right > left) & (bottom > top)
    cut = {"box_x": left, "box_y": top, "box_w": right - left, "box_h": bottom - top}
    fitted = photos.with_columns(
        pl.when(inside).then(value).otherwise(_NO_BOX).alias(name) for name, value in cut.items()
    )
    lost = fitted["box_x"].null_count() - photos["box_x"].null_count()
    if lost:
        logger.warning("%d boxes lie outside their photo and are not used", lost)
    return fitted


def read_manifest(path: str | Path) -> pl.DataFrame:
    """The manifest, ordered by image_id.

    Raises:
        fieldmark.artifacts.ArtifactError: if it is missing or damaged.
    """
    return read_table("manifest", path)


def shard_of(image_id: str, shards: int) -> int:
    """The shard, 0 … shards-1, of a photo: by a hash of its id, so that no other photo has a say in it."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") % shards

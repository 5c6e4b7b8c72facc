"""Boxes round what a photo is about: their geometry, the table of them, and how well they fit the true ones.

Boxes are rows x, y, width, height relative to the upright photo, x and y of the upper left corner, all in 0…1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.floating]

FULL = (0.0, 0.0, 1.0, 1.0)
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


def visible_windows(widths: Floats, heights: Floats, max_aspect: float = 2.0) -> Floats:
    """The part of each photo that decoding keeps: of very long ones the middle, see ``images.decode_resized``.

    Args:
        widths: (N,) widths of the full photos.
        heights: (N,) heights.
        max_aspect: the longer side is cropped to this many times the shorter one.

    Returns:
        (N, 4) boxes in the photos.
    """
    sides = np.stack([widths, heights], axis=1).astype(np.float64)
    extent = np.minimum(1.0, max_aspect * sides.min(axis=1, keepdims=True) / sides)
    return np.concatenate([(1 - extent) / 2, extent], axis=1)


def into_windows(boxes: Floats, windows: Floats) -> Floats:
    """Boxes of photos as boxes of their windows, cut to these; (N, 4) each. Width or height 0: nothing is visible."""
    low, high = ((edge - windows[:, :2]) / windows[:, 2:] for edge in (boxes[:, :2], boxes[:, :2] + boxes[:, 2:]))
    low, high = low.clip(0, 1), high.clip(0, 1)
    return np.concatenate([low, high - low], axis=1)


def out_of_windows(boxes: Floats, windows: Floats) -> Floats:
    """Boxes of windows as boxes of the photos that the windows lie in; (N, 4) each."""
    return np.concatenate([windows[:, :2] + boxes[:, :2] * windows[:, 2:], boxes[:, 2:] * windows[:, 2:]], axis=1)


def known_boxes(photos: pl.DataFrame) -> tuple[pl.DataFrame, Floats]:
    """The rows of a manifest that have a box, and their boxes, (N, 4)."""
    rows = photos.filter(pl.col("box_x").is_not_null())
    columns = [("box_x", "width"), ("box_y", "height"), ("box_w", "width"), ("box_h", "height")]
    parts = [rows[box].cast(pl.Float64).to_numpy() / rows[side].to_numpy() for box, side in columns]
    return rows, np.stack(parts, axis=1)


def box_table(image_ids: Sequence[str], boxes: Floats, scores: Floats, min_score: float) -> pl.DataFrame:
    """The rows of a ``boxes`` table; where nothing was found, the full photo with score 0.

    Args:
        image_ids: N photos.
        boxes: (N, 4) best box of each.
        scores: (N,) how sure it is, 0…1.
        min_score: below this nothing counts as found.
    """
    found = (scores >= min_score) & (scores > 0) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    kept = np.where(found[:, None], boxes.clip(0, 1), FULL)
    columns = dict(zip(("x", "y", "width", "height"), kept.T, strict=True))
    numbers = {**columns, "score": np.where(found, scores, 0.0)}
    return pl.DataFrame({"image_id": list(image_ids), **numbers}, schema_overrides={"image_id": pl.String}).cast(
        dict.fromkeys(numbers, pl.Float32)
    )


def paired_iou(boxes: Floats, truth: Floats) -> Floats:
    """(N,) intersection over union of each box with the true one of the same row; (N, 4) each."""
    low = np.maximum(boxes[:, :2], truth[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], truth[:, :2] + truth[:, 2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    union = boxes[:, 2:].prod(axis=1) + truth[:, 2:].prod(axis=1) - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1.0), 0.0)


def average_precision(scores: Floats, hits: npt.NDArray[np.bool_], count: int) -> float:
    """Area under the precision-recall curve, as COCO measures it: precision is read at recall 0, 0.01, …, 1.

    Args:
        scores: (D,) of the detections, of all photos together.
        hits: (D,) whether each fits a true box that no better one has taken.
        count: true boxes; at least one.
    """
    ranked = hits[np.argsort(-scores, kind="stable")]
    right = ranked.cumsum()
    precision = right / np.arange(1, len(ranked) + 1)
    # What a lower threshold on the score reaches counts at the smaller recalls too.
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    places = np.searchsorted(right / count, np.linspace(0, 1, 101), side="left")
    return float(envelope[places].mean())


def box_scores(boxes: Floats, scores: Floats, truth: Floats) -> Mapping[str, float]:
    """How well one box per photo fits the photo's true one.

    Other animals in the photo are not marked in the data, so only the best box of each photo is looked at.

    Args:
        boxes: (N, 4) of N ≥ 1 photos.
        scores: (N,) of the boxes; 0 where nothing was found.
        truth: (N, 4) true boxes.

    Returns:
        ``mean_iou``; ``ap50``, average precision where half of intersection over union is enough; ``ap``, its mean
        over the thresholds 0.5, 0.55, …, 0.95; ``found_share``, the photos where something was found.
    """
    iou, found = paired_iou(boxes, truth), scores > 0
    precisions = [average_precision(scores[found], iou[found] >= least, len(truth)) for least in IOU_THRESHOLDS]
    return {
        "mean_iou": float(iou.mean()),
        "ap50": precisions[0],
        "ap": float(np.mean(precisions)),
        "found_share": float(found.mean()),
    }

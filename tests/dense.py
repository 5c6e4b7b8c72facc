"""Lists of the best classes back as probabilities of all classes."""

import numpy as np
import polars as pl

from fieldmark.predictions import unlisted_share


def to_dense(frame: pl.DataFrame, classes: int) -> tuple[list[str], np.ndarray]:
    """A ``predictions`` table as image ids (n) and probabilities (n, classes), what was cut off spread evenly."""
    listed = frame["probabilities"].to_numpy()
    dense = np.zeros((frame.height, classes), dtype=np.float32) + unlisted_share(listed, classes)[:, None]
    np.put_along_axis(dense, frame["class_ids"].to_numpy().astype(np.int64), listed, axis=1)
    return frame["image_id"].to_list(), dense

"""Crops of the key regions of photos: what the second stream of a model looks at."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fieldmark.images import decode_upright, read_bytes

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class KeyRegions:
    """Where the key region of each photo lies.

    Attributes:
        boxes: (N, 4) left, top, width and height, as shares of the upright photo.
        margin: what is left around each, as a share of its longer side.
    """

    boxes: np.ndarray
    margin: float

    def rectangle(self, index: int, width: int, height: int) -> Rectangle:
        """Left, top, right and bottom in pixels: a square around the box and its margin, as far as the photo reaches.

        Views are squares of the shorter side, so an oblong cut would lose its ends. A square that would reach beyond an
        edge is moved inwards, and one that is longer than the photo ends with it.
        """
        left, top, across, down = (float(part) for part in self.boxes[index])
        wanted = max(max(across * width, down * height) * (1 + 2 * self.margin), 1.0)
        edges = []
        for middle, whole in ((left + across / 2, width), (top + down / 2, height)):
            length = min(wanted, whole)
            first = min(max(middle * whole - length / 2, 0.0), whole - length)
            edges.append((first, first + length))
        return edges[0][0], edges[1][0], edges[0][1], edges[1][1]

    def load(self, path: str, index: int, side: int, max_aspect: float = 2.0) -> np.ndarray:
        """Decode a key region, at as many pixels as a view of it needs and the file has.

        How far the decoder shrinks the photo is chosen by the size of the region, so that a small one is not enlarged
        from a thumbnail, and a large one is not decoded in full.

        Args:
            path: the photo.
            index: which region is its.
            side: shorter side of the result, pixels; smaller regions are enlarged.
            max_aspect: the longer side is at most ``max_aspect * side``, cropped in the centre beyond.

        Returns:
            uint8 array (3, H, W), C-contiguous, upright RGB.

        Raises:
            PhotoError: if the file cannot be read or decoded.
        """

        def shrink(width: int, height: int) -> float:
            return min(1.0, side / _shorter(self.rectangle(index, width, height)))

        image, full = decode_upright(path, read_bytes(path), shrink)
        region = self.rectangle(index, *full)
        enlarge = side / _shorter(region)
        target, box = [], []
        for first, last, have, whole in zip(region[:2], region[2:], image.size, full, strict=True):
            goal = min(int(max_aspect * side), max(side, round((last - first) * enlarge)))
            half = min(last - first, goal / enlarge) / 2
            middle = (first + last) / 2
            target.append(goal)
            # Rounding must not carry the box beyond the photo's edge.
            box.append((max((middle - half) / whole, 0.0) * have, min((middle + half) / whole, 1.0) * have))
        corners = (box[0][0], box[1][0], box[0][1], box[1][1])
        crop = image.resize((target[0], target[1]), Image.Resampling.BICUBIC, box=corners)
        return np.ascontiguousarray(np.asarray(crop).transpose(2, 0, 1))


def _shorter(rectangle: Rectangle) -> float:
    left, top, right, bottom = rectangle
    return min(right - left, bottom - top)

"""Photos for the page: small square JPEGs as data URLs, and rows of them."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import polars as pl
from PIL import Image

from fieldmark.images import load_photo

SIDE = 88
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """A thumbnail: its data URL, what it shows in words, and whether it is one of the labeled photos."""

    source: str
    alt: str
    labeled: bool


@dataclass(frozen=True)
class Strip:
    """A row of thumbnails with a heading and a line about it; ``kind`` colours the heading's mark."""

    heading: str
    note: str
    pictures: tuple[Picture, ...]
    kind: str = ""


class Album:
    """Thumbnails of the manifest's photos, each decoded once."""

    def __init__(self, manifest: pl.DataFrame, names: Mapping[int, str]) -> None:
        """Prepare an album.

        Args:
            manifest: the photos.
            names: what each class is called on the page.
        """
        self._manifest = manifest.select("image_id", "path", "split", "class_id")
        self._names = names
        self._sources: dict[str, str] = {}

    def pictures(self, image_ids: Iterable[str]) -> tuple[Picture, ...]:
        """The thumbnails of these photos, in this order.

        Raises:
            PhotoError: if a photo can no longer be read; it names the file.
        """
        wanted = pl.DataFrame({"image_id": list(image_ids)}, schema={"image_id": pl.String})
        rows = wanted.join(self._manifest, on="image_id", how="left", maintain_order="left")
        return tuple(self._picture(*row) for row in rows.iter_rows())

    def _picture(self, image_id: str, path: str, split: str, class_id: int | None) -> Picture:
        if image_id not in self._sources:
            self._sources[image_id] = _data_url(path)
        kind = {"val": "validation"}.get(split, split)
        # The class of validation photos is no secret of the page: it is what they are for.
        of = f" of {self._names[class_id]}" if class_id is not None else ""
        return Picture(self._sources[image_id], f"{kind} photo{of}, {image_id}", split == "labeled")


def _data_url(path: str) -> str:
    square = load_photo(path, SIDE, max_aspect=1.0)
    buffer = BytesIO()
    pixels = np.ascontiguousarray(square.transpose(1, 2, 0))
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def spread_out(items: list[str] | list[int], count: int) -> list:
    """``count`` items, evenly spaced from the first to the last; all of them where there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[row] for row in np.linspace(0, len(items) - 1, count).round().astype(int)]

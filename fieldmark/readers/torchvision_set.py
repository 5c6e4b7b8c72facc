"""A fully labeled torchvision data set, for an open-set split."""

import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Protocol, cast

from PIL import Image

from fieldmark.artifacts import write_atomically
from fieldmark.readers.listing import Listing, Row, make_listing
from fieldmark.tables import DataError

logger = logging.getLogger(__name__)

# Where torchvision's data sets keep their files and labels; it has no public name for them.
_FILE_ATTRIBUTES = ("samples", "_samples", "_image_files", "_images")
_LABEL_ATTRIBUTES = ("targets", "_labels")


class _DataSet(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


def read_torchvision(
    root: Path,
    dataset: str,
    photos: Path,
    parts: Sequence[Mapping[str, str | bool]] = ({},),
    download: bool = False,
) -> Listing:
    """List a torchvision data set, all its parts pooled and all its labels known.

    Args:
        root: torchvision's own ``root``, where the data set is unpacked.
        dataset: name of a class in ``torchvision.datasets``, such as ``Flowers102``.
        photos: where photos are written as PNG if the data set keeps no file for each.
        parts: keyword arguments of the class, one mapping per part, such as ``[{split: train}, {split: test}]``.
        download: whether torchvision may fetch what is missing.

    Raises:
        DataError: if there is no such data set, it is not in ``root``, or its items are not photo and class index.
    """
    # Slow to import, and only this format needs it.
    found = getattr(import_module("torchvision.datasets"), dataset, None)
    if not inspect.isclass(found):
        raise DataError(f"data.dataset: torchvision has no data set called {dataset!r}")
    kind = cast("Callable[..., _DataSet]", found)
    rows: list[Row] = []
    names: list[str] = []
    in_place: bool | None = None
    for position, part in enumerate(parts):
        options = dict(part)
        if "download" in inspect.signature(kind).parameters:
            options["download"] = download
        try:
            loaded = kind(str(root), **options)
        except (RuntimeError, OSError, TypeError, ValueError) as error:
            raise DataError(f"{root}: torchvision cannot load {dataset}{dict(part)}: {error}") from error
        if not names:
            names = [str(name) for name in getattr(loaded, "classes", None) or []]
            if len(set(names)) < len(names):  # two classes of one name would become one; their indices do not
                names = []
        listed = _listed(loaded, root)
        if in_place is not None and in_place != (listed is not None):
            raise DataError(f"data.parts: parts of {dataset} differ in whether their photos are files; use one part")
        in_place = listed is not None
        pairs = listed if listed is not None else _written(loaded, photos, position)
        rows += [{"file": file, "label": str(label)} for file, label in pairs]
    home = root if in_place else photos
    return make_listing(home, _named(rows, names, dataset), _classes(rows, names), [])


def _listed(loaded: _DataSet, root: Path) -> list[tuple[str, int]] | None:
    """(file relative to root, class index) of each photo where the data set keeps files, else None."""
    for attribute in _FILE_ATTRIBUTES:
        held = getattr(loaded, attribute, None)
        if not isinstance(held, list) or len(held) != len(loaded) or not held:
            continue
        if isinstance(held[0], tuple) and isinstance(held[0][0], str | Path):
            return [(os.path.relpath(item[0], root), int(item[1])) for item in held]
        labels = next((found for name in _LABEL_ATTRIBUTES if (found := getattr(loaded, name, None)) is not None), None)
        if isinstance(held[0], str | Path) and labels is not None:
            return [(os.path.relpath(file, root), int(label)) for file, label in zip(held, labels, strict=True)]
    index = getattr(loaded, "index", None)
    folders = getattr(loaded, "all_categories", None)
    if isinstance(index, list) and folders:  # INaturalist: (position of the folder, file name)
        home = os.path.relpath(str(getattr(loaded, "root", root)), root)
        return [(f"{home}/{folders[category]}/{name}", int(category)) for category, name in index]
    return None


def _written(loaded: _DataSet, photos: Path, part: int) -> list[tuple[str, int]]:
    """Write each photo as PNG below ``photos``, unless the very same file is there, and list them."""
    pairs = []
    for position in range(len(loaded)):
        image, label = loaded[position]
        if not isinstance(image, Image.Image):
            raise DataError(f"data.dataset: expected photos, but item {position} is a {type(image).__name__}")
        name = f"{part}/{position:07d}.png"
        buffer = BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
        if not (photos / name).exists() or (photos / name).read_bytes() != data:
            write_atomically(photos / name, partial(Path.write_bytes, data=data))
        pairs.append((name, int(label)))
    logger.info("%s: %d photos written as PNG", photos, len(pairs))
    return pairs


def _named(rows: list[Row], names: list[str], dataset: str) -> list[Row]:
    for row in rows:
        position = int(str(row["label"]))
        if names and not 0 <= position < len(names):
            raise DataError(f"data.dataset: {dataset} has {len(names)} classes, but a photo of class {position}")
        row["label"] = names[position] if names else str(position)
    return rows


def _classes(rows: list[Row], names: list[str]) -> list[Row]:
    if names:
        return [{"name": name} for name in names]
    return [{"name": name} for name in sorted({str(row["label"]) for row in rows}, key=int)]

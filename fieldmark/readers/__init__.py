"""Readers: each turns one published format into a listing of photos and classes (docs/data.md shows them all)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fieldmark.readers.coco import DEMO_ANNOTATIONS, read_coco
from fieldmark.readers.folder import read_class_folders, read_folder
from fieldmark.readers.listing import Listing
from fieldmark.readers.semi_inat import read_semi_inat
from fieldmark.readers.table import read_table_source
from fieldmark.readers.torchvision_set import read_torchvision
from fieldmark.tables import DataError

FORMATS = ("demo", "semi_inat", "coco", "folder", "table", "torchvision")


def read_listing(
    format: str,
    root: Path,
    photos: Path,
    annotations: str | Mapping[str, str] | None = None,
    locations: Mapping[str, str] | None = None,
    folders: Mapping[str, str] | None = None,
    dataset: str | None = None,
    parts: Sequence[Mapping[str, str | bool]] = ({},),
    download: bool = False,
    pooled: bool = False,
) -> Listing:
    """List a data set of any format.

    Args:
        format: one of :data:`FORMATS`.
        root: the folder that holds the data set.
        photos: where photos that are not files yet are written (torchvision).
        annotations: semi_inat and table: a file below root; coco: split to file.
        locations: coco: split to a separate list of places.
        folders: coco and folder: split to folder.
        dataset: torchvision: the data set's class name.
        parts: torchvision: keyword arguments of each part.
        download: torchvision: whether it may download.
        pooled: whether an open-set split follows, so that the source's own splits do not matter.

    Raises:
        DataError: if the source is not of its format, or lacks a key that its format needs.
    """
    if format != "torchvision" and not root.is_dir():
        raise DataError(f"data.root: there is no folder {root}")
    match format:
        case "demo":
            return read_coco(root, DEMO_ANNOTATIONS)
        case "semi_inat":
            if isinstance(annotations, Mapping):
                raise DataError("data.annotations: format semi_inat expects the name of one JSON file")
            return read_semi_inat(root) if annotations is None else read_semi_inat(root, annotations)
        case "coco":
            if not isinstance(annotations, Mapping):
                raise DataError("data.annotations: format coco expects a JSON file for each split, by the split's name")
            return read_coco(root, annotations, locations, folders)
        case "folder":
            return read_class_folders(root) if pooled else read_folder(root, folders)
        case "table":
            if not isinstance(annotations, str):
                raise DataError("data.annotations: format table expects the name of one CSV or Parquet file")
            return read_table_source(root, annotations, with_splits=not pooled)
        case "torchvision":
            if dataset is None or not pooled:
                raise DataError("data: format torchvision expects the keys dataset and openset")
            return read_torchvision(root, dataset, photos, parts, download)
    raise DataError(f"data.format: expected one of {', '.join(FORMATS)}; found {format!r}")

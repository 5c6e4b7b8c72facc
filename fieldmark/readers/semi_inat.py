"""The layout of the Semi-Supervised iNaturalist challenge (Semi-iNat 2021)."""

import logging
from pathlib import Path

from fieldmark.artifacts import TAXA
from fieldmark.readers.files import json_object, json_objects, list_photos, load_json, require, subfolders
from fieldmark.readers.listing import Listing, Row, make_listing, text
from fieldmark.tables import DataError

logger = logging.getLogger(__name__)


def read_semi_inat(root: Path, annotations: str = "annotation_v2.json") -> Listing:
    """List ``l_train/<class_id>/``, ``val/<class_id>/``, ``u_train/`` and ``test/`` below ``root``.

    Args:
        root: the folder that holds them.
        annotations: JSON below ``root`` with ``annotations``, the taxa of each class, and, if they are known,
            ``unlabeled_taxa``, the coarse taxa of each unlabeled photo.

    Raises:
        DataError: if the JSON is not of that shape, or a class folder is not among its classes.
    """
    source = root / annotations
    document = json_object(load_json(source), str(source))
    classes = _classes(document, str(source))
    names = {row["name"] for row in classes}
    photos: list[Row] = []
    refused: list[tuple[str, str]] = []
    for split, folder in (("labeled", "l_train"), ("val", "val")):
        for name in subfolders(root / folder):
            if name not in names:
                raise DataError(f"{root / folder / name}: class {name!r} is not among the annotations of {source}")
            found, left_out = list_photos(root, root / folder / name)
            photos += [{"file": file, "split": split, "label": name} for file in found]
            refused += left_out
    unlabeled, left_out = list_photos(root, root / "u_train")
    photos += _with_taxa(unlabeled, document, str(source))
    test, left_out_of_test = list_photos(root, root / "test")
    photos += [{"file": file, "split": "test"} for file in test]
    return make_listing(root, photos, classes, refused + left_out + left_out_of_test)


def _classes(document: dict[str, object], where: str) -> list[Row]:
    rows: dict[int, Row] = {}
    for position, entry in enumerate(json_objects(document.get("annotations"), f"{where}: annotations")):
        here = f"{where}: annotations[{position}]"
        name = str(require(entry, "class_id", here))
        if not name.isascii() or not name.isdigit():
            raise DataError(f"{here}: expected class_id to be a whole number from 0 on, found {name!r}")
        if int(name) in rows:
            raise DataError(f"{here}: class_id {name} occurs twice")
        rows[int(name)] = {"name": name, **{taxon: text(entry.get(taxon)) for taxon in TAXA}}
    return [rows[number] for number in sorted(rows)]


def _with_taxa(files: list[str], document: dict[str, object], where: str) -> list[Row]:
    photos: dict[str, Row] = {file: {"file": file, "split": "unlabeled"} for file in files}
    if "unlabeled_taxa" not in document:
        logger.info("%s: no unlabeled_taxa, so no taxon of an unlabeled photo is known", where)
        return list(photos.values())
    by_name = _names(files)
    seen: set[str] = set()
    for position, entry in enumerate(json_objects(document["unlabeled_taxa"], f"{where}: unlabeled_taxa")):
        here = f"{where}: unlabeled_taxa[{position}]"
        name = str(require(entry, "image_name", here))
        if name in by_name and by_name[name] is None:
            raise DataError(f"{here}: several photos are called {name!r}; give the path from u_train/ on")
        # A photo that is named but absent becomes a candidate all the same, so that it is listed as missing.
        file = by_name.get(name) or (name if name.startswith("u_train/") else f"u_train/{name}")
        if file in seen:
            raise DataError(f"{here}: image_name {name!r} occurs twice")
        seen.add(file)
        row = photos.setdefault(file, {"file": file, "split": "unlabeled"})
        row.update({taxon: text(entry.get(taxon)) for taxon in TAXA})
    without = len(photos) - len(seen)
    if without:
        logger.warning("%s: %d unlabeled photos have no entry in unlabeled_taxa", where, without)
    return list(photos.values())


def _names(files: list[str]) -> dict[str, str | None]:
    """The ways to name an unlabeled photo: from the root, from u_train, or by file name; None where ambiguous."""
    names: dict[str, str | None] = {}
    for file in files:
        for name in {file.removeprefix("u_train/"), file.rsplit("/", 1)[-1]}:
            names[name] = None if name in names else file
    return names | {file: file for file in files}

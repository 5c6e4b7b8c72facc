"""COCO-like JSON, one file per split, as iNaturalist 2017–2021 and Semi-Aves publish it; the drawn demo set too."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from fieldmark.artifacts import SPLITS, TAXA
from fieldmark.readers.files import json_object, json_objects, load_json, require
from fieldmark.readers.listing import Listing, Row, make_listing, number, text
from fieldmark.tables import DataError

logger = logging.getLogger(__name__)

UNKNOWN_CATEGORY = "-1"
DEMO_ANNOTATIONS = {split: f"{split}.json" for split in SPLITS}
_PLACE_KEYS = ("latitude", "longitude", "location_uncertainty", "date")
# The separate location lists of iNat 2017 and 2018 name them differently.
_LOCATION_KEYS = {"lat": "latitude", "lon": "longitude", "loc_uncert": "location_uncertainty", "date": "date"}


def read_coco(
    root: Path,
    annotations: Mapping[str, str],
    locations: Mapping[str, str] | None = None,
    folders: Mapping[str, str] | None = None,
) -> Listing:
    """List the photos of one COCO-like JSON file per split.

    Args:
        root: the folder that holds the photos and the JSON files.
        annotations: split to JSON file; ``labeled`` is required, and its categories are the classes.
        locations: split to JSON list of ``{id, lat, lon, loc_uncert, date}`` (iNat 2017 and 2018).
        folders: split to the folder that its ``file_name`` starts from, where that is not ``root``.

    Raises:
        DataError: for anything missing, of another shape, duplicate or dangling, with the file and the entry.
    """
    unknown = sorted({*annotations, *(locations or {}), *(folders or {})} - set(SPLITS))
    if unknown or "labeled" not in annotations:
        raise DataError(
            f"data.annotations, data.locations and data.folders: expected the splits {', '.join(SPLITS)} as keys, and "
            f"annotations.labeled among them; found {sorted(annotations)}, of which unknown: {unknown}"
        )
    photos: list[Row] = []
    classes: list[Row] = []
    for split in (split for split in SPLITS if split in annotations):
        source = root / annotations[split]
        document = json_object(load_json(source), str(source))
        if split == "labeled":
            classes = _classes(document, str(source))
        rows = _photos(document, split, str(source))
        _annotate(rows, document, split, str(source))
        if locations and split in locations:
            _locate(rows, root / locations[split])
        folder = (folders or {}).get(split)
        for row in rows.values():
            if folder:
                row["file"] = f"{folder}/{row['file']}"
            photos.append(row)
    return make_listing(root, photos, classes, [])


def _classes(document: dict[str, object], where: str) -> list[Row]:
    rows: dict[str, Row] = {}
    for position, entry in enumerate(json_objects(document.get("categories"), f"{where}: categories")):
        name = str(require(entry, "id", f"{where}: categories[{position}]"))
        if name in rows:
            raise DataError(f"{where}: categories[{position}]: id {name!r} occurs twice")
        if name != UNKNOWN_CATEGORY:
            taxa = {taxon: text(entry.get(taxon)) for taxon in TAXA}
            rows[name] = {"name": name, "title": text(entry.get("name")), **taxa}
    if all(name.isascii() and name.isdigit() for name in rows):
        return [rows[name] for name in sorted(rows, key=int)]
    return [rows[name] for name in sorted(rows)]


def _photos(document: dict[str, object], split: str, where: str) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for position, entry in enumerate(json_objects(document.get("images"), f"{where}: images")):
        here = f"{where}: images[{position}]"
        key = str(require(entry, "id", here))
        if key in rows:
            raise DataError(f"{here}: id {key!r} occurs twice")
        row: Row = {"file": str(require(entry, "file_name", here)), "split": split}
        row.update({taxon: text(entry.get(taxon)) for taxon in TAXA})
        row.update({name: number(entry.get(name)) for name in _PLACE_KEYS[:3]})
        row["date"] = text(entry.get("date"))
        rows[key] = row
    return rows


def _annotate(rows: dict[str, Row], document: dict[str, object], split: str, where: str) -> None:
    """Add label and box to each photo; of several boxes the largest, which shows the animal best."""
    areas: dict[str, float] = {}
    for position, entry in enumerate(json_objects(document.get("annotations", []), f"{where}: annotations")):
        here = f"{where}: annotations[{position}]"
        key = str(require(entry, "image_id", here))
        if key not in rows:
            raise DataError(f"{here}: image_id {key!r} is not among the images")
        row = rows[key]
        if "category_id" in entry:
            label = str(require(entry, "category_id", here))
            if row.get("label") not in (None, label):
                raise DataError(f"{here}: image_id {key!r} has both category {row['label']!r} and {label!r}")
            row["label"] = label
        if entry.get("bbox") is not None:
            x, y, width, height = _box(entry["bbox"], here)
            # A box that cannot be used must not stand in the way of one that can.
            usable = all(map(math.isfinite, (x, y, width, height))) and width > 0 and height > 0
            area = width * height if usable else -1.0
            if key not in areas or area > areas[key]:
                areas[key] = area
                row.update({"box_x": x, "box_y": y, "box_w": width, "box_h": height})
    for row in rows.values():
        if split in ("unlabeled", "test") and row.get("label") == UNKNOWN_CATEGORY:
            row["label"] = None


def _box(value: object, where: str) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(f"{where}: expected bbox to be [x, y, width, height] in pixels, found {value!r}")
    x, y, width, height = (number(part) for part in value)
    nan = float("nan")
    return (
        nan if x is None else x,
        nan if y is None else y,
        nan if width is None else width,
        nan if height is None else height,
    )


def _locate(rows: dict[str, Row], source: Path) -> None:
    strangers = 0
    for position, entry in enumerate(json_objects(load_json(source), str(source))):
        key = str(require(entry, "id", f"{source}[{position}]"))
        if key not in rows:
            strangers += 1
            continue
        for theirs, ours in _LOCATION_KEYS.items():
            rows[key][ours] = text(entry.get(theirs)) if ours == "date" else number(entry.get(theirs))
    if strangers:
        logger.warning("%s: %d locations belong to no photo of this split", source, strangers)

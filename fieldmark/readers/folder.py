"""Image folders: the folder that a photo lies in is its class."""

from collections.abc import Mapping
from pathlib import Path

from fieldmark.artifacts import SPLITS
from fieldmark.readers.files import list_photos, subfolders
from fieldmark.readers.listing import Listing, Row, make_listing
from fieldmark.tables import DataError


def read_folder(root: Path, folders: Mapping[str, str] | None = None) -> Listing:
    """List ``labeled/<class>/``, ``val/<class>/`` and the flat ``unlabeled/`` and ``test/``.

    Args:
        root: the folder that holds them.
        folders: split to folder name, where it differs from the split's own name.

    Raises:
        DataError: if ``folders`` names an unknown split, there is no folder of labeled photos, or a photo of labeled or
            val lies in no class folder.
    """
    names = {split: split for split in SPLITS} | dict(folders or {})
    unknown = sorted(set(names) - set(SPLITS))
    if unknown:
        raise DataError(f"data.folders: expected the splits {', '.join(SPLITS)} as keys, found {unknown}")
    if not (root / names["labeled"]).is_dir():
        there = ", ".join(f"{name}/" for name in subfolders(root)) or "none"
        raise DataError(f"{root}: expected a folder {names['labeled']}/ with one folder for each class; found {there}")
    photos: list[Row] = []
    refused: list[tuple[str, str]] = []
    for split in SPLITS:
        found, left_out = list_photos(root, root / names[split])
        labeled = split in ("labeled", "val")
        photos += [
            {"file": file, "split": split, "label": _class_of(file, names[split]) if labeled else None}
            for file in found
        ]
        refused += left_out
    return make_listing(root, photos, [{"name": name} for name in subfolders(root / names["labeled"])], refused)


def read_class_folders(root: Path) -> Listing:
    """List a fully labeled ``<class>/`` folder, with no splits, for an open-set split."""
    found, refused = list_photos(root, root)
    photos: list[Row] = [{"file": file, "label": _class_of(file, ".")} for file in found]
    return make_listing(root, photos, [{"name": name} for name in subfolders(root)], refused)


def _class_of(file: str, folder: str) -> str:
    parts = Path(file).relative_to(folder).parts if folder != "." else Path(file).parts
    if len(parts) < 2:
        raise DataError(f"{file}: expected this photo in a folder named after its class, {folder}/<class>/")
    return parts[0]

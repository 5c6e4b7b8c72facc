"""Reading what a data folder holds: JSON documents, and the photos below a folder."""

import json
import logging
import os
from pathlib import Path

from fieldmark.readers.listing import DataError

logger = logging.getLogger(__name__)

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"})
# Photos that no decoder here reads: named as rejected, and not passed over like a text file.
UNREAD_SUFFIXES = frozenset({".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"})
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")


def load_json(path: Path) -> object:
    """The content of a JSON file, UTF-8 with or without a byte order mark.

    Raises:
        DataError: if the file is missing, unreadable, in another encoding, or not one JSON value.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot read this annotation file ({error.strerror}); check data.root") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, but {error.reason} at byte {error.start}; convert it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected one JSON value and nothing else, found: {error}") from error


def json_object(value: object, where: str) -> dict[str, object]:
    """``value`` if it is a JSON object.

    Raises:
        DataError: if it is anything else.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def json_objects(value: object, where: str) -> list[dict[str, object]]:
    """``value`` if it is a JSON array of objects.

    Raises:
        DataError: if it is anything else; the message has the position of the first wrong entry.
    """
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a JSON array, found {type(value).__name__}")
    for position, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise DataError(f"{where}[{position}]: expected a JSON object, found {type(entry).__name__}")
    return value


def require(entry: dict[str, object], key: str, where: str) -> object:
    """``entry[key]``, which must be a text or a whole number.

    Raises:
        DataError: if it is absent or of another type.
    """
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: expected {key!r} to be a text or a whole number, found {value!r}")
    return value


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in ``folder``, sorted; empty if there is no such folder.

    Raises:
        DataError: if a name is not UTF-8, since it could not be the name of a class.
    """
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if not _is_utf8(name):
            raise DataError(f"{folder}: the folder {_shown(name)} is not named in UTF-8; rename it")
    return names


def list_photos(root: Path, folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Every photo below ``folder``, by suffix or, failing that, by the first bytes; hidden files are left out.

    Args:
        root: the data folder, which links may not leave.
        folder: where to look, inside ``root``; it may be absent.

    Returns:
        Paths relative to ``root`` with forward slashes, sorted; and (path, reason) of what cannot be a candidate.
    """
    found: list[str] = []
    refused: list[tuple[str, str]] = []
    ignored: list[str] = []
    home = os.path.realpath(root)

    def visit(here: Path, above: frozenset[str]) -> None:
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            name = Path(entry.path).relative_to(root).as_posix()
            if entry.name.startswith("."):
                continue
            if not _is_utf8(name):
                refused.append((_shown(name), "its name is not UTF-8"))
            elif _is_folder(entry):
                real = os.path.realpath(entry.path)
                if real in above:
                    refused.append((name, "a loop of links"))
                elif os.path.commonpath([real, home]) != home:
                    refused.append((name, "a link that leaves the data folder"))
                else:
                    visit(Path(entry.path), above | {real})
            elif Path(name).suffix.lower() in PHOTO_SUFFIXES or _looks_like_photo(entry):
                found.append(name)
            elif Path(name).suffix.lower() in UNREAD_SUFFIXES:
                refused.append((name, f"{Path(name).suffix[1:].upper()} is not read; convert it to JPEG"))
            else:
                ignored.append(name)

    if folder.is_dir():
        visit(folder, frozenset({os.path.realpath(folder)}))
    if ignored:
        logger.info("%s: %d other files are not photos, such as %s", folder, len(ignored), ignored[0])
    return sorted(found), refused


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself: the decode check names it
        return False


def _looks_like_photo(entry: os.DirEntry[str]) -> bool:
    if not entry.is_file():
        return False
    try:
        with Path(entry.path).open("rb") as file:
            head = file.read(16)
    except OSError as error:
        logger.warning("%s: cannot be read (%s)", entry.path, error.strerror)
        return False
    return head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _is_utf8(name: str) -> bool:
    # The file system's undecodable bytes arrive as lone surrogates, which no UTF-8 table can hold.
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")

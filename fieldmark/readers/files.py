"""Reading what a data folder holds: JSON documents, and the photos below a folder."""

import json
import logging
import os
from pathlib import Path

from fieldmark.tables import DataError

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
        DataError: if the folder cannot be listed, or a name is not UTF-8, since it could not be the name of a class.
    """
    names = [entry.name for entry in _top(folder) if _is_folder(entry) and not entry.name.startswith(".")]
    for name in names:
        if not is_utf8(name):
            raise DataError(f"{folder}: the folder {shown(name)} is not named in UTF-8; rename it")
    return names


def list_photos(root: Path, folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Every photo below ``folder``, by suffix or, failing that, by the first bytes; hidden files are left out.

    A format that is not read is refused, except where the same photo lies beside it in one that is, as cameras leave a
    raw file beside its JPEG.

    Args:
        root: the data folder, which links may not leave.
        folder: where to look, inside ``root``; it may be absent.

    Returns:
        Paths relative to ``root`` with forward slashes, sorted; and (path, reason) of what cannot be a candidate, be it
        a file or a folder.

    Raises:
        DataError: if ``folder`` itself cannot be listed; one below it is refused.
    """
    found: list[str] = []
    refused: list[tuple[str, str]] = []
    ignored: list[str] = []
    twins: list[str] = []
    home = os.path.realpath(root)

    def enter(entry: os.DirEntry[str], name: str, above: frozenset[str]) -> None:
        real = os.path.realpath(entry.path)
        if real in above:
            refused.append((name, "a loop of links"))
        elif os.path.commonpath([real, home]) != home:
            refused.append((name, "a link that leaves the data folder"))
        else:
            try:
                entries = _entries(entry.path)
            except OSError as error:
                refused.append((name, f"a folder that cannot be listed: {error.strerror}"))
            else:
                visit(entries, above | {real})

    def visit(entries: list[os.DirEntry[str]], above: frozenset[str]) -> None:
        read = {Path(entry.name).stem for entry in entries if _suffix(entry.name) in PHOTO_SUFFIXES}
        for entry in entries:
            name = Path(entry.path).relative_to(root).as_posix()
            if entry.name.startswith("."):
                continue
            if not is_utf8(name):
                refused.append((shown(name), "its name is not UTF-8"))
            elif _is_folder(entry):
                enter(entry, name, above)
            elif _suffix(name) in UNREAD_SUFFIXES:
                # Asked before the first bytes: many raw formats begin like a TIFF file, whose picture is a thumbnail.
                if Path(name).stem in read:
                    twins.append(name)
                else:
                    refused.append((name, f"{_suffix(name)[1:].upper()} is not read; convert it to JPEG"))
            elif _suffix(name) in PHOTO_SUFFIXES or _looks_like_photo(entry):
                found.append(name)
            else:
                ignored.append(name)

    visit(_top(folder), frozenset({os.path.realpath(folder)}))
    if twins:
        logger.info("%s: %d files are passed over for the same photo beside them, as %s", folder, len(twins), twins[0])
    if ignored:
        logger.info("%s: %d other files are not photos, such as %s", folder, len(ignored), ignored[0])
    return sorted(found), refused


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def is_utf8(name: str) -> bool:
    """Whether a name from the file system is text."""
    # The file system's undecodable bytes arrive as lone surrogates, which no UTF-8 table can hold.
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def shown(name: str) -> str:
    """A name from the file system for a message: bytes that are no UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _top(folder: Path) -> list[os.DirEntry[str]]:
    """What is in the folder where a search begins; nothing if there is no such folder."""
    try:
        return _entries(folder) if folder.is_dir() else []
    except OSError as error:
        raise DataError(
            f"{folder}: cannot list this folder ({error.strerror}); give yourself permission to read and enter it, or "
            "leave it out"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself: the decode check names it
        return False


def _looks_like_photo(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.is_file():
            return False
        with Path(entry.path).open("rb") as file:
            head = file.read(16)
    except OSError as error:
        logger.warning("%s: cannot be read (%s)", entry.path, error.strerror)
        return False
    return head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")

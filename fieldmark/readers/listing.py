"""What every reader returns: a listing of photos and classes as the source states them, not yet validated."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from fieldmark.artifacts import TAXA
from fieldmark.tables import DataError

# One row per photo. `file` is the path as the source gives it, relative to the root or absolute; `label` is a class
# name of the listing's classes. Numbers are NaN where the source holds something that is not a number.
PHOTO_COLUMNS: dict[str, type[pl.DataType]] = {
    "file": pl.String,
    "split": pl.String,
    "label": pl.String,
    **dict.fromkeys(TAXA, pl.String),
    "latitude": pl.Float64,
    "longitude": pl.Float64,
    "location_uncertainty": pl.Float64,
    "date": pl.String,
    "box_x": pl.Float64,
    "box_y": pl.Float64,
    "box_w": pl.Float64,
    "box_h": pl.Float64,
}
CLASS_COLUMNS: dict[str, type[pl.DataType]] = {"name": pl.String, "title": pl.String, **dict.fromkeys(TAXA, pl.String)}

Row = dict[str, str | float | None]


@dataclass(frozen=True)
class Listing:
    """A data set as its source lists it.

    Attributes:
        root: the folder that holds the photos.
        photos: columns of :data:`PHOTO_COLUMNS`.
        classes: columns of :data:`CLASS_COLUMNS`, in the order of the class ids to be given.
        refused: columns path and reason: files met on the way that cannot even be candidates.
    """

    root: Path
    photos: pl.DataFrame
    classes: pl.DataFrame
    refused: pl.DataFrame


def make_listing(root: Path, photos: list[Row], classes: list[Row], refused: list[tuple[str, str]]) -> Listing:
    """Gather rows, in which absent keys mean null, into a :class:`Listing`."""
    return Listing(
        root,
        _frame(photos, PHOTO_COLUMNS),
        _frame(classes, CLASS_COLUMNS),
        pl.DataFrame(refused, schema={"path": pl.String, "reason": pl.String}, orient="row"),
    )


def _frame(rows: list[Row], columns: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    try:
        return pl.DataFrame({name: [row.get(name) for row in rows] for name in columns}, schema=columns)
    except UnicodeEncodeError as error:
        raise DataError(f"{error.object!r}: expected text in valid Unicode; correct this name or path") from error


def text(value: object) -> str | None:
    """A source's field as text: null and blank are both null."""
    if value is None:
        return None
    stripped = str(value).strip()
    return stripped or None


def number(value: object) -> float | None:
    """A source's field as a number: null and blank are null, whatever is not a number is NaN."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return float("nan")
    try:
        return float(value)
    except (ValueError, OverflowError):
        return float("nan")

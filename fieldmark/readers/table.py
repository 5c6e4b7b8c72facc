"""A table of photos, CSV or Parquet, one row each."""

import logging
import os
from pathlib import Path

import polars as pl

from fieldmark.artifacts import SPLITS, TAXA
from fieldmark.readers.listing import CLASS_COLUMNS, PHOTO_COLUMNS, Listing, make_listing
from fieldmark.readers.places import clean_places
from fieldmark.tables import DataError, columns_found, load_table

logger = logging.getLogger(__name__)

_PLACE, _DATE = ("latitude", "longitude"), ("date",)
_NAMES = {"file": "path"} | {name: name for name in PHOTO_COLUMNS if name != "file"}


def read_table_source(root: Path, annotations: str, with_splits: bool = True) -> Listing:
    """List the photos of ``root / annotations``: columns path, split, label, and any others of the manifest.

    Args:
        root: the folder that holds the table and that its paths start from.
        annotations: the table, ``.csv`` (UTF-8, comma, header) or ``.parquet``.
        with_splits: whether the split column is required; an open-set split makes its own.

    Raises:
        DataError: if the table cannot be read, lacks a column, or a row has no path or an unknown split.
    """
    source = root / annotations
    table = load_table(source, "data.annotations", "; check data.root")
    required = ["path", "split", "label"] if with_splits else ["path", "label"]
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise DataError(f"{source}: expected the columns {', '.join(required)}, found {columns_found(table, required)}")
    _warn_of_ignored(table, source)
    photos = _checked_rows(_listed(table), source, with_splits)
    classes = _classes(photos if not with_splits else photos.filter(pl.col("split") == "labeled"), source)
    return Listing(root, photos, classes, make_listing(root, [], [], []).refused)


def read_places(source: Path) -> pl.DataFrame:
    """Places and dates of photos that belong to no data set.

    Args:
        source: a table as of :func:`read_table_source`, without splits and labels; its paths start from its folder.

    Returns:
        Columns file (absolute, links resolved), latitude, longitude, location_uncertainty and date, cleaned.

    Raises:
        DataError: if the table cannot be read, has no column path, tells neither places nor dates, a row has no path,
            or a photo has two rows.
    """
    table = load_table(source, "places", "")
    if "path" not in table.columns:
        raise DataError(f"{source}: expected a column path, found {columns_found(table, ['path'])}")
    if not any(set(names) <= set(table.columns) for names in (_PLACE, _DATE)):
        raise DataError(
            f"{source}: expected the columns {' and '.join(_PLACE)}, or {_DATE[0]}, or all three, found "
            f"{columns_found(table, _PLACE, _DATE)}"
        )
    _warn_of_ignored(table, source)
    photos = _checked_rows(_listed(table), source, with_splits=False)
    files = pl.Series("file", [os.path.realpath(source.parent / name) for name in photos["file"]], dtype=pl.String)
    twice = files.filter(files.is_duplicated())
    if len(twice):
        raise DataError(f"{source}: {twice[0]} has several rows; expected one")
    told = ["latitude", "longitude", "location_uncertainty", "date"]
    return clean_places(photos, str(source)).with_columns(files).select("file", *told)


def _warn_of_ignored(table: pl.DataFrame, source: Path) -> None:
    ignored = [name for name in table.columns if name not in _NAMES.values()]
    if ignored:
        logger.warning("%s: columns of no known meaning are not used: %s", source, ", ".join(ignored))


def _listed(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(
        _cleaned(theirs if theirs in table.columns else None, ours, dtype)
        for (ours, theirs), dtype in zip(_NAMES.items(), PHOTO_COLUMNS.values(), strict=True)
    )


def _cleaned(theirs: str | None, ours: str, dtype: type[pl.DataType]) -> pl.Expr:
    if theirs is None:
        return pl.lit(None, dtype=dtype).alias(ours)
    column = pl.col(theirs).cast(pl.String).str.strip_chars()
    filled = pl.when(column != "").then(column)
    if dtype is pl.String:
        return filled.alias(ours)
    # Spreadsheets and word processors like to write a true minus sign.
    number = filled.str.replace("\N{MINUS SIGN}", "-", literal=True).cast(dtype, strict=False)
    # What is not a number becomes NaN, so that it is counted when it is nulled.
    return pl.when(filled.is_not_null()).then(number.fill_null(float("nan"))).alias(ours)


def _checked_rows(photos: pl.DataFrame, source: Path, with_splits: bool) -> pl.DataFrame:
    """The rows that say anything; all must have a path and, if asked, a known split."""
    # As editors and spreadsheets count: the header is the first line.
    name, first = ("line", 2) if source.suffix.lower() == ".csv" else ("row", 1)
    rows = photos.with_row_index("row", offset=first).filter(pl.any_horizontal(pl.col(photos.columns).is_not_null()))
    without_path = rows.filter(pl.col("file").is_null())
    if not without_path.is_empty():
        raise DataError(f"{source}: {name} {without_path['row'][0]} has no path")
    strange = rows.filter(~pl.col("split").is_in(SPLITS).fill_null(False))
    if with_splits and not strange.is_empty():
        raise DataError(
            f"{source}: {name} {strange['row'][0]}: expected split to be one of {', '.join(SPLITS)}, "
            f"found {strange['split'][0]!r}"
        )
    return rows.drop("row")


def _classes(photos: pl.DataFrame, source: Path) -> pl.DataFrame:
    """One class per label; a taxon column that differs within a class is an error of the table."""
    grouped = photos.filter(pl.col("label").is_not_null()).group_by("label")
    varying = grouped.agg(pl.col(taxon).drop_nulls().n_unique() for taxon in TAXA)
    for taxon in TAXA:
        wrong = varying.filter(pl.col(taxon) > 1).sort("label")
        if not wrong.is_empty():
            raise DataError(f"{source}: photos of class {wrong['label'][0]!r} have more than one {taxon}")
    classes = grouped.agg(pl.col(taxon).drop_nulls().first() for taxon in TAXA).rename({"label": "name"})
    if classes["name"].str.contains(r"^[0-9]{1,18}$").all():
        classes = classes.sort(pl.col("name").cast(pl.Int64), "name")
    else:
        classes = classes.sort("name")
    return classes.with_columns(title=pl.lit(None, pl.String)).select(*CLASS_COLUMNS)

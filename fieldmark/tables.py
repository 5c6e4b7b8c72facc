"""Tables that users write, CSV or Parquet, and read; and the error that says what is wrong with what they give."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from fieldmark.artifacts import write_atomically


class DataError(ValueError):
    """The data set or its description is not usable; the message says where, what was expected and what to do."""


def load_table(source: Path, key: str, remedy: str = "") -> pl.DataFrame:
    """The columns of a table: those of a CSV file (UTF-8, comma, header) as text, those of Parquet as they are.

    Args:
        source: the file.
        key: of the configuration, for the error.
        remedy: what to do if there is no such file, for the error.

    Raises:
        DataError: if it is no such table.
    """
    if source.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"{key}: expected a .csv or .parquet file, found {source.name!r}")
    try:
        if source.suffix.lower() == ".parquet":
            return pl.read_parquet(source)
        # As text throughout: a label such as 007 stays what it is.
        return pl.read_csv(source, infer_schema=False, null_values=[""])
    except OSError as error:
        raise DataError(f"{source}: cannot read this table ({error}){remedy}") from error
    except pl.exceptions.PolarsError as error:
        # What follows the first line are hints for programmers.
        found = str(error).partition("\n")[0]
        raise DataError(
            f"{source}: expected a table in UTF-8 with a header (a spreadsheet saves it as 'CSV UTF-8'), found: {found}"
        ) from error


def columns_found(table: pl.DataFrame, *expected: Sequence[str]) -> str:
    """The columns of a table and, where it is plain, why none of the ``expected`` groups is among them; for errors."""
    found = ", ".join(map(repr, table.columns[:8])) + (", …" if len(table.columns) > 8 else "")
    if len(table.columns) == 1 and ";" in table.columns[0]:
        return f"{found}. Its columns seem to be separated by semicolons: save it with commas"
    plain = {name.strip().lower() for name in table.columns}
    if any(plain >= set(names) for names in expected):
        return f"{found}. Names must be written exactly so, in small letters"
    return found


def write_csv(header: Sequence[str], rows: Iterable[Sequence[str]], target: str | Path) -> None:
    """Write a CSV file in UTF-8 with Unix line ends, atomically."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    write_atomically(Path(target), write)

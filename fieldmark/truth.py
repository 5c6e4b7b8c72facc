"""The true classes of unlabeled and test photos, where a user has them: for scoring, and for nothing else."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import polars as pl

from fieldmark.artifacts import ArtifactError
from fieldmark.evaluation import FOREIGN
from fieldmark.tables import columns_found, load_table

log = logging.getLogger("fieldmark")

_CLASS_COLUMNS = ("class_id", "category_id")


def _ends(path: str, depths: Iterable[int]) -> set[str]:
    """The last parts of a path, as many as each depth says, with and without the file's suffix."""
    pure = PurePosixPath(path)
    return {"/".join(form.parts[-depth:]) for form in (pure, pure.with_suffix("")) for depth in depths}


def match_photos(names: Sequence[str], photos: pl.DataFrame, by_id: bool) -> list[str | None]:
    """The photo that each name means; None where it means none, or several.

    Args:
        names: as a truth table states them.
        photos: columns image_id and path.
        by_id: names may be image ids; otherwise, or where that fits more of them, they are ends of paths, with or
            without the file's suffix.
    """
    depths = {name.count("/") + 1 for name in names}
    index: dict[str, str | None] = {}
    for image_id, path in photos.select("image_id", "path").iter_rows():
        for end in _ends(path, depths):
            index[end] = None if end in index else image_id
    matches = [index.get(name) for name in names]
    if by_id:
        ids = set(photos["image_id"])
        exact = [name if name in ids else None for name in names]
        return exact if exact.count(None) <= matches.count(None) else matches
    return matches


def read_truth(source: str, manifest: pl.DataFrame, classes: pl.DataFrame, rejected: Sequence[str]) -> dict[str, int]:
    """True class ids of unlabeled and test photos; of foreign ones :data:`fieldmark.evaluation.FOREIGN`.

    Args:
        source: a CSV (or Parquet) table that names each photo in file_name (its path, of which the end will do) or
            image_id (its image id, path, file name or stem), and its class in class_id or category_id, by the source's
            own id as in the classes' names. A foreign photo has the class −1, or False in an optional column in_class.
        manifest: the photos.
        classes: the table of classes.
        rejected: paths of photos that could not be read; the truth may know them, and they are not scored.

    Raises:
        DataError: if it is no such table.
        ArtifactError: if a column is missing, or a row names an unknown photo or class, or a photo twice.
    """
    frame = load_table(Path(source), "data.truth").select(pl.all().cast(pl.String))
    # A file name is the safer key: an image id such as 1000 may be the file stem of another photo.
    name_column = next((name for name in ("file_name", "image_id") if name in frame.columns), None)
    class_column = next((name for name in _CLASS_COLUMNS if name in frame.columns), None)
    if name_column is None or class_column is None or frame.is_empty():
        raise ArtifactError(
            f"{source}: expected rows with a column file_name or image_id and a column class_id or category_id; "
            f"found {frame.height} rows with the columns {columns_found(frame)}"
        )
    hidden = pl.col("split").is_in(["unlabeled", "test"])
    photos, others = manifest.filter(hidden), manifest.filter(~hidden)
    own_names = set(manifest["image_id"])
    # Blanks around a name are the table's, unless a photo is called so.
    names = [name if name in own_names else name.strip() for name in frame[name_column].fill_null("")]
    frame = frame.with_columns(pl.all().str.strip_chars())
    matches = match_photos(names, photos, by_id=name_column == "image_id")
    depths = {name.count("/") + 1 for name in names}
    unscored = {end for path in (*rejected, *others["path"]) for end in _ends(path, depths)} | set(others["image_id"])
    inside = frame["in_class"].to_list() if "in_class" in frame.columns else [None] * frame.height
    own_ids = {normalize("NFC", name): class_id for name, class_id in classes.select("name", "class_id").iter_rows()}
    truth: dict[str, int] = {}
    given = [normalize("NFC", own or "").replace("\N{MINUS SIGN}", "-") for own in frame[class_column]]
    for line, (name, match, own, flag) in enumerate(zip(names, matches, given, inside, strict=True), 2):
        foreign = own == str(FOREIGN) or (flag or "").lower() in ("false", "0")
        if match is None and name not in unscored:
            raise ArtifactError(
                f"{source}, line {line}: {name!r} in column {name_column} names no unlabeled or test photo, "
                "or several; expected an image id, file name or path; give it with its folders, or remove the row"
            )
        if not foreign and own not in own_ids:
            raise ArtifactError(
                f"{source}, line {line}: class {own!r} of {name!r} is not a name in the table of classes; "
                f"expected the source's own class id, or {FOREIGN} for a foreign photo"
            )
        if match in truth:
            raise ArtifactError(
                f"{source}, line {line}: photo {match!r} has a true class already; keep one of its rows"
            )
        if match is not None:
            truth[match] = FOREIGN if foreign else own_ids[own]
    left_out = matches.count(None)
    log.info("truth known of %d of %d unlabeled and test photos; %d rows not scored", len(truth), len(photos), left_out)
    return truth

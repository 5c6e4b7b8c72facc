"""From a source's listing to the manifest's candidates: paths checked, ids given, classes numbered, taxa masked."""

import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import polars as pl

from fieldmark.artifacts import TAXA
from fieldmark.readers.files import PHOTO_SUFFIXES
from fieldmark.readers.listing import Listing
from fieldmark.readers.places import clean_places
from fieldmark.tables import DataError

logger = logging.getLogger(__name__)

CANDIDATE_COLUMNS = [
    *("image_id", "path", "split", "class_id", *TAXA, "latitude", "longitude", "location_uncertainty", "date"),
    *("box_x", "box_y", "box_w", "box_h"),
]


def to_candidates(
    listing: Listing, coarse_taxa: Sequence[str], val_is_drawn: bool = False
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Validate a listing and give ids.

    A photo's ``image_id`` is its path relative to the root, with forward slashes and without the suffix, in every
    format. Classes are numbered 0 … C-1 in the listing's order. Labels of unlabeled and test photos are left out, and
    so are all taxa but ``coarse_taxa``; labeled photos get these from their class where the source has them there.

    Args:
        listing: from a reader.
        coarse_taxa: taxon columns that may be known of unlabeled photos.
        val_is_drawn: whether val photos will be drawn from the labeled ones, so that there must be none.

    Returns:
        The candidates (columns of the manifest up to the box), ordered by image_id, and the classes (columns class_id,
        name, the taxa).

    Raises:
        DataError: for paths that leave the root, ids that occur twice, unknown classes, empty splits, fewer than two
            classes, or classes without a labeled photo.
    """
    where, refusals = str(listing.root), _told(listing.refused)
    unknown = sorted(set(coarse_taxa) - set(TAXA))
    if unknown:
        raise DataError(f"data.coarse_taxa: expected some of {', '.join(TAXA)}; found {', '.join(unknown)}")
    classes = listing.classes.with_row_index("class_id").with_columns(pl.col("class_id").cast(pl.Int32))
    _check_classes(classes, listing.photos, where, refusals, val_is_drawn)
    folder = listing.root.as_posix()
    inside = [relative_path(file, listing.root) for file in listing.photos["file"]]
    photos = listing.photos.with_columns(
        pl.Series("image_id", [image_id_of(file) for file in inside], dtype=pl.String),
        pl.Series("path", [f"{folder}/{file}" for file in inside], dtype=pl.String),
    )
    _check_ids(photos)
    _check_labels(photos, classes, where, refusals)
    of_class = classes.select(pl.col("name").alias("label"), "class_id", *(pl.col(t).alias(f"class_{t}") for t in TAXA))
    photos = photos.join(of_class, on="label", how="left")
    known = pl.col("split").is_in(["labeled", "val"])
    photos = photos.with_columns(
        pl.when(known).then(pl.col("class_id")),
        *(_taxon(taxon, taxon in coarse_taxa) for taxon in TAXA),
    )
    return clean_places(photos, where).select(CANDIDATE_COLUMNS).sort("image_id"), classes


def _taxon(taxon: str, allowed: bool) -> pl.Expr:
    if not allowed:
        return pl.lit(None, dtype=pl.String).alias(taxon)
    # Only training photos learn from their class: what is known of val has to be what is known of test.
    from_class = pl.when(pl.col("split") == "labeled").then(pl.col(f"class_{taxon}"))
    return pl.coalesce(pl.col(taxon), from_class).alias(taxon)


def image_id_of(relative: str) -> str:
    """The id of the photo with this normal path relative to the root: the path without a photo's suffix.

    What else follows a dot belongs to the name: ``moth.12`` and ``moth.13``, two files without suffix, are two photos.
    """
    path = PurePosixPath(relative)
    return str(path.with_suffix("") if path.suffix.lower() in PHOTO_SUFFIXES else path)


def relative_path(file: str, root: Path) -> str:
    """``file``, absolute or relative to ``root``, as a normal path relative to ``root`` with forward slashes.

    Raises:
        DataError: if it leads out of ``root``, or holds a NUL.
    """
    parts = os.path.normpath(file)
    if parts.startswith("/"):
        parts = os.path.relpath(parts, Path.cwd() / root)
    if "\0" in file or parts in ("..", ".") or parts.startswith("../"):
        raise DataError(f"{file!r}: expected a path of a photo inside data.root, {root}; nothing outside it is read")
    return parts


def check_labeled(photos: pl.DataFrame, classes: pl.DataFrame, where: str, why: str = "") -> None:
    """Check that every class has a labeled photo.

    Args:
        photos: columns split and class_id.
        classes: columns class_id and name.
        where: named in the error.
        why: what may have become of them, for the error.

    Raises:
        DataError: if a class has none; it names up to five of them.
    """
    labeled = photos.filter(pl.col("split") == "labeled").select("class_id").unique()
    without = classes.join(labeled, on="class_id", how="anti").sort("class_id")["name"].to_list()
    if without:
        names = ", ".join(map(repr, without[:5])) + (", …" if len(without) > 5 else "")
        raise DataError(
            f"{where}: {len(without)} classes have no usable labeled photo: {names}{why}; add one or remove the class"
        )


def _told(refused: pl.DataFrame) -> str:
    """Why files were refused, for errors on what is missing without them."""
    if refused.is_empty():
        return ""
    path, reason = refused.sort("path").row(0)
    return f" ({refused.height} files or folders were refused, such as {path!r}: {reason})"


def _check_classes(classes: pl.DataFrame, photos: pl.DataFrame, where: str, refusals: str, val_is_drawn: bool) -> None:
    needed = {
        "labeled": "to learn from",
        "val": "to choose the ensemble's weights by: keep a few photos of each class aside, or let them be drawn with "
        "data.val_per_class: 2",
    }
    useful = {
        "unlabeled": "only track: supervised can do without",
        "test": "results/submission.csv will name none",
    }
    present = set(photos["split"])
    if val_is_drawn:
        if "val" in present:
            raise DataError("data.val_per_class: expected 0, because the data have val photos of their own")
        del needed["val"]
    for split, need in needed.items():
        if split not in present:
            raise DataError(f"{where}: the {split} split has no photos{refusals}; it needs some {need}")
    for split, without in useful.items():
        if split not in present:
            logger.warning("%s: the %s split has no photos; %s", where, split, without)
    if classes.height < 2:
        raise DataError(f"{where}: expected at least two classes, found {classes['name'].to_list()}")
    if "-1" in classes["name"]:
        raise DataError(f"{where}: a class is called '-1', which stands for foreign photos; rename it")
    twice = classes.filter(pl.col("name").is_duplicated())["name"]
    if len(twice):
        raise DataError(f"{where}: class {twice[0]!r} occurs twice")
    seen: dict[str, str] = {}
    for name in classes["name"]:
        if (other := seen.setdefault(normalize("NFC", name), name)) != name:
            raise DataError(
                f"{where}: the classes {other!r} and {name!r} look the same but are of different Unicode characters "
                "(NFC, NFD): write all their labels alike"
            )


def _check_ids(photos: pl.DataFrame) -> None:
    twice = photos.filter(pl.col("image_id").is_duplicated()).sort("image_id", "file")
    if not twice.is_empty():
        first, second = twice["file"][:2]
        count = twice["image_id"].n_unique()
        others = f", and so do {count - 1} others" if count > 1 else ""
        raise DataError(
            f"image_id {twice['image_id'][0]!r} occurs twice: {first!r} and {second!r}{others}; list each photo once, "
            "and let no two differ in the suffix alone"
        )


def _check_labels(photos: pl.DataFrame, classes: pl.DataFrame, where: str, refusals: str) -> None:
    needing = photos.filter(pl.col("split").is_in(["labeled", "val"]))
    without = needing.filter(pl.col("label").is_null())
    if not without.is_empty():
        raise DataError(f"{where}: {without['file'][0]!r} is in the {without['split'][0]} split, but has no label")
    strange = needing.filter(~pl.col("label").is_in(classes["name"].to_list()))
    if not strange.is_empty():
        label, names = strange["label"][0], classes["name"].to_list()
        alike = [name for name in names if normalize("NFC", name) == normalize("NFC", label)]
        close = difflib.get_close_matches(label, names, n=1) or names
        hint = f"expected one of the {len(names)} classes, such as {close[0]!r}"
        if alike:
            hint = f"the class {alike[0]!r} looks the same but is of other Unicode characters (NFC, NFD): rename one"
        raise DataError(
            f"{where}: {strange['file'][0]!r} of the {strange['split'][0]} split has the unknown class {label!r}; "
            f"{hint}"
        )
    labeled = photos.filter(pl.col("split") == "labeled").join(
        classes.select("class_id", label="name"), on="label", how="left"
    )
    check_labeled(labeled, classes, where, refusals)

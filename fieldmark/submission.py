"""Submission files: predictions of test photos in the layout that a competition asks for.

- ``semi_inat`` — Semi-iNat 2021 and Semi-Aves 2020: ``Id,Category``; Id is the file name, Category up to ``top_k``
  class ids separated by spaces, best first.
- ``inat`` — iNaturalist 2021: ``Id,Predicted``; Id is the organisers' image id, which their JSON of the test split
  tells (without it the manifest's), Predicted exactly five class ids.
- ``simple`` — for everyone else: ``image_id,class_name,probability`` of the best class, by its title if it has one.

Class ids are the source's own, which the table of classes holds as names. A competition refuses a file that lacks
a photo, so a test photo that could not be read is listed too, with the classes that have the most labeled photos.
"""

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import polars as pl

from fieldmark.artifacts import ArtifactError
from fieldmark.class_names import spoken_names
from fieldmark.predictions import TopLists

log = logging.getLogger("fieldmark")

LAYOUTS = ("semi_inat", "inat", "simple")
INAT_CLASSES = 5
Row = tuple[str, ...]
_FOLDER = pl.col("path").str.replace(r"[^/]*$", "").alias("folder")


@dataclass(frozen=True)
class Photo:
    """A test photo with its best classes, best first: names, the source's own or titles, and their probabilities."""

    image_id: str
    path: str
    names: Sequence[str]
    probabilities: Sequence[float]


def submitted_names(classes: pl.DataFrame, layout: str) -> dict[int, str]:
    """Class id → what a layout calls the class; competitions know the source's own names alone."""
    return spoken_names(classes) if layout == "simple" else dict(classes.select("class_id", "name").iter_rows())


def photos_to_submit(predictions: TopLists, manifest: pl.DataFrame, names: Mapping[int, str]) -> list[Photo]:
    """Every test photo of the manifest with its predicted classes.

    Raises:
        ArtifactError: if a test photo has no prediction.
    """
    test = manifest.filter(pl.col("split") == "test")
    lists = predictions.rows_of(test["image_id"].to_list(), "ensemble predictions")
    rows = zip(lists.image_ids, test["path"], lists.class_ids.tolist(), lists.probabilities.tolist(), strict=True)
    return [Photo(image_id, path, [names[c] for c in ids], values) for image_id, path, ids, values in rows]


def unreadable_test_photos(
    rejected: pl.DataFrame, manifest: pl.DataFrame, classes: pl.DataFrame, names: Mapping[int, str]
) -> list[Photo]:
    """Test photos that could not be read, with the most frequent labeled classes and their shares.

    Files that their source refused before it knew their split are not among them; those that may be test photos are
    logged as a warning.

    Args:
        rejected: the table of photos that could not be read.
        manifest: the others.
        classes: the table of classes.
        names: what to call them.
    """
    ranked = classes.sort(["labeled_count", "class_id"], descending=[True, False])
    total = max(1, int(ranked["labeled_count"].sum()))
    best = [names[class_id] for class_id in ranked["class_id"]]
    shares = [count / total for count in ranked["labeled_count"]]
    test = rejected.filter(pl.col("split") == "test").select("candidate_id", "path")
    found = [Photo(image_id, path, best, shares) for image_id, path in test.iter_rows()]
    if found:
        log.warning("%d test photos could not be read; they are listed with the most frequent classes", len(found))
    _warn_of_unknown_splits(rejected, manifest)
    return found


def _warn_of_unknown_splits(rejected: pl.DataFrame, manifest: pl.DataFrame) -> None:
    """Name a rejected file of unknown split, unless all such files lie among photos of other splits than test."""
    known = pl.concat([photos.select(_FOLDER, "split") for photos in (manifest, rejected)]).drop_nulls("split")
    harmless = known.join(known.filter(pl.col("split") == "test"), on="folder", how="anti")
    unknown = rejected.filter(pl.col("split").is_null()).with_columns(_FOLDER)
    untold = unknown.join(harmless, on="folder", how="anti").sort("path")
    if not untold.is_empty():
        log.warning(
            "%d files that could not be read may be test photos, but their split is not known, so they are not listed; "
            "a competition may refuse the file. The first is %s (%s): replace or remove it, and run again with "
            "--forcerun ingest_photos",
            untold.height,
            untold["path"][0],
            untold["reason"][0],
        )


def with_source_ids(photos: Sequence[Photo], annotations: str | Path) -> list[Photo]:
    """The photos with the image ids of the organisers' COCO-like JSON, matched by the end of their paths.

    Args:
        photos: all test photos.
        annotations: a JSON object with ``images``, each with ``id`` and ``file_name``.

    Raises:
        ArtifactError: if a photo is not among the images, or an image of the JSON is not among the photos.
    """
    images = json.loads(Path(annotations).read_text(encoding="utf-8"))["images"]
    ids = {str(image["file_name"]): str(image["id"]) for image in images}
    depths = sorted({name.count("/") + 1 for name in ids}, reverse=True)
    found = []
    for photo in photos:
        ends = ["/".join(PurePosixPath(photo.path).parts[-depth:]) for depth in depths]
        name = next((end for end in ends if end in ids), None)
        if name is None:
            raise ArtifactError(f"{annotations}: the test photo {photo.path} is not among the images")
        found.append(replace(photo, image_id=ids.pop(name)))
    if ids:
        raise ArtifactError(
            f"{annotations}: {len(ids)} of its {len(images)} images are not among the test photos, the first is "
            f"{next(iter(ids))!r}; a submission without them would be refused. Is the test split complete?"
        )
    return found


def submission_rows(photos: Sequence[Photo], layout: str, top_k: int) -> tuple[Row, list[Row]]:
    """Header and rows of a submission, sorted by their first field.

    Args:
        photos: all test photos.
        layout: one of :data:`LAYOUTS`.
        top_k: how many classes ``semi_inat`` lists; the other layouts fix it.

    Raises:
        ValueError: if the layout is unknown, a class id cannot stand in it, or too few classes are predicted.
        ArtifactError: if two photos would have the same Id.
    """
    rows: list[Row]
    header: Row
    if layout == "simple":
        header = ("image_id", "class_name", "probability")
        rows = [(photo.image_id, photo.names[0], f"{photo.probabilities[0]:.6f}") for photo in photos]
    elif layout == "semi_inat":
        header = ("Id", "Category")
        rows = [(PurePosixPath(photo.path).name, _joined(photo, top_k)) for photo in photos]
    elif layout == "inat":
        header = ("Id", "Predicted")
        short = next((photo for photo in photos if len(photo.names) < INAT_CLASSES), None)
        if short is not None:
            raise ValueError(
                f"submission.layout: 'inat' needs {INAT_CLASSES} classes a photo, but the predictions of "
                f"{short.image_id!r} list {len(short.names)}; predict more classes, or choose another layout"
            )
        rows = [(photo.image_id, _joined(photo, INAT_CLASSES)) for photo in photos]
    else:
        raise ValueError(f"submission.layout: expected one of {', '.join(LAYOUTS)}, found {layout!r}")
    rows.sort()
    for before, after in itertools.pairwise(rows):
        if before[0] == after[0]:
            raise ArtifactError(f"two test photos have the Id {after[0]!r} in layout {layout!r}; rename one of them")
    return header, rows


def _joined(photo: Photo, count: int) -> str:
    names = photo.names[:count]
    spaced = next((name for name in names if len(name.split()) != 1), None)
    if spaced is not None:
        raise ValueError(
            f"submission.layout: class {spaced!r} has a space in its name and cannot stand in a list separated by "
            "spaces; choose the layout 'simple'"
        )
    return " ".join(names)

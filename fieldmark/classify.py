"""Name photos with a finished classifier.

On the command line: ``python -m fieldmark.classify results/model/ensemble.safetensors photos/``.

A model that was trained with places and dates takes them from a table (``--places``); without, it names photos by
their pixels alone. Of key regions nothing is known here: the full photo stands in for them.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from fieldmark.artifacts import ArtifactError
from fieldmark.context import Context
from fieldmark.finished import Finished, load_finished, photos_alone
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoError, load_photo
from fieldmark.metadata import encode
from fieldmark.models import Architecture
from fieldmark.predictions import top_classes
from fieldmark.readers.files import list_photos
from fieldmark.readers.listing import DataError
from fieldmark.readers.table import read_places
from fieldmark.submission import write_csv

HEADER = ("photo", "rank", "class_name", "probability")
Row = tuple[str, ...]

# Photos between two lines of progress; also bounds the memory for their probabilities.
_AT_ONCE = 512


def photos_below(places: Sequence[str]) -> list[str]:
    """The photos that the user names: files as they are, folders with all photos in them, each once, in order."""
    found: dict[str, None] = {}
    for place in map(Path, places):
        names = [str(place / name) for name in list_photos(place, place)[0]] if place.is_dir() else [str(place)]
        found.update(dict.fromkeys(names))
    return list(found)


def with_places(paths: Sequence[str], places: pl.DataFrame) -> Callable[[Architecture], Context]:
    """What is known of photos beside their pixels; ``places`` as of :func:`fieldmark.readers.table.read_places`."""
    asked = pl.DataFrame({"file": [os.path.realpath(path) for path in paths]}, schema={"file": pl.String})
    rows = asked.join(places, on="file", how="left", maintain_order="left")

    def context_of(architecture: Architecture) -> Context:
        alone = photos_alone(len(paths), architecture)
        if architecture.metadata.encoding == "none":
            return alone
        return replace(alone, metadata=encode(rows, architecture.metadata))

    return context_of


def notices(finished: Finished, places: pl.DataFrame | None) -> Iterator[str]:
    """What the model was trained with and does not get here."""
    architectures = [model.architecture for model, _ in finished.members]
    takes_places = any(architecture.metadata.encoding != "none" for architecture in architectures)
    if takes_places and places is None:
        yield "this model was trained with places and dates: without --places it names photos less well"
    if places is not None and not takes_places:
        yield "this model takes no places and dates: --places has no effect"
    if any(architecture.streams != "photo" for architecture in architectures):
        yield "this model was trained with key regions, which are not looked for here: it sees the full photo instead"


def classify(
    finished: Finished, paths: Sequence[str], hardware: Hardware, top_k: int, places: pl.DataFrame | None = None
) -> tuple[list[Row], list[PhotoError]]:
    """Name photos.

    Args:
        finished: the classifier.
        paths: the photos.
        hardware: device and precision.
        top_k: classes per photo.
        places: of some or all of the photos.

    Returns:
        Rows as in :data:`HEADER`, best class first, and what could not be read.
    """
    good, bad = [], []
    for path in paths:
        try:
            # A first look, so that one bad photo does not cost the others of its batch.
            load_photo(path, 32)
            good.append(path)
        except PhotoError as error:
            bad.append(error)
    context_of = None if places is None else with_places(good, places)
    class_ids, probabilities = top_classes(finished.probabilities(good, hardware, context_of), top_k)
    rows: list[Row] = [
        (path, str(rank), finished.class_names[class_id], f"{probability:.4f}")
        for path, ids, values in zip(good, class_ids.tolist(), probabilities.tolist(), strict=True)
        for rank, (class_id, probability) in enumerate(zip(ids, values, strict=True), start=1)
    ]
    return rows, bad


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 1 if a photo could not be read, or 2 if nothing could be done."""
    parser = argparse.ArgumentParser(prog="python -m fieldmark.classify", description="Name photos.")
    parser.add_argument("model", help="finished classifier, results/model/ensemble.safetensors")
    parser.add_argument("photos", nargs="+", help="photos, or folders of them")
    parser.add_argument("--output", type=Path, help="CSV file to write (default: print it)")
    parser.add_argument(
        "--places", type=Path, help="table, .csv or .parquet: path (from its folder on), latitude, longitude, date"
    )
    parser.add_argument("--top-k", type=int, default=1, help="classes per photo (default: 1)")
    given = parser.parse_args(arguments)
    if given.top_k < 1:
        parser.error(f"--top-k: expected at least 1, found {given.top_k}")
    try:
        finished = load_finished(given.model)
        places = None if given.places is None else read_places(given.places)
    except (ArtifactError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    paths = photos_below(given.photos)
    if not paths:
        print(f"no photos in {', '.join(given.photos)}", file=sys.stderr)
        return 2
    for notice in notices(finished, places):
        print(notice, file=sys.stderr)
    hardware = Hardware.of_machine()
    rows: list[Row] = []
    unreadable = 0
    for start in range(0, len(paths), _AT_ONCE):
        named, bad = classify(finished, paths[start : start + _AT_ONCE], hardware, given.top_k, places)
        rows += named
        unreadable += len(bad)
        for problem in bad:
            print(f"left out: {problem}", file=sys.stderr)
        if given.output:
            print(f"{min(start + _AT_ONCE, len(paths))}/{len(paths)} photos", file=sys.stderr)
    if given.output:
        write_csv(HEADER, rows, given.output)
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows([HEADER, *rows])
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())

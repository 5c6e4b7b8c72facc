"""Name photos with a finished classifier.

On the command line: ``python -m fieldmark.classify results/model/ensemble.safetensors photos/``.

A model that was trained with places and dates takes them from a table (``--places``); without, it names photos by
their pixels alone. Of key regions nothing is known here: the full photo stands in for them.
"""

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from fieldmark.artifacts import ArtifactError
from fieldmark.context import Context
from fieldmark.finished import Finished, load_finished, photos_alone
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoError, load_photo
from fieldmark.metadata import encode
from fieldmark.models import Architecture
from fieldmark.predictions import top_classes
from fieldmark.readers.files import is_utf8, list_photos, shown
from fieldmark.readers.table import read_places
from fieldmark.tables import DataError, write_csv

HEADER = ("photo", "rank", "class_name", "probability")
Row = tuple[str, ...]

# Photos between two lines of progress; also bounds the memory for their probabilities.
_AT_ONCE = 512


def photos_below(places: Sequence[str]) -> tuple[list[str], list[PhotoError]]:
    """The photos that the user names: files as they are, folders with all photos in them, each once, in order.

    Returns:
        The photos; and what is refused without a look at its content, such as HEIC, each once.

    Raises:
        DataError: if a folder that the user names cannot be listed.
    """
    found: dict[str, None] = {}
    refused: dict[str, str] = {}
    for place in map(Path, places):
        if not is_utf8(str(place)):
            refused[shown(str(place))] = "its name is not UTF-8"
        elif _is_folder(place):
            names, left_out = list_photos(place, place)
            found.update(dict.fromkeys(str(place / name) for name in names))
            refused.update((str(place / name), reason) for name, reason in left_out)
        else:
            found[str(place)] = None
    return list(found), [PhotoError(path, reason) for path, reason in refused.items()]


def _is_folder(place: Path) -> bool:
    try:
        return place.is_dir()
    except OSError:  # no permission to look: who takes it for a photo names the reason
        return False


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


def told_by_places(finished: Finished, paths: Sequence[str], places: pl.DataFrame, table: Path) -> str | None:
    """Of how many photos the table tells something that the model can use; None if the model takes no places.

    Args:
        finished: the classifier.
        paths: all photos to be named.
        places: as of :func:`fieldmark.readers.table.read_places`.
        table: where they are from.

    Raises:
        DataError: if it is none.
    """
    context_of = with_places(paths, places)
    contexts = [context_of(model.architecture).metadata for model, _ in finished.members]
    # What is unknown is encoded as zeros throughout; a model without places gets no columns.
    known = [context.any(axis=1) for context in contexts if len(context)]
    if not known:
        return None
    count = np.logical_or.reduce(known).sum()
    if count:
        return f"places or dates known for {count} of {len(paths)} photos"
    if places.is_empty():
        raise DataError(f"{table}: expected a row for each photo, found none")
    real = [os.path.realpath(path) for path in paths]
    if set(real).isdisjoint(places["file"]):
        raise DataError(
            f"{table}: none of its rows is of one of the {len(paths)} photos. Paths in it start from its folder, "
            f"{table.parent.absolute()}: its first row is of {places['file'][0]}, the first photo is {real[0]}"
        )
    raise DataError(
        f"{table}: the rows of these photos hold neither a place nor a date that this model can use; expected latitude "
        "and longitude in degrees, known exactly enough, or a date as year-month-day"
    )


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
    # A first look, so that one bad photo does not cost the others of its batch.
    good, bad = _readable(paths)
    dense = None
    while dense is None:
        context_of = None if places is None else with_places(good, places)
        try:
            dense = finished.probabilities(good, hardware, context_of)
        except PhotoError as error:
            # It vanished or broke since; so may others have, hence another look at all. The cause is told without the
            # remedy, which is the workflow's.
            bad.append(error.__cause__ if isinstance(error.__cause__, PhotoError) else error)
            good, gone = _readable([path for path in good if path != error.path])
            bad += gone
    class_ids, probabilities = top_classes(dense, top_k)
    rows: list[Row] = [
        (path, str(rank), finished.class_names[class_id], f"{probability:.4f}")
        for path, ids, values in zip(good, class_ids.tolist(), probabilities.tolist(), strict=True)
        for rank, (class_id, probability) in enumerate(zip(ids, values, strict=True), start=1)
    ]
    return rows, bad


def _readable(paths: Sequence[str]) -> tuple[list[str], list[PhotoError]]:
    good, bad = [], []
    for path in paths:
        try:
            load_photo(path, 32)
            good.append(path)
        except PhotoError as error:
            bad.append(error)
    return good, bad


def _why_unwritable(output: Path) -> str | None:
    """Why a file cannot be written, as far as that can be told beforehand; missing folders are made."""
    try:
        if output.is_dir():
            return f"expected a file, found the folder {output}; name a file in it, such as {output / 'names.csv'}"
        if output.exists() and not output.is_file():
            return f"{output} is not a regular file; name another, or leave --output out to print"
        folder = next(parent for parent in output.absolute().parents if parent.exists())
        if not folder.is_dir():
            return f"{output} cannot be written, since {folder} is a file and no folder; name another"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"{output} cannot be written: no permission to make files in {folder}; name another folder"
    except OSError as error:
        return f"{output} cannot be written: {error.strerror}; name another file"
    return None


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
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
    fault = _why_unwritable(given.output) if given.output else None
    if fault:
        parser.error(f"--output: {fault}")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 1 if a file was left out, or 2 if nothing could be done."""
    given = _given(arguments)
    try:
        finished = load_finished(given.model)
        places = None if given.places is None else read_places(given.places)
        paths, refused = photos_below(given.photos)
        for problem in refused:
            print(f"left out: {problem}", file=sys.stderr)
        if not paths:
            raise DataError(_no_photos(given.photos, refused))
        told = None if places is None else told_by_places(finished, paths, places, given.places)
    except (ArtifactError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    for notice in [*notices(finished, places), *([told] if told else [])]:
        print(notice, file=sys.stderr)
    hardware = Hardware.of_machine()
    rows: list[Row] = []
    left_out = len(refused)
    for start in range(0, len(paths), _AT_ONCE):
        named, bad = classify(finished, paths[start : start + _AT_ONCE], hardware, given.top_k, places)
        rows += named
        left_out += len(bad)
        for problem in bad:
            print(f"left out: {problem}", file=sys.stderr)
        if given.output:
            print(f"{min(start + _AT_ONCE, len(paths))}/{len(paths)} photos", file=sys.stderr)
    if not rows:
        print("no photo could be named, and nothing was written", file=sys.stderr)
        return 2
    if given.output:
        write_csv(HEADER, rows, given.output)
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows([HEADER, *rows])
    return 1 if left_out else 0


def _no_photos(places: Sequence[str], refused: Sequence[PhotoError]) -> str:
    reasons = Counter(problem.reason for problem in refused).most_common()
    summary = "; ".join(f"{count} × {reason}" for reason, count in reasons)
    return f"no photos in {', '.join(map(shown, places))}" + (f" but those left out: {summary}" if refused else "")


if __name__ == "__main__":
    sys.exit(main())

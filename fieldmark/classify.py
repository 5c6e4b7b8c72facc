"""Name photos with a finished classifier.

On the command line: ``python -m fieldmark.classify results/model/ensemble.safetensors photos/``.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from fieldmark.artifacts import ArtifactError
from fieldmark.finished import Finished, load_finished
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoError, load_photo
from fieldmark.predictions import top_classes
from fieldmark.readers.files import list_photos
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


def classify(
    finished: Finished, paths: Sequence[str], hardware: Hardware, top_k: int
) -> tuple[list[Row], list[PhotoError]]:
    """Name photos.

    Args:
        finished: the classifier.
        paths: the photos.
        hardware: device and precision.
        top_k: classes per photo.

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
    class_ids, probabilities = top_classes(finished.probabilities(good, hardware), top_k)
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
    parser.add_argument("--top-k", type=int, default=1, help="classes per photo (default: 1)")
    given = parser.parse_args(arguments)
    if given.top_k < 1:
        parser.error(f"--top-k: expected at least 1, found {given.top_k}")
    try:
        finished = load_finished(given.model)
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 2
    paths = photos_below(given.photos)
    if not paths:
        print(f"no photos in {', '.join(given.photos)}", file=sys.stderr)
        return 2
    hardware = Hardware.of_machine()
    rows: list[Row] = []
    unreadable = 0
    for start in range(0, len(paths), _AT_ONCE):
        named, bad = classify(finished, paths[start : start + _AT_ONCE], hardware, given.top_k)
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

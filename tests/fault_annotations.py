"""Faults of annotation files, and what reading each of them comes to; docs/faults.md lists them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from fieldmark.readers import read_listing
from fieldmark.readers.candidates import to_candidates
from fieldmark.tables import DataError
from tests.miniatures import coco, write_coco

Documents = dict[str, Any]


@dataclass(frozen=True)
class AnnotationCase:
    """One fault.

    Attributes:
        what: as the document names it.
        change: spoils the documents of the splits before they are written.
        spoil: spoils the file of the labeled photos.
        refused: whether reading must end with an error.
    """

    what: str
    change: Callable[[Documents], object] = lambda documents: None
    spoil: Callable[[bytes], bytes] = lambda data: data
    refused: bool = True


def photo(split: str, **values: Any) -> Callable[[Documents], object]:
    """Set keys of a split's first photo."""
    return lambda documents: documents[split]["images"][0].update(values)


def label(split: str, **values: Any) -> Callable[[Documents], object]:
    """Set keys of a split's first annotation."""
    return lambda documents: documents[split]["annotations"][0].update(values)


def lone_class(documents: Documents) -> None:
    labeled = documents["labeled"]
    for key in ("categories", "annotations", "images"):
        labeled[key].pop(0 if key == "categories" else -1)


ANNOTATIONS = [
    AnnotationCase("two photos of the same id", lambda d: d["labeled"]["images"].append(d["labeled"]["images"][0])),
    AnnotationCase("two classes of the same id", lambda d: d["labeled"]["categories"].append({"id": 3})),
    AnnotationCase("two photos that differ in the suffix alone", photo("unlabeled", file_name="x/1.png")),
    AnnotationCase("a photo that is in two splits", photo("unlabeled", file_name="x/1.jpg")),
    AnnotationCase("a label of a photo that is not there", label("labeled", image_id=77)),
    AnnotationCase("two labels for one photo", label("labeled", category_id=7)),
    AnnotationCase("a labeled photo without label", lambda d: d["labeled"]["annotations"].pop()),
    AnnotationCase("a class that is not listed", label("val", category_id=4)),
    AnnotationCase("a number of 300 digits for a class", label("val", category_id=10**300)),
    AnnotationCase("a class without labeled photos", lambda d: d["labeled"]["categories"].append({"id": 55})),
    AnnotationCase("one class only", lone_class),
    AnnotationCase("no labeled photos", lambda d: d["labeled"].update(images=[], annotations=[])),
    AnnotationCase("no val photos", lambda d: d["val"].update(images=[], annotations=[])),
    AnnotationCase("no test photos", lambda d: d["test"].update(images=[]), refused=False),
    AnnotationCase("a path with ..", photo("unlabeled", file_name="../5.jpg")),
    AnnotationCase("a path with .. in the middle", photo("unlabeled", file_name="u/../../5.jpg")),
    AnnotationCase("an absolute path", photo("unlabeled", file_name="/etc/passwd")),
    AnnotationCase("a path with a NUL", photo("unlabeled", file_name="u/\0.jpg")),
    AnnotationCase("half a Unicode letter", photo("unlabeled", file_name="u/\ud800.jpg")),
    AnnotationCase("a list for a path", photo("unlabeled", file_name=["u"])),
    AnnotationCase("NaN for a latitude", photo("labeled", latitude=float("nan")), refused=False),
    AnnotationCase("a latitude of 91 degrees", photo("labeled", latitude=91.0), refused=False),
    AnnotationCase("a longitude of 400 digits", photo("labeled", longitude=10**400), refused=False),
    AnnotationCase("a word for a longitude", photo("labeled", longitude="west"), refused=False),
    AnnotationCase("the 30th of February", photo("labeled", date="2021-02-30"), refused=False),
    AnnotationCase("a box of two numbers", label("labeled", bbox=[1, 2])),
    AnnotationCase("a box with a side of zero", lambda d: d["labeled"]["annotations"].pop(1), refused=False),
    AnnotationCase("an object where a list is expected", lambda d: d["labeled"].update(images={})),
    AnnotationCase("a number where a photo is expected", lambda d: d["labeled"]["images"].append(3)),
    AnnotationCase("a byte order mark", spoil=lambda data: b"\xef\xbb\xbf" + data, refused=False),
    AnnotationCase("Latin-1", spoil=lambda data: data.replace(b'"a"', b'"\xe9"')),
    AnnotationCase("UTF-16", spoil=lambda data: data.decode().encode("utf-16")),
    AnnotationCase("text after the end", spoil=lambda data: data + b" trailing"),
    AnnotationCase("half a file", spoil=lambda data: data[: len(data) // 2]),
    AnnotationCase("an empty file", spoil=lambda data: b""),
    AnnotationCase("100,000 opening brackets", spoil=lambda data: b"[" * 100_000),
]


def read(folder: Path, case: AnnotationCase) -> pl.DataFrame:
    """Write the documents with a case's fault and read them as the workflow does."""
    documents = coco()
    # A date that can be spoiled, a place that is valid, one box.
    documents["labeled"]["images"][0].update(longitude=20.0, location_uncertainty=5, date="2021-06-03")
    documents["labeled"]["annotations"][0].update(bbox=[1, 2, 3, 0])
    case.change(documents)
    folder.mkdir()
    names = write_coco(folder, documents)
    path = folder / names["labeled"]
    path.write_bytes(case.spoil(path.read_bytes()))
    return to_candidates(read_listing("coco", folder, folder, annotations=names), ["family"])[0]


def annotation_outcomes(folder: Path) -> list[tuple[AnnotationCase, str]]:
    """What reading each of :data:`ANNOTATIONS` comes to.

    Raises:
        AssertionError: if something is read that must be refused, or the other way round.
    """
    whole = read(folder / "whole", AnnotationCase("nothing"))
    outcomes = []
    for number, case in enumerate(ANNOTATIONS):
        root = folder / str(number)
        try:
            outcome = compared(read(root, case), whole, root, folder / "whole")
        except DataError as error:
            outcome = f"refused: {error}".replace(str(root), "…")
        assert outcome.startswith("refused") == case.refused, f"{case.what}: {outcome}"
        outcomes.append((case, outcome))
    return outcomes


def compared(found: pl.DataFrame, whole: pl.DataFrame, root: Path, whole_root: Path) -> str:
    """In which columns what was read differs from what is read without the fault."""
    found = found.with_columns(pl.col("path").str.replace(str(root), str(whole_root), literal=True))
    if found.height < whole.height:
        return "read, with a warning in the log"
    emptied = [name for name in whole.columns if found[name].null_count() > whole[name].null_count()]
    same = found.select(pl.exclude(emptied)).equals(whole.select(pl.exclude(emptied)))
    assert same, found.columns
    return f"read; left empty: {', '.join(emptied)}" if emptied else "read as if it were not there"

"""Readers of the Semi-iNat, COCO and folder layouts."""

import errno
import json
import os
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, settings

from fieldmark.readers import read_listing
from fieldmark.readers.candidates import to_candidates
from fieldmark.readers.coco import read_coco
from fieldmark.readers.files import list_photos, load_json, subfolders
from fieldmark.readers.folder import read_folder
from fieldmark.readers.semi_inat import read_semi_inat
from fieldmark.tables import DataError
from tests.miniatures import coco, write_coco

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\xff\xd8\xff")


def rows(frame: pl.DataFrame) -> dict[str, dict]:
    return {row["image_id"]: row for row in frame.to_dicts()}


# Semi-iNat


@pytest.fixture
def semi_inat(tmp_path: Path) -> Path:
    touch(tmp_path, "l_train/0/a.jpg", "l_train/1/a.jpg", "l_train/10/b.jpg", "val/0/v.jpg", "val/10/v.JPG")
    touch(tmp_path, "u_train/u_train_0/x.jpg", "u_train/u_train_1/y.jpg", "u_train/z.jpg", "test/t.jpg")
    (tmp_path / "l_train/anno_l_train.json").write_text("{}")
    taxa = {"kingdom": "Animalia", "class": "", "family": "F"}
    classes = [{"class_id": number, "phylum": f"P{number}", **taxa} for number in (10, 0, 1)]
    unlabeled = [
        {"image_name": "u_train_0/x.jpg", "kingdom": "Animalia", "phylum": "P0"},
        {"image_name": "y.jpg", "kingdom": "Animalia", "phylum": "P1"},
        {"image_name": "u_train/z.jpg", "kingdom": "Animalia", "phylum": "P9"},
        {"image_name": "gone.jpg", "kingdom": "Animalia", "phylum": "P9"},
    ]
    document = {"info": {}, "annotations": classes, "unlabeled_taxa": unlabeled}
    (tmp_path / "annotation_v2.json").write_text("\ufeff" + json.dumps(document), encoding="utf-8")
    return tmp_path


def test_semi_inat(semi_inat: Path) -> None:
    candidates, classes = to_candidates(read_semi_inat(semi_inat), ["phylum"])
    assert classes["name"].to_list() == ["0", "1", "10"] and classes["class_id"].to_list() == [0, 1, 2]
    assert classes["family"].to_list() == ["F"] * 3 and classes["class"].null_count() == 3
    found = rows(candidates)
    assert candidates["split"].value_counts().sort("split").rows() == [
        ("labeled", 3),
        ("test", 1),
        ("unlabeled", 4),
        ("val", 2),
    ]
    assert found["l_train/10/b"]["class_id"] == 2 and found["l_train/10/b"]["phylum"] == "P10"
    assert found["l_train/10/b"]["family"] is None, "only coarse taxa may be known"
    assert found["val/10/v"]["class_id"] == 2 and found["val/10/v"]["phylum"] is None
    assert found["u_train/u_train_0/x"]["phylum"] == "P0" and found["u_train/u_train_1/y"]["phylum"] == "P1"
    assert found["u_train/z"]["phylum"] == "P9" and found["u_train/z"]["kingdom"] is None
    assert found["u_train/gone"]["path"] == f"{semi_inat}/u_train/gone.jpg", "named but absent: to be rejected later"
    assert found["test/t"]["class_id"] is None and found["test/t"]["phylum"] is None


def edit_json(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    document = json.loads(path.read_text("utf-8-sig"))
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("annotations"), "annotations: expected a JSON array"),
        (lambda d: d["annotations"].append({"class_id": 0}), "class_id 0 occurs twice"),
        (lambda d: d["annotations"].append({"class_id": None}), r"annotations\[3\]: expected 'class_id'"),
        (lambda d: d["annotations"].append({"class_id": "../x"}), "whole number"),
        (lambda d: d["annotations"].append({"class_id": 7}), "no usable labeled photo: '7'"),
        (lambda d: d["annotations"].pop(0), "class '10' is not among the annotations"),
        (lambda d: d["unlabeled_taxa"].append({"image_name": "y.jpg"}), "'y.jpg' occurs twice"),
        (lambda d: d["unlabeled_taxa"].append({"image_name": "../../y.jpg"}), "inside data.root"),
    ],
)
def test_semi_inat_faults(semi_inat: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    edit_json(semi_inat / "annotation_v2.json", change)
    with pytest.raises(DataError, match=message):
        to_candidates(read_semi_inat(semi_inat), [])


def test_ambiguous_unlabeled_name(semi_inat: Path) -> None:
    touch(semi_inat, "u_train/u_train_0/y.jpg")
    with pytest.raises(DataError, match=r"several photos are called 'y\.jpg'"):
        read_semi_inat(semi_inat)


# COCO


def test_coco(tmp_path: Path) -> None:
    write_coco(tmp_path, coco())
    candidates, classes = to_candidates(read_listing("demo", tmp_path, tmp_path), ["family"])
    assert classes["title"].to_list() == ["a", "b"]  # in the order of the ids
    assert classes["name"].to_list() == ["3", "7"] and classes["order"].to_list() == ["O", "O"]
    found = rows(candidates)
    first = found["x/1"]
    assert (first["latitude"], first["longitude"], first["location_uncertainty"]) == (0.0, -169.5, -1.0)
    assert first["date"] == "2021-06-03T10:00:00+00:00" and first["family"] == "F3" and first["order"] is None
    assert [first[f"box_{side}"] for side in "xywh"] == [5, 6, 30, 40], "of two boxes the larger"
    assert found["u/5"]["class_id"] is None and found["u/5"]["family"] == "F3" and found["u/5"]["order"] is None
    assert found["v/8"]["class_id"] == 1 and found["v/8"]["family"] is None
    assert found["t/9"]["latitude"] is None and found["t/9"]["longitude"] is None


@pytest.mark.parametrize("invalid", [[0, 0, None, 5], [60, 60, -50, -50], [5, 5, 0, 900]])
@pytest.mark.parametrize("first", [True, False])
def test_an_invalid_box_does_not_stand_in_the_way_of_a_valid_one(
    tmp_path: Path, invalid: list[float | None], first: bool
) -> None:
    boxes = [invalid, [1, 2, 30, 40]]
    documents = coco()
    own = documents["labeled"]["annotations"]
    image, category = own[0]["image_id"], own[0]["category_id"]
    others = [entry for entry in own if entry["image_id"] != image]
    both = [{"image_id": image, "category_id": category, "bbox": box} for box in (boxes if first else boxes[::-1])]
    documents["labeled"]["annotations"] = others + both
    write_coco(tmp_path, documents)
    found = rows(to_candidates(read_listing("demo", tmp_path, tmp_path), [])[0])["x/1"]
    assert [found[f"box_{side}"] for side in "xywh"] == [1, 2, 30, 40]


def test_coco_locations_and_folders(tmp_path: Path) -> None:
    names = write_coco(tmp_path, coco())
    places = [{"id": 1, "lat": -3.5, "lon": 20, "loc_uncert": 12, "date": "2017-08-09", "user_id": 4}, {"id": 99}]
    (tmp_path / "places.json").write_text(json.dumps(places))
    listing = read_coco(tmp_path, names, locations={"labeled": "places.json"}, folders={"labeled": "photos"})
    first = rows(to_candidates(listing, [])[0])["photos/x/1"]
    assert (first["latitude"], first["longitude"], first["location_uncertainty"]) == (-3.5, 20.0, 12.0)
    assert first["date"] == "2017-08-09"


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("labeled", lambda d: d["images"].append(d["images"][0]), "id '1' occurs twice"),
        ("labeled", lambda d: d["images"].append({"id": 4, "file_name": "x/1.png"}), "has no label|occurs twice"),
        ("labeled", lambda d: d["annotations"][0].update(image_id=77), "'77' is not among the images"),
        ("labeled", lambda d: d["annotations"][0].update(category_id=7), "both category"),
        ("labeled", lambda d: d["annotations"][0].update(bbox=[1, 2]), "expected bbox"),
        ("labeled", lambda d: d["annotations"].pop(), "has no label"),
        ("labeled", lambda d: d["annotations"][2].update(category_id=3), "no usable labeled photo: '7'"),
        ("labeled", lambda d: d["annotations"][2].update(category_id=-1), "unknown class '-1'"),
        ("labeled", lambda d: d["categories"].append({"id": 3}), "id '3' occurs twice"),
        ("labeled", lambda d: d["categories"].append({"id": 55}), "no usable labeled photo: '55'"),
        ("labeled", lambda d: d.update(images=[], annotations=[]), "labeled split has no photos"),
        ("labeled", lambda d: d.update(images={}), "expected a JSON array"),
        ("labeled", lambda d: d["images"].append(3), r"images\[2\]: expected a JSON object"),
        ("val", lambda d: d["annotations"][0].update(category_id=4), "unknown class '4'"),
        ("val", lambda d: d["annotations"][0].update(category_id=10**300), "unknown class '1000"),
        ("unlabeled", lambda d: d["images"][0].update(file_name="../5.jpg"), "nothing outside it is read"),
        ("unlabeled", lambda d: d["images"][0].update(file_name="/etc/passwd"), "nothing outside it is read"),
        ("unlabeled", lambda d: d["images"][0].update(file_name="u/../../5.jpg"), "nothing outside it is read"),
        ("unlabeled", lambda d: d["images"][0].update(file_name="u/\0.jpg"), "nothing outside it is read"),
        ("unlabeled", lambda d: d["images"][0].update(file_name="u/\ud800.jpg"), "valid Unicode"),
        ("unlabeled", lambda d: d["images"][0].update(file_name=["u"]), "expected 'file_name'"),
        ("unlabeled", lambda d: d["images"][0].update(file_name="x/1.jpg"), "occurs twice"),
    ],
)
def test_coco_faults(tmp_path: Path, split: str, change, message: str) -> None:  # type: ignore[no-untyped-def]
    documents = coco()
    change(documents[split])
    with pytest.raises(DataError, match=message):
        to_candidates(read_coco(tmp_path, write_coco(tmp_path, documents)), [])


def test_one_class_only(tmp_path: Path) -> None:
    documents = coco()
    documents["labeled"]["categories"].pop(0)
    documents["labeled"]["annotations"].pop()
    documents["labeled"]["images"].pop()
    with pytest.raises(DataError, match="at least two classes"):
        to_candidates(read_coco(tmp_path, write_coco(tmp_path, documents)), [])


# JSON documents


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1} trailing', "Extra data"),
        (b"", "one JSON value"),
        ('{"a": "\u00e9"}'.encode("latin-1"), "expected UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "expected UTF-8"),
        (b"[" * 100_000, "one JSON value"),
        (b"1" * 10_000, "one JSON value"),
    ],
)
def test_damaged_json(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        load_json(tmp_path / "a.json")
    assert "a.json" in str(caught.value)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json.*data\.root"):
        load_json(tmp_path / "a.json")


# Folders


def test_folder(tmp_path: Path) -> None:
    touch(tmp_path, "train/owl 'x'/1.jpg", "train/bee/deep/2.png", "val/bee/3.jpg", "unlabeled/4.jpg", "test/a/5.jpg")
    candidates, classes = to_candidates(read_folder(tmp_path, {"labeled": "train"}), [])
    assert classes["name"].to_list() == ["bee", "owl 'x'"]
    assert {name: row["class_id"] for name, row in rows(candidates).items()} == {
        "train/owl 'x'/1": 1,
        "train/bee/deep/2": 0,
        "val/bee/3": 0,
        "unlabeled/4": None,
        "test/a/5": None,
    }


def test_classes_that_differ_in_unicode_form_alone_are_told_apart(tmp_path: Path) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "Käfer"), unicodedata.normalize("NFD", "Käfer")
    touch(tmp_path, f"labeled/{composed}/1.jpg", "labeled/owl/1.jpg", f"val/{decomposed}/1.jpg")
    with pytest.raises(DataError, match="looks the same but is of other Unicode characters"):
        to_candidates(read_folder(tmp_path), [])


def test_folder_faults(tmp_path: Path) -> None:
    touch(tmp_path, "labeled/bee/1.jpg", "labeled/owl/1.jpg", "val/fly/1.jpg")
    with pytest.raises(DataError, match="unknown class 'fly'"):
        to_candidates(read_folder(tmp_path), [])
    with pytest.raises(DataError, match=r"data\.folders"):
        read_folder(tmp_path, {"train": "labeled"})
    with pytest.raises(DataError, match=r"expected a folder Labeled/ with one .* each class; found labeled/, val/"):
        read_folder(tmp_path, {"labeled": "Labeled"})
    (tmp_path / "labeled/empty").mkdir()
    (tmp_path / "val/fly").rename(tmp_path / "val/bee")
    with pytest.raises(DataError, match="no usable labeled photo: 'empty'"):
        to_candidates(read_folder(tmp_path), [])
    touch(tmp_path, "labeled/stray.jpg")
    with pytest.raises(DataError, match=r"labeled/stray\.jpg: expected this photo in a folder"):
        read_folder(tmp_path)


def test_ids_lose_a_photos_suffix_alone_and_clashes_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "labeled/bee/m.12", "labeled/bee/m.13", "labeled/owl/1.jpg", "val/bee/v.1.JPG")
    candidates, _ = to_candidates(read_folder(tmp_path), [])
    assert candidates["image_id"].to_list() == ["labeled/bee/m.12", "labeled/bee/m.13", "labeled/owl/1", "val/bee/v.1"]
    touch(tmp_path, "labeled/bee/m.12.png", "labeled/owl/1.png", "val/bee/v.1.png")
    with pytest.raises(
        DataError, match=r"'labeled/bee/m\.12' occurs twice: .* and so do 2 others; list each photo once"
    ):
        to_candidates(read_folder(tmp_path), [])


def test_what_was_refused_is_told_where_something_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, "labeled/bee/1.jpg", "labeled/owl/1.heic", "labeled/owl/2.heic")
    refused = (
        r" \(2 files or folders were refused, such as 'labeled/owl/1\.heic': HEIC is not read; convert it to JPEG\)"
    )
    with pytest.raises(DataError, match=f"the val split has no photos{refused}; it needs some"):
        to_candidates(read_folder(tmp_path), [])
    touch(tmp_path, "val/bee/1.jpg")
    with pytest.raises(DataError, match=f"no usable labeled photo: 'owl'{refused}; add one or remove the class"):
        to_candidates(read_folder(tmp_path), [])


def test_list_photos_odd_entries(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "a/1.jpg", "a/new\nline.jpg", "a/no_suffix", "a/.hidden.jpg", "a/._1.jpg")
    touch(outside, "o.jpg")
    (root / "a/notes.txt").write_text("not a photo")
    (root / "a/phone.HEIC").write_bytes(b"\0\0\0 ftypheic")
    # A raw file that begins as a TIFF file does; one whose JPEG lies beside it is passed over.
    for name in ("a/raw.NEF", "a/1.CR2"):
        (root / name).write_bytes(b"II*\0")
    (root / "a/loop").symlink_to(root / "a")
    (root / "a/self.jpg").symlink_to(root / "a/self.jpg")
    (root / "a/self").symlink_to(root / "a/self")
    (root / "a/away").symlink_to(outside)
    (root / "a/near").symlink_to(root / "b")
    touch(root, "b/2.jpg")
    with open(os.fsencode(root / "a") + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123  # a name of raw bytes
        file.write(b"\xff\xd8\xff")
    found, refused = list_photos(root, root / "a")
    assert found == ["a/1.jpg", "a/near/2.jpg", "a/new\nline.jpg", "a/no_suffix", "a/self.jpg"]
    assert sorted(refused) == [
        ("a/away", "a link that leaves the data folder"),
        ("a/caf\\xe9.jpg", "its name is not UTF-8"),
        ("a/loop", "a loop of links"),
        ("a/phone.HEIC", "HEIC is not read; convert it to JPEG"),
        ("a/raw.NEF", "NEF is not read; convert it to JPEG"),
    ]
    assert list_photos(root, root / "absent") == ([], [])


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders to be listed no more."""
    folders: list[Path] = []
    scan = os.scandir

    def refuse(folder: str | Path):  # type: ignore[no-untyped-def]
        # As the system says it of a folder without permissions, which do not bind root.
        if Path(folder) in folders:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    return folders


def test_a_folder_that_cannot_be_listed_is_refused_and_the_others_are_read(tmp_path: Path, closed: list[Path]) -> None:
    touch(tmp_path, "labeled/bee/1.jpg", "labeled/owl/2.jpg", "unlabeled/lost+found/x.jpg", "unlabeled/b/3.jpg")
    closed.append(tmp_path / "unlabeled/lost+found")
    listing = read_folder(tmp_path)
    assert listing.photos["file"].to_list() == ["labeled/bee/1.jpg", "labeled/owl/2.jpg", "unlabeled/b/3.jpg"]
    assert listing.refused.rows() == [("unlabeled/lost+found", "a folder that cannot be listed: Permission denied")]


def test_where_a_search_begins_the_folder_must_be_listed(tmp_path: Path, closed: list[Path]) -> None:
    touch(tmp_path, "labeled/bee/1.jpg")
    closed.append(tmp_path / "labeled")
    for search in (lambda: list_photos(tmp_path, tmp_path / "labeled"), lambda: subfolders(tmp_path / "labeled")):
        with pytest.raises(DataError, match=r"labeled: cannot list this folder \(Permission denied\); give yourself"):
            search()
    assert subfolders(tmp_path / "absent") == []

"""Readers of tables and torchvision sets, and properties that every reader keeps."""

import datetime
import json
import math
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fieldmark.artifacts import SPLITS
from fieldmark.readers import read_listing
from fieldmark.readers.candidates import to_candidates
from fieldmark.readers.coco import read_coco
from fieldmark.readers.folder import read_class_folders
from fieldmark.readers.listing import Listing, make_listing, number
from fieldmark.readers.places import clean_places, normalise_date
from fieldmark.readers.semi_inat import read_semi_inat
from fieldmark.readers.table import read_table_source
from fieldmark.readers.torchvision_set import read_torchvision
from fieldmark.tables import DataError

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\xff\xd8\xff")


def rows(frame: pl.DataFrame) -> dict[str, dict]:
    return {row["image_id"]: row for row in frame.to_dicts()}


# Tables

TABLE = """path,split,label,latitude,longitude,date,box_x,box_y,box_w,box_h,family,comment
a/1.jpg,labeled,007,1.5,2.5,2020/1/2,0,0,5,5,F,x
a/2.jpg,labeled,12,north,2.5,yesterday,0,0,0,5,G,x
a/3.jpg,val,12,,,,,,,,G,x
"a/4, b.jpg",unlabeled,,,,,,,,,F,x
a/5.jpg,test,,,,,,,,,,x
"""


def test_lost_places_and_dates_are_told_with_an_example(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "photos.csv").write_text(TABLE)
    to_candidates(read_table_source(tmp_path, "photos.csv"), [])
    told = "1 of 2 photos have an impossible"
    assert f"{told} latitude, which is not used, the first is a/2.jpg: expected degrees from −90 to 90" in caplog.text
    assert "with a longitude beside it, found no number" in caplog.text.replace("a decimal point and ", "")
    assert (
        f"{told} date, which is not used, the first is a/2.jpg: expected year-month-day, found yesterday" in caplog.text
    )
    assert f"{told} box, which is not used" in caplog.text and "found 0.0, 0.0, 0.0, 5.0" in caplog.text


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "photos.csv").write_text("\ufeff" + TABLE, encoding="utf-8")
    if suffix == "parquet":
        frame = pl.read_csv(tmp_path / "photos.csv", schema_overrides={"label": pl.String, "path": pl.String})
        frame.write_parquet(tmp_path / "photos.parquet")
    candidates, classes = to_candidates(read_table_source(tmp_path, f"photos.{suffix}"), ["family"])
    assert classes["name"].to_list() == ["007", "12"] and classes["family"].to_list() == ["F", "G"]
    found = rows(candidates)
    assert found["a/1"]["latitude"] == 1.5 and found["a/1"]["date"] == "2020-01-02" and found["a/1"]["box_w"] == 5
    assert found["a/2"]["latitude"] is None and found["a/2"]["date"] is None and found["a/2"]["box_w"] is None
    assert found["a/4, b"]["family"] == "F" and found["a/4, b"]["class_id"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.replace("path,", "file,"),
            "expected the columns path, split, label, found 'file', 'split', .*, …",
        ),
        (
            lambda t: t.replace('"a/4, b.jpg"', "a/4.jpg").replace(",", ";"),
            "separated by semicolons: save it with commas",
        ),
        (lambda t: t.replace("path,split", "Path,Split"), "written exactly so, in small letters"),
        (lambda t: t.replace("a/5.jpg,test", "a/5.jpg,holdout"), "line 6: expected split.*'holdout'"),
        (lambda t: t.replace("a/5.jpg,test", ",test"), "line 6 has no path"),
        (lambda t: t.replace("a/5.jpg", "a/1.jpg"), "'a/1' occurs twice"),
        (lambda t: t.replace("a/5.jpg", "../a/1.jpg"), "nothing outside"),
        (lambda t: t.replace("a/3.jpg,val,12", "a/3.jpg,val,13"), "unknown class '13'"),
        (lambda t: t.replace("a/3.jpg,val,12", "a/3.jpg,val,0007"), "such as '007'"),
        (lambda t: t.replace("a/3.jpg,val,12", "a/3.jpg,val,"), "has no label"),
        (lambda t: t.replace("labeled,12", "labeled,007"), "more than one family"),
        (lambda t: t + "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o\n", "expected a table"),
        (lambda t: "", "expected a table"),
    ],
)
def test_table_faults(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "photos.csv").write_text(change(TABLE))
    with pytest.raises(DataError, match=message):
        to_candidates(read_table_source(tmp_path, "photos.csv"), [])


def test_rows_without_any_value_are_passed_over(tmp_path: Path) -> None:
    header, *lines = TABLE.splitlines()
    blank = "," * header.count(",")
    (tmp_path / "photos.csv").write_text("\n".join([header, blank, *lines, blank, blank]) + "\n")
    assert read_table_source(tmp_path, "photos.csv").photos.height == len(lines)
    (tmp_path / "photos.csv").write_text("\n".join([header, blank, *lines, blank + "x"]).replace("a/5.jpg", "") + "\n")
    with pytest.raises(DataError, match="line 7 has no path"):
        read_table_source(tmp_path, "photos.csv")


def test_true_minus_signs_are_understood(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("path,label,latitude,longitude\na.jpg,x,\N{MINUS SIGN}1.5,-2\n")
    places = read_table_source(tmp_path, "photos.csv", with_splits=False).photos
    assert places.select("latitude", "longitude").row(0) == (-1.5, -2.0)


def test_classes_of_a_table_that_only_look_the_same_are_refused(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD")]
    rows = [f"{number}.jpg,labeled,{label}" for number, label in enumerate(forms)]
    (tmp_path / "photos.csv").write_text("\n".join(["path,split,label", *rows, "3.jpg,val,Käfer", "4.jpg,test,"]))
    with pytest.raises(DataError, match=r"classes .* look the same but are of different Unicode characters"):
        to_candidates(read_table_source(tmp_path, "photos.csv"), [])


def test_table_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("path,split,label\ncaf\u00e9.jpg,labeled,x\n".encode("latin-1"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    for name, message in {
        "a.csv": "UTF-8",
        "a.parquet": "expected a table",
        "b.csv": "cannot read",
        "a.xls": "csv",
    }.items():
        with pytest.raises(DataError, match=message):
            read_table_source(tmp_path, name)


def test_absolute_paths_inside_the_root(tmp_path: Path) -> None:
    photos = [
        {"file": str(tmp_path / "a" / ".." / name), "split": split, "label": label}
        for name, split, label in [("1.jpg", "labeled", "x"), ("2.jpg", "labeled", "y"), ("3.jpg", "val", "x")]
    ]
    listing = make_listing(tmp_path, photos, [{"name": "x"}, {"name": "y"}], [])  # type: ignore[arg-type]
    assert to_candidates(listing, [])[0]["image_id"].to_list() == ["1", "2", "3"]


# torchvision: stand-ins, since importing torchvision takes seconds


class FakeData:
    classes = ("ant", "bee")

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        self.download = download
        self.count = 2 if train else 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (4, 4), (index, 0, 0)), index


class FakeFiles(FakeData):
    def __init__(self, root: str, train: bool = True) -> None:
        super().__init__(root, train)
        self._image_files = [f"{root}/jpg/{train}{index}.jpg" for index in range(self.count)]
        self._labels = list(range(self.count))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type("datasets", (), {"Data": FakeData, "Files": FakeFiles, "function": len})
    monkeypatch.setattr("fieldmark.readers.torchvision_set.import_module", lambda name: module)


PARTS = ({"train": True}, {"train": False})


def test_torchvision_writes_photos_once(tmp_path: Path, torchvision: None) -> None:
    photos = tmp_path / "photos"
    listing = read_torchvision(tmp_path, "Data", photos, PARTS)
    assert listing.root == photos and listing.photos["label"].to_list() == ["ant", "bee", "ant"]
    assert listing.classes["name"].to_list() == ["ant", "bee"]
    files = [photos / name for name in listing.photos["file"]]
    before = [path.stat().st_mtime_ns for path in files]
    with Image.open(files[1]) as image:
        assert image.getpixel((0, 0)) == (1, 0, 0)
    read_torchvision(tmp_path, "Data", photos, PARTS)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_torchvision_files(tmp_path: Path, torchvision: None) -> None:
    listing = read_torchvision(tmp_path, "Files", tmp_path / "photos", PARTS)
    assert listing.photos["file"].to_list() == ["jpg/True0.jpg", "jpg/True1.jpg", "jpg/False0.jpg"]
    assert listing.root == tmp_path and not (tmp_path / "photos").exists()


def test_torchvision_faults(tmp_path: Path, torchvision: None) -> None:
    for name in ("function", "Nothing"):
        with pytest.raises(DataError, match="no data set called"):
            read_torchvision(tmp_path, name, tmp_path)
    with pytest.raises(DataError, match="cannot load Data"):
        read_torchvision(tmp_path, "Data", tmp_path, ({"split": "x"},))


# The dispatcher


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "jpeg"}, "expected one of"),
        ({"format": "coco"}, "JSON file for each split"),
        ({"format": "coco", "annotations": {"val": "x"}}, "annotations.labeled"),
        ({"format": "coco", "annotations": {"labeled": "x", "train": "x"}}, r"unknown: \['train'\]"),
        ({"format": "semi_inat", "annotations": {}}, "one JSON file"),
        ({"format": "table"}, "one CSV or Parquet"),
        ({"format": "torchvision", "dataset": "Flowers102"}, "dataset and openset"),
    ],
)
def test_dispatch_faults(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_listing(root=tmp_path, photos=tmp_path, **options)
    with pytest.raises(DataError, match=r"data\.root"):
        read_listing("demo", tmp_path / "none", tmp_path)


# Properties


@quick
@given(st.text(max_size=30))
def test_dates_of_any_text(date: str) -> None:
    found = normalise_date(date)
    assert found is None or normalise_date(found) == found


@quick
@given(st.datetimes(min_value=datetime.datetime(1800, 1, 1), max_value=datetime.datetime(2199, 1, 1)))
def test_dates_round_trip(moment) -> None:  # type: ignore[no-untyped-def]
    whole = moment.replace(microsecond=0)
    assert normalise_date(whole.isoformat(" ")) == whole.isoformat()
    assert normalise_date(f"{whole:%Y:%m:%d %H:%M:%S}") == whole.isoformat()
    assert normalise_date(whole.date().isoformat()) == whole.date().isoformat()


def test_dates() -> None:
    assert normalise_date("2021-02-30") is None and normalise_date("03/06/2021") is None
    assert normalise_date("0001-01-01") is None
    assert normalise_date("2021-6-3 09:05") == "2021-06-03T09:05:00"
    assert normalise_date("2021-06-03T09:05:07Z") == "2021-06-03T09:05:07+00:00"
    assert normalise_date("2021-06-03 09:05:07.123 -0330") == "2021-06-03T09:05:07-03:30"


ANY_NUMBER = st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=5), st.booleans(), st.just(10**400))


@quick
@given(st.lists(st.tuples(*[ANY_NUMBER] * 7), min_size=1, max_size=5))
def test_places_are_always_sane(values: list[tuple]) -> None:
    names = ("latitude", "longitude", "location_uncertainty", "box_x", "box_y", "box_w", "box_h")
    photos = [{"file": "a.jpg", **dict(zip(names, map(number, row), strict=True))} for row in values]
    cleaned = clean_places(make_listing(Path("x"), photos, [], []).photos, "x")
    for before, after in zip(photos, cleaned.to_dicts(), strict=True):
        assert (after["latitude"] is None) == (after["longitude"] is None)
        if after["latitude"] is not None:
            assert after["latitude"] == before["latitude"] and -180 <= after["longitude"] <= 180
        if after["location_uncertainty"] is not None:
            assert after["latitude"] is not None and math.isfinite(after["location_uncertainty"])
        boxed = [after[name] is not None for name in names[3:]]
        assert all(boxed) or not any(boxed)
        assert not any(boxed) or (after["box_w"] > 0 and after["box_h"] > 0)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["id", "image_id", "category_id", "file_name", "bbox", "class_id", "image_name", "date"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)
DOCUMENT = st.dictionaries(
    st.sampled_from(["images", "annotations", "categories", "unlabeled_taxa"]),
    st.one_of(JSON, st.lists(JSON)),
    max_size=4,
)


@quick
@given(st.one_of(DOCUMENT, JSON))
def test_any_json_is_read_or_refused_by_name(tmp_path: Path, document: object) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document))
    for read in (
        lambda: read_coco(tmp_path, dict.fromkeys(SPLITS, "a.json")),
        lambda: read_semi_inat(tmp_path, "a.json"),
    ):
        try:
            listing: Listing = read()
            to_candidates(listing, ["phylum"])
        except DataError as error:
            assert str(error)


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused_by_name(tmp_path: Path, data: bytes) -> None:
    for name in ("a.csv", "a.parquet"):
        (tmp_path / name).write_bytes(b"path,split,label\n" + data)
        try:
            to_candidates(read_table_source(tmp_path, name), [])
        except DataError as error:
            assert str(error)


def test_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "ant/1.jpg", "bee/2.jpg")
    listing = read_class_folders(tmp_path)
    assert listing.photos["label"].to_list() == ["ant", "bee"] and listing.classes["name"].to_list() == ["ant", "bee"]

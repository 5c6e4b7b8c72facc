"""The finished classifier in one file, and the command that names photos with it."""

import csv
import errno
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
from PIL import Image

from fieldmark.artifacts import ArtifactError
from fieldmark.classify import classify, main, photos_below
from fieldmark.context import Context, ContextTables
from fieldmark.finished import Finished, load_finished, save_finished
from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.metadata import MetadataSettings
from fieldmark.models import Architecture, build_classifier, load_classifier, save_classifier

NAMES = ["Vanessa atalanta", "Vanessa cardui, second brood", "Aglais io"]
VIEWS = ViewPlan(scales=(1.0, 1.2), flip=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    (folder / "more").mkdir()
    for name in ("a.jpg", "b.png", "more/c, d.jpg"):
        Image.fromarray(draws.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, float]:
    folder = tmp_path_factory.mktemp("models")
    shares = {folder / "first.safetensors": 0.75, folder / "second.safetensors": 0.25}
    for seed, path in enumerate(shares):
        architecture = Architecture("test_resnet", 16 * seed, len(NAMES), 0, bool(seed), 32)
        save_classifier(build_classifier(architecture, "none", seed=seed), path)
    return shares


@pytest.fixture(scope="module")
def finished(models: dict[Path, float], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("finished") / "ensemble.safetensors"
    save_finished(models, VIEWS, NAMES, target)
    return target


def test_a_finished_classifier_votes_like_its_members(photos: Path, models: dict[Path, float], finished: Path) -> None:
    paths = photos_below([str(photos)])[0]
    expected = sum(
        np.float32(share) * infer(load_classifier(path), paths, VIEWS, Hardware())[1] for path, share in models.items()
    )
    found = load_finished(finished)
    np.testing.assert_array_equal(found.probabilities(paths, Hardware()), expected)
    assert found.class_names == NAMES


def test_the_same_members_give_the_same_bytes(models: dict[Path, float], finished: Path, tmp_path: Path) -> None:
    save_finished(models, VIEWS, NAMES, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == finished.read_bytes()


def test_folders_are_searched_and_each_photo_is_named_once(photos: Path) -> None:
    paths, refused = photos_below([str(photos / "b.png"), str(photos)])
    assert [Path(path).name for path in paths] == ["b.png", "a.jpg", "c, d.jpg"]
    assert not refused


def test_the_command_writes_the_best_classes(photos: Path, finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "names.csv"
    assert main([str(finished), str(photos), "--top-k", "2", "--output", str(target)]) == 0
    with target.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = photos_below([str(photos)])[0]
    probabilities = load_finished(finished).probabilities(paths, Hardware())
    assert [row["photo"] for row in rows] == [path for path in paths for _ in range(2)]
    assert [row["rank"] for row in rows] == ["1", "2"] * len(paths)
    for row, values in zip(rows[::2], probabilities, strict=True):
        assert row["class_name"] == NAMES[values.argmax()]
        assert float(row["probability"]) == pytest.approx(values.max(), abs=1e-4)


def test_a_photo_that_cannot_be_read_is_named_and_the_others_are_done(
    photos: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    assert main([str(finished), str(bad), str(photos / "a.jpg")]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "photo,rank,class_name,probability"
    assert len(printed.out.splitlines()) == 2 and str(photos / "a.jpg") in printed.out
    assert f"left out: {bad}: zero bytes" in printed.err


def test_files_that_are_refused_unseen_are_named_and_count(
    photos: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed, phone = tmp_path / "mixed", tmp_path / "phone"
    mixed.mkdir()
    phone.mkdir()
    shutil.copy(photos / "a.jpg", mixed)
    for heic in (mixed / "b.heic", phone / "c.heic", phone / "d.HEIC"):
        heic.write_bytes(b"\0\0\0 ftypheic")
    (mixed / "away").symlink_to(photos)
    (mixed / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"\xff\xd8\xff")
    unnamed = tmp_path / os.fsdecode(b"\xe9.jpg")
    assert main([str(finished), str(mixed), str(mixed), str(unnamed)]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2 and f"{mixed}/a.jpg" in printed.out
    assert sorted(printed.err.splitlines()) == [
        f"left out: {tmp_path}/\\xe9.jpg: its name is not UTF-8",
        f"left out: {mixed}/away: a link that leaves the data folder",
        f"left out: {mixed}/b.heic: HEIC is not read; convert it to JPEG",
        f"left out: {mixed}/caf\\xe9.jpg: its name is not UTF-8",
    ]
    assert main([str(finished), str(phone)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"left out: {phone}/c.heic: HEIC is not read; convert it to JPEG",
        f"left out: {phone}/d.HEIC: HEIC is not read; convert it to JPEG",
        f"no photos in {phone} but those left out: 2 × HEIC is not read; convert it to JPEG",
    ]


@pytest.mark.parametrize(("name", "code"), [("more", 1), (".", 2)])
def test_a_folder_that_cannot_be_listed_is_named(
    name: str,
    code: int,
    photos: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan = os.scandir

    def refuse(folder: str | Path):  # type: ignore[no-untyped-def]
        # As the system says it of a folder without permissions, which do not bind root.
        if Path(folder) == photos / name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert main([str(finished), str(photos)]) == code
    printed = capsys.readouterr()
    if code == 1:
        assert f"left out: {photos}/more: a folder that cannot be listed: Permission denied" in printed.err
        assert len(printed.out.splitlines()) == 3
    else:
        assert printed.err.startswith(f"{photos}: cannot list this folder (Permission denied); give yourself")


@pytest.mark.parametrize("gone", [["b.png"], ["a.jpg", "b.png"]])
def test_photos_that_vanish_while_they_are_named_cost_no_others(
    gone: Sequence[str],
    photos: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(photos, mine)
    probabilities = Finished.probabilities

    def later(*given, **named):  # type: ignore[no-untyped-def]
        for name in gone:
            (mine / name).unlink(missing_ok=True)
        return probabilities(*given, **named)

    monkeypatch.setattr(Finished, "probabilities", later)
    target = tmp_path / "names.csv"
    assert main([str(finished), str(mine), "--output", str(target)]) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out")]
    assert sorted(problems) == [f"left out: {mine}/{name}: no such file" for name in gone]
    with target.open(encoding="utf-8", newline="") as file:
        found = [(row["photo"], row["class_name"], row["probability"]) for row in csv.DictReader(file)]
    monkeypatch.undo()
    left = [str(mine / name) for name in ("a.jpg", "b.png", "more/c, d.jpg") if name not in gone]
    rows, _ = classify(load_finished(finished), left, Hardware(), 1)
    assert found == [(path, name, probability) for path, _, name, probability in rows] and len(found) == 3 - len(gone)


def test_if_no_photo_can_be_named_an_older_output_stays(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "names.csv"
    target.write_text("of yesterday")
    assert main([str(finished), str(tmp_path / "mistyped"), "--output", str(target)]) == 2
    assert "no photo could be named, and nothing was written" in capsys.readouterr().err
    assert target.read_text() == "of yesterday"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir()
    os.mkfifo(tmp_path / "pipe")
    allowed = os.access
    # As the system says it of a folder without permissions, which do not bind root.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and allowed(path, mode))
    faults = {
        ".": f"--output: expected a file, found the folder {tmp_path}; name a file in it, such as {tmp_path}/names.csv",
        "pipe": f"--output: {tmp_path}/pipe is not a regular file",
        "file/names.csv": f"{tmp_path}/file is a file and no folder",
        "closed/new/names.csv": f"no permission to make files in {tmp_path}/closed",
    }
    for name, message in faults.items():
        with pytest.raises(SystemExit) as caught:
            main([str(tmp_path / "none.safetensors"), str(photos), "--output", str(tmp_path / name)])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    target = tmp_path / "new" / "deep" / "names.csv"
    assert main([str(finished), str(photos / "a.jpg"), "--output", str(target)]) == 0
    assert target.is_file(), "missing folders are made"


def test_nothing_to_do_or_a_wrong_file_is_said_plainly(
    finished: Path, models: dict[Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(finished), str(tmp_path)]) == 2
    assert "no photos in" in capsys.readouterr().err
    assert main([str(next(iter(models))), str(tmp_path)]) == 2
    assert "no fieldmark_ensemble in its metadata" in capsys.readouterr().err
    assert main([str(tmp_path / "none.safetensors"), str(tmp_path)]) == 2
    assert "missing or damaged" in capsys.readouterr().err


def test_members_must_fit_the_classes_and_the_description(
    models: dict[Path, float], finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="has 3 classes, expected the 2"):
        save_finished(models, VIEWS, NAMES[:2], tmp_path / "x.safetensors")
    with pytest.raises(ArtifactError, match="no architecture in its metadata"):
        save_finished({finished: 1.0}, VIEWS, NAMES, tmp_path / "x.safetensors")
    metadata = {"fieldmark_ensemble": json.dumps({"members": []})}
    safetensors.torch.save_file({}, tmp_path / "torn.safetensors", metadata)
    with pytest.raises(ArtifactError, match="disagree"):
        load_finished(tmp_path / "torn.safetensors")


def test_models_of_two_streams_see_the_full_photo_as_its_key_region(photos: Path, tmp_path: Path) -> None:
    architecture = Architecture("test_resnet", 8, len(NAMES), 0, False, 32, streams="photo_and_crop")
    model = build_classifier(architecture, "none", seed=2)
    save_classifier(model, tmp_path / "model.safetensors")
    save_finished({tmp_path / "model.safetensors": 1.0}, VIEWS, NAMES, tmp_path / "finished.safetensors")
    paths = photos_below([str(photos)])[0]
    whole = Context(boxes=np.tile(np.array([0, 0, 1, 1], dtype=np.float32), (len(paths), 1)))
    expected = infer(model, paths, VIEWS, Hardware(), context=whole)[1]
    found = load_finished(tmp_path / "finished.safetensors").probabilities(paths, Hardware())
    np.testing.assert_array_equal(found, expected)
    assert main([str(tmp_path / "finished.safetensors"), str(photos), "--output", str(tmp_path / "names.csv")]) == 0


def placed(photos: Path, folder: Path) -> Path:
    """A finished model that takes places and dates, and a table of them beside the photos."""
    metadata = MetadataSettings("sphere", "concat")
    model = build_classifier(
        Architecture("test_resnet", 8, len(NAMES), 0, False, 32, metadata=metadata), "none", seed=2
    )
    save_classifier(model, folder / "model.safetensors")
    save_finished({folder / "model.safetensors": 1.0}, VIEWS, NAMES, folder / "finished.safetensors")
    (folder / "places.csv").write_text(
        f"path,latitude,longitude,date\n{photos}/a.jpg,48.5,9.0,2026-06-01\n{photos}/more/../b.png,-10,120,\n"
    )
    return folder / "finished.safetensors"


def test_places_and_dates_come_from_a_table(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = placed(photos, tmp_path)
    paths = photos_below([str(photos)])[0]
    known = {"a.jpg": (48.5, 9.0, "2026-06-01"), "b.png": (-10.0, 120.0, None)}
    manifest = pl.DataFrame(
        [(path, *known.get(Path(path).name, (None, None, None))) for path in paths],
        schema=["image_id", "latitude", "longitude", "date"],
        orient="row",
    ).with_columns(location_uncertainty=pl.lit(None, pl.Float64))
    member = load_classifier(tmp_path / "model.safetensors")
    context = ContextTables(manifest).of(paths, member.architecture)
    best = infer(member, paths, VIEWS, Hardware(), context=context)[1].max(axis=1)
    assert main([str(model), str(photos), "--places", str(tmp_path / "places.csv")]) == 0
    printed = capsys.readouterr()
    found = [float(row["probability"]) for row in csv.DictReader(printed.out.splitlines())]
    np.testing.assert_allclose(found, best, atol=1e-4)
    assert printed.err == "places or dates known for 2 of 3 photos\n"
    assert main([str(model), str(photos)]) == 0
    printed = capsys.readouterr()
    assert "trained with places and dates: without --places" in printed.err
    assert [float(row["probability"]) for row in csv.DictReader(printed.out.splitlines())] != found


def test_a_table_of_places_that_tells_the_model_nothing_is_an_error(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = placed(photos, tmp_path)
    tables = {
        # Paths as they are seen from another folder.
        "path,latitude,longitude\na.jpg,1,2\n": "none of its rows is of one of the 3 photos. Paths in it start from "
        f"its folder, {tmp_path}: its first row is of {tmp_path}/a.jpg, the first photo is {photos}/a.jpg",
        "path,date\n": "expected a row for each photo, found none",
        f"path,date\n{photos}/a.jpg,yesterday\n": "hold neither a place nor a date that this model can use",
        f"path,latitude,longitude,location_uncertainty\n{photos}/a.jpg,1,2,200000\n": "known exactly enough",
    }
    for text, message in tables.items():
        (tmp_path / "a.csv").write_text(text)
        assert main([str(model), str(photos), "--places", str(tmp_path / "a.csv")]) == 2
        printed = capsys.readouterr()
        assert f"{tmp_path}/a.csv: " in printed.err and message in printed.err and not printed.out


def test_columns_of_a_table_of_places_that_are_not_used_are_told(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = placed(photos, tmp_path)
    (tmp_path / "a.csv").write_text(f"path,lat,lon,date\n{photos}/a.jpg,1,2,2026-06-01\n")
    with caplog.at_level(logging.WARNING):
        assert main([str(model), str(photos), "--places", str(tmp_path / "a.csv")]) == 0
    assert f"{tmp_path}/a.csv: columns of no known meaning are not used: lat, lon" in caplog.text
    assert "places or dates known for 1 of 3 photos" in capsys.readouterr().err


def test_a_table_of_places_that_cannot_be_used_is_named(
    photos: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {
        "a.csv": ("latitude\n1\n", "expected a column path, found 'latitude'"),
        "b.csv": ("path,date\nx.jpg,\n./x.jpg,\n", "x.jpg has several rows"),
        "d.csv": (
            "path,lat,lon,observed_on\nx.jpg,1,2,2026-06-01\n",
            "expected the columns latitude and longitude, or date, or all three, found 'path', 'lat', 'lon', 'observ",
        ),
        "e.csv": ("path,latitude,lon\nx.jpg,1,2\n", "expected the columns latitude and longitude"),
        "f.csv": ("path,Date\nx.jpg,2026-06-01\n", "must be written exactly so, in small letters"),
        "g.csv": ("path;date\nx.jpg;2026-06-01\n", "separated by semicolons: save it with commas"),
        "c.txt": ("", "places: expected a .csv or .parquet file, found 'c.txt'"),
    }
    for name, (text, message) in tables.items():
        (tmp_path / name).write_text(text)
        assert main([str(finished), str(photos), "--places", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "h.csv").write_text("path,date\n")
    assert main([str(finished), str(photos), "--places", str(tmp_path / "h.csv")]) == 0
    assert "takes no places and dates" in capsys.readouterr().err

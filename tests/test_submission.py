import csv
import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldmark.artifacts import ArtifactError, write_table
from fieldmark.predictions import to_table
from fieldmark.submission import Photo, submission_rows, unreadable_test_photos, write_csv

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
TAXA = ("kingdom", "phylum", "class", "order", "family", "genus")


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest_of(rows):
    taxa = dict.fromkeys(TAXA, pl.lit(None, pl.String))
    place = dict.fromkeys(("latitude", "longitude", "location_uncertainty"), pl.lit(None, pl.Float64))
    box = dict.fromkeys(("box_x", "box_y", "box_w", "box_h"), pl.lit(None, pl.Float32))
    return pl.DataFrame(rows, schema=["image_id", "path", "split"], orient="row").with_columns(
        class_id=pl.lit(None, pl.Int32),
        sha256=pl.col("image_id"),
        date=pl.lit(None, pl.String),
        width=pl.lit(9, pl.Int32),
        height=pl.lit(9, pl.Int32),
        phash=pl.lit(0, pl.UInt64),
        **taxa,
        **place,
        **box,
    )


def classes_of(names):
    taxa = dict.fromkeys(("title", *TAXA), pl.lit(None, pl.String))
    counts = [3, 9, 9, 1, 5, 2, 2][: len(names)]
    return pl.DataFrame({"class_id": range(len(names)), "name": names, "labeled_count": counts}).with_columns(
        pl.col("class_id", "labeled_count").cast(pl.Int32), **taxa
    )


ROWS = [(f"test/{i}", f"/d/test/{i}.jpg", "test") for i in (3, 1, 2)] + [("val/1", "/d/val/1.jpg", "val")]
DENSE = np.random.default_rng(1).dirichlet(np.ones(7), size=4).astype(np.float32)


@pytest.fixture
def run(tmp_path):
    write_table(manifest_of(ROWS), "manifest", tmp_path / "manifest.parquet")

    def write(layout, top_k=5, names=None, k=6, rejected=(), ids=None, annotations=None):
        names = names or [str(100 + i) for i in range(7)]
        write_table(classes_of(names), "classes", tmp_path / "classes.parquet")
        refused = pl.DataFrame({"path": list(rejected)}, schema={"path": pl.String}).with_columns(reason=pl.lit("torn"))
        write_table(refused, "rejected", tmp_path / "rejected.parquet")
        ids = ids or [row[0] for row in ROWS]
        write_table(to_table(ids, DENSE[: len(ids)], k), "predictions", tmp_path / "predictions.parquet")
        load_script("write_submission").write_submission(
            *(str(tmp_path / f"{name}.parquet") for name in ("predictions", "manifest", "classes", "rejected")),
            target=str(tmp_path / "out.csv"),
            layout=layout,
            top_k=top_k,
            annotations=annotations,
        )
        with (tmp_path / "out.csv").open(newline="") as file:
            return list(csv.reader(file))

    return write


def best(row, count):
    return [str(100 + c) for c in np.argsort(-DENSE[row], kind="stable")[:count]]


def test_semi_inat_lists_file_names_and_up_to_k_ids(run):
    rows = run("semi_inat", top_k=3)
    assert rows[0] == ["Id", "Category"]
    assert [row[0] for row in rows[1:]] == ["1.jpg", "2.jpg", "3.jpg"]
    assert [row[1].split() for row in rows[1:]] == [best(1, 3), best(2, 3), best(0, 3)]
    assert [len(row[1].split()) for row in run("semi_inat", top_k=5, k=2)[1:]] == [2, 2, 2]


def test_inat_lists_image_ids_and_five_ids(run):
    rows = run("inat", top_k=1)
    assert rows[0] == ["Id", "Predicted"]
    assert [row[0] for row in rows[1:]] == ["test/1", "test/2", "test/3"]
    assert [row[1].split() for row in rows[1:]] == [best(1, 5), best(2, 5), best(0, 5)]
    with pytest.raises(ValueError, match="'inat' needs 5 classes a photo"):
        run("inat", k=4)


@pytest.mark.parametrize("folder", ["", "test/", "d/test/"])
def test_inat_shows_the_image_ids_of_the_organisers_json(run, tmp_path, folder):
    def annotate(*numbers):
        images = [{"id": 7000 + number, "file_name": f"{folder}{number}.jpg"} for number in numbers]
        (tmp_path / "test.json").write_text(json.dumps({"images": images}))
        return str(tmp_path / "test.json")

    rows = run("inat", annotations=annotate(1, 2, 3, 20), rejected=["/d/test/20.jpg"])
    assert [row[0] for row in rows[1:]] == ["7001", "7002", "7003", "7020"]
    assert [row[1].split() for row in rows[1:4]] == [best(1, 5), best(2, 5), best(0, 5)]
    with pytest.raises(ArtifactError, match=r"/d/test/3\.jpg is not among the images"):
        run("inat", annotations=annotate(1, 2))
    with pytest.raises(ArtifactError, match=r"1 of its 4 images are not among the test photos"):
        run("inat", annotations=annotate(1, 2, 3, 4))


def test_simple_lists_the_best_class_whatever_its_name(run):
    names = [f'Red, "wild" {i}' for i in range(7)]
    rows = run("simple", names=names)
    assert rows[0] == ["image_id", "class_name", "probability"]
    assert [row[1] for row in rows[1:]] == [names[DENSE[i].argmax()] for i in (1, 2, 0)]
    assert [float(row[2]) for row in rows[1:]] == pytest.approx([DENSE[i].max() for i in (1, 2, 0)], abs=1e-6)
    with pytest.raises(ValueError, match="has a space in its name"):
        run("semi_inat", names=names)


def test_a_test_photo_without_prediction_is_an_error(run):
    with pytest.raises(ArtifactError, match=r"1 of 3 expected photos have no prediction.*'test/2'"):
        run("semi_inat", ids=["test/3", "test/1", "val/1"])


def test_unreadable_test_photos_are_listed_with_the_most_frequent_classes(run, caplog):
    with caplog.at_level(logging.WARNING):
        rows = run("semi_inat", rejected=["/d/test/20.jpg", "/d/u_train/7.jpg"])
    assert [row[0] for row in rows[1:]] == ["1.jpg", "2.jpg", "20.jpg", "3.jpg"]
    assert rows[3][1].split() == ["101", "102", "104", "100", "105"]
    assert "1 test photos could not be read" in caplog.text


def test_an_unreadable_photo_gets_the_image_id_that_its_path_implies():
    classes, rejected = classes_of(["a", "b"]), pl.DataFrame({"path": ["/d/test/20.jpg"]})
    for make_id in (lambda p: p.stem, lambda p: p.name, str, lambda p: str(p.with_suffix("")), lambda p: str(p)[3:]):
        photos = manifest_of([(make_id(Path(f"/d/test/{i}.jpg")), f"/d/test/{i}.jpg", "test") for i in (1, 2)])
        found = unreadable_test_photos(rejected, photos, classes, True)
        assert [photo.image_id for photo in found] == [make_id(Path("/d/test/20.jpg"))]
        assert list(found[0].probabilities) == [0.75, 0.25]


@pytest.mark.parametrize(
    "rows",
    [
        [("77", "/d/test/1.jpg", "test")],  # an image id that its path does not imply
        [("1", "/d/test/1.jpg", "test"), ("2", "/d/test/2.jpg", "unlabeled")],  # a folder of several splits
    ],
)
def test_an_unreadable_photo_whose_place_is_unknown_is_warned_about(rows, caplog):
    with caplog.at_level(logging.WARNING):
        rejected = pl.DataFrame({"path": ["/d/test/20.jpg"]})
        assert unreadable_test_photos(rejected, manifest_of(rows), classes_of(["a"]), True) == []
    assert "/d/test/20.jpg" in caplog.text


def test_equal_ids_and_unknown_layouts_are_refused():
    photos = [Photo(f"{folder}/1", f"{folder}/1.jpg", ["5"], [1.0]) for folder in "ab"]
    with pytest.raises(ArtifactError, match=r"two test photos have the Id '1\.jpg'"):
        submission_rows(photos, "semi_inat", 5)
    assert len(submission_rows(photos, "simple", 5)[1]) == 2
    with pytest.raises(ValueError, match=r"submission\.layout: expected one of semi_inat, inat, simple"):
        submission_rows(photos, "kaggle", 5)


def test_lines_end_the_same_everywhere(tmp_path):
    write_csv(("Id", "Category"), [("é.jpg", "1 2")], tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == "Id,Category\né.jpg,1 2\n".encode()

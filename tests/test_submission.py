import csv
import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from fieldmark.artifacts import SPLITS, ArtifactError, read_table, write_table
from fieldmark.predictions import to_table
from fieldmark.submission import Photo, submission_rows, submitted_names, unreadable_test_photos
from fieldmark.tables import write_csv

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


def rejected_of(rows):
    """The table of photos that cannot be used: path, split and the id that each would have had."""
    table = pl.DataFrame(rows, schema=dict.fromkeys(("path", "split", "candidate_id"), pl.String), orient="row")
    return table.with_columns(reason=pl.lit("torn"))


ROWS = [(f"test/{i}", f"/d/test/{i}.jpg", "test") for i in (3, 1, 2)] + [("val/1", "/d/val/1.jpg", "val")]
TORN = ("/d/test/20.jpg", "test", "test/20")
DENSE = np.random.default_rng(1).dirichlet(np.ones(7), size=4).astype(np.float32)


@pytest.fixture
def run(tmp_path):
    write_table(manifest_of(ROWS), "manifest", tmp_path / "manifest.parquet")

    def write(layout, top_k=5, names=None, k=6, rejected=(), ids=None, annotations=None):
        names = names or [str(100 + i) for i in range(7)]
        write_table(classes_of(names), "classes", tmp_path / "classes.parquet")
        write_table(rejected_of(list(rejected)), "rejected", tmp_path / "rejected.parquet")
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

    rows = run("inat", annotations=annotate(1, 2, 3, 20), rejected=[TORN])
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
        rows = run("semi_inat", rejected=[TORN, ("/d/test/7.jpg", "unlabeled", "test/7")])
    assert [row[0] for row in rows[1:]] == ["1.jpg", "2.jpg", "20.jpg", "3.jpg"]
    assert rows[3][1].split() == ["101", "102", "104", "100", "105"]
    assert "1 test photos could not be read" in caplog.text and "may be test photos" not in caplog.text
    assert [row[0] for row in run("inat", rejected=[TORN])[1:]] == ["test/1", "test/2", "test/20", "test/3"]
    assert run("simple", rejected=[TORN])[3] == ["test/20", "101", "0.290323"]


@pytest.mark.parametrize(
    ("path", "warned"),
    [
        ("/d/test/20.heic", True),  # among test photos
        ("/d/both/20.heic", True),  # in a folder of several splits
        ("/d/test/new/20.heic", True),  # the only photo of its folder
        ("/d/train/20.heic", False),  # among training photos
        ("/d/torn/20.heic", False),  # among training photos that could not be read either
    ],
)
def test_a_file_of_unknown_split_is_warned_about_where_it_may_be_a_test_photo(path, warned, caplog):
    rows = [("1", "/d/test/1.jpg", "test"), ("2", "/d/both/2.jpg", "test"), ("3", "/d/both/3.jpg", "unlabeled")]
    photos = manifest_of([*rows, ("4", "/d/train/4.jpg", "labeled")])
    rejected = rejected_of([(path, None, None), ("/d/torn/5.jpg", "unlabeled", "5")])
    with caplog.at_level(logging.WARNING):
        assert unreadable_test_photos(rejected, photos, classes_of(["a"]), {0: "a"}) == []
    assert ("1 files that could not be read may be test photos" in caplog.text) == warned
    assert (f"The first is {path} (torn): replace or remove it" in caplog.text) == warned


def test_people_read_titles_and_competitions_the_sources_own_names():
    classes = classes_of(["17", "18", "19", "fly"]).with_columns(title=pl.Series(["Owl", "Bee", "Bee", None]))
    assert submitted_names(classes, "simple") == {0: "Owl", 1: "Bee (18)", 2: "Bee (19)", 3: "fly"}
    assert submitted_names(classes, "semi_inat") == {0: "17", 1: "18", 2: "19", 3: "fly"}


def test_unlabeled_photos_are_listed_likeliest_first(tmp_path):
    rows = [(f"u/{name}", f"/d/u/{name}.jpg", "unlabeled") for name in "abc"]
    for name, table in (
        ("manifest", manifest_of([*ROWS, *rows])),
        ("classes", classes_of(["17", "18"]).with_columns(title=pl.Series(["Owl", None]))),
        (
            "pseudo_labels",
            pl.DataFrame(
                {
                    "image_id": ["u/a", "u/b", "u/c"],
                    "class_id": pl.Series([1, 0, 0], dtype=pl.Int32),
                    "confidence": pl.Series([0.5, 0.9, 0.8], dtype=pl.Float32),
                    "neighbour_agreement": pl.Series([0.5, 0.5, 0.5], dtype=pl.Float32),
                    "in_class_score": pl.Series([0.25, 0.125, 0.75], dtype=pl.Float32),
                    "selected": [False, False, True],
                    "weight": pl.Series([0, 0, 1], dtype=pl.Float32),
                }
            ),
        ),
    ):
        write_table(table, name, tmp_path / f"{name}.parquet")
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("pseudo_labels", "manifest", "classes")}
    load_script("list_unlabeled").list_unlabeled(**paths, target=str(tmp_path / "unlabeled.csv"))
    assert (tmp_path / "unlabeled.csv").read_text().splitlines() == [
        "path,class_name,probability,in_class_score,selected",
        "/d/u/c.jpg,Owl,0.8000,0.7500,yes",
        "/d/u/a.jpg,18,0.5000,0.2500,no",
        "/d/u/b.jpg,Owl,0.9000,0.1250,no",
    ]


def draw_photos(root, names, torn, copies):
    for number, name in enumerate(names):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 30), Image.Resampling.BICUBIC).save(path)
        if name in torn:
            path.write_bytes(path.read_bytes()[:-100])
    for name, original in copies.items():
        (root / f"{name}.png").write_bytes((root / f"{original}.png").read_bytes())


def describe_photos(root, splits, labels, source):
    """Write a table or COCO-like JSON files; the key data.annotations that names them."""
    if source == "table":
        lines = [f"{name}.png,{split},{labels.get(name, '')}" for name, split in splits.items()]
        (root / "photos.csv").write_text("\n".join(["path,split,label", *lines]))
        return "photos.csv"
    for split in SPLITS:
        names = [name for name, of in splits.items() if of == split]
        document = {
            "images": [{"id": f"id-{name}", "file_name": f"{name}.png"} for name in names],
            "annotations": [{"image_id": f"id-{n}", "category_id": labels[n]} for n in names if n in labels],
            "categories": [{"id": label} for label in sorted(set(labels.values()))],
        }
        (root / f"{split}.json").write_text(json.dumps(document))
    return {split: f"{split}.json" for split in SPLITS}


@pytest.fixture
def finish(tmp_path):
    """A function that ingests photos of five classes in one folder and lists the Ids of a made-up submission."""
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("manifest", "classes", "rejected")}
    target, root = tmp_path / "predictions.parquet", tmp_path / "data"

    def run(others, torn, layout, source="table", copies=None):
        labels = {f"l{label}": label for label in range(10, 15)} | {"l10a": 10, "v": 10, "v2": 11}
        splits = dict.fromkeys(labels, "labeled") | {"v": "val", "v2": "val", "u": "unlabeled", "t": "test"} | others
        draw_photos(root, splits, torn, copies or {})
        settings = {"coarse_taxa": [], "max_rejected_share": 0.5, "leaks": "drop", "near_duplicate_bits": 0}
        settings["annotations"] = describe_photos(root, splits, labels, source)
        load_script("ingest_photos").ingest_photos(format=source, root=str(root), **settings, **paths, workers=1)
        asked = read_table("manifest", paths["manifest"]).filter(pl.col("split").is_in(["val", "test"]))["image_id"]
        write_table(to_table(asked.to_list(), np.full((len(asked), 5), 0.2, np.float32), 5), "predictions", target)
        load_script("write_submission").write_submission(
            predictions=str(target),
            **paths,
            target=str(tmp_path / "out.csv"),
            layout=layout,
            top_k=5,
            annotations=str(root / "test.json") if source == "coco" else None,
        )
        with (tmp_path / "out.csv").open(newline="") as file:
            return [row[0] for row in csv.reader(file)][1:]

    return run


@pytest.mark.parametrize(
    ("layout", "source", "ids"),
    [
        ("semi_inat", "table", ["t.png", "t2.png"]),
        ("semi_inat", "coco", ["t.png", "t2.png"]),
        ("inat", "table", ["t", "t2"]),
        ("inat", "coco", ["id-t", "id-t2"]),
        ("simple", "table", ["t", "t2"]),
    ],
)
def test_an_unreadable_test_photo_is_listed_from_a_folder_of_several_splits(finish, caplog, layout, source, ids):
    with caplog.at_level(logging.WARNING):
        assert finish({"t2": "test"}, ["t2"], layout, source) == ids
    assert "1 test photos could not be read" in caplog.text and "may be test photos" not in caplog.text


@pytest.mark.parametrize(("layout", "ids"), [("semi_inat", ["1.png", "t.png"]), ("simple", ["t", "test/new/1"])])
def test_an_unreadable_test_photo_is_listed_though_it_is_the_only_one_of_its_folder(finish, layout, ids):
    assert finish({"test/new/1": "test"}, ["test/new/1"], layout) == ids


def test_all_test_photos_may_be_unreadable(finish):
    assert finish({"t2": "test"}, ["t", "t2"], "simple") == ["t", "t2"]


def test_a_training_photo_that_is_not_used_is_not_taken_for_a_test_photo(finish, tmp_path, caplog):
    others = {"u2": "unlabeled", "copy": "unlabeled"}
    with caplog.at_level(logging.WARNING):
        assert finish(others, ["u2", "l10a"], "semi_inat", copies={"copy": "t"}) == ["t.png"]
    assert "photos cannot be used" in caplog.text and "test photos" not in caplog.text
    rejected = read_table("rejected", tmp_path / "rejected.parquet")
    assert rejected["candidate_id"].to_list() == ["copy", "l10a", "u2"]


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

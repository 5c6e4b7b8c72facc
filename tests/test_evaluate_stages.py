"""The evaluation stage and the truth it reads: matching of names, refusals, what is scored with and without it."""

import importlib.util
import unicodedata
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldmark.artifacts import SCHEMAS, ArtifactError, read_table, write_table
from fieldmark.predictions import lists_to_table, read_lists
from fieldmark.tables import DataError
from fieldmark.truth import read_truth

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
TAXA = ("kingdom", "phylum", "class", "order", "family", "genus")


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


evaluate = load_script("evaluate_stages")


def pseudo_labels(rows):
    return pl.DataFrame(rows, schema=["image_id", "class_id", "in_class_score", "selected"], orient="row").with_columns(
        pl.col("class_id").cast(pl.Int32),
        confidence=pl.col("in_class_score").cast(pl.Float32) * 0 + 0.5,
        neighbour_agreement=pl.lit(1.0, pl.Float32),
        weight=pl.lit(1.0, pl.Float32),
    )


def manifest_of(rows):
    """rows: image_id, path, split, class_id."""
    taxa = dict.fromkeys(TAXA, pl.lit(None, pl.String))
    place = dict.fromkeys(("latitude", "longitude", "location_uncertainty"), pl.lit(None, pl.Float64))
    box = dict.fromkeys(("box_x", "box_y", "box_w", "box_h"), pl.lit(None, pl.Float32))
    frame = pl.DataFrame(rows, schema=["image_id", "path", "split", "class_id"], orient="row")
    return frame.with_columns(
        pl.col("class_id").cast(pl.Int32),
        sha256=pl.col("image_id"),
        date=pl.lit(None, pl.String),
        width=pl.lit(9, pl.Int32),
        height=pl.lit(9, pl.Int32),
        phash=pl.lit(0, pl.UInt64),
        **taxa,
        **place,
        **box,
    ).sort("image_id")


def classes_of(names):
    taxa = dict.fromkeys(TAXA, pl.lit(None, pl.String))
    counts = [3 + i for i in range(len(names))]
    return pl.DataFrame({"class_id": range(len(names)), "name": names, "labeled_count": counts}).with_columns(
        pl.col("class_id", "labeled_count").cast(pl.Int32), title=pl.lit(None, pl.String), **taxa
    )


MANIFEST = manifest_of(
    [
        ("u1", "/d/u_train/u_train_1/1000.jpg", "unlabeled", None),
        ("u2", "/d/u_train/u_train_2/1000.jpg", "unlabeled", None),
        ("u3", "/d/u_train/u_train_2/0007.jpg", "unlabeled", None),
        ("t1", "/d/test/0001.jpg", "test", None),
        ("l1", "/d/l_train/10/a.jpg", "labeled", 0),
        ("l2", "/d/l_train/11/0001.jpg", "labeled", 1),  # the name of a test photo
    ]
)
CLASSES = classes_of(["10", "11"])


def truth_of(folder, text, rejected=()):
    (folder / "truth.csv").write_text(text)
    return read_truth(str(folder / "truth.csv"), MANIFEST, CLASSES, rejected)


@pytest.mark.parametrize(
    "text",
    [
        "image_id,class_id\nu1,11\nu3,-1\nt1,10\n",
        "image_id,class_id\nu_train_1/1000.jpg,11\n0007.jpg,-1\n0001.jpg,10\n",
        "image_id,class_id\nu_train/u_train_1/1000.jpg,11\nu_train_2/0007.jpg,-1\ntest/0001.jpg,10\n",
        # An image id that is the stem of another photo: the file name decides.
        "image_id,file_name,in_class,category_id,class_id_all\n1000,u_train/u_train_2/0007.jpg,False,-1,54\n"
        "7,u_train/u_train_1/1000.jpg,True,11,3\n9,test/0001.jpg,True,10,4\n",
        "image_id,in_class,class_id\nu1,true,11\nu3,false,99\nt1,,10\n",
    ],
)
def test_truth_is_matched_by_id_path_or_name(tmp_path, text):
    assert truth_of(tmp_path, text) == {"u1": 1, "u3": -1, "t1": 0}


def test_truth_by_stem(tmp_path):
    assert truth_of(tmp_path, "image_id,class_id\n0007,11\n0001,-1\n") == {"u3": 1, "t1": -1}


def test_blanks_around_a_name_are_the_tables_unless_the_photo_is_called_so(tmp_path):
    assert truth_of(tmp_path, "image_id , class_id\n u1 , 11\nt1, 10 \n".replace(" ,", ",").replace(", c", ",c")) == {
        "u1": 1,
        "t1": 0,
    }
    photos = pl.DataFrame({"image_id": ["a/1 ", "a/1"], "path": ["/d/a/1 .jpg", "/d/a/1.jpg"], "split": ["test"] * 2})
    classes = pl.DataFrame({"name": ["x", "y"], "class_id": [0, 1]})
    (tmp_path / "own.csv").write_text("image_id,class_id\na/1 ,x\na/1,y\n")
    assert read_truth(str(tmp_path / "own.csv"), photos, classes, []) == {"a/1 ": 0, "a/1": 1}


def test_truth_of_other_splits_and_of_rejected_photos_is_not_scored(tmp_path):
    text = "image_id,class_id\nl_train/10/a.jpg,10\ntest/0001.jpg,11\ntest/0002.jpg,10\n"
    assert truth_of(tmp_path, text, ["/d/test/0002.jpg"]) == {"t1": 1}
    assert truth_of(tmp_path, text.replace(".jpg", ""), ["/d/test/0002.jpg"]) == {"t1": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image_id,class_id\nu1,11\nnobody,10\n",
            "line 3: 'nobody' in column image_id names no unlabeled or test photo",
        ),
        (
            "file_name,class_id\n1000.jpg,11\n",
            r"line 2: '1000\.jpg' in column file_name names no unlabeled or test photo, or several",
        ),
        ("image_id,class_id\nu1,12\n", "line 2: class '12' of 'u1' is not a name"),
        ("image_id,class_id\nu1,\n", "line 2: class ''"),
        ("image_id,class_id\nu1,11\nu1,11\n", "line 3: photo 'u1' has a true class already"),
        ("photo,class_id\nu1,11\n", "expected rows with a column file_name or image_id"),
        ("image_id,label\nu1,11\n", "columns 'image_id', 'label'"),
        ("image_id,class_id\n", "found 0 rows"),
        ("image_id;class_id\nu1;11\n", "separated by semicolons: save it with commas"),
    ],
)
def test_a_wrong_truth_is_refused(tmp_path, text, message):
    with pytest.raises(ArtifactError, match=message):
        truth_of(tmp_path, text)


@pytest.mark.parametrize("content", [b"", b"image_id,class_id\nu1,Gr\xfcn\n", b"image_id,class_id\nu1,11,x\n"])
def test_a_truth_that_is_no_table_is_named(tmp_path, content):
    (tmp_path / "truth.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"truth\.csv: expected a table in UTF-8 with a header .*, found: "):
        read_truth(str(tmp_path / "truth.csv"), MANIFEST, CLASSES, [])


def test_truth_may_have_true_minus_signs_and_letters_of_another_unicode_form(tmp_path):
    classes = classes_of([unicodedata.normalize("NFC", name) for name in ("Käfer", "Löwe")])
    text = unicodedata.normalize("NFD", "image_id,class_id\nu1,Löwe\nu3,−1\n")
    (tmp_path / "truth.csv").write_text(text)
    assert read_truth(str(tmp_path / "truth.csv"), MANIFEST, classes, []) == {"u1": 1, "u3": -1}


@pytest.fixture
def workspace(tmp_path):
    """A finished run: three members that differ in how many photos they get right; four classes."""
    draws = np.random.default_rng(7)
    rows = [(f"v{i:03}", f"/d/val/v{i:03}.jpg", "val", i % 4) for i in range(40)]
    rows += [(f"t{i:03}", f"/d/test/t{i:03}.jpg", "test", None) for i in range(60)]
    rows += [(f"u{i:03}", f"/d/u/u{i:03}.jpg", "unlabeled", None) for i in range(50)]
    write_table(manifest_of(rows), "manifest", tmp_path / "manifest.parquet")
    write_table(classes_of(["10", "11", "12", "13"]), "classes", tmp_path / "classes.parquet")
    nothing = pl.DataFrame(schema=dict.fromkeys(SCHEMAS["rejected"].names, pl.String))
    write_table(nothing, "rejected", tmp_path / "rejected.parquet")
    asked = sorted(row[0] for row in rows if row[2] != "unlabeled")
    labels = np.array([int(image_id[1:]) % 4 for image_id in asked])
    paths = []
    for member, skill in {"round0/m/layerwise": 0.9, "round1/m/layerwise": 0.6, "baseline/m/layerwise": 0.5}.items():
        best = np.where(draws.random(len(asked)) < skill, labels, (labels + 1) % 4)
        ids = np.stack([best, (best + 2) % 4], axis=1).astype(np.int32)
        probabilities = np.tile(np.array([[0.6, 0.3]], np.float32), (len(asked), 1))
        path = tmp_path / "results" / member / "predictions" / "0.parquet"
        write_table(lists_to_table(asked, ids, probabilities), "predictions", path)
        paths.append(str(path))
    write_table(read_table("predictions", paths[0]), "predictions", tmp_path / "ensemble.parquet")
    weights = [
        (method, member, weight)
        for method, two in {"uniform": (0.5, 0.5), "greedy": (1.0, 0.0)}.items()
        for member, weight in zip(["round0/m/layerwise", "round1/m/layerwise"], two, strict=True)
    ]
    frame = pl.DataFrame(weights, schema=["method", "member", "weight"], orient="row")
    write_table(frame, "ensemble_weights", tmp_path / "weights.parquet")
    unlabeled = [f"u{i:03}" for i in range(50)]
    for number in range(2):
        folder = tmp_path / f"results/round{number}"
        distance = pl.Series(np.ones(50, np.float32))
        clusters = pl.DataFrame({"image_id": unlabeled, "cluster": pl.Series([i % 5 for i in range(50)])}).with_columns(
            distance=distance, runner_up_distance=distance
        )
        write_table(clusters, "clusters", folder / "clusters.parquet")
        kept = pl.DataFrame({"cluster": range(5), "kept": [True] * 4 + [False], "foreign": [False] * 3 + [True] * 2})
        zero = pl.lit(0.0, pl.Float32)
        kept = kept.with_columns(
            size=10, spread=zero, neighbour_agreement=zero, coarse_purity=zero, labeled_share=zero, nearest_class=0,
            nearest_class_similarity=zero, reason=pl.lit(""),
        )  # fmt: skip
        write_table(kept, "kept_clusters", folder / "kept_clusters.parquet")
        table = pseudo_labels([(image_id, i % 4, i / 50, i > 20) for i, image_id in enumerate(unlabeled)])
        write_table(table, "pseudo_labels", folder / "pseudo_labels.parquet")
    truth = ["image_id,class_id", *(f"t{i:03},{10 + i % 4}" for i in range(60))]
    truth += [f"u{i:03},{-1 if i % 2 else 10 + i % 4}" for i in range(50)]
    (tmp_path / "truth.csv").write_text("\n".join(truth) + "\n")
    return tmp_path, paths


def run_evaluation(folder, paths, truth, out="out"):
    evaluate.evaluate_stages(
        manifest=str(folder / "manifest.parquet"),
        classes=str(folder / "classes.parquet"),
        rejected=str(folder / "rejected.parquet"),
        **{
            name: [str(folder / f"results/round{number}/{name}.parquet") for number in range(2)]
            for name in ("clusters", "kept_clusters", "pseudo_labels")
        },
        boxes=[],
        predictions=paths,
        ensemble_predictions=str(folder / "ensemble.parquet"),
        ensemble_weights=str(folder / "weights.parquet"),
        truth=truth,
        scores_target=str(folder / out / "scores.parquet"),
        confusion_target=str(folder / out / "confusion.parquet"),
        classes_target=str(folder / out / "classes.csv"),
        mistakes_target=str(folder / out / "mistakes.csv"),
        seed=1,
        resamples=100,
    )
    return read_table("scores", folder / out / "scores.parquet"), read_table(
        "confusion", folder / out / "confusion.parquet"
    )


def test_the_stage_scores_everything_with_a_truth(workspace):
    folder, paths = workspace
    scores, confusion = run_evaluation(folder, paths, str(folder / "truth.csv"))
    stages = scores.select("stage", "round").unique().sort("stage", "round").rows()
    assert stages == [
        ("cluster", 0), ("cluster", 1), ("comparison", None), ("ensemble", None), ("filter", 0), ("filter", 1),
        ("model", None), ("model", 0), ("model", 1), ("select", 0), ("select", 1),
    ]  # fmt: skip
    lists = read_lists(paths[0], 4)
    right = [int(image_id[1:]) % 4 == ids[0] for image_id, ids in zip(lists.image_ids, lists.class_ids, strict=True)]
    top1 = scores.filter(pl.col("metric") == "top1", pl.col("member") == "round0/m/layerwise")
    by_split = dict(top1.select("split", "value").iter_rows())
    assert by_split == pytest.approx({"test": np.mean(right[:60]), "val": np.mean(right[60:])})
    ensemble = scores.filter(pl.col("stage") == "ensemble", pl.col("metric") == "top1")
    assert set(ensemble.select("member", "split").iter_rows()) == {
        (name, split) for name in ("ensemble", "uniform", "greedy") for split in ("val", "test")
    }
    members = scores.filter(pl.col("metric") == "top1_difference")["member"].unique().sort().to_list()
    assert members == ["ensemble - baseline/m/layerwise", "round0/m/layerwise - baseline/m/layerwise"]
    difference = scores.filter(pl.col("metric") == "top1_difference", pl.col("split") == "test")
    base = scores.filter(pl.col("member") == "baseline/m/layerwise", pl.col("metric") == "top1")
    assert difference["value"].to_list() == pytest.approx(
        [by_split["test"] - dict(base["split", "value"].iter_rows())["test"]] * 2
    )
    assert confusion["count"].sum() == 60
    assert confusion.filter(pl.col("class_id") == pl.col("predicted"))["count"].sum() == sum(right[:60])
    by_class = pl.read_csv(folder / "out/classes.csv")
    assert by_class["photos"].sum() == 60 and by_class["right"].sum() == sum(right[:60])
    assert by_class["pseudo_labels"].sum() == 29 and by_class["accuracy"].is_sorted()
    assert pl.read_csv(folder / "out/mistakes.csv").height == 60 - sum(right[:60])


def test_without_a_truth_validation_is_scored_and_nothing_else(workspace):
    folder, paths = workspace
    scores, confusion = run_evaluation(folder, paths, None)
    assert scores["split"].unique().to_list() == ["val"]
    assert scores["stage"].unique().sort().to_list() == ["comparison", "ensemble", "model"]
    assert confusion["count"].sum() == 40
    with_truth, _ = run_evaluation(folder, paths, str(folder / "truth.csv"), "other")
    assert with_truth.filter(pl.col("split") == "val").equals(scores)


def test_the_stage_repeats_byte_for_byte(workspace):
    folder, paths = workspace
    truth = str(folder / "truth.csv")
    run_evaluation(folder, paths, truth, "a")
    run_evaluation(folder, paths[::-1], truth, "b")
    for name in ("scores", "confusion"):
        assert (folder / f"a/{name}.parquet").read_bytes() == (folder / f"b/{name}.parquet").read_bytes()


def test_a_partial_truth_scores_what_it_covers_and_foreign_test_photos_are_left_out(workspace):
    folder, paths = workspace
    (folder / "part.csv").write_text("image_id,class_id\nt000,10\nt001,-1\nt002,13\n")
    scores, confusion = run_evaluation(folder, paths, str(folder / "part.csv"))
    assert scores.filter(pl.col("split") == "test", pl.col("metric") == "top1")["count"].unique().to_list() == [2]
    assert scores["stage"].unique().sort().to_list() == ["comparison", "ensemble", "model"]
    assert confusion["count"].sum() == 2


def boxed(rows):
    """A manifest of photos of 100 × 50 pixels; rows: image_id, split, box in pixels or None."""
    frame = manifest_of([(image_id, f"/d/{image_id}.jpg", split, None) for image_id, split, _ in rows])
    boxes = pl.DataFrame([box or [None] * 4 for _, _, box in rows], schema=["x", "y", "w", "h"], orient="row")
    return frame.with_columns(
        pl.lit(100, pl.Int32).alias("width"),
        pl.lit(50, pl.Int32).alias("height"),
        *(boxes[name].cast(pl.Float32).alias(f"box_{name}") for name in boxes.columns),
    )


def test_key_regions_are_measured_on_the_boxes_of_val_photos_alone(tmp_path):
    manifest = boxed(
        [
            ("a", "labeled", [0, 0, 10, 10]),
            ("b", "val", [50, 0, 50, 50]),
            ("c", "val", [0, 0, 100, 25]),
            ("d", "val", None),
        ]
    )
    found = {"a": (0, 0, 1, 1, 0), "b": (0.5, 0, 0.5, 1, 0.9), "c": (0, 0, 1, 1, 0), "d": (0, 0, 1, 1, 0)}
    table = pl.DataFrame(
        [(name, *row) for name, row in found.items()],
        schema={"image_id": pl.String} | dict.fromkeys(["x", "y", "width", "height", "score"], pl.Float32),
        orient="row",
    )
    write_table(table, "boxes", tmp_path / "0.parquet")
    scores = evaluate.region_scores(manifest, [str(tmp_path / "0.parquet")])
    told = {(score.member, score.metric): score.value for score in scores}
    assert told["key_region", "mean_iou"] == pytest.approx(0.75)
    assert told["full_photo", "mean_iou"] == pytest.approx(0.5)
    assert told["key_region", "found_share"] == 0.5
    assert [told["key_region", name] for name in ("ap50", "ap")] == pytest.approx([51 / 101] * 2)
    assert {(score.stage, score.split, score.count) for score in scores} == {("detection", "val", 2)}
    assert evaluate.region_scores(manifest.head(1), [str(tmp_path / "0.parquet")]) == []
    write_table(table.head(2), "boxes", tmp_path / "0.parquet")
    with pytest.raises(ArtifactError, match="expected one for each of 2 validation photos, found 1"):
        evaluate.region_scores(manifest, [str(tmp_path / "0.parquet")])

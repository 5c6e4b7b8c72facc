import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from fieldmark.artifacts import ArtifactError, read_table, write_table
from tests.dense import to_dense

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"
TAXA = ("kingdom", "phylum", "class", "order", "family", "genus")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("probe_features", SCRIPTS / "probe_features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_workspace(folder, classes=4, spread=0.4):
    """Features around one centre a class, in two shards; the last class has no labeled photo."""
    draws = np.random.default_rng(1)
    centres = draws.normal(size=(classes, 8))
    plan = [("labeled", 9), ("val", 5), ("test", 8), ("unlabeled", 6)]
    rows = [
        (f"{split}{c}{i}", split, c)
        for split, count in plan
        for c in range(classes)
        for i in range(count)
        if not (split == "labeled" and c == classes - 1)
    ]
    frame = pl.DataFrame(rows, schema=["image_id", "split", "truth"], orient="row").sort("image_id")
    vectors = (centres[frame["truth"].to_numpy()] + draws.normal(size=(frame.height, 8)) * spread).astype(np.float16)
    taxa = dict.fromkeys(TAXA, pl.lit(None, pl.String))
    place = dict.fromkeys(("latitude", "longitude", "location_uncertainty"), pl.lit(None, pl.Float64))
    box = dict.fromkeys(("box_x", "box_y", "box_w", "box_h"), pl.lit(None, pl.Float32))
    manifest = frame.with_columns(
        path=pl.col("image_id"),
        class_id=pl.when(pl.col("split").is_in(["labeled", "val"])).then("truth").cast(pl.Int32),
        sha256=pl.col("image_id"),
        date=pl.lit(None, pl.String),
        width=pl.lit(9, pl.Int32),
        height=pl.lit(9, pl.Int32),
        phash=pl.lit(0, pl.UInt64),
        **taxa,
        **place,
        **box,
    ).drop("truth")
    write_table(manifest, "manifest", folder / "manifest.parquet")
    known = pl.DataFrame({"class_id": range(classes), "name": [str(c) for c in range(classes)]}).with_columns(
        pl.col("class_id").cast(pl.Int32), labeled_count=pl.lit(9, pl.Int32), title=pl.lit(None, pl.String), **taxa
    )
    write_table(known, "classes", folder / "classes.parquet")
    paths = []
    for shard in range(2):
        flat = pa.array(vectors[shard::2].ravel(), pa.float16())
        ids = pa.array(frame["image_id"][shard::2].to_list())
        embedding = pa.FixedSizeListArray.from_arrays(flat, 8)
        path = folder / f"features{shard}.parquet"
        write_table(pa.table({"image_id": ids, "embedding": embedding}), "features", path)
        paths.append(str(path))
    return paths, frame


def run(script, folder, paths, seed=1, out="p.parquet", top_k=3):
    target = folder / out
    script.probe_features(
        features=paths,
        manifest=str(folder / "manifest.parquet"),
        classes=str(folder / "classes.parquet"),
        target=str(target),
        top_k=top_k,
        seed=seed,
    )
    return target


def test_the_probe_learns_the_classes_it_has_labels_of(script, tmp_path):
    paths, frame = make_workspace(tmp_path)
    table = read_table("predictions", run(script, tmp_path, paths))
    asked = frame.filter(pl.col("split").is_in(["val", "test"]))
    assert table["image_id"].to_list() == asked["image_id"].to_list()
    first = table["class_ids"].to_numpy()[:, 0]
    truth = asked["truth"].to_numpy()
    assert (first == truth)[truth < 3].mean() > 0.9
    assert (first < 3).all()
    _, dense = to_dense(read_table("predictions", run(script, tmp_path, paths, top_k=4)), 4)
    np.testing.assert_allclose(dense.sum(axis=1), 1, atol=1e-5)
    assert (dense[:, 3] == 0).all()


def test_the_probe_repeats_byte_for_byte_and_does_not_see_val_labels(script, tmp_path):
    paths, _ = make_workspace(tmp_path, spread=1.0)
    first = run(script, tmp_path, paths).read_bytes()
    manifest = read_table("manifest", tmp_path / "manifest.parquet").with_columns(
        class_id=pl.when(pl.col("split") == "val").then(0).otherwise("class_id").cast(pl.Int32)
    )
    write_table(manifest, "manifest", tmp_path / "manifest.parquet")
    assert run(script, tmp_path, paths[::-1], out="q.parquet").read_bytes() == first


def test_the_penalty_is_cross_validated_on_labeled_photos(script):
    draws = np.random.default_rng(2)
    labels = np.repeat(np.arange(3), 8)
    features = draws.normal(size=(24, 6)).astype(np.float32)
    features[np.arange(24), labels] += 3
    assert script.choose_penalty(features, labels, 1) in script.PENALTIES
    alone = np.array([0, 1])  # one photo a class: nothing can be compared, the strongest penalty stays
    assert script.choose_penalty(features[[0, 8]], alone, 1) == script.PENALTIES[0]


def test_missing_features_and_a_single_class_are_refused(script, tmp_path):
    paths, _ = make_workspace(tmp_path)
    with pytest.raises(ArtifactError, match="photos have no features"):
        run(script, tmp_path, paths[:1])
    manifest = read_table("manifest", tmp_path / "manifest.parquet").filter(
        (pl.col("split") != "labeled") | (pl.col("class_id") == 0)
    )
    write_table(manifest, "manifest", tmp_path / "manifest.parquet")
    with pytest.raises(ArtifactError, match="at least two classes"):
        run(script, tmp_path, paths)

"""The probe of places and dates: what the nearest labeled photos say, chosen without a look at val or test."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldmark.artifacts import SCHEMAS, TAXA, ArtifactError, read_table, write_table
from workflow.scripts.probe_metadata import choose_neighbours, probe_metadata, vote


def write_photos(folder: Path, told: bool = True, labeled: int = 40) -> None:
    """Two classes, one in the north, one in the south, and photos of val and test alike; some tell no place."""
    draws = np.random.default_rng(0)
    rows = []
    for number in range(labeled + 20):
        south = number % 2
        latitude = float(draws.normal(-40 if south else 40, 5)) if told and number % 10 else None
        split = "labeled" if number < labeled else "val" if number % 4 < 2 else "test"
        rows.append(
            dict.fromkeys(SCHEMAS["manifest"].names)
            | {"image_id": f"{number:03d}", "path": f"{number}.jpg", "split": split, "latitude": latitude}
            | {"class_id": south if split != "test" else None, "longitude": None if latitude is None else 10.0}
            | {"width": 9, "height": 9, "sha256": "0", "phash": 1}
        )
    kinds = dict.fromkeys((*TAXA, "date"), pl.String) | {"phash": pl.UInt64, "class_id": pl.Int32}
    kinds |= dict.fromkeys(("latitude", "longitude", "location_uncertainty"), pl.Float64)
    kinds |= {f"box_{part}": pl.Float32 for part in "xywh"}
    write_table(pl.DataFrame(rows, schema_overrides=kinds, infer_schema_length=None), "manifest", folder / "m.parquet")
    classes = pl.DataFrame({"class_id": [0, 1], "name": ["n", "s"], "labeled_count": [20, 20]})
    nulls = [pl.lit(None, pl.String).alias(taxon) for taxon in ("title", *TAXA)]
    write_table(classes.with_columns(nulls), "classes", folder / "c.parquet")


def run(folder: Path) -> pl.DataFrame:
    target = folder / "p.parquet"
    probe_metadata(str(folder / "m.parquet"), str(folder / "c.parquet"), str(target), "sphere", 1e5, 2, 1)
    return read_table("predictions", target)


def test_photos_are_named_by_their_place(tmp_path: Path) -> None:
    write_photos(tmp_path)
    found = run(tmp_path)
    assert found.height == 20
    for image_id, classes, _ in found.iter_rows():
        if int(image_id) % 10:
            assert classes[0] == int(image_id) % 2
    np.testing.assert_allclose(found["probabilities"].to_numpy().sum(axis=1), 1, atol=1e-5)


def test_without_any_metadata_only_frequencies_are_left(tmp_path: Path) -> None:
    write_photos(tmp_path, told=False)
    shares = run(tmp_path)["probabilities"].to_numpy()
    assert len(np.unique(shares, axis=0)) == 1


def test_a_photo_does_not_vote_for_itself() -> None:
    # Each photo's nearest other one is of the other class: one neighbour is always wrong, many are right half the time.
    known = np.repeat(np.arange(20.0), 2)[:, None].astype(np.float32)
    labels = np.tile([0, 1], 20)
    assert choose_neighbours(known, labels, np.array([0.5, 0.5], dtype=np.float32), seed=0) > 1


def test_votes_and_frequencies_add_up_to_one() -> None:
    found = vote(np.array([[0, 0, 2], [1, 1, 1]]), np.array([0.5, 0.25, 0.25], dtype=np.float32))
    np.testing.assert_allclose(found, [[2.5 / 4, 0.25 / 4, 1.25 / 4], [0.5 / 4, 3.25 / 4, 0.25 / 4]])


def test_too_few_labels_are_named(tmp_path: Path) -> None:
    write_photos(tmp_path, labeled=1)
    with pytest.raises(ArtifactError, match="expected at least two labeled photos"):
        run(tmp_path)

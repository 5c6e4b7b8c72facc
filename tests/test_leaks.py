"""Copies and near duplicates between training and the held-out splits."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageEnhance

from fieldmark.leaks import find_leaks
from fieldmark.manifest import inspect_photo

SPLITS = ("labeled", "unlabeled", "val", "test")


def photos(hashes: np.ndarray, splits: np.ndarray, digests: np.ndarray) -> pl.DataFrame:
    """The columns of a manifest that matter here."""
    ids = [f"{number:04d}" for number in range(len(hashes))]
    columns = {"image_id": ids, "path": [f"d/{name}.jpg" for name in ids], "split": splits, "sha256": digests}
    return pl.DataFrame({**columns, "phash": hashes}, schema_overrides={"phash": pl.UInt64, "sha256": pl.String})


@pytest.mark.parametrize("bits", [0, 2, 5, 16])
def test_near_duplicates_equal_the_naive_ones(bits: int) -> None:
    draws = np.random.default_rng(bits)
    base = draws.integers(0, 2**63, 12, dtype=np.uint64)
    flips = [sum(1 << int(b) for b in draws.choice(64, draws.integers(0, 9), replace=False)) for _ in range(300)]
    hashes = draws.choice(base, 300) ^ np.array(flips, dtype=np.uint64)
    splits = draws.choice(SPLITS, 300)
    digests = np.array([str(number) for number in range(300)])
    digests[:40] = draws.choice(["x", "y", "z"], 40)
    table = photos(hashes, splits, digests)
    found = find_leaks(table, bits)
    rows = table.to_dicts()
    held_out = [row for row in rows if row["split"] in ("val", "test")]
    exact, near = set(), {}
    for row in rows:
        if row["split"] in ("val", "test"):
            continue
        if any(other["sha256"] == row["sha256"] for other in held_out):
            exact.add(row["image_id"])
            continue
        distance = min((int(row["phash"]) ^ int(other["phash"])).bit_count() for other in held_out)
        if distance <= bits:
            near[row["image_id"]] = f"a near duplicate ({distance} of 64 bits"
    assert exact and near
    assert set(found.filter("exact")["image_id"]) == exact
    reasons = dict(found.filter(~pl.col("exact")).select("image_id", "reason").iter_rows())
    assert reasons.keys() == near.keys()
    assert all(reasons[name].startswith(start) for name, start in near.items())
    assert find_leaks(table.sample(fraction=1.0, shuffle=True, seed=1), bits).equals(found)


@pytest.mark.parametrize("empty", [("val", "test"), ("labeled", "unlabeled"), SPLITS])
def test_without_photos_on_one_side_nothing_leaks(empty: tuple[str, ...]) -> None:
    splits = np.array([split for split in SPLITS if split not in empty], dtype="U9")
    table = photos(np.arange(len(splits), dtype=np.uint64), splits, splits)
    assert find_leaks(table, 4).is_empty()


def test_small_changes_of_a_photo_are_near_duplicates_and_other_photos_are_not(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 9, 12, 3), dtype=np.uint8)
    first, other = (Image.fromarray(part).resize((360, 270), Image.Resampling.BICUBIC) for part in noise)
    variants = {
        "original": first,
        "smaller": first.resize((200, 150)),
        "brighter": ImageEnhance.Brightness(first).enhance(1.15),
        "other": other,
    }
    for name, picture in variants.items():
        picture.save(tmp_path / f"{name}.png")
    first.save(tmp_path / "recompressed.jpg", quality=40)
    names = ["original.png", "smaller.png", "brighter.png", "recompressed.jpg", "other.png"]
    hashes = [inspect_photo(tmp_path / name, tmp_path).phash for name in names]
    table = photos(
        np.array(hashes, dtype=np.uint64), np.array(["test", *["unlabeled"] * 4]), np.array([str(n) for n in names])
    )
    assert find_leaks(table, 4)["image_id"].to_list() == ["0001", "0002", "0003"]

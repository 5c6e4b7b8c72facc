"""Val photos drawn from the labeled ones."""

from pathlib import Path

import polars as pl
import pytest

from fieldmark.holdout import hold_out
from fieldmark.readers.listing import DataError, Listing, Row, make_listing

COUNTS = {"bee": 6, "fly": 2, "owl": 1}


def source(counts: dict[str, int] = COUNTS, split: str = "labeled") -> Listing:
    """A listing of some photos of each class, and two unlabeled ones."""
    photos: list[Row] = [
        {"file": f"{name}/{number}.jpg", "split": split, "label": name}
        for name, count in counts.items()
        for number in range(count)
    ]
    photos += [{"file": f"u/{number}.jpg", "split": "unlabeled"} for number in range(2)]
    return make_listing(Path("x"), photos, [{"name": name} for name in counts], [])


def splits(listing: Listing) -> dict[str, str]:
    """The split of each file."""
    return dict(listing.photos.select("file", "split").iter_rows())


def test_each_class_gives_as_many_and_keeps_one() -> None:
    before = source()
    after = hold_out(before, 2, 1)
    val = after.photos.filter(split="val")
    assert dict(val["label"].value_counts().iter_rows()) == {"bee": 2, "fly": 1}
    # Nothing else changes, not even the order.
    assert after.photos.drop("split").equals(before.photos.drop("split"))
    assert set(after.photos.filter(pl.col("label").is_null())["split"]) == {"unlabeled"}


def test_draws_follow_the_seed_and_each_class_alone() -> None:
    first = splits(hold_out(source(), 2, 1))
    assert splits(hold_out(source(), 2, 1)) == first
    assert any(splits(hold_out(source(), 2, seed)) != first for seed in range(2, 6))
    more = splits(hold_out(source({**COUNTS, "owl": 5}), 2, 1))
    assert {file: more[file] for file in first if file[:3] != "owl"} == {
        k: v for k, v in first.items() if k[:3] != "owl"
    }


def test_faults() -> None:
    with pytest.raises(DataError, match=r"val_per_class: expected 0, because the data have val photos"):
        hold_out(source(split="val"), 2, 1)
    with pytest.raises(DataError, match=r"no class has more than one labeled photo.*val_per_class: 2"):
        hold_out(source({"bee": 1, "owl": 1}), 2, 1)

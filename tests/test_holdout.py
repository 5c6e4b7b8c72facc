"""Val photos drawn from the labeled ones."""

import polars as pl
import pytest

from fieldmark.artifacts import TAXA
from fieldmark.holdout import HoldOut, hold_out
from fieldmark.tables import DataError

COUNTS = {"bee": 6, "fly": 2, "owl": 1}


def photos_of(counts: dict[str, int], copies: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Labeled photos of each class, of which some of the first class are copies of its first; two unlabeled ones."""
    rows = [
        (f"{name}/{number}", "labeled", class_id, f"{name}{0 if class_id == 0 and number <= copies else number}")
        for class_id, (name, count) in enumerate(counts.items())
        for number in range(count)
    ]
    rows += [(f"u/{number}", "unlabeled", None, f"u{number}") for number in range(2)]
    frame = pl.DataFrame(rows, schema=["image_id", "split", "class_id", "sha256"], orient="row")
    classes = pl.DataFrame({"class_id": range(len(counts)), "name": list(counts)})
    return frame.with_columns(pl.lit("x").alias(taxon) for taxon in TAXA), classes


def val_of(frame: pl.DataFrame) -> set[str]:
    """The ids of its val photos."""
    return set(frame.filter(pl.col("split") == "val")["image_id"])


def test_each_class_gives_as_many_and_keeps_one() -> None:
    before, classes = photos_of(COUNTS)
    after = hold_out(before, classes, HoldOut(2, 1))
    assert sorted(name[:3] for name in val_of(after)) == ["bee", "bee", "fly"]
    assert after.drop("split", *TAXA).equals(before.drop("split", *TAXA))
    assert set(after.filter(pl.col("class_id").is_null())["split"]) == {"unlabeled"}


def test_val_photos_tell_no_more_than_test_photos_do() -> None:
    before, classes = photos_of(COUNTS)
    test = before.head(1).with_columns(image_id=pl.lit("t/1"), split=pl.lit("test"), genus=pl.lit(None, pl.String))
    after = hold_out(pl.concat([before, test]), classes, HoldOut(2, 1))
    val, rest = after.filter(pl.col("split") == "val"), after.filter(pl.col("split") == "labeled")
    assert val["genus"].null_count() == val.height and val["family"].null_count() == 0
    assert rest["genus"].null_count() == 0


def test_copies_count_as_one_photo() -> None:
    # Four photos of the same bytes and two others: with one of the three in labeled, two can be spared.
    before, classes = photos_of(COUNTS, copies=3)
    for seed in range(8):
        val = val_of(hold_out(before, classes, HoldOut(5, seed)))
        assert len([name for name in val if name[:3] == "bee"]) == 2
        left = before.filter(~pl.col("image_id").is_in(val) & (pl.col("class_id") == 0))
        held = before.filter(pl.col("image_id").is_in(val))
        assert set(left["sha256"]) - set(held["sha256"]), "a photo is left of which val has no copy"


def test_draws_follow_the_seed_and_each_class_alone() -> None:
    first = val_of(hold_out(*photos_of(COUNTS), HoldOut(2, 1)))
    assert val_of(hold_out(*photos_of(COUNTS), HoldOut(2, 1))) == first
    assert any(val_of(hold_out(*photos_of(COUNTS), HoldOut(2, seed))) != first for seed in range(2, 6))
    more = val_of(hold_out(*photos_of({**COUNTS, "owl": 5}), HoldOut(2, 1)))
    assert {name for name in more if name[:3] != "owl"} == first


def test_without_a_photo_to_spare_nothing_is_drawn() -> None:
    with pytest.raises(DataError, match=r"no class has more than one usable labeled photo.*val_per_class: 2"):
        hold_out(*photos_of({"bee": 1, "owl": 1}), HoldOut(2, 1))

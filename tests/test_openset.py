from pathlib import Path

import polars as pl
import pytest

from fieldmark.openset import FOREIGN, OpenSet, split_openset
from fieldmark.readers.candidates import to_candidates
from fieldmark.readers.listing import Listing, Row, make_listing
from fieldmark.tables import DataError

PLAN = OpenSet(in_class_share=0.5, labeled_per_class=3, val_per_class=2, test_per_class=4)


def source(classes: int = 8, photos: int = 15) -> Listing:
    names = [f"c{number}" for number in range(classes)]
    rows: list[Row] = [{"file": f"{name}/{index}.jpg", "label": name} for name in names for index in range(photos)]
    return make_listing(Path("x"), rows, [{"name": name, "phylum": f"p{name}", "genus": "g"} for name in names], [])


def split_of(listing: Listing) -> dict[str, str]:
    return dict(listing.photos.select("file", "split").iter_rows())


def test_counts_and_truth() -> None:
    before = source()
    listing, truth = split_openset(before, PLAN, 1, ["phylum"])
    inside = listing.classes["name"].to_list()
    assert len(inside) == 4 and inside == sorted(inside)
    assert listing.photos.height == before.photos.height
    label = dict(before.photos.select("file", "label").iter_rows())
    for name in inside:
        counts = {split: 0 for split in ("labeled", "val", "test", "unlabeled")}
        for file, split in split_of(listing).items():
            if label[file] == name:
                counts[split] += 1
        assert counts == {"labeled": 3, "val": 2, "test": 4, "unlabeled": 6}
    assert {split for file, split in split_of(listing).items() if label[file] not in inside} == {"unlabeled"}
    expected = {
        file.removesuffix(".jpg"): label[file] if label[file] in inside else FOREIGN
        for file, split in split_of(listing).items()
        if split in ("unlabeled", "test")
    }
    assert dict(truth.iter_rows()) == expected
    candidates, _ = to_candidates(listing, ["phylum"])
    hidden = candidates.filter(pl.col("split").is_in(["unlabeled", "test"]))
    assert hidden["class_id"].null_count() == hidden.height


def test_labels_do_not_leave_the_split() -> None:
    listing, _ = split_openset(source(), PLAN, 1, ["phylum"])
    hidden = listing.photos.filter(pl.col("split").is_in(["unlabeled", "test"]))
    assert hidden["label"].null_count() == hidden.height
    known = listing.photos.group_by("split").agg(pl.col("phylum", "genus").null_count(), pl.len().alias("n"))
    for split, phylum, genus, count in known.iter_rows():
        assert genus == count
        assert phylum == (0 if split in ("labeled", "unlabeled") else count)


def test_seed_decides_and_row_order_does_not() -> None:
    before = source()
    first, truth = split_openset(before, PLAN, 1, [])
    shuffled = Listing(
        before.root, before.photos.sample(fraction=1, shuffle=True, seed=3), before.classes, before.refused
    )
    again, truth_again = split_openset(shuffled, PLAN, 1, [])
    assert split_of(first) == split_of(again) and truth.equals(truth_again)
    other, _ = split_openset(before, PLAN, 2, [])
    assert split_of(first) != split_of(other)


def test_photos_added_to_one_class_leave_the_others() -> None:
    before = source()
    more: list[Row] = [{"file": f"c0/extra{index}.jpg", "label": "c0"} for index in range(3)]
    photos = pl.concat([before.photos, make_listing(before.root, more, [], []).photos])
    first, _ = split_openset(before, PLAN, 1, [])
    second, _ = split_openset(Listing(before.root, photos, before.classes, before.refused), PLAN, 1, [])
    others = {file: split for file, split in split_of(second).items() if not file.startswith("c0/")}
    assert others == {file: split for file, split in split_of(first).items() if not file.startswith("c0/")}


def test_small_classes_are_foreign() -> None:
    before = source(classes=3)
    photos = before.photos.filter((pl.col("label") != "c1") | pl.col("file").str.contains("/[0-8].jpg"))
    listing, _ = split_openset(
        Listing(before.root, photos, before.classes, before.refused), OpenSet(0.6, 3, 2, 4), 1, []
    )
    assert listing.classes["name"].to_list() == ["c0", "c2"]


def test_faults() -> None:
    with pytest.raises(DataError, match="only 0 of 8 classes"):
        split_openset(source(photos=9), PLAN, 1, [])
    with pytest.raises(DataError, match="every photo needs a label"):
        split_openset(make_listing(Path("x"), [{"file": "a.jpg"}], [], []), PLAN, 1, [])
    with pytest.raises(DataError, match="in_class_share"):
        OpenSet(0, 1, 1, 1)
    with pytest.raises(DataError, match="val_per_class"):
        OpenSet(0.5, 1, 0, 1)

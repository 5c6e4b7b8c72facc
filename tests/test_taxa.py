"""Coarse taxa: which are known, whom they part, which classes they allow, and their codes."""

import numpy as np
import polars as pl
import pytest

from fieldmark.artifacts import TAXA
from fieldmark.taxa import coarse_taxon_codes, consistent_classes, known_taxa, taxon_groups


def test_taxa_that_no_unlabeled_photo_carries_are_left_out() -> None:
    photos = pl.DataFrame(
        {
            "split": ["labeled", "unlabeled", "unlabeled", "unlabeled"],
            "kingdom": ["x", "x", "x", "y"],
            "phylum": ["p", None, "q", None],
            "class": ["c", None, None, None],
        }
    )
    assert known_taxa(photos, ["class", "phylum", "kingdom"]) == ["kingdom", "phylum"]
    assert taxon_groups(photos, ["kingdom", "phylum"]).tolist() == [1, 0, 2, 3]
    assert taxon_groups(photos, []).tolist() == [0, 0, 0, 0]


def test_taxa_allow_classes_unless_both_are_known_and_differ() -> None:
    photos = pl.DataFrame({"kingdom": ["x", None, "x", "y"], "phylum": ["p", None, None, "r"]})
    classes = pl.DataFrame({"kingdom": ["x", "x", "y", "x"], "phylum": ["p", "q", "s", None]})
    combination, allowed = consistent_classes(photos, classes, ["kingdom", "phylum"])
    expected = [[True, False, False, True], [True] * 4, [True, True, False, True], [False] * 4]
    np.testing.assert_array_equal(allowed[combination], expected)
    assert consistent_classes(photos, classes, [])[1].tolist() == [[True] * 4]


def manifest(*rows: tuple[str, str, int | None, str | None, str | None]) -> pl.DataFrame:
    """Photos by image_id, split, class_id, order and family."""
    names = {"image_id": pl.String, "split": pl.String, "class_id": pl.Int32, "order": pl.String, "family": pl.String}
    frame = pl.DataFrame(list(rows), schema=names, orient="row")
    others = [pl.lit(None, pl.String).alias(taxon) for taxon in TAXA if taxon not in names]
    return frame.with_columns(*others, ("photos/" + pl.col("image_id")).alias("path"))


PHOTOS = manifest(
    ("a", "labeled", 0, "O1", "F1"),
    ("b", "labeled", 1, "O1", "F2"),
    ("c", "labeled", 1, "O1", None),
    ("d", "test", None, None, None),
    ("e", "unlabeled", None, "O1", "F2"),
    ("f", "unlabeled", None, "O2", "F1"),
    ("g", "unlabeled", None, "O1", None),
    ("h", "unlabeled", None, "O9", "F9"),
    ("i", "val", 0, "O1", "F1"),
)
CLASSES = pl.DataFrame(
    {"class_id": [0, 1, 2], "order": ["O1", "O1", "O2"], "family": ["F1", "F2", "F1"]}
    | {taxon: [None] * 3 for taxon in TAXA if taxon not in ("order", "family")}
)


def test_taxa_that_unlabeled_photos_have_become_codes() -> None:
    of_photo, of_class = coarse_taxon_codes(PHOTOS, CLASSES)
    keys = ["O1F1", "O1F2", None, None, "O1F2", "O2F1", None, "O9F9", "O1F1"]
    class_keys = ["O1F1", "O1F2", "O2F1"]
    code = dict(zip(class_keys, of_class.tolist(), strict=True))
    assert len({*code.values()}) == 3 and -1 not in code.values()
    for key, found in zip(keys, of_photo.tolist(), strict=True):
        if key is None:
            assert found == -1
        elif key in code:
            assert found == code[key]
        else:
            assert found >= 0 and found not in code.values()


def test_taxa_that_no_unlabeled_photo_has_give_no_codes() -> None:
    hidden = PHOTOS.with_columns(
        family=pl.when(pl.col("split") == "unlabeled").then(None).otherwise(pl.col("family")),
    )
    of_photo, of_class = coarse_taxon_codes(hidden, CLASSES)
    assert of_class[0] == of_class[1] != of_class[2]
    assert of_photo[2] == of_photo[6] == of_class[0] and of_photo[5] == of_class[2]


@pytest.mark.parametrize("without", [["order", "family"], "unlabeled photos"])
def test_without_known_taxa_every_code_is_minus_one(without: list[str] | str) -> None:
    if isinstance(without, str):
        photos = PHOTOS.filter(pl.col("split") != "unlabeled")
    else:
        blank = [pl.when(pl.col("split") != "unlabeled").then(pl.col(taxon)).alias(taxon) for taxon in without]
        photos = PHOTOS.with_columns(blank)
    for codes, frame in zip(coarse_taxon_codes(photos, CLASSES), (photos, CLASSES), strict=True):
        assert codes.tolist() == [-1] * len(frame)

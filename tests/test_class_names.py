"""What classes are called where people read them."""

import polars as pl

from fieldmark.class_names import class_labels


def test_titles_come_first_and_numbers_get_their_taxon() -> None:
    rows = [
        (0, "17", "Apis mellifera", "Apis", "Apidae"),
        (1, "18", "Bombus", "Bombus", "Apidae"),
        (2, "19", "Bombus", "Bombus", "Apidae"),
        (3, "20", None, None, "Apidae"),
        (4, "21", None, None, None),
        (5, "ant", None, "Lasius", None),
    ]
    columns = dict(zip(("class_id", "name", "title", "genus", "family"), zip(*rows, strict=True), strict=True))
    nothing = {"order": [None] * len(rows), "class": [None] * len(rows)}
    assert list(class_labels(pl.DataFrame({**columns, **nothing})).values()) == [
        "Apis mellifera",
        "Bombus (18)",
        "Bombus (19)",
        "Apidae 20",
        "class 21",
        "ant",
    ]

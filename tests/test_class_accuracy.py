"""The table of classes and the list of mistakes."""

import numpy as np
import polars as pl

from fieldmark.class_accuracy import class_table, mistakes
from fieldmark.class_names import spoken_names
from fieldmark.evaluation import confusion_table
from fieldmark.predictions import TopLists

CLASSES = pl.DataFrame(
    {
        "class_id": pl.Series([0, 1, 2, 3], dtype=pl.Int32),
        "name": ["ant", "bee", "17", "fly"],
        "title": pl.Series([None, None, "Owl", None], dtype=pl.String),
        "labeled_count": [5, 3, 4, 2],
        **{taxon: pl.Series([None] * 4, dtype=pl.String) for taxon in ("class", "order", "family", "genus")},
    }
)
TRUTH = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
NAMED = np.array([0, 1, 2, 2, 1, 1, 0, 1, 0])


def test_classes_are_listed_worst_first() -> None:
    pseudo = pl.DataFrame(
        {"class_id": pl.Series([0, 0, 1], dtype=pl.Int32), "selected": [True, False, True], "image_id": ["a", "b", "c"]}
    )
    table = class_table(confusion_table(TRUTH, NAMED), CLASSES, pseudo, spoken_names(CLASSES))
    assert table.rows() == [
        # name, labeled, pseudo-labels, photos, right, share, most often taken for, and how often
        ("Owl", 4, 0, 3, 0, 0.0, "ant", 2),
        ("ant", 5, 1, 4, 1, 0.25, "Owl", 2),
        ("bee", 3, 1, 2, 2, 1.0, None, 0),
        ("fly", 2, 0, 0, 0, None, None, 0),
    ]
    assert class_table(confusion_table(TRUTH, NAMED), CLASSES, None, spoken_names(CLASSES)).columns[1:3] == [
        "labeled",
        "photos",
    ]


def test_mistakes_are_listed_the_surest_first() -> None:
    ids = [f"t/{number}" for number in range(9)]
    manifest = pl.DataFrame({"image_id": ids, "path": [f"/d/{name}.jpg" for name in ids]})
    probabilities = np.linspace(0.5, 0.9, 9, dtype=np.float32)[:, None]
    lists = TopLists(ids, NAMED[:, None], probabilities)
    found = mistakes(lists, TRUTH, manifest, spoken_names(CLASSES))
    assert found.columns == ["path", "class_name", "named", "probability"]
    assert found.drop("probability").rows() == [
        ("/d/t/8.jpg", "Owl", "ant"),
        ("/d/t/7.jpg", "Owl", "bee"),
        ("/d/t/6.jpg", "Owl", "ant"),
        ("/d/t/3.jpg", "ant", "Owl"),
        ("/d/t/2.jpg", "ant", "Owl"),
        ("/d/t/1.jpg", "ant", "bee"),
    ]
    assert mistakes(lists, NAMED, manifest, spoken_names(CLASSES)).is_empty()

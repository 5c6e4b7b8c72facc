"""What the rounds found the unlabeled photos to be, as a table for people."""

from collections.abc import Sequence

import polars as pl

from fieldmark.class_names import spoken_names

HEADER = ("path", "class_name", "probability", "in_class_score", "selected")


def unlabeled_rows(
    pseudo_labels: pl.DataFrame, manifest: pl.DataFrame, classes: pl.DataFrame
) -> Sequence[tuple[str, ...]]:
    """Rows under :data:`HEADER`, one for each unlabeled photo, the likeliest of a labeled class first.

    ``probability`` is that of the class if the photo shows a labeled class at all; how sure this is, says the in-class
    score, which orders photos but is no probability. ``selected`` photos were learned from.

    Args:
        pseudo_labels: the last round's table.
        manifest: tells the photos' paths.
        classes: tells the names.
    """
    names = spoken_names(classes)
    rows = pseudo_labels.join(manifest.select("image_id", "path"), on="image_id")
    return [
        (path, names[class_id], f"{confidence:.4f}", f"{score:.4f}", "yes" if selected else "no")
        for path, class_id, confidence, score, selected in rows.sort(
            ["in_class_score", "path"], descending=[True, False]
        )
        .select("path", "class_id", "confidence", "in_class_score", "selected")
        .iter_rows()
    ]

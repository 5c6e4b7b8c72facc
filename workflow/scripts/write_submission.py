"""Write the ensemble's predictions of all test photos as a competition asks for."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

import logging

from fieldmark.artifacts import read_table
from fieldmark.predictions import read_lists
from fieldmark.submission import (
    photos_to_submit,
    submission_rows,
    submitted_names,
    unreadable_test_photos,
    with_source_ids,
)
from fieldmark.tables import write_csv

log = logging.getLogger("fieldmark")


def write_submission(
    predictions: str,
    manifest: str,
    classes: str,
    rejected: str,
    target: str,
    layout: str,
    top_k: int,
    annotations: str | None = None,
) -> None:
    """Write one row for each test photo, unreadable ones included.

    Args:
        predictions: the ensemble's.
        manifest: tells the test photos.
        classes: their names are the source's own class ids.
        rejected: photos that could not be read.
        target: the CSV file.
        layout: semi_inat, inat or simple, see :mod:`fieldmark.submission`.
        top_k: how many classes the layout semi_inat lists.
        annotations: the organisers' JSON of the test split, whose image ids the layout inat shows.
    """
    photos, known = read_table("manifest", manifest), read_table("classes", classes)
    names = submitted_names(known, layout)
    listed = photos_to_submit(read_lists(predictions, known.height), photos, names)
    listed += unreadable_test_photos(read_table("rejected", rejected), photos, known, names)
    if layout == "inat" and annotations is not None:
        listed = with_source_ids(listed, annotations)
    header, rows = submission_rows(listed, layout, top_k)
    write_csv(header, rows, target)
    log.info("%d test photos written in layout %s", len(rows), layout)


if "snakemake" in globals():
    write_submission(
        predictions=snakemake.input.predictions,
        manifest=snakemake.input.manifest,
        classes=snakemake.input.classes,
        rejected=snakemake.input.rejected,
        target=snakemake.output[0],
        annotations=snakemake.input.get("annotations") or None,
        **snakemake.params.settings,
    )

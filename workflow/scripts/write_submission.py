"""Write the ensemble's predictions of all test photos as a competition asks for, and what the unlabeled ones are."""

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
    write_csv,
)
from fieldmark.unlabeled import HEADER, unlabeled_rows

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
    pseudo_labels: str | None = None,
    unlabeled: str | None = None,
) -> None:
    """Write one row for each test photo, unreadable ones included, and one for each usable unlabeled photo.

    Args:
        predictions: the ensemble's.
        manifest: tells the test photos.
        classes: their names are the source's own class ids.
        rejected: photos that could not be read.
        target: the CSV file.
        layout: semi_inat, inat or simple, see :mod:`fieldmark.submission`.
        top_k: how many classes the layout semi_inat lists.
        annotations: the organisers' JSON of the test split, whose image ids the layout inat shows.
        pseudo_labels: what the last round's selection says of the unlabeled photos; None where there are no rounds.
        unlabeled: the CSV file for these.
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
    if pseudo_labels is not None and unlabeled is not None:
        judged = unlabeled_rows(read_table("pseudo_labels", pseudo_labels), photos, known)
        write_csv(HEADER, judged, unlabeled)
        log.info(
            "%d unlabeled photos written, those likeliest of a labeled class first; %s tells why others are not",
            len(judged),
            rejected,
        )


if "snakemake" in globals():
    write_submission(
        predictions=snakemake.input.predictions,
        manifest=snakemake.input.manifest,
        classes=snakemake.input.classes,
        rejected=snakemake.input.rejected,
        target=snakemake.output.submission,
        annotations=snakemake.input.get("annotations") or None,
        pseudo_labels=snakemake.input.get("pseudo_labels"),
        unlabeled=snakemake.output.get("unlabeled"),
        **snakemake.params.settings,
    )

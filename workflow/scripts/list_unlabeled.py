"""Write what the last round found the unlabeled photos to be, as a table for people."""

from fieldmark.stage import log, start

if "snakemake" in globals():
    start(snakemake)

from fieldmark.artifacts import read_table
from fieldmark.tables import write_csv
from fieldmark.unlabeled import HEADER, unlabeled_rows


def list_unlabeled(pseudo_labels: str, manifest: str, classes: str, target: str) -> None:
    """Write one row for each usable unlabeled photo, the likeliest of a labeled class first.

    Args:
        pseudo_labels: what the last round's selection says of them.
        manifest: tells their paths.
        classes: tells the names.
        target: the CSV file.
    """
    rows = unlabeled_rows(
        read_table("pseudo_labels", pseudo_labels), read_table("manifest", manifest), read_table("classes", classes)
    )
    write_csv(HEADER, rows, target)
    log.info("%d unlabeled photos written; results/data/rejected.parquet tells why others are not", len(rows))


if "snakemake" in globals():
    list_unlabeled(
        pseudo_labels=snakemake.input.pseudo_labels,
        manifest=snakemake.input.manifest,
        classes=snakemake.input.classes,
        target=snakemake.output[0],
    )

"""Read a data set of any supported format and write the manifest of its usable photos."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from fieldmark.artifacts import write_atomically, write_table
from fieldmark.holdout import HoldOut
from fieldmark.leaks import Leaks
from fieldmark.manifest import build_manifest
from fieldmark.openset import OpenSet, split_openset
from fieldmark.readers import read_listing
from fieldmark.readers.candidates import to_candidates
from fieldmark.tables import DataError


def ingest_photos(
    *,
    format: str,
    root: str,
    coarse_taxa: Sequence[str],
    max_rejected_share: float,
    leaks: Leaks,
    near_duplicate_bits: int,
    manifest: str,
    classes: str,
    rejected: str,
    workers: int,
    annotations: str | Mapping[str, str] | None = None,
    locations: Mapping[str, str] | None = None,
    folders: Mapping[str, str] | None = None,
    dataset: str | None = None,
    parts: Sequence[Mapping[str, str | bool]] = ({},),
    download: bool = False,
    val_per_class: int = 0,
    openset: Mapping[str, float] | None = None,
    seed: int | None = None,
    truth: str | None = None,
) -> None:
    """Write the tables manifest, classes and rejected of a data set.

    Args:
        format: demo, semi_inat, coco, folder, table or torchvision; docs/data.md tells what each expects.
        root: the folder that holds the data set.
        coarse_taxa: taxon columns that may be known of unlabeled photos.
        max_rejected_share: above this share of unusable photos the stage fails.
        leaks: report, drop or drop_near: what happens to training photos that are also in val or test.
        near_duplicate_bits: bits of 64 in which the perceptual hashes of near duplicates may differ.
        manifest: target, "manifest" table; photos that are no files yet are written to ``photos/`` beside it.
        classes: target, "classes" table.
        rejected: target, "rejected" table.
        workers: decoding threads.
        annotations: semi_inat and table: a file below root; coco: split to file.
        locations: coco: split to a separate list of places.
        folders: coco and folder: split to folder.
        dataset: torchvision: the data set's class name.
        parts: torchvision: keyword arguments of each part of the data set.
        download: torchvision: whether it may download what is missing.
        val_per_class: labeled photos of each class that are held out as val; 0: the source has val photos.
        openset: fields of :class:`fieldmark.openset.OpenSet` to split a fully labeled data set; otherwise None.
        seed: of the open-set split, or of the val photos held out.
        truth: target of the open-set split's truth, CSV.

    Raises:
        fieldmark.tables.DataError: if the data set or the keys are not as the format expects.
    """
    photos = Path(manifest).parent / "photos"
    listing = read_listing(
        format,
        Path(root),
        photos,
        annotations=annotations,
        locations=locations,
        folders=folders,
        dataset=dataset,
        parts=parts,
        download=download,
        pooled=openset is not None,
    )
    if openset is not None:
        if seed is None or truth is None:
            raise DataError("data.openset: the split needs a seed, and a target for the truth")
        sizes = {name: int(openset[name]) for name in ("labeled_per_class", "val_per_class", "test_per_class")}
        plan = OpenSet(in_class_share=openset["in_class_share"], **sizes)
        listing, hidden = split_openset(listing, plan, seed, coarse_taxa)
        write_atomically(Path(truth), hidden.write_csv)
    plan_of_val = None
    if val_per_class:
        if seed is None:
            raise DataError("data.val_per_class: the draw needs a seed")
        plan_of_val = HoldOut(val_per_class, seed)
    candidates, known = to_candidates(listing, coarse_taxa, val_is_drawn=plan_of_val is not None)
    refused = listing.refused.with_columns(pl.format("{}/{}", pl.lit(listing.root.as_posix()), "path").alias("path"))
    result = build_manifest(
        candidates,
        known,
        refused,
        listing.root,
        max_rejected_share,
        leaks,
        near_duplicate_bits,
        workers,
        plan_of_val,
    )
    write_table(result.photos, "manifest", manifest)
    counts = result.photos.filter(pl.col("split") == "labeled")["class_id"].value_counts(name="labeled_count")
    write_table(known.join(counts, on="class_id").sort("class_id"), "classes", classes)
    write_table(result.rejected, "rejected", rejected)


if "snakemake" in globals():
    ingest_photos(
        **snakemake.params.data,
        seed=snakemake.params.get("seed"),
        manifest=snakemake.output.manifest,
        classes=snakemake.output.classes,
        rejected=snakemake.output.rejected,
        truth=snakemake.output.get("truth"),
        workers=snakemake.threads,
    )

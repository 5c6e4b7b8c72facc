"""Coarse taxa that are known of unlabeled photos too: which ones, whom they part, and which classes they allow."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from fieldmark.artifacts import TAXA

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


def known_taxa(photos: pl.DataFrame, coarse_taxa: Sequence[str]) -> list[str]:
    """Return those of ``coarse_taxa``, coarse to fine, that at least one unlabeled photo carries.

    A taxon of the labeled photos alone would only part them from the unlabeled ones.
    """
    unlabeled = photos.filter(pl.col("split") == "unlabeled")
    return [taxon for taxon in TAXA if taxon in coarse_taxa and unlabeled[taxon].null_count() < unlabeled.height]


def taxon_groups(photos: pl.DataFrame, taxa: Sequence[str]) -> Integers:
    """Number the photos' combinations of ``taxa``, in alphabetical order; unknown counts as a taxon of its own."""
    if not taxa:
        return np.zeros(photos.height, dtype=np.int64)
    keys = photos.select(pl.concat_str([pl.col(taxon).fill_null("") for taxon in taxa], separator="\t")).to_series()
    return np.unique(keys.to_numpy().astype(str), return_inverse=True)[1].astype(np.int64)


def consistent_classes(photos: pl.DataFrame, classes: pl.DataFrame, taxa: Sequence[str]) -> tuple[Integers, Booleans]:
    """Find which classes the coarse taxa of each photo allow; an unknown taxon allows all.

    Args:
        photos: n rows with the taxon columns.
        classes: c rows with the taxon columns.
        taxa: the columns to compare.

    Returns:
        The (n,) number of each photo's combination of taxa, and (combinations, c) whether it allows the class.
    """
    if not taxa:
        return np.zeros(photos.height, dtype=np.int64), np.ones((1, classes.height), dtype=np.bool_)
    distinct = photos.select(taxa).unique().sort(taxa).with_row_index("combination")
    joined = photos.select(taxa).join(distinct, on=taxa, how="left", nulls_equal=True, maintain_order="left")
    allowed = np.ones((distinct.height, classes.height), dtype=np.bool_)
    for taxon in taxa:
        of_photo = distinct[taxon].to_numpy().astype(object)[:, None]
        of_class = classes[taxon].to_numpy().astype(object)[None, :]
        allowed &= (of_photo == of_class) | (of_photo == None) | (of_class == None)  # noqa: E711 elementwise
    return joined["combination"].to_numpy().astype(np.int64), allowed


def coarse_taxon_codes(manifest: pl.DataFrame, classes: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The known coarse taxa as numbers.

    Args:
        manifest: photos, with nulls in the taxon columns that are not known for all.
        classes: the labeled classes, ordered by class_id.

    Returns:
        (N,) code of each photo and (C,) code of each class, over all taxon columns that the manifest fills for
        unlabeled photos; −1 where one is missing, and everywhere if no column is known.
    """
    known = known_taxa(manifest, TAXA)
    if not known:
        return np.full(len(manifest), -1), np.full(len(classes), -1)
    # A struct of several columns would compare nulls as values; the joined text is null as soon as one is.
    keys = pl.concat_str([pl.col(taxon) for taxon in known], separator="\x1f", ignore_nulls=False)
    of_photo, of_class = (frame.select(keys.alias("key"))["key"] for frame in (manifest, classes))
    names = {name: code for code, name in enumerate(sorted(set(of_photo.drop_nulls()) | set(of_class.drop_nulls())))}
    return tuple(
        np.array([-1 if key is None else names[key] for key in column], dtype=np.int64)
        for column in (of_photo, of_class)
    )  # type: ignore[return-value]

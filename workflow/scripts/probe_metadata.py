"""How far place and date go without looking at any photo: votes of the labeled photos taken nearest."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

import logging

import numpy as np
import polars as pl
from sklearn.neighbors import NearestNeighbors

from fieldmark.artifacts import ArtifactError, read_table, write_table
from fieldmark.evaluation import Labels
from fieldmark.metadata import MetadataSettings, encode
from fieldmark.predictions import Floats, to_table

log = logging.getLogger("fieldmark")

NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100)
# How many votes the classes' frequencies count for: they decide where neighbours do not.
PRIOR = 1.0
# Photos that judge the numbers of neighbours; photos that are predicted at a time.
JUDGES, BLOCK = 20_000, 2_000


def vote(neighbours: Labels, prior: Floats) -> Floats:
    """(n, k) classes of each photo's neighbours and (C,) frequencies to (n, C) probabilities."""
    count, k = neighbours.shape
    votes = np.tile(PRIOR * prior, (count, 1)).astype(np.float32)
    np.add.at(votes, (np.arange(count)[:, None], neighbours), 1.0)
    return votes / np.float32(k + PRIOR)


def choose_neighbours(known: Floats, labels: Labels, prior: Floats, seed: int) -> int:
    """The number of neighbours with the best accuracy on labeled photos, each left out in turn; of equals the least.

    Args:
        known: (n, E) encoded places and dates.
        labels: (n,) class ids.
        prior: (C,) frequencies of the classes.
        seed: of the draw of photos that judge, where there are many.
    """
    judges = np.random.default_rng(seed).permutation(len(known))[:JUDGES]
    numbers = [number for number in NEIGHBOURS if number < len(known)]
    hits = dict.fromkeys(numbers, 0)
    tree = NearestNeighbors(n_neighbors=max(numbers) + 1).fit(known)
    for first in range(0, len(judges), BLOCK):
        rows = judges[first : first + BLOCK]
        order = tree.kneighbors(known[rows], return_distance=False)
        # Among equals a photo need not be its own first neighbour; where it is not listed, the last one goes.
        others = np.argsort(order == rows[:, None], axis=1, kind="stable")[:, :-1]
        order = np.take_along_axis(order, others, axis=1)
        for number in numbers:
            guess = vote(labels[order[:, :number]], prior).argmax(axis=1)
            hits[number] += int((guess == labels[rows]).sum())
    best = max(numbers, key=lambda number: hits[number])
    log.info("hits of %d left-out photos by neighbours: %s; chosen: %d", len(judges), hits, best)
    return best


def probe_metadata(
    manifest: str, classes: str, target: str, encoding: str, max_uncertainty: float, top_k: int, seed: int
) -> None:
    """Predict validation and test photos from places and dates alone.

    Args:
        manifest: splits, places and dates, and classes of labeled photos.
        classes: the table of classes.
        target: predictions of all validation and test photos.
        encoding: see :class:`fieldmark.metadata.MetadataSettings`.
        max_uncertainty: metres, likewise.
        top_k: classes listed per photo.
        seed: of the draw of photos that choose the number of neighbours.

    Raises:
        ArtifactError: if fewer than two labeled photos are there.
    """
    photos = read_table("manifest", manifest)
    settings = MetadataSettings(encoding, max_uncertainty=max_uncertainty)  # type: ignore[arg-type]
    labeled = photos.filter(pl.col("split") == "labeled")
    if labeled.height < 2 or labeled["class_id"].null_count():
        raise ArtifactError(f"{manifest}: expected at least two labeled photos, each with its class")
    known, labels = encode(labeled, settings), labeled["class_id"].to_numpy()
    number = read_table("classes", classes).height
    prior = (np.bincount(labels, minlength=number) / len(labels)).astype(np.float32)
    tree = NearestNeighbors(n_neighbors=choose_neighbours(known, labels, prior, seed)).fit(known)
    asked = photos.filter(pl.col("split").is_in(["val", "test"]))
    encoded, ids = encode(asked, settings), asked["image_id"].to_list()
    tables = []
    for first in range(0, max(len(ids), 1), BLOCK):
        block = encoded[first : first + BLOCK]
        near = tree.kneighbors(block, return_distance=False) if len(block) else np.zeros((0, 1), dtype=np.int64)
        tables.append(to_table(ids[first : first + BLOCK], vote(labels[near], prior), top_k))
    write_table(pl.concat(tables), "predictions", target)


if "snakemake" in globals():
    probe_metadata(
        manifest=snakemake.input.manifest,
        classes=snakemake.input.classes,
        target=snakemake.output[0],
        **snakemake.params.settings,
    )

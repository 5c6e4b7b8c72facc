"""Train the detector of key regions on the boxes of training photos; those of val photos measure it."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from fieldmark.artifacts import read_table
from fieldmark.detector import DetectorArchitecture
from fieldmark.detector_training import DetectorPlan, boxed_photos, fit_detector
from fieldmark.hardware import Hardware
from fieldmark.phases import Phase


def train_detector(manifest: Path, splits: Sequence[str], plan: DetectorPlan, detector: Path, history: Path) -> None:
    """Train on the boxes of some splits (labeled, unlabeled or both); those of val photos measure it."""
    photos = read_table("manifest", manifest)
    fit_detector(boxed_photos(photos, splits), photos.filter(pl.col("split") == "val"), plan, detector, history)


if "snakemake" in globals():
    params = snakemake.params
    train_detector(
        manifest=Path(snakemake.input.manifest),
        splits=params.splits,
        plan=DetectorPlan(
            architecture=DetectorArchitecture(**params.architecture),
            weights=params.weights,
            phase=Phase("detector", **params.phase),
            hardware=Hardware.of_job(snakemake),
            seed=params.seed,
            code=params.code,
        ),
        detector=Path(snakemake.output.detector),
        history=Path(snakemake.output.history),
    )

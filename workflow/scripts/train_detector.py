"""Train the detector of key regions on the boxes of training photos; those of val photos measure it."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from fieldmark.artifacts import read_table, write_table
from fieldmark.boxes import box_scores, known_boxes
from fieldmark.detector import Detector, DetectorArchitecture, detect, save_detector
from fieldmark.detector_training import boxed_photos, train_boxes
from fieldmark.hardware import Hardware
from fieldmark.phases import Phase
from fieldmark.stage import log


def train_detector(
    manifest: Path,
    splits: Sequence[str],
    architecture: DetectorArchitecture,
    weights: str,
    phase: Phase,
    hardware: Hardware,
    seed: int,
    code: str,
    target: Path,
    history: Path,
) -> None:
    """Train the detector and write it with its history.

    Args:
        manifest: the photos and their boxes.
        splits: whose boxes are learned: labeled, unlabeled or both.
        architecture: what to train.
        weights: what its backbone starts from.
        phase: how to train.
        hardware: devices, precision, memory.
        seed: of all draws.
        code: fingerprint of the stage's code; a checkpoint of other code is not resumed.
        target: where the detector goes.
        history: where the ``detection_history`` table goes.
    """
    photos = read_table("manifest", manifest)
    training = boxed_photos(photos, splits)
    val, truth = known_boxes(photos.filter(pl.col("split") == "val"))

    def measure(model: Detector) -> dict[str, float]:
        scores = box_scores(*detect(model, val["path"].to_list(), hardware), truth)
        log.info("on %d val photos: mean IoU %.3f, AP@.5 %.3f, AP %.3f", len(val), *list(scores.values())[:3])
        return {name: scores[name] for name in ("mean_iou", "ap50", "ap")}

    log.info("training on the boxes of %d photos", len(training.paths))
    checkpoint = target.parent / f".{target.stem}.checkpoint.pt"
    model = Detector(architecture, weights, seed)
    table = train_boxes(
        model,
        training,
        phase,
        hardware,
        seed=seed,
        checkpoint=checkpoint,
        identity=code,
        validate=measure if len(val) else None,
    )
    write_table(table, "detection_history", history)
    save_detector(model, target)
    checkpoint.unlink(missing_ok=True)


if "snakemake" in globals():
    params = snakemake.params
    train_detector(
        manifest=Path(snakemake.input.manifest),
        splits=params.splits,
        architecture=DetectorArchitecture(**params.architecture),
        weights=params.weights,
        phase=Phase("detector", **params.phase),
        hardware=Hardware.of_job(snakemake),
        seed=params.seed,
        code=params.code,
        target=Path(snakemake.output.detector),
        history=Path(snakemake.output.history),
    )

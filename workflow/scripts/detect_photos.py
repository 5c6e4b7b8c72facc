"""Find the key region of every photo of a shard: by the trained detector, by a backbone's activation, or not at all."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fieldmark.activation import activation_boxes
from fieldmark.artifacts import read_table, write_table
from fieldmark.boxes import FULL, Floats, box_table
from fieldmark.detector import detect, load_detector
from fieldmark.hardware import Hardware


@dataclass(frozen=True)
class Activation:
    """What looks at the photos where there is no detector; see ``detection:`` in the config."""

    backbone: str
    weights: str
    image_size: int


def detect_photos(
    shard: Path, finder: Path | Activation | None, min_score: float, hardware: Hardware, target: Path
) -> None:
    """Write one box per photo of a shard.

    Args:
        shard: a ``shard`` table.
        finder: the detector's file, a backbone whose activation tells, or None for the full photos.
        min_score: below this the full photo is taken.
        hardware: device and precision.
        target: where the ``boxes`` table goes.
    """
    photos = read_table("shard", shard)
    paths = photos["path"].to_list()
    boxes: Floats
    scores: Floats
    if finder is None:
        boxes, scores = np.tile(FULL, (len(paths), 1)), np.zeros(len(paths))
    elif isinstance(finder, Activation):
        boxes, scores = activation_boxes(finder.backbone, finder.weights, finder.image_size, paths, hardware)
    else:
        boxes, scores = detect(load_detector(finder), paths, hardware)
    write_table(box_table(photos["image_id"].to_list(), boxes, scores, min_score), "boxes", target)


if "snakemake" in globals():
    settings = dict(snakemake.params.settings)
    method, min_score = settings.pop("method"), settings.pop("min_score")
    finder: Path | Activation | None = None
    if method == "detector":
        finder = Path(snakemake.input.detector)
    elif method == "activation":
        finder = Activation(**settings)
    detect_photos(
        shard=Path(snakemake.input.shard),
        finder=finder,
        min_score=min_score,
        hardware=Hardware.of_job(snakemake),
        target=Path(snakemake.output[0]),
    )

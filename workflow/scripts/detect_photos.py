"""Find the key region of every photo of a shard: by the trained detector, by a backbone's activation, or not at all."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from dataclasses import dataclass
from pathlib import Path

from fieldmark.activation import activation_boxes
from fieldmark.artifacts import read_table, write_table
from fieldmark.boxes import Floats, box_table
from fieldmark.detector import detect, load_detector
from fieldmark.hardware import Hardware


@dataclass(frozen=True)
class Activation:
    """What looks at the photos where there is no detector; see ``detection:`` in the config."""

    backbone: str
    weights: str
    image_size: int


def detect_photos(shard: Path, finder: Path | Activation, min_score: float, hardware: Hardware, target: Path) -> None:
    """Write one box per photo of a shard.

    Args:
        shard: a ``shard`` table.
        finder: the detector's file, or a backbone whose activation tells.
        min_score: below this the full photo is taken.
        hardware: device and precision.
        target: where the ``boxes`` table goes.
    """
    photos = read_table("shard", shard)
    paths = photos["path"].to_list()
    boxes: Floats
    scores: Floats
    if isinstance(finder, Activation):
        boxes, scores = activation_boxes(finder.backbone, finder.weights, finder.image_size, paths, hardware)
    else:
        boxes, scores = detect(load_detector(finder), paths, hardware)
    write_table(box_table(photos["image_id"].to_list(), boxes, scores, min_score), "boxes", target)


if "snakemake" in globals():
    settings = dict(snakemake.params.settings)
    method, min_score = settings.pop("method"), settings.pop("min_score")
    detect_photos(
        shard=Path(snakemake.input.shard),
        finder=Path(snakemake.input.detector) if method == "detector" else Activation(**settings),
        min_score=min_score,
        hardware=Hardware.of_job(snakemake),
        target=Path(snakemake.output[0]),
    )

"""Trouble inside the stages: numbers that fail, nothing left to work with, damaged files; and what each comes to."""

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fieldmark.artifacts import ArtifactError, read_table
from fieldmark.checkpoint import Checkpoint
from fieldmark.cluster_filter import ClusterFilterError, FilterRules, judge_clusters
from fieldmark.clustering import ClusteringError
from fieldmark.evidence import EvidenceError
from fieldmark.hardware import Hardware
from fieldmark.models import (
    Architecture,
    Classifier,
    WeightsError,
    build_classifier,
    load_classifier,
    load_pretrained,
    save_classifier,
)
from fieldmark.phases import Phase, TrainingError
from fieldmark.photosets import PhotoSet
from fieldmark.sampling import EpochSampler, MixedSampler
from fieldmark.selection import SelectionError, SelectionRules
from fieldmark.tables import DataError
from fieldmark.training import train
from fieldmark.views import Augmentation
from tests.fault_photos import ingest_share
from tests.test_cluster_filter import LOOSE, measures
from tests.test_clustering import draw_photos, run
from tests.test_selection import run_selection

EXPECTED = (
    ArtifactError,
    ClusterFilterError,
    ClusteringError,
    DataError,
    EvidenceError,
    SelectionError,
    TrainingError,
    WeightsError,
)
RULES = SelectionRules(
    min_confidence=0.0, min_in_class_score=None, selected_share=0.05, max_per_class_ratio=9.0, uniform_weight=0.5
)


@dataclass(frozen=True)
class TroubleCase:
    """One kind of trouble.

    Attributes:
        what: as the document names it.
        cause: brings it about, in an empty folder.
        stops: whether the run must end with an error; otherwise the log says what is done.
    """

    what: str
    cause: Callable[[Path], object]
    stops: bool = True


def model(seed: int = 0) -> Classifier:
    return build_classifier(Architecture("test_efficientnet", 0, 3, 0, False, 32), "none", seed=seed)


def train_on_nan(folder: Path) -> None:
    paths = []
    for number in range(4):
        paths.append(str(folder / f"{number}.png"))
        Image.new("RGB", (40, 40), (60 * number, 9, 9)).save(paths[-1])
    target = np.arange(4) % 3
    photos = PhotoSet([f"p{n}" for n in range(4)], paths, target, np.ones(4, dtype=np.float32), np.full(4, -1))
    broken = model()
    with torch.no_grad():
        broken.head.weight.fill_(math.nan)
    phase = Phase("end_to_end", 2, 4, 1e-3)
    sampler = MixedSampler([(EpochSampler(np.arange(4), 1), 1.0)], 4)
    train(
        broken,
        [(phase, sampler)],
        photos,
        Augmentation(),
        Hardware(),
        seed=1,
        checkpoint=folder / "c.pt",
        identity="code",
    )


def features_that_are(value: float) -> Callable[[Path], object]:
    """Cluster photos whose features are all the same number."""

    def cause(folder: Path) -> None:
        photos = draw_photos()
        photos.points[:] = value
        run(photos, folder)

    return cause


def filter_everything(folder: Path) -> None:
    rules: FilterRules = dataclasses.replace(LOOSE, min_size=1000)
    judge_clusters(measures(), rules)


def select(**changes: float | None) -> Callable[[Path], object]:
    """Select pseudo-labels by other rules."""
    return lambda folder: run_selection(draw_photos(classes=6, foreign=6), folder, replace(RULES, **changes))  # type: ignore[arg-type]


def cut_table(folder: Path) -> None:
    run(draw_photos(), folder)
    path = folder / "clusters.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    read_table("clusters", path)


def other_table(folder: Path) -> None:
    run(draw_photos(), folder)
    read_table("features", folder / "clusters.parquet")


def cut_model(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_classifier(model(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    load_classifier(path)


def cut_checkpoint(folder: Path) -> None:
    path = folder / ".pretrain.checkpoint.pt"
    path.write_bytes(b"PK\x03\x04 half a checkpoint")
    assert Checkpoint(path, "identity", 0.0).load() is None


class Code:
    """Pickled, a call of print."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of the weights file has run",)


def weights_with_code(folder: Path) -> None:
    torch.save({"conv_stem.weight": Code()}, folder / "weights.pth")
    load_pretrained(model(), str(folder / "weights.pth"))


def weights_of_another(folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "weights.pth")
    load_pretrained(model(), str(folder / "weights.pth"))


TROUBLES = [
    TroubleCase("the loss or its gradient is no number", train_on_nan),
    TroubleCase("features that are no numbers", features_that_are(math.nan)),
    TroubleCase("features that are all the same", features_that_are(1.0)),
    TroubleCase(
        "more clusters wanted than there are photos",
        lambda folder: run(draw_photos(classes=2, foreign=1, labeled=2, unlabeled=3), folder, clusters_per_class=100),
        stops=False,
    ),
    TroubleCase("all clusters filtered out", filter_everything),
    TroubleCase("no photo gets a pseudo-label", select(selected_share=None, min_in_class_score=1.0)),
    TroubleCase("a class that gets none", select(), stops=False),
    TroubleCase("a table cut off at the end", cut_table),
    TroubleCase("a table in the place of another", other_table),
    TroubleCase("a model file cut off at the end", cut_model),
    TroubleCase("a damaged checkpoint", cut_checkpoint, stops=False),
    TroubleCase("pretrained weights that hold code", weights_with_code),
    TroubleCase("pretrained weights of another network", weights_of_another),
    TroubleCase("more unusable photos than `data.max_rejected_share` allows", lambda folder: ingest_share(folder, 0.2)),
]


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname.lower()}: {record.getMessage()}")


def trouble_outcomes(folder: Path) -> list[tuple[TroubleCase, str]]:
    """What each of :data:`TROUBLES` comes to.

    Raises:
        AssertionError: if a run goes on that must stop, or the other way round.
    """
    log, outcomes = logging.getLogger("fieldmark"), []
    for number, case in enumerate(TROUBLES):
        own = folder / str(number)
        own.mkdir()
        handler, level = Lines(), log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            case.cause(own)
            warnings = [line for line in handler.lines if line.startswith("warning")]
            outcome = "goes on; " + (warnings or handler.lines)[0]
        except EXPECTED as error:
            outcome = f"stops: {error}"
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
        assert outcome.startswith("stops") == case.stops, f"{case.what}: {outcome}"
        outcomes.append((case, outcome.replace(str(own), "…")))
    return outcomes

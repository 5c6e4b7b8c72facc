"""The tiny workflow's steps on a GPU against the same on the CPU: `make test-gpu`, skipped where there is none.

Tolerances: in fp32 a GPU adds in another order (and convolutions may round to TF32, 10 bits), in bf16 it keeps 8 bits.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks.accuracy.consistency import AdaptiveThreshold, Photos, train_consistency
from benchmarks.accuracy.contrastive import train_contrastive
from fieldmark.artifacts import read_table
from fieldmark.context import ContextTables
from fieldmark.detector import DetectorArchitecture
from fieldmark.detector_training import BoxedPhotos, DetectorPlan, fit_detector
from fieldmark.fitting import Plan, StageSettings, Task, fit
from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import Architecture, ModelSettings, build_classifier, load_classifier
from fieldmark.phases import Phase
from fieldmark.photosets import PhotoSet
from fieldmark.validation import Validation
from fieldmark.views import Augmentation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

COMMON = {"learning_rate": 1e-4, "balanced": False, "shares": {}}
PHASES = [
    {"name": "all", "steps": 5, "batch_size": 6, "frozen_norms": False, "marginal_weight": 0.5, **COMMON},
    {"name": "head", "steps": 3, "batch_size": 6, "frozen_backbone": True, **COMMON},
]


def trained(toy: PhotoSet, hardware: Hardware, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses of a training with all parts, and embeddings and probabilities by the model that it leaves."""
    photos = dataclasses.replace(toy, target=np.where(np.arange(12) % 4 == 3, -1, toy.target), taxon=np.arange(12) % 2)
    photos = dataclasses.replace(photos, taxon_of_class=np.array([0, 1, 1]))
    task = Task(photos, {"clusters": np.arange(12)}, classes=3, counts=np.array([1, 2, 3]))
    plan = Plan(
        model=ModelSettings("test_resnet", "none", 32, embedding=8),
        stage=StageSettings(PHASES, prototype_strength=2.0),
        augmentation=Augmentation(),
        hardware=hardware,
        seed=3,
        code="abc",
    )
    weights, history = folder / "stage/model.safetensors", folder / "stage/history.parquet"
    nothing = ContextTables(pl.DataFrame())
    fit(task, "none", plan, weights, history, Validation(toy.image_ids, toy.paths, toy.target, hardware, nothing))
    views = ViewPlan(scales=[1.0, 1.2], five_crop=True, flip=True)
    embedding, probability = infer(load_classifier(weights), toy.paths, views, hardware)
    return read_table("history", history)["loss"].to_numpy(), embedding, probability


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 0.01), ("bf16-mixed", 0.1)])
def test_a_gpu_trains_and_infers_as_the_cpu_does(
    toy: PhotoSet, tmp_path: Path, precision: Literal["32-true", "bf16-mixed"], tolerance: float
) -> None:
    expected = trained(toy, Hardware(), tmp_path / "cpu")
    found = trained(toy, Hardware("cuda", precision=precision), tmp_path / "gpu")
    for name, value, wanted in zip(("losses", "embeddings", "probabilities"), found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("method", ["consistency", "contrastive"])
def test_a_gpu_trains_what_the_pipeline_is_compared_with_as_the_cpu_does(toy: PhotoSet, method: str) -> None:
    phase = Phase(method, 5, 12, 1e-4, frozen_norms=False)
    found = []
    for hardware in (Hardware(), Hardware("cuda")):
        model = build_classifier(Architecture("test_resnet", 8, 3, 0, False, 32), "none", seed=3)
        if method == "consistency":
            photos = Photos(toy.paths[:6], toy.target[:6], toy.paths[6:])
            train_consistency(model, photos, phase, Augmentation(), AdaptiveThreshold(3), hardware, seed=3)
        else:
            train_contrastive(model, toy.paths, phase, Augmentation(), hardware, seed=3, photos=4)
        found.append(infer(model, toy.paths, ViewPlan(), hardware)[0])
    np.testing.assert_allclose(*found, rtol=0.01, atol=0.01)


def detector_losses(toy: PhotoSet, hardware: Hardware, folder: Path) -> np.ndarray:
    """Losses of training a detector, whose val photos pass it as well."""
    boxes = np.tile(np.array([0.1, 0.2, 0.5, 0.6], dtype=np.float32), (12, 1))
    val = pl.DataFrame(
        {"path": toy.paths[:4], "width": 44, "height": 40, "box_x": 4, "box_y": 8, "box_w": 22, "box_h": 24}
    )
    plan = DetectorPlan(
        DetectorArchitecture("test_efficientnet", 64, 32, 1), "none", Phase("d", 5, 6, 1e-4), hardware, 3, "abc"
    )
    photos = BoxedPhotos(toy.image_ids, toy.paths, boxes)
    fit_detector(photos, val, plan, folder / "detector.safetensors", folder / "history.parquet")
    history = read_table("detection_history", folder / "history.parquet")
    assert history["val_mean_iou"][-1] is not None
    return history["loss"].to_numpy()


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 0.01), ("bf16-mixed", 0.1)])
def test_a_gpu_trains_a_detector_as_the_cpu_does(
    toy: PhotoSet, tmp_path: Path, precision: Literal["32-true", "bf16-mixed"], tolerance: float
) -> None:
    expected = detector_losses(toy, Hardware(), tmp_path / "cpu")
    found = detector_losses(toy, Hardware("cuda", precision=precision), tmp_path / "gpu")
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# With processes on a CPU, tests/test_parallel.py does the same everywhere.
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")  # it compares two with one
def test_two_gpus_train_as_one_does(toy: PhotoSet, tmp_path: Path) -> None:
    expected = trained(toy, Hardware("cuda"), tmp_path / "one")
    found = trained(toy, Hardware("cuda", devices=2), tmp_path / "two")
    np.testing.assert_allclose(found[0], expected[0], rtol=0.01, atol=0.01)
    one, two = (detector_losses(toy, Hardware("cuda", devices=n), tmp_path / f"detector{n}") for n in (1, 2))
    np.testing.assert_allclose(two, one, rtol=0.01, atol=0.01)

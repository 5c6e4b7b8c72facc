"""Training jobs from settings to files: what the four training scripts share."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fieldmark import hardware, training
from fieldmark.artifacts import SCHEMAS, read_table, write_table
from fieldmark.context import ContextTables
from fieldmark.fitting import ModelSettings, Plan, StageSettings, Task, fit, teaching_parts
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.models import load_classifier
from fieldmark.phases import Phase
from fieldmark.photosets import PhotoSet
from fieldmark.views import Augmentation
from workflow.scripts.finetune_classifier import finetune_classifier

PHASE = {"name": "p", "steps": 4, "batch_size": 6, "learning_rate": 1e-3, "balanced": True, "shares": {}}
PLAN = Plan(
    model=ModelSettings("test_efficientnet", "none", 32, embedding=8, dropout=0.1),
    stage=StageSettings(phases=[PHASE]),
    augmentation=Augmentation(),
    hardware=Hardware(checkpoint_seconds=0.0),
    seed=3,
    code="abc",
)


@pytest.fixture
def task(toy: PhotoSet) -> Task:
    parts = {"labeled": np.arange(6), "foreign": np.arange(6, 12)}
    return Task(toy, parts, classes=2, foreign=1, counts=np.array([4, 4, 4]))


@pytest.fixture
def targets(tmp_path: Path) -> tuple[Path, Path]:
    """Where a stage's model and history go."""
    return tmp_path / "stage" / "model.safetensors", tmp_path / "stage" / "history.parquet"


def test_a_job_leaves_model_and_history_and_no_checkpoint(
    task: Task, targets: tuple[Path, Path], tmp_path: Path, leftovers: Callable[[], list[str]]
) -> None:
    fit(task, "none", PLAN, *targets)
    model = load_classifier(targets[0])
    assert model.architecture.describe() == {
        "backbone": "test_efficientnet",
        "embedding": 8,
        "classes": 2,
        "foreign": 1,
        "prototypes": False,
        "image_size": 32,
    }
    assert len(read_table("history", targets[1])) == 4
    assert leftovers() == ["stage"] and len(list((tmp_path / "stage").iterdir())) == 2


@pytest.mark.parametrize(("steps", "warned"), [(1, True), (2, False)])
def test_a_job_tells_how_often_it_sees_each_photo(
    task: Task, targets: tuple[Path, Path], caplog: pytest.LogCaptureFixture, steps: int, warned: bool
) -> None:
    caplog.set_level("INFO", "fieldmark")
    stage = StageSettings(phases=[{**PHASE, "steps": steps}])
    fit(task, "none", dataclasses.replace(PLAN, stage=stage), *targets)
    assert caplog.text.count("computing on the CPU, 32-true") == 1
    assert f"p: {steps} steps of 6 photos see each photo of labeled {steps / 2:.1f} times, foreign " in caplog.text
    assert ("p: too few steps to see every photo; raise its steps, or steps_factor" in caplog.text) == warned


def test_a_job_is_a_function_of_its_plan(task: Task, targets: tuple[Path, Path]) -> None:
    found = []
    for plan in (PLAN, PLAN, dataclasses.replace(PLAN, seed=4)):
        fit(task, "none", plan, *targets)
        found.append([path.read_bytes() for path in targets])
    assert found[0] == found[1] and found[0][0] != found[2][0]


def test_prototypes_weigh_by_class_count(task: Task, targets: tuple[Path, Path]) -> None:
    plan = dataclasses.replace(PLAN, stage=StageSettings([PHASE], prototype_strength=4.0))
    task = dataclasses.replace(task, counts=np.array([0, 4, 12]))
    fit(task, "none", plan, *targets)
    blend = load_classifier(targets[0]).blend
    assert blend is not None
    torch.testing.assert_close(blend.share, torch.tensor([1.0, 0.5, 0.25]))
    assert blend.prototypes.any(dim=1).all()


def test_photos_without_targets_are_drawn_only_where_the_marginal_loss_is_on(toy: PhotoSet) -> None:
    photos = dataclasses.replace(toy, target=np.where(np.arange(12) < 8, toy.target, -1))
    parts = {"labeled": np.arange(4), "pseudo": np.arange(4, 8), "unlabeled": np.arange(8, 12), "foreign": np.arange(0)}
    task = Task(photos, parts, 3)
    phase = {key: value for key, value in PHASE.items() if key not in ("balanced", "shares")}
    assert list(teaching_parts(task, Phase(**phase))) == ["labeled", "pseudo", "foreign"]
    assert list(teaching_parts(task, Phase(**{**phase, "marginal_weight": 0.5}))) == list(parts)


def changed(plan: Plan, change: str) -> Plan:
    hardware = plan.hardware
    match change:
        case "shares":
            return dataclasses.replace(plan, stage=StageSettings([{**PHASE, "shares": {"labeled": 0.5}}]))
        case "balanced":
            return dataclasses.replace(plan, stage=StageSettings([{**PHASE, "balanced": False}]))
        case "drop_path":
            return dataclasses.replace(plan, model=dataclasses.replace(plan.model, drop_path=0.2))
        case "code":
            return dataclasses.replace(plan, code="def")
        case "memory":
            return dataclasses.replace(plan, hardware=dataclasses.replace(hardware, cache_mb=7, decode_threads=1))
        case _:
            return plan


@pytest.mark.parametrize(
    ("change", "resumes"),
    [
        *(("none", True), ("memory", True), ("shares", False), ("balanced", False), ("drop_path", False)),
        *(("code", False), ("photo", False)),
    ],
)
def test_a_retry_resumes_only_the_very_same_job(
    task: Task, targets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, change: str, resumes: bool
) -> None:
    taken = 0

    class Store(PhotoStore):
        def get(self, indices: Any) -> list[np.ndarray]:
            nonlocal taken
            taken += 1
            if taken == 3:
                raise KeyboardInterrupt
            return super().get(indices)

    def listed(first: str) -> ContextTables:
        """The photos as they were listed, and what was in the first one's file."""
        contents = {"image_id": list(task.photos.image_ids), "sha256": [first, *"bcdefghijkl"]}
        return ContextTables(pl.DataFrame(contents))

    monkeypatch.setattr(training, "PhotoStore", Store)
    with pytest.raises(KeyboardInterrupt):
        fit(task, "none", PLAN, *targets, tables=listed("a"))
    # Snakemake deletes declared outputs, with their folder if it is empty, before it tries again.
    assert not targets[0].exists() and (targets[0].parent.parent / ".stage.checkpoint.pt").is_file()
    taken = 10
    fit(task, "none", changed(PLAN, change), *targets, tables=listed("other" if change == "photo" else "a"))
    assert taken - 10 == (2 if resumes else 4)


def test_plan_and_hardware_come_from_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SimpleNamespace(
        model={"backbone": "x", "weights": "none", "image_size": 32, "embedding": 0, "dropout": 0.0, "drop_path": 0.0},
        stage={"prototype_strength": 1.0, "phases": [PHASE]},
        augmentation=dataclasses.asdict(Augmentation(rotation=3)),
        precision="32-true",
        seed=5,
        code="abc",
    )
    resources = {"checkpoint_seconds": 60}
    job = SimpleNamespace(params=params, threads=3, resources=SimpleNamespace(mem_mb=2000, get=resources.get))
    plan = Plan.of_job(job)
    assert plan.hardware == Hardware(cache_mb=1000, decode_threads=3, checkpoint_seconds=60)
    assert (plan.augmentation.rotation, plan.seed, plan.stage.prototype_strength) == (3, 5, 1.0)
    resources["gpu"] = 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(hardware, "free_gpus", lambda count, seen: (seen - count,))
    expected = Hardware("cuda", cache_mb=1000, decode_threads=3, checkpoint_seconds=60, gpus=(2,))
    assert Plan.of_job(job).hardware == expected


def test_fine_tuning_looks_at_val_but_does_not_learn_from_it(toy: PhotoSet, tmp_path: Path) -> None:
    splits = ["labeled"] * 6 + ["unlabeled"] * 3 + ["val"] * 3
    filled = {
        "image_id": list(toy.image_ids),
        "path": list(toy.paths),
        "split": splits,
        "width": [40] * 12,
        "height": [40] * 12,
        "sha256": ["0"] * 12,
        "phash": [0] * 12,
    }

    def write(classes: np.ndarray, name: str) -> Path:
        known = [None if split == "unlabeled" else int(c) for split, c in zip(splits, classes, strict=True)]
        empty = {column: [None] * 12 for column in SCHEMAS["manifest"].names}
        frame = pl.DataFrame({**empty, **filled, "class_id": known}).select(SCHEMAS["manifest"].names)
        write_table(frame, "manifest", tmp_path / name)
        return tmp_path / name

    empty = {column: [None] * 3 for column in SCHEMAS["classes"].names}
    named = {"class_id": [0, 1, 2], "name": ["a", "b", "c"], "labeled_count": [2, 2, 2]}
    write_table(pl.DataFrame({**empty, **named}), "classes", tmp_path / "classes.parquet")
    true, permuted = toy.target.copy(), toy.target.copy()
    permuted[9:] = (permuted[9:] + 1) % 3
    weights, accuracies = [], []
    plan = dataclasses.replace(PLAN, stage=StageSettings([{**PHASE, "steps": 20, "shares": {"labeled": 1}}]))
    for name, classes in (("true", true), ("permuted", permuted)):
        folder = tmp_path / name / "layerwise"
        finetune_classifier(
            manifest=write(classes, f"{name}.parquet"),
            classes=tmp_path / "classes.parquet",
            pseudo_labels=None,
            source="none",
            plan=plan,
            weights=folder / "model.safetensors",
            history=folder / "history.parquet",
        )
        weights.append((folder / "model.safetensors").read_bytes())
        history = read_table("history", folder / "history.parquet")
        assert history["val_top1"].null_count() == 19
        accuracies.append(history["val_top1"][-1])
    assert weights[0] == weights[1]
    assert sum(accuracies) <= 1  # the permuted labels are right where the true ones are wrong

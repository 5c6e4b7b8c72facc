"""Several processes train as one would: the same losses and weights within rounding, and no error goes unseen."""

import dataclasses
import os
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fieldmark.artifacts import read_table
from fieldmark.detector import DetectorArchitecture, load_detector
from fieldmark.detector_training import BoxedPhotos, DetectorPlan, fit_detector
from fieldmark.fitting import Plan, StageSettings, Task, fit
from fieldmark.hardware import Hardware
from fieldmark.models import Classifier, ModelSettings, load_classifier
from fieldmark.phases import Phase
from fieldmark.photosets import PhotoSet
from fieldmark.processes import ROOT, ProcessError, _commands, run_on_all_devices
from fieldmark.views import Augmentation

ONE, TWO = Hardware(checkpoint_seconds=0.0), Hardware(checkpoint_seconds=0.0, devices=2)
# Batch norm with statistics of the batch, a batch that two processes cannot halve, all losses, then the head alone.
# A small rate, as training at large ones is chaotic: it makes much of the last digit.
COMMON = {"learning_rate": 1e-4, "balanced": False, "shares": {}}
PHASES = [
    {"name": "all", "steps": 4, "batch_size": 7, "frozen_norms": False, "marginal_weight": 0.5, **COMMON},
    {"name": "head", "steps": 2, "batch_size": 4, "frozen_backbone": True, **COMMON},
]


@pytest.fixture(scope="session")
def task(toy: PhotoSet) -> Task:
    """The toy photos with uneven weights, some without a target but of a known taxon."""
    photos = dataclasses.replace(
        toy,
        target=np.where(np.arange(12) % 4 == 3, -1, toy.target),
        weight=np.linspace(0.1, 1.0, 12).astype(np.float32),
        taxon=np.arange(12) % 2,
        taxon_of_class=np.array([0, 1, 1]),
    )
    return Task(photos, {"clusters": np.arange(12)}, classes=3, counts=np.array([1, 2, 3]))


def plan_on(hardware: Hardware) -> Plan:
    return Plan(
        model=ModelSettings("test_resnet", "none", 32, embedding=8),
        stage=StageSettings(PHASES, prototype_strength=2.0),
        augmentation=Augmentation(),
        hardware=hardware,
        seed=3,
        code="abc",
    )


class Validated:
    """A validation that fails until a file is there; otherwise a number that tells one model from another."""

    def __init__(self, ready: Path) -> None:
        self.ready = ready

    def __call__(self, classifier: Classifier) -> float:
        if not self.ready.exists():
            raise ValueError("not now")
        return float(classifier.head.weight.detach().sum().sigmoid())


def trained(task: Task, hardware: Hardware, folder: Path) -> tuple[Classifier, pl.DataFrame]:
    """Train in ``folder``, resuming what lies there."""
    weights, history = folder / "stage/model.safetensors", folder / "stage/history.parquet"
    fit(task, "none", plan_on(hardware), weights, history, Validated(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["stage"]
    return load_classifier(weights), read_table("history", history)


def assert_same(found: tuple[Classifier, pl.DataFrame], expected: tuple[Classifier, pl.DataFrame]) -> None:
    """Within rounding: a step of Adam moves a weight by about the learning rate, whatever the size of its gradient."""
    for column in ("loss", "gradient_norm", "val_top1"):
        values = (history[column].to_numpy() for history in (found[1], expected[1]))
        np.testing.assert_allclose(*values, rtol=2e-3, atol=1e-4, err_msg=column)
    others = [key for key in found[1].columns if key not in ("loss", "gradient_norm", "val_top1")]
    assert found[1].select(others).equals(expected[1].select(others))
    for (name, value), wanted in zip(found[0].state_dict().items(), expected[0].state_dict().values(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="session")
def alone(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, pl.DataFrame]:
    return trained(task, ONE, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="session")
def together(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, pl.DataFrame]:
    return trained(task, TWO, tmp_path_factory.mktemp("two"))


def test_two_processes_train_as_one_does(
    alone: tuple[Classifier, pl.DataFrame], together: tuple[Classifier, pl.DataFrame]
) -> None:
    assert_same(together, alone)
    blend = together[0].blend
    assert blend is not None and blend.prototypes.any(dim=1).all()


@pytest.mark.parametrize("hardware", [ONE, TWO], ids=["one", "two"])
def test_a_run_of_two_processes_is_resumed_by_any_number(
    task: Task,
    together: tuple[Classifier, pl.DataFrame],
    tmp_path: Path,
    hardware: Hardware,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights, history = tmp_path / "stage/model.safetensors", tmp_path / "stage/history.parquet"
    with pytest.raises(ProcessError, match="process 0 of 2: ValueError: not now"):
        fit(task, "none", plan_on(TWO), weights, history, Validated(tmp_path / "missing"))
    assert (tmp_path / ".stage.checkpoint.pt").is_file() and not weights.exists()
    capfd.readouterr()
    caplog.set_level("INFO")
    found = trained(task, hardware, tmp_path)
    said = capfd.readouterr().err + caplog.text
    assert "resuming all at step 3" in said
    assert said.count(f"computing on {hardware}") == 1
    assert_same(found, together)
    if hardware is TWO:
        assert found[1].equals(together[1])


def test_two_processes_train_a_detector_as_one_does(toy: PhotoSet, tmp_path: Path) -> None:
    # Boxes of many sizes, so that the parts of a batch have different numbers of cells: losses are divided by all.
    boxes = np.tile(np.array([0.1, 0.2, 0.5, 0.6], dtype=np.float32), (12, 1)) * np.linspace(0.4, 1.2, 12)[:, None]
    photos = BoxedPhotos(toy.image_ids, toy.paths, boxes.astype(np.float32))
    val = pl.DataFrame(
        {"path": toy.paths[:4], "width": 44, "height": 40, "box_x": 4, "box_y": 8, "box_w": 20, "box_h": 9}
    )
    found = []
    for hardware in (ONE, TWO):
        folder = tmp_path / str(hardware.devices)
        plan = DetectorPlan(
            DetectorArchitecture("test_efficientnet", 64, 32, 1), "none", Phase("d", 4, 7, 1e-4), hardware, 3, "abc"
        )
        fit_detector(photos, val, plan, folder / "detector.safetensors", folder / "history.parquet")
        assert sorted(path.name for path in folder.iterdir()) == ["detector.safetensors", "history.parquet"]
        history = read_table("detection_history", folder / "history.parquet")
        found.append((load_detector(folder / "detector.safetensors").state_dict(), history))
    (alone, one), (together, two) = found
    measures = ["val_mean_iou", "val_ap50", "val_ap"]
    for column in ("loss", "gradient_norm"):
        np.testing.assert_allclose(one[column], two[column], rtol=1e-4, err_msg=column)
    assert one.select(measures)[:-1].null_count().row(0) == (3, 3, 3) and one["val_mean_iou"][-1] > 0
    np.testing.assert_allclose(one.select(measures)[-1], two.select(measures)[-1], rtol=1e-3, atol=1e-3)
    assert one.select("step", "epoch", "learning_rate").equals(two.select("step", "epoch", "learning_rate"))
    # A group norm of single channels takes back what the bias before it adds, so its gradient is rounding alone.
    for name in together.keys() - {f"head.{kind}_head.conv.0.bias" for kind in ("classification", "regression")}:
        torch.testing.assert_close(
            together[name], alone[name], rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def fail(how: str) -> None:
    """What a process does that fails while the other one waits."""
    if os.environ["RANK"] == "1":
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("no such photo")
    signal.pause()  # until it is ended, which is what the test is about


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raised", "process 1 of 2: ValueError: no such photo"),
        ("killed", "process 1 of 2 was killed by SIGKILL; for want of memory"),
    ],
)
def test_an_error_in_one_process_ends_all_and_names_it(tmp_path: Path, how: str, said: str) -> None:
    with pytest.raises(ProcessError, match=said):
        run_on_all_devices(partial(fail, how), TWO, tmp_path / "processes")


def test_srun_keeps_what_names_the_cluster_and_the_job_and_none_of_the_jobs_limits(tmp_path: Path) -> None:
    own = {"SLURM_CONF": "/run/slurm/conf/slurm.conf", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "HOME": "/home/ann"}
    ((command, environment),) = _commands(Hardware(devices=4, nodes=2), tmp_path, own)
    assert command[0] == "srun" and {"--nodes=2", "--ntasks-per-node=4", "--ntasks=8"} <= set(command)
    assert environment == {key: value for key, value in own.items() if key != "SLURM_NTASKS"}


def wait_for_ever() -> None:
    """Tell that this process runs, and stay."""
    os.write(1, f"{os.getpid()}\n".encode())
    signal.pause()


def test_the_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from fieldmark.hardware import Hardware;"
        "from fieldmark.processes import run_on_all_devices; from tests.test_parallel import wait_for_ever;"
        f"run_on_all_devices(wait_for_ever, Hardware(devices=2), Path({str(tmp_path)!r}) / 'processes')"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    numbers = [int(parent.stdout.readline()) for _ in range(2)]
    opened = [os.pidfd_open(number) for number in numbers]
    parent.kill()
    parent.wait()
    for process in opened:
        # No child of this process, but such a file can be waited on: it is ready once its process has ended.
        select.select([process], [], [])
        os.close(process)
    parent.stdout.close()

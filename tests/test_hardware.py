"""Which GPUs a job takes where a machine has several, and what it says where there are too few."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import lightning_fabric
import pytest
import torch

from fieldmark import hardware
from fieldmark.hardware import Hardware, HardwareError, free_gpus, gpu_lock
from fieldmark.parallel import open_fabric

JOB = """
import logging, signal, sys
from fieldmark.hardware import free_gpus
signal.alarm(100)  # a job that waits for ever ends, and says nothing: the test then fails instead of waiting, too
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
print(free_gpus(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]), flush=True)
sys.stdin.read()
"""


class Job:
    """A process that takes some of the GPUs that it sees, and keeps them until it is told to end."""

    def __init__(self, count: int, seen: int, folder: Path, **environment: str) -> None:
        clean = {key: value for key, value in os.environ.items() if key not in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(count), str(seen), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)} | environment,
        )

    def says(self) -> str:
        """The next line: that it waits, or the GPUs that it took."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def took(self) -> str:
        """The GPUs that it took, once it has."""
        while (line := self.says()).startswith("waiting"):
            pass
        return line

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts a job, given how many GPUs it takes of how many that it sees."""
    jobs = []

    def start(count: int, seen: int, **environment: str) -> Job:
        jobs.append(Job(count, seen, tmp_path, **environment))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def given(monkeypatch: pytest.MonkeyPatch, seen: int, **resources: object) -> Hardware:
    """What a job with some resources computes on, where torch sees so many GPUs, the first of which is taken."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(hardware, "free_gpus", lambda count, seen: tuple(range(seen)[-count:]))
    found = SimpleNamespace(mem_mb=8000, get=resources.get)
    return Hardware.of_job(SimpleNamespace(params=SimpleNamespace(precision="32-true"), threads=8, resources=found))


def test_jobs_side_by_side_take_gpus_of_their_own_and_leave_them_however_they_end(
    start: Callable[..., Job], tmp_path: Path
) -> None:
    one, two = start(1, 4), start(2, 4)
    taken = [one.took(), two.took()]
    assert sorted(taken) in (["(0,)", "(1, 2)"], ["(0, 1)", "(2,)"])  # whichever came first
    assert free_gpus(1, 4, str(tmp_path)) == (3,)
    assert free_gpus(1, 4, str(tmp_path)) == (3,)  # the same process keeps its own
    later = start(2, 4)
    assert later.says().startswith("waiting for 2 of 4 GPUs; other jobs hold ")
    two.end()
    assert later.took() == taken[1]


def test_a_job_that_waits_holds_no_gpu_and_has_the_later_ones_wait_behind_it(start: Callable[..., Job]) -> None:
    first = start(1, 2)
    assert first.took() == "(0,)"
    both = start(2, 2)
    assert both.says().startswith("waiting for 2 of 2 GPUs; other jobs hold ")
    later = start(1, 2)
    assert later.says() == "waiting for 1 of 2 GPUs, behind another job that waits"
    # One that sees the second GPU alone waits for nobody, and takes it, as nobody holds it.
    apart = start(1, 1, CUDA_VISIBLE_DEVICES="1")
    assert apart.took() == "(0,)"
    first.end()
    apart.end()
    assert both.took() == "(0, 1)"
    both.end()
    assert later.took() == "(0,)"


def test_a_lock_is_named_by_what_the_machine_or_slurm_calls_the_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    own = f"fieldmark-{os.getuid()}"
    assert gpu_lock("/tmp", 3) == Path(f"/tmp/{own}-gpu3.lock")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, MIG-GPU-ab/1/0,")
    assert [gpu_lock("/tmp", gpu).name for gpu in (0, 1)] == [f"{own}-gpu4.lock", f"{own}-gpuMIG-GPU-ab_1_0.lock"]
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert gpu_lock("/tmp", 0).name == f"{own}-slurm77-gpu4.lock"
    # Those that SLURM gave to this job alone need no lock. Of more, in one SLURM job around all, each takes its own.
    assert free_gpus(2, 2, str(tmp_path)) == (0, 1) and not any(tmp_path.iterdir())
    assert free_gpus(1, 2, str(tmp_path)) == (0,) and (tmp_path / f"{own}-slurm77-gpu4.lock").exists()


def test_a_job_computes_on_the_gpus_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    expected = Hardware("cuda", 2, cache_mb=2000, decode_threads=4, gpus=(2, 3))
    assert given(monkeypatch, 4, gpu=2) == expected
    assert given(monkeypatch, 4, nodes=3, gres="gpu:a100:2") == expected  # without SLURM there is one node
    assert given(monkeypatch, 4) == given(monkeypatch, 4, gres="nvme:2") == Hardware(cache_mb=4000, decode_threads=8)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    several = given(monkeypatch, 2, nodes=3, gres="gpu:2")
    assert (several.devices, several.nodes, several.gpus, several.processes) == (2, 3, (), 6)


@pytest.mark.parametrize("resources", [{"gpu": 2}, {"gres": "gpu:2", "nodes": 3}])
@pytest.mark.parametrize("seen", [0, 1])
def test_a_job_that_sees_fewer_gpus_than_it_was_given_stops(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, object], seen: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    monkeypatch.setattr(torch.version, "cuda", None)
    said = rf"given 2 GPUs, but torch sees {seen} on .* built without CUDA, .* CUDA_VISIBLE_DEVICES \(6\)"
    with pytest.raises(HardwareError, match=rf"{said} .* lower resources\.gpus .* with 0, jobs compute on the CPU"):
        given(monkeypatch, seen, **resources)


def test_the_log_tells_the_devices() -> None:
    told = [Hardware(), Hardware(devices=2), Hardware("cuda", gpus=(3,)), Hardware("cuda", 2, "bf16-mixed", nodes=4)]
    assert list(map(str, told)) == [
        "the CPU, 32-true",
        "the CPU in 2 processes, 32-true",
        "GPU 3, 32-true",
        "GPUs 0, 1 of each of 4 nodes, bf16-mixed",
    ]


def test_a_single_process_computes_on_the_first_of_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(lightning_fabric, "Fabric", lambda **given: asked.append(given["devices"]))
    Hardware("cuda", gpus=(3,)).one_device()
    Hardware("cuda", devices=2, gpus=(2, 3)).one_device()  # the first of several processes, which validates
    Hardware("cuda").one_device()
    Hardware().one_device()
    assert asked == [[3], [2], [0], 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_several_processes_computes_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    # It would connect the processes, and there is no GPU to do so from.
    monkeypatch.setattr(lightning_fabric.Fabric, "launch", lambda _: None)
    fabric = open_fabric(Hardware("cuda", devices=2, gpus=(1, 3)))
    assert fabric.device == torch.device("cuda", (1, 3)[rank])
    assert open_fabric(Hardware("cuda", devices=2)).device == torch.device("cuda", rank)

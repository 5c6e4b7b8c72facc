"""Which GPU a job takes where a machine has several."""

import os
import subprocess
import sys
from pathlib import Path

import lightning_fabric
import pytest

from fieldmark.hardware import Hardware, free_gpu

JOB = """
import sys
from fieldmark.hardware import free_gpu
print(free_gpu(int(sys.argv[1]), sys.argv[2]), flush=True)
sys.stdin.read()
"""


def job(count: int, folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that takes a GPU and keeps it until it is told to end, and the GPU."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, str(count), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_jobs_side_by_side_take_gpus_of_their_own_and_leave_them_however_they_end(tmp_path: Path) -> None:
    jobs = [job(2, tmp_path) for _ in range(3)]
    try:
        assert [gpu for _, gpu in jobs] == [0, 1, 0]  # the third is one more than there are
        jobs[1][0].kill()
        jobs[1][0].wait()
        assert free_gpu(2, str(tmp_path)) == 1
        assert free_gpu(2, str(tmp_path)) == 1  # the same process keeps its own
    finally:
        for process, _ in jobs:
            process.kill()
            process.communicate()


def test_a_single_process_computes_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(lightning_fabric, "Fabric", lambda **given: asked.append(given["devices"]))
    Hardware("cuda", gpu=3).one_device()
    Hardware().one_device()
    assert asked == [[3], 1]

"""Where and how a job computes.

On its own, so that stages which only apply a model do not depend on the code that trains one.
"""

import fcntl
import os
import re
import socket
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import lightning_fabric
import torch
from lightning_fabric.plugins.environments import LightningEnvironment

from fieldmark.stage import log

# Seconds between two looks for free GPUs; the jobs that hold them run for minutes.
_LOOK_AGAIN = 1.0


class HardwareError(RuntimeError):
    """This machine lacks what the job was given; tells what may be wrong and what to do."""


def gpus_given(job: Any) -> int:
    """How many GPUs a Snakemake job was given, on each node if it has several.

    Raises:
        HardwareError: if torch sees fewer. On those, or on the CPU, the job might take weeks instead of a day.
    """
    # On several nodes GPUs are asked for as ``gres``, which counts those of a node: gpu:4 or gpu:a100:4.
    kind, _, count = job.resources.get("gres", "").partition(":")
    asked = int(job.resources.get("gpu", 0)) or (int(count.rpartition(":")[2]) if kind == "gpu" else 0)
    seen = torch.cuda.device_count()
    if seen < asked:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise HardwareError(
            f"the job was given {asked} GPU{'s' * (asked > 1)}, but torch sees {seen} on {socket.gethostname()}. If"
            f" they are there, see what nvidia-smi says: torch {torch.__version__}, built {built}, needs a driver that"
            f" is new enough, and sees no more than CUDA_VISIBLE_DEVICES ({hidden}) names. If they are not, lower"
            " resources.gpus to how many there are; with 0, jobs compute on the CPU"
        )
    return asked


def gpu_lock(folder: str, gpu: int) -> Path:
    """The file that a job holds locked while it computes on a GPU, by the name that the GPU has for other jobs, too.

    A process numbers the GPUs that it sees; the machine's own names for them are in CUDA_VISIBLE_DEVICES. SLURM may
    write numbers there that begin at 0 in each of its jobs, but then no two of these share a GPU.
    """
    shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = re.sub(r"[^\w-]", "_", shown[gpu]) if gpu < len(shown) else str(gpu)
    owner = str(os.getuid())
    if shown and "SLURM_JOB_ID" in os.environ:
        owner += f"-slurm{os.environ['SLURM_JOB_ID']}"
    return Path(folder) / f"fieldmark-{owner}-gpu{name}.lock"


@cache
def free_gpus(count: int, seen: int, folder: str = tempfile.gettempdir()) -> tuple[int, ...]:
    """GPUs that no other job on this machine has taken, which this process then keeps until it ends.

    Snakemake counts a machine's GPUs, but does not tell jobs that run side by side which ones are theirs. If too few
    are free, this waits, and takes none meanwhile: two jobs that held a part each would wait for each other.

    Args:
        count: how many, at least one.
        seen: GPUs that the process sees, at least ``count``.
        folder: of the locks, the same for all jobs.
    """
    if "SLURM_JOB_ID" in os.environ and count == seen:
        return tuple(range(count))  # chosen by SLURM, and perhaps numbered as those of its other jobs on this node
    first = gpu_lock(folder, 0)
    # Whoever waits has others wait behind it. Otherwise they would take each GPU that becomes free, for ever.
    turn = _opened(first.with_stem(f"{first.stem}-turn"))
    if not _locks(turn):
        log.info("waiting for %d of %d GPUs, behind another job that waits", count, seen)
        fcntl.flock(turn, fcntl.LOCK_EX)
    told = False
    while (chosen := _take(count, seen, folder)) is None:
        if not told:
            held = first.with_stem("fieldmark-*-gpu*")
            log.info("waiting for %d of %d GPUs; other jobs hold %s (fuser tells which)", count, seen, held)
        told = True
        time.sleep(_LOOK_AGAIN)  # the system can wait for one lock, not for the first of several: look again
    os.close(turn)
    return chosen


def _take(count: int, seen: int, folder: str) -> tuple[int, ...] | None:
    """Lock the first GPUs that are free; none if they are too few."""
    locks: dict[int, int] = {}
    for gpu in range(seen):
        lock = _opened(gpu_lock(folder, gpu))
        if not _locks(lock):
            os.close(lock)
            continue
        locks[gpu] = lock
        if len(locks) == count:
            return tuple(locks)  # the files stay open, and so locked, as long as the process lives, however it ends
    for lock in locks.values():
        os.close(lock)
    return None


def _opened(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)


def _locks(file: int) -> bool:
    """Whether an opened file could be locked, which it then is; not if another process has done so."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Hardware:
    """Where and how to compute.

    Attributes:
        accelerator: cpu or cuda.
        devices: processes on each node, one per device.
        precision: 32-true or bf16-mixed.
        cache_mb: memory for decoded photos, megabytes per process.
        decode_threads: threads that decode photos, per process.
        checkpoint_seconds: least time between two checkpoints.
        nodes: machines, all with as many devices.
        gpus: which of the GPUs that a process sees are used, one per device; empty: the first ones, on every node.
    """

    accelerator: str = "cpu"
    devices: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    cache_mb: int = 1024
    decode_threads: int = 2
    checkpoint_seconds: float = 120.0
    nodes: int = 1
    gpus: tuple[int, ...] = ()

    @property
    def processes(self) -> int:
        """All processes, on all nodes."""
        return self.devices * self.nodes

    @property
    def fabric_devices(self) -> int | list[int]:
        """What Fabric calls devices: the numbers of the GPUs, or how many processes share the CPU."""
        return list(self.gpus or range(self.devices)) if self.accelerator == "cuda" else self.devices

    def __str__(self) -> str:
        """The devices, for the log."""
        numbers = self.fabric_devices
        if isinstance(numbers, int):
            place = "the CPU" if numbers == 1 else f"the CPU in {numbers} processes"
        else:
            place = f"GPU{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
        return f"{place}{f' of each of {self.nodes} nodes' * (self.nodes > 1)}, {self.precision}"

    @classmethod
    def of_job(cls, job: Any) -> "Hardware":
        """What a Snakemake job was given: its threads, its GPUs, half its memory for photos.

        Threads, GPUs and memory are those of one node. Only a SLURM job can have several nodes.

        Raises:
            HardwareError: see :func:`gpus_given`.
        """
        nodes = job.resources.get("nodes", 1) if "SLURM_JOB_ID" in os.environ else 1
        gpus = gpus_given(job)
        devices = max(1, gpus)
        return cls(
            accelerator="cuda" if gpus else "cpu",
            devices=devices,
            precision=job.params.precision,
            cache_mb=job.resources.mem_mb // 2 // devices,
            decode_threads=max(1, job.threads // devices),
            checkpoint_seconds=job.resources.get("checkpoint_seconds", cls.checkpoint_seconds),
            nodes=nodes,
            # On several nodes each has its own, and this process sees those of the first node alone.
            gpus=free_gpus(gpus, torch.cuda.device_count()) if gpus and nodes == 1 else (),
        )

    @classmethod
    def of_machine(cls, **settings: Any) -> "Hardware":
        """One GPU of this machine, if it has any, else its CPU: for commands that no workflow gives resources to.

        Args:
            settings: the other attributes.
        """
        return cls(accelerator="cuda" if torch.cuda.is_available() else "cpu", **settings)

    def one_device(self) -> lightning_fabric.Fabric:
        """Fabric for a single process, on the first of the devices.

        The environment is named, as Fabric would take a process inside a SLURM job for one of several.
        """
        return lightning_fabric.Fabric(
            accelerator=self.accelerator,
            devices=[self.gpus[0] if self.gpus else 0] if self.accelerator == "cuda" else 1,
            precision=self.precision,
            plugins=[LightningEnvironment()],
        )

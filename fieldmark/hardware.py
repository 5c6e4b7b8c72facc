"""Where and how a job computes.

On its own, so that stages which only apply a model do not depend on the code that trains one.
"""

import fcntl
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import lightning_fabric
import torch
from lightning_fabric.plugins.environments import LightningEnvironment


def gpu_lock(folder: str, gpu: int) -> Path:
    """The file that a job holds locked while it computes on a GPU."""
    return Path(folder) / f"fieldmark-{os.getuid()}-gpu{gpu}.lock"


@cache
def free_gpu(count: int, folder: str = tempfile.gettempdir()) -> int:
    """The first GPU that no other job on this machine has taken, which this process then keeps until it ends.

    Snakemake counts a machine's GPUs, but does not tell jobs that run side by side which one is theirs.

    Args:
        count: GPUs that the process sees. If all are taken, by more jobs than there are GPUs, it is the first.
        folder: of the locks, the same for all jobs.
    """
    for gpu in range(count):
        lock = os.open(gpu_lock(folder, gpu), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return gpu  # the file stays open, and so locked, as long as the process lives, however it ends
    return 0


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
        gpu: which of the machine's GPUs a single process uses.
    """

    accelerator: str = "cpu"
    devices: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    cache_mb: int = 1024
    decode_threads: int = 2
    checkpoint_seconds: float = 120.0
    nodes: int = 1
    gpu: int = 0

    @property
    def processes(self) -> int:
        """All processes, on all nodes."""
        return self.devices * self.nodes

    @classmethod
    def of_job(cls, job: Any) -> "Hardware":
        """What a Snakemake job was given: its threads, its GPUs if the machine has any, half its memory for photos.

        Threads and memory are those of one node. Only a SLURM job can have several nodes.
        """
        nodes = job.resources.get("nodes", 1) if "SLURM_JOB_ID" in os.environ else 1
        # On several nodes GPUs are asked for as ``gres``, which counts those of a node.
        asked = job.resources.get("gpu", 0) or int(job.resources.get("gres", "gpu:0").rpartition(":")[2])
        gpus = min(asked, torch.cuda.device_count())
        devices = max(1, gpus)
        return cls(
            accelerator="cuda" if gpus else "cpu",
            devices=devices,
            precision=job.params.precision,
            cache_mb=job.resources.mem_mb // 2 // devices,
            decode_threads=max(1, job.threads // devices),
            checkpoint_seconds=job.resources.get("checkpoint_seconds", cls.checkpoint_seconds),
            nodes=nodes,
            gpu=free_gpu(torch.cuda.device_count()) if gpus == 1 else 0,
        )

    @classmethod
    def of_machine(cls, **settings: Any) -> "Hardware":
        """One GPU of this machine, if it has any, else its CPU: for commands that no workflow gives resources to.

        Args:
            settings: the other attributes.
        """
        return cls(accelerator="cuda" if torch.cuda.is_available() else "cpu", **settings)

    def one_device(self) -> lightning_fabric.Fabric:
        """Fabric for a single process.

        The environment is named, as Fabric would take a process inside a SLURM job for one of several.
        """
        return lightning_fabric.Fabric(
            accelerator=self.accelerator,
            devices=[self.gpu] if self.accelerator == "cuda" else 1,
            precision=self.precision,
            plugins=[LightningEnvironment()],
        )

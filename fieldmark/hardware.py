"""Where and how a job computes.

On its own, so that stages which only apply a model do not depend on the code that trains one.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Hardware:
    """Where and how to compute.

    Attributes:
        accelerator: cpu or cuda.
        devices: processes, one per device.
        precision: 32-true or bf16-mixed.
        cache_mb: memory for decoded photos, megabytes.
        decode_threads: threads that decode photos.
        checkpoint_seconds: least time between two checkpoints.
    """

    accelerator: str = "cpu"
    devices: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    cache_mb: int = 1024
    decode_threads: int = 2
    checkpoint_seconds: float = 120.0

    @classmethod
    def of_job(cls, job: Any) -> "Hardware":
        """What a Snakemake job was given: its threads, its GPUs if the machine has any, half its memory for photos."""
        gpus = min(job.resources.get("gpu", 0), torch.cuda.device_count())
        return cls(
            accelerator="cuda" if gpus else "cpu",
            devices=max(1, gpus),
            precision=job.params.precision,
            cache_mb=job.resources.mem_mb // 2,
            decode_threads=job.threads,
            checkpoint_seconds=job.resources.get("checkpoint_seconds", cls.checkpoint_seconds),
        )

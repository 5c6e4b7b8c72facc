"""Checkpoints of a training run that is under way, beside its declared outputs, which Snakemake deletes on a retry."""

import time
from collections.abc import Callable
from pathlib import Path

import lightning_fabric
import torch

from fieldmark.artifacts import write_atomically
from fieldmark.pretrained import UNREADABLE
from fieldmark.stage import log, remove_leftovers


class Checkpoint:
    """The latest state of a training run on disk, valid only for the very same run."""

    def __init__(self, path: Path, identity: str, seconds: float) -> None:
        """Keep the state at ``path``, marked with ``identity``, saved at most every ``seconds``."""
        self.path, self.identity, self.seconds = path, identity, seconds
        self._last = time.monotonic()

    def load(self) -> dict | None:
        """The saved state, or None if there is none, or it is damaged or of another run (the log says which)."""
        remove_leftovers(self.path)
        if not self.path.is_file():
            return None
        try:
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            identity = state["identity"]
        except UNREADABLE as error:
            log.warning("%s is damaged (%s); training starts from the beginning", self.path, error)
            return None
        if identity != self.identity:
            log.info("%s is of a run with other settings, photos or code; starting from the beginning", self.path)
            return None
        return state

    def save(self, fabric: lightning_fabric.Fabric, state: Callable[[], dict]) -> None:
        """Save ``state()``, a dict of plain values and tensors, if the last time is long enough ago."""
        if time.monotonic() - self._last < self.seconds:
            return
        if fabric.is_global_zero:
            content = {"identity": self.identity, **state()}
            write_atomically(self.path, lambda path: torch.save(content, path))
        self._last = time.monotonic()

"""What every workflow script does before its heavy imports: send its output to the rule's log.

Only the standard library is imported here, so that even a failing ``import torch`` ends up in the log.
"""

import logging
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger("fieldmark")


def start(snakemake: Any) -> None:
    """Send standard output and error of this process to the rule's log; warnings and errors to the terminal as well.

    The redirection is at the level of file descriptors, so messages of C libraries are caught too.

    Args:
        snakemake: the object that Snakemake puts into a script's namespace.
    """
    # Threads that spin while they wait starve the other jobs of a shared machine: measured on two cores with another
    # job running, training did 24 photos/s with spinning and 84 without; alone, 132 and 110.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    target = Path(snakemake.log[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    sys.stdout.flush()
    sys.stderr.flush()
    log_file = target.open("w", buffering=1)
    os.dup2(log_file.fileno(), 1)
    os.dup2(log_file.fileno(), 2)

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.__excepthook__(kind, error, trace)
        print(f"{snakemake.rule}: {kind.__name__}: {error} (log: {target})", file=terminal)

    sys.excepthook = report
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # Which of its builds faiss tries, and which is not there, reads like a failure and says nothing about the job.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    shown = logging.StreamHandler(terminal)
    shown.setLevel(logging.WARNING)
    shown.setFormatter(logging.Formatter(f"{snakemake.rule}: %(levelname)s: %(message)s (log: {target})"))
    log.addHandler(shown)
    for output in snakemake.output:
        remove_leftovers(Path(output))


def remove_leftovers(target: Path) -> None:
    """Delete the temporary files that a killed process left beside the file it was writing.

    Only for a job's own files and before it writes: no other process may be at work on the same target, which
    Snakemake's lock sees to.

    Args:
        target: the file as :func:`fieldmark.artifacts.write_atomically` got it.
    """
    if not target.parent.is_dir():
        return
    for entry in os.scandir(target.parent):
        # Between the target's name and its suffix stand the eight letters that make the name unique.
        middle = entry.name.removeprefix(f".{target.name}.").removesuffix(target.suffix)
        if entry.name == f".{target.name}.{middle}{target.suffix}" and len(middle) == 8 and entry.is_file():
            log.info("deleting %s, left by a process that was killed", entry.path)
            Path(entry.path).unlink()


class Progress:
    """Lines such as ``train: 120/400 (30 %), 85 photos/s, 0:01:10 left`` in the log, at most one every few seconds.

    A moving bar is unreadable in a log file that several jobs write side by side; ``tail -f`` shows these lines.
    """

    def __init__(self, name: str, total: int, unit: str = "photos", seconds: float = 5.0) -> None:
        """Start counting towards ``total`` units, with at least ``seconds`` between two lines."""
        self.name, self.total, self.unit, self.seconds = name, total, unit, seconds
        self.done = 0
        self._first_done = 0
        self._started = self._last = time.monotonic()

    def skip(self, amount: int) -> None:
        """Count ``amount`` units that an earlier try has done; they do not enter the speed."""
        self.done += amount
        self._first_done += amount

    def add(self, amount: int, note: str = "") -> None:
        """Count ``amount`` further units and log a line when it is time, or when all is done."""
        self.done += amount
        now = time.monotonic()
        if now - self._last < self.seconds and self.done < self.total:
            return
        self._last = now
        speed = (self.done - self._first_done) / max(now - self._started, 1e-9)
        left = max(self.total - self.done, 0) / max(speed, 1e-9)
        clock = time.strftime("%H:%M:%S", time.gmtime(left))
        share = 100 * self.done // max(self.total, 1)
        log.info(
            "%s: %d/%d (%d %%), %.0f %s/s, %s left %s",
            self.name,
            self.done,
            self.total,
            share,
            speed,
            self.unit,
            clock,
            note,
        )

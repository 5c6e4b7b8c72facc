"""Start the workflow, see which jobs run, strike it at a chosen moment, and compare what two runs have left."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from tests.project import Project

# What may differ between two runs of the same: times, logs, and the report, which shows the times.
MAY_DIFFER = ("logs/", "benchmarks/", "report.html")


class Invocation:
    """Snakemake in a session of its own, with the jobs that it has begun and ended so far."""

    def __init__(self, project: Project, *arguments: str, config: str) -> None:
        """Start it on two cores."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments, "--cores", "2", "--configfile", config],
            cwd=project.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.text: list[str] = []
        self.running: dict[str, str] = {}
        self._rule = ""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def follow(self, seconds: float | None = None) -> Iterator[str]:
        """The rules of the jobs that begin, as they begin; it ends with the process, or after ``seconds``."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except queue.Empty:
                return
            if line is None:
                self._lines.put(None)
                return
            self.text.append(line)
            if found := re.match(r"(?:local)?rule (\w+):", line):
                self._rule = found[1]
            elif found := re.match(r"    jobid: (\d+)", line):
                self.running[found[1]] = self._rule
                yield self._rule
            elif found := re.match(r"Finished jobid: (\d+)", line):
                self.running.pop(found[1], None)

    def wait_for(self, seen: Callable[[], bool], seconds: float) -> None:
        """Follow until ``seen`` is true, for ``seconds`` at most."""
        end = time.monotonic() + seconds
        while not seen() and time.monotonic() < end and self.process.poll() is None:
            for _ in self.follow(0.02):
                pass

    def job(self, rule: str) -> psutil.Process | None:
        """The process of one job of a rule, if there is one."""
        with contextlib.suppress(psutil.NoSuchProcess):  # they come and go while one looks
            for process in psutil.Process(self.process.pid).children(recursive=True):
                # A script's temporary copy is named after it.
                command = process.cmdline()
                if "python" in process.name() and command and command[-1].endswith(f".{rule}.py"):
                    return process
        return None

    def kill_job(self, rule: str) -> bool:
        """Kill the process of one job of a rule, if there is one; Snakemake lives on."""
        process = self.job(rule)
        if process is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            return True
        return False

    @contextlib.contextmanager
    def held(self, rule: str) -> Iterator[None]:
        """A job of a rule that has begun stands still meanwhile, however slow the machine is."""
        process = None
        while process is None and self.process.poll() is None:
            process = self.job(rule)
        assert process is not None, "the job ended before it was seen"
        process.suspend()
        try:
            yield
        finally:
            process.resume()

    def stop(self, sent: signal.Signals = signal.SIGKILL) -> str:
        """Send a signal to Snakemake and all its jobs, wait until none is left, and return what was written."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, sent)
        return self.finish()

    def finish(self) -> str:
        """Wait for the end: of every process that holds the output, so that no job survives unseen."""
        for _ in self.follow():
            pass
        self.process.wait()
        return "".join(self.text)


def files_of(project: Project) -> dict[str, bytes]:
    """Everything under results/ that two runs of the same must have in common, byte for byte."""
    results = project.folder / "results"
    names = {path.relative_to(results).as_posix(): path for path in results.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in sorted(names.items())
        if not name.startswith(MAY_DIFFER) and path.name != ".snakemake_timestamp"
    }


def differences(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> dict[str, int]:
    """Files that differ, are missing or too many, and the number of their bytes that differ."""
    result = {}
    for name in sorted(found.keys() | expected.keys()):
        one, other = found.get(name, b""), expected.get(name, b"")
        count = abs(len(one) - len(other)) + sum(a != b for a, b in zip(one, other, strict=False))
        if count or (name in found) != (name in expected):
            result[name] = count
    return result


def half_written(project: Project) -> set[Path]:
    """Temporary files that lie about: what a process was writing when it was killed."""
    hidden = (path for path in (project.folder / "results").rglob(".*") if path.is_file())
    return {path for path in hidden if path.name != ".snakemake_timestamp" and not path.match("*.checkpoint.pt")}

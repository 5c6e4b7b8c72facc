"""What scripts print, and their errors, end up in the rule's log; progress is a line now and then."""

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fieldmark import stage
from fieldmark.stage import Progress

ROOT = Path(__file__).resolve().parent.parent
HEAD = """
import sys
from types import SimpleNamespace
from fieldmark.stage import log, start
heavy = {"numpy", "torch", "polars", "pyarrow"} & set(sys.modules)
start(SimpleNamespace(log=["logs/deep/rule.log"], output=["cake/0.parquet"], rule="bake_cake"))
"""


def run_script(folder: Path, body: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a script that calls ``start`` in a process of its own; what it left on the terminal and in its log."""
    code = HEAD + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, (folder / "logs/deep/rule.log").read_text(encoding="utf-8")


def test_output_of_every_kind_goes_to_the_log(tmp_path: Path) -> None:
    done, log = run_script(
        tmp_path,
        """
        import ctypes, os, subprocess, warnings
        print("from print")
        print("from stderr", file=sys.stderr)
        os.write(1, b"from descriptor 1\\n")
        os.write(2, b"from descriptor 2\\n")
        ctypes.CDLL(None).puts(b"from C")
        ctypes.CDLL(None).fflush(None)
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        warnings.warn("from a warning")
        log.info("from the logger")
        """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    sources = ["print", "stderr", "descriptor 1", "descriptor 2", "C", "a child", "a warning", "the logger"]
    for source in sources:
        assert f"from {source}\n" in log


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("raise ValueError('no eggs')", "ValueError: no eggs"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
    ],
)
def test_an_error_is_in_the_log_in_full_and_on_the_terminal_in_one_line(tmp_path: Path, body: str, name: str) -> None:
    done, log = run_script(tmp_path, body)
    assert done.returncode == 1
    assert done.stderr == f"bake_cake: {name} (log: logs/deep/rule.log)\n" and done.stdout == ""
    assert "Traceback (most recent call last)" in log and log.rstrip().endswith(name)


def test_a_warning_is_in_the_log_and_on_the_terminal_in_one_line(tmp_path: Path) -> None:
    done, log = run_script(
        tmp_path,
        """
        import logging
        log.info("sifting")
        logging.getLogger("fieldmark.flour").warning("%d lumps", 3)
        logging.getLogger("faiss.loader").info("no AVX2")
        """,
    )
    assert done.stderr == "bake_cake: WARNING: 3 lumps (log: logs/deep/rule.log)\n" and done.stdout == ""
    assert "INFO sifting" in log and "WARNING 3 lumps" in log and "AVX2" not in log


def test_nothing_heavy_is_imported_before_the_log_is_open(tmp_path: Path) -> None:
    done, log = run_script(tmp_path, "print('heavy:', sorted(heavy))")
    assert done.returncode == 0 and "heavy: []" in log


def test_a_second_try_starts_a_new_log(tmp_path: Path) -> None:
    run_script(tmp_path, "print('first')")
    _, log = run_script(tmp_path, "print('second')")
    assert log == "second\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a test sets it."""
    now = [100.0]
    monkeypatch.setattr(stage.time, "monotonic", lambda: now[0])
    return now


def test_progress_is_a_line_every_few_seconds_and_one_at_the_end(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        progress = Progress("train", 400, seconds=5)
        for _ in range(40):
            clock[0] += 1
            progress.add(10, "loss 0.5")
    assert len(caplog.messages) == 40 // 5
    assert caplog.messages[0] == "train: 50/400 (12 %), 10 photos/s, 00:00:35 left loss 0.5"
    assert caplog.messages[-1].startswith("train: 400/400 (100 %), 10 photos/s, 00:00:00 left")


def test_what_an_earlier_try_did_does_not_count_as_speed(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        progress = Progress("train", 1000)
        progress.skip(900)
        clock[0] += 10
        progress.add(20)
    assert caplog.messages == ["train: 920/1000 (92 %), 2 photos/s, 00:00:40 left "]


def test_progress_of_nothing_or_in_no_time_does_not_divide_by_zero(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        Progress("a", 0).add(0)
        Progress("b", 5).add(5)
    assert len(caplog.messages) == 2

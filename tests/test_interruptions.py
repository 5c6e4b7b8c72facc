"""Interrupted, killed, or started twice, a run ends with the same files; the long version is tests/kill_run.py."""

import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.interruption import Invocation, differences, files_of, half_written
from tests.kill_run import Tally, complete
from tests.project import TINY, Project

LOST = "results/baseline/tiny/two_stage/model.safetensors"


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A finished run that has lost one trained model."""
    copy = finished.copy(tmp_path / "project")
    (copy.folder / LOST).unlink()
    return copy


def test_signals_and_a_second_run_do_no_harm(finished: Project, project: Project) -> None:
    for number, sent in enumerate((signal.SIGINT, signal.SIGTERM)):
        run = Invocation(project, LOST, config=TINY)
        assert next(run.follow()) == "finetune_classifier"
        if number == 0:
            with run.held("finetune_classifier"):
                second = project.snakemake(LOST, "--cores", "1", "--configfile", TINY)
            assert second.returncode != 0 and "Directory cannot be locked" in second.stdout
            assert "--unlock" in second.stdout and "Traceback" not in second.stdout
        text = run.stop(sent)
        # Snakemake ends by itself, not by the signal, and leaves no lock.
        assert run.process.returncode >= 0, text[-3000:]
    project.make(LOST)
    assert not differences(files_of(project), files_of(finished))


def test_kills_leave_no_trace(finished: Project, project: Project) -> None:
    config = yaml.safe_load((project.folder / TINY).read_text(encoding="utf-8"))
    config["resources"]["checkpoint_seconds"] = 0
    (project.folder / TINY).write_text(yaml.safe_dump(config), encoding="utf-8")
    tally, draws = Tally(), np.random.default_rng(1)
    complete(project, tally, {"finetune_classifier": 2.0}, draws, 0, LOST, config=TINY)
    assert tally.hit["finetune_classifier"]
    assert not half_written(project)
    assert not differences(files_of(project), files_of(finished))

"""Stages in their conda environments: `make test-conda`, skipped without conda on the PATH.

What the environments hold is compared with requirements.txt and with the scripts' imports in test_environments.py.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.project import Project, fresh_project

pytestmark = pytest.mark.conda

# Clusters → kept clusters → pseudo-labels → subclusters, and predictions → ensemble → submission: all without torch.
CHAIN = {
    "cluster_photos": "results/round0/clusters.parquet",
    "filter_clusters": "results/round0/kept_clusters.parquet",
    "select_pseudo_labels": "results/round0/pseudo_labels.parquet",
    "recluster_selection": "results/round0/subclusters.parquet",
    "fit_ensemble": "results/ensemble/predictions.parquet",
    "write_submission": "results/submission.csv",
}
OLDEST = (24, 7, 1)  # that Snakemake takes


@pytest.fixture(scope="session")
def conda() -> None:
    """Skip where there is no conda that Snakemake takes."""
    if shutil.which("conda") is None:
        pytest.skip("no conda on the PATH")
    version = subprocess.run(["conda", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = tuple(int(part) for part in re.findall(r"\d+", version))
    if found < OLDEST:
        pytest.skip(f"conda is of version {version.split()[-1]}, and Snakemake needs 24.7.1")


def test_stages_in_their_environments_make_the_same_files(conda: None, finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    before = project.artifacts()
    # Whether conda is used is part of what Snakemake compares, so it would make everything anew.
    rules = ("--allowed-rules", *CHAIN, "--rerun-triggers", "mtime", "--forceall")
    for path in CHAIN.values():
        (project.folder / path).unlink()
    project.succeed(*CHAIN.values(), "--use-conda", "--cores", "2", "--configfile", "tests/tiny.yaml", *rules)
    assert project.artifacts() == before
    for rule in CHAIN:
        (log,) = [path for path in (project.folder / "results/logs").rglob(f"{rule}.log") if "round1" not in path.parts]
        assert log.stat().st_mtime_ns > (finished.folder / log.relative_to(project.folder)).stat().st_mtime_ns


def test_every_environment_can_be_made(conda: None, tmp_path: Path) -> None:
    project: Project = fresh_project(tmp_path / "project")
    said = project.succeed("--use-conda", "--conda-create-envs-only", "--cores", "2", "--configfile", "tests/tiny.yaml")
    made = {path.name for path in (project.folder / ".snakemake/conda").iterdir() if (path / "bin/python").exists()}
    assert len(made) == len(list((project.folder / "envs").glob("*.yaml"))), said

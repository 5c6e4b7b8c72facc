"""What docs/reruns.md promises beside its table: waves that stop, single stages, stages called from Python."""

import re
import subprocess
import sys
from pathlib import Path

from fieldmark.artifacts import read_table
from tests.changes import program
from tests.project import ROOT, TINY, Job, Project, announced, onwards

TEXT = (ROOT / "docs/reruns.md").read_text(encoding="utf-8")


def test_a_stage_whose_output_came_out_the_same_stops_the_wave(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    before = project.artifacts()
    stages = ("extract_features", "filter_clusters", "select_pseudo_labels")
    program(*(f"workflow/scripts/{stage}.py" for stage in stages))(project)
    # What is left of each wave is that of the next edited stage; the last one's is that of round 1.
    project.make(
        *(f"results/{run}/tiny/features/{shard}.parquet" for run in ("baseline", "round0") for shard in (0, 1))
    )
    assert project.planned() == onwards("filter_clusters")
    project.make("results/round0/kept_clusters.parquet")
    assert project.planned() == onwards("select_pseudo_labels")
    project.make("results/round0/pseudo_labels.parquet")
    assert project.planned() == onwards("extract_features", 1)
    assert project.artifacts() == before


def test_one_stage_runs_alone_as_documented(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    (command,) = re.findall(r"^    snakemake (--cores 2 .*)$", TEXT.partition("## One stage alone")[2], re.MULTILINE)
    target = project.folder / command.split()[-1]
    before = target.read_bytes()
    target.unlink()
    said = project.succeed(*command.replace("orchids.yaml", TINY).split())
    assert set(announced(said)) == {Job("cluster_photos", "round0")}
    assert target.read_bytes() == before


def test_the_documented_call_from_python_works(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    before = project.artifacts()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=project.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "kept" in done.stdout and "foreign" in done.stdout
    kept = read_table("kept_clusters", project.folder / "trial/kept_clusters.parquet")
    strict = read_table("kept_clusters", project.folder / "results/round0/kept_clusters.parquet")
    assert kept["kept"].sum() >= strict["kept"].sum() and kept["cluster"].equals(strict["cluster"])
    assert project.artifacts() == before

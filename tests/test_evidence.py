"""`make evidence` on the tiny run: references and ablations start from it, and a page comes out."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl

from tests.project import ROOT, TINY, Project


def test_evidence_adds_references_and_ablations_to_a_run_and_writes_the_page(finished: Project, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "work/seed1").folder
    before = Project(run).artifacts()
    # A recipe that an earlier configuration had.
    shutil.copytree(run / "results/round1/tiny/layerwise", run / "results/round1/tiny/dropped")
    (run / "seed.yaml").write_text("{}")
    os.utime(run / "seed.yaml", (0, 0))
    wanted = {"references": "centroid oracle simclr", "ablations": "no_agreement one_view", "seeds": "1"}
    places = {"configfiles": ROOT / TINY, "tables": tmp_path / "docs/evidence", "set": "moths"}
    call = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "benchmarks/accuracy/evidence.smk"), "--cores", "2"]
    call += ["--directory", str(tmp_path / "work"), "--config", *(f"{k}={v}" for k, v in {**wanted, **places}.items())]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    logs = "\n".join(path.read_text() for path in (tmp_path / "work").glob("*/*.log"))
    assert done.returncode == 0, done.stderr[-3000:] + logs[-3000:]

    table = pl.read_parquet(tmp_path / "docs/evidence/moths/seed1/accuracy.parquet")
    methods = {"probe", "supervised", "round0", "round1", "ensemble", "vote", *wanted["references"].split()}
    assert not table["member"].str.contains("dropped").any()
    assert set(table["method"]) == methods | {f"ablation/{name}" for name in wanted["ablations"].split()}
    assert table["hits"].list.len().unique().to_list() == [16]
    # The oracle learns the truth, the ablations change one thing, and the run that they start from stays as it was.
    page = (tmp_path / "docs/evidence.md").read_text()
    assert "| guide alone, no neighbours' vote | layerwise |" in page and "| one view | layerwise |" in page
    after = Project(run).artifacts().items()
    assert {name: digest for name, digest in after if not re.search("references|dropped", name)} == before
    assert "rule run_workflow" not in done.stderr
    # The ablation of the views predicted anew and did nothing else; that of the selection began at the selection.
    for name, rules in (("one_view", {"predict_photos"}), ("no_agreement", {"select_pseudo_labels"})):
        log = (run / f"{name}_tiny_layerwise.log").read_text()
        started = {line.split()[1].rstrip(":") for line in log.splitlines() if line.startswith(("rule ", "localrule "))}
        assert rules <= started and "pretrain_backbone" not in started

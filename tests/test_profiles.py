"""What the SLURM profile and the rules together ask for, job by job; a real SLURM is in tests/slurm."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from tests.miniatures import make_semi_inat
from tests.project import ROOT, TINY, Project, fresh_project

GPU_RULES = {
    "extract_features",
    "pretrain_backbone",
    "train_guide",
    "score_photos",
    "refine_backbone",
    "finetune_classifier",
    "predict_photos",
}
LIGHT_RULES = {
    "shard_manifest",
    "fit_ensemble",
    "write_submission",
    "export_model",
    "evaluate_stages",
    "render_report",
}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return fresh_project(tmp_path_factory.mktemp("profiles"))


def asked(project: Project, *arguments: str) -> dict[str, dict[str, str]]:
    """Rule → what its jobs ask for, threads among it; jobs of a rule ask for the same."""
    # Without cores of its own, a dry-run shows the threads that would be left here.
    text = project.succeed("--dry-run", "--cores", "999", "--workflow-profile", "profiles/slurm", *arguments)
    found: dict[str, set[str]] = defaultdict(set)
    for block in re.split(r"^ *(?:local)?rule ", text, flags=re.MULTILINE)[1:]:
        threads = re.search(r"^ +threads: (\d+)$", block, re.MULTILINE)
        resources = re.search(r"^ +resources: (.*)$", block, re.MULTILINE)
        if resources and not block.startswith("all:"):
            found[block.partition(":")[0]].add(f"threads={threads[1] if threads else 1}, {resources[1]}")
    assert all(len(kinds) == 1 for kinds in found.values())
    return {rule: dict(pair.split("=", 1) for pair in kinds.pop().split(", ")) for rule, kinds in found.items()}


def test_every_job_of_the_full_size_settings_says_what_it_needs(project: Project, tmp_path: Path) -> None:
    make_semi_inat(tmp_path)
    settings = yaml.safe_load((ROOT / "configs/semi_inat_2021.yaml").read_text(encoding="utf-8"))["resources"]
    options = ("--configfile", "configs/semi_inat_2021.yaml", "--config", f"data={{root: {tmp_path}}}")
    needs = asked(project, *options)
    for rule, need in needs.items():
        gpus = int(need.get("gpu", 0))
        print(f"{rule:22} {need['threads']:>3} {need['mem_mb']:>8} {need['runtime']:>6} {gpus:>3}")
        if rule in LIGHT_RULES:
            assert (need["mem_mb"], need["runtime"]) == (str(4000 + 32 * 200), str(60 + 32 * 2))
        else:
            assert int(need["mem_mb"]) >= settings["mem_mb"] and int(need["runtime"]) >= settings["runtime"]
        assert need["slurm_partition"] == ("gpu" if rule in GPU_RULES else "cpu")
        assert (gpus > 0) == (rule in GPU_RULES)
    assert needs["pretrain_backbone"]["gpu"] == str(settings["gpus"]) and needs["extract_features"]["gpu"] == "1"
    assert needs["cluster_photos"]["mem_mb"] > needs["extract_features"]["mem_mb"]


@pytest.mark.parametrize("shards", [2, 20])
def test_memory_and_time_grow_with_the_photos_where_all_are_read(project: Project, shards: int) -> None:
    needs = asked(project, "--configfile", TINY, "--config", f"shards={shards}")
    assert needs["extract_features"]["mem_mb"] == "1000" and needs["extract_features"]["runtime"] == "240"
    for rule in ("ingest_photos", "cluster_photos", "select_pseudo_labels", "pretrain_backbone"):
        assert needs[rule]["mem_mb"] == str(1000 + 200 * shards)
        assert needs[rule]["runtime"] == str(240 + 2 * shards)


def test_a_job_on_several_nodes_starts_its_processes_itself(project: Project, tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text("resources: {nodes: 3, gpus: 4}", encoding="utf-8")
    needs = asked(project, "--configfile", TINY, str(tmp_path / "nodes.yaml"))
    training = needs["refine_backbone"]
    assert {key: training[key] for key in ("nodes", "tasks", "gres", "mpi")} == {
        "nodes": "3",
        "tasks": "3",
        "gres": "gpu:4",
        "mpi": "srun",
    }
    assert "gpu" not in training and needs["predict_photos"]["gpu"] == "1" and "nodes" not in needs["predict_photos"]

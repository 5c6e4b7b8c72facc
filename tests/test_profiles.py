"""What the SLURM profile and the rules together ask for, job by job; a real SLURM is in tests/slurm."""

import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.miniatures import make_inat_2021, make_semi_inat
from tests.project import GPU_RULES, ROOT, TINY, Project, fresh_project

LIGHT_RULES = {
    "probe_metadata",
    "shard_manifest",
    "fit_ensemble",
    "write_submission",
    "list_unlabeled",
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


@pytest.mark.parametrize(("name", "make"), [("semi_inat_2021", make_semi_inat), ("inat_2021", make_inat_2021)])
def test_every_job_of_the_full_size_settings_says_what_it_needs(
    name: str, make: Callable[[Path], None], project: Project, tmp_path: Path
) -> None:
    make(tmp_path)
    config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8"))
    settings, shards = config["resources"], config["shards"]
    per_shard = settings.get("mem_mb_per_shard", 200)
    needs = asked(project, "--configfile", f"configs/{name}.yaml", "--config", f"data={{root: {tmp_path}}}")
    rows = {
        rule: (need["threads"], need.get("gpu", ""), need["mem_mb"], need["runtime"]) for rule, need in needs.items()
    }
    for rule, need in needs.items():
        print(f"{rule:22} {need['threads']:>3} {need.get('gpu', 0):>3} {need['mem_mb']:>8} {need['runtime']:>6}")
        if rule in LIGHT_RULES:
            assert (need["mem_mb"], need["runtime"]) == (str(4000 + shards * per_shard), str(60 + shards * 2))
        else:
            assert int(need["mem_mb"]) >= settings["mem_mb"] and int(need["runtime"]) >= settings["runtime"]
        assert need["slurm_partition"] == ("gpu" if rule in GPU_RULES else "cpu")
        assert (int(need.get("gpu", 0)) > 0) == (rule in GPU_RULES)
    assert needs["finetune_classifier"]["gpu"] == str(settings["gpus"]) and needs["predict_photos"]["gpu"] == "1"
    assert documented(f"configs/{name}.yaml") == rows


def documented(config: str) -> dict[str, tuple[str, ...]]:
    """Rule → threads, GPUs, memory and minutes in the table of docs/cluster.md that follows its name."""
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8").partition(f"(`{config}`")[2]
    table = [line for line in text.split("\n\n")[1].splitlines() if "`" in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {
        rule: tuple(cell.replace(",", "") for cell in rest)
        for first, *rest in rows
        for rule in re.findall(r"`(\w+)`", first)
    }


@pytest.mark.parametrize("shards", [2, 20])
def test_memory_and_time_grow_with_the_photos_where_all_are_read(project: Project, shards: int) -> None:
    needs = asked(project, "--configfile", TINY, "--config", f"shards={shards}")
    assert needs["extract_features"]["mem_mb"] == "1000" and needs["extract_features"]["runtime"] == "240"
    for rule in ("ingest_photos", "cluster_photos", "select_pseudo_labels", "pretrain_backbone"):
        assert needs[rule]["mem_mb"] == str(1000 + 200 * shards)
        assert needs[rule]["runtime"] == str(240 + 2 * shards)


def test_a_job_on_several_nodes_starts_its_processes_itself(project: Project, tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text(
        "{resources: {nodes: 3, gpus: 4}, detection: {batch_size: 12}}", encoding="utf-8"
    )
    needs = asked(project, "--configfile", TINY, str(tmp_path / "nodes.yaml"))
    training = needs["refine_backbone"]
    assert {key: training[key] for key in ("nodes", "tasks", "gres", "mpi")} == {
        "nodes": "3",
        "tasks": "3",
        "gres": "gpu:4",
        "mpi": "srun",
    }
    assert "gpu" not in training and needs["predict_photos"]["gpu"] == "1" and "nodes" not in needs["predict_photos"]


def test_on_a_cluster_the_number_of_gpus_must_be_told(project: Project) -> None:
    call = project.snakemake(
        "--executor", "slurm", "--jobs", "1", "--configfile", TINY, "--config", "resources={gpus: auto}"
    )
    assert call.returncode != 0
    assert "resources.gpus: expected a number, because jobs run on other machines" in call.stdout


def test_fewer_gpus_to_hand_out_than_asked_for_are_told(project: Project, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "copy")
    (tmp_path / "gpus.yaml").write_text("resources: {gpus: 4}", encoding="utf-8")
    files = ("--configfile", TINY, str(tmp_path / "gpus.yaml"))
    text = copy.succeed("--cores", "1", *files, "--", "results/demo/truth.csv")
    assert "of the 4 GPUs for each training job, Snakemake has 1 to hand out" in text and "--resources gpu=4" in text
    # Where nothing limits them, nothing is amiss.
    shutil.rmtree(copy.folder / "results")
    text = copy.succeed("--workflow-profile", "none", "--cores", "1", *files, "--", "results/demo/truth.csv")
    assert "to hand out" not in text

"""A copy of the project to run workflows in, and the jobs of the tiny run, written down independently of the rules."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("Snakefile", "config.yaml", "configs", "envs", "fieldmark", "profiles", "workflow", "tests")
TINY = "tests/tiny.yaml"

# The stages of a round, in their order: each needs the one before it, and the first one the last round's model.
CHAIN = (
    "extract_features",
    "cluster_photos",
    "filter_clusters",
    "pretrain_backbone",
    "train_guide",
    "score_photos",
    "select_pseudo_labels",
    "recluster_selection",
    "refine_backbone",
    "finetune_classifier",
    "predict_photos",
)
DETECTION = ("train_detector", "detect_photos")
BY_SHARD = ("extract_features", "score_photos", "predict_photos")
BY_RECIPE = ("finetune_classifier", "predict_photos")
OF_ALL_MODELS = ("cluster_photos", "filter_clusters", "select_pseudo_labels", "recluster_selection")
# What embeds, trains or predicts, hence may hold a GPU.
GPU_RULES = {*CHAIN, *DETECTION} - {*OF_ALL_MODELS}
BEGINNING = ("generate_demo", "ingest_photos", "shard_manifest")
END = ("fit_ensemble", "write_submission", "export_model", "evaluate_stages", "render_report")


class Job(NamedTuple):
    """One job of the workflow; an empty field stands for a wildcard that its rule has not."""

    rule: str
    run: str = ""
    model: str = ""
    recipe: str = ""
    shard: str = ""


def all_jobs(
    rounds: int = 2,
    models: Iterable[str] = ("tiny",),
    recipes: Iterable[str] = ("layerwise", "two_stage"),
    shards: int = 2,
) -> set[Job]:
    """Every job of a run, written down once more independently of the rules."""
    jobs = {Job(rule) for rule in (*BEGINNING, "probe_metadata", "list_unlabeled", *END)} | {
        Job("probe_features", model=model) for model in models
    }
    jobs |= {Job("train_detector"), *(Job("detect_photos", shard=str(shard)) for shard in range(shards))}
    for run in ("baseline", *(f"round{number}" for number in range(rounds))):
        for rule in ("extract_features", *BY_RECIPE) if run == "baseline" else CHAIN:
            for model in [""] if rule in OF_ALL_MODELS else models:
                for recipe in recipes if rule in BY_RECIPE else [""]:
                    for shard in range(shards) if rule in BY_SHARD else [""]:
                        jobs.add(Job(rule, run, model, recipe, str(shard)))
    return jobs


def supervised_jobs() -> set[Job]:
    """Every job of the tiny run in the supervised track."""
    return INGESTION | only("shard_manifest", "probe_metadata", *DETECTION, *END) | BASELINE


def self_training_jobs() -> set[Job]:
    """What the rounds of the tiny run in the self-training track consist of, and what follows from them."""
    chain = only("score_photos", "select_pseudo_labels", *BY_RECIPE)
    return {job for job in chain if job.run.startswith("round")} | only("list_unlabeled", *END)


def only(*rules: str) -> set[Job]:
    """The jobs of some rules."""
    return {job for job in all_jobs() if job.rule in rules}


def onwards(rule: str, first_round: int = 0, jobs: set[Job] | None = None) -> set[Job]:
    """The jobs of a round from one stage on, all later rounds, and the end of the workflow."""
    first = (first_round, CHAIN.index(rule))
    of_rounds = {
        job
        for job in (all_jobs() if jobs is None else jobs)
        if job.run.startswith("round") and (int(job.run.removeprefix("round")), CHAIN.index(job.rule)) >= first
    }
    selected = {Job("list_unlabeled")} if any(job.rule == "select_pseudo_labels" for job in of_rounds) else set()
    return of_rounds | selected | only(*END)


def baseline(*recipes: str) -> set[Job]:
    """The baseline's jobs of some recipes."""
    return {job for job in all_jobs() if job.run == "baseline" and job.recipe in recipes}


ALL = all_jobs()
FEATURES = {job for job in ALL if job.rule == "extract_features" and job.run == "baseline"}
PROBE = only("probe_features")
ROUNDS = onwards("extract_features")
BASELINE = baseline("layerwise", "two_stage")
INGESTION = only("generate_demo", "ingest_photos")
AFTER_SHARDS = ALL - INGESTION - only("shard_manifest", "probe_metadata")
REGIONS = only(*DETECTION)


@dataclass(frozen=True)
class Project:
    """A copy of the project, and what was made in it."""

    folder: Path

    def copy(self, target: Path) -> "Project":
        """The same with the same file times, in a new folder."""
        shutil.copytree(self.folder, target, symlinks=True)
        return Project(target)

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call the command line in the project's folder."""
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def succeed(self, *arguments: str) -> str:
        """The same, with the output of a call that must succeed."""
        call = self.snakemake(*arguments)
        assert call.returncode == 0, call.stdout[-6000:]
        return call.stdout

    def make(self, *targets: str) -> str:
        """Run the tiny workflow."""
        return self.succeed(*targets, "--cores", "2", "--configfile", TINY)

    def planned(self, *arguments: str, config: str = TINY) -> set[Job]:
        """The jobs that a dry-run announces."""
        text = self.succeed("--dry-run", "--cores", "2", "--configfile", config, *arguments)
        jobs = [job for job in announced(text) if job.rule != "all"]
        assert len(jobs) == len(set(jobs))
        assert jobs or "Nothing to be done" in text
        return set(jobs)

    def artifacts(self) -> dict[str, str]:
        """SHA-256 of everything under results/, but for what the truth may change and what tells times."""
        results = self.folder / "results"
        left_out = ("evaluation", "report.html", "logs", "benchmarks", "demo/truth.csv")
        files = (path for path in sorted(results.rglob("*")) if path.is_file())
        names = ((path, path.relative_to(results).as_posix()) for path in files)
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for path, name in names if not name.startswith(left_out)
        }


def announced(text: str) -> Iterator[Job]:
    """The jobs in the output of a dry-run."""
    for block in re.split(r"^(?:local)?rule ", text, flags=re.MULTILINE)[1:]:
        rule = block.partition(":")[0]
        line = re.search(r"^    wildcards: (.*)$", block, flags=re.MULTILINE)
        values = dict(pair.split("=") for pair in line[1].split(", ")) if line else {}
        run = values.get("run") or (f"round{values['round']}" if "round" in values else "")
        yield Job(rule, run, values.get("model", ""), values.get("recipe", ""), values.get("shard", ""))


def fresh_project(folder: Path) -> Project:
    """The project without results, in a new folder."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / part)
    return Project(folder)

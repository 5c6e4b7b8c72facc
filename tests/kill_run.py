"""Kill the tiny workflow with SIGKILL again and again, and compare what it leaves with a run that was left alone.

    python -m tests.kill_run --kills 100 --seed 1

Every job that begins may be a victim; the moment is drawn from the job's whole life, and in half of the training jobs
from the time when a checkpoint exists. When a run has come to its end all its files are compared, everything is
deleted, and the next run begins, until there were as many kills as wanted and every stage has had its share.
``--document`` writes the outcome into docs/faults.md.
"""

import argparse
import csv
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from tests.documents import FAULTS, write_part
from tests.interruption import Invocation, differences, files_of, half_written
from tests.project import BEGINNING, CHAIN, DETECTION, END, TINY, Project, fresh_project

CONFIG = "tests/killed.yaml"
STAGES = (*BEGINNING, *DETECTION, "probe_features", "probe_metadata", *CHAIN, "list_unlabeled", *END)
TRAINING = ("train_detector", "pretrain_backbone", "train_guide", "refine_backbone", "finetune_classifier")
LONGER = 5  # times the steps of the tiny run, so that training takes long enough to be hit
KILL_SHARE = 0.75  # of the jobs that begin
WHOLE_SHARE = 0.15  # of the kills are of Snakemake and all jobs, the others of one job
AT_LEAST = 3  # kills for each stage


@dataclass
class Tally:
    """What happened.

    Attributes:
        hit: for each rule, the kills during one of its jobs; with two jobs at a time a kill can count twice.
        kills: all of them.
        whole: those of Snakemake with all its jobs; the others were of one job.
        between: kills while no job ran.
        checkpoints: kills that left a checkpoint.
        resumed: logs of training jobs that went on from one, each with the line that says so.
        halves: temporary files that kills left.
        passes: complete runs.
        compared: files compared with the reference.
        differing: files that differed from it, with their number of differing bytes.
    """

    hit: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    whole: int = 0
    between: int = 0
    checkpoints: int = 0
    resumed: set[tuple[Path, str]] = field(default_factory=set)
    halves: set[Path] = field(default_factory=set)
    passes: int = 0
    compared: int = 0
    differing: Counter[str] = field(default_factory=Counter)

    def count(self, rules: Iterable[str], project: Project) -> None:
        """Note a kill during the jobs of some rules, and what it left."""
        hit = set(rules)
        self.hit.update(hit)
        self.kills += 1
        self.between += not hit
        self.checkpoints += bool(checkpoints_of(project))
        self.halves |= half_written(project)
        self.resumed |= resumed_jobs(project)

    def table(self, seed: int) -> str:
        """The outcome as Markdown."""
        rows = "\n".join(f"| `{rule}` | {self.hit[rule]} |" for rule in STAGES)
        return (
            f"| killed while this stage ran | times |\n|---|---|\n{rows}\n| no stage | {self.between} |\n\n"
            f"In all {self.kills} kills (seed {seed}), {self.whole} of Snakemake with all its jobs, up to two, and the "
            f"others of the process of one job, over "
            f"{self.passes} complete runs. {self.checkpoints} kills left the checkpoint of a training job, "
            f"{len(self.resumed)} training jobs went on from one, and {len(self.halves)} temporary files were left "
            f"half written. {self.compared} files were compared with the run that was left alone: "
            f"**{len(self.differing)} files and {self.differing.total()} bytes differ.**"
        )


def make_config(project: Project, rounds: int) -> None:
    """The tiny configuration with longer training, and a checkpoint after every step."""
    config = yaml.safe_load((project.folder / TINY).read_text(encoding="utf-8"))
    config["rounds"] = rounds
    for stage in (config["pretrain"], config["guide"], config["refine"], *config["recipes"].values()):
        for phase in stage["phases"]:
            phase["steps"] *= LONGER
    config["detection"]["steps"] *= LONGER
    config["resources"]["checkpoint_seconds"] = 0
    (project.folder / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")


def lives_of(project: Project) -> dict[str, float]:
    """How long the longest job of each rule took, seconds."""
    lives: dict[str, float] = {}
    for path in (project.folder / "results/benchmarks").rglob("*.tsv"):
        (rule,) = {path.stem, path.parent.name} & set(STAGES)
        with path.open(encoding="utf-8", newline="") as file:
            seconds = float(next(csv.DictReader(file, delimiter="\t"))["s"])
        lives[rule] = max(lives.get(rule, 0.0), seconds)
    return lives


def checkpoints_of(project: Project) -> set[Path]:
    """The checkpoints of training jobs under way."""
    return set((project.folder / "results").rglob(".*.checkpoint.pt"))


def resumed_jobs(project: Project) -> set[tuple[Path, str]]:
    """The logs of training jobs that went on from a checkpoint, each with the line, and its time, that says so."""
    logs = {path for rule in TRAINING for path in (project.folder / "results/logs").rglob(f"{rule}.log")}
    lines = ((path, line) for path in logs for line in path.read_text(encoding="utf-8").splitlines())
    return {(path, line) for path, line in lines if " resuming " in line}


def next_victim(
    run: Invocation, project: Project, tally: Tally, lives: Mapping[str, float], draws: np.random.Generator, kills: int
) -> str | None:
    """Follow a run until a random moment in the life of a job, or to its end if none is chosen; the job's rule."""
    for rule in run.follow():
        if rule not in lives:
            continue  # the target that runs nothing
        few = tally.hit[rule] < AT_LEAST
        if not few and (tally.kills >= kills or draws.random() > KILL_SHARE):
            continue
        if rule in TRAINING and draws.random() < 0.5:
            known = checkpoints_of(project)
            run.wait_for(lambda known=known: bool(checkpoints_of(project) - known), lives[rule])  # type: ignore[misc]
            moment = draws.uniform(0.0, 0.3)
        else:
            moment = draws.uniform(0.0, lives[rule])
        for _ in run.follow(moment):
            pass
        return rule
    return None


def complete(
    project: Project,
    tally: Tally,
    lives: Mapping[str, float],
    draws: np.random.Generator,
    kills: int,
    *targets: str,
    config: str = CONFIG,
) -> None:
    """Run the workflow to its end, with kills on the way while there were fewer than ``kills``."""
    while True:
        run = Invocation(project, "--rerun-incomplete", "--retries", "99", *targets, config=config)
        while (rule := next_victim(run, project, tally, lives, draws, kills)) is not None:
            if draws.random() < WHOLE_SHARE:
                break
            if run.kill_job(rule):
                tally.count([rule], project)
        text = run.stop()
        if run.process.returncode == 0:
            tally.resumed |= resumed_jobs(project)
            return
        assert run.process.returncode == -signal.SIGKILL, text[-6000:]
        tally.whole += 1
        tally.count(run.running.values(), project)
        unlock(project)


def unlock(project: Project) -> None:
    """Delete the locks of a killed run, as ``snakemake --unlock`` does, but without reading the whole workflow."""
    for lock in (project.folder / ".snakemake/locks").glob("*.lock"):
        lock.unlink()


def render_again(project: Project, benchmarks: Path) -> bytes:
    """The report with the times of another run; only then can two reports be equal."""
    own = project.folder / "results/benchmarks"
    shutil.rmtree(own)
    shutil.copytree(benchmarks, own)
    project.succeed("--cores", "1", "--configfile", CONFIG, "--forcerun", "render_report", "--", "results/report.html")
    return (project.folder / "results/report.html").read_bytes()


def kill_run(folder: Path, kills: int, seed: int, rounds: int) -> Tally:
    """Make the reference, then runs that are killed, until there were ``kills`` and every stage had its share."""
    reference, killed = fresh_project(folder / "reference"), fresh_project(folder / "killed")
    for project in (reference, killed):
        make_config(project, rounds)
    reference.succeed("--cores", "2", "--configfile", CONFIG)
    lives = lives_of(reference)
    shutil.copytree(reference.folder / "results/benchmarks", folder / "benchmarks")
    report, expected = render_again(reference, folder / "benchmarks"), files_of(reference)
    tally, draws = Tally(), np.random.default_rng(seed)
    while tally.kills < kills or any(tally.hit[rule] < AT_LEAST for rule in STAGES):
        for name in ("results", ".snakemake"):
            shutil.rmtree(killed.folder / name, ignore_errors=True)
        complete(killed, tally, lives, draws, kills)
        compare(killed, {**expected, "report.html": report}, folder / "benchmarks", tally)
        print(f"run {tally.passes}: {tally.kills} kills, {len(tally.differing)} files differ", flush=True)
    return tally


def compare(project: Project, expected: Mapping[str, bytes], benchmarks: Path, tally: Tally) -> None:
    """Note in what a finished run differs from the reference."""
    found = {**files_of(project), "report.html": render_again(project, benchmarks)}
    tally.passes += 1
    tally.compared += len(found)
    tally.differing.update(differences(found, expected))


def main() -> int:
    """Command line; the exit status tells whether anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--document", action="store_true", help="write the outcome into docs/faults.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fieldmark-kills-") as folder:
        tally = kill_run(Path(folder), arguments.kills, arguments.seed, arguments.rounds)
    table = tally.table(arguments.seed)
    print(table)
    for name, count in tally.differing.items():
        print(f"differs: {name}, {count} bytes")
    if arguments.document:
        write_part(FAULTS, "kills", table)
    return bool(tally.differing)


if __name__ == "__main__":
    sys.exit(main())

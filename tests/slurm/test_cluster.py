"""The workflow on a real SLURM of one node, while everything goes wrong that does on clusters: `make test-slurm`."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml

from tests.project import GPU_RULES, TINY, Project, fresh_project

pytestmark = pytest.mark.slurm

HERE = Path(__file__).resolve().parent
CONFIGURATION = ("--configfile", TINY, "tests/slurm/cluster.yaml")
GIVE_UP = 1800  # seconds; it takes a few minutes, and without this a job that hangs would take forever


class Job(NamedTuple):
    """What the accounting knows of a job; one that was requeued appears once per start."""

    number: str
    name: str
    state: str
    resources: str
    elapsed: str


def call(*command: str | Path) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


def trains(process: psutil.Process, job: str) -> bool:
    """Whether a process runs the script of a job."""
    try:
        ours = process.environ().get("SLURM_JOB_ID") == job
        return ours and any("/.snakemake/scripts/" in part for part in process.cmdline()[:2])
    except psutil.Error:
        return False


def on_the_cpu(folder: Path) -> Project:
    """A fresh project whose jobs do not insist on the GPUs that they are given: those of the node are none."""
    project = fresh_project(folder)
    with (project.folder / "fieldmark/hardware.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef gpus_given(job):\n    return 0\n")
    return project


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The name of the only node; the cluster is ended afterwards if it was started here."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("a SLURM for the tests needs root, and Debian or Ubuntu")
    if os.environ["SLURM_CONF"] == os.devnull:
        del os.environ["SLURM_CONF"]  # hidden from the other tests
    ran_before = shutil.which("scontrol") is not None and "is UP" in subprocess.getoutput("scontrol ping")
    start = subprocess.run(
        [HERE / "up"],
        env={**os.environ, "CPUS": "4"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if "cannot install" in start.stdout:
        pytest.skip(start.stdout.splitlines()[-1])
    assert start.returncode == 0, start.stdout
    yield call("sinfo", "--noheader", "--Node", "--format", "%N").split()[0]
    if not ran_before:
        call(HERE / "down")


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same run without SLURM."""
    project = on_the_cpu(tmp_path_factory.mktemp("local"))
    project.succeed("--cores", "2", *CONFIGURATION)
    return project


class Run:
    """The workflow under the SLURM profile, and what is done to its jobs meanwhile."""

    def __init__(self, project: Project, node: str) -> None:
        self.project, self.node = project, node
        self.results = project.folder / "results"
        self.output = project.folder / "output.txt"
        self.since = time.strftime("%Y-%m-%dT%H:%M:%S")
        profile = project.folder / "profiles/slurm/config.yaml"
        settings = yaml.safe_load(profile.read_text(encoding="utf-8"))
        # Less than torch needs, at the first attempt.
        settings["set-resources"]["train_guide"]["mem_mb"] = "500 if attempt == 1 else 3000"
        profile.write_text(yaml.safe_dump(settings), encoding="utf-8")
        # Of the rest, only the waiting is shortened.
        options = ["--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "3"]
        options += ["--latency-wait", "20"]
        command = [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm", *CONFIGURATION, *options]
        with self.output.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                command,
                cwd=project.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def wait(self, true: Callable[[], object]) -> None:
        """Wait until something is true of the cluster."""
        end = time.monotonic() + GIVE_UP
        while not true():
            assert self.process.poll() is None, self.output.read_text(encoding="utf-8")[-5000:]
            assert time.monotonic() < end, f"nothing more happens: {call('squeue', '--states', 'all')}"
            time.sleep(0.02)  # SLURM tells its state only when asked; asking all the time would take its jobs' core

    def running(self, rule: str = "") -> list[str]:
        """Numbers of the running jobs of a rule."""
        lines = call("squeue", "--noheader", "--states", "RUNNING", "--format", "%i %k").splitlines()
        return [line.split()[0] for line in lines if f"rule_{rule}" in line]

    def pending(self) -> list[str]:
        return call("squeue", "--noheader", "--states", "PENDING", "--format", "%i").split()

    def halted(self, rule: str, stage: str) -> str:
        """Number of a job, halted as soon as it has saved a checkpoint, so that it cannot end by itself."""
        checkpoint = self.results / f"round0/tiny/.{stage}.checkpoint.pt"
        self.wait(lambda: self.running(rule))
        (number,) = self.running(rule)
        self.wait(checkpoint.exists)
        # Not by scancel: a job that SLURM itself has stopped is called STOPPED for good, whatever becomes of it.
        (training,) = [process for process in psutil.process_iter() if trains(process, number)]
        training.suspend()
        assert checkpoint.exists()
        return number

    def jobs(self) -> list[Job]:
        """All jobs since the start, from the accounting."""
        fields = "JobIDRaw,Comment,State,AllocTRES,Elapsed"
        text = call("sacct", "-nPXD", "--starttime", self.since, "--format", fields)
        rows = [line.split("|") for line in text.splitlines()]
        return [Job(number, comment.removeprefix("rule_"), *rest) for number, comment, *rest in rows]


@pytest.fixture(scope="session")
def run(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that ended well although its node was drained, and its jobs cancelled, requeued, out of time or memory."""
    run = Run(on_the_cpu(tmp_path_factory.mktemp("cluster")), cluster)
    try:
        run.wait(lambda: run.running("extract_features"))
        call("scontrol", "update", f"nodename={cluster}", "state=drain", "reason=test")
        run.wait(lambda: run.pending() and not run.running())
        call("scontrol", "update", f"nodename={cluster}", "state=resume")

        call("scancel", run.halted("pretrain_backbone", "pretrain"))
        call("scontrol", "requeue", run.halted("refine_backbone", "refine"))
        number = run.halted("finetune_classifier_wildcards_round0", "two_stage")
        call("scontrol", "update", f"jobid={number}", "timelimit=1")
        run.process.wait(GIVE_UP)
    finally:
        # Not terminated: it would wait for its jobs, which may be what hangs. They end with the cluster.
        run.process.kill()
        run.process.wait()
    for job in run.jobs():
        print("  ".join(job))
    assert run.process.returncode == 0, run.output.read_text(encoding="utf-8")[-5000:]
    return run


def test_what_is_made_on_the_cluster_is_what_is_made_here(run: Run, local: Project) -> None:
    expected = local.artifacts()
    assert run.project.artifacts() == expected and "submission.csv" in expected


@pytest.mark.parametrize(
    ("rule", "states", "resumed"),
    [
        ("pretrain_backbone", ["CANCELLED by 0", "COMPLETED"], True),
        ("refine_backbone", ["REQUEUED", "COMPLETED"], True),
        ("finetune_classifier_wildcards_round0", ["TIMEOUT", "COMPLETED"], True),
        # Killed for memory before its first step. Where SLURM uses cgroups the state is OUT_OF_MEMORY.
        ("train_guide", ["FAILED", "COMPLETED"], False),
    ],
)
def test_a_job_that_was_ended_is_tried_again_and_goes_on(run: Run, rule: str, states: list[str], resumed: bool) -> None:
    jobs = [job for job in run.jobs() if job.name.startswith(rule)]
    assert [job.state for job in jobs] == states
    assert (len({job.number for job in jobs}) == 1) == ("REQUEUED" in states)
    (log,) = (run.results / "logs/round0/tiny").rglob(f"{rule.partition('_wildcards')[0]}.log")
    found = re.search(r"resuming \w* *at step (\d+)", log.read_text(encoding="utf-8"))
    assert (found is not None) == resumed


def test_only_jobs_that_use_a_gpu_hold_one(run: Run) -> None:
    holders = {job.name.partition("_wildcards")[0] for job in run.jobs() if "gres/gpu" in job.resources}
    assert holders == GPU_RULES


def test_short_jobs_go_to_the_queue_together(run: Run) -> None:
    names = {job.name.partition("_wildcards")[0] for job in run.jobs()}
    assert {"data", "clusters", "selection", "results"} <= {re.sub(r"_.*", "", name) for name in names}
    assert not names & {"shard_manifest", "filter_clusters", "recluster_selection", "render_report"}

"""Section "Training": the loss of every training job."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
from markupsafe import Markup

from fieldmark.artifacts import ArtifactError, read_table
from fieldmark.report.charts import Series, loss_curve
from fieldmark.report.wording import percent, recipe_name, run_name

_STAGES = ("pretrain", "guide", "refine")
_STYLES = ("s1", "s3", "s2", "s0")


@dataclass(frozen=True)
class Job:
    """One training job: its stage and model, its curve and how it ended."""

    name: str
    drawing: Markup
    note: str


@dataclass(frozen=True)
class Run:
    """The jobs of one round, or of the baselines."""

    name: str
    jobs: list[Job]


def training_section(histories: list[Path]) -> list[Run]:
    """Collect the loss curves, runs in order, within each by model and by the order of the stages.

    Args:
        histories: results/{run}/{model}/{stage or recipe}/history.parquet.

    Raises:
        ArtifactError: if a path is not of that form.
    """
    found: dict[str, list[tuple[tuple, Job]]] = {}
    for path in map(Path, histories):
        if len(path.parts) < 4:
            raise ArtifactError(f"{path}: expected results/RUN/MODEL/STAGE/history.parquet")
        run, model, stage = path.parts[-4:-1]
        place = _STAGES.index(stage) if stage in _STAGES else len(_STAGES)
        found.setdefault(run, []).append(((model, place, stage), _job(path, model, stage)))
    ordered = sorted(found, key=lambda run: (run != "baseline", len(run), run))
    return [Run(run_name(run), [job for _, job in sorted(found[run], key=lambda entry: entry[0])]) for run in ordered]


def _job(path: Path, model: str, stage: str) -> Job:
    history = read_table("history", path)
    if history.is_empty():
        raise ArtifactError(f"{path}: expected at least one step of training; delete it and run the workflow again")
    # A phase ends where the step falls back; its steps go on from where the last phase ended.
    number = (pl.col("step").diff().fill_null(1) <= 0).cum_sum().alias("number")
    phases: list[Series] = []
    offset = 0
    for rows in history.with_columns(number).partition_by("number", maintain_order=True):
        steps = [offset + step for step in rows["step"].to_list()]
        style = _STYLES[len(phases) % len(_STYLES)]
        phases.append(Series(rows["phase"][0], style, steps, rows["loss"].to_list()))
        offset = steps[-1] + 1
    name = f"{model} · {recipe_name(stage)}"
    note = f"{offset:,} steps, {len(phases)} phases" if len(phases) > 1 else f"{offset:,} steps"
    accuracy = history["val_top1"].drop_nulls()
    if len(accuracy):
        note += f", val {percent(accuracy[-1])}"
    return Job(name, loss_curve(name, phases), note)

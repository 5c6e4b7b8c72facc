"""Gather what one seed's runs reached into two tables, small enough to be kept beside the project.

``accuracy.parquet``: one row for each model, vote of models and ablation, with a flag for each test photo, so that
differences can be paired later. ``unlabeled.parquet``: how well clusters and selection fit the truth, also with one
part changed, and how well foreign photos are told apart, beside the standard detectors. In the folder of the run::

    python -m benchmarks.accuracy.collect --configfile my.yaml --output tables
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.accuracy.foreign_detectors import RECALL, detector_scores, foreign_share
from benchmarks.accuracy.methods import AS_LONG_AS_THE_PIPELINE, HALF_WAY
from benchmarks.accuracy.references import pipeline_steps, steps_of
from benchmarks.configuration import read_config, truth_file
from fieldmark.artifacts import read_table
from fieldmark.config import stage_settings
from fieldmark.ensemble import combine
from fieldmark.evaluation import at, auroc, macro_accuracy, scores_table, selection_scores, tail_classes
from fieldmark.predictions import TopLists, read_lists, round_of
from fieldmark.truth import read_truth


@dataclass(frozen=True)
class Run:
    """One seed's finished run, its references and ablations.

    Attributes:
        results: its results folder.
        config: as resolved.
        classes: the table of classes.
        labels: true class of every test photo of a known class, by id.
        unlabeled: true class or :data:`fieldmark.evaluation.FOREIGN` of every unlabeled photo in the truth, by id.
    """

    results: Path
    config: Mapping[str, Any]
    classes: pl.DataFrame
    labels: Mapping[str, int]
    unlabeled: Mapping[str, int]

    @classmethod
    def read(cls, results: Path, config: Mapping[str, Any]) -> "Run":
        """Read the tables of a finished run whose configuration names a truth table."""
        data = {
            name: read_table(name, results / f"data/{name}.parquet") for name in ("manifest", "classes", "rejected")
        }
        manifest, classes, rejected = data.values()
        truth = read_truth(truth_file(config, results), manifest, classes, rejected["path"].to_list())
        test, unlabeled = (manifest.filter(split=split).sort("image_id")["image_id"] for split in ("test", "unlabeled"))
        labels = {name: truth[name] for name in test if truth.get(name, -1) >= 0}
        return cls(results, config, classes, labels, {name: truth[name] for name in unlabeled if name in truth})

    def configured(self, model: str, recipe: str, number: int = 0) -> bool:
        """Whether a model of a round is of the configuration; others were left by earlier ones."""
        known = self.config["models"].get(model, {"recipes": []})["recipes"]
        return recipe in (*known, "probe") and number < self.config["rounds"]

    def lists(self, files: list[Path]) -> TopLists:
        """Predictions of the test photos, in the order of the labels."""
        return read_lists(files, self.classes.height).rows_of(list(self.labels), str(files[0]))

    def row(self, method: str, member: str, lists: TopLists, steps: int | None) -> dict[str, Any]:
        """A row of the table of accuracies."""
        truth = np.array(list(self.labels.values()))
        hits: npt.NDArray[np.bool_] = lists.class_ids[:, 0] == truth
        rare = np.isin(truth, tail_classes(self.classes))
        return {
            "method": method,
            "member": member,
            "steps": steps,
            "macro": macro_accuracy(hits, truth),
            "tail": macro_accuracy(hits[rare], truth[rare]),
            "hits": hits.tolist(),
        }


def steps_to(config: Mapping[str, Any], run: str, model: str, recipe: str) -> int | None:
    """Optimizer steps that lead to a model of a run: ``baseline`` or a round; None for a probe."""
    if recipe not in config["recipes"]:
        return None
    number = round_of(run)
    return pipeline_steps(config, model, recipe, 0 if number is None else number + 1)


def reference_steps(config: Mapping[str, Any], name: str, model: str, recipe: str) -> int | None:
    """Optimizer steps that lead to a reference."""
    own = steps_of(stage_settings(config, model, recipe))
    if name == "centroid":
        return None
    if name == "naive":
        return 2 * own  # the supervised model that names the photos, and the one that learns the names
    if name in AS_LONG_AS_THE_PIPELINE:
        return pipeline_steps(config, model, recipe, config["rounds"])
    if name in HALF_WAY:
        first = config["models"][model]["recipes"][0]
        before = [first] if config["start"] == "supervised" else []
        before += ["pretrain"] if name == "after_pretrain" else ["pretrain", "guide", "refine"]
        return own + sum(steps_of(stage_settings(config, model, stage)) for stage in before)
    return own


def accuracy_table(run: Run) -> pl.DataFrame:
    """A row for everything that predicted the test photos."""
    results, rows = run.results, []
    members: dict[str, TopLists] = {}
    for folder in sorted(path.parent for path in results.glob("*/*/*/predictions")):
        name, model, recipe = folder.relative_to(results).parts
        if not run.configured(model, recipe, round_of(name) or 0):
            continue
        lists = run.lists(sorted((folder / "predictions").glob("*.parquet")))
        members[f"{name}/{model}/{recipe}"] = lists
        method = "supervised" if name == "baseline" and recipe != "probe" else "probe" if name == "baseline" else name
        rows.append(run.row(method, f"{model}/{recipe}", lists, steps_to(run.config, name, model, recipe)))
    for file in sorted(results.glob("references/*/*/*/predictions.parquet")):
        name, model, recipe = file.parent.relative_to(results / "references").parts
        if not run.configured(model, recipe):
            continue
        rows.append(
            run.row(name, f"{model}/{recipe}", run.lists([file]), reference_steps(run.config, name, model, recipe))
        )
    for folder in sorted(Path("ablations").glob("*/*/*")):
        name, model, recipe = folder.relative_to("ablations").parts
        if not run.configured(model, recipe):
            continue
        lists = run.lists(sorted((folder / "predictions").glob("*.parquet")))
        rows.append(run.row(f"ablation/{name}", f"{model}/{recipe}", lists, None))
    return pl.DataFrame(rows + votes(run, members), schema_overrides={"steps": pl.Int32, "hits": pl.List(pl.Boolean)})


def votes(run: Run, members: Mapping[str, TopLists]) -> list[dict[str, Any]]:
    """The submitted ensemble, each way to weigh it, and equal votes of the supervised or the rounds' models alone."""
    weights = read_table("ensemble_weights", run.results / "ensemble/weights.parquet")
    rows = [run.row("ensemble", "submitted", run.lists([run.results / "ensemble/predictions.parquet"]), None)]
    chosen = {
        method: weights.filter(method=method).select("member", "weight")
        for method in weights["method"].unique(maintain_order=True)
    }
    for name, beginning in (("supervised models alone", "baseline/"), ("rounds' models alone", "round")):
        own = [one for one in weights["member"].unique(maintain_order=True) if one.startswith(beginning)]
        if own:
            chosen[name] = pl.DataFrame({"member": own, "weight": [1 / len(own)] * len(own)})
    for name, frame in chosen.items():
        lists = [members[member] for member in frame["member"]]
        mean = TopLists(*combine(lists, frame["weight"].to_numpy().astype(np.float32), run.classes.height))
        rows.append(run.row("vote", name, mean, None))
    return rows


def ablated_selections(run: Run) -> list[tuple[str, int, str, float]]:
    """Stage, round, metric and value of what was selected with one part changed."""
    rows = []
    for file in sorted(Path("ablations").glob("*/*/*/pseudo_labels.parquet")):
        stage = f"ablation/{file.relative_to('ablations').parts[0]}"
        own = read_table("pseudo_labels", file).filter(pl.col("image_id").is_in(list(run.unlabeled)))
        labels = np.array([run.unlabeled[image_id] for image_id in own["image_id"]])
        scores = scores_table(selection_scores(at(stage, "unlabeled", 0), own, labels))
        rows += scores.select("stage", "round", "metric", "value").rows()
    return rows


def unlabeled_table(run: Run, threads: int) -> pl.DataFrame:
    """The evaluation's scores of unlabeled photos, those of ablations, and figures of detectors of foreign photos."""
    scores = read_table("scores", run.results / "evaluation/scores.parquet")
    own = scores.filter(pl.col("stage").is_in(["cluster", "filter", "select"]))
    found, in_class = detector_scores(run.config, run.results, threads)
    detected: list[tuple[str, int | None, str, float]] = [*ablated_selections(run)]
    for name, values in found.items():
        detected.append(("auroc", None, name, auroc(values, in_class)))
        detected.append((f"foreign share at {RECALL:.0%} recall", None, name, foreign_share(values, in_class)))
    kinds = {"stage": pl.String, "round": pl.Int32, "metric": pl.String, "value": pl.Float64}
    return pl.concat([own.select(list(kinds)), pl.DataFrame(detected, schema=kinds, orient="row")])


def main() -> None:
    """Read the configuration, gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", action="append", default=[], help="as for Snakemake, over config.yaml")
    parser.add_argument("--output", type=Path, required=True, help="folder of the two tables")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    config = read_config(options.configfile)
    run = Run.read(Path("results"), config)
    options.output.mkdir(parents=True, exist_ok=True)
    accuracy_table(run).write_parquet(options.output / "accuracy.parquet")
    unlabeled_table(run, options.threads).write_parquet(options.output / "unlabeled.parquet")


if __name__ == "__main__":
    main()

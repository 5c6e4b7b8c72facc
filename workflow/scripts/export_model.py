"""Put the ensemble's networks, their votes and the class names into one file that names new photos."""

from fieldmark.stage import log, start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from fieldmark.artifacts import read_table
from fieldmark.class_names import class_labels
from fieldmark.finished import save_finished
from fieldmark.inference import ViewPlan
from fieldmark.methods import chosen_method


def export_model(
    models: Mapping[str, Path],
    classes: Path,
    weights: Path,
    scores: Path,
    method: str,
    views: ViewPlan,
    target: Path,
) -> None:
    """Write the finished classifier: the members that have a vote.

    Args:
        models: model files by the member's name.
        classes: the table of classes.
        weights: the members' weights by each method.
        scores: what the methods reached on validation photos.
        method: whose weights are taken, see :func:`fieldmark.methods.chosen_method`.
        views: test-time views.
        target: the file to write.
    """
    chosen = chosen_method(method, read_table("scores", scores))
    votes = read_table("ensemble_weights", weights).filter(pl.col("method") == chosen, pl.col("weight") > 0)
    members = {models[name]: share for name, share in votes.select("member", "weight").iter_rows()}
    names = list(class_labels(read_table("classes", classes).sort("class_id")).values())
    save_finished(members, views, names, target)
    log.info("%s: %d of %d members, %s weights", target.name, len(members), len(models), chosen)


def by_name(paths: Sequence[str]) -> dict[str, Path]:
    """Model files by the member's name: ``results/{run}/{model}/{recipe}/model.safetensors``."""
    return {"/".join(Path(path).parts[-4:-1]): Path(path) for path in paths}


if "snakemake" in globals():
    export_model(
        models=by_name(snakemake.input.models),
        classes=Path(snakemake.input.classes),
        weights=Path(snakemake.input.weights),
        scores=Path(snakemake.input.scores),
        method=snakemake.params.method,
        views=ViewPlan(**snakemake.params.views),
        target=Path(snakemake.output[0]),
    )

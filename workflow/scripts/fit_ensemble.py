"""Find each member's weight on the validation photos, and average all members' predictions with them."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from fieldmark.artifacts import ArtifactError, read_table, write_table
from fieldmark.ensemble import (
    Generation,
    Objective,
    Weights,
    combine,
    evolve_weights,
    greedy_weights,
    uniform_weights,
)
from fieldmark.evaluation import Score, at, proportion, scores_table, stratified_folds
from fieldmark.methods import AUTO, METHODS, chosen_method
from fieldmark.predictions import TopLists, by_member, lists_to_table, read_lists

log = logging.getLogger("fieldmark")


@dataclass(frozen=True)
class Search:
    """Settings of the evolutionary search, see :func:`fieldmark.ensemble.evolve_weights`."""

    seed: int
    sigma: float
    population: int
    evaluations_per_member: int


def fit_all(objective: Objective, search: Search) -> tuple[dict[str, Weights], list[Generation]]:
    """Weights by every method, and the generations of the evolutionary one."""
    evolved, generations = evolve_weights(objective, **asdict(search))
    found = {
        "uniform": uniform_weights(objective.members),
        "greedy": greedy_weights(objective),
        "evolutionary": evolved,
    }
    return found, generations


def held_out_scores(members: Mapping[str, TopLists], val: pl.DataFrame, classes: int, search: Search) -> list[Score]:
    """Top-1 accuracy of each method, fitted on one half of the validation photos, on both halves.

    Args:
        members: each member's predictions.
        val: validation photos, columns image_id and class_id.
        classes: how many there are.
        search: of the evolutionary method; its seed splits the photos as well.
    """
    fold = stratified_folds(val["class_id"].to_numpy(), 2, search.seed)
    objectives = [_objective(members, val.filter(fold == half), classes) for half in (0, 1)]
    scores = []
    for method, weights in fit_all(objectives[0], search)[0].items():
        for split, objective in zip(("val_fit", "val_report"), objectives, strict=True):
            hits = int(objective.hits(weights[None])[0])
            scores.append(proportion(at("ensemble", split, member=method), "top1", hits, objective.count))
            log.info("%s weights: %d of %d right in %s", method, hits, objective.count, split)
    return scores


def _objective(members: Mapping[str, TopLists], photos: pl.DataFrame, classes: int) -> Objective:
    ids = photos["image_id"].to_list()
    lists = [member.rows_of(ids, name) for name, member in members.items()]
    return Objective(lists, photos["class_id"].to_numpy(), classes)


def fit_ensemble(
    predictions: list[str],
    manifest: str,
    classes: str,
    weights_target: str,
    history_target: str,
    predictions_target: str,
    scores_target: str,
    method: str,
    search: Search,
) -> None:
    """Fit the weights of all methods and predict validation and test photos with those of one.

    The scores come from weights fitted on one half of the validation photos. The weights that are written, and
    used for the predictions, are fitted on all of them; so the predictions of validation photos are seen ones.

    Args:
        predictions: members' tables, all shards of all members.
        manifest: tells the validation photos, their classes, and the test photos.
        classes: the table of classes.
        weights_target: weights of every method, fitted on all validation photos.
        history_target: the evolutionary search on all validation photos.
        predictions_target: the ensemble's predictions.
        scores_target: accuracy of each method on the fitted and on the other half.
        method: whose predictions are written, see :func:`fieldmark.methods.chosen_method`.
        search: settings of the evolutionary search.

    Raises:
        ValueError: if the method is unknown.
        ArtifactError: if there are too few validation photos, or a member lacks a photo.
    """
    if method not in (AUTO, *METHODS):
        raise ValueError(f"ensemble.method: expected one of {', '.join((AUTO, *METHODS))}, found {method!r}")
    photos = read_table("manifest", manifest).filter(pl.col("split").is_in(["val", "test"]))
    count = read_table("classes", classes).height
    val = photos.filter(pl.col("split") == "val").select("image_id", "class_id")
    if val.height < 2 or val["class_id"].null_count():
        raise ArtifactError(
            f"{manifest}: fitting an ensemble needs at least two validation photos, all with a class; found "
            f"{val.height}, {val['class_id'].null_count()} of them without; check the val split of the data"
        )
    ids = photos["image_id"].to_list()
    members = {name: read_lists(paths, count).rows_of(ids, name) for name, paths in by_member(predictions).items()}
    log.info("%d members, %d validation photos, %d classes", len(members), val.height, count)

    scores = scores_table(held_out_scores(members, val, count, search))
    method = chosen_method(method, scores)
    found, generations = fit_all(_objective(members, val, count), search)
    rows = [
        {"method": name, "member": member, "weight": weight}
        for name, weights in found.items()
        for member, weight in zip(members, weights.tolist(), strict=True)
    ]
    write_table(pl.DataFrame(rows), "ensemble_weights", weights_target)
    history = {"generation": pl.Int32, "best": pl.Float32, "mean": pl.Float32}
    write_table(pl.DataFrame([asdict(g) for g in generations], schema=history), "ensemble_history", history_target)
    write_table(
        lists_to_table(*combine(list(members.values()), found[method], count)), "predictions", predictions_target
    )
    write_table(scores, "scores", scores_target)
    log.info("%s written with %s weights", Path(predictions_target).name, method)


if "snakemake" in globals():
    fit_ensemble(
        predictions=list(snakemake.input.predictions),
        manifest=snakemake.input.manifest,
        classes=snakemake.input.classes,
        weights_target=snakemake.output.weights,
        history_target=snakemake.output.history,
        predictions_target=snakemake.output.predictions,
        scores_target=snakemake.output.scores,
        method=snakemake.params.method,
        search=Search(**snakemake.params.search),
    )

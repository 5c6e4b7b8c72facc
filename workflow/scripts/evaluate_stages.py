"""Measure every stage against what is known: validation labels, and the truth table where there is one.

This is the only stage that reads the truth.
"""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from fieldmark.artifacts import ArtifactError, read_table, write_atomically, write_table
from fieldmark.boxes import FULL, box_scores, known_boxes
from fieldmark.class_accuracy import class_table, mistakes
from fieldmark.class_names import spoken_names
from fieldmark.ensemble import combine
from fieldmark.evaluation import (
    FOREIGN,
    Flags,
    Labels,
    Score,
    accuracy_scores,
    at,
    cluster_scores,
    confusion_table,
    filter_scores,
    paired_scores,
    scores_table,
    selection_scores,
    tail_classes,
)
from fieldmark.predictions import Ints, TopLists, by_member, read_lists, round_of
from fieldmark.truth import read_truth

log = logging.getLogger("fieldmark")


def _labels(frame: pl.DataFrame, truth: Mapping[str, int]) -> tuple[pl.DataFrame, Labels]:
    """The rows whose truth is known, and their labels."""
    known = frame.filter(pl.col("image_id").is_in(list(truth)))
    return known, np.array([truth[image_id] for image_id in known["image_id"]], dtype=np.int64)


def round_scores(
    clusters: Iterable[str], kept_clusters: Iterable[str], pseudo_labels: Iterable[str], truth: Mapping[str, int]
) -> list[Score]:
    """Scores of clustering, filtering and selecting in every round, on the unlabeled photos with known truth."""
    scores = []
    tables = {Path(path).parent: path for path in kept_clusters}
    for path in sorted(map(Path, clusters)):
        number = round_of(path.parent.name)
        known, labels = _labels(read_table("clusters", path), truth)
        if not len(labels):
            continue
        cluster = known["cluster"].to_numpy()
        scores += cluster_scores(at("cluster", "unlabeled", number), cluster, labels)
        if path.parent in tables:
            judged = read_table("kept_clusters", tables[path.parent])
            kept = judged.filter(pl.col("kept") & ~pl.col("foreign"))["cluster"].to_numpy()
            # Of those that count as foreign, the guide learns the kept ones alone.
            foreign = judged.filter(pl.col("kept") & pl.col("foreign"))["cluster"].to_numpy()
            scores += filter_scores(at("filter", "unlabeled", number), cluster, labels, kept, foreign)
    for path in sorted(map(Path, pseudo_labels)):
        known, labels = _labels(read_table("pseudo_labels", path), truth)
        if len(labels):
            scores += selection_scores(at("select", "unlabeled", round_of(path.parent.name)), known, labels)
    return scores


def region_scores(manifest: pl.DataFrame, boxes: Iterable[str]) -> list[Score]:
    """How well the key regions fit the boxes of validation photos, and how well the full photos would."""
    rows, truth = known_boxes(manifest.filter(pl.col("split") == "val"))
    if rows.is_empty():
        log.info("no validation photo has a box, so the key regions are not measured")
        return []
    found = rows.select("image_id").join(read_table("boxes", boxes), on="image_id", maintain_order="left")
    if found.height < rows.height:
        raise ArtifactError(f"boxes: expected one for each of {rows.height} validation photos, found {found.height}")
    places = found.select("x", "y", "width", "height").to_numpy()
    measured = {
        "key_region": box_scores(places, found["score"].to_numpy(), truth),
        # The reference that costs nothing; without scores to rank by, it has no precision-recall curve.
        "full_photo": {"mean_iou": box_scores(np.tile(FULL, (len(truth), 1)), np.zeros(len(truth)), truth)["mean_iou"]},
    }
    return [
        replace(at("detection", "val", member=member), metric=metric, value=value, count=len(truth))
        for member, values in measured.items()
        for metric, value in values.items()
    ]


@dataclass(frozen=True)
class Judge:
    """What predictions are measured with.

    Attributes:
        labels: per split, true class ids by photo.
        tail: class ids of the tail.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """

    labels: Mapping[str, Mapping[str, int]]
    tail: Ints
    seed: int
    resamples: int

    def truth(self, split: str) -> Labels:
        """(n,) true class ids of a split's photos."""
        return np.array(list(self.labels[split].values()), dtype=np.int64)

    def predicted(self, lists: TopLists, split: str, name: str) -> Ints:
        """(n, k) predicted class ids of a split's photos, in the order of :meth:`truth`."""
        return lists.rows_of(list(self.labels[split]), name).class_ids

    def scores(self, stage: str, name: str, lists: TopLists) -> list[Score]:
        """Accuracy of one member, or of one way to weight them, on every split."""
        number = round_of(name.split("/")[0]) if "/" in name else None
        return [
            score
            for split in self.labels
            for score in accuracy_scores(
                at(stage, split, number, name),
                self.predicted(lists, split, name),
                self.truth(split),
                self.tail,
                self.seed,
                self.resamples,
            )
        ]

    def right(self, lists: TopLists, split: str, name: str) -> Flags:
        """(n,) whether the first class is right."""
        return self.predicted(lists, split, name)[:, 0] == self.truth(split)


def comparisons(members: Mapping[str, TopLists], ensemble: TopLists, judge: Judge) -> list[Score]:
    """The ensemble, and the single model that is best on validation photos, minus each baseline, on every split."""
    baselines = [name for name in members if name.startswith("baseline/")]
    others = [name for name in members if name not in baselines]
    contenders = {"ensemble": ensemble}
    if others:
        best = max(others, key=lambda name: int(judge.right(members[name], "val", name).sum()))  # ties: first by name
        contenders[best] = members[best]
    return [
        score
        for name, lists in contenders.items()
        for baseline in baselines
        for split in judge.labels
        for score in paired_scores(
            at("comparison", split, member=f"{name} - {baseline}"),
            judge.right(lists, split, name),
            judge.right(members[baseline], split, baseline),
            judge.seed,
            judge.resamples,
        )
    ]


def method_scores(members: Mapping[str, TopLists], weights: pl.DataFrame, classes: int, judge: Judge) -> list[Score]:
    """Accuracy of the ensemble under each method's weights, whether it is the method that is submitted or not."""
    scores = []
    photos = [image_id for labels in judge.labels.values() for image_id in labels]
    for method in weights["method"].unique(maintain_order=True):
        chosen = weights.filter(pl.col("method") == method)
        missing = sorted(set(chosen["member"]) - set(members))
        if missing:
            raise ArtifactError(f"ensemble weights: no predictions of member {missing[0]!r} among the inputs")
        lists = [members[name].rows_of(photos, name) for name in chosen["member"]]
        mean = TopLists(*combine(lists, chosen["weight"].to_numpy(), classes))
        scores += judge.scores("ensemble", method, mean)
    return scores


def known_labels(manifest: pl.DataFrame, truth: Mapping[str, int] | None) -> dict[str, dict[str, int]]:
    """True class ids by split and photo: of all validation photos, and of test photos where the truth has them."""
    val = manifest.filter(pl.col("split") == "val")
    if val.is_empty() or val["class_id"].null_count():
        raise ArtifactError(f"manifest: expected validation photos with a class each, found {val.height} photos")
    labels = {"val": dict(val.select("image_id", "class_id").iter_rows())}
    if truth is not None:
        test = manifest.filter(pl.col("split") == "test")["image_id"].to_list()
        covered = {image_id: truth[image_id] for image_id in test if image_id in truth}
        in_class = {image_id: class_id for image_id, class_id in covered.items() if class_id != FOREIGN}
        foreign = len(covered) - len(in_class)
        log.info("%d of %d test photos scored; %d foreign ones are not", len(in_class), len(test), foreign)
        if in_class:
            labels["test"] = in_class
    return labels


def evaluate_stages(
    manifest: str,
    classes: str,
    rejected: str,
    clusters: list[str],
    kept_clusters: list[str],
    pseudo_labels: list[str],
    boxes: list[str],
    predictions: list[str],
    ensemble_predictions: str,
    ensemble_weights: str,
    truth: str | None,
    scores_target: str,
    confusion_target: str,
    classes_target: str,
    mistakes_target: str,
    seed: int,
    resamples: int,
) -> None:
    """Write a table of scores of all stages, and the ensemble's confusion on test photos (else validation photos).

    From the same photos, for people: the table of classes, worst first, and the photos that are named wrongly.

    Rows of the ensemble: member ``ensemble`` is what is submitted, the others are named after the method of their
    weights. Those weights were fitted on all validation photos, so the ensemble's figures on ``val`` are too good;
    the honest ones without a truth are those of split ``val_report`` beside the ensemble's weights.

    Args:
        manifest: the photos.
        classes: the table of classes.
        rejected: the table of photos that could not be read.
        clusters: one table a round.
        kept_clusters: one table a round.
        pseudo_labels: one table a round.
        boxes: all shards of the key regions; empty if none were looked for.
        predictions: all shards of all members, baselines included.
        ensemble_predictions: the submitted ensemble's.
        ensemble_weights: of every method.
        truth: the CSV that :func:`read_truth` reads; without it only validation photos are scored.
        scores_target: the table of scores.
        confusion_target: the table of confusions.
        classes_target: CSV of :func:`fieldmark.class_accuracy.class_table`.
        mistakes_target: CSV of :func:`fieldmark.class_accuracy.mistakes`.
        seed: of all bootstraps.
        resamples: of each bootstrap.
    """
    photos, known = read_table("manifest", manifest), read_table("classes", classes)
    true_ids = None
    if truth is not None:
        true_ids = read_truth(truth, photos, known, read_table("rejected", rejected)["path"].to_list())
    judge = Judge(known_labels(photos, true_ids), tail_classes(known), seed, resamples)
    unlabeled = set(photos.filter(pl.col("split") == "unlabeled")["image_id"])
    scores = round_scores(
        clusters, kept_clusters, pseudo_labels, {k: v for k, v in (true_ids or {}).items() if k in unlabeled}
    )
    if boxes:
        scores += region_scores(photos, boxes)
    members = {name: read_lists(paths, known.height) for name, paths in by_member(predictions).items()}
    ensemble = read_lists(ensemble_predictions, known.height)
    for name, lists in members.items():
        scores += judge.scores("model", name, lists)
    scores += judge.scores("ensemble", "ensemble", ensemble)
    scores += method_scores(members, read_table("ensemble_weights", ensemble_weights), known.height, judge)
    scores += comparisons(members, ensemble, judge)
    for score in scores:
        if score.metric in ("top1", "top1_difference"):
            log.info("%s %s %s: %s %.4f", score.stage, score.member, score.split, score.metric, score.value)
    write_table(scores_table(scores), "scores", scores_target)
    split = "test" if "test" in judge.labels else "val"
    first = judge.predicted(ensemble, split, "ensemble")[:, 0]
    confusion = confusion_table(judge.truth(split), first)
    write_table(confusion, "confusion", confusion_target)
    last = max(pseudo_labels, key=lambda path: round_of(Path(path).parent.name) or 0, default=None)
    names = spoken_names(known)
    by_class = class_table(confusion, known, None if last is None else read_table("pseudo_labels", last), names)
    write_atomically(Path(classes_target), partial(by_class.write_csv, float_precision=4))
    wrong = mistakes(ensemble.rows_of(list(judge.labels[split]), "ensemble"), judge.truth(split), photos, names)
    write_atomically(Path(mistakes_target), partial(wrong.write_csv, float_precision=4))


if "snakemake" in globals():
    evaluate_stages(
        manifest=snakemake.input.manifest,
        classes=snakemake.input.classes,
        rejected=snakemake.input.rejected,
        clusters=list(snakemake.input.clusters),
        kept_clusters=list(snakemake.input.kept_clusters),
        pseudo_labels=list(snakemake.input.pseudo_labels),
        boxes=list(snakemake.input.boxes),
        predictions=list(snakemake.input.predictions),
        ensemble_predictions=snakemake.input.ensemble_predictions,
        ensemble_weights=snakemake.input.ensemble_weights,
        truth=snakemake.input.truth if snakemake.input.get("truth") else None,
        scores_target=snakemake.output.scores,
        confusion_target=snakemake.output.confusion,
        classes_target=snakemake.output.classes,
        mistakes_target=snakemake.output.mistakes,
        **snakemake.params.settings,
    )

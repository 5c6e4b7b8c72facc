"""Give every unlabeled photo its likeliest labeled class, and select those that are closely related to one."""

from fieldmark.stage import log, start

if "snakemake" in globals():
    start(snakemake)

from collections.abc import Sequence

import numpy as np
import polars as pl

from fieldmark.artifacts import read_table, write_table
from fieldmark.clustering import class_ids_of, learned_photos, paths_by_model
from fieldmark.evidence import class_positions, propagate_scores, read_scores, weigh_evidence
from fieldmark.selection import SelectionRules, loss_weights, select_photos
from fieldmark.taxa import consistent_classes, known_taxa


def select_pseudo_labels(
    manifest: str,
    classes: str,
    scores: Sequence[str],
    target: str,
    coarse_taxa: Sequence[str],
    neighbours: int,
    propagation: float,
    propagation_neighbours: int,
    rules: SelectionRules,
) -> None:
    """Write the ``pseudo_labels`` table: one row per unlabeled photo.

    Args:
        manifest: the photos.
        classes: the labeled classes.
        scores: ``guide_scores`` shards, …/{model}/guide/scores/{shard}.parquet, of one or several models and rounds.
        target: where the table goes.
        coarse_taxa: taxon columns known for unlabeled photos; a photo gets no class of another taxon.
        neighbours: labeled photos that vote on an unlabeled one; 0: the guide alone decides.
        propagation: how much of a photo's probabilities comes from similar photos; 0: they are the guides' own.
        propagation_neighbours: how many similar photos.
        rules: thresholds and quotas.
    """
    photos = learned_photos(manifest)
    class_table = read_table("classes", classes).sort("class_id")
    class_ids = class_table["class_id"].to_numpy().astype(np.int64)
    positions = class_positions(class_ids_of(photos), class_ids, classes)
    guide = read_scores(paths_by_model(scores, "guide/scores"), photos["image_id"], class_ids)
    combination, allowed = consistent_classes(photos, class_table, known_taxa(photos, coarse_taxa))
    if propagation:
        guide = propagate_scores(
            guide, positions, combination, allowed, propagation_neighbours, propagation, in_place=True
        )
    evidence = weigh_evidence(guide, positions, combination, allowed, neighbours)
    labeled_counts = np.bincount(positions[positions >= 0], minlength=len(class_ids))
    selected = select_photos(evidence, labeled_counts, rules)

    per_class = np.bincount(evidence.position[selected], minlength=len(class_ids))
    log.info(
        "selected %d of %d unlabeled photos (guide and neighbours agree on %d), %d to %d a class, scores from %.3f",
        selected.sum(),
        len(selected),
        evidence.agreed.sum(),
        per_class.min(),
        per_class.max(),
        evidence.in_class_score[selected].min(),
    )
    empty = class_table["name"].filter(pl.Series(per_class == 0)).to_list()
    if empty:
        log.warning("no photo selected for %d of %d classes: %s", len(empty), len(class_ids), ", ".join(empty))
    table = pl.DataFrame(
        {
            "image_id": photos.filter(pl.col("split") == "unlabeled")["image_id"],
            "class_id": class_ids[evidence.position],
            "confidence": evidence.confidence,
            "neighbour_agreement": evidence.neighbour_agreement,
            "in_class_score": evidence.in_class_score,
            "selected": selected,
            "weight": loss_weights(evidence, selected),
        }
    )
    write_table(table, "pseudo_labels", target)


if "snakemake" in globals():
    select_pseudo_labels(
        manifest=snakemake.input.manifest,
        classes=snakemake.input.classes,
        scores=list(snakemake.input.scores),
        target=snakemake.output[0],
        rules=SelectionRules(**snakemake.params.rules),
        **snakemake.params.evidence,
    )

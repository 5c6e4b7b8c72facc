"""How well foreign photos are told from in-class ones, beside the standard detectors.

After a finished run with a truth table: ``python -m benchmarks.accuracy.foreign_detectors --configfile
configs/grocery.yaml``.

The standard ones score the unlabeled photos with the run's supervised model: maximum softmax probability (Hendrycks and
Gimpel 2017), energy (Liu et al. 2020: the log-sum-exp of the logits), and the cosine to the nearest labeled photo in
its embedding (Sun et al. 2022). The pipeline's own score is each round's ``in_class_score``; what it would be without
label propagation, or without the guides of earlier rounds, is worked out from the same guides.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.configuration import read_config, truth_file
from benchmarks.tables import markdown
from fieldmark.artifacts import read_table
from fieldmark.clustering import class_ids_of, paths_by_model, photos_of
from fieldmark.context import ContextTables
from fieldmark.evaluation import auroc, auroc_interval
from fieldmark.evidence import class_positions, propagate_scores, read_scores, weigh_evidence
from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import Classifier, load_classifier
from fieldmark.taxa import consistent_classes, known_taxa
from fieldmark.truth import read_truth

Scores = np.ndarray
RECALL = 0.75


def logits_of(
    model: Classifier, photos: pl.DataFrame, boxes: Sequence[Path], hardware: Hardware
) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) unit embeddings and (N, C) logits of the middle view of N photos of a manifest."""
    found: list[np.ndarray] = []

    def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        found.append(output.float().cpu().numpy())

    handle = model.head.register_forward_hook(keep)
    context = ContextTables(photos, boxes).of(photos["image_id"].to_list(), model.architecture)
    embeddings, _ = infer(model, photos["path"].to_list(), ViewPlan(), hardware, context=context)
    handle.remove()
    return embeddings, np.concatenate(found)


def standard_detectors(logits: np.ndarray, embeddings: np.ndarray, labeled: np.ndarray) -> dict[str, Scores]:
    """(N,) scores by detector, higher for photos that look in-class.

    Args:
        logits: (N, C) of the photos.
        embeddings: (N, D) of the photos, unit rows.
        labeled: (M, D) of the labeled photos, unit rows.
    """
    largest = logits.max(axis=1, keepdims=True)
    energy = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    return {
        "maximum softmax": np.exp(largest[:, 0] - energy),
        "energy": energy,
        "nearest labeled photo": (embeddings @ labeled.T).max(axis=1),
    }


def foreign_share(scores: Scores, in_class: np.ndarray, recall: float = RECALL) -> float:
    """Share of foreign photos among those that must be taken to have ``recall`` of the in-class ones."""
    ranked = in_class[np.argsort(-scores, kind="stable")]
    taken = int(np.searchsorted(np.cumsum(ranked), recall * in_class.sum())) + 1
    return float(1 - ranked[:taken].mean())


def table(scores: dict[str, Scores], in_class: np.ndarray) -> str:
    """AUROC with its 95 % interval and the foreign share at the recall, in Markdown."""
    rows = []
    for name, own in scores.items():
        area = auroc(own, in_class)
        low, high = auroc_interval(area, int(in_class.sum()), int((~in_class).sum()))
        rows.append([name, f"{area:.3f}", f"{low:.3f} to {high:.3f}", f"{100 * foreign_share(own, in_class):.1f}"])
    return markdown(["score", "AUROC", "95 % interval", f"foreign at {100 * RECALL:.0f} % recall, %"], rows)


def simpler_scores(
    config: Mapping[str, Any], results: Path, data: Mapping[str, pl.DataFrame], number: int
) -> pl.DataFrame:
    """In-class scores of the unlabeled photos in one round, with parts of the selection left out: one column each."""
    settings, photos = config["select"], photos_of(data["manifest"])
    classes = data["classes"].sort("class_id")
    class_ids = classes["class_id"].to_numpy().astype(np.int64)
    positions = class_positions(class_ids_of(photos), class_ids, "classes")
    taxa = known_taxa(photos, config["data"]["coarse_taxa"])
    combination, allowed = consistent_classes(photos, classes, taxa)
    variants: dict[str, tuple[Sequence[int], float]] = {"no propagation": (range(number + 1), 0.0)}
    if number:
        variants |= {"own guide": ([number], settings["propagation"]), "own guide, no propagation": ([number], 0.0)}
    columns = {}
    for name, (rounds, share) in variants.items():
        shards = [path for r in rounds for path in (results / f"round{r}").glob("*/guide/scores/*.parquet")]
        scores = read_scores(paths_by_model(shards, "guide/scores"), photos["image_id"], class_ids)
        if share:
            near = settings["propagation_neighbours"]
            scores = propagate_scores(scores, positions, combination, allowed, near, share)
        evidence = weigh_evidence(scores, positions, combination, allowed, settings["neighbours"])
        columns[name] = evidence.in_class_score
    return photos.filter(split="unlabeled").select("image_id").with_columns(**columns)


def detector_scores(config: Mapping[str, Any], results: Path, threads: int) -> tuple[dict[str, Scores], np.ndarray]:
    """Scores of the unlabeled photos by detector, for a finished run, and (N,) whether the photos are in-class."""
    data = {
        name: read_table(name, results / "data" / f"{name}.parquet") for name in ("manifest", "classes", "rejected")
    }
    rejected = data["rejected"]["path"].to_list()
    truth = read_truth(truth_file(config, results), data["manifest"], data["classes"], rejected)
    photos = data["manifest"].filter(pl.col("image_id").is_in(list(truth)), split="unlabeled").sort("image_id")
    in_class = np.array([truth[image_id] >= 0 for image_id in photos["image_id"]])
    name, model = next(iter(config["models"].items()))
    supervised = load_classifier(results / "baseline" / name / model["recipes"][0] / "model.safetensors")
    hardware = Hardware.of_machine(precision=config["compute"]["precision"], decode_threads=threads)
    boxes = sorted((results / "detection" / "boxes").glob("*.parquet"))
    embeddings, logits = logits_of(supervised, photos, boxes, hardware)
    labeled, _ = logits_of(supervised, data["manifest"].filter(split="labeled"), boxes, hardware)
    scores = standard_detectors(logits, embeddings, labeled)
    for number in range(config["rounds"]):
        own = read_table("pseudo_labels", results / f"round{number}" / "pseudo_labels.parquet")
        own = photos.select("image_id").join(own, on="image_id", how="left", maintain_order="left")
        scores[f"in-class score, round {number}"] = own["in_class_score"].to_numpy()
        simpler = simpler_scores(config, results, data, number)
        simpler = photos.select("image_id").join(simpler, on="image_id", how="left", maintain_order="left")
        scores |= {f"round {number}, {name}": simpler[name].to_numpy() for name in simpler.columns[1:]}
    return scores, in_class


def main() -> None:
    """Read the configuration, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", action="append", default=[], help="as for Snakemake, over config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(options.threads)
    config = read_config(options.configfile)
    print(table(*detector_scores(config, options.results, options.threads)))


if __name__ == "__main__":
    main()

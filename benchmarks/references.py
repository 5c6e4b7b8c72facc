"""Models to compare the pipeline with, trained by the same recipe; run after the workflow, with its configuration.

``oracle``: the true labels of every in-class unlabeled photo. The gap between supervised fine-tuning and this is what
unlabeled photos can be worth; the pipeline's share of it is the fair measure of the pipeline.

``long``: supervised fine-tuning for as many steps as a whole round of the pipeline takes, pre-training to fine-tuning.

``naive``: pseudo-labels from the supervised model wherever it is at least 95 % sure, foreign photos or not.

Each leaves its predictions of the test photos in ``results/references/``, for :mod:`benchmarks.seeds`::

    python -m benchmarks.references --configfile configs/grocery.yaml --reference oracle

They read the truth, so they are no part of the workflow.
"""

import argparse
import importlib.util
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from snakemake.utils import update_config

from fieldmark.artifacts import read_table, write_table
from fieldmark.config import model_settings, resolve, stage_settings
from fieldmark.evaluation import wilson_interval
from fieldmark.fitting import ModelSettings, Plan, StageSettings
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import load_classifier
from fieldmark.predictions import to_table
from fieldmark.training import Hardware
from fieldmark.truth import read_truth
from fieldmark.views import Augmentation

PROJECT = Path(__file__).resolve().parent.parent


def load_script(name: str) -> ModuleType:
    """A workflow script as a module."""
    spec = importlib.util.spec_from_file_location(name, PROJECT / "workflow" / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def true_labels(manifest: pl.DataFrame, truth: dict[str, int]) -> pl.DataFrame:
    """A ``pseudo_labels`` table that is right about everything."""
    photos = manifest.filter(pl.col("split") == "unlabeled").select("image_id")
    labels = pl.Series("class_id", [truth[image_id] for image_id in photos["image_id"]])
    return photos.with_columns(labels).with_columns(
        pl.lit(1.0).alias("confidence"),
        pl.lit(1.0).alias("neighbour_agreement"),
        pl.lit(1.0).alias("in_class_score"),
        pl.lit(1.0).alias("weight"),
        (pl.col("class_id") >= 0).alias("selected"),
    )


def sure_labels(manifest: pl.DataFrame, supervised: Path, hardware: Hardware, threshold: float = 0.95) -> pl.DataFrame:
    """A ``pseudo_labels`` table of what a supervised model is sure of."""
    photos = manifest.filter(pl.col("split") == "unlabeled").sort("image_id")
    _, probabilities = infer(load_classifier(supervised), photos["path"].to_list(), ViewPlan(flip=True), hardware)
    confidence = pl.Series("confidence", probabilities.max(axis=1))
    return photos.select("image_id").with_columns(
        pl.Series("class_id", probabilities.argmax(axis=1)).cast(pl.Int32),
        confidence,
        pl.lit(1.0).alias("neighbour_agreement"),
        confidence.alias("in_class_score"),
        pl.lit(1.0).alias("weight"),
        (confidence >= threshold).alias("selected"),
    )


def steps_of(settings: dict[str, Any]) -> int:
    """Optimizer steps of a stage or recipe."""
    return sum(phase["steps"] for phase in settings["phases"])


def recipe_of(config: dict[str, Any], model: str, recipe: str, reference: str) -> dict[str, Any]:
    """The recipe as configured; for ``long``, with as many steps in all as a round takes."""
    settings = stage_settings(config, model, recipe)
    if reference == "long":
        own = steps_of(settings)
        whole = own + sum(steps_of(stage_settings(config, model, stage)) for stage in ("pretrain", "guide", "refine"))
        for phase in settings["phases"]:
            phase["steps"] = round(phase["steps"] * whole / own)
    return settings


def run_reference(
    config: dict[str, Any], results: Path, reference: str, model: str, recipe: str, seed: int, threads: int
) -> None:
    """Train, predict the test photos, and print top-1."""
    tables = {name: results / "data" / f"{name}.parquet" for name in ("manifest", "classes", "rejected")}
    manifest, classes = read_table("manifest", tables["manifest"]), read_table("classes", tables["classes"])
    rejected = read_table("rejected", tables["rejected"])["path"].to_list()
    truth = read_truth(config["data"]["truth"], manifest, classes, rejected)
    folder = results / "references" / reference / model / recipe
    hardware = Hardware(precision=config["compute"]["precision"], cache_mb=2000, decode_threads=threads)
    labels = folder / "pseudo_labels.parquet"
    if reference == "oracle":
        write_table(true_labels(manifest, truth), "pseudo_labels", labels)
    elif reference == "naive":
        supervised = results / "baseline" / model / recipe / "model.safetensors"
        write_table(sure_labels(manifest, supervised, hardware), "pseudo_labels", labels)
    settings = ModelSettings(**model_settings(config, model))
    load_script("finetune_classifier").finetune_classifier(
        manifest=tables["manifest"],
        classes=tables["classes"],
        pseudo_labels=None if reference == "long" else labels,
        source=settings.weights,
        plan=Plan(
            model=settings,
            stage=StageSettings(**recipe_of(config, model, recipe, reference)),
            augmentation=Augmentation(**config["augmentation"]),
            hardware=hardware,
            seed=seed,
            code=reference,
        ),
        weights=folder / "model.safetensors",
        history=folder / "history.parquet",
    )
    test = manifest.filter((pl.col("split") == "test") & pl.col("image_id").is_in(list(truth))).sort("image_id")
    views = ViewPlan(**{key: value for key, value in config["predict"].items() if key != "top_k"})
    _, probabilities = infer(load_classifier(folder / "model.safetensors"), test["path"].to_list(), views, hardware)
    write_table(
        to_table(test["image_id"].to_list(), probabilities, config["predict"]["top_k"]),
        "predictions",
        folder / "predictions.parquet",
    )
    known = np.array([truth[image_id] for image_id in test["image_id"]])
    hits, count = int((probabilities.argmax(axis=1) == known)[known >= 0].sum()), int((known >= 0).sum())
    low, high = wilson_interval(hits, count)
    print(f"{reference} {model}/{recipe}: top-1 on test {hits / count:.3f} ({low:.3f} to {high:.3f}), {count} photos")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, action="append", default=[], help="overrides of config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of a finished run")
    parser.add_argument("--reference", choices=["oracle", "long", "naive"], default="oracle")
    parser.add_argument("--model", help="default: the first")
    parser.add_argument("--recipe", help="default: the model's first")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    config: dict[str, Any] = {}
    for path in [PROJECT / "config.yaml", *options.configfile]:
        update_config(config, yaml.safe_load(path.read_text(encoding="utf-8")))
    resolve(config)
    model = options.model or next(iter(config["models"]))
    recipe = options.recipe or config["models"][model]["recipes"][0]
    run_reference(config, options.results, options.reference, model, recipe, config["seed"], options.threads)


if __name__ == "__main__":
    main()

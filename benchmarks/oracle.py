"""How good could it get? Fine-tune with the true labels of every in-class unlabeled photo, and score on test.

The gap between supervised fine-tuning and this oracle is what unlabeled photos can be worth; the pipeline's share of
it is the fair measure of the pipeline. Run it after the workflow, with the same configuration::

    python -m benchmarks.oracle --configfile configs/grocery.yaml

It starts from pretrained weights, like the supervised baseline, and takes as many steps. It reads the truth, so it is
no part of the workflow.
"""

import argparse
import importlib.util
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import yaml
from snakemake.utils import update_config

from fieldmark.artifacts import read_table, write_table
from fieldmark.config import model_settings, resolve, stage_settings
from fieldmark.evaluation import wilson_interval
from fieldmark.fitting import ModelSettings, Plan, StageSettings
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import load_classifier
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
        (pl.col("class_id") >= 0).alias("selected"),
    )


def run_oracle(config: dict[str, Any], results: Path, model: str, recipe: str, seed: int, threads: int) -> None:
    """Train, predict and print top-1 on the test photos."""
    tables = {name: results / "data" / f"{name}.parquet" for name in ("manifest", "classes", "rejected")}
    manifest, classes = read_table("manifest", tables["manifest"]), read_table("classes", tables["classes"])
    rejected = read_table("rejected", tables["rejected"])["path"].to_list()
    truth = read_truth(config["data"]["truth"], manifest, classes, rejected)
    folder = results / "oracle" / model / recipe
    write_table(true_labels(manifest, truth), "pseudo_labels", folder / "true_labels.parquet")
    hardware = Hardware(precision=config["compute"]["precision"], cache_mb=2000, decode_threads=threads)
    settings = ModelSettings.of(model_settings(config, model))
    plan = Plan(
        model=settings,
        stage=StageSettings(**stage_settings(config, model, recipe)),
        augmentation=Augmentation(**config["augmentation"]),
        hardware=hardware,
        seed=seed,
        code="oracle",
    )
    load_script("finetune_classifier").finetune_classifier(
        manifest=tables["manifest"],
        classes=tables["classes"],
        pseudo_labels=folder / "true_labels.parquet",
        source=settings.weights,
        plan=plan,
        weights=folder / "model.safetensors",
        history=folder / "history.parquet",
    )
    test = manifest.filter((pl.col("split") == "test") & pl.col("image_id").is_in(list(truth)))
    views = ViewPlan(**{key: value for key, value in config["predict"].items() if key != "top_k"})
    _, probabilities = infer(load_classifier(folder / "model.safetensors"), test["path"].to_list(), views, hardware)
    labels = np.array([truth[image_id] for image_id in test["image_id"]])
    hits = int((probabilities.argmax(axis=1) == labels)[labels >= 0].sum())
    count = int((labels >= 0).sum())
    low, high = wilson_interval(hits, count)
    print(f"oracle {model}/{recipe}: top-1 on test {hits / count:.3f} ({low:.3f} to {high:.3f}), {count} photos")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, action="append", default=[], help="overrides of config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of a finished run")
    parser.add_argument("--model", help="default: the first")
    parser.add_argument("--recipe", help="default: the model's first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config: dict[str, Any] = {}
    for path in [PROJECT / "config.yaml", *options.configfile]:
        update_config(config, yaml.safe_load(path.read_text(encoding="utf-8")))
    resolve(config)
    model = options.model or next(iter(config["models"]))
    recipe = options.recipe or config["models"][model]["recipes"][0]
    run_oracle(config, options.results, model, recipe, options.seed, options.threads)


if __name__ == "__main__":
    main()

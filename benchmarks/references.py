"""Models to compare the pipeline with, trained by the same recipe; run after the workflow, with its configuration.

``oracle``: the true labels of every in-class unlabeled photo. The gap between supervised fine-tuning and this is what
unlabeled photos can be worth; the pipeline's share of it is the fair measure of the pipeline.

``long``: supervised fine-tuning for as many steps as lead to the pipeline's last model, through all rounds.

``naive``: pseudo-labels from the supervised model wherever it is at least 95 % sure, foreign photos or not.

``fixmatch``, ``freematch``: see :mod:`benchmarks.consistency`; as many steps as ``long``.

Each leaves its predictions of the test photos in ``results/references/``, for :mod:`benchmarks.seeds`::

    python -m benchmarks.references --configfile configs/grocery.yaml --reference oracle

They read the truth, so they are no part of the workflow.
"""

import argparse
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from snakemake.utils import update_config

from benchmarks.consistency import AdaptiveThreshold, FixedThreshold, Photos, one_phase, train_consistency
from fieldmark.artifacts import read_table, write_table
from fieldmark.config import model_settings, resolve, stage_settings
from fieldmark.evaluation import wilson_interval
from fieldmark.fitting import ModelSettings, Plan, StageSettings
from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import Architecture, build_classifier, load_classifier, save_classifier
from fieldmark.phases import Phase
from fieldmark.predictions import to_table
from fieldmark.truth import read_truth
from fieldmark.views import Augmentation

PROJECT = Path(__file__).resolve().parent.parent
THRESHOLDS: dict[str, Callable[[int], FixedThreshold | AdaptiveThreshold]] = {
    "fixmatch": lambda classes: FixedThreshold(),
    "freematch": AdaptiveThreshold,
}
AS_LONG_AS_THE_PIPELINE = ("long", *THRESHOLDS)
NAMES = ("oracle", "naive", *AS_LONG_AS_THE_PIPELINE)


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


@dataclass(frozen=True)
class Reference:
    """One model to compare with.

    Attributes:
        config: the resolved configuration.
        results: folder of a finished run.
        name: one of :data:`NAMES`.
        model: of the configuration.
        recipe: of the configuration.
        threads: for decoding.
    """

    config: dict[str, Any]
    results: Path
    name: str
    model: str
    recipe: str
    threads: int

    @property
    def folder(self) -> Path:
        """Where the model and its predictions go."""
        return self.results / "references" / self.name / self.model / self.recipe

    @property
    def hardware(self) -> Hardware:
        """The CPU, with the configured precision."""
        return Hardware(precision=self.config["compute"]["precision"], cache_mb=2000, decode_threads=self.threads)

    def table(self, name: str) -> Path:
        """A table of the run's data."""
        return self.results / "data" / f"{name}.parquet"

    def pipeline_steps(self) -> int:
        """Steps that lead to the last round's model of the recipe: supervised start, and every stage of every round."""
        first = self.config["models"][self.model]["recipes"][0]
        start = [first] if self.config["start"] == "supervised" else []
        rounds = self.config["rounds"]
        stages = [*start, *["pretrain", "guide", "refine"] * rounds, *[first] * (rounds - 1), self.recipe]
        return sum(steps_of(stage_settings(self.config, self.model, stage)) for stage in stages)

    def recipe_settings(self) -> dict[str, Any]:
        """The recipe; with as many steps in all as the pipeline takes, where the reference is to match that."""
        settings = stage_settings(self.config, self.model, self.recipe)
        if self.name in AS_LONG_AS_THE_PIPELINE:
            factor = self.pipeline_steps() / steps_of(settings)
            for phase in settings["phases"]:
                phase["steps"] = round(phase["steps"] * factor)
        return settings

    def train(self, manifest: pl.DataFrame, truth: dict[str, int]) -> None:
        """Leave the model in :attr:`folder`."""
        if self.name in THRESHOLDS:
            self._train_consistency(manifest)
            return
        labels = self.folder / "pseudo_labels.parquet"
        if self.name == "oracle":
            write_table(true_labels(manifest, truth), "pseudo_labels", labels)
        elif self.name == "naive":
            supervised = self.results / "baseline" / self.model / self.recipe / "model.safetensors"
            write_table(sure_labels(manifest, supervised, self.hardware), "pseudo_labels", labels)
        settings = ModelSettings.of(model_settings(self.config, self.model))
        load_script("finetune_classifier").finetune_classifier(
            manifest=self.table("manifest"),
            classes=self.table("classes"),
            pseudo_labels=None if self.name == "long" else labels,
            source=settings.weights,
            plan=Plan(
                model=settings,
                stage=StageSettings(**self.recipe_settings()),
                augmentation=Augmentation(**self.config["augmentation"]),
                hardware=self.hardware,
                seed=self.config["seed"],
                code=self.name,
            ),
            weights=self.folder / "model.safetensors",
            history=self.folder / "history.parquet",
        )

    def _train_consistency(self, manifest: pl.DataFrame) -> None:
        settings = ModelSettings.of(model_settings(self.config, self.model))
        classes = read_table("classes", self.table("classes")).height
        architecture = Architecture(settings.backbone, settings.embedding, classes, 0, False, settings.image_size)
        seed = self.config["seed"]
        model = build_classifier(architecture, settings.weights, seed=seed, dropout=settings.dropout)
        labeled, unlabeled = (manifest.filter(split=split).sort("image_id") for split in ("labeled", "unlabeled"))
        target = labeled["class_id"].to_numpy().astype(np.int64)
        photos = Photos(labeled["path"].to_list(), target, unlabeled["path"].to_list())
        phases = []
        for phase in self.recipe_settings()["phases"]:
            phases.append(Phase(**{key: value for key, value in phase.items() if key not in ("balanced", "shares")}))
        strong = Augmentation(**self.config["augmentation"])
        train_consistency(model, photos, one_phase(phases), strong, THRESHOLDS[self.name](classes), seed)
        save_classifier(model, self.folder / "model.safetensors")

    def run(self) -> None:
        """Train, predict the test photos, and print top-1."""
        manifest, classes = (read_table(name, self.table(name)) for name in ("manifest", "classes"))
        rejected = read_table("rejected", self.table("rejected"))["path"].to_list()
        truth = read_truth(self.config["data"]["truth"], manifest, classes, rejected)
        self.train(manifest, truth)
        test = manifest.filter((pl.col("split") == "test") & pl.col("image_id").is_in(list(truth))).sort("image_id")
        views = ViewPlan(**{key: value for key, value in self.config["predict"].items() if key != "top_k"})
        model = load_classifier(self.folder / "model.safetensors")
        _, probabilities = infer(model, test["path"].to_list(), views, self.hardware)
        table = to_table(test["image_id"].to_list(), probabilities, self.config["predict"]["top_k"])
        write_table(table, "predictions", self.folder / "predictions.parquet")
        known = np.array([truth[image_id] for image_id in test["image_id"]])
        right = (probabilities.argmax(axis=1) == known)[known >= 0]
        low, high = wilson_interval(int(right.sum()), len(right))
        print(
            f"{self.name} {self.model}/{self.recipe}: top-1 on test {right.mean():.3f} ({low:.3f} to {high:.3f}), "
            f"{len(right)} photos"
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, action="append", default=[], help="overrides of config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of a finished run")
    parser.add_argument("--reference", choices=NAMES, default="oracle")
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
    Reference(config, options.results, options.reference, model, recipe, options.threads).run()


if __name__ == "__main__":
    main()

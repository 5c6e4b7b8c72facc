"""Models to compare the pipeline with, trained by the same recipe; run after the workflow, with its configuration.

``oracle``: the true labels of every in-class unlabeled photo. The gap between supervised fine-tuning and this is what
unlabeled photos can be worth; the pipeline's share of it is the fair measure of the pipeline. ``long_oracle``: for as
many steps as lead to the pipeline's last model, through all rounds.

``long``: supervised fine-tuning for as many steps as that.

``centroid``: nearest class mean of pretrained features (SimpleShot, Wang et al. 2019); nothing is trained.

``taxonomy``: supervised, with the marginal loss on the coarse taxa of the unlabeled photos (Su and Maji 2021).

``naive``: pseudo-labels from the supervised model for the photos that it is surest of, foreign or not, as many as the
pipeline selects in its last round. (A fixed threshold would say little: label smoothing keeps models below .95 or so.)
``long_naive``: the same photos, trained on for so long that it is as many steps as ``long`` together with that model.

``fixmatch``, ``freematch``: see :mod:`benchmarks.accuracy.consistency`; from the supervised model on, whose names for
photos are better from the first step, and together as many steps as ``long``. With ``_in_class`` in the name the truth
has taken the foreign photos out: the closed set that both were published for.

``simclr``: supervised fine-tuning from weights pre-trained as in :mod:`benchmarks.accuracy.contrastive`; together as
many steps as ``long``.

``after_pretrain``, ``after_refine``: no baselines, but the pipeline half-way: fine-tuning on labels alone from what
round 0 learned of its clusters, and from the refined model.

Each leaves its predictions of the test photos in ``results/references/``::

    python -m benchmarks.accuracy.references --configfile configs/grocery.yaml --reference oracle

They read the truth, so they are no part of the workflow. FixMatch, FreeMatch and SimCLR see photos alone, without
places, dates and crops.
"""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.accuracy.consistency import AdaptiveThreshold, FixedThreshold, Photos, one_phase, train_consistency
from benchmarks.accuracy.contrastive import train_contrastive
from benchmarks.accuracy.methods import AS_LONG_AS_THE_PIPELINE, CLOSED_SET, HALF_WAY, REFERENCES
from benchmarks.configuration import read_config, truth_file
from fieldmark.artifacts import read_table, write_table
from fieldmark.clustering import unit_rows
from fieldmark.config import model_settings, stage_settings
from fieldmark.context import ContextTables
from fieldmark.evaluation import wilson_interval
from fieldmark.fitting import ModelSettings, Plan, StageSettings
from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import Architecture, Classifier, build_classifier, load_classifier, save_classifier
from fieldmark.phases import Phase
from fieldmark.predictions import to_table
from fieldmark.truth import read_truth
from fieldmark.views import Augmentation
from workflow.scripts.finetune_classifier import finetune_classifier

THRESHOLDS: dict[str, Callable[[int, float], FixedThreshold | AdaptiveThreshold]] = {
    "fixmatch": FixedThreshold,
    "freematch": lambda classes, _: AdaptiveThreshold(classes),
}


def true_labels(manifest: pl.DataFrame, truth: dict[str, int]) -> pl.DataFrame:
    """A ``pseudo_labels`` table that is right about everything; photos of unknown truth are not selected."""
    photos = manifest.filter(pl.col("split") == "unlabeled").select("image_id")
    labels = pl.Series("class_id", [truth.get(image_id, -1) for image_id in photos["image_id"]])
    return photos.with_columns(labels).with_columns(
        pl.lit(1.0).alias("confidence"),
        pl.lit(1.0).alias("neighbour_agreement"),
        pl.lit(1.0).alias("in_class_score"),
        pl.lit(1.0).alias("weight"),
        (pl.col("class_id") >= 0).alias("selected"),
    )


def in_class_photos(unlabeled: pl.DataFrame, truth: dict[str, int]) -> pl.DataFrame:
    """The unlabeled photos that show a labeled class, in their order."""
    known = [image_id for image_id in unlabeled["image_id"] if truth.get(image_id, -1) >= 0]
    return unlabeled.filter(pl.col("image_id").is_in(known))


def surest_labels(
    manifest: pl.DataFrame, supervised: Path, hardware: Hardware, count: int, boxes: Sequence[str] = ()
) -> pl.DataFrame:
    """A ``pseudo_labels`` table of the ``count`` photos that a supervised model is surest of."""
    photos = manifest.filter(pl.col("split") == "unlabeled").sort("image_id")
    model = load_classifier(supervised)
    context = ContextTables(manifest, boxes).of(photos["image_id"].to_list(), model.architecture)
    _, probabilities = infer(model, photos["path"].to_list(), ViewPlan(flip=True), hardware, context=context)
    confidence = pl.Series("confidence", probabilities.max(axis=1))
    rank = confidence.rank("ordinal", descending=True)
    return photos.select("image_id").with_columns(
        pl.Series("class_id", probabilities.argmax(axis=1)).cast(pl.Int32),
        confidence,
        pl.lit(1.0).alias("neighbour_agreement"),
        confidence.alias("in_class_score"),
        pl.lit(1.0).alias("weight"),
        (rank <= count).alias("selected"),
    )


def nearest_centroid(features: Path, manifest: pl.DataFrame, classes: int, test: pl.DataFrame) -> np.ndarray:
    """(N, C) probabilities of N test photos from their cosines to the means of centred, unit features of each class."""
    embeddings = pl.concat([read_table("features", shard) for shard in sorted(features.glob("*.parquet"))])
    rows = dict(zip(embeddings["image_id"], range(embeddings.height), strict=True))
    labeled = manifest.filter(split="labeled")
    raw = embeddings["embedding"].to_numpy().astype(np.float32)
    known = raw[[rows[image_id] for image_id in labeled["image_id"]]]
    centre = known.mean(axis=0)
    known = unit_rows(known - centre)
    of = labeled["class_id"].to_numpy()
    means = unit_rows(np.stack([known[of == label].mean(axis=0) for label in range(classes)]))
    cosine = unit_rows(raw[[rows[image_id] for image_id in test["image_id"]]] - centre) @ means.T
    likely = np.exp(10 * cosine)
    return likely / likely.sum(axis=1, keepdims=True)


def steps_of(settings: Mapping[str, Any]) -> int:
    """Optimizer steps of a stage or recipe."""
    return sum(phase["steps"] for phase in settings["phases"])


def pipeline_steps(config: Mapping[str, Any], model: str, recipe: str, rounds: int) -> int:
    """Steps that lead to the last of some rounds' model of a recipe: supervised start, and every stage of every round.

    Args:
        config: the resolved configuration.
        model: of the configuration.
        recipe: of the configuration.
        rounds: how many are run; 0: the steps of the supervised model itself.
    """
    first = config["models"][model]["recipes"][0]
    start = [first] if config["start"] == "supervised" and rounds else []
    stages = [*start, *["pretrain", "guide", "refine"] * rounds, *[first] * (rounds - 1), recipe]
    return sum(steps_of(stage_settings(config, model, stage)) for stage in stages)


def scaled(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """A stage with as many steps in all, in the same proportions."""
    factor = steps / steps_of(settings)
    return {**settings, "phases": [{**phase, "steps": round(phase["steps"] * factor)} for phase in settings["phases"]]}


@dataclass(frozen=True)
class Reference:
    """One model to compare with.

    Attributes:
        config: the resolved configuration.
        results: folder of a finished run.
        name: one of :data:`benchmarks.accuracy.methods.REFERENCES`.
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
    def supervised(self) -> Path:
        """The run's supervised model of the same recipe."""
        return self.results / "baseline" / self.model / self.recipe / "model.safetensors"

    @property
    def hardware(self) -> Hardware:
        """A GPU, if this machine has any, or the CPU, with the configured precision."""
        precision = self.config["compute"]["precision"]
        return Hardware.of_machine(precision=precision, cache_mb=2000, decode_threads=self.threads)

    def table(self, name: str) -> Path:
        """A table of the run's data."""
        return self.results / "data" / f"{name}.parquet"

    @property
    def boxes(self) -> list[str]:
        """The run's key regions, if it looked for any."""
        return [str(path) for path in sorted((self.results / "detection" / "boxes").glob("*.parquet"))]

    @property
    def total_steps(self) -> int:
        """Steps of the last round's model, through all rounds."""
        return pipeline_steps(self.config, self.model, self.recipe, self.config["rounds"])

    def recipe_settings(self) -> dict[str, Any]:
        """The recipe, with what the reference changes in it."""
        settings = stage_settings(self.config, self.model, self.recipe)
        if self.name == "taxonomy":
            other = {"shares": {"labeled": 0.5, "unlabeled": 0.5}, "marginal_weight": 1.0}
            return {**settings, "phases": [{**phase, **other} for phase in settings["phases"]]}
        if self.name in AS_LONG_AS_THE_PIPELINE and self.name != "simclr":
            return scaled(settings, self.total_steps - (steps_of(settings) if self.name == "long_naive" else 0))
        return settings

    def labels(self, manifest: pl.DataFrame, truth: dict[str, int]) -> Path | None:
        """The table of pseudo-labels that the reference learns beside the labels, if it does."""
        table = None
        if self.name in ("oracle", "long_oracle"):
            table = true_labels(manifest, truth)
        elif self.name in ("naive", "long_naive"):
            last = self.results / f"round{self.config['rounds'] - 1}" / "pseudo_labels.parquet"
            count = int(read_table("pseudo_labels", last)["selected"].sum())
            table = surest_labels(manifest, self.supervised, self.hardware, count, self.boxes)
        if table is None:
            return None
        write_table(table, "pseudo_labels", self.folder / "pseudo_labels.parquet")
        return self.folder / "pseudo_labels.parquet"

    def source(self, manifest: pl.DataFrame) -> str:
        """The weights that the recipe starts from."""
        if self.name in HALF_WAY:
            return str(self.results / "round0" / self.model / HALF_WAY[self.name] / "model.safetensors")
        if self.name != "simclr":
            return ModelSettings.of(model_settings(self.config, self.model)).weights
        model, phase = self._untrained(1), self._one_phase()
        photos = manifest.filter(pl.col("split").is_in(["labeled", "unlabeled"])).sort("image_id")
        phase = replace(phase, steps=self.total_steps - phase.steps)
        strong = Augmentation(**self.config["augmentation"])
        train_contrastive(model, photos["path"].to_list(), phase, strong, self.hardware, self.config["seed"])
        save_classifier(model, self.folder / "pretrained.safetensors")
        return str(self.folder / "pretrained.safetensors")

    def train(self, manifest: pl.DataFrame, truth: dict[str, int]) -> None:
        """Leave the model in :attr:`folder`."""
        if CLOSED_SET.get(self.name, self.name) in THRESHOLDS:
            self._train_consistency(manifest, truth)
            return
        finetune_classifier(
            manifest=self.table("manifest"),
            classes=self.table("classes"),
            pseudo_labels=self.labels(manifest, truth),
            source=self.source(manifest),
            plan=Plan(
                model=ModelSettings.of(model_settings(self.config, self.model)),
                stage=StageSettings(**self.recipe_settings()),
                augmentation=Augmentation(**self.config["augmentation"]),
                hardware=self.hardware,
                seed=self.config["seed"],
                code=self.name,
            ),
            weights=self.folder / "model.safetensors",
            history=self.folder / "history.parquet",
            boxes=self.boxes,
        )

    def _untrained(self, classes: int) -> Classifier:
        settings = ModelSettings.of(model_settings(self.config, self.model))
        architecture = Architecture(settings.backbone, settings.embedding, classes, 0, False, settings.image_size)
        return build_classifier(architecture, settings.weights, seed=self.config["seed"], dropout=settings.dropout)

    def _one_phase(self) -> Phase:
        phases = self.recipe_settings()["phases"]
        own = [{key: value for key, value in phase.items() if key not in ("balanced", "shares")} for phase in phases]
        return one_phase([Phase(**phase) for phase in own])

    def _train_consistency(self, manifest: pl.DataFrame, truth: dict[str, int]) -> None:
        classes = read_table("classes", self.table("classes")).height
        model, phase = load_classifier(self.supervised), self._one_phase()
        phase = replace(phase, steps=phase.steps - steps_of(stage_settings(self.config, self.model, self.recipe)))
        labeled, unlabeled = (manifest.filter(split=split).sort("image_id") for split in ("labeled", "unlabeled"))
        if self.name in CLOSED_SET:
            unlabeled = in_class_photos(unlabeled, truth)
        target = labeled["class_id"].to_numpy().astype(np.int64)
        photos = Photos(labeled["path"].to_list(), target, unlabeled["path"].to_list())
        strong = Augmentation(**self.config["augmentation"])
        threshold = THRESHOLDS[CLOSED_SET.get(self.name, self.name)](classes, phase.label_smoothing)
        train_consistency(model, photos, phase, strong, threshold, self.hardware, self.config["seed"])
        save_classifier(model, self.folder / "model.safetensors")

    def predict(self, manifest: pl.DataFrame, test: pl.DataFrame, classes: int) -> np.ndarray:
        """(N, C) probabilities of N test photos."""
        if self.name == "centroid":
            return nearest_centroid(self.results / "baseline" / self.model / "features", manifest, classes, test)
        views = ViewPlan(**{key: value for key, value in self.config["predict"].items() if key != "top_k"})
        model = load_classifier(self.folder / "model.safetensors")
        context = ContextTables(manifest, self.boxes).of(test["image_id"].to_list(), model.architecture)
        return infer(model, test["path"].to_list(), views, self.hardware, context=context)[1]

    def run(self) -> None:
        """Train, predict the test photos, and print top-1."""
        manifest, classes = (read_table(name, self.table(name)) for name in ("manifest", "classes"))
        rejected = read_table("rejected", self.table("rejected"))["path"].to_list()
        truth = read_truth(truth_file(self.config, self.results), manifest, classes, rejected)
        if self.name != "centroid":
            self.train(manifest, truth)
        test = manifest.filter((pl.col("split") == "test") & pl.col("image_id").is_in(list(truth))).sort("image_id")
        probabilities = self.predict(manifest, test, classes.height)
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
    parser.add_argument("--reference", choices=REFERENCES, default="oracle")
    parser.add_argument("--model", help="default: the first")
    parser.add_argument("--recipe", help="default: the model's first")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    config = read_config(options.configfile)
    model = options.model or next(iter(config["models"]))
    recipe = options.recipe or config["models"][model]["recipes"][0]
    Reference(config, options.results, options.reference, model, recipe, options.threads).run()


if __name__ == "__main__":
    main()

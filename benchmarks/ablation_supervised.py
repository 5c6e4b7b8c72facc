"""What each part of the supervised track is worth: ``python -m benchmarks.ablation_supervised``.

A ladder of models, each with one part more than the one before: softmax, ArcFace, place and date, the crop of the key
region, augmentation; then test-time views, then the ways to weight all of these models. Same backbone, recipe and
photos; a model that passes two images through the backbone takes half the steps, so that compute is the same. Beside
the ladder it is trained with all steps as well, and compared with the same model without the crop.

The data must be there: ``snakemake results/data/shards/0.parquet``, and for detected key regions those of every shard
below ``results/detection/boxes``; without them, annotated boxes are used. ``configs/demo_supervised.yaml`` has them.

Accuracy is that on the test photos, averaged over seeds of the training. Intervals of differences are of a bootstrap
over seeds and photos together. Weights are fitted on val photos. Runs that are done are not repeated unless their
settings or the code changed.
"""

import argparse
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.accuracy.comparison import interval
from benchmarks.configuration import read_config, truth_file
from benchmarks.tables import markdown
from fieldmark.artifacts import read_table, write_table
from fieldmark.config import model_settings, stage_settings
from fieldmark.context import ContextTables
from fieldmark.ensemble import Objective, combine
from fieldmark.fingerprint import fingerprint
from fieldmark.fitting import ModelSettings, Plan, StageSettings
from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import load_classifier
from fieldmark.predictions import TopLists, read_lists, to_table
from fieldmark.truth import read_truth
from fieldmark.views import Augmentation
from workflow.scripts.finetune_classifier import finetune_classifier
from workflow.scripts.fit_ensemble import Search, fit_all
from workflow.scripts.probe_metadata import probe_metadata

log = logging.getLogger("fieldmark")
Hits = np.ndarray


@dataclass(frozen=True)
class Rung:
    """A model to train.

    Attributes:
        name: in the table.
        model: its settings.
        augmentation: of its training views.
        against: the rung it is compared with.
        passes: by how much its steps are divided, as so many images of a photo pass its backbone.
        votes: whether it is on the ladder, and votes with the others there.
    """

    name: str
    model: ModelSettings
    augmentation: Augmentation
    against: str | None = None
    passes: int = 1
    votes: bool = True


@dataclass(frozen=True)
class Data:
    """The photos, and what the models and the judge know of them."""

    tables: dict[str, Path]
    manifest: pl.DataFrame
    boxes: list[Path]
    labels: dict[str, dict[str, int]]
    classes: int


def ladder(model: ModelSettings, augmentation: Augmentation) -> list[Rung]:
    """The models of the ladder, each with one part more, then two beside it: without and with the crop, equal steps."""
    bare = replace(augmentation, rotation=0.0, color=0.0, erase=0.0, mixup=0.0, cutmix=0.0)
    plain = replace(model, head=replace(model.head, loss="softmax"), metadata=replace(model.metadata, encoding="none"))
    plain = replace(plain, streams="photo")
    margin = replace(plain, head=replace(model.head, loss="arcface"))
    placed = replace(margin, metadata=replace(model.metadata, encoding="sphere"))
    cropped = replace(placed, streams="photo_and_crop")
    return [
        Rung("softmax", plain, bare),
        Rung("+ ArcFace", margin, bare, "softmax"),
        Rung("+ place and date", placed, bare, "+ ArcFace"),
        Rung("+ crop", cropped, bare, "+ place and date", passes=2),
        Rung("+ augmentation", cropped, augmentation, "+ crop", passes=2),
        Rung("without crop, all steps", placed, augmentation, "+ place and date", votes=False),
        Rung("with crop, all steps", cropped, augmentation, "without crop, all steps", votes=False),
    ]


def with_steps(stage: StageSettings, passes: int, steps: int | None) -> StageSettings:
    """The stage with ``steps`` in each phase, if given, divided by the images that pass for a photo."""
    phases = [{**phase, "steps": max(1, (steps or phase["steps"]) // passes)} for phase in stage.phases]
    return replace(stage, phases=phases)


def run(data: Data, rung: Rung, plan: Plan, views: dict[str, ViewPlan], folder: Path, top_k: int) -> dict[str, Path]:
    """Train one model and predict val and test photos with each plan of views."""
    asked = data.manifest.filter(pl.col("split").is_in(["val", "test"]))
    ids = asked["image_id"].to_list()
    digest = hashlib.sha256(repr([plan, views, top_k, data.boxes, ids]).encode()).hexdigest()[:12]
    own = folder / digest
    targets = {name: own / f"{name}.parquet" for name in views}
    if all(target.is_file() for target in targets.values()):
        return targets
    log.info("%s, seed %d: %s", rung.name, plan.seed, own)
    finetune_classifier(
        manifest=data.tables["manifest"],
        classes=data.tables["classes"],
        pseudo_labels=None,
        source=plan.model.weights,
        plan=plan,
        weights=own / "model" / "model.safetensors",
        history=own / "model" / "history.parquet",
        boxes=[str(path) for path in data.boxes],
    )
    model = load_classifier(own / "model" / "model.safetensors")
    context = ContextTables(data.manifest, data.boxes).of(ids, model.architecture)
    for name, view in views.items():
        _, probabilities = infer(model, asked["path"].to_list(), view, plan.hardware, context=context)
        write_table(to_table(ids, probabilities, top_k), "predictions", targets[name])
    return targets


def hits(lists: TopLists, labels: dict[str, int]) -> Hits:
    """(n,) whether the first class is right."""
    first = lists.rows_of(list(labels), "ablation").class_ids[:, 0]
    return first == np.array(list(labels.values()))


def weighted(members: Sequence[TopLists], data: Data, search: Search) -> Iterator[tuple[str, Hits]]:
    """Hits on test photos of all models together, by the way their weights were fitted on val photos."""
    val, test = (list(data.labels[split]) for split in ("val", "test"))
    truth = np.array(list(data.labels["val"].values()))
    objective = Objective([member.rows_of(val, "ablation") for member in members], truth, data.classes)
    for method, weights in fit_all(objective, search)[0].items():
        mean = TopLists(*combine([m.rows_of(test, "ablation") for m in members], weights, data.classes))
        yield f"all models, {method} weights", hits(mean, data.labels["test"])


def place_and_date(data: Data, model: ModelSettings, folder: Path, config: dict[str, Any]) -> Hits:
    """Hits on test photos of the probe that looks at no photo."""
    target, settings = folder / "place_and_date.parquet", model.metadata
    probe_metadata(
        manifest=str(data.tables["manifest"]),
        classes=str(data.tables["classes"]),
        target=str(target),
        encoding=settings.encoding,
        max_uncertainty=settings.max_uncertainty,
        top_k=config["predict"]["top_k"],
        seed=config["seed"],
    )
    return hits(read_lists(target, data.classes), data.labels["test"])


def summary(found: dict[str, list[Hits]], references: dict[str, str]) -> pl.DataFrame:
    """One row a rung: mean and spread of top-1, and the difference to the rung it is compared with."""
    rows: list[dict[str, Any]] = []
    for name, own in found.items():
        values = np.stack(own).astype(float)
        row: dict[str, Any] = {"rung": name, "top1": values.mean(), "seeds": len(values), "photos": values.shape[1]}
        row["spread"] = float(values.mean(axis=1).std(ddof=1)) if len(values) > 1 else None
        row |= {"against": references.get(name), "difference": None, "low": None, "high": None}
        if name in references:
            differences = values - np.stack(found[references[name]]).astype(float)
            row["difference"] = differences.mean()
            row["low"], row["high"] = interval(differences)
        rows.append(row)
    kinds = {"against": pl.String, **dict.fromkeys(("spread", "difference", "low", "high"), pl.Float64)}
    return pl.DataFrame(rows, schema_overrides=kinds)


def table(frame: pl.DataFrame) -> str:
    """The summary in Markdown."""
    lines = []
    for row in frame.iter_rows(named=True):
        spread = "–" if row["spread"] is None else f"{100 * row['spread']:.1f}"
        change = ["–", "–", "–"]
        if row["against"] is not None:
            points = [f"{100 * row[key]:+.1f}" for key in ("difference", "low", "high")]
            change = [row["against"], points[0], f"{points[1]} to {points[2]}"]
        lines.append([row["rung"], f"{100 * row['top1']:.1f}", spread, *change])
    return markdown(["model", "top-1", "deviation over seeds", "against", "points", "95 % interval"], lines)


def load_data(config: dict[str, Any], results: Path, target: Path) -> Data:
    """The tables of a results folder; key regions as detected, or else as annotated."""
    tables = {name: results / "data" / f"{name}.parquet" for name in ("manifest", "classes", "rejected")}
    manifest, classes = read_table("manifest", tables["manifest"]), read_table("classes", tables["classes"])
    rejected = read_table("rejected", tables["rejected"])["path"].to_list()
    truth = read_truth(truth_file(config, results), manifest, classes, rejected)
    val, test = (manifest.filter(split=split) for split in ("val", "test"))
    labels = {"val": dict(val.select("image_id", "class_id").iter_rows())}
    labels["test"] = {image_id: truth[image_id] for image_id in test["image_id"] if truth.get(image_id, -1) >= 0}
    boxes = sorted((results / "detection" / "boxes").glob("*.parquet"))
    if not boxes:
        log.warning("no detected key regions below %s; the annotated boxes are used", results / "detection")
        boxes = [target / "annotated_boxes.parquet"]
        write_table(annotated_boxes(manifest), "boxes", boxes[0])
    return Data(tables, manifest, boxes, labels, classes.height)


def annotated_boxes(manifest: pl.DataFrame) -> pl.DataFrame:
    """The manifest's own boxes as shares of the photo; the full photo where there is none."""
    known = pl.col("box_x").is_not_null()
    sides = {"x": ("box_x", "width", 0.0), "y": ("box_y", "height", 0.0)}
    sides |= {"width": ("box_w", "width", 1.0), "height": ("box_h", "height", 1.0)}
    columns = [
        pl.when(known).then(pl.col(box) / pl.col(whole)).otherwise(full).cast(pl.Float32).alias(name)
        for name, (box, whole, full) in sides.items()
    ]
    return manifest.select("image_id", *columns, known.cast(pl.Float32).alias("score"))


def ablation(
    config: dict[str, Any], results: Path, recipe: str, seeds: int, steps: int | None, threads: int
) -> pl.DataFrame:
    """Run the ladder for the first model of the configuration, and write ``results/ablation/``."""
    name = next(iter(config["models"]))
    folder = results / "ablation"
    data = load_data(config, results, folder)
    hardware = Hardware.of_machine(precision=config["compute"]["precision"], cache_mb=2000, decode_threads=threads)
    stage = StageSettings(**stage_settings(config, name, recipe))
    views = {"plain": ViewPlan(), "tta": ViewPlan(**{k: v for k, v in config["predict"].items() if k != "top_k"})}
    code = fingerprint("finetune_classifier") + fingerprint("predict_photos")
    rungs = ladder(ModelSettings.of(model_settings(config, name)), Augmentation(**config["augmentation"]))
    search = Search(config["seed"], *(config["ensemble"][k] for k in ("sigma", "population", "evaluations_per_member")))
    found = {"place and date alone": [place_and_date(data, rungs[-1].model, folder, config)] * seeds}
    for seed in range(1, seeds + 1):
        members = []
        for rung in rungs:
            own = with_steps(stage, rung.passes, steps)
            plan = Plan(rung.model, own, rung.augmentation, hardware, config["seed"] * 100 + seed, code)
            files = run(data, rung, plan, views, folder, config["predict"]["top_k"])
            lists = {view: read_lists(path, data.classes) for view, path in files.items()}
            found.setdefault(rung.name, []).append(hits(lists["plain"], data.labels["test"]))
            if rung.votes:
                members.append(lists["tta"])
        found.setdefault("+ test-time views", []).append(hits(members[-1], data.labels["test"]))
        for method, own_hits in weighted(members, data, search):
            found.setdefault(method, []).append(own_hits)
    references = {rung.name: rung.against for rung in rungs if rung.against}
    references["+ test-time views"] = [rung.name for rung in rungs if rung.votes][-1]
    methods = [method for method in found if method.startswith("all models")]
    references |= dict(zip(methods, ["+ test-time views", *methods], strict=False))
    frame = summary(found, references)
    frame.write_parquet(folder / "ablation.parquet")
    (folder / "ablation.md").write_text(table(frame), encoding="utf-8")
    return frame


def main() -> None:
    """Read the configuration, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", action="append", default=[], help="as for Snakemake, over config.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--recipe", default="layerwise")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each phase, instead of the recipe's")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = read_config(options.configfile)
    frame = ablation(config, options.results, options.recipe, options.seeds, options.steps, options.threads)
    print(table(frame))


if __name__ == "__main__":
    main()

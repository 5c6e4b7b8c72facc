"""Changes to the project, and the jobs that rerun after each; docs/reruns.md holds the same table in words."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

from tests.project import (
    AFTER_SHARDS,
    ALL,
    BASELINE,
    END,
    FEATURES,
    INGESTION,
    PARTS,
    PROBE,
    REGIONS,
    ROUNDS,
    TINY,
    Job,
    Project,
    all_jobs,
    baseline,
    only,
    onwards,
    self_training_jobs,
)

Edit = Callable[[Project], None]


def configure(**changes: Any) -> Edit:
    """Set keys of the tiny configuration; ``a__b__0__c`` stands for a.b[0].c."""

    def edit(project: Project) -> None:
        path = project.folder / TINY
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = config
            for name in parents:
                place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
            place[last] = value
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    return edit


def sort_keys(project: Project) -> None:
    """Write the configuration in alphabetical order."""
    path = project.folder / TINY
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8"))), encoding="utf-8")


def append(text: str, *files: str) -> Edit:
    """Add text at the end of some files."""

    def edit(project: Project) -> None:
        for name in files:
            with (project.folder / name).open("a", encoding="utf-8") as file:
                file.write(text)

    return edit


def program(*modules: str) -> Edit:
    """Change what some files of the project do."""
    return append("\nCHANGED = True\n", *modules)


def remark_everywhere(project: Project) -> None:
    """Add a comment to every Python file, and a docstring to an undocumented function."""
    sources = [*project.folder.glob("fieldmark/**/*.py"), *project.folder.glob("workflow/scripts/*.py")]
    append("\n# A remark.\n", *(str(path) for path in sources))(project)


def touch_everything(project: Project) -> None:
    """Give every file that the project came with a new time, as a fresh checkout does."""
    for part in PARTS:
        for path in [project.folder / part, *(project.folder / part).rglob("*")]:
            path.touch()


def permute_truth(project: Project) -> None:
    """Give every photo another one's true class."""
    path = project.folder / "results/demo/truth.csv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    names, classes = zip(*(row.split(",") for row in rows), strict=True)
    shuffled = np.random.default_rng(0).permutation(classes)
    assert list(shuffled) != list(classes)
    lines = [header, *(f"{name},{one}" for name, one in zip(names, shuffled, strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def touch_annotations(project: Project) -> None:
    """Give the annotations a new time."""
    (project.folder / "results/demo/labeled.json").touch()


def relabel(project: Project) -> None:
    """Give one labeled photo another class; one of a class with several, so that none is left without."""
    path = project.folder / "results/demo/labeled.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    labels = [entry["category_id"] for entry in document["annotations"]]
    often = max(sorted(set(labels)), key=labels.count)
    chosen = next(entry for entry in document["annotations"] if entry["category_id"] == often)
    chosen["category_id"] = next(label for label in labels if label != often)
    path.write_text(json.dumps(document), encoding="utf-8")


def relabel_and_ingest(project: Project) -> None:
    """The same, with the manifest and its shards made anew."""
    relabel(project)
    project.make("results/data/shards/0.parquet")


def lose(*names: str) -> Edit:
    """Delete files and folders below results/."""

    def edit(project: Project) -> None:
        for name in names:
            path = project.folder / "results" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


TWO_STAGE = {job for job in ALL if job.recipe == "two_stage"} | only(*END)
# A second model joins the clustering, and so changes all that follows; what is of one model alone stays.
SECOND_MODEL = all_jobs(models=("tiny", "other"))
EXTRA_RECIPE = {"phases": [{"steps": 2, "batch_size": 16, "learning_rate": 0.001}]}
OTHER = {"backbone": "test_resnet", "weights": "none", "image_size": 48, "recipes": ["layerwise", "two_stage"]}

# What shows how good the key regions are, which no model looks at here.
MEASURED = only("evaluate_stages", "render_report")


def sharded(number: int) -> set[Job]:
    """What reads shards when there are as many as this: all but ingestion, and what trains on or encodes all photos."""
    finetuned = {job for job in BASELINE if job.rule == "finetune_classifier"}
    return all_jobs(shards=number) - finetuned - INGESTION - only("train_detector", "probe_metadata")


# (the change, as docs/reruns.md names it; how it is made; the jobs that rerun)
CHANGES: list[tuple[str, Edit, set[Job]]] = [
    ("nothing", append(""), set()),
    ("comments in every script and module", remark_everywhere, set()),
    ("new times of all files of the project", touch_everything, set()),
    ("`fieldmark/losses.py`", program("fieldmark/losses.py"), ROUNDS | BASELINE),
    ("`fieldmark/inference.py`", program("fieldmark/inference.py"), AFTER_SHARDS - REGIONS),
    ("`fieldmark/clustering.py`", program("fieldmark/clustering.py"), onwards("cluster_photos")),
    ("`fieldmark/selection.py`", program("fieldmark/selection.py"), onwards("select_pseudo_labels")),
    ("`fieldmark/submission.py`", program("fieldmark/submission.py"), only("write_submission")),
    ("`fieldmark/unlabeled.py`", program("fieldmark/unlabeled.py"), only("list_unlabeled")),
    ("`fieldmark/detector.py`", program("fieldmark/detector.py"), REGIONS | MEASURED),
    ("`fieldmark/activation.py`", program("fieldmark/activation.py"), only("detect_photos") | MEASURED),
    (
        "`workflow/scripts/train_guide.py`",
        program("workflow/scripts/train_guide.py"),
        onwards("train_guide"),
    ),
    ("the report's template", append(" ", "fieldmark/report/template.html"), only("render_report")),
    ("`fieldmark/artifacts.py`", program("fieldmark/artifacts.py"), ALL),
    ("the order of keys in the configuration", sort_keys, only("render_report")),
    ("`title`", configure(title="Other moths"), only("render_report")),
    ("`seed`", configure(seed=2), ALL),
    ("`track` to supervised", configure(track="supervised"), only(*END)),
    ("`track` to self_training", configure(track="self_training"), self_training_jobs()),
    ("`start`", configure(start="pretrained"), ROUNDS),
    ("`rounds` from 2 to 3", configure(rounds=3), onwards("extract_features", 2, all_jobs(rounds=3))),
    ("`steps_factor`", configure(steps_factor=2), ROUNDS | BASELINE),
    ("`shards` from 2 to 3", configure(shards=3), sharded(3)),
    ("`shards` from 2 to 1", configure(shards=1), sharded(1)),
    ("`data.coarse_taxa`", configure(data__coarse_taxa=[]), ALL - only("generate_demo")),
    ("`data.near_duplicate_bits`", configure(data__near_duplicate_bits=2), ALL - only("generate_demo")),
    ("`data.truth`", configure(data__truth=None), only("evaluate_stages", "render_report")),
    ("`demo.unlabeled`", configure(demo__unlabeled=61), ALL),
    (
        "two keys that swap their values",
        configure(cluster__iterations=4, cluster__min_photos_per_cluster=5),
        onwards("cluster_photos"),
    ),
    ("`models.*.image_size`", configure(models__tiny__image_size=48), AFTER_SHARDS - REGIONS),
    ("`models.*.head`", configure(models__tiny__head={"loss": "softmax"}), ROUNDS | BASELINE),
    (
        "`models.*.metadata.encoding`",
        configure(models__tiny__metadata__encoding="geo_prior"),
        ROUNDS | BASELINE | only("probe_metadata"),
    ),
    ("`models.*.dropout`", configure(models__tiny__dropout=0.1), ROUNDS | BASELINE),
    (
        "`models.*.overrides.guide`",
        configure(models__tiny__overrides={"guide": {"learning_rate": 0.002}}),
        onwards("train_guide"),
    ),
    (
        "one more model",
        configure(models__other=OTHER),
        onwards("cluster_photos", jobs=SECOND_MODEL) | {job for job in SECOND_MODEL if job.model == "other"},
    ),
    (
        "one more recipe of a model",
        configure(recipes__third=EXTRA_RECIPE, models__tiny__recipes=["layerwise", "two_stage", "third"]),
        (all_jobs(recipes=("layerwise", "two_stage", "third")) - ALL) | only(*END),
    ),
    ("`detection.method`", configure(detection__method="activation"), only("detect_photos") | MEASURED),
    ("`detection.min_score`", configure(detection__min_score=0.4), only("detect_photos") | MEASURED),
    ("`detection`, other keys", configure(detection__steps=5), REGIONS | MEASURED),
    ("`cluster`", configure(cluster__iterations=6), onwards("cluster_photos")),
    ("`filter`", configure(filter__min_size=3), onwards("filter_clusters")),
    ("`select`", configure(select__selected_share=0.4), onwards("select_pseudo_labels")),
    ("`recluster`", configure(recluster__iterations=6), onwards("recluster_selection")),
    ("`pretrain`", configure(pretrain__phases__0__steps=5), onwards("pretrain_backbone")),
    ("`guide`", configure(guide__phases__0__steps=5), onwards("train_guide")),
    ("`refine`", configure(refine__phases__0__steps=5), onwards("refine_backbone")),
    (
        "`recipes.*`, the first of a model",
        configure(recipes__layerwise__phases__0__steps=5),
        ROUNDS | baseline("layerwise"),
    ),
    ("`recipes.*`, another one of a model", configure(recipes__two_stage__phases__0__steps=5), TWO_STAGE),
    ("`augmentation`", configure(augmentation__rotation=20), ROUNDS | BASELINE),
    ("`predict.scales`", configure(predict__scales=[1.0, 1.2]), only("predict_photos", *END)),
    (
        "`predict.top_k`",
        configure(predict__top_k=6),
        onwards("score_photos") | PROBE | only("predict_photos", "probe_metadata"),
    ),
    ("`ensemble.method`", configure(ensemble__method="greedy"), only(*END)),
    ("`ensemble.supervised`", configure(ensemble__supervised=False), only(*END)),
    ("`evaluate`", configure(evaluate__resamples=200), only("evaluate_stages", "render_report")),
    ("`submission`", configure(submission__top_k=3), only("write_submission", "render_report")),
    ("`compute.precision`", configure(compute__precision="bf16-mixed"), AFTER_SHARDS),
    ("`resources`", configure(resources__mem_mb=2000, resources__checkpoint_seconds=5), only("render_report")),
    ("the truth table", permute_truth, only("evaluate_stages", "render_report")),
    ("new time of an annotation file", touch_annotations, set()),
    ("the label of a photo", relabel, ALL - only("generate_demo")),
    (
        "the label of a photo, after `snakemake results/data/shards/0.parquet`",
        relabel_and_ingest,
        AFTER_SHARDS - FEATURES | only("probe_metadata"),
    ),
    ("a lost artifact that nothing outdated needs", lose("round0/clusters.parquet"), set()),
    ("the lost submission", lose("submission.csv"), only("write_submission")),
]

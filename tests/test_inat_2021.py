"""The supervised track on a miniature of iNat 2021: what its configuration plans, and a tiny run with every part on."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from fieldmark.artifacts import read_table
from fieldmark.predictions import member_of
from tests.miniatures import make_inat_2021
from tests.project import ROOT, Job, Project, fresh_project

CONFIG = "configs/inat_2021.yaml"


@pytest.fixture(scope="module")
def inat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of iNat 2021."""
    root = tmp_path_factory.mktemp("inat_2021")
    make_inat_2021(root)
    return root


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project without results."""
    return fresh_project(tmp_path_factory.mktemp("fresh"))


def test_the_full_size_configuration_plans_supervised_members_alone(fresh: Project, inat: Path) -> None:
    models = yaml.safe_load((ROOT / CONFIG).read_text(encoding="utf-8"))["models"]
    own = {name: model for name, model in models.items() if model is not None}
    jobs = fresh.planned("--config", f"data={{root: {inat}}}", config=CONFIG)
    trained = {(job.run, job.model) for job in jobs if job.rule == "finetune_classifier"}
    assert trained == {("baseline", name) for name in own}
    assert len([job for job in jobs if job.rule == "predict_photos"]) == 320 * len(own)
    assert Job("probe_metadata") in jobs and not {job.rule for job in jobs} & {"extract_features", "cluster_photos"}


def test_the_full_size_models_are_large_ones_that_the_policy_allows() -> None:
    import timm

    models = yaml.safe_load((ROOT / CONFIG).read_text(encoding="utf-8"))["models"]
    names = {model["backbone"] for model in models.values() if model is not None}
    assert names <= set(timm.list_pretrained())
    assert any(name.startswith("swin_large") for name in names) and any("efficientnet" in name for name in names)


TINY_MODEL = {
    "backbone": "test_resnet",
    "weights": "none",
    "image_size": 32,
    "embedding": 8,
    "overrides": {},
}


def test_a_tiny_run_ends_with_five_ids_a_photo(fresh: Project, inat: Path, tmp_path: Path) -> None:
    models = yaml.safe_load((ROOT / CONFIG).read_text(encoding="utf-8"))["models"]
    phase = {"steps": 3, "batch_size": 8, "learning_rate": 0.001, "shares": {"labeled": 1.0}}
    changes = {
        "shards": 2,
        "data": {"root": str(inat)},
        "models": {name: TINY_MODEL for name in ("swin_large", "efficientnet_v2_l")}
        | {name: None for name in models if name not in ("swin_large", "efficientnet_v2_l")},
        "recipes": {"layerwise": {"phases": [phase]}, "two_stage": {"phases": [phase, phase]}},
        "detection": {"backbone": "test_resnet", "weights": "none", "image_size": 32},
        "augmentation": {"mixup": 0.4, "cutmix": 1.0},
        "ensemble": {"population": 6, "evaluations_per_member": 10},
        "evaluate": {"resamples": 100},
        "compute": {"precision": "32-true"},
        "resources": {"threads": 1, "gpus": 0, "mem_mb": 1000},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(changes), encoding="utf-8")
    project = fresh.copy(tmp_path / "project")
    project.succeed("--cores", "2", "--configfile", CONFIG, str(tmp_path / "tiny.yaml"))
    results = project.folder / "results"
    with (results / "submission.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    test = json.loads((inat / "public_test.json").read_text(encoding="utf-8"))["images"]
    assert {row["Id"] for row in rows} == {str(image["id"]) for image in test}
    assert all(len(set(row["Predicted"].split()) & set("012345")) == 5 for row in rows)
    weights = read_table("ensemble_weights", results / "ensemble/weights.parquet")
    assert set(weights["member"]) == {"baseline/swin_large/layerwise", "baseline/efficientnet_v2_l/two_stage"}
    scores = read_table("scores", results / "evaluation/scores.parquet").filter(
        stage="model", split="val", metric="top1"
    )
    probe = member_of(results / "baseline/metadata/probe/predictions/0.parquet")
    assert set(scores["member"]) == {*weights["member"], probe}
    report = (results / "report.html").read_text(encoding="utf-8")
    assert "place and date alone" in report and 'id="rounds"' not in report
    places = read_table("manifest", results / "data/manifest.parquet")["location_uncertainty"]
    assert {-1.0, 1e8} <= set(places.drop_nulls())

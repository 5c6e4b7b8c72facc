"""Every mistake in a configuration is named with its key, with what was expected, before anything runs."""

import copy
import math
import re
from typing import Any

import pytest

from fieldmark.config import ConfigError, resolve
from tests.minimal_config import minimal, new_phase, problems, put


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # A key that does not exist.
        ("seeed", 1, "seeed: unknown key; did you mean 'seed'?"),
        ("cluster.pca_dims", 8, "cluster.pca_dims: unknown key; did you mean 'pca_dim'?"),
        ("pretrain.phases.0.learningrate", 1, "pretrain.phases[0].learningrate: unknown key; did you mean 'learning_r"),
        ("models.m.overrides", {"guide": {"stpes": 3}}, "models.m.overrides.guide.stpes: unknown key; did you mean 's"),
        ("evaluate.xyz", 1, "evaluate.xyz: unknown key; expected one of resamples"),
        ("data.annotations", {"tset": "x"}, "data.annotations.tset: unknown key; did you mean 'test'?"),
        ("pretrain.phases.0.shares", {"labelled": 1}, "pretrain.phases[0].shares: expected one of labeled, pseudo"),
        (
            "guide.phases.0.shares",
            {"labeled": 0.6, "pseudo": 0.4},
            "guide.phases[0].shares.pseudo: expected shares of labeled, foreign, the photos of this stage; found 'pse",
        ),
        # A value of the wrong type.
        ("seed", "one", "seed: expected integer, found 'one'"),
        ("seed", True, "seed: expected integer, found True"),
        ("rounds", 2.0, "rounds: expected integer, found 2.0"),
        ("augmentation.flip", "yes", "augmentation.flip: expected boolean, found 'yes'"),
        ("data.truth", 3, "data.truth: expected string or null, found 3"),
        ("pretrain.phases.0.learning_rate", "1e-3", "pretrain.phases[0].learning_rate: expected number, found '1e-3'"),
        ("pretrain.phases.0.learning_rate", math.nan, "pretrain.phases[0].learning_rate: expected number, found nan"),
        ("select", None, "select: expected object, found None"),
        ("models.m", 3, "models.m: expected object, found 3"),
        # A value out of range.
        ("rounds", 0, "rounds: expected at least 1, found 0 (how often"),
        ("detection.method", "boxes", "detection.method: expected one of detector, activation, none; found 'boxes'"),
        ("detection.width", 48, "detection.width: 48 is not a multiple of 32"),
        ("filter.max_size_ratio", 0, "filter.max_size_ratio: expected at least 1, found 0"),
        ("filter.spread_quantile", 1.5, "filter.spread_quantile: expected at most 1, found 1.5"),
        ("demo.foreign_share", 1, "demo.foreign_share: expected less than 1, found 1"),
        ("data.format", "zip", "data.format: expected one of demo, semi_inat, coco, folder, table, torchvision; found"),
        ("compute.precision", "16", "compute.precision: expected one of 32-true, bf16-mixed; found '16'"),
        ("data.openset", {"in_class_share": 2}, "data.openset.in_class_share: expected at most 1, found 2"),
        ("predict.scales", [], "predict.scales: [] should be non-empty"),
        ("predict.scales", [0.5], "predict.scales[0]: expected at least 1, found 0.5"),
        ("models", {}, "models: {} should be non-empty"),
        # Names that become parts of paths.
        ("models", {"a/b": minimal()["models"]["m"]}, "models: 'a/b' does not match"),
        ("recipes", {"probe": {"phases": [new_phase()]}}, "recipes: 'probe' should not be valid"),
        # Something missing.
        ("data", {"format": "folder"}, "data: expected the key 'root', which is missing"),
        ("guide.phases", [{"steps": 4}], "guide.phases[0]: expected the key 'learning_rate', which is missing; a list"),
        (
            "guide.phases",
            [{"steps": 4, "learning_rate": "1e-4"}],
            "guide.phases[0].learning_rate: expected number, found '1e-4' (YAML takes it for text: write 1.0e-4)",
        ),
        (
            "data",
            {"format": "table", "root": "x"},
            "data.annotations: expected a table below data.root, because data.format",
        ),
        (
            "data",
            {"format": "coco", "root": "x", "annotations": {"labeled": "a.json"}},
            "data.annotations: expected a JSON file for labeled and val, because data.format is coco",
        ),
        ("data.val_per_class", -1, "data.val_per_class: expected at least 0, found -1"),
        (
            "models.m.streams",
            "photo_and_crop",
            "models.m.streams: photo_and_crop needs key regions: set detection.method",
        ),
        (
            "recipes.plain.phases",
            [{"steps": 4, "learning_rate": 0.1, "shares": {"unlabeled": 0.5}}],
            "recipes.plain.phases[0].shares.unlabeled: expected 0, because recipes.plain.phases[0].marginal_weight",
        ),
        (
            "models.m.overrides",
            {"guide": {"shares": {"labeled": 0.5, "pseudo": 0.5}}},
            "models.m.overrides.guide.shares.pseudo: expected shares of labeled, foreign, the photos of this stage",
        ),
        (
            "recipes.plain.phases.0.shares",
            {"labeled": 0, "pseudo": 0},
            "recipes.plain.phases[0].shares: expected one above 0, found none",
        ),
        (
            "guide.phases",
            [{"balanced": False}],
            "guide.phases[0]: expected the key 'steps', which is missing; a list",
        ),
        (
            "guide.phases",
            [{"balanced": False}],
            "guide.phases[0]: expected the key 'learning_rate', which is missing;",
        ),
        ("resources.gpus", "4", "resources.gpus: expected integer or auto, found '4'"),
        ("data.annotations", 7, "data.annotations: expected string or object or null, found 7"),
        ("cluster", {3: 4, "foo": 1}, "cluster: expected names as keys, found 3"),
        # Contradictions.
        ("models.m.recipes", ["plane"], "models.m.recipes: 'plane' is not defined under recipes: (found plain)"),
        ("models.m.weights", "package", "models.m.weights: package holds the weights of tf_efficientnet_lite0, not of"),
        (
            "detection.backbone",
            "resnet50",
            "detection.weights: package holds the weights of tf_efficientnet_lite0, not",
        ),
        ("models.m.overrides", {"guid": {}}, "models.m.overrides.guid: expected one of pretrain, guide, refine, plain"),
        ("select", {"min_in_class_score": 0.5}, "select: expected exactly one of min_in_class_score and selected_shar"),
        ("select", {"selected_share": None}, "select: expected exactly one of min_in_class_score and selected_share"),
        ("data.root", "results/demo", "data.root: expected the folder of your photos, because data.format is folder"),
        (
            "data.truth",
            "results/demo/truth.csv",
            "data.truth: expected null or a CSV file of your own, because data.fo",
        ),
        ("data.format", "torchvision", "data.dataset, data.openset: expected both, because data.format is torchvision"),
        ("demo.labeled_per_class", [9, 3], "demo.labeled_per_class: expected [fewest, most], found [9, 3]"),
        ("models.m.head", {"loss": "arcface", "margin": 2}, "models.m.head.margin: expected at most 1.5, found 2"),
        (
            "resources.gpus",
            33,
            "recipes.plain.phases[0].batch_size: expected at least 33, a photo for each device (resources.gpus",
        ),
        ("weights_policy", "mine", "weights_policy: expected any or one of imagenet_1k, inat_2021; found 'mine'"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_was_expected(path: str, value: Any, message: str) -> None:
    text = problems(**{path.replace(".", "__"): value})
    assert text.startswith("the configuration cannot be used:\n  ")
    assert f"\n  {message}" in text


def test_prototypes_and_mixed_photos_exclude_each_other() -> None:
    text = problems(augmentation__cutmix=0.5, recipes__plain__prototype_strength=5.0)
    assert "augmentation.cutmix: expected 0, because plain has prototypes (prototype_strength)" in text


def test_self_training_needs_a_supervised_model_to_begin_with() -> None:
    text = problems(track="self_training", start="pretrained")
    assert "start: expected supervised, because track is self_training" in text and "found pretrained" in text


def test_batches_are_compared_with_the_devices_of_what_runs() -> None:
    def config(**entries: Any) -> dict[str, Any]:
        made = minimal() | {"track": "supervised", "resources": {"gpus": 4, "nodes": 3}}
        for path, value in entries.items():
            put(made, path.replace("__", "."), value)
        return made

    # No rounds, no detector, and a recipe that no model is fine-tuned by.
    unused = {"phases": [{**new_phase(), "batch_size": 8}]}
    resolve(config(guide__phases__0__batch_size=8, detection__batch_size=8, recipes__other=unused))
    asked = "expected at least 12, a photo for each device (resources.gpus × resources.nodes); found 8"
    for entries, place in [
        ({"recipes__plain__phases__0__batch_size": 8}, "recipes.plain.phases[0]"),
        ({"models__m__overrides__plain": {"batch_size": 8}}, "models.m.overrides.plain"),
        ({"detection": {"method": "detector", "batch_size": 8, "weights": "none"}}, "detection"),
        ({"track": "semi_supervised", "guide__phases__0__batch_size": 8}, "guide.phases[0]"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(f"\n  {place}.batch_size: {asked}")):
            resolve(config(**entries))


OPENSET = {"in_class_share": 0.5, "labeled_per_class": 5, "val_per_class": 5, "test_per_class": 5}


def test_openset_and_truth_exclude_each_other() -> None:
    text = problems(data__openset=OPENSET, data__truth="truth.csv")
    assert "data.truth: expected null, because data.openset makes the truth itself; found 'truth.csv'" in text


@pytest.mark.parametrize("annotations", [None, "test.json", {"val": "val.json"}])
def test_the_inat_submission_needs_the_annotations_of_the_test_photos(annotations: Any) -> None:
    text = problems(submission__layout="inat", data__format="coco", data__annotations=annotations)
    assert "data.annotations.test: expected the JSON of the test photos, for submission.layout inat" in text


def test_every_mistake_is_reported_at_once() -> None:
    text = problems(seed=-1, rounds="x", cluster__nonsense=1)
    assert len(text.splitlines()) == 4
    assert all(key in text for key in ("seed: expected", "rounds: expected", "cluster.nonsense: unknown"))


def test_a_share_of_unlabeled_photos_may_rest_on_every_models_own_marginal_loss() -> None:
    config = minimal()
    put(config, "recipes.plain.phases.0.shares", {"labeled": 0.5, "unlabeled": 0.5})
    put(config, "models.m.overrides", {"plain": {"marginal_weight": 0.5}})
    resolve(copy.deepcopy(config))
    config["models"]["other"] = {**config["models"]["m"], "overrides": {}}
    with pytest.raises(ConfigError, match=r"recipes\.plain\.phases\[0\]\.shares\.unlabeled: expected 0"):
        resolve(config)

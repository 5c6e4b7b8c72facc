"""The benchmarks that compare models: thresholds of the semi-supervised baselines, and figures over seeds."""

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from PIL import Image
from snakemake.utils import update_config
from torch.nn import functional

from benchmarks.accuracy import consistency, references
from benchmarks.accuracy.ablations import ABLATIONS, applicable, judged_recipe
from benchmarks.accuracy.collect import reference_steps
from benchmarks.accuracy.comparison import Measured, best, closed_gap, difference, interval
from benchmarks.accuracy.consistency import (
    AdaptiveThreshold,
    FixedThreshold,
    Photos,
    one_phase,
    train_consistency,
)
from benchmarks.accuracy.contrastive import train_contrastive
from benchmarks.accuracy.foreign_detectors import foreign_share, standard_detectors
from benchmarks.accuracy.methods import CLOSED_SET, REFERENCES, rank, title
from benchmarks.accuracy.page import page
from benchmarks.accuracy.references import Reference, nearest_centroid, pipeline_steps, surest_labels
from fieldmark.artifacts import write_table
from fieldmark.config import resolve
from fieldmark.context import Context
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.losses import weighted_cross_entropy
from fieldmark.metadata import MetadataSettings
from fieldmark.models import Architecture, Classifier, build_classifier
from fieldmark.phases import Phase
from fieldmark.photosets import PhotoSet
from fieldmark.views import Augmentation, collate, normalise, random_views
from tests.project import ROOT, TINY

SURE = torch.tensor([[0.96, 0.02, 0.02], [0.6, 0.3, 0.1], [0.1, 0.5, 0.4]])


def test_the_fixed_threshold_asks_the_same_of_all_classes() -> None:
    assert FixedThreshold(3, smoothing=0.0).passes(SURE).tolist() == [True, False, False]
    # Labels smoothed by 0.3 over three classes teach a confidence of 0.8, and 0.95 of that is asked for.
    assert FixedThreshold(3, smoothing=0.3).value == pytest.approx(0.76)


def test_the_adaptive_threshold_follows_the_confidence_and_spares_rare_classes() -> None:
    threshold = AdaptiveThreshold(3, momentum=0.5)
    overall = 0.5 / 3 + 0.5 * (0.96 + 0.6 + 0.5) / 3
    by_class = 0.5 / 3 + 0.5 * SURE.mean(dim=0)
    # Half of the way from 1/3, the running confidence is .51, and the second class, half as frequent, needs less.
    assert threshold.passes(SURE).tolist() == [True, True, True]
    assert float(threshold.overall) == pytest.approx(overall)
    torch.testing.assert_close(threshold.by_class, by_class)
    for _ in range(20):
        threshold.passes(SURE)
    assert threshold.passes(SURE).tolist() == [True, False, True]


def test_a_recipe_of_two_phases_becomes_one_with_all_steps() -> None:
    phases = [Phase("a", 20, 8, 0.1, frozen_layers=2), Phase("b", 10, 8, 0.2, frozen_backbone=True)]
    assert one_phase(phases) == Phase("a", 30, 8, 0.1, frozen_layers=2)


def test_an_interval_holds_the_spread_of_photos_and_of_seeds() -> None:
    rng = np.random.default_rng(0)
    photos = (rng.random((1, 400)) < 0.8).astype(float)
    same = np.repeat(photos, 3, axis=0)
    low, high = interval(same)
    assert low == pytest.approx(photos.mean() - 1.96 * photos.std() / 20, abs=0.005)
    assert high == pytest.approx(photos.mean() + 1.96 * photos.std() / 20, abs=0.005)
    moved = same.copy()
    moved[0] = (rng.random(400) < 0.95).astype(float)
    wide = interval(moved)
    assert wide[1] - wide[0] > high - low


def measured(method: str, hits: list[list[float]], seeds: tuple[int, ...] = (1, 2)) -> Measured:
    """A method whose macro and tail accuracy are of no interest."""
    nothing = np.zeros(len(seeds))
    return Measured(method, "m/r", 10, seeds, np.array(hits), nothing, nothing)


def test_differences_are_paired_and_the_gap_is_between_baseline_and_oracle() -> None:
    supervised = measured("supervised", [[1, 0, 1, 0], [1, 1, 0, 0]])
    ours = measured("round0", [[1, 1, 1, 0], [1, 1, 0, 0]])
    found = difference(ours, supervised)
    assert found is not None and found.value == pytest.approx(0.125) and found.low == 0 and found.seeds == 2
    share = closed_gap(ours, supervised, measured("oracle", [[1] * 4, [1] * 4]))
    assert share is not None and share.value == pytest.approx(0.25) and share.low == 0 and share.seeds == 2
    assert closed_gap(ours, supervised, supervised) is None


def test_the_interval_of_a_closed_gap_is_of_its_own_draws() -> None:
    rng = np.random.default_rng(4)
    low, own, high = (rng.random((2, 400)) < level for level in (0.5, 0.6, 0.9))
    share = closed_gap(*(measured("any", hits.astype(int).tolist()) for hits in (own, low, high)))
    assert share is not None and share.low < 0.25 < share.high and share.high - share.low < 0.6
    # One photo tells the baseline from the oracle, and most draws of ten miss it: then ours is infinitely far beyond.
    none, one, all_but = [0] * 10, [1] + [0] * 9, [0, *([1] * 9)]
    share = closed_gap(*(measured("any", [hits], seeds=(1,)) for hits in (all_but, none, one)))
    assert share is not None and share.value == pytest.approx(9) and np.isinf(share.high)


def test_only_seeds_that_both_have_are_compared() -> None:
    supervised = measured("supervised", [[1, 0, 1, 0], [1, 1, 0, 0]])
    second = measured("naive", [[1, 1, 1, 1], [0, 0, 0, 0]], seeds=(2, 3))
    found = difference(second, supervised)
    assert found is not None and found.seeds == 1 and found.value == pytest.approx(0.5)
    assert difference(second, measured("long", [[1, 1, 1, 1]], seeds=(4,))) is None


def test_the_best_baseline_has_the_highest_mean() -> None:
    table = {
        (name, "m/r"): measured(name, [[value], [1]]) for name, value in (("long", 0), ("naive", 1), ("round0", 1))
    }
    winner = best(table, ("long", "naive"))
    assert winner is not None and winner.method == "naive"
    assert best(table, ("probe",)) is None


def demo_config() -> dict:
    """The configuration as it is shipped."""
    return resolve(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_is_a_valid_configuration_that_differs(name: str) -> None:
    config = demo_config()
    change = ABLATIONS[name].change(config)
    changed = demo_config()
    update_config(changed, copy.deepcopy(change))
    assert resolve(changed) != config
    assert judged_recipe(name, config) == ("two_stage" if name == "one_stage" else "layerwise")


def test_ablations_that_change_nothing_are_left_out() -> None:
    config = demo_config()
    assert applicable(config) == list(ABLATIONS)
    config["data"]["coarse_taxa"] = []
    config["models"]["lite0"]["recipes"] = ["layerwise"]
    assert set(ABLATIONS) - set(applicable(config)) == {"no_coarse_taxa", "one_stage"}


def test_every_method_has_a_title_and_a_place() -> None:
    methods = [*REFERENCES, "probe", "supervised", "round0", "round11", "ensemble", "vote", "ablation/no_filter"]
    assert sorted(methods, key=rank)[0] == "probe" and sorted(methods, key=rank)[-1] == "ablation/no_filter"
    assert title("round11", "lite0/layerwise") == "round 11, layerwise"
    assert title("vote", "greedy") == "ensemble, greedy weights"
    assert {title(name, "lite0/layerwise") for name in REFERENCES} >= {"FixMatch, layerwise", "oracle, layerwise"}


def test_the_page_tells_every_set_and_draws_its_chart(tmp_path: Path) -> None:
    rows = [
        {"method": method, "member": member, "steps": 10, "macro": 0.5, "tail": 0.4, "hits": hits}
        for method, member, hits in (
            ("supervised", "m/r", [True, False, False, False]),
            ("naive", "m/r", [True, True, False, False]),
            ("fixmatch", "m/r", [False, False, False, True]),
            ("fixmatch_in_class", "m/r", [True, True, False, True]),
            ("round0", "m/r", [True, True, True, False]),
            ("ensemble", "submitted", [True, True, True, False]),
            ("vote", "uniform", [True, True, True, False]),
            ("oracle", "m/r", [True, True, True, True]),
            ("ablation/no_filter", "m/r", [True, False, True, False]),
        )
    ]
    figures = [("auroc", None, "energy", 0.9), ("foreign share at 75% recall", None, "energy", 0.2)]
    figures += [("select", 0, "precision", 0.8), ("select", 1, "precision", 0.9)]
    figures += [("ablation/no_filter", 0, "precision", 0.75), ("ablation/one_view", 0, "precision", 0.8)]
    schema = {"stage": pl.String, "round": pl.Int32, "metric": pl.String, "value": pl.Float64}
    for seed in (1, 2):
        folder = tmp_path / "evidence" / "herbs" / f"seed{seed}"
        folder.mkdir(parents=True)
        pl.DataFrame(rows).write_parquet(folder / "accuracy.parquet")
        pl.DataFrame(figures, schema=schema, orient="row").write_parquet(folder / "unlabeled.parquet")
    text = page(tmp_path / "evidence")
    assert "## Herbs\n\n4 test photos.\n" in text and "(evidence/herbs/accuracy.svg)" in text
    assert "| round 0, r | 75.0 | 25.0 to 100.0 | 75.0, 75.0 | 50.0 | 40.0 | 10 |" in text
    assert "Best baseline: naive pseudo-labels, r, 50.0." in text
    assert "| ensemble | naive pseudo-labels, r | +25.0 | +0.0 to +75.0 | 2 |" in text
    # No other method stands beside it: the truth chose its photos.
    alone = "| FixMatch, in-class photos only, r | FixMatch, r | +50.0 | +0.0 to +100.0 | 2 |"
    assert text.count("FixMatch, in-class photos only") == 2 and alone in text
    assert "| no cluster filter | r | 50.0 | −25.0 | −75.0 to +0.0 | 2 |" in text
    assert "| energy | 90.0, 90.0 | 20.0, 20.0 |" in text and "| 0 | select | precision | 80.0, 80.0 |" in text
    # Views do not touch what is selected.
    assert "| no cluster filter | – |  | – |  | 75.0 | −5.0, −5.0 |" in text and "one view" not in text
    assert "ablation/" not in text and "results.md" not in text
    drawing = ElementTree.parse(tmp_path / "evidence/herbs/accuracy.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_committed_page_is_that_of_the_committed_tables(tmp_path: Path) -> None:
    copied = tmp_path / "evidence"
    shutil.copytree(ROOT / "docs/evidence", copied)
    (tmp_path / "results.md").touch()  # to which this page refers, and one of a user's photos does not
    assert page(copied) == (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    for drawn in copied.rglob("*.svg"):
        assert drawn.read_text() == (ROOT / "docs/evidence" / drawn.relative_to(copied)).read_text()


def test_a_long_reference_takes_as_many_steps_as_lead_to_the_last_model() -> None:
    config = demo_config()
    steps = {name: sum(phase["steps"] for phase in stage["phases"]) for name, stage in config["recipes"].items()}
    others = sum(phase["steps"] for stage in ("pretrain", "guide", "refine") for phase in config[stage]["phases"])
    for recipe, own in steps.items():
        expected = 2 * steps["layerwise"] + 2 * others + own  # supervised, round 0, and round 1 by this recipe
        assert pipeline_steps(config, "lite0", recipe, 2) == expected
        assert pipeline_steps(config, "lite0", recipe, 0) == own
        for name, count in (("long", expected), ("freematch", expected), ("naive", own), ("oracle", own)):
            reference = Reference(config, Path(), name, "lite0", recipe, 1)
            assert sum(phase["steps"] for phase in reference.recipe_settings()["phases"]) == count
        # The model that names the photos counts, too.
        reference = Reference(config, Path(), "long_naive", "lite0", recipe, 1)
        assert sum(phase["steps"] for phase in reference.recipe_settings()["phases"]) == expected - own
        assert reference_steps(config, "long_naive", "lite0", recipe) == expected


def test_the_taxonomy_reference_adds_photos_with_coarse_taxa_alone() -> None:
    for phase in Reference(demo_config(), Path(), "taxonomy", "lite0", "layerwise", 1).recipe_settings()["phases"]:
        assert phase["shares"] == {"labeled": 0.5, "unlabeled": 0.5} and phase["marginal_weight"] == 1


def test_naive_pseudo_labels_are_as_many_as_asked_for_and_the_surest(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"image_id": ["d", "a", "c", "b", "x"], "split": ["unlabeled"] * 4 + ["test"], "path": list("dacbx")}
    sure = {"a": [0.5, 0.5], "b": [0.1, 0.9], "c": [0.8, 0.2], "d": [0.3, 0.7]}
    rows |= {"latitude": [1.0, 2.0, 3.0, 4.0, 5.0], "longitude": [0.0] * 5, "location_uncertainty": [0.0] * 5}
    rows |= {"date": ["2021-06-01"] * 5}
    architecture = Architecture("test_resnet", 0, 2, 0, False, 32, metadata=MetadataSettings(encoding="sphere"))
    monkeypatch.setattr(references, "load_classifier", lambda _: SimpleNamespace(architecture=architecture))

    def predicted(_: Any, paths: list[str], *__: Any, context: Context) -> tuple[None, np.ndarray]:
        # Each photo's own place is at hand.
        assert len(np.unique(context.metadata, axis=0)) == len(paths) == 4
        return None, np.array([sure[path] for path in paths])

    monkeypatch.setattr(references, "infer", predicted)
    found = surest_labels(pl.DataFrame(rows), Path("supervised"), Hardware(), 2)
    assert found["image_id"].to_list() == list("abcd") and found["class_id"].to_list() == [0, 1, 0, 1]
    assert found["selected"].to_list() == [False, True, True, False]


def test_consistency_smooths_all_names_alike(toy: PhotoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recorded(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, smoothing: float) -> torch.Tensor:
        asked.append((len(logits), smoothing))
        return weighted_cross_entropy(logits, target, weight, smoothing)

    def recorded_own(logits: torch.Tensor, *given: Any, label_smoothing: float, **options: Any) -> torch.Tensor:
        asked.append((len(logits), label_smoothing))
        return functional.cross_entropy(logits, *given, label_smoothing=label_smoothing, **options)

    monkeypatch.setattr(consistency, "weighted_cross_entropy", recorded)
    monkeypatch.setattr(consistency, "functional", SimpleNamespace(cross_entropy=recorded_own))
    model = build_classifier(Architecture("test_resnet", 0, 3, 0, False, 32), "none", seed=1)
    photos = Photos(toy.paths[:6], toy.target[:6], toy.paths[6:])
    phase = Phase("all", 2, 8, 1e-3, label_smoothing=0.1)
    train_consistency(model, photos, phase, Augmentation(), FixedThreshold(3, 0.1), Hardware(), seed=1)
    assert asked == [(4, 0.1), (2, 0.1)] * 2  # of 8 views half are of labeled photos, and two of each unlabeled one


def test_a_closed_set_holds_the_in_class_photos_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    unlabeled = pl.DataFrame({"image_id": ["a", "b", "c", "d"], "split": ["unlabeled"] * 4, "path": list("abcd")})
    labeled = pl.DataFrame({"image_id": ["l"], "split": ["labeled"], "path": ["l"]})
    manifest = pl.concat([labeled, unlabeled]).with_columns(pl.lit(0, pl.Int32).alias("class_id"))
    asked = {}
    monkeypatch.setattr(references, "read_table", lambda *_: pl.DataFrame({"class_id": [0, 1]}))
    monkeypatch.setattr(references, "save_classifier", lambda *_: None)
    monkeypatch.setattr(references, "load_classifier", lambda path: path)
    for name in ("fixmatch", *CLOSED_SET):
        monkeypatch.setattr(references, "train_consistency", lambda *given, name=name: asked.update({name: given}))
        own = Reference(demo_config(), Path(), name, "lite0", "layerwise", 1)
        own.train(manifest, {"a": -1, "b": 1, "c": 0, "x": 1})
        assert own.recipe_settings()["phases"][0]["steps"] == own.total_steps
    assert list(asked["fixmatch"][1].unlabeled) == list("abcd")
    for name, (start, photos, phase, _, threshold, *_) in asked.items():
        assert start == Path("baseline/lite0/layerwise/model.safetensors")
        assert phase.steps == own.total_steps - 150  # those of the supervised model
        assert name == "fixmatch" or list(photos.unlabeled) == list("bc")
        assert list(photos.labeled) == ["l"]
        assert isinstance(threshold, FixedThreshold if name.startswith("fixmatch") else AdaptiveThreshold)


def test_the_nearest_centroid_is_that_of_centred_unit_features(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[4.0, 0, 0], [0, 4, 0], [0, 0, 4]]) + 10
    label = np.arange(30) % 3
    features = centres[label] + rng.normal(size=(30, 3))
    names = [f"p{number:02}" for number in range(30)]
    schema = {"image_id": pl.String, "embedding": pl.Array(pl.Float16, 3)}
    table = pl.DataFrame({"image_id": names, "embedding": features.astype(np.float16)}, schema=schema)
    write_table(table[::-1], "features", tmp_path / "0.parquet")
    manifest = pl.DataFrame({"image_id": names[:15], "split": ["labeled"] * 15, "class_id": label[:15]})
    asked = pl.DataFrame({"image_id": names[15:]})
    probabilities = nearest_centroid(tmp_path, manifest, 3, asked)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (probabilities.argmax(axis=1) == label[15:]).all()


def test_contrastive_training_draws_views_of_one_photo_together_and_of_two_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.png") for number in range(8)]
    for path, colour in zip(paths, rng.integers(0, 255, size=(8, 3), dtype=np.uint8), strict=True):
        Image.fromarray(np.tile(colour, (40, 40, 1))).save(path)
    architecture = Architecture("test_resnet", 0, 1, 0, False, 32)
    phase = Phase("contrastive", 40, 16, 0.003, frozen_norms=False)
    untrained, *trained = [build_classifier(architecture, "none", seed=1) for _ in range(3)]
    for model in trained:
        train_contrastive(model, paths, phase, Augmentation(), Hardware(), seed=1, photos=8)
    with PhotoStore(paths, 32, 2**20, 1) as store:
        decoded = collate(store.get(np.arange(8)))

    def margin(model: Classifier) -> float:
        """Mean cosine of views of one photo minus that of views of different photos."""
        model.eval()
        generator = torch.Generator().manual_seed(5)
        views = [normalise(random_views(*decoded, 32, Augmentation(), generator), model.normalisation) for _ in "ab"]
        with torch.no_grad():
            first, second = (functional.normalize(model.embed(view)) for view in views)
        cosine = first @ second.T
        return float(cosine.diagonal().mean() - cosine[~torch.eye(8, dtype=torch.bool)].mean())

    assert margin(trained[0]) > margin(untrained) + 0.1
    for first, second in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(("ablations", "count"), [("no_filter one_view", "6"), ("none", "none")])
def test_the_comparison_plans_a_run_and_the_references_for_each_seed(
    tmp_path: Path, ablations: str, count: str
) -> None:
    settings = [f"configfiles={ROOT / TINY}", "seeds=1 2 3", "references=oracle long", f"ablations={ablations}"]
    call = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(ROOT / "benchmarks/accuracy/evidence.smk"),
        "--directory",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*call, "--dry-run", "--quiet", "rules", "--cores", "1", "--config", *settings], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE))
    assert counts["run_workflow"] == counts["collect_seed"] == "3"
    assert counts["train_reference"] == "6" and counts.get("run_ablation", "none") == count


def test_standard_detectors_of_foreign_photos_are_as_published() -> None:
    logits = np.array([[2.0, 0.0, -1.0], [30.0, 30.0, 0.0]])
    embeddings, labeled = np.eye(3)[:2], np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    found = standard_detectors(logits, embeddings, labeled)
    np.testing.assert_allclose(found["energy"], np.log(np.exp(logits).sum(axis=1)))
    np.testing.assert_allclose(found["maximum softmax"], [np.exp(2) / np.exp(logits[0]).sum(), 0.5])
    np.testing.assert_allclose(found["nearest labeled photo"], [0.6, 0.8])


def test_the_foreign_share_is_that_of_the_shortest_list_with_the_recall() -> None:
    in_class = np.array([True, False, True, True, False, True, False])
    scores = -np.arange(7.0)
    assert foreign_share(scores, in_class, 0.75) == pytest.approx(1 / 4)
    assert foreign_share(scores, in_class, 1.0) == pytest.approx(2 / 6)

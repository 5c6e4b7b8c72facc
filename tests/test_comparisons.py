"""The benchmarks that compare models: thresholds of the semi-supervised baselines, and figures over seeds."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks.consistency import AdaptiveThreshold, FixedThreshold, one_phase
from benchmarks.foreign_detectors import foreign_share, standard_detectors
from benchmarks.references import Reference
from benchmarks.seeds import difference_table, gap_table, interval
from fieldmark.config import resolve
from fieldmark.phases import Phase
from tests.project import ROOT, TINY

SURE = torch.tensor([[0.96, 0.02, 0.02], [0.6, 0.3, 0.1], [0.1, 0.5, 0.4]])


def test_the_fixed_threshold_asks_the_same_of_all_classes() -> None:
    assert FixedThreshold(0.95).passes(SURE).tolist() == [True, False, False]


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
    low, high = interval(same, 2000, rng)
    assert low == pytest.approx(photos.mean() - 1.96 * photos.std() / 20, abs=0.005)
    assert high == pytest.approx(photos.mean() + 1.96 * photos.std() / 20, abs=0.005)
    moved = same.copy()
    moved[0] = (rng.random(400) < 0.95).astype(float)
    wide = interval(moved, 2000, rng)
    assert wide[1] - wide[0] > high - low


def test_differences_are_paired_and_the_gap_is_between_baseline_and_oracle() -> None:
    rng = np.random.default_rng(0)
    right = np.array([[1.0, 0, 1, 0], [1, 1, 0, 0]])
    hits = {"baseline/m/r": right, "round0/m/r": np.maximum(right, [[0, 1, 0, 0]]), "oracle/m/r": right * 0 + 1}
    lines = difference_table(hits, ["round0/m/r"], ["baseline/m/r"], 500, rng).splitlines()
    assert lines[2].startswith("| round0/m/r − baseline/m/r | +12.5 | +0.0 to ")
    assert gap_table(hits, "oracle/m/r", "baseline/m/r").splitlines()[2] == "| round0/m/r | 25 |"


def test_a_long_reference_takes_as_many_steps_as_lead_to_the_last_model() -> None:
    config = resolve(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
    steps = {name: sum(phase["steps"] for phase in stage["phases"]) for name, stage in config["recipes"].items()}
    others = sum(phase["steps"] for stage in ("pretrain", "guide", "refine") for phase in config[stage]["phases"])
    for recipe, own in steps.items():
        expected = 2 * steps["layerwise"] + 2 * others + own  # supervised, round 0, and round 1 by this recipe
        for name, count in (("long", expected), ("freematch", expected), ("naive", own), ("oracle", own)):
            reference = Reference(config, Path(), name, "lite0", recipe, 1)
            assert sum(phase["steps"] for phase in reference.recipe_settings()["phases"]) == count


def test_the_comparison_plans_a_run_and_the_references_for_each_seed(tmp_path: Path) -> None:
    settings = [f"configfiles={ROOT / TINY}", "seeds=1 2 3", "references=oracle long"]
    call = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(ROOT / "benchmarks/evidence.smk"),
        "--directory",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*call, "--dry-run", "--quiet", "rules", "--cores", "1", "--config", *settings], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE))
    assert counts["run_workflow"] == "3" and counts["train_reference"] == "12"


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

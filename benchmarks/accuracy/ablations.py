"""The workflow with one part changed at a time; each is judged by its model of round 0.

Each run starts from a copy of a finished one and is the workflow's own, so only what the change touches is made anew,
with the same seeds. Later rounds and the ensemble are left out, and the copy is deleted; its predictions and its
pseudo-labels stay::

    python -m benchmarks.accuracy.ablations --configfile my.yaml --ablation no_filter --folder run --output left
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.configuration import PROJECT, read_config

Config = Mapping[str, Any]
# What a run of one round needs of a finished one, below results/.
COPIED = ("data", "demo", "baseline", "round0", "detection")


@dataclass(frozen=True)
class Ablation:
    """A change of the configuration.

    Attributes:
        title: in tables.
        change: what is laid over the configuration; empty where the change does not apply to it.
        phases: whether it is judged by the first recipe of several phases instead of the first recipe.
    """

    title: str
    change: Callable[[Config], dict[str, Any]]
    phases: bool = False


def first_recipe(config: Config) -> str:
    """The recipe that feeds the next round."""
    return next(iter(config["models"].values()))["recipes"][0]


def phased_recipe(config: Config) -> str | None:
    """The first model's first recipe of several phases, if it has one."""
    recipes = next(iter(config["models"].values()))["recipes"]
    return next((name for name in recipes if len(config["recipes"][name]["phases"]) > 1), None)


def in_all_phases(**keys: Any) -> Callable[[Config], dict[str, Any]]:
    """Change keys in every phase of the first recipe."""

    def change(config: Config) -> dict[str, Any]:
        recipe = first_recipe(config)
        return {"recipes": {recipe: {"phases": [{**p, **keys} for p in config["recipes"][recipe]["phases"]]}}}

    return change


def one_phase(config: Config) -> dict[str, Any]:
    """Give the first phase of a recipe the steps of all of them."""
    recipe = phased_recipe(config)
    if recipe is None:
        return {}
    phases = config["recipes"][recipe]["phases"]
    return {"recipes": {recipe: {"phases": [{**phases[0], "steps": sum(phase["steps"] for phase in phases)}]}}}


def other_start(config: Config) -> dict[str, Any]:
    """Start the rounds from the other one of the two models that they can start from."""
    return {"start": "pretrained" if config["start"] == "supervised" else "supervised"}


UNFILTERED: dict[str, Any] = {
    "min_size": 1,
    "max_size_ratio": 1e6,
    "spread_quantile": 1.0,
    "min_neighbour_agreement": 0.0,
    "min_coarse_purity": 0.0,
}
ABLATIONS = {
    "start": Ablation("rounds start from pretrained weights", other_start),
    "no_coarse_taxa": Ablation(
        "no coarse taxa", lambda config: {"data": {"coarse_taxa": []}} if config["data"]["coarse_taxa"] else {}
    ),
    "no_labeled_seeds": Ablation("clusters without labeled seeds", lambda _: {"cluster": {"labeled_seeds": False}}),
    "no_filter": Ablation("no cluster filter", lambda _: {"filter": UNFILTERED}),
    "no_foreign_classes": Ablation("guide without foreign classes", lambda _: {"filter": {"foreign_quantile": 0.0}}),
    "no_agreement": Ablation("guide alone, no neighbours' vote", lambda _: {"select": {"neighbours": 0}}),
    "no_propagation": Ablation("no label propagation", lambda _: {"select": {"propagation": 0.0}}),
    "no_balance": Ablation("selection without class quotas", lambda _: {"select": {"max_per_class_ratio": 100.0}}),
    "no_recluster": Ablation("refined on classes, not subclusters", lambda _: {"recluster": {"max_subclusters": 1}}),
    "prototypes": Ablation(
        "with prototype blending", lambda config: {"recipes": {first_recipe(config): {"prototype_strength": 5.0}}}
    ),
    "one_stage": Ablation("one stage instead of two", one_phase, phases=True),
    "trained_norms": Ablation("norms not frozen", in_all_phases(frozen_norms=False)),
    "no_layer_decay": Ablation("no layer-wise decay", in_all_phases(layer_decay=1.0)),
    "unbalanced": Ablation("photos as they come, not balanced", in_all_phases(balanced=False)),
    "one_view": Ablation("one view", lambda _: {"predict": {"scales": [1.0], "five_crop": False, "flip": False}}),
    "one_scale": Ablation("one scale", lambda _: {"predict": {"scales": [1.0]}}),
    "no_flip": Ablation("no flip", lambda _: {"predict": {"flip": False}}),
    "five_crop": Ablation("with five crops", lambda _: {"predict": {"five_crop": True}}),
}


def judged_recipe(name: str, config: Config) -> str:
    """The recipe whose model an ablation is judged by."""
    phased = phased_recipe(config) if ABLATIONS[name].phases else None
    return phased or first_recipe(config)


def applicable(config: Config) -> list[str]:
    """The ablations that change something in this configuration."""
    return [name for name, ablation in ABLATIONS.items() if ablation.change(config)]


def run_ablation(name: str, config: Config, files: list[str], source: Path, target: Path, cores: int) -> None:
    """Run the workflow with one change from a copy of a finished run.

    Args:
        name: one of :data:`ABLATIONS`.
        config: as resolved, without the change.
        files: the configuration files, which the change is laid over.
        source: folder of a finished run; it is only read.
        target: folder that ``pseudo_labels.parquet`` and the shards of ``predictions/`` go to.
        cores: for the workflow.
    """
    model, recipe = next(iter(config["models"])), judged_recipe(name, config)
    (target / "predictions").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch)
        for part in COPIED:
            if (source / "results" / part).is_dir():
                shutil.copytree(source / "results" / part, folder / "results" / part)
        # What Snakemake knows of how each file was made: without it, it would not see that the change touches them.
        shutil.copytree(source / ".snakemake" / "metadata", folder / ".snakemake" / "metadata")
        change = folder / "change.yaml"
        change.write_text(yaml.safe_dump({**ABLATIONS[name].change(config), "rounds": 1}), encoding="utf-8")
        predictions = [
            f"results/round0/{model}/{recipe}/predictions/{shard}.parquet" for shard in range(config["shards"])
        ]
        call = [sys.executable, "-m", "snakemake", "-s", str(PROJECT / "Snakefile"), "--directory", scratch]
        call += ["--workflow-profile", str(PROJECT / "profiles" / "default"), "--cores", str(cores)]
        subprocess.run([*call, "--configfile", *files, str(change), "--", *predictions], check=True)
        for path in predictions:
            shutil.copy(folder / path, target / "predictions")
        shutil.copy(folder / "results/round0/pseudo_labels.parquet", target)


def main() -> None:
    """Read the configuration, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", action="append", default=[], help="as for Snakemake, over config.yaml")
    parser.add_argument("--ablation", choices=ABLATIONS, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="of a finished run, with results/ in it")
    parser.add_argument("--output", type=Path, required=True, help="folder for what is kept of it")
    parser.add_argument("--cores", type=int, default=1)
    options = parser.parse_args()
    files = [str(Path(name).resolve()) for name in options.configfile]
    config = read_config(options.configfile)
    run_ablation(options.ablation, config, files, options.folder.resolve(), options.output, options.cores)


if __name__ == "__main__":
    main()

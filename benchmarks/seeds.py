"""Compare models over several seeds: means, paired differences, and the share of the gap to the oracle that is closed.

Every results folder is of one seed of the same configuration and data::

    python -m benchmarks.seeds --configfile configs/grocery.yaml run1/results run2/results run3/results

Intervals are of a bootstrap that draws seeds and test photos, each with replacement, so they hold the spread of both;
with three seeds the spread of seeds is itself known only roughly.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml
from snakemake.utils import update_config

from benchmarks.tables import markdown
from fieldmark.artifacts import read_table
from fieldmark.config import resolve
from fieldmark.truth import read_truth

PROJECT = Path(__file__).resolve().parent.parent
Hits = npt.NDArray[np.float64]  # (seeds, photos), 1 where the first class is right


def prediction_tables(results: Path) -> dict[str, list[Path]]:
    """The tables of predictions below a results folder, by the name of what made them."""
    found: dict[str, list[Path]] = {}
    for path in sorted(results.glob("*/*/*/predictions/*.parquet")):
        found.setdefault(path.parent.parent.relative_to(results).as_posix(), []).append(path)
    for path in sorted(results.glob("references/*/*/*/predictions.parquet")):
        found[path.parent.relative_to(results / "references").as_posix()] = [path]
    found["ensemble"] = [results / "ensemble" / "predictions.parquet"]
    return found


def hits_of(results: Path, truth_file: str) -> dict[str, npt.NDArray[np.float64]]:
    """For each model (photos,) whether it is right, over test photos of a known class, in the order of their ids."""
    tables = {name: read_table(name, results / "data" / f"{name}.parquet") for name in ("manifest", "classes")}
    rejected = read_table("rejected", results / "data/rejected.parquet")["path"].to_list()
    truth = read_truth(truth_file, tables["manifest"], tables["classes"], rejected)
    known = (
        tables["manifest"]
        .filter(pl.col("split") == "test", pl.col("image_id").is_in([name for name, c in truth.items() if c >= 0]))
        .select("image_id")
        .sort("image_id")
    )
    right = np.array([truth[name] for name in known["image_id"]])
    found = {}
    for model, paths in prediction_tables(results).items():
        best = read_table("predictions", paths).select("image_id", pl.col("class_ids").arr.first())
        predicted = known.join(best, on="image_id", how="left", maintain_order="left")["class_ids"].to_numpy()
        found[model] = (predicted == right).astype(np.float64)
    return found


def interval(values: Hits, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (seeds, photos) values over seeds and photos."""
    seeds, photos = values.shape
    means = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(photos, size=photos)].mean() for _ in range(resamples)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def accuracy_table(hits: Mapping[str, Hits], resamples: int, rng: np.random.Generator) -> str:
    """Mean top-1 of every model, its interval, and the single seeds."""
    rows = []
    for name, values in hits.items():
        low, high = interval(values, resamples, rng)
        single = ", ".join(f"{100 * value:.1f}" for value in values.mean(axis=1))
        rows.append([name, f"{100 * values.mean():.1f}", f"{100 * low:.1f} to {100 * high:.1f}", single])
    return markdown(["model", "top-1", "95 % interval", "by seed"], rows)


def difference_table(
    hits: Mapping[str, Hits],
    minuends: Sequence[str],
    subtrahends: Sequence[str],
    resamples: int,
    rng: np.random.Generator,
) -> str:
    """Paired differences in points, seed by seed and photo by photo."""
    rows = []
    for first in minuends:
        for second in subtrahends:
            values = hits[first] - hits[second]
            low, high = interval(values, resamples, rng)
            rows.append(
                [f"{first} − {second}", f"{100 * values.mean():+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"]
            )
    return markdown(["difference", "points", "95 % interval"], rows)


def gap_table(hits: Mapping[str, Hits], oracle: str, supervised: str) -> str:
    """Share of the gap between a supervised model and its oracle that each model closes."""
    low, high = hits[supervised].mean(), hits[oracle].mean()
    rows = [
        [name, f"{100 * (values.mean() - low) / (high - low):.0f}"]
        for name, values in hits.items()
        if name.startswith("round") or name == "ensemble"
    ]
    title = f"% of the gap from {supervised} ({100 * low:.1f}) to {oracle} ({100 * high:.1f})"
    return markdown(["model", title], rows)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results folders, one per seed")
    parser.add_argument("--configfile", type=Path, action="append", default=[], help="overrides of config.yaml")
    parser.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args()
    config: dict[str, Any] = {}
    for path in [PROJECT / "config.yaml", *options.configfile]:
        update_config(config, yaml.safe_load(path.read_text(encoding="utf-8")))
    resolve(config)
    rng = np.random.default_rng(config["seed"])
    by_seed = [hits_of(folder, config["data"]["truth"]) for folder in options.results]
    names = [name for name in by_seed[0] if all(name in hits for hits in by_seed)]
    hits = {name: np.stack([hits[name] for hits in by_seed]) for name in names}
    print(f"{len(by_seed)} seeds, {next(iter(hits.values())).shape[1]} test photos\n")
    print(accuracy_table(hits, options.resamples, rng))
    ours = [name for name in names if name.startswith("round") or name == "ensemble"]
    others = [name for name in names if name not in ours]
    print(difference_table(hits, ours, others, options.resamples, rng))
    for oracle in (name for name in names if name.startswith("oracle/")):
        print(gap_table(hits, oracle, oracle.replace("oracle/", "baseline/", 1)))


if __name__ == "__main__":
    main()

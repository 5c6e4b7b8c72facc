"""Section "How it was made": the configuration, the versions, and the time that each stage took."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import polars as pl
import yaml

from fieldmark.report.wording import clock

_PACKAGES = (
    "snakemake",
    "torch",
    "torchvision",
    "timm",
    "lightning-fabric",
    "pillow-simd",
    "numpy",
    "polars",
    "pyarrow",
    "faiss-cpu",
    "scikit-learn",
    "cma",
)


# Rules that run in rounds of clusters alone.
_OF_CLUSTERS = {
    "extract_features",
    "cluster_photos",
    "filter_clusters",
    "pretrain_backbone",
    "train_guide",
    "recluster_selection",
    "refine_backbone",
}


@dataclass(frozen=True)
class StageTime:
    """The jobs of one rule: how many, how long in all, the most memory of one, and the share of all time."""

    rule: str
    jobs: int
    time: str
    memory: str
    share: float


@dataclass(frozen=True)
class MakingSection:
    """What it takes to make the result again."""

    config: str
    versions: list[tuple[str, str]]
    seed: int
    times: list[StageTime]
    total: str


def making_section(config: Mapping[str, Any], seed: int, benchmarks: Path | None) -> MakingSection:
    """Collect the section.

    Args:
        config: the resolved configuration.
        seed: that every draw derives from.
        benchmarks: folder of Snakemake's benchmark files, …/RULE.tsv or …/RULE/SHARD.tsv.
    """
    times, total = ([], 0.0) if benchmarks is None else stage_times(benchmarks, config)
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)
    return MakingSection(text, package_versions(), seed, times, clock(total))


def package_versions() -> list[tuple[str, str]]:
    """Python and the installed ones of the packages that shape the result."""
    found = [("python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # under conda each rule has the packages that it needs, and no more
            found.append((name, "not in this stage's environment"))
    return found


def belongs(path: PurePath, config: Mapping[str, Any]) -> bool:
    """Whether a benchmark file is of a job of this configuration, and not left over from one with more rounds, say.

    Args:
        path: below the folder of them: RULE.tsv, or RUN/MODEL/RECIPE/RULE/SHARD.tsv with some of these left out.
        config: the resolved configuration.
    """
    run, *inner = path.parts
    rounds = 0 if config["track"] == "supervised" else config["rounds"]
    if run.startswith("round"):
        rule = path.parent.name if path.stem.isdigit() else path.stem
        if int(run.removeprefix("round")) >= rounds or (config["track"] == "self_training" and rule in _OF_CLUSTERS):
            return False
    if path.stem.isdigit() and int(path.stem) >= config["shards"]:
        return False
    if run == "detection" or len(inner) < 2 or inner[0] == "metadata":
        return True
    model = config["models"].get(inner[0])
    return model is not None and (len(inner) < 3 or inner[1] in (*model["recipes"], "extract_features", "score_photos"))


def stage_times(benchmarks: Path, config: Mapping[str, Any] | None = None) -> tuple[list[StageTime], float]:
    """Times by rule, the longest first, and seconds in all.

    Args:
        benchmarks: a folder of tables with columns ``s`` (seconds) and ``max_rss`` (MB, ``-`` where unknown).
        config: tells which of them count, see :func:`belongs`; all of them if it is not given.
    """
    rows = []
    for path in sorted(benchmarks.rglob("*.tsv")):
        if config is not None and not belongs(path.relative_to(benchmarks), config):
            continue
        rule = path.parent.name if path.stem.isdigit() else path.stem
        table = pl.read_csv(path, separator="\t", infer_schema=False)
        memory = table["max_rss"].cast(pl.Float64, strict=False).max()
        rows.append({"rule": rule, "seconds": table["s"].cast(pl.Float64).sum(), "memory": memory})
    schema = {"rule": pl.String, "seconds": pl.Float64, "memory": pl.Float64}
    summed = (
        pl.DataFrame(rows, schema=schema)
        .group_by("rule")
        .agg(pl.len().alias("jobs"), pl.col("seconds").sum(), pl.col("memory").max())
        .sort("seconds", "rule", descending=[True, False])
    )
    total = float(summed["seconds"].sum())
    times = [
        StageTime(rule, jobs, clock(seconds), "–" if memory is None else f"{memory:,.0f} MB", seconds / (total or 1.0))
        for rule, jobs, seconds, memory in summed.select("rule", "jobs", "seconds", "memory").iter_rows()
    ]
    return times, total

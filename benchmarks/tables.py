"""The tables of docs/results.md from a finished run: ``python -m benchmarks.tables --results results``."""

import argparse
from pathlib import Path

import polars as pl

from fieldmark.artifacts import read_table
from fieldmark.report.making_section import stage_times


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def accuracy_table(scores: pl.DataFrame, split: str) -> str:
    """Top-1 with its 95 % interval, macro and tail accuracy of every member and of the ensemble."""
    rows = []
    frame = scores.filter(pl.col("stage").is_in(["model", "ensemble"]) & (pl.col("split") == split))
    for (member,), own in frame.group_by(["member"], maintain_order=True):
        found = {row["metric"]: row for row in own.iter_rows(named=True)}
        top1 = found["top1"]
        interval = f"{percent(top1['low'])} to {percent(top1['high'])}"
        others = [percent(found[metric]["value"]) if metric in found else "–" for metric in ("macro", "tail")]
        rows.append([str(member), percent(top1["value"]), interval, *others])
    return markdown(["member", "top-1", "95 % interval", "macro", "tail"], rows)


def difference_table(scores: pl.DataFrame, split: str) -> str:
    """Paired differences of top-1, in points, with bootstrap intervals."""
    frame = scores.filter((pl.col("metric") == "top1_difference") & (pl.col("split") == split))
    rows = [
        [row["member"], f"{100 * row['value']:+.1f}", f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"]
        for row in frame.iter_rows(named=True)
    ]
    return markdown(["difference", "points", "95 % interval"], rows)


def unlabeled_table(scores: pl.DataFrame) -> str:
    """What clustering, filter and selection did in each round."""
    frame = scores.filter(pl.col("stage").is_in(["cluster", "filter", "select"]))
    rows = [
        [str(row["round"]), row["stage"], row["metric"], percent(row["value"]), str(row["count"])]
        for row in frame.iter_rows(named=True)
    ]
    return markdown(["round", "stage", "measure", "%", "of"], rows)


def time_table(results: Path) -> str:
    """Time of each rule, from Snakemake's benchmark files."""
    times, _ = stage_times(results / "benchmarks")
    return markdown(["rule", "jobs", "time", "memory"], [[t.rule, str(t.jobs), t.time, t.memory] for t in times])


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--split", choices=["val", "test"], default="test")
    options = parser.parse_args()
    scores = read_table("scores", options.results / "evaluation" / "scores.parquet")
    print(accuracy_table(scores, options.split))
    print(difference_table(scores, options.split))
    print(unlabeled_table(scores))
    print(time_table(options.results))


if __name__ == "__main__":
    main()

"""Write the page of evidence from the tables of all data sets and seeds below a folder.

``python -m benchmarks.accuracy.page docs/evidence`` writes ``docs/evidence.md`` and a chart beside each set's tables.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import polars as pl

from benchmarks.accuracy.ablations import ABLATIONS
from benchmarks.accuracy.comparison import Difference, Measured, best, closed_gap, difference, interval, read_accuracies
from benchmarks.accuracy.methods import BASELINES, CLOSED_SET, HALF_WAY, ORACLES, rank, title
from benchmarks.tables import markdown, percent
from fieldmark.report.charts import Row, intervals

Table = Mapping[tuple[str, str], Measured]

INTRODUCTION = """# Does it beat what one would use instead?

Written by `make evidence` from the tables in [{tables}/]({tables}).

On each data set all methods have the same backbone, image size, augmentation, test-time views and seeds. The pipeline
spends more optimizer steps than plain fine-tuning: methods marked "all steps", FixMatch and FreeMatch have as many as
lead to the last round's model, and SimCLR passes as many views in fewer and larger steps. Oracles learn the true labels
of all in-class unlabeled photos; methods "in-class photos only" are told which photos are foreign, and no more. All
seeds have the configuration's settings. Inside a run no figure of this page chooses anything, except the best baseline:
being the best on test, it is the hardest to beat.

Intervals are 95 %, of a bootstrap that draws test photos and seeds, each with replacement; with one seed they hold no
spread of seeds. Differences are paired by photo and seed.
"""
# On the project's own page, not on one of a user's photos.
READING = """[results.md](results.md) says what to make of it, which settings were decided with test figures in sight,
and which rows are of earlier versions."""
ABLATIONS_NOTE = """Each variant is one training a seed, and so is the model it is compared with. The intervals hold the
spread of photos, and of seeds if there are several, but not what two trainings with the same settings differ by (on
groceries about two points): if the model itself was an unlucky one, all variants look good."""
SELECTIONS_NOTE = """What the same changes do to the selection of round 0: the AUROC of its in-class score, the foreign
share of the selected photos, and how many of these are of the class that they are given. Means over seeds, and each
seed's difference. Changes that do not touch the selection, or whose selection was not kept, are left out."""
_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #5d655c; } .figure { font-variant-numeric: tabular-nums; }
.grid { stroke: #8d948b; stroke-opacity: .35; }
.reference { stroke: #b55a12; stroke-width: 1.4; stroke-dasharray: 4 3; }
.s0 { --c: #8d948b; } .s1 { --c: #14716a; } .s2 { --c: #b55a12; } .s3 { --c: #5157b8; }
.bar { stroke: var(--c); stroke-width: 3; stroke-linecap: round; opacity: .5; } .dot { fill: var(--c); }
@media (prefers-color-scheme: dark) { text { fill: #c4cac2; } .s1 { --c: #54bfb2; } .s3 { --c: #9da3f5; } }
</style>"""


def family_style(method: str) -> str:
    """The colour of a method in the chart: baselines grey, the pipeline green, oracles orange, others blue."""
    if method in BASELINES:
        return "s0"
    if method in ORACLES:
        return "s2"
    return "s3" if method in (*HALF_WAY, *CLOSED_SET) else "s1"


def listed(table: Table) -> list[Measured]:
    """What the main table shows: everything but ablations and the ways to weigh votes."""
    own = [one for one in table.values() if one.method != "vote" and not one.method.startswith("ablation/")]
    return sorted(own, key=lambda one: (rank(one.method), one.member))


def points(found: Difference) -> list[str]:
    """A difference and its interval in points."""
    value, low, high = (f"{100 * one:+.1f}".replace("-", "−") for one in (found.value, found.low, found.high))
    return [value, f"{low} to {high}", str(found.seeds)]


def main_table(table: Table) -> str:
    """Accuracy of every method."""
    rows = []
    for one in listed(table):
        low, high = interval(one.hits)
        single = ", ".join(f"{100 * value:.1f}" for value in one.hits.mean(axis=1))
        name, steps = title(one.method, one.member), "–" if one.steps is None else f"{one.steps:,}"
        middle = [percent(one.top1), f"{percent(low)} to {percent(high)}", single]
        rows.append([name, *middle, percent(one.macro.mean()), percent(one.tail.mean()), steps])
    return markdown(["method", "top-1", "95 % interval", "by seed", "macro", "rare third", "steps"], rows)


def chart(table: Table, supervised: Measured) -> str:
    """A dot with its interval for each method, and a line at supervised fine-tuning, as a file of its own."""
    rows = []
    for one in listed(table):
        low, high = interval(one.hits)
        name, figure = title(one.method, one.member), f"{percent(one.top1)} %"
        rows.append(Row(name, figure, one.top1, low, high, family_style(one.method)))
    ends = [edge for row in rows for edge in (row.low, row.high) if edge is not None]
    low, high = math.floor(20 * min(ends)) / 20, math.ceil(20 * max(ends)) / 20
    drawing = str(intervals("Top-1 on test", rows, low, high, supervised.top1).drawing)
    start = drawing.index(">") + 1
    opening = drawing[:start].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" width="480"', 1)
    return opening + _STYLE + drawing[start:]


def contenders(table: Table) -> list[Measured]:
    """The models of the last round, and the ensemble."""
    last = max((one.method for one in table.values() if one.method.startswith("round")), key=rank)
    return [one for one in listed(table) if one.method in (last, "ensemble")]


def difference_table(table: Table) -> str:
    """The last round's models and the ensemble minus every baseline and oracle."""
    rows = []
    for ours in contenders(table):
        for other in listed(table):
            found = difference(ours, other) if other.method in (*BASELINES, *ORACLES) else None
            if found:
                rows.append([title(ours.method, ours.member), title(other.method, other.member), *points(found)])
    return markdown(["first", "minus", "points", "95 % interval", "seeds"], rows)


def closed_set_table(table: Table) -> str:
    """What methods made for closed sets do without foreign photos, and what foreign photos cost them."""
    rows = []
    for closed, open_set in CLOSED_SET.items():
        for one in listed(table):
            if one.method != closed:
                continue
            for other in (table.get((method, one.member)) for method in ("long", open_set)):
                found = difference(one, other) if other else None
                if other and found:
                    rows.append([title(one.method, one.member), title(other.method, other.member), *points(found)])
    return markdown(["first", "minus", "points", "95 % interval", "seeds"], rows)


def gap_table(table: Table, supervised: Measured, oracle: Measured) -> str:
    """How much of the way from supervised fine-tuning to the oracle each round and the ensemble go."""
    rows = []
    for one in listed(table):
        share = closed_gap(one, supervised, oracle)
        if share is not None and (one.method.startswith("round") or one.method == "ensemble"):
            value, low, high = (
                f"{100 * part:.0f}".replace("-", "−").replace("inf", "∞")
                for part in (share.value, share.low, share.high)
            )
            rows.append([title(one.method, one.member), value, f"{low} to {high}", str(share.seeds)])
    common = tuple(seed for seed in supervised.seeds if seed in oracle.seeds)
    values = [percent(float(one.of_seeds(common).mean())) for one in (supervised, oracle)]
    ends = [
        f"{title(one.method, one.member)} ({value})" for one, value in zip((supervised, oracle), values, strict=True)
    ]
    return markdown(["model", f"% of the gap from {ends[0]} to {ends[1]}", "95 % interval", "seeds"], rows)


def ablation_table(table: Table) -> str:
    """What one change does to the model of round 0."""
    rows = []
    for name, ablation in ABLATIONS.items():
        for (method, member), one in table.items():
            base = table.get(("round0", member))
            if method == f"ablation/{name}" and base:
                found = difference(one, base)
                if found:
                    rows.append([ablation.title, member.split("/")[-1], percent(one.top1), *points(found)])
    return markdown(["changed", "recipe", "top-1", "points", "95 % interval", "seeds"], rows)


def ablated_selection_table(folder: Path) -> str:
    """What one change does to the selection of round 0: the mean over its seeds, and each seed's difference."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for path in sorted(folder.glob("seed*/unlabeled.parquet")):
        figures = pl.read_parquet(path).filter(round=0).select("stage", "metric", "value")
        for stage, metric, value in figures.iter_rows():
            found.setdefault((stage, metric), {})[path.parent.name] = 100 * value
    metrics = ("auroc_in_class_score", "foreign_share", "precision")
    rows = []
    for name, ablation in ABLATIONS.items():
        cells, changed = [ablation.title], False
        for metric in metrics:
            base, own = found.get(("select", metric), {}), found.get((f"ablation/{name}", metric), {})
            differences = [own[seed] - base[seed] for seed in own if seed in base]
            changed = changed or any(differences)
            cells.append(f"{fmean(own.values()):.1f}" if own else "–")
            cells.append(", ".join(f"{value:+.1f}" for value in differences).replace("-", "−"))
        rows += [cells] if changed else []
    if not rows:
        return ""
    bases = [found.get(("select", metric), {}) for metric in metrics]
    unchanged = [cell for base in bases for cell in (f"{fmean(base.values()):.1f}" if base else "–", "")]
    heads = ["AUROC × 100", "foreign, %", "rightly named, %"]
    head = ["changed", *(cell for head in heads for cell in (head, "by seed"))]
    return markdown(head, [["nothing", *unchanged], *rows])


def vote_table(table: Table) -> str:
    """Ways to weigh the votes, and who votes."""
    votes = [one for one in table.values() if one.method == "vote"]
    rows = [
        [title(one.method, one.member), percent(one.top1), ", ".join(percent(value) for value in one.hits.mean(axis=1))]
        for one in votes
    ]
    return markdown(["votes", "top-1", "by seed"], rows)


def unlabeled_tables(folder: Path) -> str:
    """How foreign photos are told apart, and what clustering, filter and selection did, by seed."""
    by_seed = [pl.read_parquet(path) for path in sorted(folder.glob("seed*/unlabeled.parquet"))]
    figures: dict[tuple[str, int | None, str], list[str]] = {}
    for frame in by_seed:
        for stage, number, metric, value in frame.iter_rows():
            figures.setdefault((stage, number, metric), []).append(percent(value))
    detectors = {metric for stage, _, metric in figures if stage == "auroc"}
    share = next(stage for stage, _, _ in figures if stage.startswith("foreign share"))
    told = [
        [name, *(", ".join(figures[stage, None, name]) for stage in ("auroc", share))]
        for name in sorted(detectors, key=[metric for _, _, metric in figures].index)
    ]
    stages = [
        [str(number), stage, metric.replace("_", " "), ", ".join(values)]
        for (stage, number, metric), values in figures.items()
        if number is not None and not stage.startswith("ablation/")
    ]
    told_table = markdown(["score", "AUROC × 100, by seed", f"{share}, %, by seed"], told)
    return told_table + "\n" + markdown(["round", "stage", "measure", "%, by seed"], stages)


def section(folder: Path) -> str:
    """Everything about one data set; its chart is written beside its tables."""
    table = read_accuracies(folder)
    first = next(one for one in listed(table) if one.method == "round0").member
    supervised = table["supervised", first]
    (folder / "accuracy.svg").write_text(chart(table, supervised), encoding="utf-8")
    photos = supervised.hits.shape[1]
    parts = [
        f"## {folder.name.replace('_', ' ').capitalize()}",
        f"{photos:,} test photos.",
        f"![Top-1 on test with 95 % intervals; dashed: supervised]({folder.parent.name}/{folder.name}/accuracy.svg)",
        main_table(table),
    ]
    baseline, ours = best(table, BASELINES), contenders(table)
    if baseline is not None:
        parts += [f"Best baseline: {title(baseline.method, baseline.member)}, {percent(baseline.top1)}."]
    parts += ["### Differences", difference_table(table)] if ours else []
    for oracle in (one for one in listed(table) if one.method in ORACLES):
        # Like is compared with like: an oracle of many steps with a supervised model of as many.
        start = table.get(("supervised" if oracle.method == "oracle" else "long", oracle.member))
        if start is not None:
            parts.append(gap_table(table, start, oracle))
    if any(method in CLOSED_SET for method, _ in table):
        parts += ["### Without foreign photos", closed_set_table(table)]
    if any(method.startswith("ablation/") for method, _ in table):
        parts += ["### One part changed, judged by round 0", ABLATIONS_NOTE, ablation_table(table)]
        selections = ablated_selection_table(folder)
        parts += [SELECTIONS_NOTE, selections] if selections else []
    parts += ["### Votes", vote_table(table)]
    return "\n\n".join(part.strip() for part in [*parts, "### Unlabeled photos", unlabeled_tables(folder)])


def page(folder: Path) -> str:
    """The whole page, of all sets below a folder."""
    sets: Sequence[Path] = sorted({path.parent.parent for path in folder.glob("*/seed*/accuracy.parquet")})
    introduction = [INTRODUCTION.format(tables=folder.name).strip()]
    introduction += [READING] if (folder.parent / "results.md").is_file() else []
    return "\n".join(f"{part}\n" for part in [*introduction, *(section(one) for one in sets)])


def main() -> None:
    """Write the page of the folder given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with SET/seedN/accuracy.parquet and unlabeled.parquet in it")
    folder = parser.parse_args().folder
    folder.with_suffix(".md").write_text(page(folder), encoding="utf-8")


if __name__ == "__main__":
    main()

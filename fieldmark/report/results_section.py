"""Sections "Result", "Accuracy" and "Ensemble": what was reached, by whom, against what."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import polars as pl

from fieldmark.artifacts import read_table
from fieldmark.predictions import round_of
from fieldmark.report.charts import Figure, Row, Series, bars, intervals, lines
from fieldmark.report.inputs import Material
from fieldmark.report.svg import percent as percent_tick
from fieldmark.report.wording import (
    between,
    member_name,
    member_with_run,
    p_value,
    percent,
    points,
    points_between,
    run_name,
    split_name,
)

_COLUMNS = ("top1", "top5", "macro", "tail")
_FITTED = (
    "No truth of the test photos was given. The ensemble's accuracy is that of weights fitted on one half of the "
    "validation photos, measured on the other half. Its difference to other models is of all validation photos, which "
    "the weights have seen, and so is too favourable."
)
_EQUAL = (
    "No truth of the test photos was given, so these are figures of the validation photos. Equal weights have learned "
    "nothing from them, but the best single model was chosen by them, and looks the better for it."
)


@dataclass(frozen=True)
class Headline:
    """The result in words and figures."""

    top1: str
    interval: str
    photos: int
    split: str
    difference: str | None
    against: str
    compared: bool
    difference_text: str
    single: str
    caveat: str
    fitted: bool
    figure: Figure
    test_photos: int
    members: int
    voting: int
    method: str


@dataclass(frozen=True)
class AccuracyRow:
    """One line of the table of accuracies; values with their intervals as title."""

    group: str
    name: str
    cells: list[tuple[str, str]]


@dataclass(frozen=True)
class Comparison:
    """One difference of two members on the same photos."""

    first: str
    second: str
    points: str
    interval: str
    p: str
    photos: int


@dataclass(frozen=True)
class AccuracySection:
    """Accuracy by run and member on one split."""

    split: str
    figures: list[Figure]
    rows: list[AccuracyRow]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class EnsembleSection:
    """How the weights were found and what they are worth."""

    figures: list[Figure]
    halves: list[tuple[str, list[tuple[str, str]]]]
    splits: list[str]
    weights: list[Figure]


def _supervised(material: Material) -> str | None:
    """The best supervised fine-tuning alone on the told split, ties by name."""
    return max(_tuned(material), key=lambda name: _top1(material, name)["value"], default=None)


def _tuned(material: Material) -> list[str]:
    names = [name for name in material.members("model", material.split) if name.startswith("baseline/")]
    return sorted(name for name in names if not name.endswith("/probe"))


def _scores(material: Material, member: str) -> dict[str, dict]:
    return material.pick("model", material.split, member, round_of(member.split("/")[0]))


def _top1(material: Material, member: str) -> dict:
    return _scores(material, member)["top1"]


def _best_single(material: Material) -> str | None:
    """The rounds' model that is compared beside the ensemble: it was the best on the validation photos."""
    pairs = material.members("comparison", material.split)
    return next((pair.split(" - ")[0] for pair in pairs if not pair.startswith("ensemble - ")), None)


def headline(material: Material) -> Headline:
    """Collect the headline."""
    on_test = material.split == "test"
    # Weights that were fitted on the photos that they are judged by flatter themselves.
    fitted = not on_test and material.method != "uniform"
    ensemble = _honest_val(material) if fitted else material.pick("ensemble", material.split, "ensemble")
    top1, supervised, single = ensemble["top1"], _supervised(material), _best_single(material)
    row = material.pick("comparison", material.split, f"ensemble - {supervised}").get("top1_difference")
    weights = read_table("ensemble_weights", material.inputs.weights).filter(pl.col("method") == material.method)
    test = material.manifest.filter(pl.col("split") == "test")
    return Headline(
        top1=percent(top1["value"]),
        interval=between(top1),
        photos=top1["count"],
        split=split_name(material.split).lower(),
        # On photos that the weights were fitted on a difference is told, but not as the result.
        difference=points(row["value"]) if row is not None and not fitted else None,
        against="the best single model" if material.supervised else "supervised fine-tuning",
        compared=row is not None,
        difference_text=difference_text(
            row,
            supervised,
            None if supervised is None else _top1(material, supervised),
            len(_tuned(material)),
            voting=material.supervised,
        ),
        single="" if single is None else member_with_run(single),
        caveat="" if on_test else _FITTED if fitted else _EQUAL,
        fitted=fitted,
        figure=_headline_figure(material, top1, supervised, fitted),
        test_photos=test.join(material.predictions, on="image_id", how="semi").height,
        members=weights.height,
        voting=weights.filter(pl.col("weight") >= 0.005).height,
        method=material.method,
    )


def _honest_val(material: Material) -> dict[str, dict]:
    """The submitted method on the half of the validation photos that its weights were not fitted on."""
    return material.pick("ensemble", "val_report", material.method)


def difference_text(
    row: dict | None, supervised: str | None, top1: dict | None, choices: int, voting: bool = False
) -> str:
    """The gain over supervised fine-tuning in honest words.

    Args:
        row: the score of the difference, if it was measured.
        supervised: the member that is compared with.
        top1: its score.
        choices: how many supervised members it is the best of.
        voting: whether these members make up the ensemble, as in the supervised track.
    """
    if row is None or supervised is None or top1 is None:
        return "No supervised fine-tuning of the same backbone was run to compare with."
    kind = "supervised fine-tuning of the same backbone" if choices == 1 else "the best supervised fine-tuning"
    told = f"({member_name(supervised)}, {percent(top1['value'])})"
    reference = f"its best single model {told}" if voting else f"{kind} on the labeled photos alone {told}"
    interval = f"95 % interval {points_between(row)} points"
    if row["low"] <= 0 <= row["high"]:
        return f"{points(row['value'])} points against {reference}; this may be chance: the {interval}, includes 0."
    side = "above" if row["value"] > 0 else "below"
    return f"{abs(100 * row['value']):.1f} points {side} {reference}; {interval}."


def _headline_figure(material: Material, top1: dict, supervised: str | None, fitted: bool) -> Figure:
    rows = []
    probes = [name for name in material.members("model", material.split) if name.endswith("/probe")]
    probes = [name for name in probes if name != "baseline/metadata/probe"]
    if probes:
        best = max(sorted(probes), key=lambda name: _top1(material, name)["value"])
        rows.append(_row("Linear probe on pretrained features", _top1(material, best), "s0"))
    if supervised is not None:
        name = "Best single model" if material.supervised else "Supervised fine-tuning"
        rows.append(_row(name, _top1(material, supervised), "s2"))
    single = _best_single(material)
    if single is not None:
        rows.append(_row("Best model of the rounds", _top1(material, single), "s1"))
    # The other models have learned nothing from the validation photos; fitted weights have, from half of them.
    rows.append(_row("Ensemble, on its other half" if fitted else "Ensemble", top1, "s3"))
    reference = None if supervised is None else _top1(material, supervised)["value"]
    caption = f"Top-1 on {split_name(material.split).lower()} photos with 95 % intervals"
    return _dots(material, caption, rows, _bounds(rows), reference)


def _row(name: str, row: dict, style: str) -> Row:
    return Row(name, percent(row["value"]), row["value"], row["low"], row["high"], style)


def _bounds(rows: Sequence[Row]) -> tuple[float, float]:
    """Round shares around all intervals."""
    low = min(row.value if row.low is None else row.low for row in rows)
    high = max(row.value if row.high is None else row.high for row in rows)
    return max(0.0, int(low * 20) / 20), min(1.0, -int(-high * 20 // 1) / 20)


def _dots(
    material: Material, caption: str, rows: Sequence[Row], bounds: tuple[float, float], reference: float | None
) -> Figure:
    name = "best single model" if material.supervised else "supervised fine-tuning"
    return intervals(caption, rows, *bounds, reference, name)


def accuracy_section(material: Material) -> AccuracySection:
    """Collect accuracies of every member and of every way to average them."""
    split = material.split
    members = sorted(material.members("model", split), key=lambda name: (not name.startswith("baseline/"), name))
    supervised = _supervised(material)
    reference = None if supervised is None else _top1(material, supervised)["value"]
    alone = "Single models" if material.supervised else "Baselines"
    found = [(alone if m.startswith("baseline/") else run_name(m.split("/")[0]), m) for m in members]
    methods = [name for name in material.members("ensemble", split) if name != "ensemble"]
    groups: list[tuple[str, list[tuple[Row, AccuracyRow]]]] = []
    for group, pairs in groupby(found, key=lambda pair: pair[0]):
        groups.append((group, [_accuracy(material, group, name) for _, name in pairs]))
    groups.append(("Ensemble", [_ensemble_accuracy(material, name) for name in methods]))
    rows = [row for _, entries in groups for row, _ in entries]
    bounds = _bounds(rows)
    return AccuracySection(
        split=split_name(split).lower(),
        figures=[
            _dots(material, group, [row for row, _ in entries], bounds, reference)
            for group, entries in groups
            if entries
        ],
        rows=[line for _, entries in groups for _, line in entries],
        comparisons=_comparisons(material),
    )


def _accuracy(material: Material, group: str, member: str) -> tuple[Row, AccuracyRow]:
    scores = _scores(material, member)
    style = "s1" if not member.startswith("baseline/") else "s0" if member.endswith("/probe") else "s2"
    return _row(member_name(member), scores["top1"], style), AccuracyRow(group, member_name(member), _cells(scores))


def _ensemble_accuracy(material: Material, method: str) -> tuple[Row, AccuracyRow]:
    scores = material.pick("ensemble", material.split, method)
    name = f"{method} weights{' (submitted)' if method == material.method else ''}"
    return _row(name, scores["top1"], "s3"), AccuracyRow("Ensemble", name, _cells(scores))


def _cells(scores: dict[str, dict]) -> list[tuple[str, str]]:
    return [(percent(scores[m]["value"]), between(scores[m])) if m in scores else ("–", "") for m in _COLUMNS]


def _comparisons(material: Material) -> list[Comparison]:
    found = []
    for pair in material.members("comparison", material.split):
        scores = material.pick("comparison", material.split, pair)
        first, second = pair.split(" - ")
        difference = scores["top1_difference"]
        found.append(
            Comparison(
                "ensemble" if first == "ensemble" else member_with_run(first),
                member_name(second),
                points(difference["value"]),
                points_between(difference),
                p_value(scores["mcnemar_p"]["value"]),
                difference["count"],
            )
        )
    return found


def ensemble_section(material: Material) -> EnsembleSection:
    """Collect the search for the weights, the weights, and their worth on photos that they have not seen."""
    search = read_table("ensemble_history", material.inputs.search)
    weights = read_table("ensemble_weights", material.inputs.weights)
    methods = weights["method"].unique(maintain_order=True).to_list()
    figures = []
    if search.height > 1:
        generations = search["generation"].to_list()
        best = Series("best of the generation", "s3", generations, search["best"].to_list())
        mean = Series("mean", "s0", generations, search["mean"].to_list())
        caption = "Evolutionary search on all validation photos"
        figures.append(lines(caption, [best, mean], "generation", "top-1", percent_tick))
    places = ["val_fit", "val_report", *(["test"] if material.split == "test" else [])]
    halves = []
    for method in methods:
        found = [material.pick("ensemble", place, method).get("top1") for place in places]
        halves.append((method, [("–", "") if row is None else (percent(row["value"]), between(row)) for row in found]))
    names = {"val_fit": "Fitted half", "val_report": "Other half", "test": "Test, refitted on all"}
    return EnsembleSection(
        figures=figures,
        halves=halves,
        splits=[names[place] for place in places],
        # Uniform weights need no chart.
        weights=[
            _weights_chart(method, weights.filter(pl.col("method") == method))
            for method in methods
            if method != "uniform"
        ],
    )


def _weights_chart(method: str, weights: pl.DataFrame) -> Figure:
    rows = [
        Row(member_with_run(member), f"{weight:.2f}", weight, style="s3")
        for member, weight in weights.select("member", "weight").iter_rows()
    ]
    return bars(f"{method.capitalize()} weights", rows)

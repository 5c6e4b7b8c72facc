"""Figures as a reader wants to see them."""

import re

_METRICS = {
    "purity_in_class": "Purity of kept clusters, in-class photos",
    "purity_overall": "Purity of kept clusters, all photos",
    "in_class_share": "In-class share of kept clusters",
    "in_class_recall": "In-class photos in kept clusters",
    "foreign_precision": "Foreign share of foreign clusters",
    "foreign_recall": "Foreign photos in foreign clusters",
    "precision": "Precision: in-class and rightly named",
    "recall": "Recall: in-class photos found so",
    "foreign_share": "Foreign photos among the selected",
    "label_accuracy": "In-class ones rightly named",
    "auroc_in_class_score": "AUROC of the in-class score",
    "auroc_confidence": "AUROC of the guide's confidence",
    "mean_iou": "Mean intersection over union",
    "ap50": "Average precision at half overlap",
    "ap": "Average precision, 0.5 to 0.95",
    "found_share": "Photos where a region was found",
}
_SPLITS = {"labeled": "Labeled", "unlabeled": "Unlabeled", "val": "Validation", "test": "Test"}
MINUS = "\N{MINUS SIGN}"


def metric_name(metric: str) -> str:
    """A metric in words."""
    return _METRICS.get(metric, metric)


def split_name(split: str) -> str:
    """A split in words."""
    return _SPLITS[split]


def percent(value: float, digits: int = 1) -> str:
    """A share as per cent."""
    return f"{100 * value:.{digits}f} %"


def between(row: dict) -> str:
    """The interval of a score in per cent, or nothing where it has none."""
    if row["low"] is None or row["high"] is None:
        return ""
    return f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %"


def points(value: float) -> str:
    """A difference of shares in percentage points, always with its sign."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def points_between(row: dict) -> str:
    """The interval of a difference in percentage points."""
    return f"{points(row['low'])} to {points(row['high'])}"


def p_value(value: float) -> str:
    """A p-value, not more exactly than it deserves."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def run_name(run: str) -> str:
    """A run in words: ``round1`` → Round 1, ``baseline`` → Supervised."""
    match = re.fullmatch(r"round(\d+)", run)
    return f"Round {match[1]}" if match else "Supervised"


def member_name(member: str) -> str:
    """A member in words: ``round1/lite0/layerwise`` → lite0 · layerwise."""
    _, model, recipe = member.split("/")
    if (model, recipe) == ("metadata", "probe"):
        return "place and date alone"
    return f"{model} · {recipe_name(recipe)}"


def member_with_run(member: str) -> str:
    """A member in words, with its run: round 1, lite0 · layerwise."""
    return f"{run_name(member.split('/')[0]).lower()}, {member_name(member)}"


def recipe_name(recipe: str) -> str:
    """A recipe in words."""
    return {"probe": "linear probe"}.get(recipe, recipe.replace("_", " "))


def clock(seconds: float) -> str:
    """A duration: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""The report's charts: each function turns numbers into one inline SVG with its legend."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from fieldmark.report.svg import (
    WIDTH,
    Frame,
    Numbers,
    Scale,
    element,
    fitted,
    path,
    percent,
    plain,
    round_values,
    svg,
    text,
)

# Finer steps than this cannot be seen, and ten thousand classes would make a heavy page.
_MOST_STEPS = 400


@dataclass(frozen=True)
class Figure:
    """A chart with its caption; the legend pairs a colour class with what it stands for."""

    caption: str
    drawing: Markup
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Series:
    """Named numbers with the colour class that they are drawn in."""

    name: str
    style: str
    x: Numbers
    y: Numbers


@dataclass(frozen=True)
class Row:
    """One row of a chart with a line per thing: its name, its figure in words, its value and maybe its interval."""

    name: str
    figure: str
    value: float
    low: float | None = None
    high: float | None = None
    style: str = "s1"


def _legend(series: Sequence[Series]) -> tuple[tuple[str, str], ...]:
    return tuple((one.style, one.name) for one in series)


def _top(values: Numbers) -> float:
    """A round number at or a little above the largest value."""
    largest = float(max(values, default=0))
    if largest <= 0:
        return 1.0
    step = np.diff(round_values(0, largest))[0]
    return float(np.ceil(largest / step - 1e-9) * step)


def steps(
    caption: str, series: Sequence[Series], x_name: str, y_name: str, y_format: Callable[[float], str] = plain
) -> Figure:
    """Values by rank as steps: the first series is filled, the others are lines over it.

    Of many ranks, neighbours share a step of their mean.

    Args:
        caption: of the figure.
        series: whose x is ignored and y are n values each, by rank.
        x_name: what is ranked.
        y_name: what the values count.
        y_format: of the vertical axis.
    """
    count = len(series[0].y)
    edges = np.linspace(0, count, min(count, _MOST_STEPS) + 1).round().astype(np.int64)
    heights = [np.add.reduceat(np.asarray(one.y, dtype=np.float64), edges[:-1]) / np.diff(edges) for one in series]
    frame = Frame((0, count), (0, _top(np.concatenate(heights))))
    frame.axes(x_name, y_name, y_format=y_format)
    for index, (one, values) in enumerate(zip(series, heights, strict=True)):
        corners = [(float(x), float(y)) for *ends, y in zip(edges[:-1], edges[1:], values, strict=True) for x in ends]
        if index == 0:
            outline = [(0.0, 0.0), *corners, (float(count), 0.0)]
            frame.parts.append(path([(frame.x(x), frame.y(y)) for x, y in outline], f"{one.style} area", close=True))
        frame.line([x for x, _ in corners], [y for _, y in corners], f"{one.style} line")
    return Figure(caption, frame.drawing(f"{caption}."), _legend(series) if len(series) > 1 else ())


def histogram(caption: str, groups: Sequence[Series], x_name: str, y_name: str, bins: int = 24) -> Figure:
    """How often values occur, the groups stacked upon each other from the first up.

    Args:
        caption: of the figure.
        groups: whose x are values, and y is ignored.
        x_name: what the values are.
        y_name: what is counted.
        bins: columns, of equal width.
    """
    values = np.concatenate([np.asarray(group.x, dtype=np.float64) for group in groups])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = [np.histogram(np.asarray(group.x, dtype=np.float64), edges)[0] for group in groups]
    frame = Frame((low, high), (0, _top(np.sum(counts, axis=0))))
    frame.axes(x_name, y_name)
    floor = np.zeros(bins)
    gap = (edges[1] - edges[0]) * 0.06
    for group, heights in zip(groups, counts, strict=True):
        for left, right, below, height in zip(edges[:-1], edges[1:], floor, heights, strict=True):
            frame.column(left + gap, right - gap, below, below + height, f"{group.style} fill")
        floor = floor + heights
    words = "; ".join(f"{group.name}: {len(group.x):,}" for group in groups)
    return Figure(caption, frame.drawing(f"{caption}. {words}."), _legend(groups))


def scatter(
    caption: str, groups: Sequence[Series], x_name: str, y_name: str, y_range: tuple[float, float], most: int = 400
) -> Figure:
    """Points by group, each with a shape of its own; the horizontal axis goes by magnitude.

    Args:
        caption: of the figure.
        groups: at most three.
        x_name: of positive values.
        y_name: of the vertical axis.
        y_range: of the vertical axis.
        most: points drawn of each group, evenly spaced in the order given.
    """
    sizes = np.concatenate([np.asarray(group.x, dtype=np.float64) for group in groups])
    low, high = float(sizes.min()) * 0.9, float(sizes.max()) * 1.1
    frame = Frame((low, high), y_range, log_x=True)
    frame.axes(x_name, y_name)
    for shape, group in enumerate(groups):
        rows = np.unique(np.linspace(0, len(group.x) - 1, min(most, len(group.x))).round().astype(int))
        for row in rows:
            at = frame.x(float(group.x[row])), frame.y(float(np.clip(group.y[row], *y_range)))
            frame.parts.append(_mark(shape, *at, f"{group.style} mark"))
    words = "; ".join(f"{group.name}: {len(group.x):,}" for group in groups)
    return Figure(caption, frame.drawing(f"{caption}. {words}."), _legend(groups))


def _mark(shape: int, x: float, y: float, class_: str) -> Markup:
    if shape == 0:
        return element("circle", cx=x, cy=y, r=3.0, class_=class_)
    if shape == 1:
        return element("rect", x=x - 2.6, y=y - 2.6, width=5.2, height=5.2, class_=class_)
    return path([(x, y - 3.8), (x + 3.5, y + 2.6), (x - 3.5, y + 2.6)], class_, close=True)


def lines(
    caption: str, series: Sequence[Series], x_name: str, y_name: str, y_format: Callable[[float], str] = plain
) -> Figure:
    """Lines through points, over a vertical range that fits them."""
    xs = np.concatenate([np.asarray(one.x, dtype=np.float64) for one in series])
    ys = np.concatenate([np.asarray(one.y, dtype=np.float64) for one in series])
    low, high = float(ys.min()), float(ys.max())
    pad = 0.08 * (high - low) or 0.05
    frame = Frame((float(xs.min()), max(float(xs.max()), float(xs.min()) + 1)), (low - pad, high + pad))
    frame.axes(x_name, y_name, y_format=y_format)
    for one in series:
        frame.line(one.x, one.y, f"{one.style} line")
    words = "; ".join(f"{one.name} from {y_format(one.y[0])} to {y_format(one.y[-1])}" for one in series)
    return Figure(caption, frame.drawing(f"{caption}. {words}."), _legend(series))


def loss_curve(name: str, phases: Sequence[Series]) -> Markup:
    """A small chart of a training run: every noted loss faint, their running mean bold, phases side by side."""
    values = np.concatenate([np.asarray(phase.y, dtype=np.float64) for phase in phases])
    last = max(float(phase.x[-1]) for phase in phases)
    # A first step may be far above all others: the axis ends at what nearly all losses stay below.
    frame = Frame(
        (0, max(last, 1.0)), (0, _top([float(np.quantile(values, 0.98))])), height=130, width=240, named=False
    )
    frame.axes("", "", ticks=3)
    for phase in phases:
        clipped = np.clip(np.asarray(phase.y, dtype=np.float64), 0, frame.y.high)
        frame.line(phase.x, clipped, f"{phase.style} faint")
        frame.line(phase.x, running_mean(clipped, 7), f"{phase.style} line")
    return frame.drawing(f"Loss of {name}: from {values[0]:.3g} to {values[-1]:.3g}.")


def running_mean(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Mean of each value and its neighbours, ``window`` in all, fewer at the ends."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    middle = np.arange(len(values))
    first, last = np.maximum(middle - window // 2, 0), np.minimum(middle + window // 2 + 1, len(values))
    return (totals[last] - totals[first]) / (last - first)


def bars(caption: str, rows: Sequence[Row]) -> Figure:
    """A horizontal bar from zero for each row, its name and figure above it."""
    most = max((row.value for row in rows), default=0) or 1.0
    parts = []
    for index, row in enumerate(rows):
        y = index * 32 + 14
        parts += _caption(row, y)
        parts.append(element("rect", x=0, y=y + 5, width=WIDTH, height=7, rx=2, class_="track"))
        if row.value > 0:
            length = max(2.0, WIDTH * row.value / most)
            parts.append(element("rect", x=0, y=y + 5, width=length, height=7, rx=2, class_=f"{row.style} fill"))
    words = "; ".join(f"{row.name}: {row.figure}" for row in rows)
    return Figure(caption, svg(len(rows) * 32 + 2, f"{caption}. {words}.", parts))


def _caption(row: Row, y: float) -> list[Markup]:
    room = WIDTH - 7 * len(row.figure) - 12
    return [text(fitted(row.name, room), 0, y, "label"), text(row.figure, WIDTH, y, "figure", "end")]


def intervals(
    caption: str, rows: Sequence[Row], low: float, high: float, reference: float | None = None, reference_name: str = ""
) -> Figure:
    """A dot with its interval for each row, on a common axis, with a dashed line at a reference value."""
    scale = Scale(low, high, 8, WIDTH - 8)
    floor = len(rows) * 38 + 6
    parts = []
    for value in scale.ticks(5):
        at = scale(value)
        parts.append(element("line", x1=at, x2=at, y1=0, y2=floor, class_="grid"))
        parts.append(text(percent(value), min(max(at, 16), WIDTH - 16), floor + 14, "tick", "middle"))
    if reference is not None:
        at = scale(reference)
        parts.append(element("line", x1=at, x2=at, y1=0, y2=floor, class_="reference"))
    for index, row in enumerate(rows):
        y = index * 38 + 14
        parts += _caption(row, y)
        if row.low is not None and row.high is not None:
            ends = {"x1": scale(row.low), "x2": scale(row.high)}
            parts.append(element("line", y1=y + 12, y2=y + 12, class_=f"{row.style} bar", **ends))
        parts.append(element("circle", cx=scale(row.value), cy=y + 12, r=4.5, class_=f"{row.style} dot"))
    words = "; ".join(f"{row.name}: {row.figure}" for row in rows)
    legend = (("reference", reference_name),) if reference is not None else ()
    return Figure(caption, svg(floor + 20, f"{caption}. {words}.", parts), legend)

"""Building blocks of inline SVG: elements, scales and the frame with axes that every plot is drawn in.

Colours are CSS classes of the page (``s0`` … ``s3``), so a chart follows the reader's light or dark scheme.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

Numbers = Sequence[float] | npt.NDArray[np.number]
# Drawn about as wide as a phone shows it, so that text keeps a legible size there.
WIDTH = 360
_CHARACTER_WIDTH = 6.2  # of the charts' 12 px type, on average


def coordinate(value: float) -> str:
    """A number with at most one decimal, without a negative zero."""
    text = f"{round(value, 1) + 0.0:.1f}"
    return text.removesuffix(".0")


def element(name: str, *content: str | Markup, **attributes: str | float) -> Markup:
    """One SVG element; text is escaped, ``class_`` means class, and other underscores mean hyphens."""
    parts = [Markup("<"), Markup(name)]
    for key, value in attributes.items():
        shown = value if isinstance(value, str) else coordinate(value)
        parts += [Markup(" "), Markup(key.rstrip("_").replace("_", "-")), Markup('="'), escape(shown), Markup('"')]
    if not content:
        return Markup("").join([*parts, Markup("/>")])
    return Markup("").join([*parts, Markup(">"), *map(escape, content), Markup("</"), Markup(name), Markup(">")])


def path(points: Iterable[tuple[float, float]], class_: str, close: bool = False) -> Markup:
    """A line through points, or the area that they enclose."""
    line = "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)
    return element("path", d=f"M{line}{'Z' if close else ''}", class_=class_)


def text(content: str, x: float, y: float, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text whose baseline starts, ends or has its middle at (x, y)."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def fitted(content: str, width: float) -> str:
    """``content`` cut, with an ellipsis, to what fits ``width``."""
    room = max(4, int(width / _CHARACTER_WIDTH))
    return content if len(content) <= room else content[: room - 1] + "…"


def svg(height: float, description: str, parts: Iterable[Markup], width: float = WIDTH) -> Markup:
    """A whole drawing, which screen readers announce as an image with ``description``."""
    box = f"0 0 {coordinate(width)} {coordinate(height)}"
    return element("svg", *parts, viewBox=box, role="img", aria_label=description)


@dataclass(frozen=True)
class Scale:
    """Maps data from ``low`` … ``high`` to ``start`` … ``end``, linearly or, if ``log``, by magnitude."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where ``value`` is drawn."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Round values between ``low`` and ``high``, about ``count`` of them."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            fine = [1, 2, 5] if math.log10(self.high / self.low) < 2.5 else [1]
            return [m * 10.0**p for p in powers for m in fine if self.low <= m * 10.0**p <= self.high]
        return round_values(self.low, self.high, count)


def round_values(low: float, high: float, count: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``, about ``count`` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def plain(value: float) -> str:
    """A tick's label: short, with thousands separated."""
    if abs(value) >= 1000 or value == int(value):
        return f"{round(value):,}"
    return f"{value:.3g}"


def percent(value: float) -> str:
    """A share as a tick's label in per cent."""
    return f"{100 * value:.3g} %"


class Frame:
    """The area that a plot is drawn in, with its axes, grid lines and labels."""

    LEFT, RIGHT = 44.0, 12.0

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        height: float = 216,
        width: float = WIDTH,
        log_x: bool = False,
        named: bool = True,
    ) -> None:
        """Prepare the scales.

        Args:
            x: lowest and highest value of the horizontal axis.
            y: of the vertical axis.
            height: of the whole drawing.
            width: of the whole drawing.
            log_x: whether the horizontal axis goes by magnitude.
            named: whether there is room for the axes' names.
        """
        self.width, self.height = width, height
        self.x = Scale(*x, self.LEFT, width - self.RIGHT, log_x)
        self.floor = height - (38 if named else 20)
        self.y = Scale(*y, self.floor, 24 if named else 8)
        self.parts: list[Markup] = []

    def axes(
        self,
        x_name: str,
        y_name: str,
        x_format: Callable[[float], str] = plain,
        y_format: Callable[[float], str] = plain,
        ticks: int = 5,
    ) -> None:
        """Draw grid lines with their labels, and both axes' names."""
        left, right, floor = self.LEFT, self.width - self.RIGHT, self.floor
        for value in self.y.ticks(ticks):
            at = self.y(value)
            self.parts.append(element("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
            self.parts.append(text(y_format(value), left - 6, at + 4, "tick", "end"))
        for value in self.x.ticks(ticks):
            at = self.x(value)
            self.parts.append(element("line", x1=at, x2=at, y1=floor, y2=floor + 4, class_="axis"))
            self.parts.append(text(x_format(value), at, floor + 16, "tick", "middle"))
        self.parts.append(element("line", x1=left, x2=right, y1=floor, y2=floor, class_="axis"))
        self.parts.append(text(y_name, 0, 12, "name"))
        self.parts.append(text(x_name, right, self.height - 5, "name", "end"))

    def line(self, xs: Numbers, ys: Numbers, class_: str) -> None:
        """A line through data points."""
        self.parts.append(path([(self.x(float(x)), self.y(float(y))) for x, y in zip(xs, ys, strict=True)], class_))

    def column(self, left: float, right: float, low: float, high: float, class_: str) -> None:
        """A rectangle between data values, of which nothing is drawn where it has no height."""
        if high > low:
            x, y = self.x(left), self.y(high)
            self.parts.append(element("rect", x=x, y=y, width=self.x(right) - x, height=self.y(low) - y, class_=class_))

    def drawing(self, description: str) -> Markup:
        """The finished drawing."""
        return svg(self.height, description, self.parts, self.width)

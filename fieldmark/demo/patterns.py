"""Wing patterns: palettes, the plan that a genus shares, and the small field mark of a species."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fieldmark.demo.shapes import Array, Wing, WingField

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """A genus's colours, sRGB."""

    ground: Colour
    light: Colour
    dark: Colour
    hind: Colour
    body: Colour


@dataclass(frozen=True)
class Mark:
    """One element of a wing pattern.

    ``along`` and ``across`` are wing coordinates, ``size`` a half width (lines, bands) or radius (spots) in forewing
    lengths, ``wave`` the height and ``count`` the number of a line's waves or a row's spots. ``tone`` is a field of
    the palette or one of the accents.
    """

    kind: str
    tone: str
    along: float
    across: float = 0.4
    size: float = 0.02
    wave: float = 0.0
    count: int = 3
    strength: float = 0.9


ACCENTS: dict[str, Colour] = {
    "white": (246, 243, 232),
    "black": (30, 25, 26),
    "orange": (228, 124, 34),
    "blue": (84, 132, 190),
    "yellow": (240, 208, 84),
    "crimson": (186, 40, 48),
}

PALETTES: tuple[Palette, ...] = (
    Palette((158, 122, 84), (212, 186, 146), (78, 53, 36), (224, 134, 62), (118, 88, 60)),  # oak
    Palette((148, 178, 128), (222, 232, 202), (74, 108, 72), (190, 210, 168), (176, 190, 150)),  # emerald
    Palette((150, 150, 148), (210, 209, 202), (60, 60, 66), (196, 62, 58), (120, 118, 118)),  # ash
    Palette((230, 214, 178), (250, 243, 224), (134, 92, 58), (240, 196, 110), (214, 190, 150)),  # cream
    Palette((178, 96, 52), (226, 164, 104), (88, 42, 28), (204, 120, 80), (140, 74, 44)),  # rust
    Palette((128, 98, 122), (196, 168, 184), (62, 42, 66), (222, 150, 160), (104, 76, 96)),  # heather
    Palette((222, 198, 92), (246, 234, 164), (132, 92, 44), (246, 224, 140), (196, 166, 84)),  # brimstone
    Palette((88, 88, 98), (150, 150, 158), (34, 32, 40), (92, 124, 168), (64, 62, 70)),  # slate
    Palette((150, 142, 92), (218, 150, 158), (92, 66, 62), (222, 120, 136), (158, 138, 98)),  # willowherb
    Palette((232, 229, 220), (252, 250, 246), (96, 88, 88), (236, 228, 214), (222, 214, 204)),  # ermine
    Palette((118, 108, 74), (182, 170, 126), (56, 50, 34), (230, 188, 76), (98, 88, 62)),  # moss
    Palette((170, 132, 112), (224, 196, 178), (96, 62, 56), (236, 168, 132), (140, 102, 88)),  # clay
)


def _step(signed: Array, pixels: float) -> Array:
    return np.clip(signed * pixels + 0.5, 0, 1)


def _curve(field: WingField, mark: Mark) -> Array:
    return mark.along + mark.wave * np.sin((2 * np.pi * mark.count) * field.across)


def _line(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    return _step(mark.size - np.abs(field.along - _curve(field, mark)), pixels)


def _beyond(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    return _step(field.along - _curve(field, mark), pixels)


def _within(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    return _step(_curve(field, mark) - field.along, pixels)


def _distance(field: WingField, mark: Mark, wing: Wing) -> Array:
    x, y = wing.point(mark.along, mark.across)
    dx, dy = field.x - np.float32(x), field.y - np.float32(y)
    return np.sqrt(dx * dx + dy * dy)


def _spot(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    return _step(mark.size - _distance(field, mark, wing), pixels)


def _ring(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    return _step(0.38 * mark.size - np.abs(_distance(field, mark, wing) - 0.8 * mark.size), pixels)


def _row(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    phase = np.mod(field.across * mark.count, 1) - 0.5
    sideways = phase * field.along * np.deg2rad(wing.inner - wing.costa) / mark.count
    forwards = field.along - mark.along
    return _step(mark.size - np.sqrt(sideways * sideways + forwards * forwards), pixels)


def _veins(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    phase = np.abs(np.mod(field.across * mark.count, 1) - 0.5)
    sideways = phase * field.along * np.deg2rad(wing.inner - wing.costa) / mark.count
    return _step(mark.size - sideways, pixels) * np.clip((field.along - mark.along) * 4, 0, 1)


def _bar(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    """A short bar from the costa inwards, ending at ``across``."""
    width = mark.size - np.abs(field.along - mark.along - 0.12 * field.across)
    return _step(np.minimum(width, (mark.across - field.across) * 0.8), pixels)


def _dash(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    """A streak along the wing, centred on (``along``, ``across``), four times as long as wide."""
    sideways = (field.across - mark.across) * field.along * np.deg2rad(wing.inner - wing.costa)
    width = mark.size * 0.6 - np.abs(sideways)
    return _step(np.minimum(width, mark.size * 2.4 - np.abs(field.along - mark.along)), pixels)


_COVERAGE: dict[str, Callable[[WingField, Mark, Wing, float], Array]] = {
    "line": _line,
    "beyond": _beyond,
    "within": _within,
    "spot": _spot,
    "ring": _ring,
    "row": _row,
    "veins": _veins,
    "bar": _bar,
    "dash": _dash,
}


def cover(field: WingField, mark: Mark, wing: Wing, pixels: float) -> Array:
    """Tell how much of each pixel the mark covers: 0 to ``mark.strength``, shape (n,)."""
    return _COVERAGE[mark.kind](field, mark, wing, pixels) * np.float32(mark.strength)


def colour_of(palette: Palette, tone: str) -> Array:
    """Look up a tone among the accents and in the palette; shape (3,), 0 to 255."""
    return np.array(ACCENTS[tone] if tone in ACCENTS else getattr(palette, tone), np.float32)


def contrast(mark: Mark, drawn: tuple[Mark, ...], wing: Wing, palette: Palette) -> float:
    """Measure how far a mark's colour is from what the pattern ``drawn`` shows at its place, in RGB steps."""
    across = min(mark.across, 0.5)
    x, y = wing.point(mark.along, across)
    one = [np.array([value], np.float32) for value in (mark.along, across, x, y, 1.0, 0.0)]
    colour = colour_of(palette, "ground")
    for other in drawn:
        colour = colour + (colour_of(palette, other.tone) - colour) * cover(WingField(*one), other, wing, 40.0)
    return float(np.linalg.norm(colour_of(palette, mark.tone) - colour))


Plan = tuple[tuple[Mark, ...], tuple[Mark, ...]]  # forewing, hindwing


def _lined(a: float, wave: float, count: int) -> Plan:
    lines = tuple(Mark("line", "dark", at, size=0.016, wave=wave, count=count) for at in (a, a + 0.34))
    return (*lines, Mark("beyond", "dark", 0.95, strength=0.5)), (Mark("line", "dark", 0.6, size=0.018, wave=wave),)


def _banded(a: float, wave: float, count: int) -> Plan:
    band = Mark("line", "dark", a + 0.18, size=0.12, wave=wave, count=count, strength=0.75)
    edges = tuple(
        Mark("line", "light", a + 0.18 + d, size=0.014, wave=wave, count=count, strength=0.85) for d in (-0.13, 0.13)
    )
    return (band, *edges), (Mark("line", "light", 0.62, size=0.04, strength=0.7),)


def _bordered(a: float, wave: float, count: int) -> Plan:
    border = Mark("beyond", "dark", 0.8, wave=wave, count=count, strength=0.85)
    return (border, Mark("line", "light", 0.79, size=0.012, wave=wave, count=count)), (replace(border, along=0.76),)


def _veined(a: float, wave: float, count: int) -> Plan:
    veins = Mark("veins", "dark", 0.15, size=0.012, count=7, strength=0.6)
    row = Mark("row", "dark", 0.95, size=0.024, count=7, strength=0.8)
    return (veins, row), (veins, row)


def _saddled(a: float, wave: float, count: int) -> Plan:
    saddle = Mark("within", "dark", a + 0.06, wave=wave, count=2, strength=0.7)
    edge = Mark("line", "light", a + 0.06, size=0.014, wave=wave, count=2, strength=0.8)
    return (saddle, edge, Mark("line", "light", 0.86, size=0.018, wave=wave, count=count)), (edge,)


def _dotted(a: float, wave: float, count: int) -> Plan:
    rows = tuple(Mark("row", "dark", at, size=0.026, count=n, strength=0.85) for at, n in ((a, 4), (0.9, 7)))
    return (*rows, Mark("line", "dark", 0.985, size=0.015, strength=0.6)), (Mark("row", "dark", 0.85, size=0.03),)


def _flushed(a: float, wave: float, count: int) -> Plan:
    flush = tuple(Mark("beyond", "light", at, wave=wave, count=count, strength=0.38) for at in (a + 0.2, a + 0.32))
    return (*flush, Mark("line", "dark", a + 0.19, size=0.014, wave=wave, count=count)), (
        Mark("within", "light", 0.5, strength=0.5),
    )


PLANS: tuple[Callable[[float, float, int], Plan], ...] = (
    _lined,
    _banded,
    _bordered,
    _veined,
    _saddled,
    _dotted,
    _flushed,
)

# What tells siblings apart. Each is about 6 to 8 pixels on a 96-pixel photo: small, yet learnable at 64.
FIELD_MARKS: tuple[tuple[str, tuple[Mark, ...]], ...] = (
    ("white spot", (Mark("spot", "white", 0.5, 0.36, 0.091),)),
    ("black spot", (Mark("spot", "black", 0.5, 0.36, 0.098),)),
    ("orange spot", (Mark("spot", "orange", 0.5, 0.36, 0.098),)),
    ("blue eye", (Mark("spot", "black", 0.5, 0.38, 0.13), Mark("ring", "blue", 0.5, 0.38, 0.124))),
    ("yellow eye", (Mark("spot", "black", 0.5, 0.38, 0.13), Mark("ring", "yellow", 0.5, 0.38, 0.124))),
    ("white costal bar", (Mark("bar", "white", 0.66, 0.42, 0.058),)),
    ("black costal bar", (Mark("bar", "black", 0.66, 0.42, 0.065),)),
    ("inner orange bar", (Mark("bar", "orange", 0.36, 0.5, 0.058),)),
    ("white corner spot", (Mark("spot", "white", 0.78, 0.72, 0.091),)),
    ("black corner spot", (Mark("spot", "black", 0.78, 0.72, 0.098),)),
    ("crimson corner spot", (Mark("spot", "crimson", 0.78, 0.72, 0.098),)),
    ("black basal dash", (Mark("dash", "black", 0.34, 0.5, 0.072),)),
    ("white tip", (Mark("spot", "white", 0.9, 0.08, 0.13),)),
    ("black tip", (Mark("spot", "black", 0.9, 0.08, 0.13),)),
    ("two white dots", (Mark("spot", "white", 0.42, 0.32, 0.065), Mark("spot", "white", 0.62, 0.36, 0.065))),
    ("two black dots", (Mark("spot", "black", 0.42, 0.32, 0.068), Mark("spot", "black", 0.62, 0.36, 0.068))),
    ("white inner band", (Mark("line", "white", 0.26, size=0.036),)),
    ("black outer band", (Mark("line", "black", 0.74, size=0.034),)),
)

"""Silhouettes and resting poses of the drawn moth families, and the coordinates painted on their wings.

Body coordinates: the forewing is about 1 long, the origin lies in the thorax, x points right, y towards the
tail. Angles are in degrees clockwise from the head (0 = forwards, 90 = right, 180 = backwards). Only the right
half is described: the left one is its mirror image.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

Array = np.ndarray
_TABLE = 256


@dataclass(frozen=True)
class Wing:
    """A wing as a fan around its root: ``outline`` is the reach from the costa (leading edge) to the inner edge."""

    root: tuple[float, float]
    costa: float
    inner: float
    outline: tuple[float, ...]
    bow: float = 4.0  # degrees by which the leading edge bulges
    scallops: int = 0
    scallop_depth: float = 0.0

    def reach(self) -> Array:
        """Tabulate the wing's reach over the fan, smoothly between the outline's points. Shape (256,)."""
        return _tabulate(self.outline, self.scallops, self.scallop_depth)

    def point(self, along: float, across: float) -> tuple[float, float]:
        """Give the place of wing coordinates (``along``, ``across``), relative to the root."""
        reach = float(self.reach()[round(across * (_TABLE - 1))]) * along
        angle = np.deg2rad(self.costa + (self.inner - self.costa) * across)
        return reach * float(np.sin(angle)), -reach * float(np.cos(angle))

    def turned(self, degrees: float) -> "Wing":
        """Swing the whole wing backwards by ``degrees``."""
        return replace(self, costa=self.costa + degrees, inner=self.inner + degrees)


@lru_cache(maxsize=1024)
def _tabulate(outline: tuple[float, ...], scallops: int, depth: float) -> Array:
    knots = np.linspace(0, 1, len(outline))
    across = np.linspace(0, 1, _TABLE)
    # A Gaussian-weighted mean of the linear interpolation rounds the corners.
    linear = np.interp(across, knots, outline)
    weights = np.exp(-0.5 * ((across[:, None] - across) * (len(knots) - 1) / 0.32) ** 2)
    smooth = (weights * linear).sum(1) / weights.sum(1)
    wave = 1 - depth * np.abs(np.sin(np.pi * scallops * across)) ** 0.5
    table: Array = (smooth * wave).astype(np.float32)
    table.setflags(write=False)
    return table


@dataclass(frozen=True)
class WingField:
    """Where pixels lie on a wing: along 0 (root) to 1 (margin), across 0 (costa) to 1 (inner edge); shape (n,)."""

    along: Array
    across: Array
    x: Array
    y: Array
    cover: Array
    shadow: Array  # how much of what lies under the wing it shades


def locate(wing: Wing, x: Array, y: Array, tilt: Array, pixels: float) -> WingField:
    """Find the wing coordinates of body coordinates.

    Args:
        wing: the wing.
        x: body coordinate sideways, on the right half, shape (n,).
        y: body coordinate backwards, shape (n,).
        tilt: degrees by which each pixel's wing (left or right) is turned, shape (n,).
        pixels: pixels per unit of length, for the soft edge.
    """
    dx, dy = x - np.float32(wing.root[0]), y - np.float32(wing.root[1])
    angle = np.rad2deg(np.arctan2(dx, -dy)) - tilt
    angle[angle < -60] += 360
    radius = np.sqrt(dx * dx + dy * dy)
    costa = wing.costa - wing.bow * np.clip(radius * (1.1 - radius) * 4, 0, 1)
    across = np.clip((angle - costa) / (wing.inner - costa), 0, 1)
    reach = wing.reach()[(across * (_TABLE - 1)).astype(np.int32)]
    arc = np.maximum(radius, 0.02) * np.float32(np.pi / 180)
    front, back, outer = (angle - costa) * arc, (wing.inner - angle) * arc, reach - radius
    cover = np.clip(np.minimum(np.minimum(front, back), outer) * pixels + 0.5, 0, 1)
    shadow = np.clip(np.minimum(back + 5 * arc, outer) * 10 + 0.5, 0, 1) * (front > 0)
    return WingField(radius / reach, across, dx, dy, cover, shadow)


@dataclass(frozen=True)
class Shape:
    """A family's silhouette: wings, body and antennae."""

    forewing: Wing
    hindwing: Wing
    body: tuple[tuple[float, float], ...]  # (y, half width) from head to tail
    waist: float  # y where the thorax ends
    wings_cover_body: bool
    antenna: str  # thread | feather | club
    antenna_length: float
    antenna_angle: float
    forelegs: bool = False
    mark_scale: float = 1.0  # smaller where the animal fills more of the photo

    def hull(self) -> Array:
        """Give body coordinates (n, 2) of points within whose bounding box, however turned, the animal lies."""
        return _hull(self)


@lru_cache(maxsize=1024)
def _hull(shape: Shape) -> Array:
    points = [(0.0, shape.body[0][0]), (0.0, shape.body[-1][0])]
    for wing in (shape.forewing, shape.hindwing):
        for across in np.linspace(0, 1, 17):
            x, y = wing.point(1.03, float(across))
            points.append((x + wing.root[0], y + wing.root[1]))
    for angle in np.deg2rad(shape.antenna_angle + np.array([-8.0, 12.0, 34.0])):
        reach = shape.antenna_length + 0.08
        points.append((reach * float(np.sin(angle)), shape.body[0][0] - reach * float(np.cos(angle))))
    right = np.array(points)
    hull: Array = np.concatenate([right, right * (-1, 1)])
    hull.setflags(write=False)
    return hull


_SLIM = ((-0.3, 0.0), (-0.27, 0.06), (-0.2, 0.075), (-0.1, 0.11), (0.08, 0.1), (0.16, 0.07), (0.4, 0.06), (0.62, 0.0))
_STOUT = ((-0.38, 0.0), (-0.33, 0.08), (-0.26, 0.1), (-0.1, 0.18), (0.1, 0.17), (0.2, 0.14), (0.6, 0.09), (0.95, 0.0))
_FURRY = ((-0.34, 0.0), (-0.3, 0.08), (-0.22, 0.11), (-0.08, 0.17), (0.1, 0.16), (0.2, 0.12), (0.45, 0.1), (0.66, 0.0))

SHAPES: tuple[Shape, ...] = (
    Shape(  # carpets: flat, all four wings spread
        Wing((0.05, -0.12), 68, 128, (1.0, 0.98, 0.88, 0.76, 0.66)),
        Wing((0.05, 0.0), 106, 170, (0.7, 0.76, 0.78, 0.74, 0.6), scallops=5, scallop_depth=0.03),
        _SLIM, 0.14, False, "thread", 0.5, 28,
    ),
    Shape(  # owlets: wings folded flat to a triangle over the body
        Wing((0.09, -0.2), 143, 192, (1.15, 1.12, 1.02, 0.98, 0.95), bow=9),
        Wing((0.06, 0.1), 150, 178, (0.6, 0.66, 0.66, 0.6)),
        _FURRY, 0.12, True, "thread", 0.52, 40, mark_scale=0.8,
    ),
    Shape(  # hawks: long swept wings, spindle-shaped body
        Wing((0.1, -0.14), 98, 146, (1.22, 0.98, 0.8, 0.66, 0.52), bow=5),
        Wing((0.09, 0.05), 118, 160, (0.62, 0.62, 0.58, 0.5)),
        _STOUT, 0.2, False, "club", 0.42, 38, mark_scale=0.95,
    ),
    Shape(  # emperors: broad wings, hooked tips, feathered antennae
        Wing((0.06, -0.1), 60, 122, (1.1, 0.96, 0.88, 0.84, 0.74), bow=9),
        Wing((0.06, 0.04), 98, 172, (0.66, 0.78, 0.84, 0.86, 0.72), bow=6),
        _FURRY, 0.14, False, "feather", 0.36, 42, mark_scale=1.05,
    ),
    Shape(  # underwings: half-open forewings above bright hindwings
        Wing((0.08, -0.14), 96, 152, (1.08, 1.04, 0.94, 0.82, 0.7), bow=6),
        Wing((0.07, 0.02), 108, 176, (0.72, 0.84, 0.9, 0.86, 0.7)),
        _FURRY, 0.14, False, "thread", 0.56, 34,
    ),
    Shape(  # lappets: tent of toothed wings, forelegs stretched forwards
        Wing((0.1, -0.14), 122, 186, (1.05, 0.98, 0.94, 0.9, 0.84), bow=12, scallops=6, scallop_depth=0.07),
        Wing((0.1, 0.0), 108, 150, (0.56, 0.66, 0.68, 0.6), scallops=4, scallop_depth=0.08),
        _FURRY, 0.14, True, "feather", 0.3, 30, forelegs=True, mark_scale=0.85,
    ),
    Shape(  # thorns: angular margins, hindwings drawn out to a point
        Wing((0.05, -0.12), 70, 126, (1.02, 0.84, 0.98, 0.8, 0.64), bow=5),
        Wing((0.05, 0.0), 104, 172, (0.62, 0.7, 1.0, 0.72, 0.56)),
        _SLIM, 0.14, False, "feather", 0.36, 30,
    ),
    Shape(  # footmen: long, narrow wings wrapped around the body
        Wing((0.08, -0.2), 158, 188, (1.25, 1.28, 1.22, 1.12, 1.08), bow=9),
        Wing((0.05, 0.1), 160, 178, (0.6, 0.66, 0.66, 0.6)),
        _SLIM, 0.12, True, "thread", 0.5, 26, mark_scale=0.8,
    ),
)  # fmt: skip

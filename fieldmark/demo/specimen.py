"""Draw one moth: an individual of a species, in a pose, as premultiplied RGBA.

Each pixel is mapped back to the moth's body coordinates and painted there, so any pose, size and perspective is
sharp; the left half mirrors the right one.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from PIL import Image, ImageDraw

from fieldmark.demo.patterns import Mark, Palette, colour_of, cover
from fieldmark.demo.shapes import Array, Shape, Wing, WingField, locate
from fieldmark.demo.species import Look

SUPERSAMPLING = 2
_TILE = 256  # side of the noise textures


@dataclass(frozen=True)
class Pose:
    """How the moth sits: ``matrix`` (3, 3) maps body coordinates to photo pixels; ``tilts`` in degrees."""

    matrix: Array
    swing: float
    hind_swing: float
    asymmetry: float


def draw_pose(rng: np.random.Generator, shape: Shape, width: int, height: int) -> Pose:
    """Draw rotation, shear, perspective, size and place so that the whole animal lies within the photo."""
    # Moths are photographed head up more often than not; a free rotation would be most of what there is to learn.
    angle, shear, squeeze = rng.normal(0, 0.4), rng.normal(0, 0.07), rng.uniform(0.86, 1.0)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = rotation @ np.array([[squeeze, shear], [0.0, 1.0]])
    matrix[2, :2] = np.clip(rng.normal(0, 0.04, size=2), -0.1, 0.1)
    # Some slack beyond the hull: wings swing from one individual to the next.
    hull = _project(matrix, *(shape.hull() * 1.1).T)
    low, high = hull.min(0), hull.max(0)
    scale = min(width, height) * rng.uniform(0.8, 1.0) / max(high - low)
    matrix = np.diag([scale, scale, 1.0]) @ matrix
    slack = np.array([width, height]) - (high - low) * scale
    shift = np.eye(3)
    shift[:2, 2] = slack * rng.uniform(0.03, 0.97, size=2) - low * scale
    swing, hind_swing, asymmetry = np.clip(rng.normal(0, (3, 3, 2)), -6, 6)
    return Pose(shift @ matrix, float(swing), float(hind_swing), float(asymmetry))


def _project(matrix: Array, x: Array, y: Array) -> Array:
    mapped = matrix @ np.stack([x, y, np.ones_like(x)])
    return (mapped[:2] / mapped[2]).T  # (n, 2)


class _Canvas:
    """Premultiplied RGBA of the pixels, painted from the lowest layer up. Colours 0 to 255, alpha 0 to 1."""

    def __init__(self, count: int) -> None:
        self.pixels = np.zeros((count, 4), np.float32)

    def paint(self, where: Array, colour: Array, alpha: Array) -> None:
        layer = np.empty((len(where), 4), np.float32)
        layer[:, :3] = colour * alpha[:, None]
        layer[:, 3] = alpha
        self.pixels[where] = self.pixels[where] * (1 - alpha[:, None]) + layer


@dataclass(frozen=True)
class _Grid:
    """The supersampled pixels in body coordinates: right half, with the side of each pixel (-1 or 1)."""

    x: Array
    y: Array
    side: Array
    scale: float  # supersampled pixels per body unit


def _body_grid(matrix: Array, left: int, top: int, width: int, height: int) -> _Grid:
    inverse = np.linalg.inv(matrix).astype(np.float32)
    columns = left + (np.arange(width * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING
    rows = (top + (np.arange(height * SUPERSAMPLING, dtype=np.float32) + 0.5) / SUPERSAMPLING)[:, None]
    depth = inverse[2, 0] * columns + inverse[2, 1] * rows + inverse[2, 2]
    x = ((inverse[0, 0] * columns + inverse[0, 1] * rows + inverse[0, 2]) / depth).ravel()
    y = ((inverse[1, 0] * columns + inverse[1, 1] * rows + inverse[1, 2]) / depth).ravel()
    scale = SUPERSAMPLING * float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    return _Grid(np.abs(x), y, np.sign(x), scale)


def _sample(texture: Array, x: Array, y: Array, zoom: float, offset: Array) -> Array:
    column = (x * zoom + offset[0]).astype(np.int32) & (_TILE - 1)
    row = (y * zoom + offset[1]).astype(np.int32) & (_TILE - 1)
    return texture[row, column]


def _jitter(rng: np.random.Generator, marks: tuple[Mark, ...]) -> list[Mark]:
    """Vary a pattern from one individual to the next, but less than siblings differ."""
    shifts = rng.normal(0, 0.012, size=len(marks))
    sizes = rng.normal(1, 0.07, size=len(marks))
    fading = rng.uniform(0.82, 1.0)
    return [
        replace(mark, along=mark.along + float(shift), size=mark.size * float(size), strength=mark.strength * fading)
        for mark, shift, size in zip(marks, shifts, sizes, strict=True)
    ]


def _paint_wing(
    canvas: _Canvas,
    grid: _Grid,
    wing: Wing,
    tilt: Array,
    ground: Array,
    marks: list[Mark],
    palette: Palette,
    relief: Array,
) -> None:
    """Paint one pair of wings: shadow on what lies below, ground, pattern, then relief (shape (n,), about 1)."""
    field = locate(wing, grid.x, grid.y, tilt, grid.scale)
    canvas.pixels[:, :3] *= (1 - 0.4 * field.shadow)[:, None]
    where = np.flatnonzero(field.cover > 0)
    near = WingField(*(getattr(field, part.name)[where] for part in fields(WingField)))
    colour = np.repeat(ground[None], len(where), axis=0)
    colour *= (0.9 + 0.14 * near.along)[:, None]
    for mark in marks:
        amount = cover(near, mark, wing, grid.scale)[:, None]
        colour += (colour_of(palette, mark.tone) - colour) * amount
    rim = np.clip((near.along - 0.97) * 20, 0, 1) * 0.25 + np.clip((0.05 - near.across) * 8, 0, 1) * 0.2
    colour *= (relief[where] * (1 - rim))[:, None]
    canvas.paint(where, colour, near.cover)


def _paint_body(
    canvas: _Canvas, grid: _Grid, shape: Shape, palette: Palette, fur: Array, thorax: bool, stripes: float
) -> None:
    ys, widths = np.array(shape.body, np.float32).T
    near = np.flatnonzero(grid.x < widths.max() * 1.3)
    y = grid.y[near]
    half = np.interp(y, ys, widths).astype(np.float32) * (1 + 0.18 * fur[near])
    x = grid.x[near]
    part = (y < shape.waist) if thorax else (y >= shape.waist - 0.06)
    alpha = np.clip((half - x) * grid.scale + 0.5, 0, 1) * part * (half > 0.004)
    round_off = 1.08 - 0.5 * np.square(np.clip(x / np.maximum(half, 1e-3), 0, 1))
    shade = round_off * (1 + 0.22 * fur[near])
    if not thorax:
        shade *= 1 - stripes * (np.sin(y * 48) > 0.35)
    head = y < ys[0] + 0.12
    colour = np.where(head[:, None], np.float32(0.72), np.float32(1.0)) * colour_of(palette, "body")
    canvas.paint(near, colour * shade[:, None], alpha.astype(np.float32))


def _appendages(
    rng: np.random.Generator, shape: Shape, matrix: Array, left: int, top: int, width: int, height: int, scale: float
) -> Array:
    """Draw antennae and legs as a mask, shape (height * width,) of supersampled pixels, 0 to 1."""
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    thin = max(1, round(0.014 * scale))
    head = shape.body[0][0] + 0.05

    def stroke(points: Array, thickness: int) -> None:
        placed = (_project(matrix, points[:, 0], points[:, 1]) - (left, top)) * SUPERSAMPLING
        pen.line([(float(px), float(py)) for px, py in placed], fill=255, width=thickness, joint="curve")

    steps = np.linspace(0, 1, 9)
    for side in (-1, 1):
        angle = np.deg2rad(shape.antenna_angle + rng.normal(0, 5))
        bend = rng.normal(0.35, 0.15)
        turn = angle + bend * steps
        x = side * (0.04 + shape.antenna_length * steps * np.sin(turn))
        y = head - shape.antenna_length * steps * np.cos(turn)
        stroke(np.stack([x, y], 1), 2 * thin if shape.antenna == "club" else thin)
        if shape.antenna == "feather":
            for k in np.arange(0.15, 0.95, 0.08):
                px, py = np.interp(k, steps, x), np.interp(k, steps, y)
                barb = 0.085 * np.sin(np.pi * k) + 0.01
                ends = np.array([[px - barb, py + side * barb * 0.2], [px + barb, py - side * barb * 0.2]])
                stroke(ends, 1)
        legs = [(0.3, -0.45)] if shape.forelegs else [(0.16, -0.3)]
        for lx, ly in legs:
            knee = np.array([[0.05, -0.15], [lx * 0.9, ly * 0.75], [lx, ly]]) * (side, 1)
            stroke(knee, 2 * thin)
    return np.asarray(mask, np.float32).ravel() / 255


def draw_specimen(
    rng: np.random.Generator, look: Look, pose: Pose, textures: dict[str, Array], width: int, height: int
) -> Array:
    """Draw an individual, premultiplied RGBA of shape (height, width, 4): colours 0 to 255, alpha 0 to 1."""
    shape = look.shape
    hull = _project(pose.matrix, *(shape.hull() * 1.12).T)
    left, top = np.maximum(np.floor(hull.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(hull.max(0)).astype(int), (width, height))
    grid = _body_grid(pose.matrix, left, top, right - left, bottom - top)
    canvas = _Canvas(len(grid.x))
    palette = look.palette

    fine = _sample(textures["grain"], grid.x, grid.y, 150, rng.uniform(200, 400, 2))
    coarse = _sample(textures["cloud"], grid.x, grid.y, 110, rng.uniform(200, 400, 2))
    tint = rng.normal(1, 0.045, size=3) * rng.normal(1, 0.06)
    light_side = 1 + grid.side * np.float32(rng.normal(0, 0.07))
    relief = (1 + 0.07 * fine + np.float32(look.mottling * 0.55) * coarse) * light_side
    tilt = (grid.side * pose.asymmetry).astype(np.float32)

    limbs = _appendages(rng, shape, pose.matrix, left, top, right - left, bottom - top, grid.scale)
    where = np.flatnonzero(limbs > 0)
    canvas.paint(where, np.repeat(colour_of(palette, "dark")[None] * 0.85, len(where), 0), limbs[where])

    forewing, hindwing = shape.forewing.turned(pose.swing), shape.hindwing.turned(pose.hind_swing)
    fore_marks = _jitter(rng, look.plan[0]) + _jitter(rng, look.field_marks)
    hind_ground = (0.45 * colour_of(palette, "ground") + 0.55 * colour_of(palette, "hind")) * tint
    _paint_wing(
        canvas, grid, hindwing, tilt, hind_ground.astype(np.float32), _jitter(rng, look.plan[1]), palette, relief
    )
    stripes = 0.25
    if shape.wings_cover_body:
        _paint_body(canvas, grid, shape, palette, fine, thorax=False, stripes=stripes)
    fore_ground = (colour_of(palette, "ground") * tint).astype(np.float32)
    _paint_wing(canvas, grid, forewing, tilt, fore_ground, fore_marks, palette, relief)
    if shape.wings_cover_body:
        canvas.pixels[:, :3] *= (1 - 0.35 * np.clip(1 - grid.x * 28, 0, 1) * (grid.y > shape.waist))[:, None]
    else:
        _paint_body(canvas, grid, shape, palette, fine, thorax=False, stripes=stripes)
    _paint_body(canvas, grid, shape, palette, fine, thorax=True, stripes=stripes)

    rows, columns = bottom - top, right - left
    fine_pixels = canvas.pixels.reshape(rows * SUPERSAMPLING, columns * SUPERSAMPLING, 4)
    photo = np.zeros((height, width, 4), np.float32)
    for row, column in np.ndindex(SUPERSAMPLING, SUPERSAMPLING):
        photo[top:bottom, left:right] += fine_pixels[row::SUPERSAMPLING, column::SUPERSAMPLING]
    photo /= SUPERSAMPLING**2
    return photo

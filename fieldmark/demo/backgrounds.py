"""Backgrounds for the drawn moths: noise textures and large plates from which each photo takes a cut."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fieldmark.demo.shapes import Array

_TILE = 256
PLATES_PER_KIND = 6


def _noise(rng: np.random.Generator, size: int, slope: float, stretch: float = 1.0) -> Array:
    """Make tileable noise by filtering white noise: amplitude falls with frequency**slope. Mean 0, deviation 1."""
    rows = np.fft.fftfreq(size)[:, None] * stretch
    columns = np.fft.rfftfreq(size)[None] / stretch
    frequency = np.sqrt(rows**2 + columns**2)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / np.maximum(frequency, 2 / size) ** slope
    field = np.fft.irfft2(spectrum, s=(size, size))
    return (field / field.std()).astype(np.float32)


@lru_cache(maxsize=2)
def textures(seed: int) -> dict[str, Array]:
    """Make the noise tiles that wings and fur are shaded with, (256, 256) each, mean 0."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 1)))
    return {"grain": _noise(rng, _TILE, 0.6), "cloud": _noise(rng, _TILE, 1.6)}


def _blend(field: Array, *colours: tuple[float, float, float]) -> Array:
    """Map a noise field to colours, evenly spread between about -1.6 and 1.6 deviations. (n, n, 3)."""
    stops = np.linspace(-1.6, 1.6, len(colours))
    return np.stack([np.interp(field, stops, [c[k] for c in colours]) for k in range(3)], -1).astype(np.float32)


def _bark(rng: np.random.Generator, size: int) -> Array:
    ridges = _noise(rng, size, 1.1, stretch=0.33)
    tone = [((58, 46, 38), (112, 92, 74), (160, 140, 118)), ((60, 60, 58), (128, 124, 116), (186, 180, 170))]
    plate = _blend(ridges, *tone[int(rng.integers(2))])
    cracks = np.clip(1 - np.abs(_noise(rng, size, 1.4, stretch=0.28)) * 4.5, 0, 1)
    plate *= (1 - 0.6 * cracks)[..., None]
    lichen = np.clip((_noise(rng, size, 1.3) - 1.0) * 3, 0, 1)[..., None]
    return plate + (np.array((168, 184, 150), np.float32) - plate) * lichen * 0.75


def _stone(rng: np.random.Generator, size: int) -> Array:
    plate = _blend(_noise(rng, size, 1.0), (92, 90, 88), (146, 142, 134), (190, 184, 174))
    plate *= 1 + 0.12 * _noise(rng, size, 0.1)[..., None]
    crack = np.clip(1 - np.abs(_noise(rng, size, 2.0)) * 26, 0, 1)
    plate *= (1 - 0.6 * crack)[..., None]
    lichen = np.clip((_noise(rng, size, 1.5) - 1.1) * 5, 0, 1)[..., None]
    return plate + (np.array((206, 170, 76), np.float32) - plate) * lichen * 0.6


def _sheet(rng: np.random.Generator, size: int) -> Array:
    folds = _noise(rng, size, 2.4, stretch=0.6)
    plate = _blend(folds, (160, 163, 176), (208, 207, 204), (236, 232, 220))
    grid = np.arange(size)
    weave = ((grid[:, None] + grid[None]) % 3 - 1) * 2.5
    plate = np.ascontiguousarray(plate + weave[..., None])
    image = Image.fromarray(np.clip(plate, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(20, 60))):  # midges and beetles that came to the light as well
        x, y = rng.uniform(0, size, 2)
        r = rng.uniform(0.6, 2.6) * size / 384
        shade = int(rng.uniform(40, 130))
        pen.ellipse((x - r, y - 0.6 * r, x + r, y + 0.6 * r), fill=(shade, shade - 8, shade - 14))
    return np.asarray(image, np.float32)


def _planks(rng: np.random.Generator, size: int) -> Array:
    grain = _noise(rng, size, 1.0, stretch=6.0)
    tone = [((96, 68, 44), (150, 112, 74), (190, 152, 108)), ((98, 96, 92), (144, 140, 132), (180, 176, 168))]
    plate = _blend(grain, *tone[int(rng.integers(2))])
    board = size // 4
    rows = np.arange(size) % board
    plate *= rng.uniform(0.8, 1.12, 5)[np.arange(size) // board][:, None, None]
    plate *= np.where(rows < max(2, board // 40), 0.3, 1.0)[:, None, None]
    return plate


def _brick(rng: np.random.Generator, size: int) -> Array:
    plate = _blend(_noise(rng, size, 0.8), (120, 62, 48), (164, 92, 70), (196, 124, 96))
    high, wide = size // 8, size // 3
    rows = np.arange(size)[:, None]
    columns = np.arange(size)[None] + (rows // high % 2) * (wide // 2)
    plate *= rng.uniform(0.8, 1.15, (9, 5))[rows // high, columns // wide % 5][..., None]
    gap = max(3, high // 9)
    mortar = ((rows % high < gap) | (columns % wide < gap))[..., None]
    cement = _blend(_noise(rng, size, 0.7), (150, 144, 134), (176, 170, 160), (200, 196, 186))
    return np.where(mortar, cement, plate)


def draw_leaf(
    pen: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    centre: tuple[float, float],
    length: float,
    colour: Array,
    slim: float,
) -> None:
    """Draw one leaf: an outline pointed at both ends, a darker half and a pale midrib. ``length`` in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    steps = np.linspace(0, 1, 8)
    half = slim * length * np.sin(np.pi * steps**0.8)
    bend = rng.normal(0, 0.12) * length * np.sin(np.pi * steps)
    along = (steps - 0.5) * length
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def place(x: Array, y: Array) -> list[tuple[float, float]]:
        return [(float(a) + centre[0], float(b) + centre[1]) for a, b in (turn @ np.stack([x, y])).T]

    upper, rib, lower = place(along, bend + half), place(along, bend), place(along, bend - half)
    shade = [tuple(int(np.clip(c, 0, 255)) for c in colour * k) for k in (1.0, 0.84, 1.22)]
    pen.polygon(upper + rib[::-1], fill=shade[0])
    pen.polygon(rib + lower[::-1], fill=shade[1])
    pen.line(rib, fill=shade[2], width=max(1, round(length / 45)))


def _leaves(
    rng: np.random.Generator, size: int, floor: tuple[int, int, int], tones: list[tuple[int, int, int]], slim: float
) -> Array:
    image = Image.new("RGB", (2 * size, 2 * size), floor)
    pen = ImageDraw.Draw(image)
    palette = np.array(tones, float)
    count = 230
    for k in range(count):
        colour = palette[rng.integers(len(tones))] * (0.45 + 0.6 * k / count) * rng.normal(1, 0.09, 3)
        x, y = rng.uniform(0, 2 * size, 2)
        draw_leaf(pen, rng, (float(x), float(y)), float(rng.uniform(0.12, 0.34) * size), colour, slim)
    plate = np.asarray(image.reduce(2), np.float32)
    return plate * (1 + 0.09 * _noise(rng, size, 0.8)[..., None])


def _foliage(rng: np.random.Generator, size: int) -> Array:
    return _leaves(rng, size, (22, 34, 20), [(92, 136, 62), (120, 160, 76), (70, 116, 66), (146, 168, 84)], 0.24)


def _litter(rng: np.random.Generator, size: int) -> Array:
    tones = [(150, 104, 62), (120, 82, 54), (182, 132, 80), (104, 92, 78), (168, 92, 50), (190, 166, 120)]
    return _leaves(rng, size, (38, 28, 22), tones, 0.27)


def _moss(rng: np.random.Generator, size: int) -> Array:
    tones = [(98, 118, 50), (134, 146, 66), (76, 100, 52), (164, 160, 88)]
    image = Image.new("RGB", (size, size), (40, 48, 26))
    pen = ImageDraw.Draw(image)
    for k in range(1500):
        x, y = rng.uniform(0, size, 2)
        angle, length = rng.normal(-1.6, 0.7), rng.uniform(0.02, 0.07) * size
        shade = np.array(tones[int(rng.integers(4))]) * (0.5 + 0.6 * k / 1500)
        tip = (x + length * np.cos(angle), y + length * np.sin(angle))
        pen.line([(x, y), tip], fill=tuple(int(c) for c in shade), width=max(1, size // 200))
    plate = np.asarray(image.filter(ImageFilter.BoxBlur(0.4)), np.float32)
    return plate * (1 + 0.2 * np.clip(_noise(rng, size, 1.5), -2, 2)[..., None])


KINDS: tuple[Callable[[np.random.Generator, int], Array], ...] = (
    _bark,
    _litter,
    _foliage,
    _stone,
    _sheet,
    _planks,
    _brick,
    _moss,
)


@lru_cache(maxsize=len(KINDS) * PLATES_PER_KIND)
def draw_plate(seed: int, kind: int, number: int, side: int) -> Image.Image:
    """Draw one plate, four photo sides square; the same for the same arguments in every process."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 2, kind, number)))
    plate = np.clip(KINDS[kind](rng, 4 * side), 0, 255).astype(np.uint8)
    return Image.fromarray(plate)


def cut_background(rng: np.random.Generator, seed: int, side: int, width: int, height: int) -> Image.Image:
    """Cut a turned, scaled and mirrored piece out of a random plate, RGB of ``width`` by ``height``."""
    kind, number = int(rng.integers(len(KINDS))), int(rng.integers(PLATES_PER_KIND))
    plate = draw_plate(seed, kind, number, side)
    angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.5)
    radius = zoom * np.hypot(width, height) / 2
    x, y = rng.uniform(radius, plate.width - radius, 2)
    c, s = zoom * np.cos(angle), zoom * np.sin(angle) * rng.choice((-1, 1))
    matrix = (c, -s, x - (c * width - s * height) / 2, s, c, y - (s * width + c * height) / 2)
    return plate.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)

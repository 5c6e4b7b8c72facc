"""Put a drawn moth into a photo: background, shadow, light, lens and sensor."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from fieldmark.demo.backgrounds import cut_background, textures
from fieldmark.demo.shapes import Array
from fieldmark.demo.species import Look
from fieldmark.demo.specimen import draw_pose, draw_specimen

_ASPECTS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3))
# Below this much alpha a pixel is counted as background: half-covered tips of hairs do not widen the box.
VISIBLE = 0.2


@dataclass(frozen=True)
class Photo:
    """A finished photo with the animal's box (x, y, width, height in pixels) and mask (height, width), 0 to 1."""

    image: Image.Image
    box: tuple[int, int, int, int]
    mask: Array


def bounding_box(mask: Array) -> tuple[int, int, int, int]:
    """Find the smallest box (x, y, width, height) round all visible pixels of a mask (height, width)."""
    rows, columns = np.flatnonzero((mask > VISIBLE).any(1)), np.flatnonzero((mask > VISIBLE).any(0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _shadow(rng: np.random.Generator, mask: Array, side: int) -> Array:
    """Blur and shift the moth's mask; 0 to 1, shape (height, width)."""
    depth = rng.uniform(0.01, 0.04) * side
    image = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(float(depth)))
    angle = rng.uniform(0, 2 * np.pi)
    shift = (round(depth * np.cos(angle)), round(depth * np.sin(angle)))
    return np.roll(np.asarray(image, np.float32), shift, axis=(0, 1)) / 255


def _light(rng: np.random.Generator, width: int, height: int) -> Array:
    """Draw exposure, colour temperature and fall-off of the light; a gain of shape (height, width, 3)."""
    warmth, green = rng.normal(0, 0.075), rng.normal(0, 0.02)
    gain = np.array([1 + warmth, 1 + green, 1 - warmth], np.float32) * np.exp(rng.normal(-0.02, 0.14))
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope = rng.normal(0, 0.12, 2).astype(np.float32)
    fall = np.float32(rng.uniform(0.0, 0.25))
    field = 1 + slope[0] * x + slope[1] * y - fall * (x * x + y * y) / 2
    return np.clip(field, 0.4, 1.6)[..., None] * gain


def _lens_and_sensor(rng: np.random.Generator, pixels: Array, side: int) -> Image.Image:
    pixels = 255 * (np.clip(pixels, 0, 255) / 255) ** np.float32(np.exp(rng.normal(0, 0.1)))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    blur = rng.uniform(0, 0.0075) * side
    image = image.filter(ImageFilter.GaussianBlur(float(blur)))
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 7.0))
    return Image.fromarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8))


def _out_of_focus(background: Image.Image, side: int) -> Array:
    """Blur a background and take half of its contrast and colour, as a close-up's shallow focus does.

    In full focus the backgrounds, which tell nothing, are what photos are most alike in: of the clusters of pretrained
    features, most then hold one kind of background instead of one kind of moth.
    """
    blurred = np.asarray(background.filter(ImageFilter.GaussianBlur(0.02 * side)), np.float32)
    return np.float32(0.5) * blurred + np.float32(0.5 * 128)


def take_photo(rng: np.random.Generator, seed: int, look: Look, side: int) -> Photo:
    """Draw an individual with the given look in a scene of its own.

    Args:
        rng: the photo's own generator.
        seed: the set's seed, for the textures and plates that all photos share.
        look: what the species looks like.
        side: the photo's shorter side in pixels.
    """
    across, down = _ASPECTS[int(rng.integers(len(_ASPECTS)))]
    shorter = min(across, down)
    width, height = round(side * across / shorter), round(side * down / shorter)
    pose = draw_pose(rng, look.shape, width, height)
    moth = draw_specimen(rng, look, pose, textures(seed), width, height)
    mask = moth[..., 3]
    scene = _out_of_focus(cut_background(rng, seed, side, width, height), side) * np.float32(rng.uniform(0.75, 1.1))
    scene *= (1 - np.float32(rng.uniform(0.3, 0.6)) * _shadow(rng, mask, side))[..., None]
    pixels = (scene * (1 - mask[..., None]) + moth[..., :3]) * _light(rng, width, height)
    return Photo(_lens_and_sensor(rng, pixels, side), bounding_box(mask), mask)

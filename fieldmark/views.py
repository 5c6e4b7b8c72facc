"""Views of photos as the network sees them: random ones for training, fixed ones for inference, on whole batches.

Every view is a rotated rectangle of the photo, resampled to a square in one bilinear step on the device, so a photo
is decoded once however many views are taken. Photos arrive with their shorter side only slightly longer than the
view (see ``decode_side``), so that bilinear resampling does not alias.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Strength of each random change while training; zeros switch a change off.

    Attributes:
        min_scale: smallest share of the photo's area that a crop covers, in (0, 1].
        rotation: largest turn to either side, degrees.
        color: largest relative change of brightness, contrast and saturation.
        erase: probability that a rectangle is erased with the mean colour of that very photo (Zhong et al. 2020).
        flip: whether photos are mirrored left to right at random.
        mixup: parameter of the Beta distribution of the shares of two photos in one view, see
            :mod:`fieldmark.mixing`.
        cutmix: the same for a patch of one photo in another's view.
    """

    min_scale: float = 0.35
    rotation: float = 15.0
    color: float = 0.3
    erase: float = 0.25
    flip: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0


def collate(photos: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Stack photos of various sizes: (B, 3, H, W) uint8, zero-padded, and (B, 2) their true heights and widths."""
    sizes = torch.tensor([photo.shape[1:] for photo in photos], dtype=torch.float32)
    height, width = (int(side) for side in sizes.max(dim=0).values)
    batch = np.zeros((len(photos), 3, height, width), dtype=np.uint8)
    for row, photo in zip(batch, photos, strict=True):
        row[:, : photo.shape[1], : photo.shape[2]] = photo
    return torch.from_numpy(batch), sizes


def sample_rectangles(batch: Tensor, sizes: Tensor, centre: Tensor, extent: Tensor, angle: Tensor, side: int) -> Tensor:
    """Resample one rotated rectangle of each photo to a square; outside the photo its mirror image is seen.

    Args:
        batch: (B, 3, H, W) padded photos, uint8 or float in 0…255.
        sizes: (B, 2) true height and width of each, pixels.
        centre: (B, 2) y and x of the rectangle's centre, pixels.
        extent: (B, 2) its height and width, pixels; a negative width mirrors.
        angle: (B,) its rotation, radians.
        side: side of the result, pixels.

    Returns:
        (B, 3, side, side) float32 in [0, 1].
    """
    steps = (torch.arange(side, device=batch.device, dtype=torch.float32) + 0.5) / side - 0.5
    y = steps[None, :, None] * extent[:, 0, None, None]  # (B, S, 1)
    x = steps[None, None, :] * extent[:, 1, None, None]  # (B, 1, S)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    rows = centre[:, 0, None, None] + cos * y - sin * x
    columns = centre[:, 1, None, None] + sin * y + cos * x
    grid = torch.stack(
        [
            _mirror(columns, sizes[:, 1]) * 2 / batch.shape[3] - 1,
            _mirror(rows, sizes[:, 0]) * 2 / batch.shape[2] - 1,
        ],
        dim=-1,
    )
    pixels = batch.float().div(255)
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _mirror(position: Tensor, length: Tensor) -> Tensor:
    """Reflect positions at the edges 0 and ``length``, and keep half a pixel off them: padding never shows."""
    length = length[:, None, None]
    folded = torch.remainder(position, 2 * length)
    folded = torch.where(folded > length, 2 * length - folded, folded)
    return torch.minimum(folded.clamp(min=0.5), length - 0.5)


def random_views(
    batch: Tensor,
    sizes: Tensor,
    side: int,
    how: Augmentation,
    generator: torch.Generator,
    part: slice = slice(None),
    whole: int | None = None,
) -> Tensor:
    """One random view of each photo: crop, rotation, mirror, colour and erasing.

    Args:
        batch: (B, 3, H, W) padded photos, uint8.
        sizes: (B, 2) true height and width of each, pixels.
        side: side of the views, pixels.
        how: strength of each change.
        generator: source of all draws; on the CPU, so that every device sees the same views.
        part: which photos of a larger batch these are; a photo's view is the same however the batch is divided.
        whole: photos of the larger batch.

    Returns:
        (B, 3, side, side) float32 in [0, 1].
    """
    count = len(batch) if whole is None else whole

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(count, *shape, generator=generator)[part] * (high - low) + low
        return drawn.to(batch.device)

    area = sizes.prod(dim=1) * uniform(how.min_scale, 1.0)
    ratio = torch.exp(uniform(np.log(3 / 4), np.log(4 / 3)))
    extent = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=1)
    extent = torch.minimum(extent, sizes)
    centre = extent / 2 + uniform(0, 1, 2) * (sizes - extent)
    if how.flip:
        mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
        extent = extent * torch.stack([torch.ones_like(mirror), mirror], dim=1)
    angle = uniform(-1, 1) * np.deg2rad(how.rotation)
    views = sample_rectangles(batch, sizes, centre, extent, angle, side)
    views = _recolour(views, *(uniform(1 - how.color, 1 + how.color, 1, 1, 1) for _ in range(3)))
    return _erase(views, uniform(0, 1) < how.erase, uniform(0, 1, 4))


def _recolour(views: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    views = views * brightness
    views = torch.lerp(views.mean(dim=(1, 2, 3), keepdim=True), views, contrast)
    views = torch.lerp(views.mean(dim=1, keepdim=True), views, saturation)
    return views.clamp(0, 1)


def _erase(views: Tensor, chosen: Tensor, draws: Tensor) -> Tensor:
    """Fill a rectangle of 15–53 % of the side each way with the view's own mean colour, where ``chosen``."""
    side = views.shape[-1]
    lengths = (0.15 + 0.38 * draws[:, :2]) * side
    starts = draws[:, 2:] * (side - lengths)
    steps = torch.arange(side, device=views.device)
    rows = (steps >= starts[:, :1]) & (steps < starts[:, :1] + lengths[:, :1])  # (B, S)
    columns = (steps >= starts[:, 1:]) & (steps < starts[:, 1:] + lengths[:, 1:])
    hole = rows[:, None, :, None] & columns[:, None, None, :] & chosen[:, None, None, None]
    return torch.where(hole, views.mean(dim=(2, 3), keepdim=True), views)


def fixed_views(sizes: Tensor, scales: Sequence[float], five_crop: bool, flip: bool) -> list[tuple[Tensor, Tensor]]:
    """Centres and extents of the test-time views of each photo: scales × (centre or five crops) × flips.

    At scale s the photo's shorter side is s times the view's side: larger scales see finer detail of smaller parts.

    Args:
        sizes: (B, 2) height and width of each photo, pixels.
        scales: at least 1 each.
        five_crop: also the four corners.
        flip: also the mirror image of each.

    Returns:
        One (centre, extent) pair per view, each (B, 2), for :func:`sample_rectangles`.
    """
    views = []
    short = sizes.min(dim=1, keepdim=True).values
    places = [(0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)] if five_crop else [(0.5, 0.5)]
    for scale in scales:
        extent = (short / scale).expand(-1, 2)
        for place in places:
            centre = extent / 2 + torch.tensor(place, device=sizes.device) * (sizes - extent)
            views.append((centre, extent))
            if flip:
                views.append((centre, extent * torch.tensor([1.0, -1.0], device=sizes.device)))
    return views


def normalise(views: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """(B, 3, S, S) in [0, 1] to zero mean and unit deviation per channel; channels last in memory (faster on CPUs)."""
    mean, deviation = (torch.tensor(values, device=views.device)[None, :, None, None] for values in statistics)
    return ((views - mean) / deviation).contiguous(memory_format=torch.channels_last)


def decode_side(image_size: int, largest_scale: float = 1.25) -> int:
    """Shorter side at which photos are decoded for views of ``image_size``, pixels."""
    return round(image_size * largest_scale)

"""Views of photos against plain slicing, padding and mirroring of arrays."""

import numpy as np
import pytest
import torch

from fieldmark.views import (
    Augmentation,
    collate,
    decode_side,
    fixed_views,
    normalise,
    random_views,
    sample_rectangles,
)

OFF = Augmentation(min_scale=1.0, rotation=0.0, color=0.0, erase=0.0, flip=False)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def rectangle(
    photo: np.ndarray, centre: tuple[float, float], extent: tuple[float, float], side: int, degrees: float = 0.0
) -> np.ndarray:
    batch, sizes = collate([photo])
    angle = torch.tensor([np.deg2rad(degrees)], dtype=torch.float32)
    view = sample_rectangles(batch, sizes, torch.tensor([centre]), torch.tensor([extent]), angle, side)
    return view[0].numpy() * 255


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_collate_pads_below_and_right_and_keeps_sizes() -> None:
    photos = [noise(4, 9), noise(7, 5, seed=1)]
    batch, sizes = collate(photos)
    assert batch.shape == (2, 3, 7, 9) and batch.dtype == torch.uint8
    assert sizes.tolist() == [[4, 9], [7, 5]]
    for row, photo in zip(batch.numpy(), photos, strict=True):
        height, width = photo.shape[1:]
        assert (row[:, :height, :width] == photo).all()
        assert not row[:, height:].any() and not row[:, :, width:].any()


def test_the_whole_photo_at_its_own_size_is_the_photo() -> None:
    photo = noise(12, 12)
    np.testing.assert_allclose(rectangle(photo, (6, 6), (12, 12), 12), photo, atol=0.01)


def test_a_negative_width_mirrors() -> None:
    photo = noise(12, 12)
    np.testing.assert_allclose(rectangle(photo, (6, 6), (12, -12), 12), photo[:, :, ::-1], atol=0.01)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 11), (8, 12), (8, 0)])
def test_a_crop_is_a_slice(top: int, left: int) -> None:
    photo = noise(16, 20)
    found = rectangle(photo, (top + 4, left + 4), (8, 8), 8)
    np.testing.assert_allclose(found, photo[:, top : top + 8, left : left + 8], atol=0.01)


def test_a_quarter_turn_turns() -> None:
    photo = noise(10, 10)
    found = rectangle(photo, (5, 5), (10, 10), 10, degrees=90)
    np.testing.assert_allclose(found, np.rot90(photo, -1, axes=(1, 2)), atol=0.05)


def test_halving_averages_blocks_of_four() -> None:
    photo = noise(8, 8)
    blocks = photo.reshape(3, 4, 2, 4, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(rectangle(photo, (4, 4), (8, 8), 4), blocks, atol=0.01)


def test_outside_the_photo_its_mirror_image_is_seen() -> None:
    photo = noise(8, 10)
    larger, _ = collate([photo])
    around = np.pad(larger[0].numpy(), ((0, 0), (4, 4), (3, 3)), mode="symmetric")
    np.testing.assert_allclose(rectangle(photo, (4, 5), (16, 16), 16), around, atol=0.01)


def test_padding_never_shows_however_far_a_view_reaches() -> None:
    photos = [np.full((3, *size), 200, dtype=np.uint8) for size in [(9, 31), (31, 9), (20, 20), (1, 1)]]
    batch, sizes = collate(photos)
    draws = np.random.default_rng(0)
    for _ in range(20):
        centre, extent = (torch.tensor(draws.uniform(-40, 60, (4, 2)), dtype=torch.float32) for _ in range(2))
        angle = torch.tensor(draws.uniform(-4, 4, 4), dtype=torch.float32)
        views = sample_rectangles(batch, sizes, centre, extent, angle, 16)
        np.testing.assert_allclose(views.numpy(), 200 / 255, rtol=1e-4)


def test_random_views_are_a_function_of_the_generator_and_stay_in_bounds() -> None:
    batch, sizes = collate([noise(40, 50), noise(60, 40, seed=1), noise(33, 33, seed=2)])
    strong = Augmentation(min_scale=0.05, rotation=180, color=1.0, erase=1.0)
    first, second, other = (random_views(batch, sizes, 24, strong, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 3, 24, 24) and first.dtype == torch.float32
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 1


def ramps(height: int, width: int) -> np.ndarray:
    """A photo whose first channel is twice the row and second channel twice the column of each pixel."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([2 * rows, 2 * columns, 0 * rows]).astype(np.uint8)


def test_with_everything_switched_off_a_view_is_an_upright_crop_without_change_of_colour() -> None:
    batch, sizes = collate([ramps(100, 100)] * 8)
    for view in random_views(batch, sizes, 50, OFF, generator()).numpy() * 255:
        rows, columns = view[0, :, 0] / 2, view[1, 0, :] / 2
        np.testing.assert_allclose(view[0], np.broadcast_to(view[0, :, :1], (50, 50)), atol=0.01)
        np.testing.assert_allclose(view[1], np.broadcast_to(view[1, :1, :], (50, 50)), atol=0.01)
        assert (np.diff(rows) > 0).all() and (np.diff(columns) > 0).all()
        assert not view[2].any()
        # One side whole; the other shortened by the random aspect ratio, at most 3:4.
        spans = sorted([np.ptp(rows), np.ptp(columns)])
        assert spans[0] + 2 > 0.85 * 100 and 97 < spans[1] < 100


def test_crops_cover_at_least_the_smallest_share_give_or_take_the_aspect_ratio() -> None:
    batch, sizes = collate([ramps(100, 100)] * 64)
    how = Augmentation(min_scale=0.25, rotation=0, color=0, erase=0, flip=False)
    views = random_views(batch, sizes, 50, how, generator()).numpy() * 255 / 2
    areas = np.ptp(views[:, 0, :, 0], axis=1) * np.ptp(views[:, 1, 0, :], axis=1) / 100**2 * (50 / 49) ** 2
    assert 0.24 < areas.min() < 0.4 and 0.7 < areas.max() <= 1.01


def test_about_half_of_the_views_are_mirrored() -> None:
    batch, sizes = collate([ramps(60, 60)] * 200)
    how = Augmentation(min_scale=1, rotation=0, color=0, erase=0, flip=True)
    views = random_views(batch, sizes, 16, how, generator()).numpy()
    mirrored = views[:, 1, 0, 0] > views[:, 1, 0, -1]
    assert 70 < mirrored.sum() < 130


def test_colour_changes_keep_grey_grey_and_stay_within_their_strength() -> None:
    batch, sizes = collate([np.full((3, 30, 30), 100, dtype=np.uint8)] * 50)
    how = Augmentation(min_scale=1, rotation=0, color=0.3, erase=0, flip=False)
    views = random_views(batch, sizes, 16, how, generator()).numpy() * 255
    np.testing.assert_allclose(views, np.broadcast_to(views[:, :1, :1, :1], views.shape), rtol=1e-4)
    assert 69.9 < views.min() < 80 and 120 < views.max() < 130.1


def test_erasing_fills_one_rectangle_with_the_mean_of_that_very_view() -> None:
    batch, sizes = collate([noise(40, 40, seed=seed) for seed in range(30)])
    without = random_views(batch, sizes, 32, OFF, generator(5)).numpy()
    always = Augmentation(min_scale=1, rotation=0, color=0, erase=1.0, flip=False)
    erased = random_views(batch, sizes, 32, always, generator(5)).numpy()
    for before, after in zip(without, erased, strict=True):
        changed = (before != after).any(axis=0)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        hole = after[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert changed.sum() == hole[0].size  # a full rectangle, nothing else
        expected = np.broadcast_to(before.mean(axis=(1, 2))[:, None, None], hole.shape)
        np.testing.assert_allclose(hole, expected, rtol=1e-4)
        assert min(hole.shape[1:]) >= 0.15 * 32 - 1 and max(hole.shape[1:]) <= 0.53 * 32 + 1


def test_erasing_happens_with_its_probability() -> None:
    batch, sizes = collate([noise(20, 20)] * 400)
    how = Augmentation(min_scale=1, rotation=0, color=0, erase=0.25, flip=False)
    changed = random_views(batch, sizes, 16, how, generator()) != random_views(batch, sizes, 16, OFF, generator())
    assert 70 < changed.flatten(1).any(dim=1).sum() < 130


@pytest.mark.parametrize("five_crop", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.25, 2.0)])
def test_fixed_views_count_and_stay_inside(scales: tuple[float, ...], five_crop: bool, flip: bool) -> None:
    sizes = torch.tensor([[40.0, 60.0], [50.0, 50.0], [90.0, 45.0]])
    views = fixed_views(sizes, scales, five_crop, flip)
    assert len(views) == len(scales) * (5 if five_crop else 1) * (2 if flip else 1)
    assert len({(*c.flatten().tolist(), *e.flatten().tolist()) for c, e in views}) == len(views)
    for centre, extent in views:
        assert (centre - extent.abs() / 2 >= -1e-4).all() and (centre + extent.abs() / 2 <= sizes + 1e-4).all()


def test_fixed_views_are_centre_then_corners_each_followed_by_its_mirror_image() -> None:
    sizes = torch.tensor([[40.0, 60.0]])
    found = [(*c[0].tolist(), *e[0].tolist()) for c, e in fixed_views(sizes, [2.0], True, True)]
    corners = [(20, 30), (10, 10), (10, 50), (30, 10), (30, 50)]
    assert found == [(y, x, 20, sign * 20) for y, x in corners for sign in (1, -1)]


def test_normalise_is_per_channel_and_channels_last() -> None:
    views = torch.rand(2, 3, 4, 5)
    found = normalise(views, ((0.1, 0.2, 0.3), (0.5, 1.0, 2.0)))
    for channel, (mean, deviation) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        torch.testing.assert_close(found[:, channel], (views[:, channel] - mean) / deviation)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_photos_are_decoded_a_little_larger_than_their_views() -> None:
    assert decode_side(64) == 80
    assert decode_side(224, 1.15) == 258

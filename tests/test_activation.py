"""Key regions from a backbone's activation: the parts against naive computations, the whole on drawn photos."""

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fieldmark.activation import activation_boxes, largest_region, otsu_level, principal_map, region_boxes
from fieldmark.boxes import FULL, paired_iou
from fieldmark.hardware import Hardware


def naive_regions(energy: np.ndarray) -> list[set[tuple[int, int]]]:
    """Connected parts of one map by flooding from pixel to pixel."""
    left = set(zip(*np.nonzero(energy > 0), strict=True))
    parts = []
    while left:
        part, waiting = set(), deque([left.pop()])
        while waiting:
            y, x = waiting.popleft()
            part.add((y, x))
            around = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= around
            waiting.extend(around)
        parts.append(part)
    return parts


def test_the_largest_region_is_the_one_that_flooding_finds() -> None:
    generator = np.random.default_rng(0)
    energy = generator.random((20, 9, 11)) * (generator.random((20, 9, 11)) < 0.35)
    found = largest_region(torch.from_numpy(energy).float()).numpy()
    for one, region in zip(energy, found, strict=True):
        best = max(naive_regions(one), key=lambda part: sum(one[y, x] for y, x in part))
        assert set(zip(*np.nonzero(region), strict=True)) == best


def test_a_long_winding_region_is_one() -> None:
    energy = torch.zeros(1, 7, 7)
    energy[0, ::2] = 1.0
    energy[0, 1, 6] = energy[0, 3, 0] = energy[0, 5, 6] = 1.0
    assert torch.equal(largest_region(energy), energy > 0)


def test_otsu_equals_trying_every_level() -> None:
    maps = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 4, 5))).float()
    for one, level, share in zip(maps, *otsu_level(maps), strict=True):
        values = one.flatten().numpy()

        def within(cut: float, values: np.ndarray = values) -> float:
            low, high = values[values <= cut], values[values > cut]
            return len(low) * low.var() + (len(high) * high.var() if len(high) else 0.0)

        assert within(float(level)) == pytest.approx(min(map(within, values)), rel=1e-5)
        assert float(share) == pytest.approx(1 - within(float(level)) / (len(values) * values.var()), rel=1e-5)
    level, share = otsu_level(torch.tensor([[[1.0, 5.0], [1.0, 5.0]], [[2.0, 2.0], [2.0, 2.0]]]))
    assert level[0] == 1.0 and share.tolist() == pytest.approx([1.0, 0.0])


def test_the_box_goes_round_the_region() -> None:
    maps = torch.full((2, 8, 10), -1.0)
    maps[0, 2:5, 3:9] = 1.0
    maps[0, 7, 0] = 1.0  # a speck elsewhere
    maps[1] = 0.25  # nothing stands out
    boxes, scores = region_boxes(maps)
    assert boxes[0] == pytest.approx([0.3, 0.25, 0.6, 0.375])
    assert scores.tolist() == pytest.approx([18 / 19, 0.0])


def test_the_background_is_what_touches_the_border() -> None:
    features = torch.zeros(2, 3, 6, 6)
    features[0, :, 2:4, 2:5] = torch.tensor([1.0, -2.0, 0.5])[:, None, None]
    features[1] = -features[0]
    maps = principal_map(features)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[2:4, 2:5] = True
    assert (maps[:, inside] > 0).all() and (maps[:, ~inside] < 0).all()


@pytest.fixture
def spots(tmp_path: Path) -> tuple[list[str], np.ndarray]:
    """Photos of a striped patch on a plain ground, of several shapes, and the patches' boxes."""
    generator = np.random.default_rng(2)
    paths, boxes = [], []
    for number, (width, height) in enumerate([(96, 96), (128, 96), (300, 100)]):
        pixels = np.full((height, width, 3), 90.0) + generator.normal(0, 2, (height, width, 3))
        left, top = width // 2 - 15, height // 4
        pixels[top : top + 40, left : left + 40] = 255 * (np.arange(40) % 8 < 4)[None, :, None]
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
        boxes.append([left / width, top / height, 40 / width, 40 / height])
    return paths, np.array(boxes)


def test_a_pretrained_backbone_finds_what_stands_out(spots: tuple[list[str], np.ndarray]) -> None:
    paths, truth = spots
    boxes, scores = activation_boxes("tf_efficientnet_lite0", "package", 128, paths, Hardware())
    assert (paired_iou(boxes, truth) > 2 * paired_iou(np.tile(FULL, (3, 1)), truth)).all()
    assert ((scores > 0) & (scores <= 1)).all()


def test_boxes_are_the_same_whatever_the_others_are(spots: tuple[list[str], np.ndarray]) -> None:
    paths, _ = spots
    together, _ = activation_boxes("test_efficientnet", "none", 64, paths, Hardware())
    alone, _ = activation_boxes("test_efficientnet", "none", 64, paths[:1], Hardware())
    assert together[:1] == pytest.approx(alone, abs=1e-6)
    nothing, scores = activation_boxes("test_efficientnet", "none", 64, [], Hardware())
    assert nothing.shape == (0, 4) and scores.shape == (0,)


def test_a_map_of_one_hump_holds_no_region_for_sure() -> None:
    # Sorted, so that all that lies above any level is connected.
    hump = torch.from_numpy(np.random.default_rng(2).normal(size=10_000)).float().sort().values.reshape(1, 100, 100)
    two = torch.where(hump > 0, hump + 4, hump - 4)
    _, scores = region_boxes(torch.cat([hump, two]))
    assert scores[0] < 0.02 and scores[1] > 0.9

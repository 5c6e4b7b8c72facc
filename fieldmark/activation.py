"""Key regions without any box to learn from: where the features of a pretrained backbone set themselves apart.

Over the places of one photo, deep features vary most between what it shows and what lies behind: their first
principal component, cut in two, outlines the former (deep descriptor transforming, Wei et al. 2019, applied to single
photos). Which side is the background, the photo's border tells. Otsu's threshold cuts, so the region may be of any
size, and the box goes round the largest connected part.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.boxes import Floats, out_of_windows
from fieldmark.hardware import Hardware
from fieldmark.models import Architecture, build_classifier
from fieldmark.views import normalise
from fieldmark.whole_photos import whole_photos

# Of the levels of the backbone, coarse enough for meaning and fine enough for edges.
_STRIDE = 16
# What Otsu's level puts between the parts of a map of one hump (a normal distribution), which falls into no two parts.
_ONE_HUMP = 2 / math.pi
# Maps are enlarged by this before they are cut: edges fall between the few places of a map.
_ENLARGED = 4


class MiddleLevel(nn.Module):
    """The backbone's features at the stride next to 16, one vector per place."""

    def __init__(self, backbone: Any) -> None:
        """Take over a timm ``backbone``; what lies behind the level is cut off."""
        super().__init__()
        strides = [level["reduction"] for level in backbone.feature_info]
        # Of several levels with one stride the last one knows most.
        chosen = min(range(len(strides)), key=lambda level: (abs(strides[level] - _STRIDE), -level))
        self.level = backbone.prune_intermediate_layers([chosen], prune_head=True)
        self.body = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images to (B, C, s, s) features."""
        (features,) = self.body.forward_intermediates(
            images, indices=self.level, output_fmt="NCHW", intermediates_only=True
        )
        return features


def principal_map(features: Tensor) -> Tensor:
    """How much each place belongs to what the photo shows rather than to its background.

    Args:
        features: (B, C, H, W).

    Returns:
        (B, H, W) first principal component over the places of each photo, its mean over the border not above 0.
    """
    centred = (features - features.mean(dim=(2, 3), keepdim=True)).flatten(2)
    component = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0].reshape(-1, *features.shape[2:])
    border = torch.ones(features.shape[2:], dtype=torch.bool, device=features.device)
    border[1:-1, 1:-1] = False
    outside = component[:, border].mean(dim=1)
    return component * torch.where(outside > 0, -1.0, 1.0)[:, None, None]


def otsu_level(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The level that cuts each map into two parts of least variance (Otsu 1979).

    Args:
        maps: (B, H, W).

    Returns:
        (B,) levels, and (B,) the share of the variance that lies between the parts: 1 for maps of two values, 0 for
        flat ones.
    """
    values = maps.flatten(1).sort(dim=1).values
    count = values.shape[1]
    below = torch.arange(1, count, device=maps.device, dtype=torch.float32)
    sums = values.cumsum(dim=1)[:, :-1]
    apart = sums / below - (values.sum(dim=1, keepdim=True) - sums) / (count - below)
    between, place = (below * (count - below) * apart.square()).max(dim=1, keepdim=True)
    whole = values.var(dim=1, correction=0, keepdim=True) * count**2
    share = torch.where(whole > 0, between / whole.clamp(min=torch.finfo(whole.dtype).tiny), torch.zeros_like(whole))
    return values.gather(1, place)[:, 0], share[:, 0].clamp(max=1)


def largest_region(energy: Tensor) -> Tensor:
    """Of the connected parts of each map where it is positive, the one that holds most energy.

    Args:
        energy: (B, H, W), not negative; pixels that touch at a corner are connected.

    Returns:
        (B, H, W) bool; nowhere true where the map is all zeros.
    """
    mask = energy > 0
    count, height, width = energy.shape
    numbers = torch.arange(1, height * width + 1, device=energy.device, dtype=torch.float32)
    labels = numbers.reshape(1, height, width) * mask
    # Every pixel takes the highest number that it can reach; after as many steps as there are pixels none can change.
    for _ in range(height * width):
        spread = functional.max_pool2d(labels[:, None], 3, stride=1, padding=1)[:, 0] * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    sums = torch.zeros(count, height * width + 1, device=energy.device)
    sums.scatter_add_(1, labels.long().flatten(1), energy.flatten(1))
    return mask & (labels == sums.argmax(dim=1)[:, None, None])


def region_boxes(maps: Tensor) -> tuple[Floats, Floats]:
    """A box round the main region of each map.

    Args:
        maps: (B, H, W), high where the region is.

    Returns:
        (B, 4) x, y, width, height relative to the map, and (B,) scores in 0…1: how much more clearly the map falls into
        two parts than one hump does, times the share that the region holds of all that exceeds the threshold. 0 if the
        map is flat.
    """
    level, between = otsu_level(maps)
    clearness = ((between - _ONE_HUMP) / (1 - _ONE_HUMP)).clamp(min=0)
    energy = (maps - level[:, None, None]).clamp(min=0)
    region = largest_region(energy)
    edges = []
    for seen in (region.any(dim=1), region.any(dim=2)):  # along x, along y
        length = seen.shape[1]
        first = seen.float().argmax(dim=1)
        last = length - seen.flip(1).float().argmax(dim=1)
        edges.append((first / length, (last - first) / length))
    (x, width), (y, height) = edges
    whole = energy.sum(dim=(1, 2))
    share = (energy * region).sum(dim=(1, 2)) / torch.where(whole > 0, whole, torch.ones_like(whole))
    return torch.stack([x, y, width, height], dim=1).double().cpu().numpy(), (clearness * share).cpu().numpy()


def activation_boxes(
    backbone: str, weights: str, image_size: int, paths: Sequence[str], hardware: Hardware
) -> tuple[Floats, Floats]:
    """The main region of each photo as a pretrained backbone sees it.

    Args:
        backbone: name of a timm model.
        weights: its weights, see :func:`fieldmark.models.load_pretrained`, or a model file of this project.
        image_size: side of the square that a photo is squeezed into, pixels.
        paths: N photos.
        hardware: device and precision; one device is used.

    Returns:
        (N, 4) boxes relative to the photos, see :mod:`fieldmark.boxes`, and (N,) scores in 0…1.
    """
    classifier = build_classifier(
        Architecture(backbone, 0, 1, 0, False, image_size), weights, seed=0, backbone_alone=True
    )
    normalisation = classifier.normalisation
    fabric = hardware.one_device()
    model = fabric.setup_module(MiddleLevel(classifier.backbone).eval(), move_to_device=True)
    boxes: list[Floats] = [np.zeros((0, 4))]
    scores: list[Floats] = [np.zeros(0)]
    with torch.inference_mode():
        for views, windows in whole_photos(paths, image_size, fabric.device, hardware.decode_threads):
            component = principal_map(model(normalise(views, normalisation)).float())
            enlarged = functional.interpolate(
                component[:, None], scale_factor=_ENLARGED, mode="bilinear", align_corners=False
            )
            inside, share = region_boxes(enlarged[:, 0])
            boxes.append(out_of_windows(inside, windows))
            scores.append(share)
    return np.concatenate(boxes), np.concatenate(scores)

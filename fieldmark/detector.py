"""The detector of key regions: one box per photo, whatever the class.

FCOS (Tian et al. 2019) from torchvision on a feature pyramid (Lin et al. 2017) over any timm backbone that has levels
of stride 8, 16 and 32. It needs no anchors of a chosen size, so nothing but the image size is to be set for new data.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FeaturePyramidNetwork

from fieldmark.artifacts import ArtifactError
from fieldmark.boxes import Floats, out_of_windows
from fieldmark.hardware import Hardware
from fieldmark.models import Architecture, WeightsError, build_classifier
from fieldmark.weights_file import load_weights, save_weights
from fieldmark.whole_photos import whole_photos

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class DetectorArchitecture:
    """All that is needed to build a detector again; stored beside its weights.

    Attributes:
        backbone: name of a timm model.
        image_size: side of the square that a photo is squeezed into, pixels.
        width: channels of the pyramid and the head, a multiple of 32.
        depth: convolutions of the head before its outputs.
    """

    backbone: str
    image_size: int
    width: int
    depth: int


class FeaturePyramid(nn.Module):
    """The backbone's levels of stride 8, 16 and 32, all brought to the same width."""

    def __init__(self, backbone: Any, width: int) -> None:
        """Take over a timm ``backbone``; what lies behind its last level is cut off.

        Raises:
            WeightsError: if the backbone lacks one of the levels.
        """
        super().__init__()
        info = list(backbone.feature_info)
        # Of several levels with one stride the last one knows most.
        chosen = [max((i for i, level in enumerate(info) if level["reduction"] == s), default=-1) for s in STRIDES]
        if min(chosen) < 0:
            strides = ", ".join(str(level["reduction"]) for level in info)
            raise WeightsError(
                f"detection.backbone: expected levels of stride 8, 16 and 32, found {strides}; choose a convolutional "
                "or hierarchical backbone, such as tf_efficientnet_lite0, resnet50 or a Swin transformer"
            )
        self.levels = backbone.prune_intermediate_layers(chosen, prune_head=True)
        self.body = backbone
        self.neck = FeaturePyramidNetwork([info[level]["num_chs"] for level in chosen], width)
        self.out_channels = width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) normalised images to three (B, width, s, s) maps, the finest first."""
        maps = self.body.forward_intermediates(images, indices=self.levels, output_fmt="NCHW", intermediates_only=True)
        return self.neck(OrderedDict((str(level), features) for level, features in zip(STRIDES, maps, strict=True)))


class _Head(FCOSHead):
    """FCOS's head with sums over the cells inside boxes in place of means, since those of a batch's parts add up."""

    def compute_loss(
        self, targets: Any, head_outputs: Any, anchors: Any, matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        """The sum of each loss, and the number of the cells."""
        means = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        cells = torch.stack([(matched >= 0).sum() for matched in matched_idxs]).sum()
        return {**{name: mean * cells.clamp(min=1) for name, mean in means.items()}, "cells": cells}


class Detector(FCOS):
    """FCOS for one class that always answers with its best box."""

    def __init__(self, architecture: DetectorArchitecture, weights: str = "none", seed: int = 0) -> None:
        """Build with a new pyramid and head.

        Args:
            architecture: what to build.
            weights: of the backbone, see :func:`fieldmark.models.load_pretrained`.
            seed: for the weights that start at random.

        Raises:
            WeightsError: if timm has no such backbone, it has no pyramid, or the weights are not to be had.
        """
        side, width = architecture.image_size, architecture.width
        whole = Architecture(architecture.backbone, 0, 1, 0, False, side)
        donor = build_classifier(whole, weights, seed=seed, backbone_alone=True)
        mean, deviation = donor.normalisation
        super().__init__(
            FeaturePyramid(donor.backbone, width),
            num_classes=1,
            min_size=side,
            max_size=side,
            image_mean=list(mean),
            image_std=list(deviation),
            anchor_generator=AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES)),
            head=_Head(width, 1, 1, architecture.depth),
            # No threshold here: an answer for every photo, which the caller may doubt.
            score_thresh=-1.0,
            detections_per_img=1,
            topk_candidates=10,
            # Photos come as squares of the right side.
            size_divisible=1,
            _skip_resize=True,
        )
        # A subject usually fills several cells of the finest level: started there, the sides are learned sooner.
        nn.init.constant_(self.head.regression_head.bbox_reg.bias, 3.0)
        self.architecture = architecture

    def losses(self, views: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Focal, GIoU and centre-ness loss; for wrapping, call ``forward`` with the same pair.

        Args:
            views: (B, 3, S, S) in [0, 1].
            boxes: (B, 4) x, y, width, height in pixels of the views, none of them empty.

        Returns:
            The sum of all three, and the number of cells inside boxes, by which FCOS divides it.
        """
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        label = torch.zeros(1, dtype=torch.int64, device=boxes.device)
        targets = [{"boxes": box[None], "labels": label} for box in corners]
        sums = super().forward(list(views), targets)
        cells = sums.pop("cells")
        return torch.stack(list(sums.values())).sum(), cells

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Any:
        """Losses of (views, boxes) while training, else one dict of boxes (corners), scores and labels per view."""
        return super().forward(list(images)) if targets is None else self.losses(images, targets)


def detect(model: Detector, paths: Sequence[str], hardware: Hardware) -> tuple[Floats, Floats]:
    """The best box of each photo.

    Args:
        model: the detector.
        paths: N photos.
        hardware: device and precision; one device is used.

    Returns:
        (N, 4) boxes relative to the photos, see :mod:`fieldmark.boxes`, and (N,) scores in 0…1.
    """
    fabric = hardware.one_device()
    wrapped = fabric.setup_module(model.eval(), move_to_device=True)
    side = model.architecture.image_size
    boxes: list[Floats] = [np.zeros((0, 4))]
    scores: list[Floats] = [np.zeros(0)]
    with torch.inference_mode():
        for views, windows in whole_photos(paths, side, fabric.device, hardware.decode_threads):
            found = wrapped(views)
            corners = torch.cat([one["boxes"] for one in found]).float().cpu().numpy().astype(np.float64) / side
            inside = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
            boxes.append(out_of_windows(inside, windows))
            scores.append(torch.cat([one["scores"] for one in found]).float().cpu().numpy())
    return np.concatenate(boxes), np.concatenate(scores)


def save_detector(model: Detector, target: str | Path) -> None:
    """Write weights and architecture to one ``.safetensors`` file, atomically."""
    save_weights(target, "detector", asdict(model.architecture), model.state_dict())


def load_detector(source: str | Path) -> Detector:
    """Build the detector that :func:`save_detector` wrote.

    Raises:
        ArtifactError: if the file is missing, damaged or not one of ours.
    """
    remedy = "delete it and run the workflow again, and train_detector will make it anew"
    description, state = load_weights(source, "detector", remedy)
    try:
        model = Detector(DetectorArchitecture(**description))
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ArtifactError(f"{source}: its weights and its architecture disagree ({error}); {remedy}") from error
    return model

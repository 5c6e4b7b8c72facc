"""Embeddings and probabilities of photos, averaged over test-time views; every photo is decoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import lightning_fabric
import numpy as np
import torch
from lightning_fabric.plugins.environments import LightningEnvironment

from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.models import Classifier
from fieldmark.stage import Progress
from fieldmark.views import collate, decode_side, fixed_views, normalise, sample_rectangles


@dataclass(frozen=True)
class ViewPlan:
    """Which views of a photo are averaged.

    Attributes:
        scales: sides of the photo relative to the view, each at least 1.
        five_crop: centre and corners, or the centre alone.
        flip: each view also mirrored.
        size: side of the views relative to the model's image size; slightly above 1 suits models trained on
            random crops (Touvron et al. 2019).
    """

    scales: Sequence[float] = (1.0,)
    five_crop: bool = False
    flip: bool = False
    size: float = 1.0


def infer(
    model: Classifier,
    paths: Sequence[str],
    plan: ViewPlan,
    hardware: Hardware,
    batch_size: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Run ``model`` over all views of all photos.

    Args:
        model: the classifier.
        paths: N photos.
        plan: the views to average.
        hardware: device and precision; one device is used.
        batch_size: photos per step.

    Returns:
        (N, D) float32 embeddings, L2-normalised per view and averaged; (N, C) float32 probabilities, averaged.
    """
    if not paths:
        widths = model.neck.out_features, model.head.out_features
        return np.zeros((0, widths[0]), dtype=np.float32), np.zeros((0, widths[1]), dtype=np.float32)
    # The environment is named, as Fabric would take a process inside a SLURM job for one of several.
    fabric = lightning_fabric.Fabric(
        accelerator=hardware.accelerator, devices=1, precision=hardware.precision, plugins=[LightningEnvironment()]
    )
    wrapped = fabric.setup_module(model.eval(), move_to_device=True)
    side = round(model.architecture.image_size * plan.size)
    decode = decode_side(side, max(plan.scales))
    progress = Progress("infer", len(paths))
    embeddings, probabilities = [], []
    blocks = np.array_split(np.arange(len(paths)), -(-len(paths) // batch_size))
    # Each photo is seen once, so nothing is worth keeping in memory.
    with PhotoStore(paths, decode, 0, hardware.decode_threads) as store, torch.inference_mode():
        for number, block in enumerate(blocks):
            photos = store.get(block)
            if number + 1 < len(blocks):
                store.prefetch(blocks[number + 1])
            batch, sizes = (part.to(fabric.device) for part in collate(photos))
            straight = torch.zeros(len(block), device=fabric.device)
            plans = fixed_views(sizes, plan.scales, plan.five_crop, plan.flip)
            embedding_sum, probability_sum = None, None
            for centre, extent in plans:
                views = normalise(sample_rectangles(batch, sizes, centre, extent, straight, side), model.normalisation)
                embedding, logits = wrapped(views)
                unit = torch.nn.functional.normalize(embedding.float(), dim=1)
                probability = logits.float().softmax(dim=1)
                embedding_sum = unit if embedding_sum is None else embedding_sum + unit
                probability_sum = probability if probability_sum is None else probability_sum + probability
            assert embedding_sum is not None and probability_sum is not None
            embeddings.append((embedding_sum / len(plans)).cpu().numpy())
            probabilities.append((probability_sum / len(plans)).cpu().numpy())
            progress.add(len(block))
    return np.concatenate(embeddings), np.concatenate(probabilities)

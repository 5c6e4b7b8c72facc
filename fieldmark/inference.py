"""Embeddings and probabilities of photos, averaged over test-time views; every photo is decoded once."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from fieldmark.context import Context
from fieldmark.crops import KeyRegions
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.models import Classifier, fit_input_size
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
    context: Context | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run ``model`` over all views of all photos.

    Args:
        model: the classifier.
        paths: N photos.
        plan: the views to average.
        hardware: device and precision; one device is used.
        batch_size: photos per step.
        context: places, dates and key regions of the photos; a model does without the former two.

    Returns:
        (N, D) float32 embeddings, L2-normalised per view and averaged; (N, C) float32 probabilities, averaged.
    """
    if not paths:
        widths = model.width, model.outputs
        return np.zeros((0, widths[0]), dtype=np.float32), np.zeros((0, widths[1]), dtype=np.float32)
    fabric = hardware.one_device()
    wrapped = fabric.setup_module(model.eval(), move_to_device=True)
    side = round(model.architecture.image_size * plan.size)
    if side != model.architecture.image_size:
        # Transformers get their position embeddings resampled, and stay like that.
        fit_input_size(model.backbone, side)
    decode = decode_side(side, max(plan.scales))
    progress = Progress("infer", len(paths))
    embeddings, probabilities = [], []
    blocks = np.array_split(np.arange(len(paths)), -(-len(paths) // batch_size))
    context = context or Context()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        # Each photo is seen once, so nothing is worth keeping in memory.
        store = stack.enter_context(PhotoStore(paths, decode, 0, hardware.decode_threads))
        stores = {"images": store}
        if len(context.boxes):
            regions = KeyRegions(context.boxes, model.architecture.crop_margin)
            stores["crops"] = stack.enter_context(PhotoStore(paths, decode, 0, hardware.decode_threads, regions))
        for number, block in enumerate(blocks):
            following: Sequence[int] | np.ndarray = blocks[number + 1] if number + 1 < len(blocks) else []
            series = {
                name: _views(one, block, following, plan, side, model, fabric.device) for name, one in stores.items()
            }
            beside = {}
            if len(context.metadata):
                beside["metadata"] = torch.from_numpy(context.metadata[block]).to(fabric.device)
            embedding_sum, probability_sum, count = None, None, 0
            for views in zip(*series.values(), strict=True):
                embedding, logits = wrapped(**dict(zip(series, views, strict=True)), **beside)
                unit = torch.nn.functional.normalize(embedding.float(), dim=1)
                probability = logits.float().softmax(dim=1)
                embedding_sum = unit if embedding_sum is None else embedding_sum + unit
                probability_sum = probability if probability_sum is None else probability_sum + probability
                count += 1
            assert embedding_sum is not None and probability_sum is not None
            embeddings.append((embedding_sum / count).cpu().numpy())
            probabilities.append((probability_sum / count).cpu().numpy())
            progress.add(len(block))
    return np.concatenate(embeddings), np.concatenate(probabilities)


def _views(
    store: PhotoStore,
    block: np.ndarray,
    following: Sequence[int] | np.ndarray,
    plan: ViewPlan,
    side: int,
    model: Classifier,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """The plan's views of a block of photos, or of their key regions, one after the other; decodes ahead."""
    photos = store.get(block)
    store.prefetch(following)
    batch, sizes = (part.to(device) for part in collate(photos))
    straight = torch.zeros(len(block), device=device)
    for centre, extent in fixed_views(sizes, plan.scales, plan.five_crop, plan.flip):
        yield normalise(sample_rectangles(batch, sizes, centre, extent, straight, side), model.normalisation)

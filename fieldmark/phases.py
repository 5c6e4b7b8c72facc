"""One optimizer run over a model: its settings, its learning rates, and what it leaves frozen."""

import math
from dataclasses import dataclass

import torch
from timm.optim import param_groups_layer_decay

from fieldmark.models import Classifier, freeze_layers, freeze_norms


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not a number, say."""


@dataclass(frozen=True)
class Phase:
    """One optimizer run over the model; two-stage fine-tuning has two.

    Attributes:
        name: shown in the history.
        steps: optimizer steps.
        batch_size: photos per step, over all devices together.
        learning_rate: peak rate of the deepest layers; warm-up, then half a cosine to zero.
        head_multiplier: rate of neck and head relative to that.
        layer_decay: rate of each block relative to the next deeper one (1: the same everywhere).
        weight_decay: of AdamW, on weight matrices only.
        warmup: share of the steps in which the rate rises linearly.
        frozen_norms: keep BN/LN as pretrained.
        frozen_layers: blocks at the input that are not trained.
        frozen_backbone: train neck and head only.
        label_smoothing: see :func:`fieldmark.losses.weighted_cross_entropy`.
        marginal_weight: weight of the coarse-taxon loss on photos without a target.
        clip: largest norm of the gradient.
    """

    name: str
    steps: int
    batch_size: int
    learning_rate: float
    head_multiplier: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float = 0.02
    warmup: float = 0.1
    frozen_norms: bool = True
    frozen_layers: int = 0
    frozen_backbone: bool = False
    label_smoothing: float = 0.1
    marginal_weight: float = 0.0
    clip: float = 5.0


def learning_rate_at(phase: Phase, step: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(phase.warmup * phase.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, phase.steps - warmup)))


def prepare(model: Classifier, phase: Phase) -> torch.optim.Optimizer:
    """Freeze what the phase freezes and make its optimizer, with layer-wise learning rates."""
    model.requires_grad_(True)
    if phase.frozen_backbone:
        model.backbone.requires_grad_(False)
    else:
        freeze_layers(model.backbone, phase.frozen_layers)
        if phase.frozen_norms:
            freeze_norms(model.backbone)
    # Position embeddings and class tokens are no weight matrices, whatever their shape; their models name them.
    exempt = model.backbone.no_weight_decay() if hasattr(model.backbone, "no_weight_decay") else ()
    layers = param_groups_layer_decay(model.backbone, phase.weight_decay, exempt, layer_decay=phase.layer_decay)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"], "scale": group["lr_scale"]}
        for group in layers
    ]
    groups = [{**g, "params": [p for p in g["params"] if p.requires_grad]} for g in groups]
    for layer in (model.neck, model.head, *([] if model.metadata is None else [model.metadata])):
        for parameter in layer.parameters():
            decay = phase.weight_decay if parameter.ndim > 1 else 0.0
            groups.append({"params": [parameter], "weight_decay": decay, "scale": phase.head_multiplier})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=phase.learning_rate, fused=True)


def train_mode(model: Classifier, phase: Phase) -> None:
    """Switch to training, but for what the phase freezes: frozen layers keep their statistics."""
    model.train()
    if phase.frozen_backbone:
        model.backbone.eval()
        return
    for layer in model.backbone.modules():
        own = list(layer.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            layer.eval()

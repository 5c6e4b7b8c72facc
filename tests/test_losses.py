"""Each loss against a naive recomputation, photo by photo."""

import numpy as np
import pytest
import torch

from fieldmark.losses import marginal_loss, weighted_cross_entropy

BATCH, CLASSES = 7, 5


def log_softmax(row: np.ndarray) -> np.ndarray:
    return row - np.log(np.exp(row).sum())


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.tensor(np.random.default_rng(3).normal(0, 3, (BATCH, CLASSES)), requires_grad=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_the_weighted_mean_over_photos_with_a_target(logits: torch.Tensor, smoothing: float) -> None:
    target = np.array([0, 4, -1, 2, 2, -1, 1])
    weight = np.array([1.0, 0.5, 9.0, 0.0, 2.0, 1.0, 0.1])
    total = mass = 0.0
    for row, cls, own in zip(logits.detach().numpy(), target, weight, strict=True):
        if cls < 0:
            continue
        log_probability = log_softmax(row)
        loss = -(1 - smoothing) * log_probability[cls] - smoothing * log_probability.mean()
        total, mass = total + own * loss, mass + own
    found = weighted_cross_entropy(logits, torch.tensor(target), torch.tensor(weight), smoothing)
    assert found.item() == pytest.approx(total / mass, rel=1e-5)


def test_marginal_loss_is_the_log_of_the_summed_probability_of_the_taxon(logits: torch.Tensor) -> None:
    taxon_of_class = np.array([0, 1, 1, 0, -1])
    taxon = np.array([0, 1, -1, 7, 1, 0, 1])  # no class belongs to taxon 7
    weight = np.array([1.0, 0.5, 9.0, 3.0, 0.0, 1.0, 0.1])
    total = mass = 0.0
    for row, own_taxon, own in zip(logits.detach().numpy(), taxon, weight, strict=True):
        if own_taxon in (-1, 7):
            continue
        probability = np.exp(log_softmax(row))
        total -= own * np.log(sum(p for p, t in zip(probability, taxon_of_class, strict=True) if t == own_taxon))
        mass += own
    found = marginal_loss(logits, torch.tensor(taxon), torch.tensor(taxon_of_class), torch.tensor(weight))
    assert found.item() == pytest.approx(total / mass, rel=1e-5)


@pytest.mark.parametrize(("target", "weight"), [(-1, 1.0), (2, 0.0)])
def test_cross_entropy_without_target_or_weight_is_zero_with_zero_gradient(
    logits: torch.Tensor, target: int, weight: float
) -> None:
    loss = weighted_cross_entropy(logits, torch.full((BATCH,), target), torch.full((BATCH,), weight), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize(("taxon", "weight"), [(-1, 1.0), (5, 1.0), (0, 0.0)])
def test_marginal_loss_without_usable_taxon_is_zero_with_zero_gradient(
    logits: torch.Tensor, taxon: int, weight: float
) -> None:
    classes = torch.tensor([0, 0, 1, 1, -1])
    loss = marginal_loss(logits, torch.full((BATCH,), taxon), classes, torch.full((BATCH,), weight))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_marginal_loss_of_a_taxon_that_holds_every_class_is_zero(logits: torch.Tensor) -> None:
    loss = marginal_loss(logits, torch.zeros(BATCH), torch.zeros(CLASSES), torch.ones(BATCH))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_gradients_stay_finite_where_probabilities_vanish() -> None:
    logits = torch.tensor([[300.0, -300.0, 0.0], [0.0, 0.0, 0.0], [-300.0, 300.0, 0.0]], requires_grad=True)
    taxon_of_class = torch.tensor([0, 1, 1])
    loss = weighted_cross_entropy(logits, torch.tensor([1, -1, 0]), torch.ones(3))
    loss = loss + marginal_loss(logits, torch.tensor([1, 3, 0]), taxon_of_class, torch.ones(3))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_losses_are_float32_even_for_bfloat16_logits() -> None:
    logits = torch.zeros(2, 4, dtype=torch.bfloat16)
    target, weight = torch.tensor([0, 1]), torch.ones(2)
    assert weighted_cross_entropy(logits, target, weight).item() == pytest.approx(np.log(4), rel=1e-6)
    assert marginal_loss(logits, target, torch.tensor([0, 0, 1, 1]), weight).item() == pytest.approx(np.log(2), 1e-6)

"""Mixup and cutmix: what is in a mixed view, whose label it has, and that draws are seeded."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from fieldmark.mixing import Mixture, draw_mixture
from fieldmark.models import Classifier
from fieldmark.phases import Phase
from fieldmark.photosets import PhotoSet
from fieldmark.training import batch_loss
from fieldmark.views import Augmentation

PARTNER = torch.tensor([1, 2, 0])
VIEWS = torch.arange(3.0)[:, None, None, None].expand(3, 3, 10, 10).contiguous()


def test_mixup_averages_by_the_share() -> None:
    mixed = Mixture(PARTNER, 0.75).images(VIEWS)
    np.testing.assert_allclose(mixed[:, 0, 0, 0], [0.25, 1.25, 1.5])
    assert torch.equal(VIEWS[:, 0, 0, 0], torch.arange(3.0))  # the views themselves stay


def test_cutmix_pastes_a_patch() -> None:
    mixture = Mixture(PARTNER, 0.84, (0.2, 0.6, 0.1, 0.5))
    mixed = mixture.images(VIEWS)
    pasted = mixed[0, 0] == 1
    assert pasted[2:6, 1:5].all() and pasted.sum() == 16 and (mixed[0, 0][~pasted] == 0).all()
    torch.testing.assert_close(
        mixture.inputs(torch.tensor([[0.0], [1.0], [2.0]])), torch.tensor([[0.16], [1.16], [1.68]])
    )


def test_draws_are_seeded_and_shares_fit_the_patches() -> None:
    how = Augmentation(mixup=0.4, cutmix=1.0)
    first, again = (
        [draw_mixture(8, how, g) for _ in range(60)] for g in (torch.Generator().manual_seed(5) for _ in "ab")
    )
    kinds = set()
    for one, other in zip(first, again, strict=True):
        assert one is not None and other is not None
        assert torch.equal(one.partner, other.partner) and (one.share, one.patch) == (other.share, other.patch)
        assert 0 <= one.share <= 1 and sorted(one.partner.tolist()) == list(range(8))
        kinds.add(one.patch is None)
        if one.patch is not None:
            top, bottom, left, right = one.patch
            assert 0 <= top <= bottom <= 1.0001 and (bottom - top) * (right - left) == pytest.approx(
                1 - one.share, abs=1e-6
            )
    assert kinds == {True, False}


def test_switched_off_nothing_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert draw_mixture(8, Augmentation(), generator) is None
    assert torch.equal(generator.get_state(), state)


def test_the_loss_shares_both_targets(make_model: Callable[..., Classifier], toy: PhotoSet) -> None:
    model, phase = make_model().eval(), Phase("p", 1, 3, 1e-3, label_smoothing=0.0)
    photos = dataclasses.replace(toy, weight=np.arange(1, 13, dtype=np.float32))
    rows, images = np.array([0, 1, 2]), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, _ = batch_loss(model, images, photos, rows, phase, mixture=Mixture(PARTNER, 0.7))
    target, weight = torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 3.0])
    logits = model(images)[1]
    own = functional.cross_entropy(logits, target, reduction="none") * weight * 0.7
    other = functional.cross_entropy(logits, target[PARTNER], reduction="none") * weight[PARTNER] * 0.3
    torch.testing.assert_close(found, (own + other).sum() / weight.sum())

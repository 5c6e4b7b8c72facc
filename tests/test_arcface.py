"""The angular margin head against the formula written out photo by photo, at its edges, and in training."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from fieldmark.arcface import CosineHead, HeadSettings, class_margins, with_margin
from fieldmark.losses import weighted_cross_entropy
from fieldmark.models import Classifier, load_classifier, save_classifier

ARCFACE = HeadSettings(loss="arcface", scale=20.0, margin=0.4, subcenters=2)


def naive(embedding: np.ndarray, weight: np.ndarray, target: int, settings: HeadSettings, margin: float) -> list[float]:
    """Logits of one photo by angles, in float64: the definition, one class at a time."""
    logits = []
    for cls in range(len(weight) // settings.subcenters):
        centers = weight[cls * settings.subcenters : (cls + 1) * settings.subcenters]
        cosines = [c @ embedding / np.linalg.norm(c) / np.linalg.norm(embedding) for c in centers]
        angle = math.acos(np.clip(max(cosines), -1, 1))
        value = math.cos(angle)
        if cls == target:
            value = math.cos(angle + margin) if angle + margin < math.pi else value - margin * math.sin(margin)
        logits.append(settings.scale * value)
    return logits


@pytest.mark.parametrize("subcenters", [1, 3])
def test_logits_are_those_of_the_formula(subcenters: int) -> None:
    settings = HeadSettings("arcface", 25.0, 0.3, rare_margin=0.5, margin_exponent=0.4, subcenters=subcenters)
    torch.manual_seed(0)
    head = CosineHead(6, 5, settings).double()
    counts = torch.tensor([1, 3, 10, 100, 0])
    head.set_counts(counts)
    embedding = torch.randn(40, 6, dtype=torch.float64)
    target = torch.arange(40) % 6 - 1  # with −1, for photos without a target
    found = head(embedding, target).detach().numpy()
    for row, cls in enumerate(target.tolist()):
        margin = 0.3 + 0.5 * max(int(counts[cls]), 1) ** -0.4
        expected = naive(embedding[row].numpy(), head.weight.detach().numpy(), cls, settings, margin)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_there_is_no_margin_at_inference() -> None:
    torch.manual_seed(0)
    head = CosineHead(8, 4, HeadSettings("arcface", 30.0, 0.5))
    embedding = torch.randn(5, 8)
    cosine = functional.normalize(embedding, dim=1) @ functional.normalize(head.weight, dim=1).T
    torch.testing.assert_close(head(embedding), 30 * cosine)
    assert list(head.state_dict()) == ["weight"]


def test_the_logit_falls_with_the_angle_also_where_the_widened_angle_passes_pi() -> None:
    margin = torch.tensor([0.5])
    angles = torch.linspace(0.01, math.pi - 0.001, 400, dtype=torch.float64)
    widened = with_margin(angles.cos()[:, None], torch.zeros(400, 1, dtype=torch.long), margin)[:, 0]
    assert (widened.diff() < 0).all()
    beyond = angles + 0.5 > math.pi
    assert beyond.sum() > 50
    torch.testing.assert_close(widened[~beyond], (angles[~beyond] + 0.5).cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(widened[beyond], angles[beyond].cos() - 0.5 * math.sin(0.5))


@pytest.mark.parametrize("subcenters", [1, 2])
def test_gradients_are_those_of_finite_differences(subcenters: int) -> None:
    torch.manual_seed(1)
    head = CosineHead(5, 4, HeadSettings("arcface", 8.0, 0.5, subcenters=subcenters)).double()
    embedding = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    # The first photo looks away from its class, so that its widened angle passes π.
    with torch.no_grad():
        embedding[0] = -head.weight[: head.settings.subcenters].mean(dim=0)
    target = torch.tensor([0, 1, 2, 3, -1, 0])

    def loss(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(head, {"weight": weight}, (values, target))
        return functional.cross_entropy(logits, target, ignore_index=-1, label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, (embedding, head.weight))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_stay_finite_where_an_embedding_lies_on_or_opposite_its_center(sign: float) -> None:
    head = CosineHead(4, 3, HeadSettings("arcface", 30.0, 0.5))
    embedding = (sign * head.weight[:1].detach()).requires_grad_()
    functional.cross_entropy(head(embedding, torch.tensor([0])), torch.tensor([0])).backward()
    assert torch.isfinite(embedding.grad).all() and torch.isfinite(head.weight.grad).all()


def test_the_core_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    head = CosineHead(64, 10, ARCFACE)
    embedding = torch.randn(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(embedding, torch.zeros(8, dtype=torch.long))
    assert found.dtype == torch.float32
    assert torch.equal(found, head(embedding, torch.zeros(8, dtype=torch.long)))


def test_rare_classes_get_wider_margins() -> None:
    margins = class_margins(torch.tensor([0, 1, 10, 1000]), HeadSettings("arcface", 30, 0.05, 0.271, 0.364))
    expected = [0.05 + 0.271 * n**-0.364 for n in (1, 1, 10, 1000)]
    np.testing.assert_allclose(margins.numpy(), expected, rtol=1e-6)


def test_two_targets_of_a_mixed_photo_both_get_their_margin() -> None:
    cosine = torch.tensor([[0.5, 0.1, -0.3]])
    mixed = with_margin(cosine, torch.tensor([[0, 2]]), torch.tensor([0.2, 0.2, 0.4]))
    one = with_margin(cosine, torch.tensor([[0]]), torch.tensor([0.2, 0.2, 0.4]))
    other = with_margin(cosine, torch.tensor([[2]]), torch.tensor([0.2, 0.2, 0.4]))
    torch.testing.assert_close(mixed, torch.stack([one[0, 0], cosine[0, 1], other[0, 2]])[None])
    same = with_margin(cosine, torch.tensor([[0, 0]]), torch.tensor([0.2, 0.2, 0.4]))
    torch.testing.assert_close(same, one)
    none = with_margin(cosine, torch.tensor([[0, -1]]), torch.tensor([0.2, 0.2, 0.4]))
    torch.testing.assert_close(none, one)


@pytest.mark.parametrize("target", [[0, 2], [1, 1], [0, -1], [-1, 0], [-1, -1]])
def test_gradients_of_mixed_photos_are_those_of_finite_differences(target: list[int]) -> None:
    cosine = torch.tensor([[0.5, 0.1, -0.3]], dtype=torch.float64, requires_grad=True)
    margins = torch.tensor([0.2, 0.3, 0.4])
    assert torch.autograd.gradcheck(lambda values: with_margin(values, torch.tensor([target]), margins), (cosine,))


@pytest.mark.parametrize("prototypes", [False, True])
def test_a_classifier_trains_with_it_and_comes_back_from_its_file(
    make_model: Callable[..., Classifier], tmp_path: object, prototypes: bool
) -> None:
    model = make_model(head=ARCFACE, prototypes=prototypes, foreign=2)
    if model.blend is not None:
        model.blend.set_counts(torch.tensor([2, 3, 4, 0, 0]), 5.0)
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    target, weight = torch.tensor([0, 1, 2, -1, 4, 0]), torch.tensor([1.0, 0.5, 1.0, 1.0, 0.2, 1.0])
    _, logits = model(images, target=target)
    loss = weighted_cross_entropy(logits, target, weight, smoothing=0.1)
    _, plain = model(images)
    assert loss > weighted_cross_entropy(plain, target, weight, smoothing=0.1)
    assert torch.equal(logits[3], plain[3])
    loss.backward()
    assert torch.isfinite(model.head.weight.grad).all() and model.head.weight.grad.abs().sum() > 0
    path = f"{tmp_path}/model.safetensors"
    save_classifier(model, path)
    loaded = load_classifier(path).eval()
    assert loaded.architecture.head == ARCFACE
    assert torch.equal(loaded(images)[1], model.eval()(images)[1])

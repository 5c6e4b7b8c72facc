"""Depthwise convolutions of small maps: the same sums in another order, and only where they are slow otherwise."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fieldmark import depthwise
from fieldmark.depthwise import SmallMapConv2d, speed_up_small_maps
from fieldmark.models import Architecture, Classifier


def convolution(kernel: int = 5, **options: int) -> nn.Conv2d:
    torch.manual_seed(3)
    return nn.Conv2d(6, 6, kernel, **{"padding": kernel // 2, "groups": 6, "bias": False, **options})


def sped_up(layer: nn.Conv2d) -> nn.Conv2d:
    copied = copy.deepcopy(layer)
    speed_up_small_maps(copied)
    return copied


def count_pads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = torch.nn.functional.pad

    def pad(*arguments: object) -> torch.Tensor:
        calls.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(depthwise.functional, "pad", pad)
    return calls


@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (1, 1), (3, 7), (7, 3)])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2, "padding": 4}, {"kernel": 3}, {"bias": True}])
def test_values_and_gradients_are_those_of_a_plain_convolution(
    shape: tuple[int, int], options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = convolution(**options)
    fast = sped_up(plain)
    assert type(fast) is SmallMapConv2d and type(plain) is nn.Conv2d
    images = torch.randn(3, 6, *shape, generator=torch.Generator().manual_seed(1))
    pads = count_pads(monkeypatch)
    found = []
    for layer in (plain, fast):
        given = images.clone().requires_grad_()
        out = layer(given)
        (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
        found.append([out, given.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert len(pads) == (min(shape) < plain.kernel_size[0])


def test_only_training_takes_the_detour(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, pads = sped_up(convolution()), count_pads(monkeypatch)
    small, large = torch.randn(1, 6, 3, 3), torch.randn(1, 6, 9, 9)
    fast(large)
    with torch.inference_mode():
        fast(small)
    fast.requires_grad_(False)
    fast(small)
    assert not pads
    fast.requires_grad_(True)
    fast(small)
    assert pads == [1]


def test_other_convolutions_stay_as_they_are() -> None:
    class Own(nn.Conv2d):
        """One with a forward of its own, such as timm's for TensorFlow's padding."""

    layers = nn.Sequential(
        nn.Conv2d(6, 6, 3),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.Conv2d(1, 1, 3),
        nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="reflect"),
        Own(6, 6, 3, groups=6),
    )
    kinds = [type(layer) for layer in layers]
    speed_up_small_maps(layers)
    assert [type(layer) for layer in layers] == kinds


@pytest.mark.parametrize(("capability", "fast"), [("AVX2", 12), ("DEFAULT", 12), ("AVX512", 0)])
def test_a_classifier_has_them_where_they_pay_and_its_weights_keep_their_names(
    capability: str, fast: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    model = Classifier(Architecture("tf_efficientnet_lite0", 0, 3, 0, False, 64))
    changed = [layer for layer in model.backbone.modules() if isinstance(layer, SmallMapConv2d)]
    assert len(changed) == fast  # of 16; the other four have a stride and pad for themselves
    names, printed = set(model.state_dict()), str(model)
    for layer in changed:
        layer.__class__ = nn.Conv2d
    assert set(model.state_dict()) == names
    assert str(model) == printed  # so that a checkpoint of one kind of processor is taken on another


def test_they_can_be_sent_to_other_processes() -> None:
    assert isinstance(pickle.loads(pickle.dumps(sped_up(convolution()))), SmallMapConv2d)

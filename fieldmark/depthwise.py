"""Depthwise convolutions of small feature maps, whose gradient CPUs compute needlessly slowly.

oneDNN has a fast kernel for the gradient of a depthwise convolution's weights, but not where the map is smaller than
the filter, as in the last blocks of a backbone that sees 64 to 128 pixels: there it takes a general matrix product for
each channel. With the padding made explicit the map is large enough, and the sum is the same. The kernels for AVX-512
know no such limit, so processors that have it take no detour.
``python -m benchmarks.bench_training`` measures what that is worth.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SmallMapConv2d(nn.Conv2d):
    """A convolution that pads maps smaller than its filter first, while it is trained on a CPU."""

    def _get_name(self) -> str:
        # How a model is printed tells a checkpoint whether it is of the same model, and whether this detour is taken
        # depends on the processor: a job must be able to go on on another one.
        return "Conv2d"

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'); the parent's values, within rounding."""
        small = min(input.shape[-2:]) < max(self.kernel_size)
        if not (small and input.device.type == "cpu" and torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(input)
        padded = functional.pad(input, self._reversed_padding_repeated_twice)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def small_maps_are_slow() -> bool:
    """Whether this processor's kernels make the detour worth it."""
    return torch.backends.cpu.get_cpu_capability() != "AVX512"


def speed_up_small_maps(module: nn.Module) -> None:
    """Let the depthwise convolutions in ``module`` be :class:`SmallMapConv2d`; weights and their names stay."""
    for layer in module.modules():
        # Subclasses have a forward of their own.
        if type(layer) is nn.Conv2d and layer.groups == layer.in_channels > 1 and layer.padding_mode == "zeros":
            layer.__class__ = SmallMapConv2d

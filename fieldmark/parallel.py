"""What makes several processes, each with a part of every batch, train as one with the whole batch would.

One process gets the same bytes as if this module did not exist: its part is the whole, and sums are what they were.
"""

import gc
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning_fabric
import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fieldmark.hardware import Hardware

# A process waits so long for the others, which may be validating or reading; that one is gone shows much sooner.
TIMEOUT = timedelta(hours=6)


def open_fabric(hardware: Hardware) -> lightning_fabric.Fabric:
    """Fabric for one process, or for one of several that :mod:`fieldmark.processes` started."""
    if hardware.processes == 1:
        return hardware.one_device()
    fabric = lightning_fabric.Fabric(
        accelerator=hardware.accelerator,
        devices=hardware.fabric_devices,
        num_nodes=hardware.nodes,
        # Buffers (prototypes, statistics of batch norm) stay equal in all processes without being sent at each step.
        strategy=DDPStrategy(timeout=TIMEOUT, forward_sync_buffers=False),
        precision=hardware.precision,
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


class SharingError(RuntimeError):
    """Processes that should train as one do not see the same."""


class Share:
    """This process's part of every batch."""

    def __init__(self, fabric: lightning_fabric.Fabric) -> None:
        """Take every n-th photo of a batch, beginning at the rank, where n is the number of processes."""
        self.fabric = fabric
        self.processes = fabric.world_size
        self.place = slice(fabric.global_rank, None, self.processes)

    def total(self, part: Tensor) -> Tensor:
        """Sum over all processes, without a gradient."""
        if self.processes == 1:
            return part
        result = part.detach().clone()
        dist.all_reduce(result)
        return result

    def whole(self, part: Tensor, count: int) -> Tensor:
        """The ``count`` rows of a batch in their order, from the rows that each process has; without a gradient."""
        if self.processes == 1:
            return part.detach()
        rows = part.new_zeros((count, *part.shape[1:]))
        rows[self.place] = part.detach()
        return self.total(rows)

    def agree(self, position: tuple[int, int], checkpoint: Path) -> None:
        """Make sure that all processes begin at the same phase and step.

        Raises:
            SharingError: if they do not, because one of them sees another checkpoint.
        """
        if self.fabric.broadcast(position) != position:
            raise SharingError(f"{checkpoint} differs between the nodes: results/ must lie on a shared file system")

    def end_phase(self) -> None:
        """Wait for the first process, which may be validating, and let go of the phase's gradient hooks.

        They hang on the model's parameters, which the next phase hooks anew, until their owner is collected.
        """
        if self.processes > 1:
            self.fabric.barrier()
            gc.collect()

    def backward(self, loss: Tensor) -> None:
        """Gradient of the sum of all processes' losses; their mean is what data-parallel training computes."""
        self.fabric.backward(loss if self.processes == 1 else loss * self.processes)

    def batch_statistics(self, model: nn.Module) -> AbstractContextManager[Any]:
        """In this context, batch norms that train see the whole batch."""
        norms = (layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
        if self.processes == 1 or not any(layer.training for layer in norms):
            return nullcontext()
        return WholeBatchNorm()


class WholeBatchNorm(TorchFunctionMode):
    """Batch norm with mean and variance over the batches of all processes.

    As ``torch.nn.SyncBatchNorm``, but on CPUs too, and whatever class of layer calls it; timm has its own.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace batch norms that keep running statistics; weight standardisation, the same function, does not."""
        given = kwargs or {}
        if func is functional.batch_norm and given.get("training") and args[1] is not None:
            values, mean, variance = args
            own = (given[name] for name in ("weight", "bias", "momentum", "eps"))
            return _whole_batch_norm(values, mean, variance, *own)
        return func(*args, **given)


def _whole_batch_norm(
    values: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    epsilon: float,
) -> Tensor:
    own = values.float()
    others = [0, *range(2, own.dim())]  # all but the channels
    shape = [1, -1] + [1] * (own.dim() - 2)
    count = own.new_tensor(float(math.prod(own.shape[axis] for axis in others)))
    sums = _Total.apply(torch.cat([own.sum(dim=others), count[None]]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = own - mean.view(shape)
    variance = _Total.apply(centred.square().sum(dim=others)) / count
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_variance.lerp_(variance * count / (count - 1), momentum)
    result = centred * torch.rsqrt(variance + epsilon).view(shape)
    if weight is not None and bias is not None:
        result = result * weight.view(shape) + bias.view(shape)
    return result.to(values.dtype)


class _Total(torch.autograd.Function):
    """Sum over all processes; what each process's loss owes to the sum, all of them owe to each part."""

    @staticmethod
    def forward(context: Any, part: Tensor) -> Tensor:
        result = part.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        result = gradients[0].clone()
        dist.all_reduce(result)
        return result

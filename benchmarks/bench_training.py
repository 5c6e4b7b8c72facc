"""What makes a step of training on a CPU fast: ``python -m benchmarks.bench_training``.

Variants lack explicit padding of small maps (fieldmark/depthwise.py), AdamW in one pass over the weights, or both. They
take the same steps on the same random images and take turns; the fastest step counts, as others lost time to other
processes.
"""

import argparse
import time

import torch
from torch import nn

from fieldmark.depthwise import SmallMapConv2d, speed_up_small_maps
from fieldmark.models import Architecture, Classifier
from fieldmark.phases import Phase, prepare, train_mode

VARIANTS = ("both", "without explicit padding", "without fused AdamW", "neither")


def seconds_per_step(variant: str, side: int, batch: int, steps: int) -> float:
    """Train on random images, as a phase of the workflow does, and return the time of the fastest step."""
    torch.manual_seed(1)
    model = Classifier(Architecture("tf_efficientnet_lite0", 0, 40, 0, False, side))
    # The workflow pads only where the processor's kernels need it; here both ways are timed on any.
    speed_up_small_maps(model.backbone)
    if variant in ("without explicit padding", "neither"):
        for layer in model.modules():
            if isinstance(layer, SmallMapConv2d):
                layer.__class__ = nn.Conv2d  # type: ignore[assignment]
    phase = Phase("bench", steps, batch, 1e-3)
    optimizer = prepare(model, phase)
    if variant in ("without fused AdamW", "neither"):
        optimizer = torch.optim.AdamW([{**group, "fused": False, "foreach": True} for group in optimizer.param_groups])
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    target = torch.arange(batch) % 40
    train_mode(model, phase)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        loss = nn.functional.cross_entropy(model(images)[1], target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Print milliseconds per step for each variant and side, and how many times those of both they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96, 128, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| side | variant | ms per step | ratio |\n| --- | --- | --- | --- |")
    for side in options.sides:
        best = dict.fromkeys(VARIANTS, float("inf"))
        for _ in range(options.turns):
            for variant in VARIANTS:
                best[variant] = min(best[variant], seconds_per_step(variant, side, options.batch, options.steps))
        for variant, seconds in best.items():
            print(f"| {side} | {variant} | {1000 * seconds:.0f} | {seconds / best['both']:.2f} |", flush=True)


if __name__ == "__main__":
    main()

"""Peak memory of training an ArcFace head alone: ``python -m benchmarks.head_memory``.

One process takes steps of AdamW with heads of growing size, so its peak tells that of the largest so far.
"""

import argparse
import gc
import resource

import torch
from torch.nn import functional

from fieldmark.arcface import CosineHead, HeadSettings


def peak_mib() -> float:
    """Largest memory that this process ever had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def take_steps(classes: int, subcenters: int, width: int, batch: int, steps: int = 2) -> None:
    """Train a head on random embeddings."""
    head = CosineHead(width, classes, HeadSettings("arcface", subcenters=subcenters))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    target = torch.arange(batch) % classes
    for _ in range(steps):
        embedding = torch.randn(batch, width, requires_grad=True)
        loss = functional.cross_entropy(head(embedding, target), target, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def main() -> None:
    """Print a table: classes, centers, peak above the start, and the weights alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10_000])
    parser.add_argument("--subcenters", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    take_steps(10, 1, 16, 4)
    start = peak_mib()
    print("| classes | centers | weights, MiB | peak of training, MiB | ratio |")
    print("| --- " * 5 + "|")
    for classes in sorted(options.classes):
        for subcenters in sorted(options.subcenters):
            take_steps(classes, subcenters, options.width, options.batch)
            gc.collect()
            weights, peak = classes * subcenters * options.width * 4 / 2**20, peak_mib() - start
            print(f"| {classes} | {subcenters} | {weights:.0f} | {peak:.0f} | {peak / weights:.1f} |", flush=True)


if __name__ == "__main__":
    main()

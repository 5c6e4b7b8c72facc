"""How much faster the project decodes photos than plain Pillow calls do: ``python benchmarks/bench_decode.py``.

JPEGs are drawn in a temporary folder, so nothing is needed but the project's environment.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fieldmark.images import PhotoStore, load_photo


def draw(folder: Path, count: int, longest: int) -> list[str]:
    """Write ``count`` JPEGs with as much detail as photos have."""
    random = np.random.Generator(np.random.PCG64(1))
    size = (longest, longest * 3 // 4)
    paths = []
    for number in range(count):
        layers = [random.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8) for side in (8, 40, 200)]
        images = [Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC) for layer in layers]
        blended = Image.blend(Image.blend(images[0], images[1], 0.4), images[2], 0.2)
        path = folder / f"{number:04d}.jpg"
        blended.save(path, quality=88)
        paths.append(str(path))
    return paths


def load_plainly(path: str, side: int) -> np.ndarray:
    """What a data loader without this module does: full decode, then one antialiased resize."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    scale = side / min(upright.size)
    size = (round(upright.width * scale), round(upright.height * scale))
    return np.ascontiguousarray(np.asarray(upright.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1))


def load_each(load: Callable[[str, int], np.ndarray], paths: list[str], side: int) -> None:
    """Load the photos one after the other."""
    for path in paths:
        load(path, side)


def best_rate(run: Callable[[], object], photos: int, tries: int = 3) -> float:
    """Photos per second of the fastest try: the other tries lost time to other processes."""
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return photos / min(seconds)


def main() -> None:
    """Print photos per second and ratios for several sides."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--photos", type=int, default=64)
    arguments.add_argument("--longest", type=int, default=500, help="longer side of the drawn photos, pixels")
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder), options.photos, options.longest)
        print("side  plain/s  load_photo/s  ratio  PhotoStore/s  ratio  from memory/s")
        everything = np.arange(len(paths))
        for side in (96, 128, 224, 256):
            plain = best_rate(partial(load_each, load_plainly, paths, side), len(paths))
            fast = best_rate(partial(load_each, load_photo, paths, side), len(paths))
            with PhotoStore(paths, side, 0, options.threads) as store:
                pooled = best_rate(partial(store.get, everything), len(paths))
            with PhotoStore(paths, side, 2**30, options.threads) as store:
                kept = best_rate(partial(store.get, everything), len(paths))
            print(
                f"{side:4d}  {plain:7.0f}  {fast:12.0f}  {fast / plain:5.2f}  {pooled:12.0f}  {pooled / plain:5.2f}"
                f"  {kept:13.0f}"
            )


if __name__ == "__main__":
    main()

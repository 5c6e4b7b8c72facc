"""Photos as a detector sees them: whole, each squeezed into a square, with the part of the photo that this shows."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fieldmark.boxes import Floats, visible_windows
from fieldmark.images import decode_resized, read_bytes
from fieldmark.stage import Progress
from fieldmark.views import collate, sample_rectangles


def squares(batch: Tensor, sizes: Tensor, side: int) -> Tensor:
    """Padded photos and their sizes, as ``views.collate`` gives them, as (B, 3, side, side) in [0, 1]."""
    straight = torch.zeros(len(batch), device=batch.device)
    return sample_rectangles(batch, sizes, sizes / 2, sizes, straight, side)


def whole_photos(
    paths: Sequence[str], side: int, device: torch.device, threads: int, batch_size: int = 32
) -> Iterator[tuple[Tensor, Floats]]:
    """Decode photos once, batch by batch, while the last batch is computed on.

    Args:
        paths: N photos.
        side: of the squares, pixels.
        device: where the squares go.
        threads: that decode.
        batch_size: photos at a time, at most.

    Yields:
        (B, 3, side, side) squares in [0, 1], and (B, 4) the part of each photo that they show.

    Raises:
        fieldmark.images.PhotoError: if a photo cannot be decoded; it names the file.
    """

    def decode(path: str) -> tuple[np.ndarray, tuple[int, int]]:
        image, full = decode_resized(path, read_bytes(path), side)
        return np.asarray(image).transpose(2, 0, 1), full

    progress = Progress("detect", len(paths))
    blocks = [paths[first : first + batch_size] for first in range(0, len(paths), batch_size)]
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting = pool.map(decode, blocks[0]) if blocks else iter(())
        for following in [*blocks[1:], []]:
            decoded, waiting = list(waiting), pool.map(decode, following)
            if not decoded:
                return
            batch, sizes = (part.to(device) for part in collate([pixels for pixels, _ in decoded]))
            full = np.array([size for _, size in decoded])
            yield squares(batch, sizes, side), visible_windows(full[:, 0], full[:, 1])
            progress.add(len(decoded))

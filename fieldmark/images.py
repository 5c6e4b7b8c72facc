"""Photos from disk: decoded safely whatever the file holds, upright, RGB, and fast at the side a model needs."""

import errno
import logging
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from unicodedata import normalize

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

# Beyond these a file is taken for a decompression bomb: 120 megapixels are 360 MB of RGB for each decoding thread.
MAX_PIXELS = 120_000_000
MAX_BYTES = 512 * 2**20

# Pillow's own limit only warns up to twice its value; the check below refuses at once, so its warning says nothing new.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# What libjpeg decodes, and can scale while it does: phones write several pictures into one file, MPO to Pillow.
_JPEG = ("JPEG", "MPO")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# These keep width and height as they are.
_STRAIGHT = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)


class PhotoError(ValueError):
    """A file cannot be used as a photo.

    Attributes:
        path: the file.
        reason: why, in a few words without the path.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a regular, non-empty file of bearable size.

    Raises:
        PhotoError: if there is no such file, or it may not be read, is a folder, pipe or device, is empty or too big.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise PhotoError(path, "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size == 0:
            raise PhotoError(path, "zero bytes")
        if status.st_size > MAX_BYTES:
            raise PhotoError(path, f"{status.st_size} bytes, more than the {MAX_BYTES} a photo may have")
        return Path(path).read_bytes()
    except OSError as error:
        forms = (Path(normalize(form, str(path))) for form in ("NFC", "NFD"))
        if error.errno == errno.ENOENT and any(form.exists() for form in forms):
            reason = "no such file, but one whose name looks the same and is of other Unicode characters (NFC, NFD)"
            raise PhotoError(path, reason) from error
        known = {errno.ENOENT: "no such file", errno.ELOOP: "a loop of links", errno.EACCES: "no permission to read it"}
        raise PhotoError(path, known.get(error.errno or 0, f"unreadable: {error.strerror}")) from error


def _open(path: str | Path, data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
        raise PhotoError(path, f"{image.width}x{image.height} pixels, more than the {MAX_PIXELS} a photo may have")
    return image


def _turn(image: Image.Image, path: str | Path) -> Image.Transpose | None:
    """What makes the photo upright; None if it is."""
    if image.format == "TIFF":
        # Pillow turns these itself, and says so in their size even before it decodes them.
        return None
    try:
        return _UPRIGHT.get(int(image.getexif().get(_ORIENTATION_TAG, 1)))
    except (ValueError, TypeError, SyntaxError, KeyError, IndexError, OSError) as error:
        # Damaged EXIF says nothing about the pixels: the photo is good, only its orientation is unknown.
        logger.info("%s: damaged EXIF (%s); taken as upright", path, error)
        return None


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise PhotoError(path, "floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        # 16-bit greyscale: Pillow's own conversion clips at 255 instead of scaling.
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the {MAX_PIXELS} a photo may have"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    text = " ".join(str(error).split()) or type(error).__name__
    return "truncated" if "truncated" in text.lower() else f"damaged: {text}"


def decode_resized(
    path: str | Path, data: bytes, side: int, max_aspect: float = 2.0
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode ``data`` at about the needed size: the shorter side becomes ``side``, the longer is cropped in the centre.

    libjpeg scales by 1/2, 1/4 or 1/8 while it decodes, which still reads the whole file, but never below the needed
    size; one antialiased bicubic resize does the rest.

    Args:
        path: named in errors.
        data: the file's bytes.
        side: shorter side of the result, pixels.
        max_aspect: the longer side is at most ``max_aspect * side``.

    Returns:
        The upright RGB photo, and the width and height of the full upright photo in pixels.

    Raises:
        PhotoError: if ``data`` cannot be decoded.
    """
    try:
        image = _open(path, data)
        full = image.size
        turn = _turn(image, path)
        scale = side / min(full)
        longest = int(max_aspect * side)
        # Crop the longer side to max_aspect in source pixels, then both sides to their exact target.
        target = tuple(min(longest, max(side, round(length * scale))) for length in full)
        if image.format in _JPEG:
            needed = tuple(max(side, int(np.ceil(length * scale))) for length in full)
            image.draft(None, needed)  # type: ignore[arg-type]  # (width, height); None keeps the colour mode
        image = _to_rgb(image, path)
        shrink = min(full) / min(image.size)
        kept = [min(length, size / (scale * shrink)) for length, size in zip(image.size, target, strict=True)]
        box = [(length - keep) / 2 for length, keep in zip(image.size, kept, strict=True)]
        corners = (box[0], box[1], box[0] + kept[0], box[1] + kept[1])
        if image.size != target or corners != (0, 0, *image.size):
            image = image.resize(target, Image.Resampling.BICUBIC, box=corners)  # type: ignore[arg-type]
        image.load()
        if turn is not None:
            image = image.transpose(turn)
            full = full if turn in _STRAIGHT else full[::-1]
        return image, full
    except (PhotoError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything at all on hostile bytes; each becomes a named PhotoError
        raise PhotoError(path, _reason(error)) from error


def load_photo(path: str | Path, side: int, max_aspect: float = 2.0) -> np.ndarray:
    """Decode a photo at the size that training needs.

    Args:
        path: the file.
        side: shorter side of the result, pixels; smaller photos are enlarged.
        max_aspect: the longer side is at most ``max_aspect * side``, cropped in the centre beyond.

    Returns:
        uint8 array (3, H, W), C-contiguous, upright RGB.

    Raises:
        PhotoError: if the file cannot be read or decoded.
    """
    image, _ = decode_resized(path, read_bytes(path), side, max_aspect)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode_upright(
    path: str | Path, data: bytes, shrink: Callable[[int, int], float]
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode ``data`` upright, in RGB and, where the format can, smaller.

    Args:
        path: named in errors.
        data: the file's bytes.
        shrink: from the upright photo's width and height the share of them that is needed at least, up to 1.

    Returns:
        The photo, and the width and height of the full upright photo in pixels.

    Raises:
        PhotoError: if ``data`` cannot be decoded.
    """
    try:
        image = _open(path, data)
        turn = _turn(image, path)
        full = image.size if turn is None or turn in _STRAIGHT else image.size[::-1]
        share = shrink(*full)
        if image.format in _JPEG:
            image.draft(None, tuple(int(np.ceil(length * share)) for length in image.size))  # type: ignore[arg-type]
        image = _to_rgb(image, path)
        image.load()
        return (image if turn is None else image.transpose(turn)), full
    except (PhotoError, MemoryError):
        raise
    except Exception as error:  # as in decode_resized
        raise PhotoError(path, _reason(error)) from error


class Regions(Protocol):
    """Parts of photos, by the photos' indices."""

    def load(self, path: str, index: int, side: int) -> np.ndarray:
        """The part of the photo at ``path``, its shorter side ``side``, as of :func:`load_photo`."""
        ...


class PhotoStore:
    """Photos by index, decoded by a thread pool and kept in memory while a budget allows.

    A photo once kept stays: over epochs in random order, evicting would only trade one photo's decoding for another's.
    The methods are meant for one calling thread. Arrays are shared with the cache and therefore read-only.

    Args:
        paths: the files, in the order that the indices refer to.
        side: shorter side of each photo, pixels; see :func:`load_photo`.
        cache_bytes: memory for kept photos; 0 keeps none.
        workers: decoding threads.
        regions: parts of the photos to decode in their place.
    """

    def __init__(
        self, paths: Sequence[str], side: int, cache_bytes: int, workers: int, regions: Regions | None = None
    ) -> None:
        self._paths = list(paths)
        self._regions = regions
        self._side = side
        self._free_bytes = cache_bytes
        self._kept: dict[int, np.ndarray] = {}
        self._pending: dict[int, Future[np.ndarray]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def _decode(self, index: int) -> np.ndarray:
        path = self._paths[index]
        try:
            if self._regions is None:
                photo = load_photo(path, self._side)
            else:
                photo = self._regions.load(path, index, self._side)
        except PhotoError as error:
            remedy = "it could be read when photos were listed: put it back, or run with --forcerun ingest_photos"
            raise PhotoError(path, f"{error.reason}; {remedy}") from error
        photo.flags.writeable = False
        return photo

    def prefetch(self, indices: np.ndarray | Iterable[int]) -> None:
        """Start to decode in the background the photos that a later :meth:`get` will ask for."""
        for index in map(int, indices):
            if index not in self._kept and index not in self._pending:
                self._pending[index] = self._pool.submit(self._decode, index)

    def get(self, indices: np.ndarray | Iterable[int]) -> list[np.ndarray]:
        """The photos of ``indices``, in that order, each uint8 (3, H, W).

        Raises:
            PhotoError: if one cannot be decoded; it names the file.
        """
        wanted = [int(index) for index in indices]
        self.prefetch(wanted)
        decoded: dict[int, np.ndarray] = {}
        for index in wanted:
            if index in self._kept or index in decoded:
                continue
            photo = decoded[index] = self._pending.pop(index).result()
            if photo.nbytes <= self._free_bytes:
                self._kept[index] = photo
                self._free_bytes -= photo.nbytes
        return [self._kept[index] if index in self._kept else decoded[index] for index in wanted]

    def close(self) -> None:
        """Stop the threads and drop every photo."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        self._kept.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

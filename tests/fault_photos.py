"""Odd and bad photos, put among good ones and ingested all at once; docs/faults.md lists what became of each."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fieldmark.artifacts import read_table
from tests.miniatures import bomb
from workflow.scripts.ingest_photos import ingest_photos


@dataclass(frozen=True)
class PhotoCase:
    """One photo.

    Attributes:
        what: as the document names it.
        name: of the file, in the folder of unlabeled photos; bytes where it is no text.
        make: writes the file.
        used: whether it must be used.
    """

    what: str
    name: str | bytes
    make: Callable[[Path], object]
    used: bool


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    """A smooth coloured picture of its own for each seed."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def cut(path: Path, share: float) -> None:
    """Keep the beginning of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(10).save(path, exif=exif)


def with_transparency(path: Path) -> None:
    palette = picture(11).quantize(16)
    palette.save(path, transparency=bytes(range(0, 256, 16)))


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 513 * 2**20)


def pixels(kind: type, name: str, factor: float) -> Callable[[Path], object]:
    """A greyscale picture of another type of numbers."""
    values = np.asarray(picture(12).convert("L"), dtype=np.float64) * factor
    return lambda path: Image.fromarray(values.astype(kind)).save(path, name)


PHOTOS = [
    PhotoCase("zero bytes", "zero.jpg", Path.touch, False),
    PhotoCase("a JPEG cut off in the middle", "cut.jpg", lambda p: (picture(1, 200, 200).save(p), cut(p, 0.6)), False),
    PhotoCase("a PNG cut off in the middle", "cut2.png", lambda p: (picture(2, 200, 200).save(p), cut(p, 0.6)), False),
    PhotoCase("a web page called .jpg", "page.jpg", lambda p: p.write_text("<html>404 not found</html>"), False),
    PhotoCase("a PNG called .jpg", "suffix.jpg", lambda p: picture(3).save(p, "PNG"), True),
    PhotoCase("a photo without suffix", "suffixless", lambda p: picture(4).save(p, "JPEG"), True),
    PhotoCase("CMYK", "cmyk.jpg", lambda p: picture(5).convert("CMYK").save(p), True),
    PhotoCase("greyscale", "grey.png", lambda p: picture(6).convert("L").save(p), True),
    PhotoCase("16 bits", "deep.png", pixels(np.uint16, "PNG", 256), True),
    PhotoCase("floating-point numbers", "float.tif", pixels(np.float32, "TIFF", 1 / 256), False),
    PhotoCase("a palette with transparency", "palette.png", with_transparency, True),
    PhotoCase("EXIF: lies on its side (stored 60 × 40)", "exif.jpg", turned, True),
    PhotoCase("damaged EXIF", "exif2.jpg", lambda p: picture(7).save(p, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), True),
    PhotoCase(
        "an animation",
        "animation.gif",
        lambda p: picture(8).save(p, save_all=True, append_images=[picture(9)]),
        True,
    ),
    PhotoCase("1 × 300 pixels", "thin.png", lambda p: picture(13, 1, 300).save(p), True),
    PhotoCase("1 × 1 pixel", "dot.png", lambda p: picture(14, 1, 1).save(p), True),
    PhotoCase("a decompression bomb of a billion pixels", "bomb.png", bomb, False),
    PhotoCase("a file of 513 MiB", "huge.jpg", sparse, False),
    PhotoCase("a link to nothing", "gone.jpg", lambda p: p.symlink_to("nowhere.jpg"), False),
    PhotoCase("a link to itself", "self.jpg", lambda p: p.symlink_to(p), False),
    PhotoCase("a folder that links to its parent", "loop", lambda p: p.symlink_to(p.parent), False),
    PhotoCase("a link to a photo outside the data folder", "out.png", lambda p: p.symlink_to("../../out.png"), False),
    PhotoCase("a link to a photo inside", "in.png", lambda p: p.symlink_to("../kept/5.png"), True),
    PhotoCase("a named pipe", "pipe.jpg", lambda p: os.mkfifo(p), False),
    PhotoCase("spaces in the name", "a b  c.png", lambda p: picture(15).save(p), True),
    PhotoCase("quotes in the name", "a'b\"c`d.png", lambda p: picture(16).save(p), True),
    PhotoCase("a newline in the name", "a\nb.png", lambda p: picture(17).save(p), True),
    PhotoCase("letters beyond ASCII in the name", "käfer 甲虫.png", lambda p: picture(18).save(p), True),
    PhotoCase("a name that is not UTF-8", b"caf\xe9.png", lambda p: picture(19).save(p, "PNG"), False),
    PhotoCase("a hidden file", ".hidden.jpg", lambda p: picture(20).save(p), False),
    PhotoCase("the same file as a val photo", "copy.png", lambda p: picture(102).save(p, "PNG"), False),
    PhotoCase("a val photo, saved as another format", "near.bmp", lambda p: picture(103).save(p), False),
]


def ingest_share(folder: Path, share: float) -> dict[str, str]:
    """Put all of :data:`PHOTOS` among five good photos and ingest them with ``leaks: drop_near``.

    Args:
        folder: an empty one.
        share: of photos that may be rejected.

    Returns:
        The path of each table.
    """
    root = folder / "data"
    good = ["labeled/ant/0", "labeled/bee/1", "val/ant/2", "val/bee/3", "test/4", "kept/5"]
    for number, name in enumerate(good):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(100 + number).save(root / f"{name}.png")
    picture(99).save(folder / "out.png")
    (root / "unlabeled").mkdir()
    for case in PHOTOS:
        case.make(root / "unlabeled" / os.fsdecode(case.name))
    paths = {name: str(folder / f"{name}.parquet") for name in ("manifest", "classes", "rejected")}
    settings = {"max_rejected_share": share, "leaks": "drop_near", "near_duplicate_bits": 4, "workers": 2}
    ingest_photos(format="folder", root=str(root), coarse_taxa=[], **paths, **settings)  # type: ignore[arg-type]
    return paths


def photo_outcomes(folder: Path) -> list[tuple[PhotoCase, str]]:
    """Ingest all of :data:`PHOTOS` with ``leaks: drop_near``; what became of each.

    Raises:
        AssertionError: if one is used that must not be, or the other way round.
    """
    root, paths = folder / "data", ingest_share(folder, 1.0)
    used = {row["path"]: row for row in read_table("manifest", paths["manifest"]).iter_rows(named=True)}
    rejected = dict(read_table("rejected", paths["rejected"]).select("path", "reason").iter_rows())
    outcomes = []
    for case in PHOTOS:
        path = f"{root}/unlabeled/{os.fsencode(case.name).decode('utf-8', 'backslashreplace')}"
        if path in used:
            outcome = f"used, {used[path]['width']} × {used[path]['height']} pixels"
        elif path in rejected:
            outcome = "rejected: " + rejected[path].replace(str(root), "…")
        else:
            outcome = "passed over"
        assert outcome.startswith("used") == case.used, f"{case.what}: {outcome}"
        outcomes.append((case, outcome))
    return outcomes

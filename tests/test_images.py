import errno
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark import images
from fieldmark.images import PhotoError, PhotoStore, decode_upright, load_photo, read_bytes
from tests.miniatures import bomb

RED, BLUE = (220, 30, 30), (30, 30, 220)


def halves(width: int = 120, height: int = 80) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def full_photo(path: Path) -> Image.Image:
    """Decoded in full."""
    return decode_upright(path, read_bytes(path), lambda width, height: 1.0)[0]


def close(found: object, expected: tuple[int, ...], tolerance: int = 25) -> bool:
    return bool(np.all(np.abs(np.asarray(found, dtype=int) - np.asarray(expected)) <= tolerance))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif", "a b'c\"d\ne.jpg"])
def test_formats_and_odd_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    halves().save(path)
    photo = full_photo(path)
    assert photo.mode == "RGB" and photo.size == (120, 80)
    assert close(photo.getpixel((10, 40)), RED) and close(photo.getpixel((110, 40)), BLUE)


def test_wrong_suffix_is_decoded_by_content(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.jpg", "PNG")
    assert close(full_photo(tmp_path / "a.jpg").getpixel((10, 40)), RED, 0)


def test_cmyk_and_greyscale(tmp_path: Path) -> None:
    halves().convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert close(load_photo(tmp_path / "cmyk.jpg", 40)[:, 20, 5], RED)
    Image.new("L", (50, 50), 77).save(tmp_path / "grey.png")
    assert (load_photo(tmp_path / "grey.png", 25) == 77).all()
    Image.new("1", (50, 50), 1).save(tmp_path / "bits.png")
    assert (load_photo(tmp_path / "bits.png", 25) == 255).all()


def test_sixteen_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 30), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert (np.asarray(full_photo(tmp_path / "deep.png")) == 40_000 >> 8).all()


def test_floating_point_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((20, 30), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(PhotoError, match="floating-point"):
        full_photo(tmp_path / "float.tif")


def test_transparency_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "alpha.png")
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 200, 30, 30])
    palette.save(tmp_path / "palette.png", transparency=b"\xff\x00")
    palette.save(tmp_path / "palette.gif", transparency=1)
    for name in ("alpha.png", "palette.png", "palette.gif"):
        assert (load_photo(tmp_path / name, 10) == 255).all(), name


def test_animated_gives_the_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (30, 30), RED), Image.new("RGB", (30, 30), BLUE)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert close(full_photo(tmp_path / "a.gif").getpixel((3, 3)), RED)


@pytest.mark.parametrize("suffix", ["png", "tif"])  # Pillow turns the second kind itself
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    # The stored picture that a viewer turns upright by each orientation, per the EXIF specification.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(halves(64, 32)).copy()
    upright[:8] = 255  # a white upper edge, so that every turn and flip differs
    turned = stored[orientation](upright)
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(full_photo(path)), upright)
    small = load_photo(path, 16)
    assert small.shape == (3, 16, 32)
    assert close(small[:, 0, 3], (255, 255, 255)) and close(small[:, 12, 3], RED) and close(small[:, 12, 29], BLUE)
    assert images.decode_resized("a", path.read_bytes(), 16)[1] == (64, 32)
    assert decode_upright(path, path.read_bytes(), lambda width, height: 0.5)[1] == (64, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_keeps_the_photo(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert full_photo(tmp_path / "a.jpg").size == (120, 80)


def spoil(folder: Path, kind: str) -> Path:
    """A file that cannot be used as a photo."""
    path = folder / f"{kind.replace(' ', '_')}.jpg"
    whole = folder / "whole.png"
    halves(200, 200).save(whole.with_suffix(".jpg"))
    Image.effect_noise((200, 200), 50).save(whole)
    match kind:
        case "zero bytes":
            path.write_bytes(b"")
        case "truncated jpeg":
            data = whole.with_suffix(".jpg").read_bytes()
            path.write_bytes(data[: len(data) * 2 // 3])
        case "truncated png":
            path.write_bytes(whole.read_bytes()[:5_000])
        case "header only":
            path.write_bytes(whole.with_suffix(".jpg").read_bytes()[:20])
        case "not an image":
            path.write_text("<html>404 not found</html>")
        case "bomb":
            bomb(path)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link loop":
            path.symlink_to(path)
        case "missing":
            pass
    return path


SPOILED = {
    "zero bytes": "zero bytes",
    "truncated jpeg": "truncated",
    "truncated png": "truncated|damaged",
    "header only": "truncated|damaged|not an image",
    "not an image": "not an image",
    "bomb": "pixels",
    "folder": "folder",
    "pipe": "not a regular file",
    "link loop": "loop",
    "missing": "no such file",
}


@pytest.mark.parametrize("kind", SPOILED)
def test_bad_photos_are_named_with_their_reason(tmp_path: Path, kind: str) -> None:
    path = spoil(tmp_path, kind)
    for read in (full_photo, lambda path: load_photo(path, 16)):
        with pytest.raises(PhotoError, match=SPOILED[kind]) as caught:
            read(path)
        assert caught.value.path == str(path) and str(path) not in caught.value.reason


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "bmp"])
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    halves(60, 40).save(tmp_path / f"whole.{suffix}")
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    random = np.random.Generator(np.random.PCG64(1))
    for _ in range(150):
        data = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(256)
        (tmp_path / "a.jpg").write_bytes(data)
        try:
            assert load_photo(tmp_path / "a.jpg", 16).shape[0] == 3
            assert full_photo(tmp_path / "a.jpg").mode == "RGB"
        except PhotoError as error:
            assert error.reason


def test_a_name_that_looks_the_same_is_no_riddle(tmp_path: Path) -> None:
    write = unicodedata.normalize("NFD", "Süd.jpg"), unicodedata.normalize("NFC", "Süd.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / write[0])
    with pytest.raises(PhotoError, match=r"no such file, but one whose name looks the same .*\(NFC, NFD\)"):
        load_photo(tmp_path / write[1], 8)


def test_unreadable_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves().save(tmp_path / "a.jpg")

    def refuse(path: Path) -> bytes:
        # As the system says it of a file without permissions, which do not bind root.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PhotoError, match="permission"):
        full_photo(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((500, 375), (3, 96, 128)),
        ((375, 500), (3, 128, 96)),
        ((96, 96), (3, 96, 96)),
        ((10, 10), (3, 96, 96)),
        ((1000, 100), (3, 96, 192)),
        ((100, 1000), (3, 192, 96)),
        ((1, 300), (3, 192, 96)),
        ((300, 1), (3, 96, 192)),
        ((1, 1), (3, 96, 96)),
        ((97, 98), (3, 97, 96)),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_sizes(tmp_path: Path, size: tuple[int, int], shape: tuple[int, int, int], suffix: str) -> None:
    Image.new("RGB", size, RED).save(tmp_path / f"a.{suffix}")
    photo = load_photo(tmp_path / f"a.{suffix}", 96)
    assert photo.shape == shape and photo.dtype == np.uint8 and photo.flags["C_CONTIGUOUS"]
    assert close(photo, np.array(RED)[:, None, None])


def test_fast_decoding_looks_like_full_decoding(tmp_path: Path) -> None:
    smooth = Image.effect_noise((40, 30), 80).resize((800, 600), Image.Resampling.BICUBIC).convert("RGB")
    smooth.save(tmp_path / "a.jpg", quality=95)
    slow = full_photo(tmp_path / "a.jpg").resize((128, 96), Image.Resampling.BICUBIC)
    fast = load_photo(tmp_path / "a.jpg", 96).transpose(1, 2, 0)
    assert np.abs(np.asarray(slow, dtype=int) - fast).mean() < 1.5


def test_long_photos_are_cropped_in_the_centre(tmp_path: Path) -> None:
    picture = Image.new("RGB", (1000, 100), BLUE)
    picture.paste(RED, (400, 0, 600, 100))
    picture.save(tmp_path / "a.jpg")
    photo = load_photo(tmp_path / "a.jpg", 50)
    assert photo.shape == (3, 50, 100)
    assert close(photo[:, :, 3:-3].mean(axis=(1, 2)), RED)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    for value in range(12):
        Image.new("L", (20, 20), value * 20).save(tmp_path / f"{value:02d}.png")
    return [str(path) for path in sorted(tmp_path.iterdir())]


@pytest.mark.parametrize("kept", [0, 3, 100])
def test_store_keeps_order_and_budget(paths: list[str], kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counted(path: str, side: int) -> np.ndarray:
        decoded.append(path)
        return load_photo(path, side)

    monkeypatch.setattr(images, "load_photo", counted)
    with PhotoStore(paths, 8, cache_bytes=kept * 3 * 8 * 8, workers=3) as store:
        for _ in range(2):
            store.prefetch(np.arange(6))
            order = np.array([5, 2, 2, 0, 11, 5])
            found = store.get(order)
            assert [int(photo[0, 0, 0]) for photo in found] == [index * 20 for index in order]
            assert all(not photo.flags.writeable for photo in found)
            store.get(range(12))
    assert sum(decoded.count(path) == 1 for path in paths) == min(kept, 12)


def test_store_names_the_photo_that_fails(paths: list[str]) -> None:
    Path(paths[3]).write_bytes(b"nothing")
    with PhotoStore(paths, 8, 1000, 2) as store:
        store.prefetch([3])
        with pytest.raises(PhotoError, match=r"03\.png: not an image"):
            store.get([1, 3, 2])
        assert len(store.get([1, 2])) == 2

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import imagehash
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fieldmark.artifacts import read_table
from fieldmark.leaks import Leaks
from fieldmark.manifest import Manifest, build_manifest, inspect_photo, read_manifest, shard_of
from fieldmark.readers.candidates import to_candidates
from fieldmark.readers.listing import Row, make_listing
from fieldmark.tables import DataError

SCRIPTS = Path(__file__).parent.parent / "workflow" / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.Generator(np.random.PCG64(seed)).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, "PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two labeled photos, two val, three unlabeled, two test."""
    home = tmp_path / "data"
    names = ["labeled/ant/1", "labeled/ant/2", "labeled/bee/3", "labeled/bee/4", "val/ant/5", "val/bee/6"]
    names += ["unlabeled/7", "unlabeled/8", "unlabeled/9", "test/10", "test/11"]
    for seed, name in enumerate(names):
        draw(home / f"{name}.png", seed)
    return home


def ingest(root: Path, share: float = 0.0, leaks: Leaks = "report", **options: object) -> tuple[pl.DataFrame, ...]:
    out = root.parent / "results"
    paths = {name: str(out / f"{name}.parquet") for name in ("manifest", "classes", "rejected")}
    settings = {"format": "folder", "root": str(root), "coarse_taxa": [], "max_rejected_share": share, "leaks": leaks}
    settings["near_duplicate_bits"] = 4
    script("ingest_photos").ingest_photos(**{**settings, **options}, **paths, workers=2)
    return tuple(read_table(name, path) for name, path in paths.items())


def test_ingest(root: Path) -> None:
    manifest, classes, rejected = ingest(root)
    assert rejected.is_empty() and manifest.height == 11
    assert classes.select("class_id", "name", "labeled_count").rows() == [(0, "ant", 2), (1, "bee", 2)]
    first = manifest.row(0, named=True)
    data = (root / "labeled/ant/1.png").read_bytes()
    assert first["image_id"] == "labeled/ant/1" and first["path"] == f"{root}/labeled/ant/1.png"
    assert (first["width"], first["height"]) == (40, 30) and first["sha256"] == hashlib.sha256(data).hexdigest()
    assert read_manifest(root.parent / "results/manifest.parquet").equals(manifest)


def test_ingest_twice_gives_the_same_bytes(root: Path) -> None:
    ingest(root)
    files = sorted((root.parent / "results").iterdir())
    before = [path.read_bytes() for path in files]
    ingest(root)
    assert [path.read_bytes() for path in files] == before


def test_perceptual_hash_is_of_the_upright_photo(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 3, (64, 64))
    with Image.open(tmp_path / "a.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.rotate(90, expand=True).save(tmp_path / "b.png", exif=exif)
        bits = imagehash.phash(image).hash.flatten()
    first, second = (inspect_photo(tmp_path / name, tmp_path) for name in ("a.png", "b.png"))
    assert first.phash == second.phash and first.sha256 != second.sha256
    assert first.phash == sum(int(bit) << (63 - position) for position, bit in enumerate(bits))


def test_bad_photos_are_listed(root: Path) -> None:
    (root / "unlabeled/empty.jpg").touch()
    (root / "unlabeled/text.jpg").write_text("no photo")
    (root / "test/gone.jpg").symlink_to(root / "nowhere.jpg")
    draw(root.parent / "elsewhere.png", 50)
    (root / "test/away.png").symlink_to(root.parent / "elsewhere.png")
    (root / "test/loop").symlink_to(root / "test")
    manifest, _, rejected = ingest(root, share=0.5)
    assert manifest.height == 11
    assert rejected.rows() == [
        (f"{root}/test/away.png", "a link that leaves the data folder", "test", "test/away"),
        (f"{root}/test/gone.jpg", "no such file", "test", "test/gone"),
        (f"{root}/test/loop", "a loop of links", None, None),
        (f"{root}/unlabeled/empty.jpg", "zero bytes", "unlabeled", "unlabeled/empty"),
        (f"{root}/unlabeled/text.jpg", "not an image", "unlabeled", "unlabeled/text"),
    ]
    with pytest.raises(DataError, match=r"5 of 16 photos cannot be used: .*1 × zero bytes.*max_rejected_share, 0\.3"):
        ingest(root, share=0.3)


def test_class_without_usable_photo(root: Path) -> None:
    for name in ("3", "4"):
        (root / f"labeled/bee/{name}.png").write_bytes(b"gone")
    with pytest.raises(DataError, match="no usable labeled photo: 'bee'"):
        ingest(root, share=0.5)


def test_leaks(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "labeled/ant/copy.png").write_bytes((root / "test/10.png").read_bytes())
    (root / "unlabeled/copy.png").write_bytes((root / "val/bee/6.png").read_bytes())
    with Image.open(root / "val/ant/5.png") as image:
        image.save(root / "unlabeled/near.bmp")  # same pixels, other bytes
    manifest, classes, rejected = ingest(root)
    assert manifest.height == 14 and rejected.is_empty()
    assert f"2 training photos are the same bytes as one in val or test: {root}/labeled/ant/copy.png is" in caplog.text
    said = "1 training photos are nearly the same picture as one in val or test"
    reason = f"a near duplicate (0 of 64 bits of the perceptual hash differ) of {root}/val/ant/5.png in val"
    assert f"{said}: {root}/unlabeled/near.bmp is {reason}" in caplog.text
    manifest, classes, rejected = ingest(root, leaks="drop")
    assert manifest.height == 12 and "unlabeled/near" in manifest["image_id"]
    assert classes["labeled_count"].to_list() == [2, 2]
    assert rejected.rows() == [
        (
            f"{root}/labeled/ant/copy.png",
            f"the same bytes as {root}/test/10.png in test",
            "labeled",
            "labeled/ant/copy",
        ),
        (f"{root}/unlabeled/copy.png", f"the same bytes as {root}/val/bee/6.png in val", "unlabeled", "unlabeled/copy"),
    ]
    manifest, _, rejected = ingest(root, leaks="drop_near")
    assert manifest.height == 11 and rejected.height == 3
    assert (f"{root}/unlabeled/near.bmp", reason, "unlabeled", "unlabeled/near") in rejected.rows()


def test_a_class_whose_photos_were_all_dropped_as_leaks_is_told_so(root: Path) -> None:
    for name, copied in (("3", "val/bee/6"), ("4", "test/10")):
        (root / f"labeled/bee/{name}.png").write_bytes((root / f"{copied}.png").read_bytes())
    with pytest.raises(DataError, match=r"'bee' \(2 were dropped as copies .* because data\.leaks is drop\); add one"):
        ingest(root, leaks="drop")


def test_a_photo_that_is_labeled_as_two_classes_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    ingest(root)
    assert "of another class" not in caplog.text
    for twin in ("labeled/ant/1b", "labeled/bee/9"):
        (root / f"{twin}.png").write_bytes((root / "labeled/ant/1.png").read_bytes())
    ingest(root)
    told = f"and of another class: {root}/labeled/ant/1.png as 'ant' and {root}/labeled/bee/9.png as 'bee'; correct"
    assert "3 labeled photos are the same as another" in caplog.text and told in caplog.text


def test_boxes_are_cut_to_the_photo(root: Path) -> None:
    boxes = {"1": (-5, 10, 20, 100), "2": (50, 0, 10, 10), "3": (1, 2, 3, 4)}
    photos: list[Row] = [
        {"file": f"labeled/{label}/{name}.png", "split": "labeled", "label": label}
        | dict(zip(("box_x", "box_y", "box_w", "box_h"), boxes[name], strict=True))
        for label, name in (("ant", "1"), ("ant", "2"), ("bee", "3"))
    ]
    photos += [{"file": f"val/{name}.png", "split": "val", "label": "ant"} for name in ("ant/5", "bee/6")]
    listing = make_listing(root, photos, [{"name": "ant"}, {"name": "bee"}], [])
    candidates, classes = to_candidates(listing, [])
    built: Manifest = build_manifest(candidates, classes, listing.refused, root, 0.0, "report", 4, 2)
    found = built.photos.select("box_x", "box_y", "box_w", "box_h").rows()
    assert found == [(0, 10, 15, 20), (None,) * 4, (1, 2, 3, 4), (None,) * 4, (None,) * 4]


def test_one_usable_val_photo_is_not_enough(root: Path) -> None:
    (root / "val/bee/6.png").write_bytes((root / "val/bee/6.png").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"1 val photos are usable, expected at least 2, .* data\.val_per_class"):
        ingest(root, share=0.5)


def test_openset_ingest(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for seed in range(32):
        draw(root / f"class{seed % 4}" / f"{seed}.png", seed)
    plan = {"in_class_share": 0.5, "labeled_per_class": 2, "val_per_class": 1, "test_per_class": 2}
    truth = tmp_path / "results" / "truth.csv"
    manifest, classes, _ = ingest(root, openset=plan, seed=1, truth=str(truth))
    assert manifest["split"].value_counts().sort("split").rows() == [
        ("labeled", 4),
        ("test", 4),
        ("unlabeled", 22),
        ("val", 2),
    ]
    table = pl.read_csv(truth, infer_schema=False)
    hidden = manifest.filter(pl.col("split").is_in(["unlabeled", "test"]))
    assert table["image_id"].to_list() == hidden["image_id"].to_list()
    assert set(table["class_id"]) == {"-1", *classes["name"]}
    with pytest.raises(DataError, match="needs a seed"):
        ingest(root, openset=plan)


def test_val_photos_held_out_at_ingest(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for seed in range(12):
        draw(root / "labeled" / f"class{seed % 2}" / f"{seed}.png", seed)
    with pytest.raises(DataError, match=r"val split has no photos; .* drawn with data\.val_per_class: 2"):
        ingest(root)
    manifest, classes, _ = ingest(root, val_per_class=2, seed=1)
    counts = manifest.group_by("split", "class_id").len().sort("split", "class_id").rows()
    assert counts == [("labeled", 0, 4), ("labeled", 1, 4), ("val", 0, 2), ("val", 1, 2)]
    assert classes["labeled_count"].to_list() == [4, 4]
    # Of three photos one is damaged, so one of the other two is held out.
    for name in ("0", "2", "4"):
        (root / f"labeled/class0/{name}.png").unlink()
    broken = root / "labeled/class0/6.png"
    broken.write_bytes(broken.read_bytes()[:-100])
    manifest, _, _ = ingest(root, share=0.5, val_per_class=2, seed=1)
    assert manifest.filter(class_id=0)["split"].sort().to_list() == ["labeled", "val"]
    (root / "val/class0").mkdir(parents=True)
    draw(root / "val/class0/99.png", 99)
    with pytest.raises(DataError, match=r"val_per_class: expected 0, because the data have val photos"):
        ingest(root, val_per_class=2, seed=1)


def test_shards(root: Path) -> None:
    ingest(root)
    out = root.parent / "results"
    targets = [str(out / "shards" / f"{shard}.parquet") for shard in range(3)]
    script("shard_manifest").shard_manifest(str(out / "manifest.parquet"), targets)
    manifest = read_manifest(out / "manifest.parquet")
    shards = [read_table("shard", target) for target in targets]
    assert read_table("shard", targets)["image_id"].to_list() == manifest["image_id"].to_list()
    for number, shard in enumerate(shards):
        assert all(shard_of(image_id, 3) == number for image_id in shard["image_id"])
    before = [Path(target).read_bytes() for target in targets]
    (root / "unlabeled/7.png").unlink()
    ingest(root)
    script("shard_manifest").shard_manifest(str(out / "manifest.parquet"), targets)
    changed = [Path(target).read_bytes() != data for target, data in zip(targets, before, strict=True)]
    assert [number for number in range(3) if changed[number]] == [shard_of("unlabeled/7", 3)]


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 1000))
def test_shard_of(image_id: str, shards: int) -> None:
    expected = int(hashlib.sha256(image_id.encode()).hexdigest()[:16], 16) % shards
    assert shard_of(image_id, shards) == expected < shards

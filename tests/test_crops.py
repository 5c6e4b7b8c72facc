"""Crops of key regions, and the model that looks at photo and crop."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from fieldmark.artifacts import ArtifactError, write_table
from fieldmark.context import Context, ContextTables
from fieldmark.crops import KeyRegions
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoError
from fieldmark.inference import ViewPlan, infer
from fieldmark.metadata import MetadataSettings
from fieldmark.models import Classifier, load_classifier, save_classifier
from fieldmark.phases import Phase
from fieldmark.photosets import PhotoSet
from fieldmark.sampling import EpochSampler, MixedSampler
from fieldmark.training import train
from fieldmark.views import Augmentation

MakeModel = Callable[..., Classifier]
FULL = (0.0, 0.0, 1.0, 1.0)


def regions(*boxes: tuple[float, float, float, float], margin: float = 0.0) -> KeyRegions:
    return KeyRegions(np.array(boxes, dtype=np.float32), margin)


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((0.25, 0.25, 0.5, 0.5), 0.0, (50, 0, 150, 100)),  # 100 × 50 pixels become a square of 100
        ((0.45, 0.4, 0.1, 0.2), 0.0, (90, 40, 110, 60)),
        ((0.45, 0.4, 0.1, 0.2), 0.5, (80, 30, 120, 70)),
        ((0.0, 0.0, 0.1, 0.2), 0.5, (0, 0, 40, 40)),  # moved inwards
        (FULL, 0.1, (0, 0, 200, 100)),  # no key region: the full photo
        ((0.5, 0.5, 0.0, 0.0), 0.0, (99.5, 49.5, 100.5, 50.5)),  # never less than a pixel
    ],
)
def test_a_region_is_a_square_with_its_margin_inside_the_photo(
    box: tuple[float, float, float, float], margin: float, expected: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(regions(box, margin=margin).rectangle(0, 200, 100), expected, atol=1e-4)


def checkered(path: Path, orientation: int | None = None) -> Path:
    """A photo of 1600 × 1200 pixels, grey but for a fine red and green checkerboard of 160 pixels at (800, 300)."""
    pixels = np.full((1200, 1600, 3), 128, dtype=np.uint8)
    rows, columns = np.mgrid[0:160, 0:160] // 8
    pixels[300:460, 800:960] = np.where(((rows + columns) % 2 == 0)[..., None], (250, 0, 0), (0, 250, 0))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    return path


def test_a_small_region_is_decoded_at_its_own_resolution(tmp_path: Path) -> None:
    path = checkered(tmp_path / "photo.jpg")
    box = (800 / 1600, 300 / 1200, 160 / 1600, 160 / 1200)
    crop = regions(box).load(str(path), 0, 160)
    assert crop.shape == (3, 160, 160) and crop.dtype == np.uint8 and crop.flags["C_CONTIGUOUS"]
    # The squares of 8 pixels are still told apart: at the photo's usual size they would be a muddle.
    centres = crop[:, 4::8, 4::8].astype(int)
    board = np.indices((20, 20)).sum(axis=0) % 2 == 0
    assert (centres[0] - centres[1])[board].min() > 100 and (centres[1] - centres[0])[~board].min() > 100


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_regions_are_of_the_upright_photo(tmp_path: Path, orientation: int) -> None:
    path = checkered(tmp_path / "photo.jpg", orientation)
    with Image.open(path) as image:
        turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
        upright = image.transpose(turn[orientation]) if orientation in turn else image
        pixels = np.asarray(upright.convert("RGB")).astype(int)
    coloured = np.argwhere(np.abs(pixels[..., 0] - pixels[..., 1]) > 60)
    (top, left), (bottom, right) = coloured.min(axis=0), coloured.max(axis=0) + 1
    height, width = pixels.shape[:2]
    box = (left / width, top / height, (right - left) / width, (bottom - top) / height)
    crop = regions(box).load(str(path), 0, 64).astype(int)
    assert (np.abs(crop[0] - crop[1]) > 20).mean() > 0.9


def test_a_full_photo_as_region_keeps_its_shape_and_broken_files_are_named(tmp_path: Path) -> None:
    crop = regions(FULL, margin=0.1).load(str(checkered(tmp_path / "photo.jpg")), 0, 60)
    assert crop.shape == (3, 60, 80)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(PhotoError, match=r"broken\.jpg: not an image"):
        regions(FULL).load(str(tmp_path / "broken.jpg"), 0, 60)


def test_photo_and_crop_pass_one_backbone_and_only_the_neck_grows(make_model: MakeModel) -> None:
    two, one = make_model(streams="photo_and_crop").eval(), make_model().eval()
    count = {model: sum(p.numel() for p in model.backbone.parameters()) for model in (one, two)}
    assert count[one] == count[two] and two.neck.in_features == 2 * one.neck.in_features
    images, crops = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(two.embed(images, crops=crops), (one.embed(images) + one.embed(crops)) / 2)
    with pytest.raises(ValueError, match="needs the crops"):
        two(images)


@pytest.fixture
def boxes(toy: PhotoSet, tmp_path: Path) -> list[str]:
    """A hand-made table of boxes for the toy photos, in two shards; the last photo has no key region."""
    frame = pl.DataFrame({"image_id": list(toy.image_ids)}).with_row_index("n")
    found = pl.col("n") < 11
    values = {"x": (0.25, 0.0), "y": (0.25, 0.0), "width": (0.5, 1.0), "height": (0.5, 1.0), "score": (0.9, 0.0)}
    frame = frame.with_columns(pl.when(found).then(a).otherwise(b).alias(name) for name, (a, b) in values.items())
    for shard in range(2):
        part = frame.filter(pl.col("n") % 2 == shard).drop("n")
        write_table(part, "boxes", tmp_path / f"{shard}.parquet")
    return [str(tmp_path / f"{shard}.parquet") for shard in range(2)]


def places(toy: PhotoSet) -> pl.DataFrame:
    count = len(toy.paths)
    rows = {"image_id": list(toy.image_ids), "latitude": [float(i) for i in range(count)], "longitude": [1.0] * count}
    nulls = {"location_uncertainty": pl.lit(None, pl.Float64), "date": pl.lit(None, pl.String)}
    return pl.DataFrame(rows).with_columns(**nulls)


def test_context_comes_in_the_order_asked_and_missing_boxes_are_named(
    make_model: MakeModel, toy: PhotoSet, boxes: list[str]
) -> None:
    architecture = make_model(streams="photo_and_crop", metadata=MetadataSettings("sphere")).architecture
    tables = ContextTables(places(toy), boxes)
    context = tables.of(["11", "03"], architecture)
    np.testing.assert_allclose(context.boxes, [FULL, (0.25, 0.25, 0.5, 0.5)])
    np.testing.assert_allclose(context.metadata[:, 2], np.sin(np.deg2rad([11, 3])), atol=1e-6)
    assert not ContextTables(places(toy)).of(["03"], make_model().architecture).metadata.size
    with pytest.raises(ArtifactError, match=r"1 photos have no key region, the first is 'nobody'"):
        tables.of(["03", "nobody"], architecture)
    with pytest.raises(ArtifactError, match="no table of boxes was given"):
        ContextTables(places(toy)).of(["03"], architecture)


def run(
    model: Classifier, photos: PhotoSet, checkpoint: Path, augmentation: Augmentation | None = None
) -> pl.DataFrame:
    sampler = MixedSampler([(EpochSampler(np.arange(12), 1), 1.0)], 6)
    phase = Phase("p", 4, 6, 1e-3, head_multiplier=5)
    how, hardware = augmentation or Augmentation(), Hardware()
    return train(model, [(phase, sampler)], photos, how, hardware, seed=1, checkpoint=checkpoint, identity="x")


def test_a_model_with_everything_trains_and_predicts(
    make_model: MakeModel, toy: PhotoSet, boxes: list[str], tmp_path: Path
) -> None:
    model = make_model(streams="photo_and_crop", metadata=MetadataSettings("sphere", "concat", width=8, blocks=1))
    context = ContextTables(places(toy), boxes).of(toy.image_ids, model.architecture)
    start = model.metadata.network[0].weight.detach().clone()
    history = run(
        model, dataclasses.replace(toy, context=context), tmp_path / "c.pt", Augmentation(mixup=0.5, cutmix=1.0)
    )
    assert np.isfinite(history["loss"].to_numpy()).all()
    assert not torch.equal(model.metadata.network[0].weight, start)
    save_classifier(model, tmp_path / "m.safetensors")
    loaded = load_classifier(tmp_path / "m.safetensors")
    plan = ViewPlan(scales=(1.0, 1.2), five_crop=True, flip=True)
    embeddings, probabilities = infer(loaded, toy.paths, plan, Hardware(), batch_size=5, context=context)
    assert embeddings.shape == (12, model.width)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    alone = ContextTables(places(toy), boxes).of(toy.image_ids[7:8], model.architecture)
    _, again = infer(loaded, toy.paths[7:8], plan, Hardware(), context=alone)
    np.testing.assert_allclose(again[0], probabilities[7], atol=1e-5)
    # The crops matter, and so do the places; without places the model still predicts.
    full = np.tile(np.array(FULL, dtype=np.float32), (12, 1))
    _, uncropped = infer(loaded, toy.paths, plan, Hardware(), context=Context(context.metadata, full))
    _, nowhere = infer(loaded, toy.paths, plan, Hardware(), context=Context(boxes=context.boxes))
    assert np.abs(uncropped - probabilities).max() > 1e-4 and np.abs(nowhere - probabilities).max() > 1e-5


def test_the_views_of_a_crop_are_drawn_apart_and_training_is_repeatable(
    make_model: MakeModel, toy: PhotoSet, boxes: list[str], tmp_path: Path
) -> None:
    weights = []
    for _ in range(2):
        model = make_model(streams="photo_and_crop")
        context = ContextTables(places(toy), boxes).of(toy.image_ids, model.architecture)
        run(model, dataclasses.replace(toy, context=context), tmp_path / "c.pt")
        (tmp_path / "c.pt").unlink(missing_ok=True)
        weights.append(model.neck.weight.detach())
    assert torch.equal(*weights)

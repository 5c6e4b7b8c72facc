"""The detector of key regions: its parts, its file, its training and the stages round it, with a tiny backbone."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from PIL import Image

from fieldmark.artifacts import SCHEMAS, ArtifactError, read_table, write_table
from fieldmark.boxes import FULL, paired_iou
from fieldmark.checkpoint import Checkpoint
from fieldmark.detector import Detector, DetectorArchitecture, detect, load_detector, save_detector
from fieldmark.detector_training import BoxedPhotos, DetectorPlan, boxed_photos, random_boxed_views, train_boxes
from fieldmark.hardware import Hardware
from fieldmark.models import WeightsError
from fieldmark.phases import Phase, TrainingError
from tests.test_evaluate_stages import load_script, manifest_of

TINY = DetectorArchitecture("test_efficientnet", 64, 32, 1)
PHASE = Phase("detector", 5, 4, 0.002, 3.0)
ONE_PHOTO = torch.zeros(1, 3, 10, 20, dtype=torch.uint8)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Photos with one bright patch each; one labeled and one val photo has no box, and the last one is very long."""
    folder, generator = tmp_path_factory.mktemp("patches"), np.random.default_rng(0)
    splits = ["labeled"] * 6 + ["unlabeled"] * 4 + ["val"] * 4 + ["test"] * 2
    rows, boxes = [], []
    for number, split in enumerate(splits):
        width, height = (320, 64) if number == 5 else (80, 64)
        pixels = generator.normal(60, 20, (height, width, 3))
        side = int(generator.integers(24, 40))
        left, top = int(generator.integers(0, 80 - side)) + (width - 80) // 2, int(generator.integers(0, 64 - side))
        pixels[top : top + side, left : left + side] += 150
        path = folder / f"{number:02d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        rows.append((path.stem, str(path), split, number % 2 if split in ("labeled", "val") else None))
        boxes.append((width, height, *([None] * 4 if number in (0, 10) else (left, top, side, side))))
    names = ["width", "height", "box_x", "box_y", "box_w", "box_h"]
    kinds = dict.fromkeys(names[:2], pl.Int32) | dict.fromkeys(names[2:], pl.Float32)
    return manifest_of(rows).with_columns(pl.DataFrame(boxes, schema=kinds, orient="row"))


def test_only_the_splits_that_are_named_are_trained_on(manifest: pl.DataFrame) -> None:
    photos = boxed_photos(manifest, ["labeled"])
    assert photos.image_ids == ["01", "02", "03", "04", "05"]
    assert boxed_photos(manifest, ["labeled", "unlabeled"]).image_ids == [f"{n:02d}" for n in range(1, 10)]
    # Of the long photo the middle 128 of 320 pixels are decoded.
    row = manifest.row(5, named=True)
    assert photos.boxes[4] == pytest.approx(
        [(row["box_x"] - 96) / 128, row["box_y"] / 64, row["box_w"] / 128, row["box_h"] / 64], abs=1e-6
    )


def test_data_without_boxes_are_named_with_the_way_out(manifest: pl.DataFrame) -> None:
    bare = manifest.with_columns(pl.lit(None, pl.Float32).alias(name) for name in ("box_x", "box_y", "box_w", "box_h"))
    with pytest.raises(TrainingError, match=r"no photo of the splits labeled has a box.*detection.method: activation"):
        boxed_photos(bare, ["labeled"])


def test_a_box_stays_on_what_it_marks_in_every_view() -> None:
    side, count = 48, 64
    box = torch.tensor([0.25, 0.5, 0.375, 0.25])
    photo = torch.zeros(count, 3, 64, 96, dtype=torch.uint8)
    photo[:, :, 32:48, 24:60] = 255  # that box of a photo of 96 × 64
    sizes = torch.tensor([[64.0, 96.0]]).expand(count, 2)
    views, boxes = random_boxed_views(photo, sizes, box.expand(count, 4), side, torch.Generator().manual_seed(0))
    assert len({tuple(row) for row in boxes.tolist()}) == count
    for view, (x, y, width, height) in zip(views, boxes.tolist(), strict=True):
        ys, xs = torch.nonzero(view[0] > 0.5, as_tuple=True)
        seen = [xs.min().item(), ys.min().item(), xs.max().item() + 1, ys.max().item() + 1]
        assert seen == pytest.approx([x, y, x + width, y + height], abs=1.01)
        assert width * height >= 0.5 * 0.375 * 0.25 * side**2


def test_views_depend_on_the_generator_alone() -> None:
    sizes, box = torch.tensor([[10.0, 20.0]]), torch.tensor([[0.1, 0.1, 0.5, 0.5]])
    one, other = (
        random_boxed_views(ONE_PHOTO, sizes, box, 16, torch.Generator().manual_seed(seed))[1] for seed in (3, 3)
    )
    assert torch.equal(one, other)


def test_every_photo_gets_one_box_inside_it(manifest: pl.DataFrame) -> None:
    boxes, scores = detect(Detector(TINY), manifest["path"].to_list(), Hardware())
    assert boxes.shape == (len(manifest), 4) and scores.shape == (len(manifest),)
    assert (boxes >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all()
    assert ((scores >= 0) & (scores <= 1)).all()
    # A long photo's box lies in the middle that is looked at.
    assert boxes[5, 0] >= 0.3 - 1e-6 and boxes[5, 0] + boxes[5, 2] <= 0.7 + 1e-6
    nothing, none = detect(Detector(TINY), [], Hardware())
    assert nothing.shape == (0, 4) and none.shape == (0,)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_pretrained_weights_reach_the_pyramid(backbone: str, tmp_path: Path) -> None:
    import timm

    donor = timm.create_model(backbone, num_classes=0)
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    detector = Detector(DetectorArchitecture(backbone, 64, 32, 1), str(tmp_path / "donor.safetensors"))
    body, theirs = detector.backbone.body.state_dict(), donor.state_dict()
    assert body and all(torch.equal(value, theirs[name]) for name, value in body.items())


def test_a_backbone_without_the_levels_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"detection.backbone: expected levels of stride 8, 16 and 32, found 16"):
        Detector(DetectorArchitecture("test_vit", 160, 32, 1))


def test_a_detector_comes_back_as_it_was_saved(manifest: pl.DataFrame, tmp_path: Path) -> None:
    model = Detector(TINY, seed=3)
    for name in ("one", "two"):
        save_detector(model, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    loaded = load_detector(tmp_path / "one.safetensors")
    assert loaded.architecture == TINY
    paths = manifest["path"].to_list()
    for mine, theirs in zip(detect(model, paths, Hardware()), detect(loaded, paths, Hardware()), strict=True):
        assert np.array_equal(mine, theirs)


def test_files_that_are_no_detector_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    with pytest.raises(ArtifactError, match="missing or damaged"):
        load_detector(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="missing or damaged"):
        load_detector(path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="no detector in its metadata"):
        load_detector(path)
    another = '{"backbone": "test_efficientnet", "image_size": 64, "width": 64, "depth": 1}'
    for told, problem in ((another, "disagree"), ('{"sides": 4}', "disagree"), ("{", "missing or damaged")):
        state = {name: value.contiguous() for name, value in Detector(TINY).state_dict().items()}
        safetensors.torch.save_file(state, path, {"detector": told})
        with pytest.raises(ArtifactError, match=problem):
            load_detector(path)


def run(photos: BoxedPhotos, checkpoint: Path, phase: Phase = PHASE, **changes: Any) -> tuple[Detector, pl.DataFrame]:
    model = Detector(TINY, seed=1)
    settings = {"seed": 1, "identity": "test", **changes}
    return model, train_boxes(model, photos, phase, Hardware(), checkpoint=checkpoint, **settings)


def same(one: Detector, other: Detector) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_training_finds_the_patches(manifest: pl.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fieldmark")
    photos = boxed_photos(manifest, ["labeled", "unlabeled"])
    phase = Phase("detector", 60, 9, 0.004, 1.0)
    model, history = run(photos, tmp_path / "checkpoint.pt", phase, validate=lambda model: {"ap50": 0.5})
    assert caplog.text.count("computing on the CPU, 32-true") == 1
    assert history["loss"].tail(5).mean() < 0.7 * history["loss"].head(5).mean()
    assert history["val_ap50"].to_list() == [*[None] * 59, 0.5]
    boxes, _ = detect(model, list(photos.paths[:4]), Hardware())
    untrained, _ = detect(Detector(TINY, seed=1), list(photos.paths[:4]), Hardware())
    truth = photos.boxes[:4]  # none of these is long
    assert paired_iou(boxes, truth).mean() > max(0.4, paired_iou(untrained, truth).mean())


def test_norms_of_the_backbone_stay(manifest: pl.DataFrame, tmp_path: Path) -> None:
    trained, _ = run(boxed_photos(manifest, ["labeled"]), tmp_path / "checkpoint.pt")
    before, after = Detector(TINY, seed=1).state_dict(), trained.state_dict()
    norms = [name for name in before if "running_" in name or ".bn" in name]
    assert norms and all(torch.equal(before[name], after[name]) for name in norms)
    assert not torch.equal(before["backbone.body.conv_stem.weight"], after["backbone.body.conv_stem.weight"])


class Stopped(Exception):
    """Stands for a machine that is switched off."""


def test_a_resumed_run_ends_with_the_same_bytes(
    manifest: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fieldmark")
    photos = boxed_photos(manifest, ["labeled", "unlabeled"])
    whole, history = run(photos, tmp_path / "whole.pt")
    save, checkpoint = Checkpoint.save, tmp_path / "stopped.pt"

    def save_and_stop(self: Checkpoint, fabric: Any, state: Any) -> None:
        self.seconds = 0.0
        save(self, fabric, state)
        if state()["step"] == 3:
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", save_and_stop)
        with pytest.raises(Stopped):
            run(photos, checkpoint)
    assert torch.load(checkpoint, weights_only=True)["step"] == 3
    resumed, continued = run(photos, checkpoint)
    assert "resuming detector at step 3" in caplog.text
    assert same(whole, resumed) and continued.equals(history) and continued.schema == history.schema
    # Of another run: not resumed.
    moved = dataclasses.replace(photos, boxes=photos.boxes * np.float32(0.9))
    rewritten = dataclasses.replace(photos, contents=["other", *photos.contents[1:]])
    changes: list[tuple[BoxedPhotos, dict[str, Any]]]
    changes = [(photos, {"identity": "other code"}), (photos, {"seed": 2}), (moved, {}), (rewritten, {})]
    for other, settings in changes:
        caplog.clear()
        run(other, checkpoint, **settings)
        assert "is of a run with other settings, photos or code" in caplog.text and "resuming" not in caplog.text


def test_a_loss_that_is_no_number_names_step_and_photos(manifest: pl.DataFrame, tmp_path: Path) -> None:
    phase = Phase("detector", 5, 4, 1e30, 3.0)
    with pytest.raises(TrainingError, match=r"detector, step \d: loss .* photos 0\d.*Lower detection.learning_rate"):
        run(boxed_photos(manifest, ["labeled"]), tmp_path / "checkpoint.pt", phase)


def test_bfloat16_trains_and_detects(manifest: pl.DataFrame, tmp_path: Path) -> None:
    photos, hardware = boxed_photos(manifest, ["labeled"]), Hardware(precision="bf16-mixed")
    model = Detector(TINY, seed=1)
    phase = Phase("detector", 2, 4, 0.002, 3.0)
    history = train_boxes(model, photos, phase, hardware, seed=1, checkpoint=tmp_path / "c.pt", identity="test")
    boxes, scores = detect(model, photos.paths, hardware)
    assert history["loss"].is_finite().all() and np.isfinite(boxes).all() and np.isfinite(scores).all()


train_stage, detect_stage = load_script("train_detector"), load_script("detect_photos")


def test_the_stages_leave_a_detector_and_a_box_per_photo(manifest: pl.DataFrame, tmp_path: Path) -> None:
    write_table(manifest, "manifest", tmp_path / "manifest.parquet")
    shard = tmp_path / "shard.parquet"
    write_table(manifest.select(SCHEMAS["shard"].names), "shard", shard)
    detector, history = tmp_path / "detection/detector.safetensors", tmp_path / "detection/history.parquet"
    plan = DetectorPlan(TINY, "none", PHASE, Hardware(), 1, "code")
    train_stage.train_detector(tmp_path / "manifest.parquet", ["labeled"], plan, detector, history)
    assert sorted(path.name for path in detector.parent.iterdir()) == ["detector.safetensors", "history.parquet"]
    last = read_table("detection_history", history).row(-1, named=True)
    assert all(0 <= last[name] <= 1 for name in ("val_mean_iou", "val_ap50", "val_ap"))
    boxes, scores = detect(load_detector(detector), manifest["path"].to_list(), Hardware())
    middle = float(np.median(scores))
    activation = detect_stage.Activation("test_efficientnet", "none", 64)
    for finder, least in ((detector, middle), (activation, 0.0)):
        detect_stage.detect_photos(shard, finder, least, Hardware(), tmp_path / "boxes.parquet")
        table = read_table("boxes", tmp_path / "boxes.parquet")
        assert table["image_id"].to_list() == manifest["image_id"].to_list()
        rows = table.select("x", "y", "width", "height").to_numpy()
        if finder == detector:
            found = scores >= middle
            assert table["score"].to_numpy() == pytest.approx(np.where(found, scores, 0))
            assert rows == pytest.approx(np.where(found[:, None], boxes, FULL), abs=1e-6)
        else:  # the activation
            assert (rows >= 0).all() and (rows[:, 2:] > 0).all() and (rows[:, :2] + rows[:, 2:] <= 1 + 1e-6).all()
            assert table["score"].is_between(0, 1).all()

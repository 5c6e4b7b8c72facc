"""Inference against a naive loop over photos and views, and the scripts that write its results."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from fieldmark.artifacts import read_table, write_table
from fieldmark.fitting import ModelSettings
from fieldmark.hardware import Hardware
from fieldmark.images import load_photo
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import Architecture, Classifier, load_classifier, save_classifier
from fieldmark.photosets import PhotoSet
from fieldmark.views import collate, decode_side, fixed_views, normalise, sample_rectangles
from workflow.scripts.extract_features import extract_features
from workflow.scripts.predict_photos import predict_photos
from workflow.scripts.score_photos import score_photos

MakeModel = Callable[..., Classifier]
PLANS = [
    ViewPlan(),
    ViewPlan(flip=True),
    ViewPlan(scales=(1.0, 1.5), five_crop=True, flip=True),
    ViewPlan(size=1.5),
]


@pytest.fixture
def model(make_model: MakeModel) -> Classifier:
    """A tiny classifier whose logits are far apart."""
    model = make_model(foreign=2)
    with torch.no_grad():
        model.head.weight.mul_(500)
    return model.eval()


def naive(model: Classifier, path: str, plan: ViewPlan) -> tuple[np.ndarray, np.ndarray]:
    """One photo, one view at a time."""
    side = round(model.architecture.image_size * plan.size)
    batch, sizes = collate([load_photo(path, decode_side(side, max(plan.scales)))])
    embeddings, probabilities = [], []
    for centre, extent in fixed_views(sizes, plan.scales, plan.five_crop, plan.flip):
        view = sample_rectangles(batch, sizes, centre, extent, torch.zeros(1), side)
        with torch.no_grad():
            embedding, logits = model(normalise(view, model.normalisation))
        embeddings.append(embedding[0].numpy() / np.linalg.norm(embedding[0].numpy()))
        odds = np.exp(logits[0].numpy() - logits[0].numpy().max())
        probabilities.append(odds / odds.sum())
    return np.mean(embeddings, axis=0), np.mean(probabilities, axis=0)


@pytest.mark.parametrize("plan", PLANS)
def test_views_are_averaged_as_in_a_naive_loop(model: Classifier, toy: PhotoSet, plan: ViewPlan) -> None:
    paths = [toy.paths[number] for number in (0, 3, 6, 9)]  # of four different shapes
    embeddings, probabilities = infer(model, paths, plan, Hardware())
    assert embeddings.dtype == probabilities.dtype == np.float32
    for row, path in enumerate(paths):
        embedding, probability = naive(model, path, plan)
        np.testing.assert_allclose(embeddings[row], embedding, atol=1e-5)
        np.testing.assert_allclose(probabilities[row], probability, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_order_and_batches_do_not_matter(model: Classifier, toy: PhotoSet) -> None:
    plan = ViewPlan(flip=True)
    forward = infer(model, toy.paths, plan, Hardware(), batch_size=5)
    backward = infer(model, toy.paths[::-1], plan, Hardware(decode_threads=1), batch_size=32)
    for first, second in zip(forward, backward, strict=True):
        np.testing.assert_allclose(first, second[::-1], atol=1e-4)


def test_with_flip_a_photo_and_its_mirror_image_have_the_same_features(
    model: Classifier, toy: PhotoSet, tmp_path: Path
) -> None:
    with Image.open(toy.paths[0]) as photo:
        photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    pair = [toy.paths[0], str(tmp_path / "mirrored.png")]
    with_flip, _ = infer(model, pair, ViewPlan(flip=True), Hardware())
    without, _ = infer(model, pair, ViewPlan(), Hardware())
    np.testing.assert_allclose(with_flip[0], with_flip[1], atol=1e-5)
    assert np.abs(without[0] - without[1]).max() > 1e-3


def test_no_photos_give_empty_arrays_of_the_right_width(model: Classifier) -> None:
    embeddings, probabilities = infer(model, [], ViewPlan(), Hardware())
    assert embeddings.shape == (0, model.neck.out_features) and probabilities.shape == (0, 5)


def test_inference_leaves_the_model_as_it_was(model: Classifier, toy: PhotoSet) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    infer(model, toy.paths[:2], ViewPlan(), Hardware())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


@pytest.fixture
def shard(toy: PhotoSet, tmp_path: Path) -> Path:
    """Twelve photos, three of each split."""
    splits = ["labeled", "unlabeled", "val", "test"]
    table = pl.DataFrame(
        {
            "image_id": list(toy.image_ids),
            "path": list(toy.paths),
            "split": [splits[number % 4] for number in range(12)],
            "sha256": ["0"] * 12,
        }
    ).with_columns(**NOWHERE)
    write_table(table, "shard", tmp_path / "shard.parquet")
    return tmp_path / "shard.parquet"


@pytest.fixture
def weights(model: Classifier, tmp_path: Path) -> Path:
    save_classifier(model, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


NOWHERE = dict.fromkeys(("latitude", "longitude", "location_uncertainty", "date"))
SETTINGS = ModelSettings("test_efficientnet", "none", 32)
EVERY = ["labeled", "unlabeled", "val", "test"]


def test_features_of_every_photo_come_from_a_model_file_or_from_pretrained_weights(
    shard: Path, weights: Path, toy: PhotoSet, tmp_path: Path
) -> None:
    extract_features(shard, EVERY, str(weights), SETTINGS, Hardware(), tmp_path / "ours.parquet")
    table = read_table("features", tmp_path / "ours.parquet")
    assert table["image_id"].to_list() == toy.image_ids
    expected, _ = infer(load_classifier(weights), toy.paths, ViewPlan(flip=True), Hardware())
    np.testing.assert_allclose(table["embedding"].to_numpy().astype(np.float32), expected, atol=1e-3)
    extract_features(shard, EVERY, "none", SETTINGS, Hardware(), tmp_path / "pretrained.parquet")
    assert read_table("features", tmp_path / "pretrained.parquet").shape == table.shape


def test_features_are_of_the_splits_that_are_asked_for_alone(shard: Path, tmp_path: Path) -> None:
    extract_features(shard, ["labeled", "test"], "none", SETTINGS, Hardware(), tmp_path / "some.parquet")
    photos = read_table("shard", shard)
    asked = photos.filter(pl.col("split").is_in(["labeled", "test"]))["image_id"].to_list()
    assert 0 < len(asked) < len(photos)
    assert read_table("features", tmp_path / "some.parquet")["image_id"].to_list() == asked


def test_pretrained_weights_may_be_a_model_of_another_shape(shard: Path, make_model: MakeModel, tmp_path: Path) -> None:
    source = tmp_path / "earlier.safetensors"
    save_classifier(make_model(embedding=8), source)
    settings = dataclasses.replace(SETTINGS, weights=str(source))
    extract_features(shard, EVERY, str(source), settings, Hardware(), tmp_path / "f.parquet")
    width = load_classifier(source).backbone.num_features
    assert read_table("features", tmp_path / "f.parquet")["embedding"].to_numpy().shape[1] == width


def test_guide_scores_split_off_the_foreign_outputs(shard: Path, weights: Path, toy: PhotoSet, tmp_path: Path) -> None:
    score_photos(shard, weights, ViewPlan(), 100, Hardware(), tmp_path / "scores.parquet")
    table = read_table("guide_scores", tmp_path / "scores.parquet")
    photos = read_table("shard", shard)
    judged = photos.filter(pl.col("split").is_in(["labeled", "unlabeled"]))
    assert table["image_id"].to_list() == judged["image_id"].to_list()
    _, probabilities = infer(load_classifier(weights), judged["path"].to_list(), ViewPlan(), Hardware())
    for row, expected in zip(table.iter_rows(named=True), probabilities, strict=True):
        assert row["foreign_probability"] == pytest.approx(expected[3:].sum(), abs=1e-5)
        assert sorted(row["class_ids"]) == [0, 1, 2]
        for cls, probability in zip(row["class_ids"], row["probabilities"], strict=True):
            assert probability == pytest.approx(expected[cls], abs=1e-5)


def test_predictions_are_of_val_and_test_photos(shard: Path, make_model: MakeModel, tmp_path: Path) -> None:
    save_classifier(make_model(), tmp_path / "final.safetensors")
    predict_photos(shard, tmp_path / "final.safetensors", ViewPlan(), 2, Hardware(), tmp_path / "p.parquet")
    table = read_table("predictions", tmp_path / "p.parquet")
    judged = read_table("shard", shard).filter(pl.col("split").is_in(["val", "test"]))
    assert table["image_id"].to_list() == judged["image_id"].to_list()
    assert table["class_ids"].to_numpy().shape == (6, 2)


def test_an_empty_shard_gives_empty_tables(weights: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    nothing: dict[str, list[str]] = {"image_id": [], "path": [], "split": [], "sha256": []}
    write_table(pl.DataFrame(nothing, schema=dict.fromkeys(nothing, pl.String)).with_columns(**NOWHERE), "shard", empty)
    extract_features(empty, EVERY, str(weights), SETTINGS, Hardware(), tmp_path / "f.parquet")
    score_photos(empty, weights, ViewPlan(), 5, Hardware(), tmp_path / "s.parquet")
    predict_photos(empty, weights, ViewPlan(), 5, Hardware(), tmp_path / "p.parquet")
    for kind, name in (("features", "f"), ("guide_scores", "s"), ("predictions", "p")):
        assert read_table(kind, tmp_path / f"{name}.parquet").is_empty()


def test_a_transformer_takes_views_larger_than_it_was_trained_on(toy: PhotoSet) -> None:
    torch.manual_seed(0)
    model = Classifier(Architecture("test_vit", 8, 3, 0, False, 64))
    embeddings, probabilities = infer(model, toy.paths, ViewPlan(size=1.5), Hardware())
    assert embeddings.shape == (len(toy.paths), 8) and np.isfinite(probabilities).all()

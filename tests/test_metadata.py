"""Places and dates: what is a coordinate, what is missing, where circles close; and their way into a model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.fusion import withhold
from fieldmark.metadata import WIDTHS, MetadataSettings, encode
from fieldmark.models import Classifier, build_classifier, load_classifier, save_classifier

SPHERE, GEO = MetadataSettings("sphere"), MetadataSettings("geo_prior")
SCHEMA = {"latitude": pl.Float64, "longitude": pl.Float64, "location_uncertainty": pl.Float64, "date": pl.String}
MakeModel = Callable[..., Classifier]


def photos(*rows: tuple) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA, orient="row")


def one(settings: MetadataSettings, *row: object) -> np.ndarray:
    return encode(photos(row), settings)[0]


@pytest.mark.parametrize("settings", [SPHERE, GEO])
def test_missing_is_zero_with_its_flag_and_zero_degrees_is_a_place(settings: MetadataSettings) -> None:
    assert not one(settings, None, None, None, None).any()
    assert one(settings, None, None, None, None).shape == (WIDTHS[settings.encoding],)
    place = 3 if settings is SPHERE else 4
    equator = one(settings, 0.0, 0.0, None, None)
    assert equator[place] == 1 and equator[:place].any() and not equator[place + 1 :].any()
    # Half a place is none.
    assert not one(settings, 5.0, None, None, None).any() and not one(settings, float("nan"), 5.0, None, None).any()


def test_the_sphere_is_the_unit_sphere_and_dates_lie_on_circles() -> None:
    np.testing.assert_allclose(one(SPHERE, 0.0, 90.0, None, None)[:3], [0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(one(SPHERE, 90.0, 17.0, None, None)[:3], [0, 0, 1], atol=1e-7)
    spring = one(SPHERE, None, None, None, "2021-04-02")  # day 91 of 365
    np.testing.assert_allclose(spring[4:7], [np.sin(2 * np.pi * 91 / 365), np.cos(2 * np.pi * 91 / 365), 1], atol=1e-6)
    assert not spring[7:].any()  # no time, no hour
    evening = one(SPHERE, None, None, None, "2021-04-02T18:00:00")
    np.testing.assert_allclose(evening[7:], [-1, 0, 1], atol=1e-6)


def test_the_geo_prior_is_the_papers() -> None:
    found = one(GEO, 45.0, -60.0, None, "2020-01-01")
    expected = [np.sin(-np.pi / 3), np.cos(-np.pi / 3), np.sin(np.pi / 2), np.cos(np.pi / 2), 1, 0, 1, 1]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("settings", [SPHERE, GEO])
def test_longitudes_and_years_wrap(settings: MetadataSettings) -> None:
    east, west = (one(settings, 10.0, longitude, None, None) for longitude in (180.0, -180.0))
    np.testing.assert_allclose(east, west, atol=1e-6)
    december, january = (one(settings, None, None, None, day) for day in ("2021-12-31", "2022-01-01"))
    assert np.abs(december - january).max() < 0.02
    # Leap years end at the same place of the circle.
    np.testing.assert_allclose(one(settings, None, None, None, "2020-12-31"), december, atol=1e-3)


def test_hours_are_the_suns_where_offset_and_place_are_known() -> None:
    def hour(*row: object) -> float:
        sine, cosine, flag = one(SPHERE, *row)[7:]
        assert flag == 1
        return float(np.arctan2(sine, cosine) / (2 * np.pi) * 24 % 24)

    assert hour(None, None, None, "2021-06-03T12:30:00+00:00") == pytest.approx(12.5, abs=1e-4)
    assert hour(0.0, 150.0, None, "2021-06-03T12:30:00+00:00") == pytest.approx(22.5, abs=1e-4)
    assert hour(0.0, 150.0, None, "2021-06-03T12:30:00") == pytest.approx(12.5, abs=1e-4)
    assert hour(0.0, -45.0, None, "2021-06-03T09:00:00-03:30") == pytest.approx(9.5, abs=1e-4)


@pytest.mark.parametrize(
    ("uncertainty", "known"), [(None, True), (0.0, True), (99.0, True), (100_001.0, False), (-1.0, False), (1e8, False)]
)
def test_a_place_with_a_bogus_uncertainty_is_missing(uncertainty: float | None, known: bool) -> None:
    found = one(SPHERE, 5.0, 6.0, uncertainty, "2021-04-02")
    assert (found[3] == 1) == known and found[:4].any() == known and found[6] == 1
    assert one(MetadataSettings("sphere", max_uncertainty=1e9), 5.0, 6.0, 1e8, None)[3] == 1


@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(-90, 90),
            st.none() | st.floats(-180, 180),
            st.none() | st.floats(allow_nan=True),
            st.none() | st.datetimes().map(lambda d: d.replace(microsecond=0).isoformat()) | st.just("2021-13-99"),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_encodings_are_finite_and_bounded(rows: list[tuple]) -> None:
    for settings in (SPHERE, GEO):
        found = encode(photos(*rows), settings)
        assert found.dtype == np.float32 and np.isfinite(found).all() and np.abs(found).max(initial=0) <= 1


def test_metadata_are_withheld_row_by_row() -> None:
    encoded = torch.ones(2000, 3)
    kept = withhold(encoded, 0.3, torch.Generator().manual_seed(0))
    assert set(kept.sum(dim=1).tolist()) == {0.0, 3.0} and kept[:, 0].mean().item() == pytest.approx(0.7, abs=0.04)
    assert torch.equal(withhold(encoded, 0.0, torch.Generator()), encoded)


@pytest.mark.parametrize("fusion", ["add", "concat"])
def test_a_model_works_without_metadata_as_with_all_missing(make_model: MakeModel, fusion: str) -> None:
    model = make_model(embedding=6, metadata=MetadataSettings("sphere", fusion, width=16, blocks=2)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.metadata.parameters():
            parameter.add_(0.1)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    missing = torch.zeros(3, 10)
    embedding, logits = model(images)
    assert embedding.shape == (3, model.width) and model.width == (6 if fusion == "add" else 22)
    for found, expected in zip(model(images, metadata=missing), (embedding, logits), strict=True):
        assert torch.equal(found, expected)
    known = torch.from_numpy(encode(photos((1.0, 2.0, None, None)), SPHERE)).expand(3, -1)
    assert not torch.equal(model(images, metadata=known)[1], logits)


def test_added_metadata_start_by_changing_nothing(make_model: MakeModel) -> None:
    plain, fused = make_model().eval(), make_model(metadata=MetadataSettings("geo_prior")).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fused(images, metadata=torch.randn(2, 8))[0], plain(images)[0])


def test_the_next_stage_takes_over_the_metadata_network(make_model: MakeModel, tmp_path: Path) -> None:
    settings = MetadataSettings("sphere", width=16, blocks=1)
    first = make_model(metadata=settings, seed=3)
    save_classifier(first, tmp_path / "first.safetensors")
    assert load_classifier(tmp_path / "first.safetensors").architecture == first.architecture
    second = build_classifier(first.architecture, str(tmp_path / "first.safetensors"), seed=8)
    for name, value in first.metadata.state_dict().items():
        assert torch.equal(second.metadata.state_dict()[name], value)
    # A photo-only model that starts from it leaves them, and one with metadata starts from a photo-only model.
    make = {"classes": 3, "foreign": 0}
    plain = build_classifier(make_model(**make).architecture, str(tmp_path / "first.safetensors"), seed=8)
    assert plain.metadata is None
    save_classifier(plain, tmp_path / "plain.safetensors")
    build_classifier(first.architecture, str(tmp_path / "plain.safetensors"), seed=8)

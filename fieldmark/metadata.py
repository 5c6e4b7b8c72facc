"""Where and when a photo was taken, encoded as numbers."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

COLUMNS = ("latitude", "longitude", "location_uncertainty", "date")
# place, presence of the place, season, presence of the date, and for the sphere the hour and its presence.
WIDTHS = {"none": 0, "sphere": 10, "geo_prior": 8}


@dataclass(frozen=True)
class MetadataSettings:
    """``models.*.metadata`` of the config.

    Attributes:
        encoding: none; sphere (a point on the unit sphere, season and hour on circles, as MetaFormer, Diao et al.
            2022); geo_prior (sines and cosines of longitude, latitude and season, Mac Aodha et al. 2019).
        fusion: add the embedded metadata to the photo's embedding, or concat the two.
        width: of the embedded metadata.
        blocks: residual blocks of the network that embeds them.
        dropout: share of photos whose metadata are withheld while training, so that the model works without.
        max_uncertainty: metres; places that are known less exactly, or with a negative uncertainty, are missing.
    """

    encoding: Literal["none", "sphere", "geo_prior"] = "none"
    fusion: Literal["add", "concat"] = "add"
    width: int = 256
    blocks: int = 4
    dropout: float = 0.2
    max_uncertainty: float = 100_000.0


NO_METADATA = MetadataSettings()


def encode(photos: pl.DataFrame, settings: MetadataSettings) -> np.ndarray:
    """Encode places and dates as inputs of a network.

    Args:
        photos: N rows with latitude and longitude in degrees (0.0 is one like any other), location_uncertainty in
            metres, and date in ISO 8601 with or without a time; null where unknown.
        settings: which encoding, and which places to trust.

    Returns:
        (N, E) float32 in [−1, 1]: zeros where something is missing, with a flag of its presence beside it. The season
        is the share of the year; the hour is the sun's where the date has an offset and the place is known, since
        iNaturalist gives times in UTC, and the clock's otherwise.
    """
    uncertainty = pl.col("location_uncertainty")
    told = pl.all_horizontal(pl.col(name).is_finite() for name in COLUMNS[:2])
    trusted = uncertainty.is_null() | uncertainty.is_between(0, settings.max_uncertainty)
    day = pl.col("date").str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
    length = pl.when(day.dt.is_leap_year()).then(366).otherwise(365)
    frame = photos.select(
        placed=(told & trusted).fill_null(False),
        latitude=pl.col("latitude").fill_nan(None).fill_null(0.0),
        longitude=pl.col("longitude").fill_nan(None).fill_null(0.0),
        year=(day.dt.ordinal_day() - 1) / length,
        hour=_part(11) + _part(14) / 60,
        # The offset's sign holds for its minutes as well: −03:30 is minus three and a half hours.
        offset=pl.when(pl.col("date").str.slice(19, 1) == "-").then(-1).otherwise(1) * (_part(20) + _part(23) / 60),
    )
    placed, latitude, longitude = (frame[name].to_numpy() for name in ("placed", "latitude", "longitude"))
    year, hour, offset = (frame[name].cast(pl.Float64).to_numpy() for name in ("year", "hour", "offset"))
    turn = _circle(2 * np.pi * np.nan_to_num(year))
    if settings.encoding == "geo_prior":
        place = np.hstack([_circle(np.pi * longitude / 180), _circle(np.pi * latitude / 90)])
        groups = [(place, placed), (turn, ~np.isnan(year))]
    else:
        phi, theta = np.deg2rad(latitude), np.deg2rad(longitude)
        place = np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], axis=1)
        sun = np.where(placed & ~np.isnan(offset), hour - offset + longitude / 15, hour)
        groups = [
            (place, placed),
            (turn, ~np.isnan(year)),
            (_circle(2 * np.pi * np.nan_to_num(sun) / 24), ~np.isnan(sun)),
        ]
    columns = [np.hstack([values * here[:, None], here[:, None]]) for values, here in groups]
    return np.hstack(columns).astype(np.float32)


def _part(start: int) -> pl.Expr:
    """The two-digit number at a place of the date, null if there is none."""
    return pl.col("date").str.slice(start, 2).cast(pl.Int32, strict=False)


def _circle(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)

"""Cleaning of the metadata that sources get wrong: coordinates, their uncertainty, dates and boxes."""

import datetime
import logging
import re

import polars as pl

logger = logging.getLogger(__name__)

BOX = ("box_x", "box_y", "box_w", "box_h")
_EXPECTED = {
    "latitude": "degrees from −90 to 90, with a decimal point and a longitude beside it",
    "longitude": "degrees from −180 to 180, with a decimal point and a latitude beside it",
    "location_uncertainty": "metres",
    "date": "year-month-day",
    "box_x": "four numbers, the size more than 0",
}
_YEARS = (1800, 2200)
_DATE = re.compile(
    r"(?P<year>\d{4})[-/:](?P<month>\d{1,2})[-/:](?P<day>\d{1,2})"
    r"(?:[T ](?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.\d+)?)?\s*(?P<zone>Z|[+-]\d{2}:?\d{2})?)?",
    re.ASCII,
)


def normalise_date(date: str) -> str | None:
    """``date`` as ISO 8601: ``2021-06-03``, with ``T12:30:00`` and an offset only where they are given.

    Understood are year, month, day in this order with ``-``, ``/`` or ``:`` between them (the last is EXIF's way).
    None for anything else, for days that do not exist and for years outside 1800 to 2200.
    """
    match = _DATE.fullmatch(date.strip())
    if match is None:
        return None
    try:
        day = datetime.date(int(match["year"]), int(match["month"]), int(match["day"]))
        if not _YEARS[0] <= day.year <= _YEARS[1]:
            return None
        if match["hour"] is None:
            return day.isoformat()
        time = datetime.time(int(match["hour"]), int(match["minute"]), int(match["second"] or 0))
    except ValueError:
        return None
    zone = match["zone"] or ""
    if len(zone) == 5:
        zone = f"{zone[:3]}:{zone[3:]}"
    return f"{day.isoformat()}T{time.isoformat()}{'+00:00' if zone == 'Z' else zone}"


def _shown(value: object) -> str:
    return "no number" if value != value else str(value)  # NaN stands for a text that is none


def clean_places(photos: pl.DataFrame, where: str) -> pl.DataFrame:
    """Null what cannot be true, and log how often.

    A coordinate counts only in a pair; 0.0 is a coordinate like any other. Longitudes beyond ±180 are wrapped if they
    are within ±360, since some sources count from 0 to 360. A box needs four numbers and a positive size. Uncertainties
    are kept as they are, also the −1 and 1e8 m that iNaturalist holds: which places to trust is the models' to decide.

    Args:
        photos: with columns file, latitude, longitude (degrees), location_uncertainty (metres), date and box_x … box_h.
        where: named in the log.
    """
    latitude, longitude, uncertainty = (pl.col(name) for name in ("latitude", "longitude", "location_uncertainty"))
    box = [pl.col(name) for name in BOX]
    # NaN compares as greater than every number in polars, so each range check needs both bounds.
    placed = latitude.is_between(-90, 90) & longitude.is_between(-360, 360)
    boxed = pl.all_horizontal(part.is_finite() for part in box) & (box[2] > 0) & (box[3] > 0)
    known = {date: normalise_date(date) for date in photos["date"].drop_nulls().unique()}
    wrapped = (
        pl.when(longitude > 180).then(longitude - 360).when(longitude < -180).then(longitude + 360).otherwise(longitude)
    )
    cleaned = photos.with_columns(
        pl.when(placed).then(latitude).alias("latitude"),
        pl.when(placed).then(wrapped).alias("longitude"),
        pl.when(placed & uncertainty.is_finite()).then(uncertainty).alias("location_uncertainty"),
        pl.col("date").replace_strict(known, default=None, return_dtype=pl.String),
        *(pl.when(boxed).then(part).alias(part.meta.output_name()) for part in box),
    )
    for name, expected in _EXPECTED.items():
        lost = photos.filter(photos[name].is_not_null() & cleaned[name].is_null())
        if not lost.is_empty():
            what = name.removesuffix("_x")
            logger.warning(
                "%s: %d of %d photos have an impossible %s, which is not used, the first is %s: expected %s, found %s",
                *(where, lost.height, photos.height - photos[name].null_count(), what, lost["file"][0], expected),
                ", ".join(_shown(lost[part][0]) for part in ([name] if what == name else BOX)),
            )
    return cleaned

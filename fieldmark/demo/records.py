"""Which photos the demo consists of, where and when each was taken, and its iNat-style JSON."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fieldmark.demo.species import LATITUDES, LONGITUDES, Species, grow_tree

TAXON = {"kingdom": "Animalia", "phylum": "Arthropoda", "class": "Insecta", "order": "Lepidoptera"}
PHOTOS_PER_FOLDER = 1000
# Ratio of the rarest species' unlabeled photos to the commonest one's.
_UNLABELED_TAIL = 0.2
_NO_PLACE_SHARE, _NO_DATE_SHARE = 0.04, 0.03
_YEARS = (2014, 2026)

Json = dict[str, str | int | float | list[float] | None]


@dataclass(frozen=True)
class DemoSettings:
    """What the demo set contains; the keys of ``demo`` in config.yaml, and the seed."""

    seed: int
    families: int
    genera_per_family: int
    species_per_genus: int
    in_class_share: float
    labeled_per_class: tuple[int, int]
    unlabeled: int
    foreign_share: float
    val_per_class: int
    test_per_class: int
    side: int

    def __post_init__(self) -> None:
        fewest, most = self.labeled_per_class
        if not 1 <= fewest <= most:
            raise ValueError(f"demo.labeled_per_class: expected 1 <= fewest <= most, found {[fewest, most]}")
        if not 0 <= self.foreign_share <= 1:
            raise ValueError(f"demo.foreign_share: expected a share from 0 to 1, found {self.foreign_share}")
        if self.foreign_share > 0 and self.in_class_share >= 1:
            raise ValueError("demo.foreign_share: no species is foreign; lower demo.in_class_share, or set this to 0")
        for key, least in (("unlabeled", 0), ("val_per_class", 0), ("test_per_class", 0), ("side", 32)):
            if getattr(self, key) < least:
                raise ValueError(f"demo.{key}: expected at least {least}, found {getattr(self, key)}")


@dataclass(frozen=True)
class PlannedPhoto:
    """A photo to draw; ``index`` counts through the whole set and seeds the photo."""

    index: int
    split: str
    file_name: str
    species: Species

    @property
    def image_id(self) -> str:
        """The file name without folder and suffix."""
        return self.file_name.rsplit("/", 1)[-1].removesuffix(".jpg")


def _geometric(count: int, ratio: float) -> np.ndarray:
    """Make ``count`` weights that fall geometrically from 1 to ``ratio``."""
    return np.asarray(ratio ** (np.arange(count) / max(count - 1, 1)))


def _apportion(total: int, weights: np.ndarray) -> list[int]:
    """Share ``total`` by ``weights``, largest remainders first."""
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    leftover = np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]
    counts[leftover] += 1
    return [int(count) for count in counts]


def plan_photos(settings: DemoSettings) -> list[PlannedPhoto]:
    """List every photo of the set, by index; names and order tell nothing about the species."""
    tree = grow_tree(
        settings.seed,
        settings.families,
        settings.genera_per_family,
        settings.species_per_genus,
        settings.in_class_share,
    )
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(0, 3)))
    known = [one for one in tree if one.class_id >= 0]
    foreign = [one for one in tree if one.class_id < 0]
    # Common species are common among the labeled and the unlabeled photos alike, though not in strict proportion.
    ranks = [known[i] for i in rng.permutation(len(known))]
    fewest, most = settings.labeled_per_class
    labeled = np.rint(most * _geometric(len(known), fewest / most)).astype(int)
    foreign_photos = round(settings.unlabeled * settings.foreign_share)
    frequency = _geometric(len(known), _UNLABELED_TAIL) * np.exp(rng.normal(0, 0.2, len(known)))
    unlabeled = list(zip(ranks, _apportion(settings.unlabeled - foreign_photos, frequency), strict=True))
    if foreign:
        frequency = rng.permutation(_geometric(len(foreign), _UNLABELED_TAIL))
        unlabeled += zip(foreign, _apportion(foreign_photos, frequency), strict=True)
    counts: dict[str, list[tuple[Species, int]]] = {
        "labeled": [(one, int(count)) for one, count in zip(ranks, labeled, strict=True)],
        "unlabeled": unlabeled,
        "val": [(one, settings.val_per_class) for one in known],
        "test": [(one, settings.test_per_class) for one in known],
    }
    planned: list[PlannedPhoto] = []
    for split, species_counts in counts.items():
        members = [one for one, count in species_counts for _ in range(count)]
        for place, member in enumerate(rng.permutation(len(members))):
            index = len(planned)
            folder = f"photos/{split}/{place // PHOTOS_PER_FOLDER:03d}"
            planned.append(PlannedPhoto(index, split, f"{folder}/m{index:06d}.jpg", members[member]))
    return planned


def describe_sighting(settings: DemoSettings, photo: PlannedPhoto) -> Json:
    """Draw date and place of a photo from its species' season and range; some are missing, as in life."""
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(photo.index, 1)))
    habits = photo.species.habits
    latitude = float(np.clip(rng.normal(habits.latitude, habits.spread), *LATITUDES))
    longitude = float(np.clip(rng.normal(habits.longitude, habits.spread * 1.4), *LONGITUDES))
    day = int(np.clip(rng.normal(habits.day, habits.day_spread), 1, 365))
    # Moths are mostly seen in the evening and at night; noon + 11 h is the mode.
    minute = round(float(np.clip(rng.normal(11, 3.5), 0, 23.9)) * 60) + 12 * 60
    start = datetime.datetime(int(rng.integers(*_YEARS)), 1, 1, tzinfo=datetime.UTC)
    date = start + datetime.timedelta(days=day - 1, minutes=minute, seconds=int(rng.integers(60)))
    uncertainty = round(float(np.exp(rng.normal(4.5, 1.6))), 1)
    no_place, no_uncertainty, no_date = rng.uniform(size=3) < (_NO_PLACE_SHARE, 0.15, _NO_DATE_SHARE)
    return {
        "date": None if no_date else date.isoformat(sep=" "),
        "latitude": None if no_place else round(latitude, 5),
        "longitude": None if no_place else round(longitude, 5),
        "location_uncertainty": None if no_place or no_uncertainty else uncertainty,
    }


def describe_category(species: Species) -> Json:
    """Describe an in-class species as an iNat category; twins have a ``note`` on what sets them apart."""
    category: Json = {
        "id": species.class_id,
        "name": species.name,
        "common_name": species.common_name,
        "supercategory": "Insects",
        **TAXON,
        "family": species.family,
        "genus": species.genus,
        "specific_epithet": species.epithet,
    }
    return {**category, "note": species.note} if species.note else category


def describe_split(
    settings: DemoSettings,
    photos: Sequence[PlannedPhoto],
    frames: Sequence[tuple[int, int, tuple[int, int, int, int]]],
    categories: list[Json],
) -> dict[str, object]:
    """Put one split together as in iNat 2021's COCO-like JSON.

    Args:
        settings: the set's settings.
        photos: the split's photos.
        frames: width, height and bounding box (x, y, width, height) of each, in pixels.
        categories: the in-class species.
    """
    images, annotations = [], []
    for number, (photo, (width, height, box)) in enumerate(zip(photos, frames, strict=True)):
        images.append(
            {
                "id": photo.index,
                "width": width,
                "height": height,
                "file_name": photo.file_name,
                **describe_sighting(settings, photo),
                **TAXON,
                "family": photo.species.family,
            }
        )
        told = photo.species.class_id if photo.split in ("labeled", "val") else -1
        annotations.append({"id": number, "image_id": photo.index, "category_id": told, "bbox": list(box)})
    info = {"description": f"Drawn moths, {photos[0].split if photos else 'no'} photos", "version": "1"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}

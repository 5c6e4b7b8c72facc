"""Draw the whole demo set into a folder: photos, iNat-style JSON per split, and the truth for scoring."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fieldmark.artifacts import SPLITS, write_atomically
from fieldmark.demo.photo import take_photo
from fieldmark.demo.records import DemoSettings, PlannedPhoto, describe_category, describe_split, plan_photos

_PHOTOS_PER_TASK = 40

Frame = tuple[int, int, tuple[int, int, int, int]]


def _draw_photos(photos: list[PlannedPhoto], *, seed: int, side: int, folder: Path) -> list[Frame]:
    """Draw and save some photos; each depends on the seed and on its own index alone."""
    frames = []
    for planned in photos:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(planned.index,)))
        photo = take_photo(rng, seed, planned.species.look, side)
        target = folder / Path(planned.file_name).relative_to("photos")
        photo.image.save(target, format="JPEG", quality=int(rng.integers(84, 95)))
        frames.append((*photo.image.size, photo.box))
    return frames


def _draw_all(photos: list[PlannedPhoto], settings: DemoSettings, folder: Path, workers: int) -> Iterator[list[Frame]]:
    tasks = [photos[start : start + _PHOTOS_PER_TASK] for start in range(0, len(photos), _PHOTOS_PER_TASK)]
    draw = partial(_draw_photos, seed=settings.seed, side=settings.side, folder=folder)
    if workers == 1:
        yield from map(draw, tasks)
        return
    # Forked, because a spawned worker would import the running main module, a whole workflow stage, once more.
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        yield from pool.map(draw, tasks)


def _write_text(target: Path, text: str) -> None:
    write_atomically(target, lambda path: path.write_text(text, encoding="utf-8"))


def generate_demo(
    root: Path,
    *,
    seed: int,
    families: int,
    genera_per_family: int,
    species_per_genus: int,
    in_class_share: float,
    labeled_per_class: tuple[int, int],
    unlabeled: int,
    foreign_share: float,
    val_per_class: int,
    test_per_class: int,
    side: int,
    workers: int,
) -> None:
    """Draw the demo set: the same bytes for the same arguments, whatever the number of workers.

    Writes under ``root``: ``photos/<split>/<folder>/m<number>.jpg``; ``labeled.json``, ``unlabeled.json``,
    ``val.json`` and ``test.json`` in iNat 2021's COCO-like layout (boxes in all; classes only of labeled and val
    photos, -1 elsewhere; coarse taxa down to the family with every image); and ``truth.csv`` (image_id, class_id; -1
    for foreign species) of every unlabeled and test photo. A ``photos`` folder that is there already is replaced.

    Args:
        root: the folder to write to.
        seed: every draw derives from it.
        families: families in the tree.
        genera_per_family: genera in each.
        species_per_genus: species in each, at least two.
        in_class_share: share of the species that are classes; each genus keeps some foreign ones.
        labeled_per_class: fewest and most labeled photos of a class, a geometric long tail in between.
        unlabeled: number of unlabeled photos, long-tailed over the species.
        foreign_share: share of the unlabeled photos whose species is no class.
        val_per_class: val photos of each class.
        test_per_class: test photos of each class.
        side: the photos' shorter side in pixels.
        workers: processes that draw.

    Raises:
        ValueError: if the numbers cannot be met; the message names the config key.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, found {workers}")
    settings = DemoSettings(
        seed,
        families,
        genera_per_family,
        species_per_genus,
        in_class_share,
        labeled_per_class,
        unlabeled,
        foreign_share,
        val_per_class,
        test_per_class,
        side,
    )
    planned = plan_photos(settings)
    root = Path(root)
    photos, partial_photos = root / "photos", root / "photos.partial"
    # Without its JSON a set counts as absent, so one that is killed half-way cannot pass for a whole one.
    for name in (*(f"{split}.json" for split in SPLITS), "truth.csv"):
        (root / name).unlink(missing_ok=True)
    shutil.rmtree(partial_photos, ignore_errors=True)
    for folder in sorted({Path(photo.file_name).parent for photo in planned}):
        (partial_photos / folder.relative_to("photos")).mkdir(parents=True)

    frames: list[Frame] = []
    with tqdm(total=len(planned), desc="drawing moths", unit="photo") as progress:
        for drawn in _draw_all(planned, settings, partial_photos, workers):
            frames += drawn
            progress.update(len(drawn))
    if photos.exists():
        shutil.rmtree(photos)
    partial_photos.replace(photos)
    _write_records(root, settings, planned, frames)


def _write_records(root: Path, settings: DemoSettings, planned: list[PlannedPhoto], frames: list[Frame]) -> None:
    classes = {photo.species.class_id: photo.species for photo in planned if photo.species.class_id >= 0}
    categories = [describe_category(classes[class_id]) for class_id in sorted(classes)]
    hidden = [photo for photo in planned if photo.split in ("unlabeled", "test")]
    rows = "".join(f"{photo.image_id},{photo.species.class_id}\n" for photo in hidden)
    _write_text(root / "truth.csv", "image_id,class_id\n" + rows)
    for split in SPLITS:
        places = [place for place, photo in enumerate(planned) if photo.split == split]
        told = describe_split(settings, [planned[k] for k in places], [frames[k] for k in places], categories)
        _write_text(root / f"{split}.json", json.dumps(told, separators=(",", ":")) + "\n")

"""The drawn demo set: the same bytes every time, the promised counts, honest boxes, and nothing given away."""

import csv
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fieldmark.demo import DemoSettings, dataset, draw_contact_sheet, generate_demo
from fieldmark.demo.backgrounds import textures
from fieldmark.demo.photo import VISIBLE, bounding_box, take_photo
from fieldmark.demo.records import PHOTOS_PER_FOLDER, describe_sighting, plan_photos
from fieldmark.demo.shapes import SHAPES
from fieldmark.demo.species import Look, grow_tree
from fieldmark.demo.specimen import draw_pose, draw_specimen

SPLITS = ("labeled", "unlabeled", "val", "test")
TINY = DemoSettings(
    seed=5,
    families=2,
    genera_per_family=2,
    species_per_genus=3,
    in_class_share=0.5,
    labeled_per_class=(2, 5),
    unlabeled=50,
    foreign_share=0.7,
    val_per_class=1,
    test_per_class=2,
    side=48,
)
# As large as the shipped demo, for what can be checked without drawing.
FULL = replace(TINY, families=4, species_per_genus=5, labeled_per_class=(3, 12), unlabeled=2500, side=96)


def draw(root: Path, settings: DemoSettings = TINY, workers: int = 1) -> Path:
    generate_demo(root, workers=workers, **vars(settings))
    return root


def digest(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / f"{split}.json").read_text())


def read_truth(root: Path) -> dict[str, int]:
    with (root / "truth.csv").open() as lines:
        return {row["image_id"]: int(row["class_id"]) for row in csv.DictReader(lines)}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def looks() -> list[Look]:
    tree = grow_tree(3, families=len(SHAPES), genera_per_family=2, species_per_genus=5, in_class_share=0.5)
    return [one.look for one in tree]


def test_same_bytes_whatever_the_workers_and_when_run_again(demo: Path, tmp_path: Path) -> None:
    draw(tmp_path, workers=2)
    assert digest(tmp_path) == digest(demo)
    stray = tmp_path / "photos" / "labeled" / "000" / "stray.jpg"
    stray.write_bytes(b"left over")
    draw(tmp_path, workers=2)
    assert digest(tmp_path) == digest(demo)


def test_another_seed_draws_other_photos(demo: Path, tmp_path: Path) -> None:
    draw(tmp_path, replace(TINY, seed=6, unlabeled=0, foreign_share=0.0, test_per_class=0, val_per_class=0))
    other, known = digest(tmp_path), set(digest(demo).values())
    assert not {value for name, value in other.items() if name.endswith(".jpg")} & known


def test_counts_and_foreign_share(demo: Path) -> None:
    sets = {split: read(demo, split) for split in SPLITS}
    classes = len(sets["labeled"]["categories"])
    assert classes == 6
    assert [one["id"] for one in sets["labeled"]["categories"]] == list(range(classes))
    labeled = Counter(one["category_id"] for one in sets["labeled"]["annotations"])
    assert set(labeled) == set(range(classes)) and {min(labeled.values()), max(labeled.values())} == {2, 5}
    assert Counter(one["category_id"] for one in sets["val"]["annotations"]) == dict.fromkeys(range(classes), 1)
    assert len(sets["unlabeled"]["images"]) == 50
    truth = read_truth(demo)
    unlabeled = [truth[Path(one["file_name"]).stem] for one in sets["unlabeled"]["images"]]
    assert sum(class_id == -1 for class_id in unlabeled) == 35
    test = Counter(truth[Path(one["file_name"]).stem] for one in sets["test"]["images"])
    assert test == dict.fromkeys(range(classes), 2)


def test_unlabeled_photos_are_long_tailed_over_every_species() -> None:
    counts = Counter(photo.species.name for photo in plan_photos(FULL) if photo.split == "unlabeled")
    assert len(counts) == 40 and sum(counts.values()) == 2500
    assert max(counts.values()) > 3 * min(counts.values())


def test_truth_covers_exactly_unlabeled_and_test(demo: Path) -> None:
    hidden = [Path(one["file_name"]).stem for split in ("unlabeled", "test") for one in read(demo, split)["images"]]
    assert sorted(read_truth(demo)) == sorted(hidden)


def test_every_photo_is_listed_once_and_has_its_size(demo: Path) -> None:
    images = [one for split in SPLITS for one in read(demo, split)["images"]]
    names = [one["file_name"] for one in images]
    assert sorted(names) == sorted(str(path.relative_to(demo)) for path in demo.rglob("*.jpg"))
    assert len({Path(name).stem for name in names}) == len({one["id"] for one in images}) == len(names)
    for one in images:
        with Image.open(demo / one["file_name"]) as photo:
            assert photo.size == (one["width"], one["height"]) and min(photo.size) == TINY.side


def test_records_give_no_hidden_class_away(demo: Path) -> None:
    for split in SPLITS:
        told = read(demo, split)
        assert all(re.fullmatch(rf"photos/{split}/\d{{3}}/m\d{{6}}\.jpg", one["file_name"]) for one in told["images"])
        assert all({"kingdom", "phylum", "class", "order", "family"} <= set(one) for one in told["images"])
        assert not any({"genus", "name", "specific_epithet"} & set(one) for one in told["images"])
        if split in ("unlabeled", "test"):
            assert {one["category_id"] for one in told["annotations"]} == {-1}


def test_order_of_names_tells_nothing() -> None:
    hidden = [photo.species.name for photo in plan_photos(FULL) if photo.split == "unlabeled"]
    neighbours = np.mean([a == b for a, b in pairwise(hidden)])
    shares = np.array(list(Counter(hidden).values())) / len(hidden)
    chance = np.square(shares).sum()
    assert abs(neighbours - chance) < 4 * np.sqrt(chance / len(hidden))


def test_folders_hold_at_most_a_thousand_photos() -> None:
    folders = Counter(str(Path(photo.file_name).parent) for photo in plan_photos(FULL))
    assert max(folders.values()) == PHOTOS_PER_FOLDER == 1000


def test_boxes_lie_within_the_photo_and_are_those_of_the_animal(demo: Path) -> None:
    planned = {photo.index: photo for photo in plan_photos(TINY)}
    told = read(demo, "labeled")
    for image, annotation in zip(told["images"], told["annotations"], strict=True):
        assert annotation["image_id"] == image["id"]
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= image["width"] and 0 <= y < y + height <= image["height"]
        rng = np.random.default_rng(np.random.SeedSequence(TINY.seed, spawn_key=(image["id"],)))
        photo = take_photo(rng, TINY.seed, planned[image["id"]].species.look, TINY.side)
        assert list(photo.box) == annotation["bbox"]


def test_the_whole_animal_is_in_the_photo(looks: list[Look]) -> None:
    for number, look in enumerate(looks):
        rng = np.random.default_rng(number)
        moth = draw_specimen(rng, look, draw_pose(rng, look.shape, 72, 54), textures(0), 72, 54)
        mask = moth[..., 3]
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert edge.max() <= VISIBLE, f"look {number} is cut off"
        x, y, width, height = bounding_box(mask)
        assert max(width, height) > 0.4 * 54
        outside = mask.copy()
        outside[y : y + height, x : x + width] = 0
        assert outside.max() <= VISIBLE


def test_every_genus_has_look_alikes_in_class_and_foreign() -> None:
    for share in (0.1, 0.5, 0.9):
        genera: dict[str, set[bool]] = {}
        for one in grow_tree(2, families=3, genera_per_family=2, species_per_genus=4, in_class_share=share):
            genera.setdefault(one.genus, set()).add(one.class_id >= 0)
        assert all(kinds == {True, False} for kinds in genera.values())
    tree = grow_tree(2, families=4, genera_per_family=2, species_per_genus=5, in_class_share=0.5)
    assert sorted(one.class_id for one in tree if one.class_id >= 0) == list(range(20))


def test_siblings_differ_in_a_mark_that_shows_at_64_pixels(looks: list[Look]) -> None:
    for genus in range(0, len(looks), 5):
        drawn = []
        for look in looks[genus : genus + 5]:
            rng = np.random.default_rng(1)
            pose = draw_pose(rng, look.shape, 96, 96)
            moth = draw_specimen(rng, look, pose, textures(0), 96, 96)
            photo = Image.fromarray(np.clip(moth[..., :3] + 120 * (1 - moth[..., 3:]), 0, 255).astype(np.uint8))
            drawn.append(np.asarray(photo.resize((64, 64), Image.Resampling.BOX), np.float32))
        for first in range(5):
            for second in range(first):
                if looks[genus + first] == looks[genus + second]:  # twins
                    continue
                changed = np.abs(drawn[first] - drawn[second]).max(-1) > 25
                assert 3 <= changed.sum() < 0.1 * 64 * 64, f"genus {genus // 5}: {second} and {first}"


def test_twins_share_their_looks_and_differ_in_range_or_season(demo: Path) -> None:
    tree = grow_tree(2, families=4, genera_per_family=2, species_per_genus=5, in_class_share=0.5)
    twins = [one for one in tree if one.twin]
    assert {one.twin for one in twins} == {"range", "season"}
    for first, second in zip(twins[::2], twins[1::2], strict=True):
        assert first.look == second.look and first.genus == second.genus
        assert first.class_id >= 0 and second.class_id >= 0 and first.class_id != second.class_id
        assert first.habits != second.habits
    notes = [one["note"] for one in read(demo, "labeled")["categories"] if "note" in one]
    assert len(notes) == 2 and all("looks like" in note for note in notes)


def sightings(settings: DemoSettings) -> tuple[np.ndarray, np.ndarray]:
    """Place and day of the year (n, 3), missing ones left out, and class ids (n,) of the test photos."""
    rows, classes = [], []
    for photo in plan_photos(settings):
        told = describe_sighting(settings, photo)
        if photo.split == "test" and told["latitude"] is not None and told["date"] is not None:
            day = (np.datetime64(str(told["date"])[:10]) - np.datetime64(f"{str(told['date'])[:4]}-01-01")).astype(int)
            rows.append((told["latitude"], told["longitude"], day))
            classes.append(photo.species.class_id)
    return np.array(rows, float), np.array(classes)


def test_place_and_date_hint_at_the_class_but_never_tell_it() -> None:
    settings = replace(FULL, unlabeled=0, foreign_share=0.0, test_per_class=60)
    places, classes = sightings(settings)
    scaled = (places - places.mean(0)) / places.std(0)
    centres = np.stack([scaled[classes == k].mean(0) for k in range(20)])
    nearest = np.linalg.norm(scaled[:, None] - centres, axis=-1).argmin(1)
    correct = nearest == classes
    assert 0.1 < correct.mean() < 0.6
    assert max(correct[classes == k].mean() for k in range(20)) < 1.0
    tree = grow_tree(settings.seed, 4, 2, 5, 0.5)
    for first, second in ((a, b) for a in tree for b in tree if a.twin and a.note and a.name < b.name):
        if first.look != second.look:
            continue
        pair = np.isin(classes, (first.class_id, second.class_id))
        distances = np.linalg.norm(scaled[pair][:, None] - centres[[first.class_id, second.class_id]], axis=-1)
        told = distances.argmin(1) == (classes[pair] == second.class_id)
        assert 0.7 < told.mean() < 1.0


def test_impossible_numbers_are_refused_by_key(tmp_path: Path) -> None:
    for change, key in (
        ({"species_per_genus": 1}, "demo.species_per_genus"),
        ({"species_per_genus": 5000}, "demo.species_per_genus"),
        ({"in_class_share": 0.0}, "demo.in_class_share"),
        ({"in_class_share": 1.0}, "demo.foreign_share"),
        ({"labeled_per_class": (4, 3)}, "demo.labeled_per_class"),
        ({"side": 8}, "demo.side"),
    ):
        with pytest.raises(ValueError, match=re.escape(key)):
            generate_demo(tmp_path, workers=1, **{**vars(TINY), **change})
    assert not any(tmp_path.iterdir())


def test_a_run_that_fails_leaves_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labeled.json").write_text("{}")

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(dataset, "take_photo", fail)
    with pytest.raises(OSError, match="disk full"):
        draw(tmp_path)
    assert not list(tmp_path.glob("*.json")) and not (tmp_path / "photos").exists()


def test_contact_sheet_is_a_picture_of_modest_size(demo: Path, tmp_path: Path) -> None:
    target = tmp_path / "sheet.jpg"
    draw_contact_sheet(demo, target, settings=TINY, genera=3, siblings=2, columns=3)
    first = target.read_bytes()
    draw_contact_sheet(demo, target, settings=TINY, genera=3, siblings=2, columns=3)
    assert target.read_bytes() == first and len(first) < 400_000
    with Image.open(target) as sheet:
        assert sheet.width > 600 and sheet.height > 400 and np.asarray(sheet).std() > 20

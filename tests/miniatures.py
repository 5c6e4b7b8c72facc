"""Miniatures: the Semi-iNat and iNat 2021 folders with a few drawn photos, COCO documents, a decompression bomb."""

import csv
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PHYLA = (("Animalia", "Chordata"), ("Animalia", "Arthropoda"), ("Plantae", "Tracheophyta"))


def make_semi_inat(
    root: Path,
    annotation: str = "annotation_v2.json",
    *,
    classes: int = 4,
    labeled: int = 5,
    val: int = 2,
    unlabeled: int = 24,
    test: int = 8,
    truth: bool = False,
) -> None:
    """Make ``l_train/<class>/``, ``val/<class>/``, ``u_train/u_train_1/``, ``test/`` and the annotations.

    Args:
        root: the folder, made if need be.
        annotation: name of the JSON file.
        classes: labeled classes; their phyla take turns.
        labeled: photos per class in l_train.
        val: photos per class in val.
        unlabeled: photos in u_train; every other one is of a labeled class.
        test: photos in test.
        truth: whether to write ``hidden/truth.csv`` as well, as the grocery set has it.
    """
    draws = np.random.default_rng(0)
    for number in range(classes):
        for index in range(labeled):
            _draw(root / f"l_train/{number}/{index}.jpg", draws)
        for index in range(val):
            _draw(root / f"val/{number}/{index}.jpg", draws)
    for index in range(unlabeled):
        _draw(root / f"u_train/u_train_1/u{index}.jpg", draws)
    for index in range(test):
        _draw(root / f"test/t{index}.jpg", draws)
    ranks = ("class", "order", "family", "genus", "species")
    document = {
        "info": {"description": "miniature"},
        "annotations": [
            {"class_id": number, **_phylum(number), **{rank: f"{rank} {number}" for rank in ranks}}
            for number in range(classes)
        ],
        "unlabeled_taxa": [{"image_name": f"u{index}.jpg", **_phylum(index)} for index in range(unlabeled)],
    }
    (root / annotation).write_text(json.dumps(document), encoding="utf-8")
    if truth:
        rows = [(f"u_train/u_train_1/u{index}.jpg", index % classes if index % 2 else -1) for index in range(unlabeled)]
        rows += [(f"test/t{index}.jpg", index % classes) for index in range(test)]
        (root / "hidden").mkdir()
        with (root / "hidden/truth.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("file_name", "category_id"), *rows])


def make_inat_2021(root: Path, classes: int = 6, train: int = 4, val: int = 3, test: int = 8) -> None:
    """Make ``train/<class>/``, ``val/<class>/``, ``public_test/`` and their JSON files.

    Places and dates are as the set has them: mostly there, some null, and uncertainties that cannot be true.
    """
    draws = np.random.default_rng(0)
    names = [f"{number:05d}_Animalia_Species_{number}" for number in range(classes)]
    ranks = ("kingdom", "phylum", "class", "order", "family", "genus", "specific_epithet")
    categories = [
        {
            "id": number,
            "name": f"Species {number}",
            "image_dir_name": name,
            **{rank: f"{rank} {number}" for rank in ranks},
        }
        for number, name in enumerate(names)
    ]
    first = 0
    for split, counts in (("train", [train] * classes), ("val", [val] * classes), ("public_test", [test])):
        images, annotations = [], []
        for label, count in enumerate(counts):
            for _ in range(count):
                folder = split if split == "public_test" else f"{split}/{names[label]}"
                images.append(_inat_image(first, f"{folder}/{first:08x}.jpg", draws))
                annotations.append({"id": first, "image_id": first, "category_id": label})
                _draw(root / images[-1]["file_name"], draws)
                first += 1
        document = {"images": images}
        if split != "public_test":
            document |= {"annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(document), encoding="utf-8")


def _inat_image(number: int, file: str, draws: np.random.Generator) -> dict[str, Any]:
    image: dict[str, Any] = {"id": number, "file_name": file, "width": 40, "height": 30, "license": 0}
    image |= {"latitude": None, "longitude": None, "location_uncertainty": None, "date": None}
    if number % 7:
        image |= {"latitude": float(draws.uniform(-60, 60)), "longitude": float(draws.uniform(-180, 180))}
        image["location_uncertainty"] = (None, 12, 350, -1, 100_000_000)[number % 5]
    if number % 11:
        image["date"] = f"2019-{number % 12 + 1:02d}-15 {number % 24:02d}:30:00+00:00"
    return image


def _phylum(number: int) -> dict[str, str]:
    return dict(zip(("kingdom", "phylum"), PHYLA[number % len(PHYLA)], strict=True))


def _draw(path: Path, draws: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draws.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)


def coco(**splits: dict) -> dict[str, dict]:
    """One COCO document per split: six photos of two classes; keyword arguments replace documents."""
    categories = [
        {"id": 7, "name": "b", "family": "F7", "order": "O"},
        {"id": 3, "name": "a", "family": "F3", "order": "O"},
    ]
    place = {"latitude": 0.0, "longitude": 190.5, "location_uncertainty": -1, "date": "2021-06-03 10:00:00+00:00"}
    documents = {
        "labeled": {
            "images": [{"id": 1, "file_name": "x/1.jpg", **place}, {"id": "2", "file_name": "x/2.jpg"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]},
                {"id": 2, "image_id": 1, "category_id": 3, "bbox": [5, 6, 30, 40]},
                {"id": 3, "image_id": "2", "category_id": 7},
            ],
            "categories": categories,
        },
        "unlabeled": {
            "images": [{"id": 5, "file_name": "u/5.jpg", "family": "F3", "order": "O"}],
            "annotations": [{"id": 1, "image_id": 5, "category_id": -1}],
        },
        "val": {
            "images": [{"id": 8, "file_name": "v/8.jpg"}],
            "annotations": [{"id": 1, "image_id": 8, "category_id": 7}],
        },
        "test": {"images": [{"id": 9, "file_name": "t/9.jpg", "latitude": float("nan"), "longitude": 10**400}]},
    }
    return {**documents, **splits}


def write_coco(root: Path, documents: dict[str, dict]) -> dict[str, str]:
    """Write the documents, and tell the name of each split's file."""
    for split, document in documents.items():
        (root / f"{split}.json").write_text(json.dumps(document))
    return {split: f"{split}.json" for split in documents}


def bomb(path: Path) -> None:
    """A PNG of a few bytes that claims a billion pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))

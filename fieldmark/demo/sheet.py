"""A contact sheet of the demo set: sibling species row by row."""

import json
from itertools import zip_longest
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fieldmark.artifacts import SPLITS, write_atomically
from fieldmark.demo.records import DemoSettings, PlannedPhoto, plan_photos
from fieldmark.demo.species import Species

_TILE, _GAP, _CAPTION, _HEADING, _MARGIN = 96, 4, 17, 30, 18
_PAPER, _INK, _FAINT = (250, 248, 243), (46, 42, 38), (140, 74, 40)


def _choose_siblings(species: list[Species], count: int) -> list[Species]:
    """Take ``count`` siblings, in-class and foreign ones in turn, the first of a pair of twins left out."""
    pool = [one for one in species if one.twin == ""] or species
    known = [one for one in pool if one.class_id >= 0]
    foreign = [one for one in pool if one.class_id < 0]
    turns = [one for pair in zip(known, foreign, strict=False) for one in pair]
    rest = [one for one in known + foreign if one not in turns]
    return (turns + rest)[:count]


def _choose_genera(species: list[Species], count: int) -> list[list[Species]]:
    """Take ``count`` genera, one of each family in turn, those without twins first."""
    genera: dict[str, list[Species]] = {}
    for one in sorted(species, key=lambda one: (one.family, one.name)):
        genera.setdefault(one.genus, []).append(one)
    families: dict[str, list[list[Species]]] = {}
    for block in sorted(genera.values(), key=lambda block: any(one.twin for one in block)):
        families.setdefault(block[0].family, []).append(block)
    turns = zip_longest(*(families[family] for family in sorted(families)))
    return [block for turn in turns for block in turn if block is not None][:count]


def _cut_tile(path: Path, box: list[int]) -> Image.Image:
    """Cut a square round the animal, as tight as the photo allows."""
    with Image.open(path) as image:
        photo = image.convert("RGB")
    side = min(photo.width, photo.height, round(max(box[2:]) * 1.2))
    left = min(max(box[0] + box[2] // 2 - side // 2, 0), photo.width - side)
    top = min(max(box[1] + box[3] // 2 - side // 2, 0), photo.height - side)
    return photo.resize((_TILE, _TILE), Image.Resampling.LANCZOS, (left, top, left + side, top + side))


def _read_boxes(root: Path) -> dict[int, list[int]]:
    boxes: dict[int, list[int]] = {}
    for split in SPLITS:
        told = json.loads((root / f"{split}.json").read_text(encoding="utf-8"))
        boxes |= {one["image_id"]: one["bbox"] for one in told["annotations"]}
    return boxes


def draw_contact_sheet(
    root: Path, target: Path, *, settings: DemoSettings, genera: int = 4, siblings: int = 3, columns: int = 6
) -> None:
    """Draw photos of sibling species, a block per genus, a row per species, captioned in-class or foreign.

    Args:
        root: the folder that ``generate_demo`` filled.
        target: the JPEG to write.
        settings: what the set was drawn with; the names of foreign species stand in no file.
        genera: blocks, one genus of each family in turn; two blocks side by side.
        siblings: rows per block.
        columns: photos per row.
    """
    photos: dict[str, list[PlannedPhoto]] = {}
    for photo in plan_photos(settings):
        photos.setdefault(photo.species.name, []).append(photo)
    blocks = _choose_genera([one[0].species for one in photos.values()], genera)
    boxes = _read_boxes(root)

    wide = columns * (_TILE + _GAP) - _GAP
    high = _HEADING + siblings * (_TILE + _CAPTION + _GAP)
    rows = -(-len(blocks) // 2)
    sheet = Image.new("RGB", (2 * wide + 3 * _MARGIN, rows * high + (rows + 1) * _MARGIN // 2), _PAPER)
    pen = ImageDraw.Draw(sheet)
    heading, caption = ImageFont.load_default(17), ImageFont.load_default(12)
    for place, block in enumerate(blocks):
        left = _MARGIN + place % 2 * (wide + _MARGIN)
        top = _MARGIN // 2 + place // 2 * (high + _MARGIN // 2)
        pen.text((left, top + 4), f"{block[0].genus}, {block[0].family}", fill=_INK, font=heading)
        for row, one in enumerate(_choose_siblings(block, siblings)):
            y = top + _HEADING + row * (_TILE + _CAPTION + _GAP)
            known = one.class_id >= 0
            note = f"{one.name}, {one.common_name} ({'in-class' if known else 'foreign'})"
            pen.text((left, y), note, fill=_INK if known else _FAINT, font=caption)
            for column, photo in enumerate(photos[one.name][:columns]):
                tile = _cut_tile(root / photo.file_name, boxes[photo.index])
                sheet.paste(tile, (left + column * (_TILE + _GAP), y + _CAPTION))
    write_atomically(target, lambda path: sheet.save(path, format="JPEG", quality=86, optimize=True))

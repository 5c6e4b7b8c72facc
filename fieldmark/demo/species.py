"""The demo's tree of life: families, genera and species with their looks, ranges and flight seasons."""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from fieldmark.demo.names import draw_common_name, draw_epithet, draw_genus, name_family
from fieldmark.demo.patterns import FIELD_MARKS, PALETTES, PLANS, Mark, Palette, Plan, contrast
from fieldmark.demo.shapes import SHAPES, Shape

# One genus in so many has a pair of species with the same looks.
_TWIN_STEP = 4
# RGB steps between a field mark and the wing around it; below, siblings could not be told apart.
_LEAST_CONTRAST = 90.0
# The drawn country, in degrees.
LATITUDES = (38.0, 62.0)
LONGITUDES = (-8.0, 28.0)


@dataclass(frozen=True)
class Look:
    """All that a drawn specimen takes from its species."""

    shape: Shape
    palette: Palette
    plan: Plan
    mottling: float
    field_marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Habits:
    """Where and when a species flies: means and standard deviations, in degrees and in days of the year."""

    latitude: float
    longitude: float
    spread: float
    day: float
    day_spread: float


@dataclass(frozen=True)
class Species:
    """A drawn species; ``class_id`` is -1 for a foreign one, ``note`` tells what sets a pair of twins apart."""

    family: str
    genus: str
    epithet: str
    common_name: str
    look: Look
    habits: Habits
    class_id: int = -1
    twin: str = ""  # "" | "range" | "season"
    note: str = ""

    @property
    def name(self) -> str:
        """The binomial."""
        return f"{self.genus} {self.epithet}"


def _mark_sets(
    rng: np.random.Generator, drawn: tuple[Mark, ...], shape: Shape, palette: Palette, count: int
) -> list[tuple[Mark, ...]]:
    """Draw distinct field marks that show on the pattern; two at a time once single ones run out."""
    singles = [
        marks
        for _, marks in FIELD_MARKS
        if max(contrast(mark, drawn, shape.forewing, palette) for mark in marks) >= _LEAST_CONTRAST
    ]
    order = [singles[i] for i in rng.permutation(len(singles))]
    if count > len(order):
        pairs = [a + b for a, b in combinations(singles, 2)]
        order += [pairs[i] for i in rng.permutation(len(pairs))]
    if count > len(order):
        raise ValueError(f"demo.species_per_genus: expected at most {len(order)}, found {count}; add genera instead")
    return order[:count]


def _draw_habits(rng: np.random.Generator) -> Habits:
    return Habits(
        latitude=float(rng.uniform(LATITUDES[0] + 5, LATITUDES[1] - 5)),
        longitude=float(rng.uniform(LONGITUDES[0] + 8, LONGITUDES[1] - 8)),
        spread=float(rng.uniform(3.0, 5.0)),
        day=float(rng.uniform(150, 225)),
        day_spread=float(rng.uniform(16, 26)),
    )


def _make_twins(first: Species, second: Species, kind: str) -> tuple[Species, Species]:
    """Give ``second`` the looks of ``first``, and set the two apart in space or in time."""
    habits = replace(first.habits, spread=2.8, day_spread=18.0)
    if kind == "range":
        north = replace(habits, latitude=habits.latitude + 4.5)
        south = replace(habits, latitude=habits.latitude - 4.5)
        told = (north, "northern"), (south, "southern")
    else:
        early = replace(habits, day=habits.day - 32)
        late = replace(habits, day=habits.day + 32)
        told = (early, "early"), (late, "late")
    second = replace(second, look=first.look)
    return tuple(  # type: ignore[return-value]
        replace(one, habits=h, twin=kind, note=f"looks like {other.name}; this is the {word} one of the two")
        for one, other, (h, word) in zip((first, second), (second, first), told, strict=True)
    )


def _draw_looks(rng: np.random.Generator, shape: Shape, palette: Palette, plan: int, count: int) -> list[Look]:
    """Draw the looks of one genus: alike but for the field marks."""
    waves = float(rng.uniform(0.012, 0.05))
    drawn = PLANS[plan](float(rng.uniform(0.28, 0.4)), waves, int(rng.integers(2, 5)))
    mottling = float(rng.uniform(0.08, 0.28))
    looks = []
    for marks in _mark_sets(rng, drawn[0], shape, palette, count):
        scaled = tuple(replace(mark, size=mark.size * shape.mark_scale) for mark in marks)
        looks.append(Look(shape, palette, drawn, mottling, scaled))
    return looks


def _quotas(rng: np.random.Generator, genera: int, species: int, share: float) -> list[int]:
    """Share the in-class places among the genera so that each has in-class and foreign species."""
    if share >= 1:
        return [species] * genera
    wanted = round(share * genera * species)
    quotas = [min(max(int(share * species), 1), species - 1)] * genera
    for genus in rng.permutation(genera):
        if sum(quotas) < wanted and quotas[genus] < species - 1:
            quotas[genus] += 1
    return quotas


def grow_tree(
    seed: int, families: int, genera_per_family: int, species_per_genus: int, in_class_share: float
) -> list[Species]:
    """Draw all species of the demo, in-class ones numbered from 0.

    Within a genus, species differ by a field mark; in one genus of four the first two look the same and differ in
    range or in season. Every genus has in-class and foreign species (unless all are in-class): look-alikes.

    Raises:
        ValueError: if the numbers cannot be met.
    """
    for key, value, least in (
        ("families", families, 1),
        ("genera_per_family", genera_per_family, 1),
        ("species_per_genus", species_per_genus, 2),
    ):
        if value < least:
            raise ValueError(f"demo.{key}: expected at least {least}, found {value}")
    if not 0 < in_class_share <= 1:
        raise ValueError(f"demo.in_class_share: expected a share above 0 and up to 1, found {in_class_share}")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 0)))
    genera_names: set[str] = set()
    common_names: set[str] = set()
    quotas = _quotas(rng, families * genera_per_family, species_per_genus, in_class_share)
    shapes = rng.permutation(len(SHAPES))
    tree: list[Species] = []
    for family in range(families):
        shape = _vary_shape(rng, SHAPES[shapes[family % len(SHAPES)]])
        palettes, plans = rng.permutation(len(PALETTES)), rng.permutation(len(PLANS))
        genera = [draw_genus(rng, genera_names) for _ in range(genera_per_family)]
        for place, genus in enumerate(genera):
            number = len(tree) // species_per_genus
            palette = PALETTES[palettes[place % len(palettes)]]
            looks = _draw_looks(rng, shape, palette, int(plans[place % len(plans)]), species_per_genus)
            epithets: set[str] = set()
            members = [
                Species(
                    name_family(genera[0]),
                    genus,
                    draw_epithet(rng, epithets),
                    draw_common_name(rng, common_names),
                    look,
                    _draw_habits(rng),
                )
                for look in looks
            ]
            twins = number % _TWIN_STEP == 0 and quotas[number] >= 2
            if twins:
                kind = ("range", "season")[number // _TWIN_STEP % 2]
                members[:2] = _make_twins(members[0], members[1], kind)
            tree += _admit(rng, members, quotas[number], twins)
    return _number(rng, tree)


def _vary_shape(rng: np.random.Generator, shape: Shape) -> Shape:
    """Make a family's shape its own, so that two families never share one exactly."""
    swing = float(rng.normal(0, 2.0))
    outline = tuple(reach * float(rng.normal(1, 0.02)) for reach in shape.forewing.outline)
    return replace(
        shape,
        forewing=replace(shape.forewing.turned(swing), outline=outline),
        antenna_angle=shape.antenna_angle + float(rng.normal(0, 4)),
    )


def _admit(rng: np.random.Generator, members: list[Species], quota: int, twins: bool) -> list[Species]:
    """Mark ``quota`` members in-class (class_id 0 for now), twins first so that metadata can tell them apart."""
    rest = [int(i) for i in rng.permutation(np.arange(2 if twins else 0, len(members)))]
    admitted = {*([0, 1] if twins else []), *rest[: quota - 2 * twins]}
    return [replace(one, class_id=0) if i in admitted else one for i, one in enumerate(members)]


def _number(rng: np.random.Generator, tree: list[Species]) -> list[Species]:
    ids = iter(rng.permutation(sum(one.class_id == 0 for one in tree)))
    return [replace(one, class_id=int(next(ids))) if one.class_id == 0 else one for one in tree]

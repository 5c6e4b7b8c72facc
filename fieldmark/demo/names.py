"""Invented Latin-looking names for the drawn moths, from a seeded syllable grammar."""

import numpy as np

_GRAMMAR = (
    "b br c cal d dr f fl g gl h l lam m n o p phal pl r s sel st t tr v z",
    "al an ar el en er il in ir ol on or ul un ur ax eph ith och yr",
    "ia ina ora yla aria esta odes omia ella ura",
    "ana ata ella osa ina aria alis ica ita ula",
    "Amber Ashen Brindled Clouded Dusky Faint Frosted Gilded Hazel Lesser Marbled Mottled Pale Russet Scarce Silvery "
    "Slender Smoky Tawny Twilight Veiled Waved",
    "Carpet Cloak Dagger Ember Footman Lantern Mantle Satin Shroud Silk Spinner Tiger Velvet Wainscot",
)
_ONSETS, _MIDDLES, _GENUS_ENDINGS, _EPITHET_ENDINGS, _ADJECTIVES, _NOUNS = (words.split() for words in _GRAMMAR)


def _draw(rng: np.random.Generator, taken: set[str], endings: list[str]) -> str:
    while True:
        syllables = int(rng.integers(1, 3))
        word = "".join(str(rng.choice(_ONSETS)) + str(rng.choice(_MIDDLES)) for _ in range(syllables))
        word += str(rng.choice(endings))
        if word not in taken and 5 <= len(word) <= 13:
            taken.add(word)
            return word


def draw_genus(rng: np.random.Generator, taken: set[str]) -> str:
    """Draw a genus name that is not in ``taken``, and add it there."""
    return _draw(rng, taken, _GENUS_ENDINGS).capitalize()


def draw_epithet(rng: np.random.Generator, taken: set[str]) -> str:
    """Draw a specific epithet that is not in ``taken``, and add it there."""
    return _draw(rng, taken, _EPITHET_ENDINGS)


def name_family(type_genus: str) -> str:
    """Form the family's name from that of its type genus, as zoologists do: stem and *-idae*."""
    return type_genus.rstrip("aeiousy") + "idae"


def draw_common_name(rng: np.random.Generator, taken: set[str]) -> str:
    """Draw an English name that is not in ``taken``, and add it there; adjectives pile up as names run short."""
    attempt = 0
    while True:
        adjectives = rng.choice(_ADJECTIVES, size=1 + attempt // 100, replace=False)
        name = " ".join([*map(str, adjectives), str(rng.choice(_NOUNS))])
        if name not in taken:
            taken.add(name)
            return name
        attempt += 1

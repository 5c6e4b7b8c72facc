"""Write the tables of docs/faults.md from what really happens: ``python -m tests.write_fault_tables``."""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.documents import FAULTS, write_part
from tests.fault_annotations import annotation_outcomes
from tests.fault_photos import photo_outcomes
from tests.fault_troubles import trouble_outcomes

LONGEST = 300  # letters of an outcome
PARTS: dict[str, tuple[str, Callable[[Path], Sequence[tuple[Any, str]]]]] = {
    "photos": ("photo", photo_outcomes),
    "annotations": ("in the annotations", annotation_outcomes),
    "troubles": ("trouble", trouble_outcomes),
}


def render(part: str, folder: Path) -> str:
    """One table, made in an empty folder."""
    heading, outcomes = PARTS[part]
    rows = [f"| {case.what} | {_cell(outcome)} |" for case, outcome in outcomes(folder)]
    return "\n".join([f"| {heading} | outcome |", "|---|---|", *rows])


def _cell(outcome: str) -> str:
    # How a library describes damage is left out: it is in the message, but changes with the library's version.
    plain = re.sub(r"(nothing else, found:) .*", r"\1 …", outcome)
    plain = re.sub(r"(damaged[^(]*)\(.*\)(; [^()]*)?$", r"\1(…)\2", plain, flags=re.DOTALL)
    plain = " ".join(plain.split()).replace("|", "\\|").replace("<", "&lt;")
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"


def main() -> None:
    """Write all tables."""
    for part in PARTS:
        with tempfile.TemporaryDirectory() as folder:
            write_part(FAULTS, part, render(part, Path(folder)))


if __name__ == "__main__":
    main()

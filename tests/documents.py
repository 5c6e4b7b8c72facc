"""The parts of documents that tests write: between ``<!-- name -->`` and ``<!-- end of name -->``."""

from pathlib import Path

from tests.project import ROOT

FAULTS = ROOT / "docs/faults.md"


def read_part(document: Path, name: str) -> str:
    """The text between the marks of a part, without the blank lines around it."""
    return document.read_text(encoding="utf-8").partition(f"<!-- {name} -->")[2].partition("<!-- end of")[0].strip()


def write_part(document: Path, name: str, text: str) -> None:
    """Replace the text between the marks of a part.

    Raises:
        ValueError: if the document has no such part.
    """
    whole = document.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if start not in whole or end not in whole:
        raise ValueError(f"{document}: expected the marks {start} and {end}")
    before, _, rest = whole.partition(start)
    document.write_text(f"{before}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")

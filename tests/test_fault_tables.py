"""The tables of docs/faults.md are what really happens; making them also asserts what is used, refused, or goes on."""

from pathlib import Path

import pytest

from tests.documents import FAULTS, read_part
from tests.kill_run import STAGES
from tests.write_fault_tables import PARTS, render


@pytest.mark.filterwarnings("ignore")  # of libraries, on purpose-made nonsense
@pytest.mark.parametrize("part", PARTS)
def test_the_documented_outcomes_are_the_real_ones(part: str, tmp_path: Path) -> None:
    # If this fails and the new outcome is meant: python -m tests.write_fault_tables
    assert read_part(FAULTS, part) == render(part, tmp_path)


def test_the_kill_run_is_documented_with_no_differing_byte() -> None:
    table = read_part(FAULTS, "kills")
    assert all(f"| `{stage}` |" in table for stage in STAGES)
    assert "**0 files and 0 bytes differ.**" in table

"""The committed manual is what the records say today."""

from pathlib import Path

import pytest

from systolith.isa import INSTRUCTIONS
from systolith.isa.manual import pages

DOCS = Path(__file__).parents[2] / "docs" / "isa"


@pytest.mark.parametrize("name", pages())
def test_page_is_current(name):
    assert (DOCS / name).read_text() == pages()[name], "run `python -m systolith.isa.manual` and review the change"


def test_every_instruction_has_a_page_and_no_page_is_left_over():
    assert {p.name for p in DOCS.iterdir()} == set(pages())
    assert len(pages()) == len(INSTRUCTIONS) + 3


def test_a_page_has_every_part():
    for cls in INSTRUCTIONS.values():
        text = pages()[f"{cls.NAME.lower()}.md"]
        for part in ("## Syntax", "## Bits", "## Definition", "def execute", "## Cycles", "## Errors"):
            assert part in text, (cls.NAME, part)

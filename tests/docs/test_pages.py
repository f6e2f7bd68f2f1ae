"""Every block of the pages that teach runs, and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.page import ROOT, pattern, play, tidy

PAGES = [ROOT / "docs" / "extending.md", *sorted((ROOT / "docs" / "tutorial").glob("*.md"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs_as_it_is_shown(page: Path, tmp_path: Path) -> None:
    assert play(page, tmp_path) == []


def test_a_page_that_shows_something_else_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python file=a.py\nprint(1)\n```\n```console\n$ export WHO=you\n$ python a.py\n1\n```\n"
        "```console\n$ echo $WHO; cat a.py\nyou\n...\n$ python a.py\n2\n$ false\n```\n"
    )
    faults = play(page, tmp_path)
    assert [fault.split("\n")[0] for fault in faults] == [
        "page.md:9: python a.py must print",
        "page.md:9: false ended with 1:",
    ]


@pytest.mark.parametrize(
    ("shown", "printed", "equal"),
    [
        ("a\nb", "a\nb\n", True), ("a\nb", "a\nc", False), ("a...c", "abc", True), ("a...c", "abd", False),
        ("a\n...", "a\nb\nc", True), ("...\nc", "a\nc", True), ("...\nc", "a\nd", False), ("", "a", False),
        ("a\n...\nd", "a\nd", True), ("a.b", "axb", False),
    ],
)  # fmt: skip
def test_dots_stand_for_any_text(shown: str, printed: str, equal: bool) -> None:
    assert bool(re.fullmatch(pattern(shown.splitlines()), tidy(printed))) is equal

"""Put the tables of bench/results into README.md, between their marks, so that no figure is copied by hand."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["update"]

README = Path(__file__).parents[1] / "README.md"


def update(name: str, table: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    text = README.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text:
        return
    block = f"{start}\n\n{table}\n\n{end}"
    found = re.search(f"{re.escape(start)}(?:.*?{re.escape(end)})?", text, re.DOTALL)
    assert found is not None
    README.write_text(text[: found.start()] + block + text[found.end() :], encoding="utf-8")

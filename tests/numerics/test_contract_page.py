"""docs/numerics.md: its code runs, and every test it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/numerics.md").read_text()


def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_every_test_named_on_the_page_exists() -> None:
    defined = {
        name
        for folder in ("numerics", "reference")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(?:test_\w+\.py::)?(test_\w+)`", PAGE))
    assert len(named) > 25
    assert named <= defined
    for path, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE):
        assert f"def {name}(" in (Path(__file__).parent / path).read_text()

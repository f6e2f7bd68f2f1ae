"""Options of the whole suite. `pytest --update-golden` rewrites golden texts instead of comparing with them."""

from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite golden texts instead of comparing with them")


@pytest.fixture
def golden(request):
    """Compare a text with the golden file `golden/<name>` beside the test, or rewrite it with --update-golden."""

    def compare(name: str, text: str) -> None:
        path = Path(request.path).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path.name} is missing; run pytest --update-golden and review it"
        assert text == path.read_text(), f"{path.name} differs; run pytest --update-golden and review the difference"

    return compare

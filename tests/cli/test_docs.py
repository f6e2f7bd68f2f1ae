"""docs/cli.md names every command, option and key there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from systolith.cli import app
from tests.cli.test_generate import KEYS

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_is_described(name: str) -> None:
    assert f"systolith {name}" in PAGE
    for parameter in COMMANDS[name].params:
        flags = [flag for flag in parameter.opts if flag.startswith("--") and flag not in ("--help", "--output")]
        assert all(f"{flag}" in PAGE for flag in flags), parameter.opts


def test_every_key_is_described() -> None:
    assert all(f"`{key}`" in PAGE for key in KEYS)

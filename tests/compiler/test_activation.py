"""Activations from outside of the package: what they must be. docs/extending.md has one that runs (tests/docs)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import pytest

from systolith.compiler.kernels.activation import ENTRY_POINTS, Activation, activations
from systolith.spec.errors import ModelError


@dataclass
class _Point:
    loaded: object
    name: str = "mine"
    value: str = "mine:X"

    def load(self) -> object:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    activations.cache_clear()
    yield
    activations.cache_clear()


MINE = Activation("relu2_mul", lambda tile: None)


def points(monkeypatch: pytest.MonkeyPatch, *loaded: object) -> None:
    def found(group: str) -> list[_Point]:
        assert group == ENTRY_POINTS
        return [_Point(each) for each in loaded]

    monkeypatch.setattr(metadata, "entry_points", found)


def test_one_from_outside_stands_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, MINE)
    assert list(activations()) == ["silu_mul", "gelu_mul", "relu2_mul"]
    assert activations()["relu2_mul"] is MINE


@pytest.mark.parametrize(
    ("loaded", "sentence"),
    [
        (
            [ImportError("no module x")],
            r"cannot be loaded \(ImportError: no module x\); repair or uninstall its package",
        ),
        ([3], "must be an Activation, is of type int; repair or uninstall its package"),
        ([Activation("silu_mul", MINE.emit)], "serves the operation silu_mul, which has a kernel already; give it .*"),
        ([Activation("add", MINE.emit)], "serves the operation add, which has a kernel already; give it another .*"),
        ([MINE, Activation("relu2_mul", MINE.emit)], "serves the operation relu2_mul, which has a kernel already; .*"),
    ],
)
def test_what_is_no_activation_is_refused(monkeypatch: pytest.MonkeyPatch, loaded: list[object], sentence: str) -> None:
    points(monkeypatch, *loaded)
    with pytest.raises(ModelError, match=rf"^entry point mine=mine:X of {ENTRY_POINTS} {sentence}$"):
        activations()

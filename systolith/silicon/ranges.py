"""Facts as ranges: three points of a distribution, where they come from, and draws of it.

A figure of this package is never a number alone. low, mid and high stand for P10, P50 and P90; draws follow a lognormal
law of two halves that has these three points, so that no area, price or energy is negative.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from systolith.spec.errors import ConfigError

__all__ = ["Array", "Draws", "Range", "facts", "find", "spread", "text", "total"]

Array = NDArray[np.float64]
_Z90 = 1.2815515655446004
"""Of the standard normal law: P(z <= this) = 0.9."""


@dataclass(frozen=True)
class Range:
    """A fact. low, mid, high : P10, P50, P90, all alike where a source gives one figure. confidence : "stated",
    "secondary", "derived" (worked out from stated ones), "uncertain" or "assumption"."""

    name: str
    item: str
    low: float
    mid: float
    high: float
    unit: str
    source: str
    date: str
    confidence: str
    notes: str = ""

    @property
    def key(self) -> str:
        """Name and item, as tables show them."""
        return f"{self.name} {self.item}".strip()

    def at(self, z: Array) -> Array:
        """Values at standard normal draws z [n]."""
        up, down = math.log(self.high / self.mid), math.log(self.mid / self.low)
        return self.mid * np.exp(np.where(z > 0, up, down) * z / _Z90)


@functools.cache
def facts() -> Mapping[tuple[str, str], Range]:
    """All facts of the package by (name, item)."""
    text = resources.files("systolith.silicon").joinpath("facts/process.csv").read_text(encoding="utf-8")
    found: dict[tuple[str, str], Range] = {}
    for row in csv.DictReader(text.splitlines()):
        mid = float(row["mid"])
        low, high = float(row["low"] or mid), float(row["high"] or mid)
        assert 0 < low <= mid <= high, row
        found[row["name"], row["item"]] = Range(
            row["name"], row["item"], low, mid, high, row["unit"], row["source"], row["date"], row["confidence"],
            row["notes"],
        )  # fmt: skip
    return MappingProxyType(found)


def find(name: str, item: str = "") -> Range:
    """The fact of an item, or the one that holds for all. Raises ConfigError: nothing is known of the item."""
    known = facts()
    found = known.get((name, item)) or known.get((name, ""))
    if found is None:
        items = ", ".join(i for n, i in known if n == name)
        raise ConfigError(f"{name} of {item!r} is not known; there are figures for {items}")
    return found


class Draws:
    """Draws of all facts for one question, alike in every use of a fact. What is asked for is remembered.

    count : draws; 1: every fact at its mid.    fixed : facts by key that take P10 (-1) or P90 (+1) in every draw.
    """

    def __init__(self, item: str, count: int = 4096, seed: int = 0, fixed: Mapping[str, int] | None = None) -> None:
        self.item, self.count, self.seed = item, count, seed
        self.fixed = dict(fixed or {})
        self.used: dict[str, Range] = {}

    def __call__(self, name: str, item: str | None = None) -> Array:
        """Draws [count] of a fact. Raises ConfigError."""
        fact = find(name, self.item if item is None else item)
        self.used[fact.key] = fact
        if fact.key in self.fixed:
            return np.full(self.count, fact.at(np.array([_Z90 * self.fixed[fact.key]]))[0])
        if self.count == 1:
            return np.array([fact.mid])
        # A stream of its own for each fact: what else is asked for does not move it.
        rng = np.random.default_rng([self.seed, *fact.key.encode()])
        return fact.at(rng.standard_normal(self.count))


def total(parts: Iterable[Array]) -> Array:
    """Sum of draws, draw by draw."""
    return np.asarray(np.sum(list(parts), axis=0), dtype=np.float64)


def spread(values: Array) -> dict[str, float]:
    """P10, P50 and P90 of draws."""
    return {f"p{q}": float(np.percentile(values, q)) for q in (10, 50, 90)}


def text(value: float) -> str:
    """Two digits, as no figure here carries a third."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:,.0f}" if digits <= 0 else f"{rounded:.{digits}f}"

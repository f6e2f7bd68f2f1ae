"""What can be bought or was published: each device, each field of it with its source, its date and how sure it is.

facts/devices.csv holds a line a field: figures as `low` and `high` where the source gives a range, and the source's own
words. A field that its source calls uncertain, or that comes from a source of second hand that calls itself weak, is
"uncertain"; what is worked out from one carries no conclusion.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

from systolith.spec.errors import ConfigError

__all__ = ["Device", "Fact", "devices", "find_device"]

GIB = float(1 << 30)


@dataclass(frozen=True)
class Fact:
    """A field of a device. low, high : None where the source gives no figure.      text : the source's own words.

    confidence : "stated", "secondary" or "uncertain".
    """

    low: float | None
    high: float | None
    unit: str
    text: str
    source: str
    date: str
    confidence: str

    @property
    def value(self) -> float | None:
        """The middle of the range."""
        return None if self.low is None or self.high is None else (self.low + self.high) / 2


@dataclass(frozen=True)
class Device:
    """A device. key : its short name.      generation : devices of one generation share their fitted scalars."""

    key: str
    facts: Mapping[str, Fact]

    def __hash__(self) -> int:
        return hash(self.key)

    def text(self, field: str) -> str:
        """A field in the source's words; "" where it has none."""
        fact = self.facts.get(field)
        return fact.text if fact else ""

    def figure(self, field: str) -> float | None:
        """A field's figure in its unit; None where there is none."""
        fact = self.facts.get(field)
        return fact.value if fact else None

    @property
    def name(self) -> str:
        """The name for people."""
        return self.text("name")

    @property
    def generation(self) -> str:
        """What shares its fitted scalars."""
        return self.text("generation")

    @property
    def on_chip(self) -> bool:
        """Whether weights and KV cache live in SRAM, there being no other memory."""
        return self.figure("bandwidth") is None and self.figure("sram_bandwidth") is not None

    @property
    def memory_bytes(self) -> float | None:
        """Bytes for weights and KV cache. A memory's GB are 2^30 bytes, as its dies are made; SRAM's MB are 10^6."""
        if self.on_chip:
            size = self.figure("sram")
            return None if size is None else size * 1e6
        size = self.figure("memory")
        return None if size is None else size * GIB

    @property
    def bytes_per_s(self) -> float | None:
        """Bandwidth of that memory."""
        rate = self.figure("sram_bandwidth" if self.on_chip else "bandwidth")
        return None if rate is None else rate * 1e12

    @property
    def link_bytes_per_s(self) -> float | None:
        """What a device sends to others of its group, one way."""
        fact = self.facts.get("link")
        if fact is None or fact.value is None:
            return None
        return fact.value * 1e9 / (1 if fact.unit.endswith("one way") else 2)

    def rate(self, kind: str) -> float | None:
        """Operations a second, dense, of "bf16", "fp8", "int8" or "fp4"; two for each multiply-add."""
        figure = self.figure(kind)
        return None if figure is None else figure * 1e12

    def uncertain(self, fields: Iterable[str]) -> list[str]:
        """Those of the fields that are uncertain, and "the whole row" where the device's own entry is."""
        found = ["the whole row"] if self.facts["name"].confidence == "uncertain" else []
        return found + [f for f in fields if f in self.facts and self.facts[f].confidence == "uncertain"]


@functools.cache
def devices() -> Mapping[str, Device]:
    """All devices by key."""
    found: dict[str, dict[str, Fact]] = {}
    text = resources.files("systolith.peers").joinpath("facts/devices.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        low, high = (float(row[name]) if row[name] else None for name in ("low", "high"))
        fact = Fact(low, high, row["unit"], row["text"], row["source"], row["date"], row["confidence"])
        found.setdefault(row["device"], {})[row["field"]] = fact
    return {key: Device(key, facts) for key, facts in found.items()}


def find_device(key: str) -> Device:
    """A device by its key. Raises ConfigError."""
    known = devices()
    if key not in known:
        raise ConfigError(f"device {key}: is not in the catalogue; known are {', '.join(known)}")
    return known[key]

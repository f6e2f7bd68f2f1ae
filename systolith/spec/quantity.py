"""Quantities as people write them: `65536`, `"64 KiB"`, `"240.625 GB/s"`, `"20 ns"`, `"1.6 GHz"`; exact inside.

GB is 10^9 bytes and GiB is 2^30 bytes, everywhere.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

__all__ = ["SCALES", "format_quantity", "parse_quantity"]

_DECIMAL: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_BYTES: Final = {f"{p}B": Fraction(s) for p, s in (_DECIMAL | _BINARY).items()} | {"KB": Fraction(1000)}

SCALES: Final[dict[str, dict[str, Fraction]]] = {
    "bytes": _BYTES,
    "bytes/s": {f"{u}/s": s for u, s in _BYTES.items()},
    "Hz": {f"{p}Hz": Fraction(s) for p, s in _DECIMAL.items()},
    "ns": {"ps": Fraction(1, 1000), "ns": Fraction(1), "us": Fraction(1000), "ms": Fraction(10**6)},
    "W": {"W": Fraction(1), "kW": Fraction(1000)},
}
"""Units that may be written for each kind of quantity, and how many of the base unit each is."""

_QUANTITY: Final = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z/]+)\s*")
_RATIO: Final = re.compile(r"([0-9]{1,6})(?:/([1-9][0-9]{0,5}))?")


def parse_quantity(value: object, kind: str) -> Fraction | None:
    """Read a number in the base unit, or text with a unit of `kind` (a key of SCALES, or "ratio" for "1/2").

    None where `value` is no such quantity: the caller knows the field's name and says so.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | Fraction):
        return Fraction(value)
    if not isinstance(value, str):
        return None
    if kind == "ratio":
        ratio = _RATIO.fullmatch(value)
        return Fraction(int(ratio[1]), int(ratio[2] or 1)) if ratio else None
    match = _QUANTITY.fullmatch(value)
    scale = SCALES.get(kind, {}).get(match[2]) if match else None
    return Fraction(match[1]) * scale if match and scale is not None else None


def format_quantity(value: Fraction | int, kind: str) -> str:
    """Write a quantity with the unit that reads best: binary prefixes for sizes round in them, else decimal."""
    value = Fraction(value)
    if kind == "bytes":
        for prefix, scale in reversed(_BINARY.items()):
            if value >= scale and (value / scale * 8).denominator == 1:
                return f"{_short(value / scale)} {prefix}B"
        return f"{_short(value)} B"
    if kind in ("bytes/s", "Hz"):
        base = "B/s" if kind == "bytes/s" else "Hz"
        for prefix, scale in reversed(_DECIMAL.items()):
            if value >= scale:
                return f"{_short(value / scale)} {prefix}{base}"
    return f"{_short(value)} {kind}" if kind in ("bytes/s", "Hz", "ns", "W") else _short(value)


def _short(value: Fraction) -> str:
    """Write at most six significant decimals, without trailing zeros, thousands with commas."""
    if value.denominator == 1:
        return f"{value.numerator:,}"
    digits = max(0, 6 - len(str(int(value))))
    return f"{float(value):,.{digits}f}".rstrip("0").rstrip(".")

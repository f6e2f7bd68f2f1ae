"""Number formats: one frozen record each, and the pairs of them that a block sum may multiply.

Elements are signed integers in a unit: value = values[code] * 2^unit_exp. INT8 is the floating format with 6 mantissa
bits and no exponent range, so that one rounding rule serves all three.

Source: OCP Microscaling Formats (MX) v1.0, section 5.3; docs/numerics.md rules 1 and 4.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from systolith.spec.errors import SystolithError

__all__ = [
    "BLOCK",
    "E2M1",
    "E4M3",
    "ELEMENT_FORMATS",
    "FORMATS",
    "FP32",
    "INT8",
    "INT32",
    "PAIRS",
    "SCALE_BIAS",
    "SCALE_NAN",
    "Format",
    "Pair",
    "decode_int",
    "element_format",
    "encode",
    "format_named",
    "pair_of",
]  # fmt: skip

BLOCK = 32
"""Elements in a block along the contraction axis."""

SCALE_BIAS = 127
"""Bias of an E8M0 scale code: code 127 is 2^0."""

SCALE_NAN = 0xFF
"""The E8M0 scale code of a block that holds a NaN or an infinity."""


@dataclass(frozen=True)
class Format:
    """A storage format an instruction descriptor may name. Equality and hash go by the name."""

    name: str
    bits: int = field(compare=False)
    """Storage bits of one value."""
    is_element: bool = field(compare=False)
    """Whether it is an element of MX blocks; the fields below are zero or empty if not."""
    emax: int = field(compare=False, default=0)
    """Exponent of the largest binade, subtracted when a scale is chosen (rule 4)."""
    min_exp: int = field(compare=False, default=0)
    """Exponent of the smallest normal binade; 0 for INT8, whose values below 1 are its subnormals."""
    mantissa_bits: int = field(compare=False, default=0)
    """Bits after the leading one."""
    max_units: int = field(compare=False, default=0)
    """Largest magnitude `encode` produces, in units: 12, 229376, 127."""
    values: tuple[int | None, ...] = field(compare=False, default=(), repr=False)
    """Value of each code in units of 2^unit_exp; None is NaN, -0 reads as 0."""
    codes: Mapping[int, int] = field(compare=False, default_factory=dict, repr=False)
    """Code of each value in units; never a code of -0 and never a NaN."""

    @property
    def unit_exp(self) -> int:
        """Exponent of the unit: -1 for E2M1, -9 for E4M3, -6 for INT8."""
        return self.min_exp - self.mantissa_bits

    @property
    def max_code(self) -> int:
        """Code of the largest value `encode` produces: 7, 0x7E, 0x7F."""
        return self.codes[self.max_units]

    @property
    def min_code(self) -> int:
        """Code of the most negative value `encode` produces: 0xF, 0xFE, 0x81."""
        return self.codes[-self.max_units]

    @property
    def nan_codes(self) -> tuple[int, ...]:
        """Codes that are NaN: 0x7F and 0xFF in E4M3, none elsewhere."""
        return tuple(code for code, units in enumerate(self.values) if units is None)


def _signed_magnitude(
    name: str, *, bits: int, emax: int, min_exp: int, mantissa_bits: int, nan_magnitude: int | None
) -> Format:
    sign = 1 << (bits - 1)
    positive: list[int | None] = []
    for code in range(sign):
        exponent, fraction = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        normal = ((1 << mantissa_bits) + fraction) << (exponent - 1) if exponent else fraction
        positive.append(None if code == nan_magnitude else normal)
    values = tuple(positive) + tuple(None if units is None else -units for units in positive)
    codes = {units: code for code, units in reversed(list(enumerate(values))) if units is not None}
    return Format(
        name,
        bits,
        True,
        emax,
        min_exp,
        mantissa_bits,
        max(units for units in values if units is not None),
        values,
        codes,
    )


E2M1 = _signed_magnitude("E2M1", bits=4, emax=2, min_exp=0, mantissa_bits=1, nan_magnitude=None)
"""MXFP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives."""

E4M3 = _signed_magnitude("E4M3", bits=8, emax=8, min_exp=-6, mantissa_bits=3, nan_magnitude=0x7F)
"""MXFP8: up to 448, down to 2^-9, no infinity."""

INT8 = Format(
    name="INT8", bits=8, is_element=True, emax=0, min_exp=0, mantissa_bits=6, max_units=127,
    values=tuple(range(128)) + tuple(range(-128, 0)),
    codes={units: units & 0xFF for units in range(-128, 128)},
)  # fmt: skip
"""MXINT8: two's complement in units of 2^-6; -128 is read but never produced."""

FP32 = Format(name="FP32", bits=32, is_element=False)
INT32 = Format(name="INT32", bits=32, is_element=False)

FORMATS: dict[str, Format] = {f.name: f for f in (E2M1, E4M3, INT8, FP32, INT32)}
"""Every storage format by name."""

ELEMENT_FORMATS: dict[str, Format] = {name: f for name, f in FORMATS.items() if f.is_element}
"""The element formats of MX blocks by name."""


@dataclass(frozen=True)
class Pair:
    """Two element formats a block sum may multiply, (activations, weights) in that order."""

    a: Format
    b: Format
    sum_bits: int
    """Bits of the exact sum of 32 products in two's complement, the codes of a checkpoint included."""

    @property
    def unit_exp(self) -> int:
        """Exponent of the unit of the exact sum."""
        return self.a.unit_exp + self.b.unit_exp

    @property
    def name(self) -> str:
        """Name as docs/numerics.md writes it, "E4M3xE2M1"."""
        return f"{self.a.name}x{self.b.name}"


def _pair(a: Format, b: Format) -> Pair:
    sides = [[units for units in f.values if units is not None] for f in (a, b)]
    extremes = [BLOCK * x * y for x in (min(sides[0]), max(sides[0])) for y in (min(sides[1]), max(sides[1]))]
    return Pair(a, b, max(max(extremes).bit_length(), (-min(extremes) - 1).bit_length()) + 1)


PAIRS: dict[tuple[str, str], Pair] = {
    (a.name, b.name): _pair(a, b) for a, b in ((E2M1, E2M1), (E4M3, E2M1), (INT8, E2M1), (E4M3, E4M3), (INT8, INT8))
}
"""The pairs of rule 1 by (name of the activations, name of the weights)."""


def format_named(name: str) -> Format:
    """Give the storage format of a name; raises SystolithError with the known names."""
    if name not in FORMATS:
        raise SystolithError(f"format={name!r} is not known: use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def element_format(name: str) -> Format:
    """Give the element format of a name; raises SystolithError with the known names."""
    if name not in ELEMENT_FORMATS:
        raise SystolithError(f"format={name!r} is not an element format: use one of {', '.join(ELEMENT_FORMATS)}")
    return ELEMENT_FORMATS[name]


def pair_of(a: Format, b: Format) -> Pair:
    """Give the pair record of (activations, weights); raises SystolithError with the allowed pairs."""
    pair = PAIRS.get((a.name, b.name))
    if pair is None:
        allowed = ", ".join(p.name for p in PAIRS.values())
        raise SystolithError(
            f"pair={a.name}x{b.name} (activations x weights) cannot be multiplied: use one of {allowed}"
        )
    return pair


def encode(fmt: Format, x_scaled: float) -> int:
    """Round a scaled value once to the element (RNE) and give its code; saturates, never gives -0 or -128.

    `x_scaled` is x * 2^-e, exact in binary64. Raises SystolithError if it is NaN or infinite: such a block has scale
    0xFF and zero codes, which `blocks.quantise_block` decides before.
    """
    if not math.isfinite(x_scaled):
        raise SystolithError(
            f"encode: x_scaled={x_scaled} has no {fmt.name} code; give the block scale 0xFF and zero codes"
        )
    units = math.ldexp(x_scaled, -fmt.unit_exp)
    _, exponent = math.frexp(units)  # 2^(exponent-1) <= |units| < 2^exponent
    drop = max(exponent - (fmt.mantissa_bits + 1), 0)  # last bits the binade of `units` has no room for
    rounded = round(math.ldexp(units, -drop)) << drop  # Python's round is RNE and exact
    return fmt.codes[max(-fmt.max_units, min(fmt.max_units, rounded))]


def decode_int(fmt: Format, code: int) -> int | None:
    """Give the value of a code in units of 2^fmt.unit_exp; None is NaN; a code of -0 reads as 0."""
    return fmt.values[code]

"""FP32 arithmetic as the numerics contract defines it: round to nearest, ties to even, gradual underflow.

An FP32 value is a Python float (binary64) that holds an FP32 value; every function here takes and returns such floats.
A NaN is any Python NaN and becomes the one bit pattern 0x7FC00000 in `to_bits`.

Source: docs/numerics.md rules 2, 5 and 7; IEEE 754-2019.
"""

import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

__all__ = [
    "EMPTY_M",
    "MAX_FINITE",
    "NAN_BITS",
    "add",
    "from_bits",
    "maximum",
    "minimum",
    "mul",
    "rne_shift",
    "round_f32",
    "round_fraction",
    "round_ratio",
    "round_scaled",
    "shift_add",
    "sub",
    "to_bits",
    "tree",
    "tree_sum",
]  # fmt: skip

NAN_BITS = 0x7FC00000
"""The only NaN the contract knows."""

MAX_FINITE = math.ldexp(0xFFFFFF, 104)
"""The largest finite FP32 value."""

EMPTY_M = -(2**31)
"""The exponent M of an attention partial that has seen no position (rule 7)."""

_PACK = struct.Struct("<f")
_WORD = struct.Struct("<I")
_OVERFLOW = 2.0**128
_Node = TypeVar("_Node")


def round_f32(x: float) -> float:
    """Round a binary64 value once to FP32."""
    try:
        return _PACK.unpack(_PACK.pack(x))[0]  # type: ignore[no-any-return]
    except OverflowError:  # struct refuses a finite value that rounds to infinity
        return math.copysign(math.inf, x)


def to_bits(x: float) -> int:
    """Give the 32 bits of an FP32 value; any NaN gives 0x7FC00000. `x` is rounded to FP32 first if it is not FP32."""
    if math.isnan(x):
        return NAN_BITS
    return _WORD.unpack(_PACK.pack(round_f32(x)))[0]  # type: ignore[no-any-return]


def from_bits(bits: int) -> float:
    """Give the FP32 value of 32 bits (0..2^32-1); every NaN pattern gives NaN."""
    value: float = _PACK.unpack(_WORD.pack(bits))[0]
    return math.nan if math.isnan(value) else value


def add(a: float, b: float) -> float:
    """Add two FP32 values with one rounding.

    The binary64 sum rounded again is right: 53 >= 2 * 24 + 2, and a sum below 2^-126 is exact (Figueroa 1995).
    """
    return round_f32(a + b)


def sub(a: float, b: float) -> float:
    """Subtract two FP32 values with one rounding."""
    return round_f32(a - b)


def mul(a: float, b: float) -> float:
    """Multiply two FP32 values with one rounding; the 48-bit product is exact in binary64."""
    return round_f32(a * b)


def maximum(a: float, b: float) -> float:
    """Give the larger value: NaN if either is NaN, +0 above -0."""
    if math.isnan(a) or math.isnan(b):
        return math.nan
    if a == b:
        return a if math.copysign(1.0, a) > 0 else b
    return max(a, b)


def minimum(a: float, b: float) -> float:
    """Give the smaller value: NaN if either is NaN, -0 below +0."""
    if math.isnan(a) or math.isnan(b):
        return math.nan
    if a == b:
        return a if math.copysign(1.0, a) < 0 else b
    return min(a, b)


def tree(nodes: Sequence[_Node], combine: Callable[[_Node, _Node], _Node]) -> _Node:
    """Combine one or more nodes by the balanced binary tree over their index (rule 5).

    Level by level, node 2i with 2i+1; an odd last node passes up unchanged.
    """
    level = list(nodes)
    while len(level) > 1:
        joined = [combine(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            joined.append(level[-1])
        level = joined
    return level[0]


def tree_sum(values: Sequence[float]) -> float:
    """Sum FP32 values by the balanced binary tree (rule 5); the sum of nothing is +0."""
    return tree(values, add) if len(values) else 0.0


def rne_shift(magnitude: int, shift: int) -> int:
    """Give magnitude / 2^shift rounded to the nearest integer, ties to even (magnitude >= 0, shift >= 1)."""
    return (magnitude + (1 << (shift - 1)) - 1 + (magnitude >> shift & 1)) >> shift


def round_scaled(mantissa: int, exponent: int) -> float:
    """Round the exact number mantissa * 2^exponent once to FP32.

    Zero gives +0; a number that underflows to zero keeps its sign. Any integers are allowed.
    """
    if mantissa == 0:
        return 0.0
    magnitude = abs(mantissa)
    top = magnitude.bit_length() + exponent  # 2^(top-1) <= |value| < 2^top
    if top > 128:
        value = math.inf
    elif top < -149:  # below 2^-150, half the smallest subnormal
        value = 0.0
    else:
        quantum = max(top - 24, -149)  # exponent of the last bit kept
        shift = quantum - exponent
        units = magnitude << -shift if shift <= 0 else rne_shift(magnitude, shift)
        value = math.ldexp(units, quantum)
        if value >= _OVERFLOW:
            value = math.inf
    return value if mantissa > 0 else -value


def round_ratio(numerator: int, denominator: int) -> float:
    """Round the exact rational numerator / denominator (denominator > 0) once to FP32; zero gives +0."""
    # 26 quotient bits or more, the last of them sticky, round as the whole quotient does.
    shift = max(0, 27 - (numerator.bit_length() - denominator.bit_length()))
    quotient, rest = divmod(abs(numerator) << shift, denominator)
    sticky = quotient * 2 + (rest != 0)
    return round_scaled(sticky if numerator >= 0 else -sticky, -shift - 1)


def round_fraction(value: Fraction) -> float:
    """Round an exact rational once to FP32; zero gives +0, a negative underflow -0."""
    return round_ratio(value.numerator, value.denominator)


def shift_add(a: float, ea: int, b: float, eb: int) -> tuple[float, int]:
    """Merge a * 2^ea and b * 2^eb (rule 7): (value, M), M = max(ea, eb), value = a * 2^(ea-M) + b * 2^(eb-M).

    The exact sum is rounded once to FP32, possibly to a subnormal. Zeros, infinities and NaN go as in an IEEE addition:
    a term that is not zero stays not zero however far it is shifted, so -1 shifted out against +0 gives -0.
    A side with M = EMPTY_M is an empty partial, whatever its value: the other side is returned unchanged, bit for bit.
    """
    if ea == EMPTY_M:
        return b, eb
    if eb == EMPTY_M:
        return a, ea
    m = max(ea, eb)
    if (a == 0.0 and b == 0.0) or not (math.isfinite(a) and math.isfinite(b)):
        return round_f32(a + b), m
    # FP32 values are integers in units of 2^-149; the smaller exponent becomes the common unit.
    units_a, units_b, low = int(math.ldexp(a, 149)), int(math.ldexp(b, 149)), min(ea, eb)
    exact = (units_a << (ea - low)) + (units_b << (eb - low))
    return round_scaled(exact, low - m - 149), m

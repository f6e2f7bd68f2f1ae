"""A second opinion on rounding, written apart from the package: compare exact rationals with the neighbours."""

import struct
from fractions import Fraction

from hypothesis import strategies as st

NAN = 0x7FC00000
INF = 0x7F800000
SIGN = 0x80000000
OVERFLOW = Fraction(2**128 - 2**103)  # halfway between the largest finite value and 2^128; ties go to infinity


def value(bits: int) -> Fraction:
    """Exact value of finite FP32 bits, from the fields."""
    exponent, fraction = bits >> 23 & 0xFF, bits & 0x7FFFFF
    assert exponent != 255
    magnitude = (
        Fraction(fraction, 2**149) if exponent == 0 else Fraction(2**23 + fraction) * Fraction(2) ** (exponent - 150)
    )
    return -magnitude if bits & SIGN else magnitude


def as_float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits_of(x: float) -> int:
    return NAN if x != x else struct.unpack("<I", struct.pack("<f", x))[0]


def rne(exact: Fraction) -> int:
    """FP32 bits nearest to an exact rational, by bisection over the bit patterns; ties to the even pattern."""
    magnitude, sign = abs(exact), SIGN if exact < 0 else 0
    if magnitude >= OVERFLOW:
        return sign | INF
    low, high = 0, INF - 1
    while low < high:  # the largest pattern whose value is not above the magnitude
        middle = (low + high + 1) // 2
        if value(middle) <= magnitude:
            low = middle
        else:
            high = middle - 1
    if low == INF - 1:
        return sign | low
    below, above = magnitude - value(low), value(low + 1) - magnitude
    return sign | (low if below < above or (below == above and low % 2 == 0) else low + 1)


SPECIALS = [
    0,
    1,
    2,
    0x7FFFFF,
    0x800000,
    0x800001,
    0x3F800000,
    0x3F7FFFFF,
    0x3F800001,
    0x4B800000,
    0x7F7FFFFF,
    0x7F000000,
    INF,
]
"""Bits of positive corner values."""

special_bits = st.sampled_from([b | s for b in SPECIALS for s in (0, SIGN)] + [NAN])
any_bits = special_bits | st.integers(0, 2**32 - 1)
finite_bits = any_bits.filter(lambda b: b >> 23 & 0xFF != 255)
near_bits = st.builds(
    lambda e, f, s: e << 23 | f | s << 31, st.integers(120, 134), st.integers(0, 2**23 - 1), st.integers(0, 1)
)
"""Values of like size, so that sums cancel and round."""


def is_nan(bits: int) -> bool:
    return bits & 0x7FFFFFFF > INF

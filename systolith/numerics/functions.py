"""The functions of the contract: rcp, rsqrt, fix, exp2fx and the sequences built on them (docs/numerics.md rule 5).

Everything is exact integer arithmetic with the roundings the contract names; no libm decides a bit.
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from systolith.numerics.constants import LOG2E
from systolith.numerics.fp32 import add, mul, rne_shift, round_ratio, round_scaled

__all__ = [
    "EXP2_T1", "EXP2_T2", "FX_MAX", "FX_MIN", "MASKED", "NAN_FX", "ceil_fx", "exp", "exp2_entry", "exp2_table",
    "exp2fx", "fix", "rcp", "rsqrt", "sigmoid", "silu",
]  # fmt: skip

MASKED = -(2**31)
"""The fixed-point score of a masked position; `fix` never gives it."""

NAN_FX = 2**31 - 1
"""The fixed-point score of a NaN."""

FX_MIN = -(2**31) + 1
"""The smallest fixed-point score of a number, that of -inf too."""

FX_MAX = 2**31 - 2
"""The largest fixed-point score of a number, that of +inf too."""


def rcp(x: float) -> float:
    """Give 1/x correctly rounded to FP32, for every FP32 x; rcp(+-0) = +-inf, rcp(+-inf) = +-0."""
    if math.isnan(x):
        return math.nan
    if x == 0.0:
        return math.copysign(math.inf, x)
    if math.isinf(x):
        return math.copysign(0.0, x)
    numerator, denominator = x.as_integer_ratio()
    return round_ratio(denominator, numerator) if numerator > 0 else round_ratio(-denominator, -numerator)


def rsqrt(x: float) -> float:
    """Give 1/sqrt(x) correctly rounded, for every FP32 x; rsqrt(+-0) = +-inf, below zero NaN, rsqrt(+inf) = +0."""
    if x == 0.0:
        return math.copysign(math.inf, x)
    if not x > 0.0:
        return math.nan
    if x == math.inf:
        return 0.0
    fraction, exponent = math.frexp(x)
    m, e = int(math.ldexp(fraction, 24)), exponent - 24  # x = m * 2^e, 2^23 <= m < 2^24
    if e % 2:
        m, e = m << 1, e - 1
    # q = floor(2^40 / sqrt(m)) has 27 bits or more; one sticky bit below it rounds as the real number does.
    q = math.isqrt((1 << 80) // m)
    sticky = q * q * m != 1 << 80
    return round_scaled(2 * q + sticky, -41 - e // 2)


def fix(y: float) -> int:
    """Give F = RNE(y * 2^16) of an FP32 y as int32; NaN gives NAN_FX, the rest is clamped to FX_MIN..FX_MAX."""
    if math.isnan(y):
        return NAN_FX
    if math.isinf(y):
        return FX_MAX if y > 0 else FX_MIN
    return max(FX_MIN, min(FX_MAX, round(y * 65536.0)))  # Python's round is RNE and exact


def ceil_fx(F: int) -> int:
    """Give ceil(F / 2^16), the integer maximum M of rules 7 and 8."""
    return -(-F >> 16)


def _powers_of_root(halvings: int, count: int) -> tuple[int, ...]:
    """Integers nearest to 2^27 * 2^(i / 2^halvings), i < count, proven by an error bound.

    The root comes from repeated integer square roots in 256-bit fixed point: each halves the error it is given and
    adds one unit at most, so the root is off by less than 2 units. A product with it grows the error by the factor of
    the root (2 over all 256), adds 2 * 2 units for the root's own error and 1 for the floor: less than 2^12 in the end.
    """
    bits = 256
    root = 2 << bits
    for _ in range(halvings):
        root = math.isqrt(root << bits)
    entries, power = [], 1 << bits
    for _ in range(count):
        low, high = (((power + error) >> (bits - 28)) + 1 >> 1 for error in (-(1 << 12), 1 << 12))
        assert low == high, "the error bound does not decide an entry of the exp2 table"
        entries.append(high)
        power = (power * root) >> bits
    return tuple(entries)


EXP2_T1: tuple[int, ...] = _powers_of_root(8, 256)
"""Integers nearest to 2^27 * 2^(i/256)."""

EXP2_T2: tuple[int, ...] = _powers_of_root(16, 256)
"""Integers nearest to 2^27 * 2^(j/65536)."""


def exp2_entry(fraction: int) -> int:
    """Give T[f] in units of 2^-23 (2^23..2^24-1): RNE of T1[f >> 8] * T2[f & 255] / 2^54 to 24 bits; f in 0..65535."""
    return rne_shift(EXP2_T1[fraction >> 8] * EXP2_T2[fraction & 255], 31)


@cache
def exp2_table() -> npt.NDArray[np.uint32]:
    """Give T as uint32 [65536] in units of 2^-23, read-only."""
    product = (np.array(EXP2_T1, np.uint64)[:, None] * np.array(EXP2_T2, np.uint64)[None, :]).reshape(-1)
    half = np.uint64((1 << 30) - 1)
    table = ((product + half + (product >> np.uint64(31) & np.uint64(1))) >> np.uint64(31)).astype(np.uint32)
    table.flags.writeable = False
    return table


def exp2fx(F: int, M: int = 0) -> float:
    """Give T[f mod 2^16] * 2^floor(f / 2^16) of f = F - M * 2^16, an exact integer of any size.

    MASKED gives +0 and NAN_FX gives NaN; both are recognised in F, before M is subtracted. A subnormal result rounds T
    once more, overflow is infinity.
    """
    if F == NAN_FX:
        return math.nan
    if F == MASKED:
        return 0.0
    f = F - (M << 16)
    return round_scaled(exp2_entry(f & 0xFFFF), (f >> 16) - 23)


def exp(y: float) -> float:
    """Give exp2fx(fix(RNE(y * RNE(log2 e))))."""
    return exp2fx(fix(mul(y, LOG2E)))


def sigmoid(x: float) -> float:
    """Give rcp(RNE(1 + exp(-x)))."""
    return rcp(add(1.0, exp(-x)))


def silu(x: float) -> float:
    """Give RNE(x * sigmoid(x)); silu(-inf) is NaN, as -inf * 0 is."""
    return mul(x, sigmoid(x))

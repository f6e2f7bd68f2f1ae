"""Cosine and sine of FP32 angles, correctly rounded, for whole tables.

A float64 evaluation with a proven error bound decides all but a few entries in 10^6; the rest goes to exact integer
arithmetic (Ziv 1991). Only IEEE additions, multiplications and rounding to integer are used, no libm.
"""

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from systolith.numerics import _exact
from systolith.numerics._exact import Enclosure, Interval

__all__ = ["cos_sin", "cos_sin_exact"]

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

_LIMIT = 2.0**24
_CHUNK = 1 << 18  # entries evaluated at a time: the temporaries stay in cache


def _split_half_pi() -> tuple[float, float, float]:
    """pi/2 = p1 + p2 + p3 + rest: p1 in units of 2^-27, p2 of 2^-55, both below 2^28 units, |rest| < 2^-108."""
    value = _exact.pi_fixed(201)  # pi/2 in units of 2^-202, off by 2 units at most
    p1 = value >> 175
    p2 = (value >> 147) - (p1 << 28)
    p3 = value - (((p1 << 28) + p2) << 147)
    return p1 * 2.0**-27, p2 * 2.0**-55, float(p3) * 2.0**-202


_P1, _P2, _P3 = _split_half_pi()
_TWO_OVER_PI = float(Fraction(1 << 202, _exact.pi_fixed(201)))


def _series(first: int) -> tuple[float, ...]:
    """Taylor coefficients (-1)^k / (2k + first)! for k = 0..8."""
    terms, value = [], Fraction(1)
    for k in range(9):
        terms.append(float(value))
        n = 2 * k + first
        value /= -(n + 1) * (n + 2)
    return tuple(terms)


_COS, _SIN = _series(0), _series(1)


def _one(bits: int) -> Interval:
    return Interval.exact(1)


def cos_sin_exact(angle: float, factor: Enclosure = _one) -> tuple[float, float]:
    """Give factor * (cos, sin) of one FP32 angle, correctly rounded by integer arithmetic; the definition, slow."""
    if angle == 0.0:
        return _exact.round_enclosed(factor), angle
    exact = Fraction(angle)  # the cosine and sine of a rational that is not 0 are irrational: the rounding ends
    cosine = _exact.round_enclosed(lambda bits: factor(bits) * _exact.cos_sin(exact, bits)[0])
    sine = _exact.round_enclosed(lambda bits: factor(bits) * _exact.cos_sin(exact, bits)[1])
    return cosine, sine


def cos_sin(angles: Float32s, factor: Enclosure | None = None) -> tuple[Float32s, Float32s]:
    """Give factor * (cos, sin) of finite FP32 angles of any shape, correctly rounded once to FP32.

    factor : above 0; None is 1.
    """
    flat = np.ascontiguousarray(angles, np.float32).reshape(-1)
    cosines, sines = np.empty_like(flat), np.empty_like(flat)
    definition = factor or _one
    times = float(definition(128).lo)
    for start in range(0, flat.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        cosines[part], sines[part], doubtful = _evaluate(flat[part], times)
        for index in np.flatnonzero(doubtful) + start:
            cosines[index], sines[index] = cos_sin_exact(float(flat[index]), definition)
    return cosines.reshape(angles.shape), sines.reshape(angles.shape)


def _evaluate(angles: Float32s, factor: float = 1.0) -> tuple[Float32s, Float32s, npt.NDArray[np.bool_]]:
    """Give factor times cosines and sines, and which entries the error bound leaves open.

    Bound, for |angle| <= 2^24. n = the nearest quarter turn, below 2^24. n * P1 and n * P2 have 52 bits: exact.
    angle - n * P1 is a multiple of 2^-27 below 1: exact. The next subtraction keeps its error (two-sum). n * P3, its
    rounding, the sum of the low parts and the rest of pi/2 err by less than 2^-83 together, and the last addition by
    2^-53 of the reduced angle, which is 2^-52 of the result at most. The series drop terms below 2^-56 of the result,
    and their some 30 roundings of terms no larger than the result's first one cost less than 2^-47 of it. So the error
    is below 2^-46 |value| + 2^-80, the `_margin`. A factor other than 1 and its product add 2^-51 |value| at most,
    within what the estimate leaves (it is near 2^-47), and scale the 2^-80.
    """
    x = angles.astype(np.float64)
    large = np.abs(x) > _LIMIT
    x = np.where(large, 0.0, x)
    n = np.rint(x * _TWO_OVER_PI)
    t = x - n * _P1
    hi, lo = _two_sum(t, -(n * _P2))
    reduced = hi + (lo - n * _P3)
    square = reduced * reduced
    cosine, sine = np.full_like(square, _COS[8]), np.full_like(square, _SIN[8])
    for k in range(7, -1, -1):
        cosine = cosine * square + _COS[k]
        sine = sine * square + _SIN[k]
    sine *= reduced
    quarter = n.astype(np.int64) & 3
    swap = (quarter & 1).astype(np.bool_)
    cos64 = np.where(swap, sine, cosine) * np.where((quarter == 1) | (quarter == 2), -1.0, 1.0)
    sin64 = np.where(swap, cosine, sine) * np.where(quarter >= 2, -1.0, 1.0)
    cos32, cos_open = _decide(cos64 * factor, factor)
    sin32, sin_open = _decide(sin64 * factor, factor)
    return cos32, sin32, cos_open | sin_open & (angles != 0.0) | large


def _two_sum(a: Float64s, b: Float64s) -> tuple[Float64s, Float64s]:
    """Give the rounded sum and its exact error (Knuth)."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def _margin(value: Float64s, factor: float = 1.0) -> Float64s:
    """Bound of the error of a value of `_evaluate`."""
    margin: Float64s = np.abs(value) * 2.0**-46 + factor * 2.0**-80
    return margin


def _decide(value: Float64s, factor: float = 1.0) -> tuple[Float32s, npt.NDArray[np.bool_]]:
    """Round to FP32 and tell where the error bound of `_evaluate` allows two results."""
    margin = _margin(value, factor)
    low, high = (value - margin).astype(np.float32), (value + margin).astype(np.float32)
    return value.astype(np.float32), low != high

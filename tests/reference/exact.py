"""Constants of the numerics contract from exact arithmetic: integers, fractions and `decimal`, never libm.

Each irrational number is computed with an error bound far below the distance to the nearest rounding boundary, and
that distance is asserted, so every constant is proved correctly rounded when it is made.
Source: the numerics contract, rule 5 ("Constants in a program ... are correctly rounded from exact arithmetic").
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

CONTEXT = Context(prec=80)  # ln, exp and sqrt of `decimal` are correctly rounded to 80 digits
RELATIVE_ERROR = Fraction(1, 10**70)  # of a few operations in CONTEXT
TRIG_BITS = 128  # fixed point of cosine and sine
TRIG_ERROR = 1 << 16  # bound of their error in units of 2^-TRIG_BITS: 40 truncations, and k * (error of pi/2)


def round_fp32(x: Fraction) -> np.float32:
    """Round a rational once to FP32: to nearest, ties to even, gradual underflow, overflow to infinity."""
    if x == 0:
        return np.float32(0)
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    unit = max(exponent - 23, -149)
    steps = round(x / Fraction(2) ** unit)  # Python rounds a Fraction half to even
    if abs(steps) * Fraction(2) ** unit >= Fraction(2) ** 128:
        return np.float32(math.copysign(math.inf, steps))
    return np.float32(math.ldexp(steps, unit))


def round_near(x: Fraction) -> np.float32:
    """Round to FP32 a number known within RELATIVE_ERROR, asserting that the error cannot matter."""
    low, high = round_fp32(x * (1 - RELATIVE_ERROR)), round_fp32(x * (1 + RELATIVE_ERROR))
    assert low == high, f"{float(x)!r} lies too near to a rounding boundary of FP32"
    return low


@cache
def log2_e() -> Fraction:
    """log2(e) within RELATIVE_ERROR."""
    return Fraction(CONTEXT.divide(Decimal(1), CONTEXT.ln(Decimal(2))))


@cache
def score_scale(head_dim: int, scale: float | None = None) -> np.float32:
    """RNE(log2(e) / sqrt(d)) of rule 7, d the unpadded head size; or RNE(scale * log2(e)), scale a binary64 number."""
    if scale is not None:
        return round_near(log2_e() * Fraction(scale))
    return round_near(log2_e() / Fraction(CONTEXT.sqrt(Decimal(head_dim))))


@cache
def gelu_constants() -> tuple[np.float32, np.float32]:
    """RNE(2 * sqrt(2/pi)) and RNE(2 * sqrt(2/pi) * 0.044715): tanh(z) is 2 * sigmoid(2 z) - 1."""
    twice = 2 * Fraction(CONTEXT.sqrt(_decimal(Fraction(1 << 320, _half_pi(320)))))
    return round_near(twice), round_near(twice * Fraction("0.044715"))


def round_fp32_of(x: float) -> np.float32:
    """A binary64 number of a config, rounded once to FP32."""
    return round_fp32(Fraction(x))


def reciprocal(n: int) -> np.float32:
    """RNE(1/n): the constant of a mean."""
    return round_fp32(Fraction(1, n))


# -- the table of exp2fx -------------------------------------------------------------------------------------------


@cache
def exp2_table() -> I64:
    """T of rule 5: int64 [65536] in units of 2^-23, 2^23 <= T < 2^24.

    2^(1/2^n) by n integer square roots of 2 in fixed point with 256 bits, the powers by multiplication; T1 and T2
    are the nearest integers to 2^27 * 2^(i/256) and 2^27 * 2^(j/65536); T is RNE of their product.
    """
    bits = 256
    root = 2 << bits
    roots = []
    for _ in range(16):
        root = math.isqrt(root << bits)
        roots.append(root)

    def powers(base: int) -> list[int]:
        value, out = 1 << bits, []
        for _ in range(256):
            out.append(_nearest(value, bits - 27, 1 << 20))
            value = value * base >> bits
        return out

    coarse, fine = np.array(powers(roots[7]), np.int64), np.array(powers(roots[15]), np.int64)
    product = (coarse[:, None] * fine[None, :]).reshape(-1)  # 2^54 <= product < 2^55
    half_up = (product + (1 << 30) - 1 + ((product >> 31) & 1)) >> 31
    table: I64 = half_up.astype(np.int64)
    table.setflags(write=False)
    return table


def _nearest(value: int, shift: int, error: int) -> int:
    """The integer nearest to value / 2^shift, asserting that an error of `error` units in value cannot matter."""
    steps, rest = value >> shift, value & ((1 << shift) - 1)
    assert abs(rest - (1 << (shift - 1))) > error, "too near to a tie"
    return steps + (rest >> (shift - 1))


# -- rotary tables -------------------------------------------------------------------------------------------------


def _arctan_inverse(n: int, bits: int) -> int:
    """arctan(1/n) in fixed point, truncated: each of about `bits` terms loses less than one unit."""
    power, total, k = (1 << bits) // n, 0, 0
    while power:
        total += (-power if k & 1 else power) // (2 * k + 1)
        power //= n * n
        k += 1
    return total


@cache
def _half_pi(bits: int) -> int:
    """pi/2 in fixed point by Machin's formula, 16 guard bits cut off."""
    guard = bits + 16
    return (8 * _arctan_inverse(5, guard) - 2 * _arctan_inverse(239, guard)) >> 16


def _cos_sin(angle: float) -> tuple[int, int]:
    """Cosine and sine of a finite float in fixed point 2^-TRIG_BITS, within TRIG_ERROR units."""
    bits = TRIG_BITS
    numerator, denominator = angle.as_integer_ratio()
    wide = bits + 32  # 24 bits of quadrants times the error of pi/2 stay far below one unit
    x = (numerator << wide) // denominator
    half_pi = _half_pi(wide)
    quadrant = (2 * x + half_pi) // (2 * half_pi)
    r = (x - quadrant * half_pi) >> 32
    square = r * r >> bits
    cosine = term = 1 << bits
    k = 0
    while term:
        k += 2
        term = (term * square >> bits) // ((k - 1) * k)
        cosine += term if k & 2 == 0 else -term
    sine = r
    negative, term, k = r < 0, abs(r), 1
    while term:
        k += 2
        term = (term * square >> bits) // ((k - 1) * k)
        sine += -term if (k & 2 != 0) != negative else term
    for _ in range(quadrant & 3):
        cosine, sine = -sine, cosine
    return cosine, sine


def _fixed_to_fp32(value: int, exact: bool) -> float:
    """Round a fixed-point number to FP32 (normal range), asserting that TRIG_ERROR cannot matter."""
    shift = abs(value).bit_length() - 24
    if value == 0 or shift <= 0:
        assert exact or value == 0
        return math.ldexp(value, -TRIG_BITS)
    magnitude = _nearest(abs(value), shift, TRIG_ERROR)
    return math.ldexp(-magnitude if value < 0 else magnitude, shift - TRIG_BITS)


def inverse_frequencies(head_dim: int, rope: dict[str, Any]) -> tuple[F32, Fraction]:
    """RNE(theta^(-2i/d)) [d/2] with the model's scaling inside the one rounding; and the factor on cos and sin.

    rope: rope_theta, rope_type ("default", "linear", "llama3", "yarn") and that type's parameters under their
    Hugging Face names; each number is taken exactly as its binary64 value. The factor is 1 but for YaRN.
    Source: the Llama 3.1 and YaRN (arXiv:2309.00071, section 3) formulas.
    """
    ctx, half, kind = CONTEXT, head_dim // 2, rope.get("rope_type", rope.get("type", "default"))
    log_theta = ctx.ln(Decimal(float(rope["rope_theta"])))
    plain = [
        Fraction(ctx.exp(ctx.divide(ctx.multiply(log_theta, Decimal(-2 * i)), Decimal(head_dim)))) for i in range(half)
    ]
    if kind == "default":
        return np.array([round_near(f) for f in plain], np.float32), Fraction(1)
    factor = Fraction(float(rope["factor"]))
    if kind == "linear":
        return np.array([round_near(f / factor) for f in plain], np.float32), Fraction(1)
    two_pi = Fraction(4 * _half_pi(320), 1 << 320)
    original = Fraction(rope["original_max_position_embeddings"])
    if kind == "llama3":
        low, high = Fraction(float(rope["low_freq_factor"])), Fraction(float(rope["high_freq_factor"]))
        scaled = []
        for f in plain:
            turns = original * f / two_pi  # of the original context
            smooth = min(max((turns - low) / (high - low), Fraction(0)), Fraction(1))
            scaled.append((1 - smooth) * f / factor + smooth * f)
        return np.array([round_near(f) for f in scaled], np.float32), Fraction(1)
    if kind != "yarn":
        raise ValueError(f"rope_type={kind!r} is not one of default, linear, llama3, yarn")

    def dimension(rotations: float) -> Fraction:
        """The (real) index of the pair that turns `rotations` times in the original context."""
        log = Fraction(ctx.ln(_decimal(original / (Fraction(rotations) * two_pi))))
        return head_dim * log / (2 * Fraction(log_theta))

    low, high = dimension(float(rope.get("beta_fast") or 32)), dimension(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = Fraction(math.floor(low)), Fraction(math.ceil(high))
    low, high = max(low, Fraction(0)), min(high, Fraction(head_dim - 1))
    width = high - low if high != low else Fraction(1, 1000)
    scaled = []
    for i, f in enumerate(plain):
        ramp = min(max((i - low) / width, Fraction(0)), Fraction(1))
        scaled.append(f / factor * ramp + f * (1 - ramp))
    attention = rope.get("attention_factor")
    if attention is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        over, under = (yarn_mscale(rope["factor"], rope[name]) for name in ("mscale", "mscale_all_dim"))
        attention = float(ctx.divide(over, under))
    if attention is None:
        attention = 1 + Fraction(1, 10) * Fraction(ctx.ln(_decimal(factor))) if factor > 1 else 1
    return np.array([round_near(f) for f in scaled], np.float32), Fraction(attention)


def yarn_mscale(factor: float | None, mscale: float | None) -> Decimal:
    """0.1 * mscale * ln(factor) + 1; 1 where there is neither, or the factor is at most 1."""
    if not factor or not mscale or factor <= 1:
        return Decimal(1)
    log = CONTEXT.ln(Decimal(factor))
    return CONTEXT.add(CONTEXT.multiply(CONTEXT.multiply(Decimal("0.1"), Decimal(mscale)), log), Decimal(1))


def _decimal(x: Fraction) -> Decimal:
    return CONTEXT.divide(Decimal(x.numerator), Decimal(x.denominator))


def rotary_table(positions: I64, head_dim: int, rope: dict[str, Any]) -> tuple[F32, F32]:
    """Cosines and sines, FP32 [positions, d/2], correctly rounded at the FP32 angle RNE(position * inv_freq_i)."""
    if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < 1 << 24:
        raise ValueError("positions must lie in 0..2^24-1")
    frequencies, factor = inverse_frequencies(head_dim, rope)
    angles = positions.astype(np.float32)[:, None] * frequencies[None, :]
    cosines, sines = np.empty(angles.shape, np.float32), np.empty(angles.shape, np.float32)
    one = factor == 1
    for index, angle in np.ndenumerate(angles):
        cosine, sine = _cos_sin(float(angle))
        if one:
            cosines[index] = _fixed_to_fp32(cosine, angle == 0)
            sines[index] = _fixed_to_fp32(sine, angle == 0)
        else:
            cosines[index] = _scaled_to_fp32(cosine, factor)
            sines[index] = _scaled_to_fp32(sine, factor)
    return cosines, sines


def _scaled_to_fp32(value: int, factor: Fraction) -> np.float32:
    """RNE(factor * cos): one rounding, asserting that TRIG_ERROR cannot matter."""
    unit = factor / (1 << TRIG_BITS)
    if value == 0:
        return np.float32(0)
    low, high = round_fp32((value - TRIG_ERROR) * unit), round_fp32((value + TRIG_ERROR) * unit)
    assert low == high, "too near to a rounding boundary"
    return low

"""Constants of a program, correctly rounded from exact arithmetic (docs/numerics.md rule 5).

Numbers of a model file (theta, scales, temperature, eps) are binary64 and enter exactly; the constant is rounded once.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from systolith.numerics import _exact
from systolith.numerics._exact import Interval
from systolith.numerics.fp32 import round_f32, round_fraction
from systolith.numerics.trig import cos_sin
from systolith.spec.errors import SystolithError

__all__ = [
    "LOG2E", "Interval", "Scaling", "eps_constant", "inverse_frequencies", "llama3_scaling", "mean_scale",
    "rotary_angles", "rotary_tables", "score_scale", "temperature_scale",
]  # fmt: skip

Float32s = npt.NDArray[np.float32]

LOG2E: float = _exact.round_enclosed(_exact.log2e)
"""RNE(log2 e), 0x3FB8AA3B."""

MAX_POSITION = 2**24
"""Positions are below this, so that they are FP32 integers."""


def score_scale(d: int, scale: float | None = None) -> float:
    """Give c of rule 7: RNE(log2(e) / sqrt(d)), d unpadded, or RNE(scale * log2(e)) of a model's scale."""
    if scale is not None:
        exact = _positive("score_scale: scale", scale)
        return _exact.round_enclosed(lambda bits: Interval.exact(exact) * _exact.log2e(bits))
    if d < 1:
        raise SystolithError(f"score_scale: d={d} must be 1 or more, the unpadded head size")
    return _exact.round_enclosed(lambda bits: _exact.log2e(bits) / _exact.sqrt(Fraction(d), bits))


def temperature_scale(temperature: float) -> float:
    """Give RNE(log2(e) / T) for a binary64 temperature above 0 (0 is argmax and needs no scale)."""
    exact = _positive("temperature", temperature)
    scale = _exact.round_enclosed(lambda bits: _exact.log2e(bits) / Interval.exact(exact))
    if math.isinf(scale):
        raise SystolithError(f"temperature={temperature} must be at least 2^-127; use 0 to take the largest logit")
    return scale


def mean_scale(D: int) -> float:
    """Give c = RNE(1/D) of RMSNorm, D the unpadded size."""
    if D < 1:
        raise SystolithError(f"mean_scale: D={D} must be 1 or more, the unpadded size")
    return round_fraction(Fraction(1, D))


def eps_constant(eps: float) -> float:
    """Give the binary64 eps of a model file rounded once to FP32."""
    return round_f32(eps)


Scaling = Callable[[int, Interval, int], Interval]
"""A change of the rotary frequencies inside the one rounding: (i, interval of theta^(-2i/d), bits) -> interval.

It may raise `_exact.Undecided` (by `Interval.below`, or by dividing by an interval that holds 0) to be asked again with
more bits.
"""


def llama3_scaling(factor: float, low_freq_factor: float, high_freq_factor: float, original_context: int) -> Scaling:
    """Give the frequency scaling of Llama 3.1, exact but for its pi.

    With turns = original_context * f / (2 pi): f above high_freq_factor turns, f / factor below low_freq_factor, and
    between them (1 - s) * f / factor + s * f, s = (turns - low) / (high - low).
    Source: Llama 3.1 model card, `rope_scaling` of type "llama3".
    """
    low, high = Fraction(low_freq_factor), Fraction(high_freq_factor)
    if not 0 < low < high:
        raise SystolithError(
            f"rope_scaling: low_freq_factor={low_freq_factor} must be above 0 and below "
            f"high_freq_factor={high_freq_factor}"
        )
    divisor = Interval.exact(_positive("rope_scaling: factor", factor))

    def scale(i: int, f: Interval, bits: int) -> Interval:
        turns = Interval.exact(Fraction(original_context, 2)) * f / _exact.pi(bits)
        if turns.below(low):
            return f / divisor
        if not turns.below(high):
            return f
        s = (turns - Interval.exact(low)) / Interval.exact(high - low)
        return (Interval.exact(1) - s) * f / divisor + s * f

    return scale


def inverse_frequencies(d: int, theta: float, scaling: Scaling | None = None) -> Float32s:
    """Give inv_freq_i = RNE(theta^(-2i/d)), FP32 [d/2]; `scaling` acts inside the one rounding; d: rotated size."""
    base = _positive("theta", theta)
    if d < 2 or d % 2:
        raise SystolithError(f"rotary: d={d} must be even and 2 or more, the rotated part of a head")

    def one(i: int) -> float:
        def enclose(bits: int) -> Interval:
            f = _exact.power(base, Fraction(-2 * i, d), bits)
            return scaling(i, f, bits) if scaling is not None else f

        return _exact.round_enclosed(enclose)

    return np.array([one(i) for i in range(d // 2)], np.float32)


def rotary_angles(positions: Sequence[int] | npt.NDArray[np.integer], inv_freq: Float32s) -> Float32s:
    """Give RNE(position * inv_freq), FP32 [P, d/2]; the 48-bit product is exact in binary64."""
    p = np.asarray(positions, np.int64)
    if p.size and not 0 <= p.min() <= p.max() < MAX_POSITION:
        raise SystolithError(f"rotary: position={p.min() if p.min() < 0 else p.max()} must be in 0..{MAX_POSITION - 1}")
    return (p.astype(np.float64)[:, None] * inv_freq.astype(np.float64)[None, :]).astype(np.float32)


def rotary_tables(
    d: int, theta: float, positions: int | Sequence[int] | npt.NDArray[np.integer], scaling: Scaling | None = None
) -> tuple[Float32s, Float32s]:
    """Give (cosines, sines), each FP32 [P, d/2], correctly rounded from the FP32 angle RNE(position * inv_freq_i).

    positions : a count P for 0..P-1, or the positions themselves, below 2^24.
    """
    where = np.arange(positions) if isinstance(positions, int) else np.asarray(positions)
    return cos_sin(rotary_angles(where, inverse_frequencies(d, theta, scaling)))


def _positive(name: str, value: float) -> Fraction:
    if not (math.isfinite(value) and value > 0):
        raise SystolithError(f"{name}={value} must be a finite number above 0")
    return Fraction(value)

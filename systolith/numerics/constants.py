"""Constants of a program, correctly rounded from exact arithmetic (docs/numerics.md rule 5).

Numbers of a model file (theta, scales, temperature, eps) are binary64 and enter exactly; the constant is rounded once.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import numpy as np
import numpy.typing as npt

from systolith.numerics import _exact
from systolith.numerics._exact import Enclosure, Interval, Undecided
from systolith.numerics.fp32 import round_f32, round_fraction
from systolith.numerics.trig import cos_sin
from systolith.spec.errors import SystolithError

__all__ = [
    "GELU_CUBIC", "GELU_LINEAR", "LOG2E", "Enclosure", "Interval", "Scaling", "eps_constant",
    "inverse_frequencies", "linear_scaling", "llama3_scaling", "mean_scale", "rotary_angles", "rotary_tables",
    "score_scale", "temperature_scale", "yarn_attention_factor", "yarn_scaling",
]  # fmt: skip

Float32s = npt.NDArray[np.float32]

LOG2E: float = _exact.round_enclosed(_exact.log2e)
"""RNE(log2 e), 0x3FB8AA3B."""


def _gelu(factor: Fraction) -> float:
    """RNE(2 * sqrt(2 / pi) * factor)."""

    def enclose(bits: int) -> Interval:
        ratio = Interval.exact(2) / _exact.pi(bits)
        root = Interval(_exact.sqrt(ratio.lo, bits).lo, _exact.sqrt(ratio.hi, bits).hi)
        return Interval.exact(2 * factor) * root

    return _exact.round_enclosed(enclose)


GELU_LINEAR: float = _gelu(Fraction(1))
"""RNE(2 * sqrt(2 / pi)): gelu_tanh(x) = x * sigmoid(x * (x^2 * GELU_CUBIC + GELU_LINEAR))."""
GELU_CUBIC: float = _gelu(Fraction("0.044715"))
"""RNE(2 * sqrt(2 / pi) * 0.044715)."""

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


def linear_scaling(factor: float) -> Scaling:
    """Give the scaling that divides every frequency: positions are interpolated."""
    divisor = Interval.exact(_positive("rope_scaling: factor", factor))
    return lambda i, f, bits: f / divisor


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


def yarn_scaling(
    d: int, theta: float, factor: float, original_context: int, beta_fast: float = 32.0, beta_slow: float = 1.0,
    truncate: bool = True,
) -> Scaling:  # fmt: skip
    """Give the frequency scaling of YaRN for a rotated size d, exact but for pi and the logarithms.

    turns(n) = d * ln(original_context / (2 pi n)) / (2 ln theta) is the index of the pair that turns n times in the
    original context; low = turns(beta_fast) and high = turns(beta_slow), rounded down and up if `truncate`, then kept
    within 0 and d - 1. ramp_i = (i - low) / (high - low), kept within 0..1; f becomes
    f / factor * ramp + f * (1 - ramp).
    Source: "YaRN: Efficient Context Window Extension of Large Language Models", arXiv:2309.00071, section 3.2.
    """
    base, zero, one = _positive("theta", theta), Fraction(0), Interval.exact(1)
    if base <= 1:
        raise SystolithError(f"rope_scaling: theta={theta} must be above 1 for YaRN")
    divisor = Interval.exact(_positive("rope_scaling: factor", factor))
    if beta_fast < beta_slow:
        raise SystolithError(f"rope_scaling: beta_fast={beta_fast} must be at least beta_slow={beta_slow}")
    turns = [_positive("rope_scaling: beta_fast", beta_fast), _positive("rope_scaling: beta_slow", beta_slow)]

    @cache
    def ends(bits: int) -> tuple[Interval, Interval]:
        """low and high."""
        index = []
        for n, whole in zip(turns, (math.floor, math.ceil), strict=True):
            ratio = Interval.exact(original_context / (2 * n)) / _exact.pi(bits)
            at = Interval.exact(Fraction(d, 2)) * _exact.ln(ratio, bits) / _exact.ln(Interval.exact(base), bits)
            if truncate:
                if whole(at.lo) != whole(at.hi):
                    raise Undecided
                at = Interval.exact(whole(at.lo))
            index.append(at)
        low, high = index
        return (Interval.exact(0) if low.below(zero) else low), (high if high.below(d - 1) else Interval.exact(d - 1))

    def scale(i: int, f: Interval, bits: int) -> Interval:
        low, high = ends(bits)
        same = low == high and (low.lo == low.hi or beta_fast == beta_slow)
        width = Interval.exact(Fraction(1, 1000)) if same else high - low
        ramp = (Interval.exact(i) - low) / width
        if ramp.below(zero):
            return f
        if not ramp.below(1):
            return f / divisor
        return f / divisor * ramp + f * (one - ramp)

    return scale


def yarn_attention_factor(factor: float, attention_factor: float | None = None) -> Enclosure:
    """Give YaRN's factor on cosine and sine: the model's own, exact, or 0.1 * ln(factor) + 1, not rounded; 1 where
    factor is at most 1."""
    if attention_factor is not None:
        own = Interval.exact(_positive("rope_scaling: attention_factor", attention_factor))
        return lambda bits: own
    s = Interval.exact(_positive("rope_scaling: factor", factor))
    if factor <= 1:
        return lambda bits: Interval.exact(1)
    return lambda bits: Interval.exact(Fraction(1, 10)) * _exact.ln(s, bits) + Interval.exact(1)


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
    d: int, theta: float, positions: int | Sequence[int] | npt.NDArray[np.integer], scaling: Scaling | None = None,
    factor: Enclosure | None = None,
) -> tuple[Float32s, Float32s]:  # fmt: skip
    """Give (cosines, sines), each FP32 [P, d/2], correctly rounded from the FP32 angle RNE(position * inv_freq_i).

    positions : a count P for 0..P-1, or the positions themselves, below 2^24.
    factor : multiplies cosine and sine inside that rounding (YaRN); None is 1.
    """
    where = np.arange(positions) if isinstance(positions, int) else np.asarray(positions)
    return cos_sin(rotary_angles(where, inverse_frequencies(d, theta, scaling)), factor)


def _positive(name: str, value: float) -> Fraction:
    if not (math.isfinite(value) and value > 0):
        raise SystolithError(f"{name}={value} must be a finite number above 0")
    return Fraction(value)

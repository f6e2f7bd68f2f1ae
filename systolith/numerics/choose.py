"""Choices: top-k, argmax and sampling, in integers that have no order to get wrong (docs/numerics.md rule 8)."""

import math
from collections.abc import Sequence
from fractions import Fraction

from systolith.numerics.fp32 import mul
from systolith.numerics.functions import MASKED, NAN_FX, ceil_fx, exp2fx, fix
from systolith.spec.errors import SystolithError

__all__ = ["argmax", "nucleus_threshold", "pick", "sample", "sample_max", "top_k", "top_p_fixed", "weight"]


def top_k(values: Sequence[float], k: int) -> tuple[int, ...]:
    """Give the indices of the k largest FP32 values [n], largest first; the lowest index first among equals.

    -0 equals +0; NaN is below everything, -inf too. Raises SystolithError unless 0 <= k <= n.
    """
    if not 0 <= k <= len(values):
        raise SystolithError(f"top_k: k={k} must be in 0..{len(values)}, the number of values")
    # sorted is stable, so equal keys stay in index order
    return tuple(sorted(range(len(values)), key=lambda i: (1, 0.0) if math.isnan(values[i]) else (0, -values[i]))[:k])


def argmax(values: Sequence[float]) -> int:
    """Give the index of the largest FP32 value, the lowest among equals; all NaN gives 0."""
    return top_k(values, 1)[0]


def top_p_fixed(top_p: float) -> int:
    """Give P = RNE(2^32 * top_p), 0..2^32; the binary64 top_p enters exactly. Raises SystolithError outside 0..1."""
    if not 0.0 <= top_p <= 1.0:
        raise SystolithError(f"top_p={top_p} must be in 0..1; 1 keeps all tokens")
    return round(Fraction(top_p) * 2**32)


def sample_max(F: Sequence[int]) -> int:
    """Give M = ceil(max F / 2^16) over the scores that are numbers: NaN is below everything. None at all gives 0."""
    numbers = [f for f in F if f not in (NAN_FX, MASKED)]
    return ceil_fx(max(numbers)) if numbers else 0


def weight(F: int, M: int) -> int:
    """Give w = RNE(2^31 * exp2fx(F - M * 2^16)) as unsigned 32 bits; 0 for NaN and for masked.

    With M from `sample_max` w is at most 2^31; a larger F is clamped to 2^32 - 1.
    """
    p = exp2fx(F, M)
    if math.isnan(p):
        return 0
    return min(2**32 - 1, round(math.ldexp(min(p, 2.0), 31)))


def nucleus_threshold(weights: Sequence[int], p_fixed: int) -> int:
    """Give t, the largest integer with sum of {w >= t} >= need = ceil(P * S / 2^32); weights below t become 0.

    need is at least 1, so that the most likely tokens are kept even for P = 0. All weights 0 gives t = 0.
    """
    need = max(1, -(-p_fixed * sum(weights) >> 32))
    kept = 0
    for w in sorted(weights, reverse=True):
        kept += w
        if kept >= need:
            return w
    return 0


def pick(weights: Sequence[int], p_fixed: int, u: int) -> int:
    """Give the index sampled by a 32-bit random word u from weights [n] under top_p = P / 2^32.

    w below the threshold become 0, r = floor(u * S' / 2^32), the first i with prefix(i) > r is picked, prefix(i) the
    sum of w_0..w_i. All weights 0 (every logit a NaN) gives index 0.
    """
    t = nucleus_threshold(weights, p_fixed)
    kept = [w if w >= t else 0 for w in weights]
    r = u * sum(kept) >> 32
    prefix = 0
    for i, w in enumerate(kept):
        prefix += w
        if prefix > r:
            return i
    return 0


def sample(logits: Sequence[float], scale: float, top_k_count: int, p_fixed: int, u: int) -> int:
    """Sample an index from FP32 logits [n] at a temperature above 0.

    scale : FP32, `constants.temperature_scale(T)`    top_k_count : 0 or n keep all    p_fixed : `top_p_fixed(top_p)`
    u : 32-bit word, `philox.sample_word(seed, position)`
    """
    F = [fix(mul(x, scale)) for x in logits]
    M = sample_max(F)
    kept = set(top_k(logits, top_k_count or len(logits)))
    return pick([weight(f, M) if i in kept else 0 for i, f in enumerate(F)], p_fixed, u)

"""Rule 8 of the numerics contract: argmax, integer-weight sampling, Philox4x32-10.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, for Philox and its constants.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .arith import NAN_F, ceil_fixed, exp2fx, fix
from .exact import F32, I64, log2_e, round_near


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32; words are unsigned 32 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & 0xFFFFFFFF, (left >> 32) ^ c3 ^ k1, left & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def order(values: F32) -> I64:
    """Indices by (FP32 value, lowest index), greatest first; -0 equals +0, NaN below everything."""
    rank = np.where(np.isnan(values), -np.inf, values).astype(np.float64) + 0.0
    return np.lexsort((np.arange(values.size), -rank, np.isnan(values))).astype(np.int64)


def argmax(values: F32) -> int:
    """The first index of the largest value; 0 where all are NaN."""
    return int(order(values)[0])


def weights(values: F32, temperature: float) -> list[int]:
    """w_i = RNE(2^31 * exp2fx(F_i - M * 2^16)), 0 for NaN. A NaN takes no part in M."""
    scale = round_near(log2_e() / Fraction(temperature))
    with np.errstate(all="ignore"):
        f = fix(values * scale)
    nan = f == NAN_F
    if nan.all():
        return [0] * values.size
    m = int(ceil_fixed(f[~nan].max()))
    w = np.rint(np.ldexp(exp2fx(f - (m << 16)).astype(np.float64), 31))
    return [0 if bad else int(x) for x, bad in zip(w, nan, strict=True)]


def sample(
    logits_row: F32,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    position: int = 0,
) -> int:
    """The token of rule 8 from FP32 logits [vocab].

    top_k : 0 keeps all          top_p : 0..1, 1.0 keeps all
    seed : 64 bits, low word is key word 0          position : of the token to be made
    """
    row = np.asarray(logits_row, np.float32)
    if temperature == 0:
        return argmax(row)
    w = weights(row, temperature)
    if top_k:
        for index in order(row)[top_k:]:
            w[int(index)] = 0
    total = sum(w)
    if total == 0:  # every logit is NaN
        return 0
    p = round(Fraction(top_p) * 2**32)
    need = max(-(-p * total >> 32), 1)
    threshold, kept = 0, 0
    for value in sorted(set(w), reverse=True):
        threshold = value
        kept = sum(x for x in w if x >= value)
        if kept >= need:
            break
    u = philox4x32((position, 0, 0, 0), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))[0]
    r = u * kept >> 32
    prefix = 0
    for index, value in enumerate(w):
        prefix += value if value >= threshold else 0
        if prefix > r:
            return index
    raise AssertionError("r < S', so some prefix exceeds it")

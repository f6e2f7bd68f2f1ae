"""Vector arithmetic of whole arrays in NumPy, equal to the scalar definition bit for bit (docs/numerics.md rules 5, 7).

For reference interpreters and tests. FP32 additions and multiplications are NumPy's own, with `canonical` after them
where the pattern of a NaN matters.
"""

import numpy as np
import numpy.typing as npt

from systolith.numerics import functions
from systolith.numerics.constants import LOG2E
from systolith.numerics.fp32 import EMPTY_M
from systolith.numerics.functions import FX_MAX, FX_MIN, MASKED, NAN_FX

__all__ = ["canonical", "ceil_fx", "exp", "exp2fx", "fix", "rcp", "rsqrt", "shift_add", "silu", "tree_sum"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


def canonical(values: Float32s) -> Float32s:
    """Give FP32 values with every NaN as 0x7FC00000."""
    return np.where(np.isnan(values), np.float32(np.nan), values)


def tree_sum(values: Float32s) -> Float32s:
    """Sum FP32 [..., n] over the last axis by the balanced tree of rule 5: FP32 [...]; n = 0 gives +0."""
    level = np.ascontiguousarray(values, np.float32)
    if level.shape[-1] == 0:
        return np.zeros(level.shape[:-1], np.float32)
    with np.errstate(all="ignore"):
        while (n := level.shape[-1]) > 1:
            joined = level[..., 0 : n - 1 : 2] + level[..., 1::2]
            level = np.concatenate([joined, level[..., -1:]], axis=-1) if n % 2 else joined
    return canonical(level[..., 0])


def rcp(x: Float32s) -> Float32s:
    """Give 1/x correctly rounded. Division in float64, then FP32, is right: all mantissas are tested (deep tests)."""
    with np.errstate(all="ignore"):
        return canonical((1.0 / x.astype(np.float64)).astype(np.float32))


def rsqrt(x: Float32s) -> Float32s:
    """Give 1/sqrt(x) correctly rounded.

    Square root and division in float64, then FP32, are right: proven by all mantissas in exact integers (deep tests).
    The closest case, 0x403A18E3, lies 1.4 float64 ulps from a midpoint; the two float64 roundings err by 1 at most.
    """
    with np.errstate(all="ignore"):
        return canonical((1.0 / np.sqrt(x.astype(np.float64))).astype(np.float32))


def fix(y: Float32s) -> Int64s:
    """Give RNE(y * 2^16), clamped to FX_MIN..FX_MAX, NaN as NAN_FX: int64 that holds int32 values."""
    with np.errstate(all="ignore"):
        clamped = np.clip(np.rint(y.astype(np.float64) * 65536.0), FX_MIN, FX_MAX)
    return np.where(np.isnan(y), NAN_FX, np.where(np.isnan(y), 0.0, clamped).astype(np.int64))


def ceil_fx(F: Int64s) -> Int64s:
    """Give ceil(F / 2^16)."""
    return -(-F >> 16)


def exp2fx(F: Int64s, M: Int64s | int = 0) -> Float32s:
    """Give exp2fx of F - M * 2^16; MASKED (+0) and NAN_FX (NaN) are recognised in F. F and M broadcast."""
    f = F - (np.asarray(M, np.int64) << 16)
    entry = functions.exp2_table()[f & 0xFFFF].astype(np.float64)
    with np.errstate(all="ignore"):
        p = np.ldexp(entry, np.clip((f >> 16) - 23, -400, 400).astype(np.int32)).astype(np.float32)
    return np.where(F == NAN_FX, np.float32(np.nan), np.where(F == MASKED, np.float32(0), p))


def exp(y: Float32s) -> Float32s:
    """Give exp2fx(fix(RNE(y * RNE(log2 e))))."""
    with np.errstate(all="ignore"):
        return exp2fx(fix(y * np.float32(LOG2E)))


def silu(x: Float32s) -> Float32s:
    """Give RNE(x * rcp(RNE(1 + exp(-x))))."""
    with np.errstate(all="ignore"):
        return canonical(x * rcp(np.float32(1) + exp(-x)))


def shift_add(a: Float32s, ea: Int64s, b: Float32s, eb: Int64s) -> tuple[Float32s, Int64s]:
    """Merge a * 2^ea and b * 2^eb (rule 7), shapes equal: (values, M).

    Only one term is shifted, by 900 at most: a larger shift cannot change the result. The shifted term is exact in
    float64, and so the sum rounds twice. That is innocent: 53 >= 2 * 24 + 2 for a normal result, and below 2^-126 a
    sum near a midpoint of FP32 is exact, as it has bits from 2^-127 to 2^-174 only.
    """
    M = np.maximum(ea, eb)
    with np.errstate(all="ignore"):
        shifted_a = np.ldexp(a.astype(np.float64), np.maximum(ea - M, -900).astype(np.int32))
        shifted_b = np.ldexp(b.astype(np.float64), np.maximum(eb - M, -900).astype(np.int32))
        total = canonical((shifted_a + shifted_b).astype(np.float32))
    # `a` last: two empty partials give b, as the scalar definition does
    total = np.where(eb == EMPTY_M, a, total)
    return np.where(ea == EMPTY_M, b, total), M

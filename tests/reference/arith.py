"""Vector arithmetic, quantisation, contraction and merge of the numerics contract (rules 1 to 5 and part of 7).

FP32 NumPy operations are the contract's operations (round to nearest even, gradual underflow) but for the payload of
NaN, which `canonical` repairs. Sums inside a block are exact: a float64 product sum of one block never rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .exact import F32, I64, exp2_table, log2_e, round_near

F64 = npt.NDArray[np.float64]
BLOCK = 32
NAN = np.uint32(0x7FC00000).view(np.float32)
MASKED_F, NAN_F = -(1 << 31), (1 << 31) - 1  # reserved values of fix
MAX_EXPONENT = {"E2M1": 2, "E4M3": 8, "INT8": 0}  # emax of rule 4
LARGEST = {"E2M1": 6.0, "E4M3": 448.0, "INT8": 127 / 64}
# step = 2^(max(floor(log2 |x|), lowest) - mantissa bits): one formula for floats and, without exponent, for INT8
LOWEST_EXPONENT = {"E2M1": 0, "E4M3": -6, "INT8": 1}
MANTISSA_BITS = {"E2M1": 1, "E4M3": 3, "INT8": 7}
PAIRS = {("E2M1", "E2M1"), ("E4M3", "E2M1"), ("INT8", "E2M1"), ("E4M3", "E4M3"), ("INT8", "INT8")}


def canonical(x: F32) -> F32:
    """A copy with every NaN as 0x7FC00000."""
    return np.where(np.isnan(x), NAN, x).astype(np.float32)


def tree(x: F32) -> F32:
    """Sum the last axis by the balanced binary tree of rule 5: 2i with 2i+1, an odd last one passes up."""
    while x.shape[-1] > 1:
        paired = x[..., 0:-1:2] + x[..., 1::2]
        x = paired if x.shape[-1] % 2 == 0 else np.concatenate([paired, x[..., -1:]], -1)
    total: F32 = x[..., 0]
    return total


def rcp(x: F32) -> F32:
    """1/x, correctly rounded: unless equal to it, 1/x is 2^-49 (relative) away from any boundary of FP32."""
    with np.errstate(all="ignore"):
        out: F32 = (1.0 / x.astype(np.float64)).astype(np.float32)
    return out


def rsqrt(x: F32) -> F32:
    """1/sqrt(x), correctly rounded; what lies within 2^-50 of a boundary is decided by exact integers."""
    x = np.asarray(x, np.float32)
    with np.errstate(all="ignore"):
        wide = 1.0 / np.sqrt(x.astype(np.float64))
        wide = np.where(x == 0, np.copysign(np.inf, x), wide)  # rsqrt(-0) = -inf
        result = wide.astype(np.float32)
        low, high = (wide * (1 - 2.0**-50)).astype(np.float32), (wide * (1 + 2.0**-50)).astype(np.float32)
    for index in np.argwhere((low != high) & np.isfinite(result)):
        key = tuple(index)
        middle = (Fraction(float(low[key])) + Fraction(float(high[key]))) / 2
        below = middle * middle * Fraction(float(x[key])) > 1  # 1/sqrt(x) < middle; never equal
        result[key] = low[key] if below else high[key]
    return result


def fix(y: F32) -> I64:
    """RNE(y * 2^16) as int64 within -2^31+1 .. 2^31-2; NaN is 0x7FFFFFFF."""
    with np.errstate(all="ignore"):
        scaled = np.clip(np.rint(y.astype(np.float64) * 65536.0), -(2.0**31) + 1, 2.0**31 - 2)
    out: I64 = np.where(np.isnan(scaled), NAN_F, scaled).astype(np.int64)
    return out


def exp2fx(f: I64) -> F32:
    """T[F mod 2^16] * 2^floor(F / 2^16) of an integer of any size, rounded to FP32 (once more if subnormal)."""
    power = np.clip(f >> 16, -2000, 1000)  # beyond these the result is +0 or infinity anyway
    with np.errstate(all="ignore"):
        out: F32 = np.ldexp(exp2_table()[f & 0xFFFF].astype(np.float64), power - 23).astype(np.float32)
    return out


def ceil_fixed(f: I64) -> I64:
    """ceil(F / 2^16): the integer maximum M of rules 7 and 8."""
    out: I64 = -((-f) >> 16)
    return out


LOG2_E = round_near(log2_e())


def exp(y: F32) -> F32:
    """exp2fx(fix(RNE(y * RNE(log2 e)))); NaN stays NaN."""
    with np.errstate(all="ignore"):
        f = fix(y * LOG2_E)
    return np.where(f == NAN_F, NAN, exp2fx(f)).astype(np.float32)


def sigmoid(x: F32) -> F32:
    """rcp(RNE(1 + exp(-x)))."""
    return rcp(np.float32(1) + exp(-x))


def silu(x: F32) -> F32:
    """RNE(x * sigmoid(x))."""
    with np.errstate(all="ignore"):
        return x * sigmoid(x)


# -- blocks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks:
    """MX blocks along the last axis: an element times 2^(scale - 127); scale 255 is NaN.

    elements : float64 [..., K], in units of 1 (INT8 code / 64), NaN only as an E4M3 NaN
    scales   : int64 [..., K / block]
    """

    elements: F64
    scales: I64

    @property
    def block(self) -> int:
        """Elements per scale: 32, or the whole row."""
        return int(self.elements.shape[-1] // self.scales.shape[-1])

    @cached_property
    def bad(self) -> npt.NDArray[np.bool_]:
        """Blocks whose scale is NaN."""
        out: npt.NDArray[np.bool_] = self.scales == 255
        return out

    @cached_property
    def values(self) -> F64:
        """Exact dequantised values in float64; a block with a NaN scale reads as its elements times 1."""
        power = np.where(self.bad, 0, self.scales - 127)
        out: F64 = np.ldexp(self.elements, np.repeat(power, self.block, axis=-1))
        return out

    def __getitem__(self, rows: slice | int | tuple[int | slice | I64, ...] | I64) -> Blocks:
        """Select along leading axes."""
        return Blocks(self.elements[rows], self.scales[rows])

    def dequantise(self) -> F32:
        """Values rounded once to FP32; NaN where the scale is NaN."""
        with np.errstate(all="ignore"):
            out = self.values.astype(np.float32)
        return np.where(np.repeat(self.bad, self.block, axis=-1), NAN, out).astype(np.float32)


def pad_last(x: npt.NDArray[np.floating], multiple: int) -> npt.NDArray[np.floating]:
    """Zeros after the last axis up to a multiple."""
    extra = -x.shape[-1] % multiple
    return x if extra == 0 else np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, extra)])


def quantise(x: npt.NDArray[np.floating], fmt: str, block: int = BLOCK) -> Blocks:
    """Rule 4 along the last axis, padded with zeros to a multiple of `block`.

    x : FP32, or float64 where the contract has an exact product (p * 2^sv)
    """
    x = pad_last(x.astype(np.float64), block)
    parts = x.reshape(*x.shape[:-1], -1, block)
    bad = ~np.isfinite(parts).all(-1)
    parts = np.where(bad[..., None], 0.0, parts)
    top = np.abs(parts).max(-1)
    exponent = np.clip(_floor_log2(top) - MAX_EXPONENT[fmt], -127, 127)
    scales = np.where(bad, 255, np.where(top == 0, 0, exponent + 127)).astype(np.int64)
    elements = round_element(np.ldexp(parts, -exponent[..., None]), fmt)
    return Blocks(elements.reshape(x.shape), scales)


def round_element(x: F64, fmt: str) -> F64:
    """One rounding (RNE, saturating) of finite numbers to the element format; no -0."""
    step = np.ldexp(1.0, np.maximum(_floor_log2(np.abs(x)), LOWEST_EXPONENT[fmt]) - MANTISSA_BITS[fmt])
    rounded = np.rint(x / step) * step
    out: F64 = np.clip(rounded, -LARGEST[fmt], LARGEST[fmt]) + 0.0
    return out


def _floor_log2(x: F64) -> npt.NDArray[np.int32]:
    """floor(log2 x) of non-negative float64, exact; -2000 for 0."""
    out: npt.NDArray[np.int32] = np.where(x == 0, -2000, np.frexp(x)[1] - 1).astype(np.int32)
    return out


# -- contraction ---------------------------------------------------------------------------------------------------


def block_sum(a: Blocks, w: Blocks, b: int) -> F32:
    """Block b of every pair of rows: FP32 [M, N], rules 1 and 2.

    a : [M, K]      w : [N, K]
    The float64 sum is exact: 32 products of at most 8 significant bits each in a range of at most 36 bits.
    """
    at = slice(b * BLOCK, (b + 1) * BLOCK)
    left, right = a.values[:, at], w.values[:, at]
    nan_left, nan_right = np.isnan(left), np.isnan(right)
    has_nan = bool(nan_left.any() or nan_right.any())
    if has_nan:  # an E4M3 NaN against a non-zero code
        hits = nan_left.astype(float) @ (right != 0).T.astype(float)
        hits += (left != 0).astype(float) @ nan_right.T.astype(float)
        left, right = np.where(nan_left, 0.0, left), np.where(nan_right, 0.0, right)
    with np.errstate(all="ignore"):
        out = (left @ right.T + 0.0).astype(np.float32)  # + 0.0: an exact zero is +0
    if has_nan:
        out[hits > 0] = NAN
    out[a.bad[:, b], :] = NAN
    out[:, w.bad[:, b]] = NAN
    return out


def contraction(a: Blocks, weights: Blocks | tuple[Blocks, ...], spans: int = 1) -> F32:
    """Rule 3: FP32 [M, N] = a [M, K] with one weight tensor [N, K], or with the two terms of INT8x2."""
    terms = weights if isinstance(weights, tuple) else (weights,)
    blocks = a.scales.shape[-1]
    run = math.ceil(blocks / spans)
    sums = []
    with np.errstate(all="ignore"):
        for span in range(spans):
            acc = np.zeros((a.elements.shape[0], terms[0].elements.shape[0]), np.float32)
            for b in range(span * run, min((span + 1) * run, blocks)):  # blocks that only pad add +0: left out
                for term in terms:
                    acc += block_sum(a, term, b)
            sums.append(acc)
        return tree(np.stack(sums, -1))


def quantise_weight(w: F32, fmt: str) -> tuple[Blocks, ...]:
    """One term, or for INT8x2 W1 = quantise(W), W2 = quantise(RNE(W - W1))."""
    if fmt != "INT8x2":
        return (quantise(w, fmt),)
    first = quantise(w, "INT8")
    with np.errstate(all="ignore"):
        rest = w - first.dequantise()[..., : w.shape[-1]]
    return first, quantise(rest, "INT8")


# -- merge of partial attention results ------------------------------------------------------------------------------


def add_shifted(a: F32, shift_a: I64, b: F32, shift_b: I64) -> F32:
    """One rounding of the exact a * 2^shift_a + b * 2^shift_b; shifts <= 0, at least one of them 0.

    The float64 sum is made odd where it is inexact (its last bit sticky), so that the rounding to FP32 sees on which
    side of a boundary the exact sum lies. A shift below -900 cannot be told from -900: less than 2^-772 is added.
    """
    with np.errstate(all="ignore"):
        x = np.ldexp(a.astype(np.float64), np.maximum(shift_a, -900))
        y = np.ldexp(b.astype(np.float64), np.maximum(shift_b, -900))
        total = x + y
        back = total - x
        error = (x - (total - back)) + (y - back)  # exact (Knuth's two-sum)
        even = (np.ascontiguousarray(total).view(np.int64) & 1) == 0
        sticky = np.isfinite(total) & (error != 0) & even
        total = np.where(sticky, np.nextafter(total, np.copysign(np.inf, error)), total)
        return total.astype(np.float32)


@dataclass(frozen=True)
class Partial:
    """Partial softmax of some rows: m int64 [rows], l FP32 [rows], o FP32 [rows, d]; `full` False where empty."""

    m: I64
    l: F32
    o: F32
    full: npt.NDArray[np.bool_]


def merge(a: Partial, b: Partial) -> Partial:
    """Merge two partials of the same rows; an empty row returns the other's unchanged."""
    m = np.maximum(a.m, b.m)
    down_a, down_b = a.m - m, b.m - m
    total = add_shifted(a.l, down_a, b.l, down_b)
    out = add_shifted(a.o, down_a[:, None], b.o, down_b[:, None])
    both, only_a = a.full & b.full, a.full & ~b.full
    return Partial(
        np.where(both, m, np.where(only_a, a.m, b.m)),
        np.where(both, total, np.where(only_a, a.l, b.l)).astype(np.float32),
        np.where(both[:, None], out, np.where(only_a[:, None], a.o, b.o)).astype(np.float32),
        a.full | b.full,
    )

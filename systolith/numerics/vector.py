"""Block scaling of whole arrays in NumPy, equal to the scalar definition bit for bit (docs/numerics.md rules 1 to 4).

For weights on their way into a program and for tests. Values are FP32 [..., K], codes uint8 [..., K], one a byte, E8M0
scales uint8 [..., ceil(K/32)]. K that is no multiple of 32 counts as padded with zeros.
Memory: a few temporaries of `_CHUNK` values beside input and output, so that a large weight needs no second copy.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from systolith.numerics.formats import BLOCK, SCALE_BIAS, SCALE_NAN, Format, pair_of
from systolith.numerics.vector_math import tree_sum
from systolith.spec.errors import SystolithError

__all__ = [
    "Bytes",
    "Float32s",
    "contract",
    "dequantise",
    "dequantise_rows",
    "pack_e2m1",
    "quantise",
    "quantise_best",
    "quantise_rows",
    "quantise_two_term",
    "unpack_e2m1",
]

Bytes = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

_CHUNK = 1 << 18  # values worked on at a time: the temporaries stay in cache


def quantise(values: Float32s, fmt: Format, *, pad: bool = False) -> tuple[Bytes, Bytes]:
    """Quantise FP32 [..., K] by blocks of 32 along the last axis: (codes [..., K], scales [..., ceil(K/32)]), rule 4.

    With `pad` the codes are [..., 32 * ceil(K/32)], the added ones zero.
    """
    return _quantise_blocks(values, fmt, (0,), pad)


def quantise_best(
    values: Float32s, fmt: Format, *, offsets: Sequence[int] = (0, -1, 1), pad: bool = False
) -> tuple[Bytes, Bytes]:
    """Quantise weights offline with the best scale of several: shapes as `quantise`.

    offsets : exponents tried relative to rule 4's. The least squared error of the block wins, the earlier on a tie.
    Errors are FP32, summed by the balanced tree: the choice is the same on every machine.
    """
    if not offsets:
        raise SystolithError("quantise_best: offsets=() must name at least one exponent; (0,) is rule 4's scale")
    return _quantise_blocks(values, fmt, tuple(offsets), pad)


def quantise_rows(values: Float32s, fmt: Format) -> tuple[Bytes, Bytes]:
    """Quantise FP32 [..., K] with one scale a row: (codes [..., K], scales [...]). V has one a token and KV head."""
    rows = _float32(values).reshape(-1, values.shape[-1])
    codes, scales = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.uint8)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        codes[part], scales[part] = _quantise_chunk(rows[part], fmt, (0,))
    return codes.reshape(values.shape), scales.reshape(values.shape[:-1])


def quantise_two_term(values: Float32s, fmt: Format, *, pad: bool = False) -> tuple[Bytes, Bytes, Bytes, Bytes]:
    """Quantise in two terms, W1 = quantise(W) and W2 = quantise(RNE(W - W1)): (codes1, scales1, codes2, scales2)."""
    codes1, scales1 = quantise(values, fmt)
    with np.errstate(all="ignore"):
        rest = _float32(values) - dequantise(codes1, scales1, fmt)
    codes2, scales2 = quantise(rest, fmt)
    return (_padded(codes1), scales1, _padded(codes2), scales2) if pad else (codes1, scales1, codes2, scales2)


def dequantise(codes: Bytes, scales: Bytes, fmt: Format) -> Float32s:
    """Give FP32 [..., K] of codes [..., K] and scales [..., ceil(K/32)], each value rounded once; scale 0xFF is NaN."""
    K = codes.shape[-1]
    if scales.shape != (*codes.shape[:-1], -(-K // BLOCK)):
        raise SystolithError(
            f"dequantise: scales.shape={scales.shape} must be {(*codes.shape[:-1], -(-K // BLOCK))}, one scale for "
            f"{BLOCK} codes; use dequantise_rows for one scale a row"
        )
    return _scaled(codes, np.repeat(scales, BLOCK, axis=-1)[..., :K], fmt)


def dequantise_rows(codes: Bytes, scales: Bytes, fmt: Format) -> Float32s:
    """Give FP32 [..., K] of codes [..., K] and one scale a row, scales [...]."""
    if scales.shape != codes.shape[:-1]:
        raise SystolithError(f"dequantise_rows: scales.shape={scales.shape} must be {codes.shape[:-1]}, one a row")
    return _scaled(codes, scales[..., None], fmt)


def pack_e2m1(codes: Bytes) -> Bytes:
    """Pack E2M1 codes [..., K], K even, two a byte [..., K/2], the lower index in the low nibble."""
    if codes.shape[-1] % 2:
        raise SystolithError(f"pack_e2m1: K={codes.shape[-1]} must be even; pad with zero codes")
    result: Bytes = codes[..., 0::2] & np.uint8(15) | codes[..., 1::2] << np.uint8(4)
    return result


def unpack_e2m1(packed: Bytes) -> Bytes:
    """Unpack bytes [..., K/2] to E2M1 codes [..., K], the low nibble first."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    codes[..., 0::2] = packed & np.uint8(15)
    codes[..., 1::2] = packed >> np.uint8(4)
    return codes


def contract(
    a: tuple[Bytes, Bytes],
    weights: Sequence[tuple[Bytes, Bytes]],
    fmt_a: Format,
    fmt_b: Format,
    spans: int = 1,
) -> Float32s:
    """Contract activations [M, K] with weights [N, K] of one term or two (rule 3): FP32 [M, N].

    Each operand is (codes [rows, K], scales [rows, ceil(K/32)]).

    A plain reference: float64 products of one block are exact in any order, the rest is FP32. K need be no multiple of
    32. Raises SystolithError for a pair rule 1 does not list, for spans below 1 and for K that differs.
    """
    pair = pair_of(fmt_a, fmt_b)
    if spans < 1:
        raise SystolithError(f"contract: spans={spans} must be 1 or more")
    K = a[0].shape[-1]
    for codes, _ in weights:
        if codes.shape[-1] != K:
            raise SystolithError(f"contract: weights have K={codes.shape[-1]}, the activations K={K}: they must agree")
    blocks = -(-K // BLOCK)
    run = -(-blocks // spans)
    left = _block_operand(a, fmt_a)
    right = [_block_operand(term, fmt_b) for term in weights]
    sums = np.zeros((len(a[0]), len(weights[0][0]), spans), np.float32)
    with np.errstate(all="ignore"):
        for index in range(blocks):
            for term in right:
                sums[:, :, index // run] += _block_sums(left, term, index, pair.unit_exp)
    return tree_sum(sums)


# What follows is private.

_Operand = tuple[Float64s, npt.NDArray[np.bool_], Float64s]  # units [R, B, 32] (NaN as 0), NaN codes, scales [R, B]


def _block_operand(operand: tuple[Bytes, Bytes], fmt: Format) -> _Operand:
    codes = _padded(operand[0])
    codes = codes.reshape(len(codes), -1, BLOCK)
    units, nan = _unit_table(fmt)
    scales = _powers_of_two()[operand[1]].astype(np.float64)
    return units[codes].astype(np.float64), nan[codes], scales


def _block_sums(left: _Operand, right: _Operand, index: int, unit_exp: int) -> Float32s:
    """Block sums of one block index, FP32 [M, N]."""
    (a, a_nan, a_scale), (b, b_nan, b_scale) = ((part[:, index] for part in side) for side in (left, right))
    # `+ 0.0` turns the -0 of a sum of products -0 into the +0 of an exact zero.
    exact = (a @ b.T + 0.0) * (a_scale[:, None] * b_scale[None, :] * 2.0**unit_exp)
    if a_nan.any() or b_nan.any():
        # A NaN code is not zero: it spoils the sum unless the other side is a zero code.
        met = a_nan.astype(np.float64) @ (b_nan | (b != 0)).T + (a != 0).astype(np.float64) @ b_nan.T
        exact[met > 0] = np.nan
    result = exact.astype(np.float32)
    result[np.isnan(result)] = np.nan  # one NaN pattern
    return result


def _quantise_blocks(values: Float32s, fmt: Format, offsets: tuple[int, ...], pad: bool) -> tuple[Bytes, Bytes]:
    K = values.shape[-1]
    blocks = -(-K // BLOCK)
    rows = _float32(values).reshape(-1, K)
    codes = np.empty((len(rows), blocks * BLOCK if pad else K), np.uint8)
    scales = np.empty((len(rows), blocks), np.uint8)
    if pad:
        codes[:, K:] = 0
    step = max(1, _CHUNK // max(1, K))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if K % BLOCK:
            part = np.pad(part, ((0, 0), (0, blocks * BLOCK - K)))
        # A row longer than a chunk is cut at block boundaries.
        for left in range(0, blocks, _CHUNK // BLOCK):
            piece = part[:, left * BLOCK : (left * BLOCK) + _CHUNK]
            chunk_codes, chunk_scales = _quantise_chunk(piece.reshape(-1, BLOCK), fmt, offsets)
            target = codes[start : start + step, left * BLOCK : (left * BLOCK) + _CHUNK]
            target[:] = chunk_codes.reshape(piece.shape)[:, : target.shape[1]]
            scales[start : start + step, left : left + _CHUNK // BLOCK] = chunk_scales.reshape(len(part), -1)
    return codes.reshape(*values.shape[:-1], codes.shape[1]), scales.reshape(*values.shape[:-1], blocks)


def _quantise_chunk(groups: Float32s, fmt: Format, offsets: tuple[int, ...]) -> tuple[Bytes, Bytes]:
    """Quantise groups [G, n] that share one scale each: codes [G, n], scales [G]."""
    magnitude = (groups.view(np.uint32) & np.uint32(0x7FFFFFFF)).max(axis=1, initial=np.uint32(0))
    bad = magnitude >= 0x7F800000
    if bad.any():
        groups = np.where(bad[:, None], np.float32(0), groups)
        magnitude = np.where(bad, np.uint32(0), magnitude)
    # frexp counts from 0.5, and is exact for subnormals; its 0 for zero makes the scale of a block of zeros below.
    e = np.frexp(magnitude.view(np.float32))[1] - (1 + fmt.emax)
    e = np.where(magnitude == 0, -SCALE_BIAS, np.clip(e, -SCALE_BIAS, SCALE_BIAS)).astype(np.int64)
    codes, scales = _encode(groups, e, fmt)
    if len(offsets) > 1 or offsets[0]:
        best: Float32s | None = None
        for offset in offsets:
            tried, tried_scales = _encode(groups, np.clip(e + offset, -SCALE_BIAS, SCALE_BIAS), fmt)
            error = _squared_error(groups, tried, tried_scales, e, fmt)
            if best is None:
                codes, scales, best = tried, tried_scales, error
                continue
            better = error < best
            codes[better], scales[better], best = tried[better], tried_scales[better], np.minimum(error, best)
        scales[magnitude == 0] = 0
    scales[bad] = SCALE_NAN
    return codes, scales


def _encode(groups: Float32s, e: npt.NDArray[np.int64], fmt: Format) -> tuple[Bytes, Bytes]:
    """Round groups [G, n] * 2^-e to codes: codes [G, n], scales [G]."""
    with np.errstate(all="ignore"):
        # Inexact only where the product is below 2^-126 and the code 0 either way.
        scaled = groups * _powers_of_two()[SCALE_BIAS - e][:, None]
        scales = (e + SCALE_BIAS).astype(np.uint8)
        if fmt.codes[1] == 1 and fmt.codes[-1] == (1 << fmt.bits) - 1:  # two's complement: INT8
            units = np.rint(scaled * np.float32(2.0**-fmt.unit_exp))
            return np.clip(units, -fmt.max_units, fmt.max_units).astype(np.int8).view(np.uint8), scales
    bits = scaled.view(np.uint32)
    sign = (bits >> np.uint32(31)).astype(np.uint8) << np.uint8(fmt.bits - 1)
    bits = bits & np.uint32(0x7FFFFFFF)
    drop = np.uint32(23 - fmt.mantissa_bits)
    kept = (bits + (np.uint32(1) << (drop - np.uint32(1))) - np.uint32(1) + (bits >> drop & np.uint32(1))) >> drop
    normal = kept - np.uint32((126 + fmt.min_exp) << fmt.mantissa_bits)
    small = np.float32(2.0**fmt.min_exp)
    tiny = np.rint(np.minimum(bits.view(np.float32), small) * np.float32(2.0**-fmt.unit_exp)).astype(np.uint32)
    code = np.where(bits < small.view(np.uint32), tiny, np.minimum(normal, np.uint32(fmt.max_code))).astype(np.uint8)
    return np.where(code == 0, code, code | sign), scales


def _squared_error(groups: Float32s, codes: Bytes, scales: Bytes, e: npt.NDArray[np.int64], fmt: Format) -> Float32s:
    """Squared error of each group [G] in units of 2^(2e): no overflow, and IEEE steps in one order on every machine."""
    relative = np.ldexp(np.float32(1), (scales.astype(np.int64) - SCALE_BIAS - e + fmt.unit_exp).astype(np.int32))
    with np.errstate(all="ignore"):
        level = np.take(_unit_table(fmt)[0], codes) * relative[:, None]
        level -= groups * _powers_of_two()[SCALE_BIAS - e][:, None]
        level *= level
    while level.shape[1] > 1:
        level = level[:, 0::2] + level[:, 1::2]
    error: Float32s = level[:, 0]
    return error


def _scaled(codes: Bytes, scales: Bytes, fmt: Format) -> Float32s:
    with np.errstate(all="ignore"):
        units, nan = _unit_table(fmt)
        table = np.where(nan, np.float32(np.nan), units * np.float32(2.0**fmt.unit_exp)).astype(np.float32)
        result: Float32s = np.take(table, codes) * _powers_of_two()[scales]
    return result


@cache
def _unit_table(fmt: Format) -> tuple[Float32s, npt.NDArray[np.bool_]]:
    """Values in units (NaN as 0) and which codes are NaN, by code."""
    units = np.array([0 if value is None else value for value in fmt.values], np.float32)
    return units, np.array([value is None for value in fmt.values])


@cache
def _powers_of_two() -> Float32s:
    """2^(i-127) by scale code i, FP32 [256]: code 0 is subnormal, code 255 NaN."""
    table = np.ldexp(np.float32(1), np.arange(256) - SCALE_BIAS, dtype=np.float32)
    table[SCALE_NAN] = np.nan
    return table


def _padded(codes: Bytes) -> Bytes:
    missing = -codes.shape[-1] % BLOCK
    return np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)]) if missing else codes


def _float32(values: Float32s) -> Float32s:
    if values.dtype != np.float32 or values.ndim == 0:
        raise SystolithError(
            f"quantise: values of dtype {values.dtype} and {values.ndim} axes must be float32 [..., K]; convert them "
            "first, so that the one rounding is yours"
        )
    return np.ascontiguousarray(values)

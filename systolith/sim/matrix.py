"""Matrix unit: MATMUL. Both tiles are decoded to integers once, then block sums run over contiguous memory.

INT8 and E2M1 fit 16 bits, and a sum of 32 of their products fits 32 bits (21 bits for INT8xINT8); E4M3 in units of
2^-9 has 18 bits, a sum of 32 products 42. Integer sums are exact in any order, so LLVM may vectorise them.
"""

from __future__ import annotations

import numpy as np

from ._jit import F32, F64, I16, I32, I64_2D, U8, Array, Scalar, kernel
from ._operands import check, row0
from ._state import (
    ACC,
    E2M1,
    E4M3,
    FP32,
    INT8,
    O_ABS,
    O_BASE,
    O_EXT,
    O_FORMAT,
    O_SBASE,
    O_SCALE,
    O_SPACE,
    O_STRIDE,
    O_VIA,
    OA,
    OB,
    OD,
    SLOT,
    SPAD,
)  # fmt: skip
from ._traps import T_FORMAT, T_PAIR, T_SHAPE, T_SPACE

CAPACITY = 1 << 20
"""Weight elements decoded at a time: a column (20 bits of extent) always fits."""

NAN_UNITS = 1 << 30
"""Stands for an E4M3 NaN among integers of 18 bits."""


@kernel(f"void({I64_2D}, int64, int64, int64, {U8}, {I16}, {I16})")
def decode16(o: Array, k: Scalar, at: Scalar, n: Scalar, m8: Array, units: Array, out: Array) -> None:
    """Decode n E2M1 or INT8 codes from element offset `at` on to integers; units: by E2M1 code."""
    base = o[k, O_ABS] + o[k, O_BASE]
    step = o[k, O_STRIDE + 2]
    if o[k, O_FORMAT] == E2M1:
        packed = m8[base + (at >> 1) : base + ((at + n) >> 1)]
        for i in range(n >> 1):
            code = packed[i]
            out[2 * i] = units[code & 15]
            out[2 * i + 1] = units[code >> 4]
    elif step == 1:
        codes = m8[base + at : base + at + n].view(np.int8)
        for i in range(n):
            out[i] = codes[i]
    else:
        for i in range(n):
            out[i] = np.int8(m8[base + at + i * step])


@kernel(f"int64({I64_2D}, int64, int64, int64, {U8}, {I16}, {I32}, {I32})")
def decode32(o: Array, k: Scalar, at: Scalar, n: Scalar, m8: Array, units: Array, e4m3: Array, out: Array) -> Scalar:
    """Decode n codes of any element format to integers, E4M3 NaN as `NAN_UNITS`; the number of these."""
    base = o[k, O_ABS] + o[k, O_BASE]
    form = o[k, O_FORMAT]
    step = o[k, O_STRIDE + 2]
    nans = 0
    for i in range(n):
        if form == E4M3:
            value = e4m3[m8[base + at + i * step]]
            nans += 1 if value == NAN_UNITS else 0
        elif form == E2M1:
            value = np.int32(units[(m8[base + ((at + i) >> 1)] >> (4 * ((at + i) & 1))) & 15])
        else:
            value = np.int32(np.int8(m8[base + at + i * step]))
        out[i] = value
    return nans


@kernel(f"void({I16}, {I16}, int64, int64, int64, int64, {F64})")
def sums16(a: Array, w: Array, j: Scalar, blocks: Scalar, columns: Scalar, width: Scalar, out: Array) -> None:
    """Exact sums of the 32 products of one block of a with block j of each column [columns, blocks, 32].

    width is 32. It is no constant, because LLVM would unroll the loop and then not vectorise it (7 times slower).
    """
    tile = w[: columns * blocks * width].reshape(columns, blocks, width)
    for n in range(columns):
        total = np.int32(0)
        for k in range(width):
            total = np.int32(total + np.int32(np.int32(a[k]) * np.int32(tile[n, j, k])))
        out[n] = np.float64(total)


@kernel(f"void({I32}, {I32}, int64, int64, int64, int64, int64, {F64})")
def sums32(
    a: Array, w: Array, j: Scalar, blocks: Scalar, columns: Scalar, width: Scalar, nans: Scalar, out: Array
) -> None:
    """As sums16 in 64 bits; with NaN codes about, one that meets a code that is not zero makes the sum NaN."""
    tile = w[: columns * blocks * width].reshape(columns, blocks, width)
    for n in range(columns):
        total = np.int64(0)
        if nans == 0:
            for k in range(width):
                total += np.int64(a[k]) * np.int64(tile[n, j, k])
            out[n] = np.float64(total)
        else:
            met = 0
            for k in range(width):
                x, y = a[k], tile[n, j, k]
                if x != 0 and y != 0:
                    if x == NAN_UNITS or y == NAN_UNITS:
                        met += 1
                    else:
                        total += np.int64(x) * np.int64(y)
            out[n] = np.nan if met > 0 else np.float64(total)


@kernel(f"void({F32}, {F64}, float64, {F64}, int64)")
def accumulate(acc: Array, sums: Array, scale_a: Scalar, scale_w: Array, columns: Scalar) -> None:
    """acc = RNE(acc + RNE(sum * 2^(sa + sb))) for each column; float64 scales a sum of 42 bits exactly."""
    for n in range(columns):
        acc[n] = np.float32(acc[n] + np.float32(sums[n] * (scale_a * scale_w[n])))


@kernel(f"void({I64_2D}, int64, int64, int64, {U8}, {F64}, float64, {F64}, int64)")
def scales(
    o: Array, k: Scalar, at: Scalar, blocks: Scalar, m8: Array, powers: Array, unit: Scalar, out: Array, step: Scalar
) -> None:
    """Scales of `blocks` blocks from element offset `at` on, times the unit of the codes, `step` apart in out."""
    base = o[k, O_ABS] + o[k, O_SBASE] + (at >> 5)
    if o[k, O_SCALE] == 0:
        for j in range(blocks):
            out[j * step] = unit
    elif step == 1:
        codes = m8[base : base + blocks]
        for j in range(blocks):
            out[j] = powers[codes[j]] * unit
    else:
        for j in range(blocks):
            out[j * step] = powers[m8[base + j]] * unit


@kernel("float64(int64)")
def unit_of(form: Scalar) -> Scalar:
    """Value of one unit of a format's codes."""
    if form == E2M1:
        return 0.5
    return 2.0**-9 if form == E4M3 else 2.0**-6


@kernel(f"boolean({I64_2D}, int64, int64)")
def is_dense(o: Array, k: Scalar, n: Scalar) -> Scalar:
    """Whether the rows of n elements of operand k lie one after the other."""
    e0, e1 = o[k, O_EXT], o[k, O_EXT + 1]
    if o[k, O_VIA] != 0 or o[k, O_STRIDE + 2] != 1:
        return False
    return (e1 == 1 or o[k, O_STRIDE + 1] == n) and (e0 == 1 or o[k, O_STRIDE] == e1 * n)


_TILE = f"{U8}, {I32}, {I16}, {I32}, {F64}, {I16}, {I32}, {F64}"


@kernel(f"int64({I64_2D}, int64, int64, int64, int64, int64, {_TILE})")
def load_rows(
    o: Array, k: Scalar, first: Scalar, count: Scalar, n: Scalar, wide: Scalar,
    m8: Array, m32: Array, units: Array, e4m3: Array, powers: Array, t16: Array, t32: Array, factors: Array,
) -> Scalar:  # fmt: skip
    """Decode `count` rows of n elements of operand k from row `first` on, and their scales; the number of NaN codes.

    Rows count over dimensions 0 and 1. factors : [blocks of a row, count]
    """
    unit = unit_of(o[k, O_FORMAT])
    blocks = n >> 5
    e1 = o[k, O_EXT + 1]
    dense = is_dense(o, k, n)
    nans = 0
    if dense:
        if wide != 0:
            nans = decode32(o, k, first * n, count * n, m8, units, e4m3, t32)
        else:
            decode16(o, k, first * n, count * n, m8, units, t16)
        if blocks == 1:
            scales(o, k, first * n, count, m8, powers, unit, factors, 1)
            return nans
    for r in range(count):
        at = (first + r) * n if dense else row0(o, k, (first + r) // e1, m32) + ((first + r) % e1) * o[k, O_STRIDE + 1]
        if not dense:
            if wide != 0:
                nans += decode32(o, k, at, n, m8, units, e4m3, t32[r * n : r * n + n])
            else:
                decode16(o, k, at, n, m8, units, t16[r * n : r * n + n])
        scales(o, k, at, blocks, m8, powers, unit, factors[r:], count)
    return nans


@kernel(f"int64({I64_2D}, int64, int64, int64, int64, {_TILE}, {I16}, {I32})")
def load_by_rows(
    o: Array, column: Scalar, count: Scalar, K: Scalar, wide: Scalar,
    m8: Array, m32: Array, units: Array, e4m3: Array, powers: Array, w16: Array, w32: Array, factors: Array,
    t16: Array, t32: Array,
) -> Scalar:  # fmt: skip
    """As load_rows for `count` columns of weights that lie by rows: [K, 1, N], no scales."""
    nans = 0
    for k in range(K):
        at = row0(o, OB, k, m32) + column * o[OB, O_STRIDE + 2]
        if wide != 0:
            nans += decode32(o, OB, at, count, m8, units, e4m3, t32)
            for n in range(count):
                w32[n * K + k] = t32[n]
        else:
            decode16(o, OB, at, count, m8, units, t16)
            for n in range(count):
                w16[n * K + k] = t16[n]
    unit = unit_of(o[OB, O_FORMAT])
    for i in range((K >> 5) * count):
        factors[i] = unit
    return nans


@kernel(f"int64({I64_2D}, int64, int64, int64)")
def legal(o: Array, by_rows: Scalar, terms: Scalar, N: Scalar) -> Scalar:
    """Check spaces, formats and shapes; 0 or the code of a trap."""
    a, b = o[OA, O_FORMAT], o[OB, O_FORMAT]
    K = o[OA, O_EXT + 2]
    if o[OA, O_SPACE] != SPAD or (o[OB, O_SPACE] != SLOT and o[OB, O_SPACE] != SPAD) or o[OD, O_SPACE] != ACC:
        return T_SPACE
    if o[OD, O_FORMAT] != FP32:
        return T_FORMAT
    if a > INT8 or b > INT8 or (b != E2M1 and a != b):
        return T_PAIR
    if o[OA, O_SCALE] == 0 or o[OB, O_SCALE] == by_rows:
        return T_FORMAT
    if K & 31 != 0 or (o[OB, O_EXT] if by_rows != 0 else o[OB, O_EXT + 2]) != K << terms:
        return T_SHAPE
    if by_rows != 0 and o[OB, O_EXT + 1] != 1:
        return T_SHAPE
    for k in (OD, OA, OB):
        if o[k, O_EXT + 2] > 1 and o[k, O_STRIDE + 2] != 1:
            return T_SHAPE
    if o[OD, O_EXT] < o[OA, O_EXT] or o[OD, O_EXT + 1] < o[OA, O_EXT + 1] or o[OD, O_EXT + 2] < N:
        return T_SHAPE
    return 0


_MATMUL = f"{U8}, {I32}, {F32}, {I16}, {I32}, {F64}, {I16}, {I32}, {I16}, {I32}, {F64}, {F64}, {F64}, {F32}"


@kernel(f"int64({I64_2D}, int64, int64, int64, {_MATMUL})")
def matmul(
    o: Array, zero: Scalar, by_rows: Scalar, terms: Scalar,
    m8: Array, m32: Array, mf: Array, units: Array, e4m3: Array, powers: Array,
    a16: Array, a32: Array, w16: Array, w32: Array, pa: Array, pw: Array, sums: Array, acc: Array,
) -> Scalar:  # fmt: skip
    """Run a MATMUL whose shapes have been checked; 0 or the code of a trap, nothing written then.

    a16, a32 and w16, w32 are scratch (each pair two views of one buffer) of 2^20 elements and more,
    pa and pw of 2^15, sums and acc of 2^20.
    """
    K = o[OA, O_EXT + 2]
    KT = K << terms
    e0, e1 = o[OA, O_EXT], o[OA, O_EXT + 1]
    n1 = o[OB, O_EXT + 1]
    N = o[OB, O_EXT + 2] if by_rows != 0 else o[OB, O_EXT] * n1
    if e0 * e1 * K * N == 0 or o[OB, O_EXT] * n1 * o[OB, O_EXT + 2] == 0:
        return 0
    code = legal(o, by_rows, terms, N)
    if code == 0:
        code = check(o, OA, e0, e1, K, m32)
    if code == 0:
        code = check(o, OB, o[OB, O_EXT], n1, o[OB, O_EXT + 2], m32)
    if code == 0:
        code = check(o, OD, e0, e1, N, m32)
    if code != 0:
        return code
    wide = 1 if o[OA, O_FORMAT] == E4M3 or o[OB, O_FORMAT] == E4M3 else 0
    blocks = KT >> 5
    width = KT // blocks
    rows = e0 * e1
    target = (o[OD, O_ABS] + o[OD, O_BASE]) >> 2
    row_group = max(1, min(rows, CAPACITY // K))
    group = max(1, min(N, CAPACITY // KT))
    for column in range(0, N, group):
        count = min(group, N - column)
        if by_rows != 0:
            w_nans = load_by_rows(o, column, count, K, wide, m8, m32, units, e4m3, powers, w16, w32, pw, a16, a32)
        else:
            w_nans = load_rows(o, OB, column, count, KT, wide, m8, m32, units, e4m3, powers, w16, w32, pw)
        for first in range(0, rows, row_group):
            part = min(row_group, rows - first)
            nans = w_nans + load_rows(o, OA, first, part, K, wide, m8, m32, units, e4m3, powers, a16, a32, pa)
            for r in range(part):
                i0, i1 = (first + r) // e1, (first + r) % e1
                step = o[OD, O_STRIDE + 2]
                d = target + row0(o, OD, i0, m32) + i1 * o[OD, O_STRIDE + 1] + column * step
                if zero != 0:
                    acc[:count] = np.float32(0.0)
                else:
                    for n in range(count):
                        acc[n] = mf[d + n * step]
                for j in range(blocks):
                    i = j >> terms
                    at = r * K + 32 * i
                    if wide != 0:
                        sums32(a32[at : at + 32], w32, j, blocks, count, width, nans, sums)
                    else:
                        sums16(a16[at : at + 32], w16, j, blocks, count, width, sums)
                    accumulate(acc, sums, pa[i * part + r], pw[j * count : j * count + count], count)
                for n in range(count):
                    if acc[n] != acc[n]:
                        m32[d + n * step] = np.int32(0x7FC00000)
                    else:
                        mf[d + n * step] = acc[n]
    return 0

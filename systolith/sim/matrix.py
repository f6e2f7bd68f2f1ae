"""Matrix unit: MATMUL. Both tiles are decoded to integers once, then block sums run over contiguous memory.

INT8 and E2M1 fit 16 bits, and a sum of 32 of their products fits 32 bits (21 bits for INT8xINT8); E4M3 in units of 2^-9 has 18
bits, a sum of 32 products 42. Integer sums are exact in any order, so LLVM may vectorise them.
"""

from __future__ import annotations

import numpy as np

from ._jit import F32, F64, I16, I16_2D, I32, I32_2D, I64_2D, U8, Array, Scalar, kernel
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


@kernel(f"void({I16_2D}, {I16_2D}, int64, int64, {F64})")
def sums16(a: Array, w: Array, terms: Scalar, width: Scalar, out: Array) -> None:
    """Exact sums of the blocks of one column [blocks, 32]; with two terms (terms = 1) two blocks meet each block of a.

    width is 32. It is no constant, because LLVM would unroll the loop and then not vectorise it (7 times slower).
    """
    for j in range(w.shape[0]):
        i = j >> terms
        total = np.int32(0)
        for k in range(width):
            total = np.int32(total + np.int32(np.int32(a[i, k]) * np.int32(w[j, k])))
        out[j] = np.float64(total)


@kernel(f"void({I32_2D}, {I32_2D}, int64, int64, int64, {F64})")
def sums32(a: Array, w: Array, terms: Scalar, width: Scalar, nans: Scalar, out: Array) -> None:
    """As sums16 in 64 bits; with NaN codes about, one that meets a code that is not zero makes the sum NaN."""
    for j in range(w.shape[0]):
        i = j >> terms
        total = np.int64(0)
        if nans == 0:
            for k in range(width):
                total += np.int64(a[i, k]) * np.int64(w[j, k])
            out[j] = np.float64(total)
        else:
            met = 0
            for k in range(width):
                if a[i, k] != 0 and w[j, k] != 0:
                    if a[i, k] == NAN_UNITS or w[j, k] == NAN_UNITS:
                        met += 1
                    else:
                        total += np.int64(a[i, k]) * np.int64(w[j, k])
            out[j] = np.nan if met > 0 else np.float64(total)


@kernel(f"float32(float32, {F64}, {F64}, {F64}, int64, int64)")
def accumulate(acc: Scalar, sums: Array, pa: Array, pw: Array, blocks: Scalar, terms: Scalar) -> Scalar:
    """acc = RNE(acc + RNE(sum * 2^(sa + sb))) for blocks ascending; float64 scales a sum of 42 bits exactly."""
    for j in range(blocks):
        acc = np.float32(acc + np.float32(sums[j] * (pa[j >> terms] * pw[j])))
    return acc


@kernel(f"void({I64_2D}, int64, int64, int64, {U8}, {F64}, float64, {F64})")
def scales(o: Array, k: Scalar, at: Scalar, blocks: Scalar, m8: Array, powers: Array, unit: Scalar, out: Array) -> None:
    """Scales of `blocks` blocks from element offset `at` on, times the unit of the codes."""
    if o[k, O_SCALE] == 0:
        for j in range(blocks):
            out[j] = unit
    else:
        base = o[k, O_ABS] + o[k, O_SBASE] + (at >> 5)
        for j in range(blocks):
            out[j] = powers[m8[base + j]] * unit


@kernel("float64(int64)")
def unit_of(form: Scalar) -> Scalar:
    """Value of one unit of a format's codes."""
    if form == E2M1:
        return 0.5
    return 2.0**-9 if form == E4M3 else 2.0**-6


@kernel(f"int64({I64_2D}, int64, int64, int64, int64, int64, int64, {U8}, {I32}, {I16}, {I32}, {I16}, {I32}, {I16}, {I32})")
def load_columns(
    o: Array, column: Scalar, count: Scalar, KT: Scalar, by_rows: Scalar, wide: Scalar, n1: Scalar,
    m8: Array, m32: Array, units: Array, e4m3: Array, w16: Array, w32: Array, t16: Array, t32: Array,
) -> Scalar:  # fmt: skip
    """Decode `count` columns of the weights from `column` on, each KT contiguous integers; the number of NaN codes."""
    nans = 0
    if by_rows != 0:
        for k in range(KT):
            at = row0(o, OB, k, m32) + column * o[OB, O_STRIDE + 2]
            if wide != 0:
                nans += decode32(o, OB, at, count, m8, units, e4m3, t32)
                for n in range(count):
                    w32[n * KT + k] = t32[n]
            else:
                decode16(o, OB, at, count, m8, units, t16)
                for n in range(count):
                    w16[n * KT + k] = t16[n]
    else:
        for n in range(count):
            at = row0(o, OB, (column + n) // n1, m32) + ((column + n) % n1) * o[OB, O_STRIDE + 1]
            if wide != 0:
                nans += decode32(o, OB, at, KT, m8, units, e4m3, w32[n * KT : n * KT + KT])
            else:
                decode16(o, OB, at, KT, m8, units, w16[n * KT : n * KT + KT])
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
    if o[OD, O_EXT] < o[OA, O_EXT] or o[OD, O_EXT + 1] < o[OA, O_EXT + 1] or o[OD, O_EXT + 2] < N:
        return T_SHAPE
    return 0


_MATMUL = f"{U8}, {I32}, {F32}, {I16}, {I32}, {F64}, {I16}, {I32}, {I16}, {I32}, {F64}, {F64}, {F64}"


@kernel(f"int64({I64_2D}, int64, int64, int64, {_MATMUL})")
def matmul(
    o: Array, zero: Scalar, by_rows: Scalar, terms: Scalar,
    m8: Array, m32: Array, mf: Array, units: Array, e4m3: Array, powers: Array,
    a16: Array, a32: Array, w16: Array, w32: Array, pa: Array, pw: Array, sums: Array,
) -> Scalar:  # fmt: skip
    """Run a MATMUL whose shapes have been checked; 0 or the code of a trap, nothing written then.

    a16, a32 and w16, w32 are scratch (each pair two views of one buffer) of 2^20 elements and more, pa, pw, sums of 2^15.
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
    unit_a, unit_w = unit_of(o[OA, O_FORMAT]), unit_of(o[OB, O_FORMAT])
    blocks = KT >> 5
    width = KT // blocks
    target = (o[OD, O_ABS] + o[OD, O_BASE]) >> 2
    group = max(1, min(N, CAPACITY // KT))
    for column in range(0, N, group):
        count = min(group, N - column)
        w_nans = load_columns(o, column, count, KT, by_rows, wide, n1, m8, m32, units, e4m3, w16, w32, a16, a32)
        for n in range(count):
            at = 0
            if by_rows == 0:
                at = row0(o, OB, (column + n) // n1, m32) + ((column + n) % n1) * o[OB, O_STRIDE + 1]
            scales(o, OB, at, blocks, m8, powers, unit_w, pw[n * blocks : n * blocks + blocks])
        for i0 in range(e0):
            row_a = row0(o, OA, i0, m32)
            row_d = target + row0(o, OD, i0, m32) + column * o[OD, O_STRIDE + 2]
            for i1 in range(e1):
                at = row_a + i1 * o[OA, O_STRIDE + 1]
                nans = w_nans
                if wide != 0:
                    nans += decode32(o, OA, at, K, m8, units, e4m3, a32)
                else:
                    decode16(o, OA, at, K, m8, units, a16)
                scales(o, OA, at, K >> 5, m8, powers, unit_a, pa)
                d = row_d + i1 * o[OD, O_STRIDE + 1]
                rows16, rows32 = a16[:K].reshape(K >> 5, width), a32[:K].reshape(K >> 5, width)
                for n in range(count):
                    if wide != 0:
                        column32 = w32[n * KT : n * KT + KT].reshape(blocks, width)
                        sums32(rows32, column32, terms, width, nans, sums)
                    else:
                        column16 = w16[n * KT : n * KT + KT].reshape(blocks, width)
                        sums16(rows16, column16, terms, width, sums)
                    acc = np.float32(0.0) if zero != 0 else mf[d + n * o[OD, O_STRIDE + 2]]
                    acc = accumulate(acc, sums, pa, pw[n * blocks : n * blocks + blocks], blocks, terms)
                    if acc != acc:
                        m32[d + n * o[OD, O_STRIDE + 2]] = np.int32(0x7FC00000)
                    else:
                        mf[d + n * o[OD, O_STRIDE + 2]] = acc
    return 0

"""Rows of the vector unit: reading and dequantising, chained operations, sums, quantising and writing.

A row is n values in scratch, seen both as float32 and as int32. A NaN may have any pattern in scratch; it becomes
0x7FC00000 where it is written.
"""

from __future__ import annotations

import numpy as np

from ._functions import MASKED, NAN_BITS, encode, exp2fx, fix, pow2, rcp, rsqrt, scale_exponent, shift_add, weight
from ._jit import F32, F64, I16, I32, I64_2D, U8, Array, Scalar, kernel
from ._state import E2M1, E4M3, E8M0, FP32, INT32, O_ABS, O_BASE, O_FORMAT, O_SBASE, O_SCALE, O_STRIDE
from .matrix import NAN_UNITS, unit_of


@kernel(f"void({I64_2D}, int64, int64, int64, {U8}, {I32}, {I16}, {I32}, {F64}, {F32}, {I32})")
def load(
    o: Array, k: Scalar, at: Scalar, n: Scalar,
    m8: Array, m32: Array, units: Array, e4m3: Array, powers: Array, out: Array, out_bits: Array,
) -> None:  # fmt: skip
    """Read n elements of operand k from element offset `at` on, dequantised with one rounding, or INT32 as it is."""
    form = o[k, O_FORMAT]
    base = o[k, O_ABS] + o[k, O_BASE]
    step = 1 if form == E2M1 else o[k, O_STRIDE + 2]
    if form in (FP32, INT32):
        w = (base >> 2) + at
        if step == 1:
            words = m32[w : w + n]
            for i in range(n):
                out_bits[i] = words[i]
        else:
            for i in range(n):
                out_bits[i] = m32[w + i * step]
    elif form == E8M0:
        for i in range(n):
            out[i] = np.float32(powers[m8[base + at + i * step]])
    else:
        sbase = o[k, O_ABS] + o[k, O_SBASE]
        unit = unit_of(form)
        scaled = o[k, O_SCALE] != 0
        factor = unit
        for i in range(n):
            e = at + i * step
            if scaled and (i == 0 or e & 31 == 0 or step != 1):
                factor = powers[m8[sbase + (e >> 5)]] * unit
            if form == E2M1:
                code = np.int64(units[(m8[base + (e >> 1)] >> (4 * (e & 1))) & 15])
            elif form == E4M3:
                code = np.int64(e4m3[m8[base + e]])
            else:
                code = np.int64(np.int8(m8[base + e]))
            out[i] = np.float32(np.nan) if code == NAN_UNITS else np.float32(np.float64(code) * factor)


@kernel(f"void(int64, int64, {F32}, {I32}, {F32}, {I32})")
def operate(code: Scalar, n: Scalar, v: Array, v_bits: Array, b: Array, b_bits: Array) -> None:
    """v = v (op) b for the operation codes 1..11: FP32 with one rounding, INT32 modulo 2^32."""
    if code == 1:
        for i in range(n):
            v[i] = v[i] + b[i]
    elif code == 2:
        for i in range(n):
            v[i] = v[i] - b[i]
    elif code == 3:
        for i in range(n):
            v[i] = v[i] * b[i]
    elif code == 4 or code == 5:
        for i in range(n):
            x, y = v[i], b[i]
            if x != x or y != y:
                v_bits[i] = NAN_BITS
            elif x == y:  # equal, or zeros: of two patterns that differ in the sign the one that is asked for
                v_bits[i] = (v_bits[i] & b_bits[i]) if code == 4 else (v_bits[i] | b_bits[i])
            elif (x < y) == (code == 4):
                v[i] = y
    elif code == 6:
        for i in range(n):
            v_bits[i] = np.int32(v_bits[i] + b_bits[i])
    elif code == 7:
        for i in range(n):
            v_bits[i] = np.int32(v_bits[i] - b_bits[i])
    elif code == 8:
        for i in range(n):
            v_bits[i] = max(v_bits[i], b_bits[i])
    elif code == 9:
        for i in range(n):
            v_bits[i] = min(v_bits[i], b_bits[i])
    elif code == 10:
        for i in range(n):
            v_bits[i] = np.int32(1) if v_bits[i] == b_bits[i] else np.int32(0)
    elif code == 11:
        for i in range(n):
            v_bits[i] = np.int32(1) if v_bits[i] < b_bits[i] else np.int32(0)


@kernel(f"void(int64, {F32}, {F32}, {I32}, {I32})")
def shift_add_row(n: Scalar, v: Array, b: Array, ev: Array, eb: Array) -> None:
    """v = shift_add(v, ev, b, eb)."""
    for i in range(n):
        v[i] = shift_add(v[i], np.int64(ev[i]), b[i], np.int64(eb[i]))


@kernel(f"void(int64, int64, {F32}, {I32}, {I32}, {F64}, {U8})")
def exp2_row(code: Scalar, n: Scalar, v: Array, v_bits: Array, b_bits: Array, table: Array, masked: Array) -> None:
    """Operations 13 exp2, which marks the masked, and 14 weight: v holds F, b holds M."""
    for i in range(n):
        F = np.int64(v_bits[i])
        M = np.int64(b_bits[i])
        if code == 13:
            masked[i] = 1 if F == MASKED else 0
            v[i] = exp2fx(F, M, table)
        else:
            v_bits[i] = np.int32(weight(F, M, table))


@kernel(f"void(int64, {F32}, {F32}, {U8})")
def multiply_unmasked(n: Scalar, v: Array, b: Array, masked: Array) -> None:
    """Operation 10 of op2, mulm: a masked element stays +0."""
    for i in range(n):
        if masked[i] == 0:
            v[i] = v[i] * b[i]


@kernel(f"void(int64, int64, {F32}, {I32})")
def function(code: Scalar, n: Scalar, v: Array, v_bits: Array) -> None:
    """1 rcp, 2 rsqrt, 3 fix."""
    if code == 1:
        for i in range(n):
            v[i] = rcp(v[i])
    elif code == 2:
        for i in range(n):
            v[i] = rsqrt(v[i])
    elif code == 3:
        for i in range(n):
            v_bits[i] = fix(v[i])


@kernel(f"float32({F32}, int64)")
def tree_sum(t: Array, n: Scalar) -> Scalar:
    """Balanced tree over t[0..n), which it overwrites: element 2i with 2i + 1, an odd last one passes up."""
    while n > 1:
        half = n >> 1
        for i in range(half):
            t[i] = t[2 * i] + t[2 * i + 1]
        if n & 1:
            t[half] = t[n - 1]
        n = half + (n & 1)
    return t[0]


@kernel(f"int32(int64, int64, {I32}, {F32})")
def reduce_bits(code: Scalar, n: Scalar, v_bits: Array, v: Array) -> Scalar:
    """Reductions of v at the end: 3 ceilmax, 4 imax, 6 isum, 7 fmax (its bits)."""
    if code == 7:
        best = v[0]
        bits = v_bits[0]
        for i in range(n):
            x = v[i]
            if x != x or best != best:
                return np.int32(NAN_BITS)
            if x > best:
                best = x
                bits = v_bits[i]
            elif x == best:
                bits &= v_bits[i]
        return bits
    if code == 6:
        total = np.int32(0)
        for i in range(n):
            total = np.int32(total + v_bits[i])
        return total
    most = v_bits[0]
    for i in range(n):
        most = max(most, v_bits[i])
    if code == 3 and most != MASKED:
        return np.int32(-((-np.int64(most)) >> 16))
    return most


@kernel(f"void({I64_2D}, int64, int64, int64, int64, {I32}, {F32}, {I32})")
def store(o: Array, k: Scalar, at: Scalar, n: Scalar, is_float: Scalar, m32: Array, v: Array, v_bits: Array) -> None:
    """Write n words of operand k from element offset `at` on; an FP32 NaN as its one pattern."""
    w = ((o[k, O_ABS] + o[k, O_BASE]) >> 2) + at
    step = o[k, O_STRIDE + 2]
    if is_float != 0:
        for i in range(n):
            v_bits[i] = np.int32(NAN_BITS) if v[i] != v[i] else v_bits[i]
    if step == 1:
        words = m32[w : w + n]
        for i in range(n):
            words[i] = v_bits[i]
    else:
        for i in range(n):
            m32[w + i * step] = v_bits[i]


@kernel(f"int64({I32}, int64, int64)")
def scale_code(v_bits: Array, n: Scalar, form: Scalar) -> Scalar:
    """Scale code of n values that share one (rule 4)."""
    most = np.int32(0)
    for i in range(n):
        most = max(most, np.int32(v_bits[i] & 0x7FFFFFFF))
    if most >= 0x7F800000:
        return 255
    if most == 0:
        return 0
    emax = 2 if form == E2M1 else 8 if form == E4M3 else 0
    return scale_exponent(most, emax) + 127


@kernel(f"void({F32}, int64, int64, int64, int64, int64, int64, {U8})")
def write_codes(
    v: Array, n: Scalar, padded: Scalar, scale: Scalar, form: Scalar, at: Scalar, step: Scalar, m8: Array
) -> None:
    """Write the codes of n values under a scale code, then zero codes up to `padded`; at: in elements of the memory."""
    live = scale != 255
    factor = pow2(127 - scale)
    for i in range(padded):
        code = encode(v[i], factor, form) if live and i < n else 0
        e = at + i * step
        if form == E2M1:
            shift = 4 * (e & 1)
            m8[e >> 1] = (m8[e >> 1] & (240 >> shift)) | (code << shift)
        else:
            m8[e] = code


@kernel(f"void({I64_2D}, int64, int64, int64, {U8}, {F32}, {I32})")
def store_blocks(o: Array, k: Scalar, at: Scalar, n: Scalar, m8: Array, v: Array, v_bits: Array) -> None:
    """Quantise n values by blocks of 32; the last one is filled up with zero codes."""
    form = o[k, O_FORMAT]
    base = o[k, O_ABS] + o[k, O_BASE]
    sbase = o[k, O_ABS] + o[k, O_SBASE]
    codes = base * 2 + at if form == E2M1 else base + at
    for j in range((n + 31) >> 5):
        first = 32 * j
        count = min(32, n - first)
        scale = scale_code(v_bits[first : first + count], count, form)
        m8[sbase + ((at + first) >> 5)] = scale
        write_codes(v[first : first + count], count, 32, scale, form, codes + first, 1, m8)


@kernel(f"int64({I64_2D}, int64, int64, int64, {U8}, {F32}, {I32})")
def store_row(o: Array, k: Scalar, at: Scalar, n: Scalar, m8: Array, v: Array, v_bits: Array) -> Scalar:
    """Quantise a row that shares one scale, write its codes; the scale code."""
    form = o[k, O_FORMAT]
    base = o[k, O_ABS] + o[k, O_BASE]
    scale = scale_code(v_bits, n, form)
    padded = (n + 1) & ~1 if form == E2M1 else n  # an odd last code has a zero code beside it
    write_codes(v, n, padded, scale, form, base * 2 + at if form == E2M1 else base + at, o[k, O_STRIDE + 2], m8)
    return scale

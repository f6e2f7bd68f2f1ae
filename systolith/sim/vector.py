"""Vector unit: VEC, one pass over a tensor row by row, and PICK, which samples."""

from __future__ import annotations

import numpy as np

from ._functions import MASKED, NAN_BITS
from ._jit import F32, F64, I16, I32, I64, I64_2D, U8, Array, Scalar, kernel
from ._operands import check, row0
from ._pick import choose
from ._rows import (
    exp2_row,
    function,
    load,
    multiply_unmasked,
    operate,
    reduce_bits,
    shift_add_row,
    store,
    store_blocks,
    store_row,
    tree_sum,
)  # fmt: skip
from ._state import (
    ACC,
    CELL,
    E8M0,
    FP32,
    INT8,
    INT32,
    O_ABS,
    O_BASE,
    O_EXT,
    O_FORMAT,
    O_SCALE,
    O_SPACE,
    O_STRIDE,
    OA,
    OB,
    OC,
    OD,
    OE,
    OPERANDS,
    OX,
    REGS,
    SPAD,
    W_C,
    W_F,
)  # fmt: skip
from ._traps import T_FORMAT, T_SHAPE, T_SPACE

ROW = 1 << 20
"""Most elements of a row: 20 bits of extent."""
_TABLES = f"{I16}, {I32}, {F64}, {F64}"


@kernel(f"void({I64_2D}, int64, int64, int64, int64, {U8}, {I32}, {_TABLES}, {F32}, {I32})")
def fetch(
    o: Array, k: Scalar, i0: Scalar, i1: Scalar, n: Scalar, m8: Array, m32: Array,
    units: Array, e4m3: Array, powers: Array, exp2_table: Array, out: Array, out_bits: Array,
) -> None:  # fmt: skip
    """Read row (i0, i1) of operand k."""
    at = row0(o, k, i0, m32) + i1 * o[k, O_STRIDE + 1]
    load(o, k, at, n, m8, m32, units, e4m3, powers, out, out_bits)


@kernel(f"int64({I64_2D}, int64, int64, {I32})")
def check_vec(o: Array, padded: Scalar, reduced: Scalar, m32: Array) -> Scalar:
    """Check every operand of a VEC over A's extents; 0 or the code of a trap."""
    e0, e1, e2 = o[OA, O_EXT], o[OA, O_EXT + 1], o[OA, O_EXT + 2]
    for k in (OA, OB, OC, OX):
        if o[k, O_SPACE] >= 0:
            code = check(o, k, e0, e1, e2, m32)
            if code != 0:
                return code
    if o[OD, O_SPACE] >= 0:
        code = check(o, OD, e0, e1, (e2 + 31) & ~31 if padded != 0 else e2, m32)
        if code != 0:
            return code
    if reduced != 0:
        return check(o, OE, e0, e1, 1, m32)
    return 0


@kernel("int64(int64)")
def kind(form: Scalar) -> Scalar:
    """What reading a format gives: 1 INT32, 0 FP32."""
    return 1 if form == INT32 else 0


@kernel("int64(int64, int64)")
def writes(is_int: Scalar, form: Scalar) -> Scalar:
    """Whether a value of a kind is written in a format: 1 as it is, 2 quantised, 0 never."""
    if form == INT32:
        return is_int
    if is_int != 0 or form == E8M0:
        return 0
    return 1 if form == FP32 else 2


@kernel(f"int64({I64_2D}, int64, int64, int64, int64)")
def legal_values(o: Array, op1: Scalar, op2: Scalar, func: Scalar, red: Scalar) -> Scalar:
    """Check that FP32 meets FP32 and INT32 meets INT32 all the way; 0 or T_FORMAT."""
    a = v = kind(o[OA, O_FORMAT])
    if op1 != 0:
        wanted = 1 if (op1 >= 6 and op1 != 12) else 0
        if v != wanted or kind(o[OB, O_FORMAT]) != wanted:
            return T_FORMAT
        if op1 == 12 and (kind(o[OC, O_FORMAT]) != 1 or kind(o[OX, O_FORMAT]) != 1):
            return T_FORMAT
        v = 0 if op1 == 13 else wanted
    after_op1 = v
    if op2 != 0:
        wanted = 1 if 6 <= op2 <= 9 else 0
        if v != wanted or kind(o[OC, O_FORMAT]) != wanted:
            return T_FORMAT
    if func != 0:
        if v != 0:
            return T_FORMAT
        v = 1 if func == 3 else 0
    if red == 5:
        element = o[OD, O_FORMAT] <= INT8 and o[OD, O_SCALE] == 0
        return 0 if v == 0 and element and o[OE, O_FORMAT] == E8M0 else T_FORMAT
    if o[OD, O_SPACE] >= 0:
        how = writes(v, o[OD, O_FORMAT])
        if how == 0 or (how == 2 and o[OD, O_SCALE] == 0):
            return T_FORMAT
    if red != 0:
        source = after_op1 if red == 1 else a if red == 2 else v
        if source != (0 if red == 1 or red == 2 or red == 7 else 1):
            return T_FORMAT
        if writes(source, o[OE, O_FORMAT]) != 1:
            return T_FORMAT
    return 0


@kernel(f"int64({I64_2D})")
def legal_spaces(o: Array) -> Scalar:
    """Check the spaces of the operands of VEC and PICK; 0 or T_SPACE."""
    for k in range(OPERANDS):
        space = o[k, O_SPACE]
        if space >= 0 and space != SPAD and space != CELL and (space != ACC or k in (OD, OE)):
            return T_SPACE
        if space >= 0 and space != SPAD and o[k, O_FORMAT] != FP32 and o[k, O_FORMAT] != INT32:  # codes, scales
            return T_SPACE
    return 0


@kernel(f"void(int64, int64, int64, int64, int64, int64, {I32})")
def mask_row(n: Scalar, r: Scalar, first: Scalar, hi: Scalar, window: Scalar, rw: Scalar, v_bits: Array) -> None:
    """Replace by MASKED what is not visible: j = first + i is if j < hi and, with a window, j >= hi - window."""
    for i in range(n):
        j = first + i
        if j >= hi or (rw != 0 and j < hi - window):
            v_bits[i] = MASKED


@kernel("int64(int64)")
def signed(x: Scalar) -> Scalar:
    """Read a register as two's complement."""
    return (x ^ 0x80000000) - 0x80000000


@kernel(f"void({I64_2D}, int64, int64, int32, {U8}, {I32})")
def put_result(o: Array, i0: Scalar, i1: Scalar, result: Scalar, m8: Array, m32: Array) -> None:
    """Write a reduction to E at index (i0, i1, 0)."""
    at = row0(o, OE, i0, m32) + i1 * o[OE, O_STRIDE + 1]
    base = o[OE, O_ABS] + o[OE, O_BASE]
    if o[OE, O_FORMAT] == E8M0:
        m8[base + at] = result
    else:
        m32[(base >> 2) + at] = result


_SCRATCH = f"{F32}, {I32}, {F32}, {I32}, {F32}, {I32}, {F32}, {I32}, {U8}"


@kernel(f"int64({I64_2D}, int64, {I64_2D}, int64, {I64_2D}, {U8}, {I32}, {_TABLES}, {_SCRATCH})")
def vec(
    st: Array, s: Scalar, words: Array, pc: Scalar, o: Array, m8: Array, m32: Array,
    units: Array, e4m3: Array, powers: Array, exp2_table: Array,
    v: Array, v_bits: Array, b: Array, b_bits: Array, c: Array, c_bits: Array, t: Array, t_bits: Array, masked: Array,
) -> Scalar:  # fmt: skip
    """Run a VEC whose operands have been resolved and are of legal formats; 0 or the code of a trap."""
    op1, op2 = words[pc, W_F], words[pc, W_F + 1]
    func, red, mask = words[pc, W_F + 2], words[pc, W_F + 3], words[pc, W_F + 4]
    rj, rw, group = words[pc, W_F + 5], words[pc, W_F + 6], words[pc, W_F + 7]
    e0, e1, n = o[OA, O_EXT], o[OA, O_EXT + 1], o[OA, O_EXT + 2]
    code = legal_spaces(o)
    if code != 0 or e0 * e1 * n == 0:
        return code
    code = legal_values(o, op1, op2, func, red)
    if code != 0:
        return code
    code = check_vec(o, o[OD, O_SCALE] if o[OD, O_SPACE] >= 0 else 0, red, m32)
    if code != 0:
        return code
    hi = window = first = 0
    if mask != 0:
        hi = signed(st[s, REGS + words[pc, W_C]])
        window = signed(st[s, REGS + rw])
        first = signed(st[s, REGS + rj])
    integer = o[OA, O_FORMAT] == INT32
    if op1 >= 12:
        integer = op1 == 14
    if func == 3:
        integer = True
    for i0 in range(e0):
        for i1 in range(e1):
            fetch(o, OA, i0, i1, n, m8, m32, units, e4m3, powers, exp2_table, v, v_bits)
            summed = np.float32(0.0)
            if red == 2:
                for i in range(n):
                    t[i] = v[i] * v[i]
                summed = tree_sum(t, n)
            if op1 != 0:
                fetch(o, OB, i0, i1, n, m8, m32, units, e4m3, powers, exp2_table, b, b_bits)
            if op1 == 12:
                fetch(o, OC, i0, i1, n, m8, m32, units, e4m3, powers, exp2_table, c, c_bits)
                fetch(o, OX, i0, i1, n, m8, m32, units, e4m3, powers, exp2_table, t, t_bits)
                shift_add_row(n, v, b, c_bits, t_bits)
            elif op1 >= 13:
                exp2_row(op1, n, v, v_bits, b_bits, exp2_table, masked)
            else:
                operate(op1, n, v, v_bits, b, b_bits)
            if red == 1:
                for i in range(n):
                    t[i] = v[i]
                summed = tree_sum(t, n)
            if op2 != 0:
                fetch(o, OC, i0, i1, n, m8, m32, units, e4m3, powers, exp2_table, c, c_bits)
                if op2 == 10:
                    if op1 != 13:
                        masked[:n] = 0
                    multiply_unmasked(n, v, c, masked)
                else:
                    operate(op2, n, v, v_bits, c, c_bits)
            function(func, n, v, v_bits)
            if mask != 0:
                r = i0 * e1 + i1
                mask_row(n, r, first, hi + (r // group if group != 0 else 0), window, rw, v_bits)
            if o[OD, O_SPACE] >= 0 and red != 5:
                at = row0(o, OD, i0, m32) + i1 * o[OD, O_STRIDE + 1]
                if o[OD, O_FORMAT] == FP32 or o[OD, O_FORMAT] == INT32:
                    store(o, OD, at, n, 0 if integer else 1, m32, v, v_bits)
                else:
                    store_blocks(o, OD, at, n, m8, v, v_bits)
            if red != 0:
                result = np.int32(0)
                if red <= 2:
                    t[0] = summed
                    result = np.int32(NAN_BITS) if summed != summed else t_bits[0]
                elif red != 5:
                    result = reduce_bits(red, n, v_bits, v)
                else:
                    at = row0(o, OD, i0, m32) + i1 * o[OD, O_STRIDE + 1]
                    result = np.int32(store_row(o, OD, at, n, m8, v, v_bits))
                put_result(o, i0, i1, result, m8, m32)
    return 0


@kernel(f"int64({I64_2D}, {U8}, {I32}, {_TABLES}, {_SCRATCH}, {I64})")
def pick(
    o: Array, m8: Array, m32: Array, units: Array, e4m3: Array, powers: Array, exp2_table: Array,
    v: Array, v_bits: Array, b: Array, b_bits: Array, c: Array, c_bits: Array, t: Array, t_bits: Array, masked: Array,
    sums: Array,
) -> Scalar:  # fmt: skip
    """Run a PICK whose operands are of legal formats; 0 or the code of a trap."""
    n = o[OA, O_EXT + 2]
    code = legal_spaces(o)
    for k in range(OPERANDS):
        if o[k, O_SPACE] >= 0 and o[k, O_FORMAT] != (FP32 if k == OA else INT32):
            code = T_FORMAT
    if code != 0 or o[OA, O_EXT] * o[OA, O_EXT + 1] * n == 0:
        return code
    if o[OA, O_EXT] * o[OA, O_EXT + 1] != 1:
        return T_SHAPE
    code = check(o, OA, 1, 1, n, m32)
    if code == 0:
        code = check(o, OB, 1, 1, n, m32)
    if code == 0:
        code = check(o, OC, 1, 1, 5, m32)
    if code == 0:
        code = check(o, OX, 1, 1, 1, m32)
    if code == 0:
        code = check(o, OD, 1, 1, 1, m32)
    if code != 0:
        return code
    fetch(o, OA, 0, 0, n, m8, m32, units, e4m3, powers, exp2_table, v, v_bits)
    fetch(o, OB, 0, 0, n, m8, m32, units, e4m3, powers, exp2_table, b, b_bits)
    fetch(o, OC, 0, 0, 5, m8, m32, units, e4m3, powers, exp2_table, c, c_bits)
    fetch(o, OX, 0, 0, 1, m8, m32, units, e4m3, powers, exp2_table, t, t_bits)
    word = np.int64(0xFFFFFFFF)
    P = (np.int64(c_bits[1]) & word) | ((np.int64(c_bits[2]) & word) << 32)
    keep = np.int64(c_bits[0]) & word
    index = choose(v, v_bits, b_bits, n, keep, P, c_bits[3] & word, c_bits[4] & word, t_bits[0] & word, sums)
    m32[((o[OD, O_ABS] + o[OD, O_BASE]) >> 2) + row0(o, OD, 0, m32)] = index
    return 0

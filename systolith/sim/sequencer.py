"""Sequencer: registers, descriptors, loops and branches; `_interpreter` has the loop over words and slices."""

from __future__ import annotations

import numpy as np

from systolith.spec.limits import LOOP_DEPTH

from ._jit import I32, I64, I64_2D, Array, Scalar, kernel
from ._operands import bits_of, resolve
from ._state import (
    CONSTANT_FIELDS,
    D_BASE,
    D_BASE0,
    D_EXT,
    D_FIELDS,
    D_FORMAT,
    D_SBASE,
    D_SBASE0,
    D_SCALE,
    D_STEP,
    D_STRIDE,
    D_WRAP,
    DEPTH,
    DESCS,
    E2M1,
    LOOP_END,
    LOOP_FIELDS,
    LOOP_ITERATION,
    LOOP_LEFT,
    LOOP_START,
    LOOPS,
    O_SPACE,
    OPERANDS,
    REGS,
    W_A,
    W_B,
    W_D,
    W_F,
    W_OP,
    W_OPERANDS,
)  # fmt: skip
from ._traps import T_ADV, T_DIVIDE, T_LOOPS
from .vector import signed

SET, ALU, DESC, ADV, LOOP, BR, READX, HALT, COPY, MATMUL, VEC, PICK, PUT, SYNC, RING, TOPK, GROUP = range(1, 18)
MASK32 = 0xFFFFFFFF


@kernel("int64(int64, int64, int64)", inline=True)
def alu(fn: Scalar, x: Scalar, y: Scalar) -> Scalar:
    """A function of two unsigned 32-bit values modulo 2^32; -1 for a division by zero."""
    if fn == 0:
        value = x + y
    elif fn == 1:
        value = x - y
    elif fn == 2:
        value = np.int64(np.uint64(x) * np.uint64(y))
    elif fn == 3:
        value = x << (y & 31)
    elif fn == 4:
        value = x >> (y & 31)
    elif fn == 5:
        value = x & y
    elif fn == 6:
        value = x | y
    elif fn == 7:
        value = min(x, y)
    elif fn == 8:
        value = max(x, y)
    elif y == 0:
        return -1
    else:
        value = (x + y - 1) // y
    return value & MASK32


@kernel("boolean(int64, int64, int64)", inline=True)
def holds(cond: Scalar, x: Scalar, y: Scalar) -> Scalar:
    """Condition of BR on unsigned values."""
    if cond == 0:
        return True
    if cond == 1:
        return x == y
    if cond == 2:
        return x != y
    return x < y if cond == 3 else x >= y


@kernel(f"int64({I64_2D}, int64, int64)", inline=True)
def illegal(st: Array, s: Scalar, at: Scalar) -> Scalar:
    """Check a descriptor that ADV has changed; 0 or T_ADV."""
    form, scale = st[s, at + D_FORMAT], st[s, at + D_SCALE]
    for i in range(2):
        if st[s, at + D_BASE + i] < 0 or st[s, at + D_BASE + i] >> 40 != 0:
            return T_ADV
    empty = False
    for i in range(3):
        extent = st[s, at + D_EXT + i]
        if extent < 0 or extent >> 20 != 0:
            return T_ADV
        empty = empty or extent == 0
    if bits_of(form) == 32 and st[s, at + D_BASE] & 3 != 0:
        return T_ADV
    if not empty and (scale != 0 or form == E2M1):
        odd = 31 if scale != 0 else 1
        moves = st[s, at + D_STRIDE] | st[s, at + D_STRIDE + 1] | st[s, at + D_STEP] | st[s, at + D_WRAP]
        if st[s, at + D_STRIDE + 2] != 1 or moves & odd != 0:
            return T_ADV
        if form == E2M1 and st[s, at + D_EXT + 2] & 1 != 0:
            return T_ADV
    return 0


@kernel(f"int64({I64_2D}, int64, {I64_2D}, int64)", inline=True)
def advance(st: Array, s: Scalar, words: Array, pc: Scalar) -> Scalar:
    """Run an ADV; 0 or T_ADV."""
    dim, kind = words[pc, W_F], words[pc, W_F + 1]
    n = signed(st[s, REGS + words[pc, W_F + 3]]) if words[pc, W_F + 2] != 0 else words[pc, W_F + 4]
    at = DESCS + words[pc, W_D] * D_FIELDS
    if kind != 0:
        before = st[s, at + D_EXT + dim]
        st[s, at + D_EXT + dim] = n
        code = illegal(st, s, at)
        if code != 0:
            st[s, at + D_EXT + dim] = before
        return code
    bits = bits_of(st[s, at + D_FORMAT])
    move = n * (st[s, at + D_STEP] if dim == 3 else st[s, at + D_STRIDE + dim])
    base, sbase = st[s, at + D_BASE], st[s, at + D_SBASE]
    wrap = st[s, at + D_WRAP]
    old_base, old_sbase = base, sbase
    if wrap != 0:
        position = ((base - st[s, at + D_BASE0]) * 8) // bits
        move = (position + move) % wrap
        base, sbase = st[s, at + D_BASE0], st[s, at + D_SBASE0]
    if (move * bits) & 7 != 0 or (st[s, at + D_SCALE] != 0 and move & 31 != 0):
        return T_ADV
    st[s, at + D_BASE] = base + ((move * bits) >> 3)
    st[s, at + D_SBASE] = sbase + (move >> 5) if st[s, at + D_SCALE] != 0 else sbase
    code = illegal(st, s, at)
    if code != 0:
        st[s, at + D_BASE], st[s, at + D_SBASE] = old_base, old_sbase
    return code


@kernel(f"int64({I64_2D}, int64, {I64_2D}, int64, {I64_2D}, {I64}, {I32})", inline=True)
def resolve_all(st: Array, s: Scalar, words: Array, pc: Scalar, o: Array, cfg: Array, m32: Array) -> Scalar:
    """Resolve the operands that a word names; 0 or the code of a trap."""
    for k in range(OPERANDS):
        d = words[pc, W_OPERANDS + k]
        if d < 0:
            o[k, O_SPACE] = -1
        else:
            code = resolve(st, s, d, k, o, cfg, m32)
            if code != 0:
                return code
    return 0


@kernel(f"int64({I64_2D}, int64, {I64_2D}, {I64_2D}, int64)", inline=True)
def control(st: Array, s: Scalar, words: Array, constants: Array, pc: Scalar) -> Scalar:
    """Run an instruction of the sequencer other than READX; the next word, or -(code of a trap)."""
    op = words[pc, W_OP]
    if op == SET:
        st[s, REGS + words[pc, W_D]] = words[pc, W_F]
    elif op == ALU:
        x = st[s, REGS + words[pc, W_A]]
        y = words[pc, W_F + 2] & MASK32 if words[pc, W_F + 1] != 0 else st[s, REGS + words[pc, W_B]]
        value = alu(words[pc, W_F], x, y)
        if value < 0:
            return -T_DIVIDE
        st[s, REGS + words[pc, W_D]] = value
    elif op == DESC:
        at = DESCS + words[pc, W_D] * D_FIELDS
        for i in range(CONSTANT_FIELDS):
            st[s, at + i] = constants[words[pc, W_F], i]
        st[s, at + D_BASE0] = st[s, at + D_BASE]
        st[s, at + D_SBASE0] = st[s, at + D_SBASE]
    elif op == ADV:
        code = advance(st, s, words, pc)
        if code != 0:
            return -code
    elif op == LOOP:
        count = st[s, REGS + words[pc, W_F + 1]] if words[pc, W_F] != 0 else words[pc, W_F + 2]
        if count == 0:
            return pc + 1 + words[pc, W_F + 3]
        depth = st[s, DEPTH]
        if depth == LOOP_DEPTH:
            return -T_LOOPS
        top = LOOPS + depth * LOOP_FIELDS
        st[s, top + LOOP_START] = pc + 1
        st[s, top + LOOP_END] = pc + 1 + words[pc, W_F + 3]
        st[s, top + LOOP_LEFT] = count
        st[s, top + LOOP_ITERATION] = 0
        st[s, DEPTH] = depth + 1
    elif op == BR:
        x = st[s, REGS + words[pc, W_A]]
        y = words[pc, W_F + 2] & MASK32 if words[pc, W_F + 1] != 0 else st[s, REGS + words[pc, W_B]]
        if holds(words[pc, W_F], x, y):
            return words[pc, W_F + 3]
    return pc + 1


@kernel(f"int64({I64_2D}, int64, {I64_2D}, int64)", inline=True)
def zero_of(st: Array, s: Scalar, words: Array, pc: Scalar) -> Scalar:
    """Resolve field zero of MATMUL: 2 means the first iteration of the innermost loop, and true outside all loops."""
    zero = words[pc, W_F]
    if zero == 2:
        depth = st[s, DEPTH]
        zero = 1 if depth == 0 or st[s, LOOPS + (depth - 1) * LOOP_FIELDS + LOOP_ITERATION] == 0 else 0
    return zero


@kernel(f"int64({I64_2D}, int64, int64)", inline=True)
def close_loops(st: Array, s: Scalar, pc: Scalar) -> Scalar:
    """Go back to the start of the bodies that end at word pc, or out of them; the word to run next."""
    while st[s, DEPTH] > 0:
        top = LOOPS + (st[s, DEPTH] - 1) * LOOP_FIELDS
        if pc != st[s, top + LOOP_END]:
            break
        st[s, top + LOOP_LEFT] -= 1
        st[s, top + LOOP_ITERATION] = 1
        if st[s, top + LOOP_LEFT] > 0:
            return st[s, top + LOOP_START]
        st[s, DEPTH] -= 1
    return pc

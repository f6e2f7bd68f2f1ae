"""The interpreter: takes tokens, resolves operands, hands a word to its unit, gives tokens, goes round the slices."""

from __future__ import annotations

import numpy as np

from systolith.isa.resolved import COLS as R_COLS
from systolith.isa.resolved import COUNT as R_COUNT
from systolith.isa.resolved import FIELDS as R_FIELDS
from systolith.isa.resolved import FIRST as R_FIRST
from systolith.isa.resolved import OP as R_OP
from systolith.isa.resolved import OPERAND_COLS as R_OPERAND_COLS
from systolith.isa.resolved import PC as R_PC
from systolith.isa.resolved import POST as R_POST
from systolith.isa.resolved import QUEUE as R_QUEUE
from systolith.isa.resolved import SLICE as R_SLICE
from systolith.isa.resolved import TAKEN as R_TAKEN
from systolith.isa.resolved import VIA as R_VIA
from systolith.isa.resolved import WAIT as R_WAIT
from systolith.isa.resolved import ZERO as R_ZERO
from systolith.isa.resolved import D as R_OPERANDS
from systolith.spec.limits import SEMAPHORE_MAX, SEMAPHORES

from ._choose import group, topk
from ._jit import F32, F64, I16, I32, I64, I64_2D, U8, Array, Scalar, kernel
from ._operands import via_of
from ._state import (
    C_CURSOR,
    C_MOVED,
    C_OFFSET,
    C_RINGS,
    C_SLICES,
    C_STOP,
    C_STRIDE,
    C_TIRED,
    C_WORDS,
    CAUSE,
    CELL,
    DONE,
    ERR,
    HALTED,
    OPERANDS,
    PC,
    REGS,
    SEMS,
    STATUS,
    W_A,
    W_B,
    W_D,
    W_F,
    W_FIELDS,
    W_OP,
    W_OPERANDS,
    W_POST,
    W_QUEUE,
    W_WAIT,
)  # fmt: skip
from ._traps import T_END, T_FULL, T_POST
from .collective import put
from .dma import copy
from .host import ring
from .matrix import matmul
from .sequencer import (
    BR,
    COPY,
    GROUP,
    HALT,
    LOOP,
    MASK32,
    MATMUL,
    PICK,
    PUT,
    READX,
    RING,
    TOPK,
    VEC,
    close_loops,
    control,
    holds,
    resolve_all,
    zero_of,
)  # fmt: skip
from .vector import pick, vec

# What `run` returns.
LIMIT, STOPPED, DEADLOCK, TRAPPED, RANG, ROWS_FULL, WAITS = range(7)


@kernel(f"int64(int64, {I64_2D}, int64, {I64}, {I32})", inline=True)
def first_of(s: Scalar, words: Array, pc: Scalar, cfg: Array, m32: Array) -> Scalar:
    """Lowest rank that a PUT reaches."""
    cell = words[pc, W_B]
    if words[pc, W_F] == 0 or cell == 0:
        return 0
    first = np.int64(m32[((s * cfg[C_STRIDE] + cfg[C_OFFSET + CELL]) >> 2) + cell]) & MASK32
    return min(first, cfg[C_SLICES])


@kernel(f"int64({I64_2D}, int64, {I64}, int64)", inline=True)
def count_of(words: Array, pc: Scalar, cfg: Array, first: Scalar) -> Scalar:
    """Ranks that a PUT reaches."""
    slices = cfg[C_SLICES]
    count = words[pc, W_F]
    if count == 0:
        return slices
    apart = words[pc, W_F + 5]
    return min(count, (slices - first + (1 << apart) - 1) >> apart)


_MEMORY = f"{U8}, {I32}, {F32}"
_TABLES = f"{I16}, {I32}, {F64}, {F64}"
_SCRATCH = f"{F32}, {I32}, {F32}, {I32}, {F32}, {I32}, {F32}, {I32}, {U8}, {I64}"
_TILES = f"{I16}, {I32}, {I16}, {I32}, {F64}, {F64}, {F64}"


@kernel(f"void({I64_2D}, int64, int64, {I64_2D}, {I64_2D}, int64, int64, int64, int64, int64)", inline=True)
def write_row(
    words: Array, s: Scalar, pc: Scalar, o: Array, rows: Array, at: Scalar, zero: Scalar, taken: Scalar,
    first: Scalar, count: Scalar,
) -> None:  # fmt: skip
    """Write the resolved row of the word in hand as row `at`; columns as in `isa.resolved`."""
    for i in range(R_COLS):
        rows[at, i] = 0
    rows[at, R_SLICE] = s
    rows[at, R_PC] = pc
    rows[at, R_OP] = words[pc, W_OP]
    rows[at, R_QUEUE] = words[pc, W_QUEUE]
    rows[at, R_WAIT] = words[pc, W_WAIT]
    rows[at, R_POST] = words[pc, W_POST]
    rows[at, R_FIELDS] = words[pc, W_FIELDS]
    rows[at, R_ZERO] = zero
    rows[at, R_TAKEN] = taken
    rows[at, R_FIRST] = first
    rows[at, R_COUNT] = count
    for k in range(OPERANDS):
        to = R_OPERANDS + k * R_OPERAND_COLS
        if words[pc, W_OPERANDS + k] < 0:
            rows[at, to] = -1
        else:
            for i in range(R_OPERAND_COLS):
                rows[at, to + i] = o[k, i]
            rows[at, to + R_VIA] = via_of(o, k)


@kernel(f"int64({I64_2D}, int64, int64)", inline=True)
def missing(st: Array, s: Scalar, mask: Scalar) -> Scalar:
    """Those semaphores of a wait mask that hold no token, as a mask."""
    lacking = 0
    for n in range(SEMAPHORES):
        if (mask >> n) & 1 != 0 and st[s, SEMS + n] == 0:
            lacking |= 1 << n
    return lacking


@kernel(f"int64({I64_2D}, int64, int64, int64)", inline=True)
def move_tokens(st: Array, s: Scalar, mask: Scalar, by: Scalar) -> Scalar:
    """Add `by` tokens to the semaphores of a mask; 0, or T_POST and nothing changed."""
    for n in range(SEMAPHORES):
        if (mask >> n) & 1 != 0 and st[s, SEMS + n] + by > SEMAPHORE_MAX:
            return T_POST
    for n in range(SEMAPHORES):
        if (mask >> n) & 1 != 0:
            st[s, SEMS + n] += by
    return 0


@kernel(f"int64({I64_2D}, int64, {I64_2D}, int64)", inline=True)
def taken_of(st: Array, s: Scalar, words: Array, pc: Scalar) -> Scalar:
    """1 where a BR is about to jump, the count of a LOOP, 0 of all else."""
    op = words[pc, W_OP]
    if op == BR:
        y = words[pc, W_F + 2] & MASK32 if words[pc, W_F + 1] != 0 else st[s, REGS + words[pc, W_B]]
        return 1 if holds(words[pc, W_F], st[s, REGS + words[pc, W_A]], y) else 0
    if op == LOOP:
        return st[s, REGS + words[pc, W_F + 1]] if words[pc, W_F] != 0 else words[pc, W_F + 2]
    return 0


@kernel(f"void({I64_2D}, int64, {I64_2D}, int64, {I64_2D}, {I64}, {I64_2D}, int64, {I32})", inline=True)
def note(
    st: Array, s: Scalar, words: Array, pc: Scalar, o: Array, cfg: Array, rows: Array, at: Scalar, m32: Array
) -> None:
    """Write the resolved row of a word that is about to run as row `at`."""
    op = words[pc, W_OP]
    zero = zero_of(st, s, words, pc) if op == MATMUL else 0
    first = count = 0
    if op == PUT:
        first = first_of(s, words, pc, cfg, m32)
        count = count_of(words, pc, cfg, first)
    write_row(words, s, pc, o, rows, at, zero, taken_of(st, s, words, pc), first, count)


@kernel(f"int64({I64_2D}, {I64}, int64, int64)")
def round_over(st: Array, cfg: Array, moved: Scalar, tired: Scalar) -> Scalar:
    """Say what the end of a round over the slices means: STOPPED, LIMIT, DEADLOCK, or -1 to go on."""
    halted = 0
    for s in range(cfg[C_SLICES]):
        halted += 1 if st[s, STATUS] == HALTED else 0
    if halted == cfg[C_SLICES]:
        return STOPPED
    if moved != 0:
        return -1
    return LIMIT if tired != 0 else DEADLOCK


@kernel(
    f"int64(int64, int64, {I64_2D}, {I64_2D}, {I64_2D}, {I64_2D}, {I64}, {I64}, {I64}, {I64_2D}, {I64}, "
    f"{_MEMORY}, {_TABLES}, {_SCRATCH}, {_TILES})"
)
def run(
    only: Scalar, limit: Scalar, st: Array, words: Array, constants: Array, o: Array, cfg: Array, ran: Array,
    records: Array, rows: Array, fill: Array,
    m8: Array, m32: Array, mf: Array, units: Array, e4m3: Array, powers: Array, exp2_table: Array,
    v: Array, vi: Array, b: Array, bi: Array, c: Array, ci: Array, t: Array, ti: Array, masked: Array, sums64: Array,
    a16: Array, a32: Array, w16: Array, w32: Array, pa: Array, pw: Array, sums: Array,
) -> Scalar:  # fmt: skip
    """Run the slices in turn, from the cursor on, until all have stopped or nothing moves; why it returned.

    only : 1: the slice at the cursor alone, until it waits (WAITS), stops, or has run `limit` words in this call
    ran : executions by word    records : what RING sends    rows, fill : resolved rows, {on, rows a slice, used ...}

    One function for the loops over slices and words and for the choice of the unit: numba optimises the code of every
    function again in each of its callers, and each level costs seconds of compilation.
    """
    while True:
        s = cfg[C_CURSOR]
        why = STOPPED
        while st[s, STATUS] != HALTED:
            pc = st[s, PC]
            if pc >= cfg[C_WORDS]:
                st[s, ERR] = T_END
                return TRAPPED
            wait = words[pc, W_WAIT]
            if wait != 0 and missing(st, s, wait) != 0:
                why = WAITS
                break
            if st[s, DONE] == limit:
                why = LIMIT
                break
            if fill[0] != 0 and fill[2 + s] == fill[1]:
                why = ROWS_FULL
                break
            op = words[pc, W_OP]
            code = resolve_all(st, s, words, pc, o, cfg, m32) if op >= COPY else 0
            if code == 0 and fill[0] != 0:
                note(st, s, words, pc, o, cfg, rows, s * fill[1] + fill[2 + s], m32)
                fill[2 + s] += 1
            if wait != 0:
                move_tokens(st, s, wait, -1)
            then = pc + 1
            before = cfg[C_RINGS]
            if code != 0:
                pass
            elif op == READX:
                cell = words[pc, W_F]
                home = (s * cfg[C_STRIDE] + cfg[C_OFFSET + CELL]) >> 2
                st[s, REGS + words[pc, W_D]] = np.int64(m32[home + cell]) & MASK32 if cell != 0 else 0
            elif op == HALT:
                st[s, STATUS] = HALTED
                st[s, CAUSE] = words[pc, W_F]
            elif op < COPY:
                then = control(st, s, words, constants, pc)
                code = -then if then < 0 else 0
            elif op == MATMUL:
                code = matmul(
                    o, zero_of(st, s, words, pc), words[pc, W_F + 1], words[pc, W_F + 2], m8, m32, mf, units, e4m3,
                    powers, a16, a32, w16, w32, pa, pw, sums, v,
                )  # fmt: skip
            elif op == COPY:
                code = copy(o, words[pc, W_QUEUE], m8, m32)
            elif op == VEC:
                code = vec(
                    st, s, words, pc, o, m8, m32, units, e4m3, powers, exp2_table, v, vi, b, bi, c, ci, t, ti, masked
                )  # fmt: skip
            elif op == PUT:
                expect = words[pc, W_F + 3]
                first = first_of(s, words, pc, cfg, m32)
                code = put(
                    st, s, o, first, count_of(words, pc, cfg, first), words[pc, W_F + 5], words[pc, W_F + 4],
                    words[pc, W_F + 2], expect if expect != 0 else cfg[C_SLICES], words[pc, W_F + 1], cfg, m8, m32,
                )  # fmt: skip
            elif op == PICK:
                code = pick(
                    o, m8, m32, units, e4m3, powers, exp2_table, v, vi, b, bi, c, ci, t, ti, masked, sums64
                )  # fmt: skip
            elif op == TOPK:
                code = topk(o, m8, m32, units, e4m3, powers, exp2_table, v, vi, t, ti, sums64)
            elif op == GROUP:
                code = group(o, m8, m32, units, e4m3, powers, exp2_table, v, vi, bi, ci, ti, sums64)
            elif op == RING:
                code = ring(o, s, cfg, m32, records)
            if code == T_FULL:
                move_tokens(st, s, wait, 1)
                fill[2 + s] -= fill[0]
                return RANG
            if code == 0 and words[pc, W_POST] != 0:
                code = move_tokens(st, s, words[pc, W_POST], 1)
            if code != 0:
                st[s, ERR] = code
                return TRAPPED
            ran[pc] += 1
            st[s, DONE] += 1
            cfg[C_MOVED] += 1
            st[s, PC] = close_loops(st, s, then)
            if cfg[C_STOP] != 0 and s == 0 and cfg[C_RINGS] != before:
                return RANG
        if only != 0:
            return why
        cfg[C_TIRED] += 1 if why in (LIMIT, ROWS_FULL) else 0
        cfg[C_CURSOR] += 1
        if cfg[C_CURSOR] == cfg[C_SLICES]:
            why = round_over(st, cfg, cfg[C_MOVED], cfg[C_TIRED])
            cfg[C_CURSOR] = cfg[C_MOVED] = cfg[C_TIRED] = 0
            if why >= 0:
                return why

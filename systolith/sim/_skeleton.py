"""The interpreter's loop without arithmetic: control runs as ever, data is neither read nor written.

What a resolved row holds comes from words, registers, cells and integer tables. So an instruction runs in full where it
writes a cell or a marked table, and is left out where it writes anything else.
"""

from __future__ import annotations

import numpy as np

from systolith.isa import cycles, issue, runs
from systolith.isa.resolved import BASE as R_BASE
from systolith.isa.resolved import OPERAND_COLS as R_OPERAND_COLS
from systolith.isa.resolved import SBASE as R_SBASE
from systolith.isa.resolved import VIA as R_VIA
from systolith.spec.limits import SEMAPHORE_MAX

from ._choose import group, takes
from ._interpreter import (
    LIMIT,
    RANG,
    ROWS_FULL,
    STOPPED,
    TRAPPED,
    WAITS,
    count_of,
    first_of,
    missing,
    move_tokens,
    note,
    round_over,
    taken_of,
)
from ._jit import F32, F64, I16, I32, I64, I64_2D, U8, Array, Scalar, kernel
from ._operands import bits_of, check, row0, via_of
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
    COUNTERS,
    D_BASE0,
    D_FIELDS,
    D_FORMAT,
    D_SPACE,
    D_VIA,
    D_WRAP,
    DESCS,
    DONE,
    DRAM,
    ERR,
    HALTED,
    INT32,
    O_ABS,
    O_BASE,
    O_EXT,
    O_SBASE,
    O_SIZE,
    O_SPACE,
    O_STRIDE,
    OA,
    OD,
    OE,
    OPERANDS,
    PC,
    REGS,
    SEMS,
    SPAD,
    STATUS,
    W_D,
    W_F,
    W_FIELDS,
    W_OP,
    W_OPERANDS,
    W_POST,
    W_QUEUE,
    W_WAIT,
)
from ._traps import T_END, T_FULL, T_POST, T_SHAPE
from .collective import put
from .dma import copy
from .host import ring
from .sequencer import (
    COPY,
    GROUP,
    HALT,
    LOOP,
    MASK32,
    PICK,
    PUT,
    READX,
    RING,
    TOPK,
    VEC,
    close_loops,
    control,
    resolve_all,
)
from .vector import vec

_GRAIN = 5
"""log2 of the bytes that an entry of the table of marks stands for."""
MEMO_WORK = OPERANDS * (R_OPERAND_COLS + 1) + 1
MEMO_COLS = MEMO_WORK + cycles.WORK_COLS
"""Columns of what is remembered of a word: its operands, whether there is anything, its work."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


@kernel(f"boolean({I64_2D}, int64, {U8})", inline=True)
def marked(o: Array, k: Scalar, marks: Array) -> Scalar:
    """Whether operand k is a cell, a marked part of the scratchpad or of the DRAM that is there."""
    space = o[k, O_SPACE]
    if space == SPAD:
        return marks[o[k, O_BASE] >> _GRAIN] != 0
    return space == CELL or (space == DRAM and o[k, O_BASE] < o[k, O_SIZE])


@kernel("uint64(uint64)")
def mix(x: Scalar) -> Scalar:
    """A well mixed word of a counter (SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


@kernel(f"int64({I64_2D}, int64, int64, {I32})")
def choose_rows(o: Array, seed: Scalar, turn: Scalar, m32: Array) -> Scalar:
    """Stand in for TOPK number `turn` of a slice: k different indices a row, every set as likely; 0 or a trap.

    The choice hangs on seed, turn and row alone, so that all slices that choose for a row choose alike.
    """
    e0, e1, n, k = o[OA, O_EXT], o[OA, O_EXT + 1], o[OA, O_EXT + 2], o[OD, O_EXT + 2]
    code = takes(o, OD, INT32, 1)
    if code != 0 or e0 * e1 * n == 0:
        return code
    if k < 1 or k > n:
        return T_SHAPE
    code = check(o, OD, e0, e1, k, m32)
    if code != 0:
        return code
    base = (o[OD, O_ABS] + o[OD, O_BASE]) >> 2
    step = o[OD, O_STRIDE + 2]
    for i0 in range(e0):
        for i1 in range(e1):
            at = base + row0(o, OD, i0, m32) + i1 * o[OD, O_STRIDE + 1]
            word = mix(np.uint64(seed) + _GOLDEN * np.uint64(turn + 1)) + np.uint64(i0 * e1 + i1)
            for i in range(k):
                word += _GOLDEN
                last = n - k + i
                pick = np.int64(mix(word) % np.uint64(last + 1))
                for j in range(i):
                    if m32[at + j * step] == pick:
                        pick = last
                        break
                m32[at + i * step] = pick
    return 0


@kernel(f"int64({I64_2D}, int64, int64, int64, int64, int64, int64)")
def arrive(
    st: Array, first: Scalar, count: Scalar, apart: Scalar, counter: Scalar, expect: Scalar, sem: Scalar
) -> Scalar:  # fmt: skip
    """Count the arrivals of a PUT whose data is left out; 0 or T_POST."""
    for rank in range(first, first + (count << apart), 1 << apart):
        st[rank, COUNTERS + counter] += 1
        if st[rank, COUNTERS + counter] == expect:
            st[rank, COUNTERS + counter] = 0
            if st[rank, SEMS + sem] >= SEMAPHORE_MAX:
                return T_POST
            st[rank, SEMS + sem] += 1
    return 0


@kernel(f"void({I64_2D}, int64, {I64_2D}, int64, int64, {I64_2D})", inline=True)
def note_ring(st: Array, s: Scalar, words: Array, pc: Scalar, bank: Scalar, told: Array) -> None:
    """Note which operands of a word are in rings; those of rings inside one bank of the scratchpad apart."""
    for k in range(OPERANDS):
        d = words[pc, W_OPERANDS + k]
        if d < 0:
            continue
        at = DESCS + d * D_FIELDS
        wrap, first = st[s, at + D_WRAP], st[s, at + D_BASE0]
        if wrap != 0:
            last = first + ((wrap * bits_of(st[s, at + D_FORMAT])) >> 3) - 1
            inside = st[s, at + D_SPACE] == SPAD and first // bank == last // bank
            told[pc, 1] |= 1 << (k + OPERANDS if inside else k)


@kernel(f"void({I64_2D}, int64, {I64_2D}, int64, {I64_2D})")
def note_full(st: Array, s: Scalar, words: Array, pc: Scalar, told: Array) -> None:
    """Note that a word ran in full, and the index lists that it read through."""
    told[pc, 0] = 1
    for k in range(OPERANDS):
        d = words[pc, W_OPERANDS + k]
        if d >= 0 and st[s, DESCS + d * D_FIELDS + D_VIA] != 0:
            told[pc, 2] |= 1 << st[s, DESCS + d * D_FIELDS + D_VIA]


@kernel(f"boolean({I64_2D}, int64, {I64_2D}, {I64}, {I64_2D})", inline=True)
def remember(words: Array, pc: Scalar, o: Array, facts: Array, memo: Array) -> Scalar:
    """Whether a word's operands are those of the last time it ran, in all that its work can see; they become these."""
    same, at = True, 0
    for k in range(OPERANDS):
        if words[pc, W_OPERANDS + k] < 0:
            continue
        space = o[k, O_SPACE]
        for i in range(R_OPERAND_COLS):
            value = o[k, i]
            if i in (R_BASE, R_SBASE):
                value = runs.place_of(facts, space, value)
            elif i == R_VIA:
                value = via_of(o, k)
            if memo[pc, at] != value:
                memo[pc, at] = value
                same = False
            at += 1
        bank = runs.bank_of(facts, space, o[k, O_BASE])
        first = k
        for j in range(k):
            if bank >= 0 and words[pc, W_OPERANDS + j] >= 0 and first == k:
                first = j if runs.bank_of(facts, o[j, O_SPACE], o[j, O_BASE]) == bank else k
        if memo[pc, at] != first:
            memo[pc, at] = first
            same = False
        at += 1
    if memo[pc, MEMO_WORK - 1] == 0:
        memo[pc, MEMO_WORK - 1] = 1
        return False
    return same


@kernel(
    f"void({I64_2D}, int64, {I64_2D}, int64, {I64_2D}, {I64}, {I32}, {I64_2D}, {I64}, {I64}, int64, {I64_2D}, "
    f"{I64_2D}, {I64_2D}, {I64_2D}, {I64_2D})",
    inline=True,
)
def note_issue(
    st: Array, s: Scalar, words: Array, pc: Scalar, o: Array, cfg: Array, m32: Array, rows: Array, fill: Array,
    facts: Array, mark: Scalar, carry: Array, ops: Array, bases: Array, heads: Array, memo: Array,
) -> None:  # fmt: skip
    """Take a word that is about to run into what is issued (`isa.issue`), in place of a row of the resolved stream.

    rows : [1, COLS], scratch    carry : of each slice    ops : issues, as rows in `note`
    bases, heads : of each issue the addresses of its operands [12], and its word, operation and operands' spaces [8]
    memo : of each word, what its work saw of its operands the last time, then that work
    """
    op, queue, wait = words[pc, W_OP], words[pc, W_QUEUE], words[pc, W_WAIT]
    first = s * fill[1]
    n = issue.at_word(carry[s], mark, pc, ops, first + fill[2 + s])
    if n > first + fill[2 + s]:
        for i in range(2 * OPERANDS):
            bases[n - 1, i] = 0
        for i in range(2 + OPERANDS):
            heads[n - 1, i] = -1
    taken = taken_of(st, s, words, pc)
    if issue.is_issue(op, queue, wait):
        if not remember(words, pc, o, facts, memo):
            note(st, s, words, pc, o, cfg, rows, 0, m32)
            cycles.work_row(facts, rows[0], memo[pc, MEMO_WORK:])
        for i in range(cycles.WORK_COLS):
            ops[n, i] = memo[pc, MEMO_WORK + i]
        issue.head(facts, op, queue, wait, words[pc, W_POST], pc, taken, carry[s], ops[n])
        if op == PUT:
            rank = first_of(s, words, pc, cfg, m32)
            issue.send(facts, rank, count_of(words, pc, cfg, rank), words[pc, W_FIELDS], ops[n])
        heads[n, 0], heads[n, 1] = pc, op
        for k in range(OPERANDS):
            there = words[pc, W_OPERANDS + k] >= 0
            heads[n, 2 + k] = o[k, O_SPACE] if there else -1
            bases[n, 2 * k] = o[k, O_BASE] if there else 0
            bases[n, 2 * k + 1] = o[k, O_SBASE] if there else 0
        n += 1
    else:
        carry[s, issue.C_BEFORE] += issue.sequencer_cycles(facts, op, taken)
        carry[s, issue.C_WORDS] += 1
    fill[2 + s] = n - first
    length = words[pc, W_F + 3] if op == LOOP else 0
    issue.after_word(facts, carry[s], mark, pc, op, length, taken)


_SCRATCH = f"{F32}, {I32}, {F32}, {I32}, {F32}, {I32}, {F32}, {I32}, {U8}, {I64}"


@kernel(
    f"int64(int64, {I64_2D}, {I64_2D}, {I64_2D}, {I64_2D}, {I64}, {I64}, {I64}, {I64_2D}, {I64}, "
    f"{U8}, {I64}, int64, int64, int64, {I64}, {I64_2D}, int64, {I64}, {I64_2D}, {I64}, {I64_2D}, {I64_2D}, "
    f"{I64_2D}, {I64_2D}, {U8}, {I32}, {I16}, {I32}, {F64}, {F64}, {_SCRATCH})"
)
def run(
    limit: Scalar, st: Array, words: Array, constants: Array, o: Array, cfg: Array, ran: Array, records: Array,
    rows: Array, fill: Array, marks: Array, turns: Array, seed: Scalar,
    cut: Scalar, bank: Scalar, passed: Array, told: Array,
    mark: Scalar, facts: Array, carry: Array, plain: Array, memo: Array, ops: Array, bases: Array, heads: Array,
    m8: Array, m32: Array, units: Array, e4m3: Array, powers: Array, exp2_table: Array,
    v: Array, vi: Array, b: Array, bi: Array, c: Array, ci: Array, t: Array, ti: Array, masked: Array, sums64: Array,
) -> Scalar:  # fmt: skip
    """As `_interpreter.run`, without what no control depends on.

    marks : scratchpad that control lives in, a byte for each 32    turns : TOPKs that each slice has run
    bank : bytes of a bank of the scratchpad
    cut, passed : a slice stops before word `cut` unless it is in `passed`, once
    told : for each word whether it has run in full, which operands moved in a ring, and index lists of the former
    fill[0] : 0 nothing is noted, 1 rows, 2 issues (`note_issue`), of which a word makes up to two
    plain : for each word its cycles where it is carried and ends no loop, else 0    memo : as in `note_issue`
    PICK picks token 0. TOPK chooses by `seed` where its result is marked.
    """
    while True:
        s = cfg[C_CURSOR]
        why = STOPPED
        while st[s, STATUS] != HALTED:
            pc = st[s, PC]
            if pc >= cfg[C_WORDS]:
                st[s, ERR] = T_END
                return TRAPPED
            if pc == cut and passed[s] == 0:
                why = WAITS
                break
            wait = words[pc, W_WAIT]
            if wait != 0 and missing(st, s, wait) != 0:
                why = WAITS
                break
            if st[s, DONE] == limit:
                why = LIMIT
                break
            if fill[0] != 0 and fill[2 + s] + fill[0] > fill[1]:
                why = ROWS_FULL
                break
            op = words[pc, W_OP]
            code = resolve_all(st, s, words, pc, o, cfg, m32) if op >= COPY else 0
            if code == 0 and fill[0] == 2 and op == RING:
                count = o[OA, O_EXT] * o[OA, O_EXT + 1] * o[OA, O_EXT + 2]
                if cfg[C_RINGS] + 2 + count > len(records):
                    return RANG
            if fill[0] == 2 and plain[pc] != 0:
                carry[s, issue.C_BEFORE] += plain[pc]
                carry[s, issue.C_WORDS] += 1
            elif code == 0 and fill[0] == 2:
                note_issue(st, s, words, pc, o, cfg, m32, rows, fill, facts, mark, carry, ops, bases, heads, memo)
            elif code == 0 and fill[0] != 0:
                note(st, s, words, pc, o, cfg, rows, s * fill[1] + fill[2 + s], m32)
                fill[2 + s] += 1
            if wait != 0:
                move_tokens(st, s, wait, -1)
            if op >= COPY and cut >= 0:
                note_ring(st, s, words, pc, bank, told)
            then = pc + 1
            before = cfg[C_RINGS]
            full = op == GROUP
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
            elif op == COPY:
                full = marked(o, OD, marks)
                if full:
                    code = copy(o, words[pc, W_QUEUE], m8, m32)
            elif op == VEC:
                full = marked(o, OD, marks) or marked(o, OE, marks)
                if full:
                    code = vec(
                        st, s, words, pc, o, m8, m32, units, e4m3, powers, exp2_table, v, vi, b, bi, c, ci, t, ti,
                        masked,
                    )  # fmt: skip
            elif op == PUT:
                expect = words[pc, W_F + 3] if words[pc, W_F + 3] != 0 else cfg[C_SLICES]
                first = first_of(s, words, pc, cfg, m32)
                count = count_of(words, pc, cfg, first)
                arrives, counter, sem = words[pc, W_F + 4], words[pc, W_F + 2], words[pc, W_F + 1]
                full = marked(o, OD, marks)
                if full:
                    code = put(st, s, o, first, count, words[pc, W_F + 5], arrives, counter, expect, sem, cfg, m8, m32)
                elif arrives != 0:
                    code = arrive(st, first, count, words[pc, W_F + 5], counter, expect, sem)
            elif op == PICK:
                full = marked(o, OD, marks)
                if full:
                    m32[((o[OD, O_ABS] + o[OD, O_BASE]) >> 2) + row0(o, OD, 0, m32)] = 0
            elif op == TOPK:
                full = marked(o, OD, marks)
                if full:
                    code = choose_rows(o, seed, turns[s], m32)
                turns[s] += 1
            elif op == GROUP:
                if marked(o, OD, marks):
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
            if full and cut >= 0:
                note_full(st, s, words, pc, told)
            if pc == cut:
                passed[s] = 0
            ran[pc] += 1
            st[s, DONE] += 1
            cfg[C_MOVED] += 1
            st[s, PC] = close_loops(st, s, then)
            if cfg[C_STOP] != 0 and s == 0 and cfg[C_RINGS] != before:
                return RANG
        cfg[C_TIRED] += 1 if why in (LIMIT, ROWS_FULL) else 0
        cfg[C_CURSOR] += 1
        if cfg[C_CURSOR] == cfg[C_SLICES]:
            why = round_over(st, cfg, cfg[C_MOVED], cfg[C_TIRED])
            cfg[C_CURSOR] = cfg[C_MOVED] = cfg[C_TIRED] = 0
            if why >= 0:
                return why

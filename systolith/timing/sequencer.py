"""The sequencer: one word every issue_cycles, one descriptor copied a cycle, a stall where a queue is full.

A word is in its queue from the cycle after its dispatch; an entry is free two cycles after its instruction started (the
queue's level is registered). A taken branch and the end of a loop cost branch_cycles, the way back in a loop nothing.
"""

from __future__ import annotations

from systolith.isa import cycles, facts
from systolith.isa.compiled import Rows
from systolith.isa.resolved import COUNT, FIELDS, FIRST, OP, PC, POST, QUEUE, TAKEN, WAIT

from .candidate import consider, take_tokens, tokens_ready
from .host import halt
from .state import (
    AT_MARK,
    BLOCKED,
    DEPTH_MAX,
    DRAINING,
    DRY,
    E_RUN,
    E_RUN_CAUSE,
    E_RUN_REF,
    E_TIME,
    FULL,
    G_MARK,
    G_PASSED,
    G_STATUS,
    HALTED,
    INF,
    OP_ARRIVE,
    OP_CODE,
    OP_COLS,
    OP_COUNT,
    OP_COUNTER,
    OP_EXPECT,
    OP_FIRST,
    OP_ISSUE,
    OP_LENGTH,
    OP_PC,
    OP_POST,
    OP_QUEUE,
    OP_SEM,
    OP_TAKEN,
    OP_WAIT,
    Q_HEAD,
    Q_TAIL,
    QUEUES,
    RUN,
    S_BLOCKED,
    S_ISSUED,
    S_LOOP,
    S_LOOPS,
    S_OPS_HEAD,
    S_OPS_TAIL,
    S_RUN,
    S_RUN_CAUSE,
    S_RUN_REF,
    S_STALL_FULL,
    S_STALL_WAIT,
    S_STATE,
    S_TIME,
    SEMAPHORE,
    WAITING,
    Row,
    State,
    entry,
    kernel,
)

__all__ = ["decode_rows", "dispatch", "push"]

_LOOP, _BR, _READX, _HALT = 5, 6, 7, 8


@kernel
def decode(f: Row, row: Row, out: Row) -> None:
    """Make an instruction [OP_COLS] of a row [COLS]."""
    cycles.work_row(f, row, out)
    fields, op = row[FIELDS], row[OP]
    out[OP_CODE], out[OP_QUEUE], out[OP_WAIT], out[OP_POST], out[OP_PC] = (
        op,
        row[QUEUE],
        row[WAIT],
        row[POST],
        row[PC],
    )
    out[OP_FIRST], out[OP_COUNT], out[OP_TAKEN] = row[FIRST], row[COUNT], row[TAKEN]
    out[OP_SEM] = fields >> f[facts.PUT_SEM] & 31
    out[OP_COUNTER] = fields >> f[facts.PUT_COUNTER] & 15
    out[OP_EXPECT] = fields >> f[facts.PUT_EXPECT] & 2047
    if out[OP_EXPECT] == 0:
        out[OP_EXPECT] = f[facts.SLICES]
    out[OP_ARRIVE] = fields >> f[facts.PUT_ARRIVE] & 1
    out[OP_LENGTH] = fields >> f[facts.LOOP_LEN] & 4095
    out[OP_ISSUE] = f[facts.ISSUE]
    if (op == _BR and row[TAKEN] != 0) or (op == _LOOP and row[TAKEN] == 0):
        out[OP_ISSUE] += f[facts.BRANCH]
    elif op == _READX:
        out[OP_ISSUE] += f[facts.BANK]
    elif row[QUEUE] < QUEUES:
        out[OP_ISSUE] = max(f[facts.ISSUE], out[cycles.COPIES])


@entry
def decode_rows(f: Row, rows: Rows, ops: Rows) -> None:
    """Make instructions [n, OP_COLS] of rows [n, COLS]."""
    for i in range(rows.shape[0]):
        decode(f, rows[i], ops[i])


@entry
def push(st: State, s: int, ops: Rows) -> None:
    """Add instructions [n, OP_COLS] to the stream of a slice, which has room for them."""
    mask = st.ops.shape[1] - 1
    for i in range(ops.shape[0]):
        out = st.ops[s, st.sl[s, S_OPS_TAIL] & mask]
        st.sl[s, S_OPS_TAIL] += 1
        for j in range(OP_COLS):
            out[j] = ops[i, j]


@kernel
def end_of_word(st: State, s: int, pc: int, op: int, length: int, taken: int) -> None:
    """Follow the loops: the last word of a body ends an iteration, unless it is a branch that jumps."""
    sl = st.sl
    if op == _LOOP:
        if taken > 0:
            at = S_LOOP + 2 * sl[s, S_LOOPS]
            sl[s, at], sl[s, at + 1] = pc + 1 + length, taken
            sl[s, S_LOOPS] += 1
        else:
            pc += length
    elif op == _BR and taken != 0:
        return
    if op == _LOOP and taken > 0:
        return
    while sl[s, S_LOOPS] > 0:
        at = S_LOOP + 2 * (sl[s, S_LOOPS] - 1)
        if sl[s, at] != pc + 1:
            return
        sl[s, at + 1] -= 1
        if sl[s, at + 1] > 0:
            return
        sl[s, S_LOOPS] -= 1
        sl[s, S_TIME] += st.f[facts.BRANCH]


@kernel
def dispatch(st: State, s: int) -> None:
    """Issue words until the stream runs dry, a queue is full, a token is missing or the program ends."""
    f, sl = st.f, st.sl
    if sl[s, S_STATE] == HALTED:
        return
    if sl[s, S_STATE] == BLOCKED:
        q = sl[s, S_BLOCKED]
        if st.qu[s, q, Q_TAIL] - st.qu[s, q, Q_HEAD] >= f[facts.DEPTH + q]:
            return
    capacity = st.ops.shape[1]
    while True:
        if sl[s, S_OPS_HEAD] == sl[s, S_OPS_TAIL]:
            sl[s, S_STATE] = DRY
            return
        op = st.ops[s, sl[s, S_OPS_HEAD] & (capacity - 1)]
        marked = s == 0 and op[OP_PC] == st.g[G_MARK]
        if marked and st.g[G_PASSED] == 0:
            st.g[G_STATUS] = AT_MARK
            return
        now = sl[s, S_TIME]
        q = op[OP_QUEUE]
        if q < QUEUES:
            qu, depth = st.qu[s, q], f[facts.DEPTH + q]
            if qu[Q_TAIL] - qu[Q_HEAD] >= depth:
                sl[s, S_STATE], sl[s, S_BLOCKED] = BLOCKED, q
                return
            at = now + op[OP_ISSUE]
            if qu[Q_TAIL] >= depth:
                old = (qu[Q_TAIL] - depth) % DEPTH_MAX
                free = st.qs[s, q, old, 0] + 2
                if free > at:
                    sl[s, S_STALL_FULL] += free - at
                    at = free
                    sl[s, S_RUN], sl[s, S_RUN_CAUSE], sl[s, S_RUN_REF] = at, FULL, st.qs[s, q, old, 1]
            entry = st.qe[s, q, qu[Q_TAIL] % DEPTH_MAX]
            for i in range(OP_COLS):
                entry[i] = op[i]
            entry[E_TIME] = at
            entry[E_RUN], entry[E_RUN_CAUSE], entry[E_RUN_REF] = sl[s, S_RUN], sl[s, S_RUN_CAUSE], sl[s, S_RUN_REF]
            qu[Q_TAIL] += 1
            sl[s, S_TIME] = at
            if qu[Q_TAIL] - qu[Q_HEAD] == 1:
                consider(st, s, q)
        elif op[OP_CODE] == _READX and op[OP_WAIT] != 0:
            ready, ref = tokens_ready(st, s, op[OP_WAIT])
            if ready == INF:
                sl[s, S_STATE], sl[s, S_BLOCKED] = WAITING, op[OP_WAIT]
                return
            take_tokens(st, s, op[OP_WAIT])
            if ready > now:
                sl[s, S_STALL_WAIT] += ready - now
                sl[s, S_RUN], sl[s, S_RUN_CAUSE], sl[s, S_RUN_REF] = ready, SEMAPHORE, ref
                now = ready
            sl[s, S_TIME] = now + op[OP_ISSUE]
        elif op[OP_CODE] == _HALT:
            if not halt(st, s, op[OP_PC]):
                sl[s, S_STATE] = DRAINING
                return
            sl[s, S_OPS_HEAD] += 1
            sl[s, S_STATE] = HALTED
            return
        else:
            sl[s, S_TIME] = now + op[OP_ISSUE]
        sl[s, S_STATE] = RUN
        sl[s, S_ISSUED] += 1
        sl[s, S_OPS_HEAD] += 1
        if marked:
            st.g[G_PASSED] = 0
        end_of_word(st, s, op[OP_PC], op[OP_CODE], op[OP_LENGTH], op[OP_TAKEN])

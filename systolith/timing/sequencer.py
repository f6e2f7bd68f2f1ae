"""The sequencer: one word every issue_cycles, one descriptor copied a cycle, a stall where a queue is full.

A word is in its queue from the cycle after its dispatch; an entry is free two cycles after its instruction started (the
queue's level is registered). A taken branch and the end of a loop cost branch_cycles, the way back in a loop nothing.
`isa.issue` has added the words between two instructions of queues into one number, OP_BEFORE of the second.
"""

from __future__ import annotations

from systolith.isa import facts
from systolith.isa.compiled import Rows
from systolith.isa.issue import (
    OP_BEFORE,
    OP_CODE,
    OP_COLS,
    OP_ISSUE,
    OP_KEPT,
    OP_MARK,
    OP_PC,
    OP_QUEUE,
    OP_WAIT,
    OP_WORDS,
)

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
    Q_HEAD,
    Q_TAIL,
    QUEUES,
    RUN,
    S_BLOCKED,
    S_ISSUED,
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
    State,
    entry,
    kernel,
)

__all__ = ["dispatch", "push"]

_READX, _HALT = 7, 8


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
        marked = s == 0 and op[OP_MARK] != 0 and st.g[G_MARK] >= 0
        if marked and st.g[G_PASSED] == 0:
            st.g[G_STATUS] = AT_MARK
            return
        now = sl[s, S_TIME] + op[OP_BEFORE]
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
            for i in range(OP_KEPT):
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
            if not halt(st, s, op[OP_PC], now):
                sl[s, S_STATE] = DRAINING
                return
            sl[s, S_ISSUED] += op[OP_WORDS]
            sl[s, S_OPS_HEAD] += 1
            sl[s, S_STATE] = HALTED
            return
        else:
            sl[s, S_TIME] = now + op[OP_ISSUE]
        sl[s, S_STATE] = RUN
        sl[s, S_ISSUED] += op[OP_WORDS]
        sl[s, S_OPS_HEAD] += 1
        if marked:
            st.g[G_PASSED] = 0

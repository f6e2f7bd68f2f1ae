"""When the head of a queue may start, and what holds it: tokens, its unit, the table of instructions in flight."""

from __future__ import annotations

from systolith.isa import cycles, facts
from systolith.isa.issue import OP_WAIT

from .state import (
    AT_ONCE,
    DEPTH_MAX,
    E_TIME,
    HEAD,
    INF,
    ORDER,
    P_BEGIN,
    P_HEAD,
    P_PENDING,
    P_TAIL,
    Q_BARRIER,
    Q_CAND,
    Q_CAUSE,
    Q_END,
    Q_END_REF,
    Q_HEAD,
    Q_LAST,
    Q_REF,
    Q_START,
    Q_TABLE,
    Q_TABLE_REF,
    Q_TAIL,
    QUEUES,
    RUN,
    S_BLOCKED,
    S_EGRESS,
    S_LOADER,
    S_STATE,
    S_VECTOR,
    SEMAPHORE,
    TABLE,
    TOKENS,
    UNIT,
    WAITING,
    State,
    kernel,
)

__all__ = ["consider", "post", "take_tokens", "tokens_ready"]

_W, _L, _M, _V, _S, _C = range(6)


@kernel
def port_of(q: int) -> int:
    """Memory port of a DMA queue, -1 for the others."""
    return q if q < 2 else 2 if q == _S else -1


@kernel
def tokens_ready(st: State, s: int, mask: int) -> tuple[int, int]:
    """Cycle from which all tokens of a mask can be taken, and the record that gave the last; INF: one is missing."""
    ready, ref, i = -1, -1, 0
    while mask >> i:
        if mask >> i & 1:
            tok = st.tok[s, i]
            if tok[TOKENS, 0] == tok[TOKENS + 1, 0]:
                return INF, -1
            at = tok[tok[TOKENS, 0] % TOKENS]
            if at[0] + st.f[facts.SEMAPHORE] > ready:
                ready, ref = at[0] + st.f[facts.SEMAPHORE], at[1]
        i += 1
    return ready, ref


@kernel
def take_tokens(st: State, s: int, mask: int) -> None:
    """Take one token of each semaphore of a mask."""
    i = 0
    while mask >> i:
        if mask >> i & 1:
            st.tok[s, i, TOKENS, 0] += 1
        i += 1


@kernel
def consider(st: State, s: int, q: int) -> None:
    """Find the earliest start of the head of a queue: INF while it depends on what has not happened yet."""
    qu = st.qu[s, q]
    qu[Q_CAND] = INF
    if qu[Q_HEAD] == qu[Q_TAIL]:
        return
    entry = st.qe[s, q, qu[Q_HEAD] % DEPTH_MAX]
    at, cause, ref = entry[E_TIME], AT_ONCE, -1
    if qu[Q_START] + 1 > at:
        at, cause, ref = qu[Q_START] + 1, HEAD, qu[Q_LAST]
    port = port_of(q)
    if port >= 0:
        po = st.po[s, port]
        flying = po[P_TAIL] - po[P_HEAD] + po[P_PENDING]
        if po[P_PENDING] or flying >= st.f[facts.DEPTH + q]:
            return
        if po[P_BEGIN] > at:
            at, cause, ref = po[P_BEGIN], UNIT, qu[Q_LAST]
        if qu[Q_TABLE] > at:
            at, cause, ref = qu[Q_TABLE], TABLE, qu[Q_TABLE_REF]
        if entry[cycles.FLAGS] & cycles.ORDERED or qu[Q_BARRIER]:
            if flying > 0:
                return
            if qu[Q_END] > at:
                at, cause, ref = qu[Q_END], ORDER, qu[Q_END_REF]
    else:
        free = 0
        if q == _V:
            free = st.sl[s, S_VECTOR]
        elif q == _C:
            free = st.sl[s, S_EGRESS]
        elif entry[cycles.KIND] == cycles.MATRIX:
            free = st.sl[s, S_LOADER]
        if free > at:
            at, cause, ref = free, UNIT, qu[Q_LAST]
    if entry[OP_WAIT]:
        ready, giver = tokens_ready(st, s, entry[OP_WAIT])
        if ready == INF:
            return
        if ready > at:
            at, cause, ref = ready, SEMAPHORE, giver
    qu[Q_CAND], qu[Q_CAUSE], qu[Q_REF] = at, cause, ref


@kernel
def post(st: State, s: int, mask: int, time: int, ref: int) -> bool:
    """Give a token to each semaphore of a mask at `time`; False where one would hold more than it can."""
    i, fine = 0, True
    while mask >> i:
        if mask >> i & 1:
            tok = st.tok[s, i]
            if tok[TOKENS + 1, 0] - tok[TOKENS, 0] >= TOKENS:
                fine = False
            given = tok[TOKENS + 1, 0]
            if given > tok[TOKENS, 0]:  # tokens come in order
                time = max(time, tok[(given - 1) % TOKENS, 0])
            tok[given % TOKENS, 0], tok[given % TOKENS, 1] = time, ref
            tok[TOKENS + 1, 0] += 1
        i += 1
    for q in range(QUEUES):
        head = st.qu[s, q, Q_HEAD]
        if head != st.qu[s, q, Q_TAIL] and st.qe[s, q, head % DEPTH_MAX, OP_WAIT] & mask:
            consider(st, s, q)
    if st.sl[s, S_STATE] == WAITING and st.sl[s, S_BLOCKED] & mask:
        st.sl[s, S_STATE] = RUN
    return fine

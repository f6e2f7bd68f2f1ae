"""The event loop: the slice whose next event is earliest goes on until another could reach it through the network.

Starts, ends of copies and arrivals are the only events. Between two slices nothing travels faster than `lookahead`, and
PUTs are taken in the order of their starts over all slices (then by rank), so that the result does not depend on how
the stream was cut into buffers.
"""

from __future__ import annotations

from systolith.isa import cycles, facts
from systolith.isa.issue import OP_PC, OP_POST, OP_WAIT

from .candidate import consider, port_of, post, take_tokens
from .collective import start_put
from .cut import lookahead, take_cut, waited
from .dma import bus_due, serve, start_dma
from .matrix import start_matrix
from .records import finish, new_record, slot_of
from .sequencer import dispatch
from .state import (
    DEADLOCK,
    DEPTH_MAX,
    DRY,
    E_RUN,
    E_RUN_CAUSE,
    E_RUN_REF,
    E_TIME,
    FINISHED,
    G_CUT,
    G_CUTS,
    G_NOW,
    G_RECORDS,
    G_RINGS,
    G_SLICE,
    G_STATUS,
    GOING,
    HALTED,
    INF,
    NEEDS_FEED,
    OVERFLOW,
    Q_BYTES,
    Q_CAND,
    Q_CAUSE,
    Q_COUNT,
    Q_HEAD,
    Q_LAST,
    Q_REF,
    Q_START,
    QUEUES,
    R_BYTES,
    R_CAUSE,
    R_DISPATCH,
    R_KIND,
    R_PC,
    R_PREVIOUS,
    R_QUEUE,
    R_REF,
    R_RUN,
    R_RUN_CAUSE,
    R_RUN_REF,
    R_START,
    RECORDS_FULL,
    RINGS_FULL,
    S_CUTS,
    S_HALT,
    S_NEXT,
    S_OPS_HEAD,
    S_OPS_TAIL,
    S_STATE,
    S_TIME,
    State,
    entry,
    kernel,
)
from .vector import start_vector

__all__ = ["go_on"]

_M, _C = 2, 5


@kernel
def start(st: State, s: int, q: int) -> None:
    """Start the head of a queue: take its tokens, open its record and give it to its unit."""
    qu = st.qu[s, q]
    at, cause, ref = qu[Q_CAND], qu[Q_CAUSE], qu[Q_REF]
    op = st.qe[s, q, qu[Q_HEAD] % DEPTH_MAX]
    take_tokens(st, s, op[OP_WAIT])
    number = new_record(st, s)
    rec = st.rec[slot_of(st, number)]
    rec[R_QUEUE], rec[R_PC], rec[R_KIND], rec[R_BYTES] = q, op[OP_PC], op[cycles.KIND], op[cycles.BYTES]
    rec[R_DISPATCH], rec[R_START], rec[R_CAUSE], rec[R_REF] = op[E_TIME], at, cause, ref
    rec[R_RUN], rec[R_RUN_CAUSE], rec[R_RUN_REF] = op[E_RUN], op[E_RUN_CAUSE], op[E_RUN_REF]
    rec[R_PREVIOUS] = qu[Q_LAST]
    waited(st, s, q, port_of(q), at, cause)
    st.qs[s, q, qu[Q_HEAD] % DEPTH_MAX, 0], st.qs[s, q, qu[Q_HEAD] % DEPTH_MAX, 1] = at, number
    qu[Q_HEAD] += 1
    qu[Q_START], qu[Q_LAST] = at, number
    qu[Q_COUNT] += 1
    st.g[G_NOW] = max(st.g[G_NOW], at)
    if port_of(q) >= 0:
        start_dma(st, s, q, number, at, op)
        return
    kind = op[cycles.KIND]
    if kind == cycles.MATRIX:
        end = start_matrix(st, s, number, at, op)
    elif kind == cycles.VECTOR:
        end = start_vector(st, s, number, at, op)
    elif kind == cycles.SEND:
        qu[Q_BYTES] += op[cycles.BYTES]
        end = start_put(st, s, number, at, op)
    else:
        end = finish(st, s, q, number, at, at, at, at + 1)
    if op[OP_POST] and not post(st, s, op[OP_POST], end, number):
        st.g[G_STATUS] = OVERFLOW
    consider(st, s, q)


@kernel
def run_slice(st: State, s: int, horizon: int, others: int, other: int, rings: int, records: int) -> bool:
    """Run a slice up to `horizon`, PUTs only while no other slice has an earlier event; say whether anything moved."""
    sl, units = st.sl[s], st.f[facts.UNITS_PER_CYCLE]
    moved = False
    while True:
        if sl[S_STATE] != HALTED and not (sl[S_STATE] == DRY and sl[S_OPS_HEAD] == sl[S_OPS_TAIL]):
            dispatch(st, s)
            if st.g[G_STATUS] != GOING:
                return True
        c, q = INF, -1
        for i in range(QUEUES):
            if st.qu[s, i, Q_CAND] < c:
                c, q = st.qu[s, i, Q_CAND], i
        limit = min(c, horizon)
        if sl[S_STATE] == DRY:
            limit = min(limit, sl[S_TIME] + 1)
        cut = sl[S_CUTS] < st.g[G_CUTS] and st.g[G_CUT + sl[S_CUTS]] <= limit
        if cut:
            limit = st.g[G_CUT + sl[S_CUTS]]
        if serve(st, s, limit * units if limit < INF else INF):
            moved = True
            if st.g[G_STATUS] != GOING or st.g[G_RINGS] >= rings:
                return True
            continue
        if cut:
            take_cut(st, s)
            continue
        if c > limit or c >= horizon or (sl[S_STATE] == DRY and c > sl[S_TIME]):
            due = bus_due(st, s)
            sl[S_NEXT] = min(c, INF if due == INF else max(due // units, limit))
            if sl[S_STATE] == DRY:
                sl[S_NEXT] = min(sl[S_NEXT], sl[S_TIME] + 1)
            return moved
        if q == _C and (c > others or (c == others and other < s)):
            sl[S_NEXT] = c
            return moved
        start(st, s, q)
        moved = True
        if q == _C:
            return True  # others may now have earlier events than `others`, and answer: the horizon is another one
        if st.g[G_STATUS] != GOING or st.g[G_RINGS] >= rings or st.g[G_RECORDS] >= records:
            return True  # S_NEXT is still this slice's


@entry
def go_on(st: State, rings: int, records: int) -> int:
    """Run until a slice has used up its stream, all have halted, `rings` records to the host or `records` have come."""
    n, g = st.sl.shape[0], st.g
    ahead = lookahead(st)
    g[G_STATUS] = GOING
    while g[G_STATUS] == GOING:
        if g[G_RINGS] >= rings:
            return RINGS_FULL
        if g[G_RECORDS] >= records:
            return RECORDS_FULL
        s, first, other, second = -1, INF, -1, INF
        for i in range(n):
            at = st.sl[i, S_NEXT]
            if at < first:
                other, second = s, first
                s, first = i, at
            elif at < second:
                other, second = i, at
        g[G_SLICE] = s
        if s < 0:
            for i in range(n):
                if st.sl[i, S_STATE] != HALTED:
                    g[G_SLICE] = i
                    g[G_STATUS] = DEADLOCK
                    return DEADLOCK
            for i in range(n):
                g[G_NOW] = max(g[G_NOW], st.sl[i, S_HALT])
            return FINISHED
        horizon = second + ahead if second < INF else INF
        moved = run_slice(st, s, horizon, second, other, rings, records)
        if not moved and st.sl[s, S_NEXT] <= first and st.sl[s, S_STATE] == DRY:
            g[G_STATUS] = NEEDS_FEED
    return int(g[G_STATUS])

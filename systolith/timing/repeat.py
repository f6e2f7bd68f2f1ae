"""The timing state without its date: two moments are equal when everything from then on must go alike.

`signature` writes all that a later event reads, times relative to a moment. A time that is too old to decide anything
is written as the oldest that could: no queue starts anything before its slice's `floor`. What is left out decides only
what records say (how long the sequencer has run), or counts.
"""

from __future__ import annotations

from systolith.isa import cycles, facts
from systolith.isa.compiled import Ints
from systolith.isa.issue import OP_BEFORE, OP_COLS, OP_KEPT
from systolith.spec import SEMAPHORES

from .state import (
    AT_ONCE,
    BLOCKED,
    DEPTH_MAX,
    DRY,
    E_RUN,
    E_TIME,
    F_ARRIVE,
    F_BURSTS,
    F_COUNTER,
    F_ELIGIBLE,
    F_EXPECT,
    F_HOLD,
    F_KIND,
    F_LEAD,
    F_LEFT,
    F_NEW,
    F_OWN,
    F_OWN_END,
    F_POST,
    F_RECORD,
    F_SEM,
    F_START,
    F_TAIL,
    G_RECORDS,
    HALTED,
    INF,
    NETWORK_PORT,
    P_ASKED,
    P_ASKED_LEAST,
    P_BEGIN,
    P_HEAD,
    P_LIMIT,
    P_PENDING,
    P_SERVED,
    P_TAIL,
    P_TOTAL,
    Q_BARRIER,
    Q_CAND,
    Q_CAUSE,
    Q_END,
    Q_HEAD,
    Q_REF,
    Q_START,
    Q_TABLE,
    Q_TAIL,
    QUEUES,
    R_BEGIN,
    R_DATA_END,
    R_DISPATCH,
    R_END,
    R_FIRST,
    R_OWN_END,
    R_RUN,
    R_START,
    RUN,
    S_ARRAY,
    S_BLOCKED,
    S_BUS,
    S_BUS_LAST,
    S_COUNTER,
    S_EGRESS,
    S_END,
    S_INGRESS,
    S_LOADER,
    S_NEXT,
    S_OPS_HEAD,
    S_OPS_TAIL,
    S_STATE,
    S_TIME,
    S_VECTOR,
    TOKENS,
    WAITING,
    State,
    entry,
    kernel,
)

__all__ = ["digest", "shift", "signature"]

_NONE = -INF


@kernel
def floor_of(st: State, s: int) -> int:
    """Cycle before which a slice starts nothing any more: nothing is dispatched, and nothing waits, from earlier."""
    sl = st.sl[s]
    least = sl[S_TIME]
    if sl[S_OPS_HEAD] != sl[S_OPS_TAIL]:
        least += st.ops[s, sl[S_OPS_HEAD] & (st.ops.shape[1] - 1), OP_BEFORE]
    for q in range(QUEUES):
        for i in range(st.qu[s, q, Q_HEAD], st.qu[s, q, Q_TAIL]):
            least = min(least, st.qe[s, q, i % DEPTH_MAX, E_TIME])
    return int(least)


@kernel
def since(time: int, floor: int, moment: int) -> int:
    """Write a time that matters only where it is later than `floor`."""
    return time if time >= INF else max(time, floor) - moment


@entry
def signature(st: State, moment: int, out: Ints) -> int:
    """Write the state relative to cycle `moment`; give the number of entries."""
    n, records, units = 0, st.g[G_RECORDS], st.f[facts.UNITS_PER_CYCLE]
    all_floor = INF
    for s in range(st.sl.shape[0]):
        if st.sl[s, S_STATE] != HALTED:
            all_floor = min(all_floor, floor_of(st, s))
    for s in range(st.sl.shape[0]):
        sl = st.sl[s]
        state = sl[S_STATE]
        if state == DRY and sl[S_OPS_HEAD] != sl[S_OPS_TAIL]:
            state = RUN
        floor = floor_of(st, s)
        out[n] = state
        out[n + 1] = sl[S_BLOCKED] if state in (BLOCKED, WAITING) else 0
        out[n + 2] = sl[S_TIME] - moment
        out[n + 3] = since(sl[S_ARRAY], floor, moment)
        out[n + 4] = since(sl[S_LOADER], floor, moment)
        out[n + 5] = since(sl[S_VECTOR], floor, moment)
        out[n + 6] = since(sl[S_EGRESS], floor, moment)
        out[n + 7] = since(sl[S_INGRESS], all_floor, moment)
        out[n + 8] = since(sl[S_END], floor, moment)
        out[n + 9] = since(sl[S_NEXT], all_floor, moment)
        out[n + 10] = sl[S_BUS_LAST]
        n += 11
        for i in range(16):
            at = S_COUNTER + 3 * i
            out[n] = sl[at]
            out[n + 1] = sl[at + 1] - moment if sl[at] > 0 else 0
            out[n + 2] = sl[at + 2] - records if sl[at] > 0 else 0
            n += 3
        for i in range(SEMAPHORES):
            tok = st.tok[s, i]
            out[n] = tok[TOKENS + 1, 0] - tok[TOKENS, 0]
            n += 1
            old = floor - st.f[facts.SEMAPHORE]
            for j in range(tok[TOKENS, 0], tok[TOKENS + 1, 0]):
                time = tok[j % TOKENS, 0]
                out[n] = since(time, old, moment)
                out[n + 1] = tok[j % TOKENS, 1] - records if time > old else 0
                n += 2
        for q in range(QUEUES):
            qu = st.qu[s, q]
            head, tail = qu[Q_HEAD], qu[Q_TAIL]
            out[n] = tail - head
            out[n + 1] = since(qu[Q_START], floor - 1, moment)
            out[n + 2] = since(qu[Q_END], floor, moment)
            out[n + 3] = since(qu[Q_CAND], _NONE, moment)
            ready = qu[Q_CAND] < INF
            out[n + 4] = qu[Q_CAUSE] if ready else 0
            out[n + 5] = qu[Q_REF] - records if ready and qu[Q_CAUSE] != AT_ONCE else 0
            out[n + 6] = since(qu[Q_TABLE], floor, moment)
            out[n + 7] = qu[Q_BARRIER]
            n += 8
            for i in range(head, tail):
                op = st.qe[s, q, i % DEPTH_MAX]
                for j in range(OP_KEPT):
                    out[n + j] = op[j]
                n += OP_KEPT
                out[n] = op[E_TIME] - moment
                n += 1
            for i in range(max(0, tail - st.f[facts.DEPTH + q]), head):
                out[n] = since(st.qs[s, q, i % DEPTH_MAX, 0], floor - 2, moment)
                n += 1
            out[n] = _NONE
            n += 1
        # Where the channel is free before any burst can want it, only that matters.
        free = floor * units
        for port in range(4):
            po = st.po[s, port]
            for i in range(po[P_HEAD], po[P_TAIL]):
                fl = st.pf[s, port, i % st.pf.shape[2]]
                if fl[F_LEFT] > 0:
                    free = min(free, fl[F_ELIGIBLE])
        bus = max(sl[S_BUS], free)
        out[n] = bus - moment * units
        n += 1
        for port in range(4):
            po = st.po[s, port]
            out[n] = po[P_TAIL] - po[P_HEAD]
            out[n + 1] = po[P_PENDING]
            out[n + 2] = since(po[P_BEGIN], floor, moment)
            known = po[P_ASKED] >= 0
            out[n + 3] = since(po[P_ASKED], floor, moment) if known else _NONE
            out[n + 4] = 0 if known else po[P_LIMIT] - po[P_SERVED]
            out[n + 5] = 0 if known else since(po[P_ASKED_LEAST], floor, moment)
            # The next instruction's limit: what is outstanding beyond what has been served.
            out[n + 6] = max(po[P_TOTAL] - po[P_SERVED], 0)
            n += 7
            for i in range(po[P_HEAD], po[P_TAIL] + po[P_PENDING]):
                fl = st.pf[s, port, i % st.pf.shape[2]]
                begun = i < po[P_TAIL]
                out[n] = fl[F_RECORD] - records
                out[n + 1] = fl[F_KIND]
                out[n + 2] = fl[F_LEFT]
                out[n + 3] = fl[F_OWN]
                out[n + 4] = fl[F_TAIL]
                out[n + 5] = fl[F_POST] if port != NETWORK_PORT else fl[F_ARRIVE]
                out[n + 6] = fl[F_START] - moment
                out[n + 7] = fl[F_LEAD] if port != NETWORK_PORT else fl[F_COUNTER]
                out[n + 8] = fl[F_HOLD] if port != NETWORK_PORT else fl[F_EXPECT]
                out[n + 9] = fl[F_NEW]
                out[n + 10] = fl[F_SEM]
                out[n + 11] = fl[F_BURSTS]
                out[n + 12] = 0
                if begun and fl[F_LEFT] > 0:
                    ready_at = fl[F_ELIGIBLE]
                    if fl[F_OWN] == st.f[facts.BURST_UNITS] and ready_at < bus:
                        ready_at = bus - 1  # late for good: the channel is never faster than its own requests
                    out[n + 12] = ready_at - moment * units
                elif begun and fl[F_KIND] <= cycles.FIXED:
                    out[n + 12] = fl[F_OWN_END] - moment
                n += 13
    return n


@entry
def digest(st: State, heads: Ints) -> int:
    """Give a number that tells issues apart: those of all slices from positions `heads` [slices] to where they are."""
    found, mask = 0, st.ops.shape[1] - 1
    for s in range(st.sl.shape[0]):
        for i in range(heads[s], st.sl[s, S_OPS_HEAD]):
            op = st.ops[s, i & mask]
            for j in range(OP_COLS):
                found = found * 1099511628211 + op[j]
        found = found * 1099511628211 + st.sl[s, S_OPS_HEAD] - heads[s]
    return int(found)


@entry
def shift(st: State, by: int, oldest: int) -> None:
    """Move every entry, token and flight, and records from `oldest` on, `by` cycles on; the columns of slices, queues
    and ports are the caller's."""
    units = st.f[facts.UNITS_PER_CYCLE]
    for s in range(st.sl.shape[0]):
        for i in range(SEMAPHORES):
            tok = st.tok[s, i]
            for j in range(tok[TOKENS, 0], tok[TOKENS + 1, 0]):
                tok[j % TOKENS, 0] += by
        for q in range(QUEUES):
            for i in range(DEPTH_MAX):
                st.qe[s, q, i, E_TIME] += by
                st.qe[s, q, i, E_RUN] += by
                st.qs[s, q, i, 0] += by
        for port in range(4):
            po = st.po[s, port]
            for i in range(po[P_HEAD], po[P_TAIL] + po[P_PENDING]):
                fl = st.pf[s, port, i % st.pf.shape[2]]
                fl[F_ELIGIBLE] += by * units
                fl[F_OWN_END] += by
                fl[F_START] += by
    for i in range(max(oldest, st.g[G_RECORDS] - st.rec.shape[0]), st.g[G_RECORDS]):
        rec = st.rec[i & (st.rec.shape[0] - 1)]
        for column in (R_DISPATCH, R_START, R_BEGIN, R_FIRST, R_OWN_END, R_END, R_RUN, R_DATA_END):
            if 0 < rec[column] < INF:
                rec[column] += by

"""The DMA engines and the memory channel that they and the network's writes share.

An engine has two stages: set-up (`dma_cycles`) of one instruction while the requests of the one before it go out, one
run a cycle and at most `dram_outstanding` bursts ahead of the data. The channel serves one burst at a time, round robin
over the ports that have one whose latency has passed. Its time is whole in units of 1/UNITS_PER_CYCLE of a cycle.
As many instructions as the queue is deep may be in flight; they end in order.
"""

from __future__ import annotations

from systolith.isa import cycles, facts
from systolith.isa.issue import OP_CODE, OP_POST

from .candidate import consider, port_of, post
from .collective import arrive
from .host import ring
from .records import finish, slot_of
from .state import (
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
    G_STATUS,
    INF,
    NETWORK_PORT,
    OVERFLOW,
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
    Q_BUSY,
    Q_BYTES,
    Q_TABLE,
    Q_TABLE_REF,
    R_BEGIN,
    R_BOUND,
    R_END,
    R_FIRST,
    S_BUS,
    S_BUS_BUSY,
    S_BUS_LAST,
    S_END,
    S_END_REF,
    Row,
    State,
    kernel,
)

__all__ = ["bus_due", "serve", "start_dma"]

_RING = 15


@kernel
def queue_of(port: int) -> int:
    """Queue of a memory port."""
    return port if port < 2 else 4


@kernel
def begin(st: State, s: int, port: int, at: int) -> None:
    """Let the instruction in set-up make its requests from cycle `at`: it is the newest of the port's flights."""
    po, f = st.po[s, port], st.f
    fl = st.pf[s, port, po[P_TAIL] % st.pf.shape[2]]
    po[P_TAIL] += 1
    po[P_PENDING] = 0
    rec = st.rec[slot_of(st, fl[F_RECORD])]
    rec[R_BEGIN] = at
    if at > fl[F_START] + fl[F_LEAD]:
        rec[R_BOUND] |= 2
    kind = fl[F_KIND]
    if kind == cycles.NOTHING:
        fl[F_OWN_END] = fl[F_START] + 1
        rec[R_FIRST] = fl[F_START]
        return
    po[P_BEGIN] = at
    if kind == cycles.FIXED:
        po[P_ASKED] = at + fl[F_HOLD]
        fl[F_OWN_END] = at + fl[F_HOLD] + fl[F_TAIL]
        rec[R_FIRST] = at
        return
    po[P_TOTAL] += fl[F_BURSTS]
    po[P_LIMIT] = po[P_TOTAL] - f[facts.OUTSTANDING]
    po[P_ASKED_LEAST] = at + fl[F_HOLD]
    po[P_ASKED] = po[P_ASKED_LEAST] if po[P_SERVED] >= po[P_LIMIT] else -1
    wait = f[facts.DRAM_LATENCY] if kind == cycles.READ else 0
    fl[F_ELIGIBLE] = (at + wait) * f[facts.UNITS_PER_CYCLE]


@kernel
def retire_one(st: State, s: int, port: int, data_end: int, own_end: int) -> None:
    """End the oldest flight of a port and give its tokens."""
    po, f = st.po[s, port], st.f
    fl = st.pf[s, port, po[P_HEAD] % st.pf.shape[2]]
    number = fl[F_RECORD]
    if port == NETWORK_PORT:
        po[P_HEAD] += 1
        if own_end >= st.sl[s, S_END]:
            st.sl[s, S_END], st.sl[s, S_END_REF] = own_end, number
        if fl[F_ARRIVE]:
            arrive(st, s, own_end, number, fl[F_SEM], fl[F_COUNTER], fl[F_EXPECT])
        return
    q = queue_of(port)
    full = po[P_TAIL] - po[P_HEAD] + po[P_PENDING] >= f[facts.DEPTH + q]
    po[P_HEAD] += 1
    rec = st.rec[slot_of(st, number)]
    end = finish(st, s, q, number, rec[R_BEGIN], rec[R_FIRST], data_end, own_end)
    if full:
        st.qu[s, q, Q_TABLE], st.qu[s, q, Q_TABLE_REF] = end, number
    if fl[F_KIND] == cycles.FIXED:
        st.qu[s, q, Q_BUSY] += fl[F_HOLD]
    if fl[F_SEM]:
        ring(st, s, number, end)
    if fl[F_POST] and not post(st, s, fl[F_POST], end, number):
        st.g[G_STATUS] = OVERFLOW
    consider(st, s, q)


@kernel
def retire(st: State, s: int, port: int) -> None:
    """End what needs no memory at the head of a port's flights."""
    po = st.po[s, port]
    while po[P_HEAD] != po[P_TAIL]:
        fl = st.pf[s, port, po[P_HEAD] % st.pf.shape[2]]
        if fl[F_LEFT] > 0:
            return
        retire_one(st, s, port, fl[F_OWN_END], fl[F_OWN_END])


@kernel
def start_dma(st: State, s: int, q: int, number: int, start: int, op: Row) -> None:
    """Put an instruction into set-up; its requests begin when those before it are out."""
    port = port_of(q)
    po = st.po[s, port]
    fl = st.pf[s, port, po[P_TAIL] % st.pf.shape[2]]
    fl[F_RECORD], fl[F_KIND], fl[F_START], fl[F_POST] = number, op[cycles.KIND], start, op[OP_POST]
    fl[F_LEFT] = fl[F_BURSTS] = op[cycles.BURSTS]
    fl[F_OWN], fl[F_TAIL], fl[F_LEAD], fl[F_HOLD] = op[cycles.OWN], op[cycles.TAIL], op[cycles.LEAD], op[cycles.HOLD]
    fl[F_NEW] = 1
    fl[F_SEM] = op[OP_CODE] == _RING  # a queue has no arrivals: here it marks a record to the host
    rec = st.rec[slot_of(st, number)]
    rec[R_BEGIN] = rec[R_FIRST] = rec[R_END] = INF  # until known
    st.qu[s, q, Q_BARRIER] = op[cycles.FLAGS] & cycles.BARRIER
    st.qu[s, q, Q_BYTES] += op[cycles.BYTES]
    if op[cycles.KIND] == cycles.NOTHING:
        begin(st, s, port, start)
    elif po[P_ASKED] >= 0:
        begin(st, s, port, max(start + op[cycles.LEAD], po[P_ASKED]))
    else:
        po[P_PENDING] = 1
    retire(st, s, port)
    consider(st, s, q)


@kernel
def bus_due(st: State, s: int) -> int:
    """Time in units of the next burst, INF where there is none."""
    due = INF
    for port in range(4):
        po = st.po[s, port]
        if po[P_HEAD] != po[P_TAIL]:
            due = min(due, st.pf[s, port, po[P_HEAD] % st.pf.shape[2], F_ELIGIBLE])
    return due if due == INF else max(due, st.sl[s, S_BUS])


@kernel
def serve(st: State, s: int, limit: int) -> bool:
    """Serve bursts that begin before `limit` (units) until one ends an instruction or lets a request out: True."""
    sl, f = st.sl[s], st.f
    burst, flights = f[facts.BURST_UNITS], st.pf.shape[2]
    while True:
        due = bus_due(st, s)
        if due >= limit:
            return False
        # Ready ports in turn after the last one; the others bound how long this lasts.
        ready, chosen, until, rounds, even = 0, -1, limit, INF, True
        for i in range(4):
            port = (sl[S_BUS_LAST] + 1 + i) % 4
            po = st.po[s, port]
            if po[P_HEAD] == po[P_TAIL]:
                continue
            fl = st.pf[s, port, po[P_HEAD] % flights]
            if fl[F_ELIGIBLE] > due:
                until = min(until, fl[F_ELIGIBLE])
                continue
            ready += 1
            if chosen < 0:
                chosen = port
            left = fl[F_LEFT]
            if po[P_ASKED] < 0 and port != NETWORK_PORT:
                left = min(left, max(1, po[P_LIMIT] - po[P_SERVED]))
            rounds = min(rounds, left)
            even = even and fl[F_OWN] == burst and fl[F_NEW] == 0
        if ready > 1 and even and rounds > 1:
            rounds = min(rounds - 1, (until - due) // (ready * burst))
            if rounds > 0:
                for port in range(4):
                    po = st.po[s, port]
                    if po[P_HEAD] == po[P_TAIL]:
                        continue
                    fl = st.pf[s, port, po[P_HEAD] % flights]
                    if fl[F_ELIGIBLE] <= due:
                        fl[F_LEFT] -= rounds
                        fl[F_ELIGIBLE] += rounds * burst
                        po[P_SERVED] += rounds
                sl[S_BUS] = due + rounds * ready * burst
                sl[S_BUS_BUSY] += rounds * ready
                continue
        po = st.po[s, chosen]
        fl = st.pf[s, chosen, po[P_HEAD] % flights]
        if fl[F_NEW]:
            fl[F_NEW] = 0
            if chosen != NETWORK_PORT:
                rec = st.rec[slot_of(st, fl[F_RECORD])]
                rec[R_FIRST] = due // f[facts.UNITS_PER_CYCLE]
                if due > fl[F_ELIGIBLE]:
                    rec[R_BOUND] |= 1
        count = 1
        if ready == 1 and rounds > 1:
            if fl[F_OWN] == burst:
                count = min(rounds, -(-(until - due) // burst))
            elif due == fl[F_ELIGIBLE]:
                count = min(rounds, -(-(until - due) // fl[F_OWN]))
        step = burst if fl[F_OWN] == burst else fl[F_OWN]
        begun = due + (count - 1) * step
        fl[F_LEFT] -= count
        fl[F_ELIGIBLE] += count * fl[F_OWN]
        po[P_SERVED] += count
        sl[S_BUS] = begun + burst
        sl[S_BUS_BUSY] += count
        sl[S_BUS_LAST] = chosen
        event = False
        if chosen != NETWORK_PORT and po[P_ASKED] < 0 and po[P_SERVED] >= po[P_LIMIT]:
            po[P_ASKED] = max(po[P_ASKED_LEAST], -(-begun // f[facts.UNITS_PER_CYCLE]))
            event = True
        if fl[F_LEFT] == 0:
            data_end = -(-(begun + burst) // f[facts.UNITS_PER_CYCLE])
            retire_one(st, s, chosen, data_end, data_end + fl[F_TAIL])
            retire(st, s, chosen)
            event = True
        if event:
            if chosen != NETWORK_PORT:
                if po[P_PENDING] and po[P_ASKED] >= 0:
                    new = st.pf[s, chosen, po[P_TAIL] % flights]
                    begin(st, s, chosen, max(new[F_START] + new[F_LEAD], po[P_ASKED]))
                    retire(st, s, chosen)
                consider(st, s, queue_of(chosen))
            return True

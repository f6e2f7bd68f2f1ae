"""PUT: the source is read at the network's rate; every member takes it through its ingress, which its senders share.

An ingress serves messages in the order of their first flit; the sender keeps its way out until the slowest member has
taken the last one, so that the network holds no more than is on its wires. A slice's copy to itself passes no network.
"""

from __future__ import annotations

from systolith.isa import cycles, facts
from systolith.isa.issue import OP_ARRIVAL, OP_RANKS, arrival, ranks

from .candidate import consider, post
from .records import finish
from .state import (
    F_ARRIVE,
    F_BURSTS,
    F_COUNTER,
    F_ELIGIBLE,
    F_EXPECT,
    F_KIND,
    F_LEFT,
    F_NEW,
    F_OWN,
    F_RECORD,
    F_SEM,
    F_START,
    F_TAIL,
    G_STATUS,
    NETWORK_PORT,
    OVERFLOW,
    P_HEAD,
    P_TAIL,
    Q_BUSY,
    S_COUNTER,
    S_EGRESS,
    S_END,
    S_END_REF,
    S_INGRESS,
    S_NEXT,
    Row,
    State,
    kernel,
)

__all__ = ["arrive", "start_put"]

_C = 5


@kernel
def arrive(st: State, s: int, time: int, number: int, sem: int, counter: int, expect: int) -> None:
    """Count an arrival whose data is visible at `time` and give the token when the group is complete."""
    at = S_COUNTER + 3 * counter
    sl = st.sl[s]
    sl[at] += 1
    if time >= sl[at + 1]:
        sl[at + 1], sl[at + 2] = time, number
    if sl[at] >= expect:
        sl[at] -= expect
        latest, giver = sl[at + 1], sl[at + 2]
        sl[at + 1] = 0
        if not post(st, s, 1 << sem, latest, giver):
            st.g[G_STATUS] = OVERFLOW
        sl[S_NEXT] = min(sl[S_NEXT], latest)


@kernel
def start_put(st: State, s: int, number: int, start: int, op: Row) -> int:
    """Run a PUT that starts at `start`, the earliest of all slices; give the end of its read."""
    f = st.f
    first_flit, flits = start + op[cycles.LEAD], op[cycles.HOLD]
    latency, to_dram = f[facts.NET_LATENCY], op[cycles.FLAGS] & cycles.TO_DRAM
    sent = first_flit + flits
    lowest, end, apart = ranks(op[OP_RANKS])
    arrives, sem, counter, expect = arrival(op[OP_ARRIVAL])
    for r in range(lowest, end, apart):
        begin = first_flit
        if r != s:
            begin = max(first_flit + latency, st.sl[r, S_INGRESS])
            st.sl[r, S_INGRESS] = begin + flits
            sent = max(sent, begin + flits - latency)
        done = begin + flits
        if to_dram:
            po = st.po[r, NETWORK_PORT]
            if po[P_TAIL] - po[P_HEAD] >= st.pf.shape[2]:
                st.g[G_STATUS] = OVERFLOW
                return int(sent)
            fl = st.pf[r, NETWORK_PORT, po[P_TAIL] % st.pf.shape[2]]
            fl[F_RECORD], fl[F_KIND], fl[F_LEFT], fl[F_BURSTS] = (
                number,
                cycles.SEND,
                op[cycles.BURSTS],
                op[cycles.BURSTS],
            )
            fl[F_ELIGIBLE] = (begin + f[facts.BANK]) * f[facts.UNITS_PER_CYCLE]
            fl[F_OWN], fl[F_TAIL], fl[F_START], fl[F_NEW] = op[cycles.OWN], f[facts.DRAM_LATENCY], start, 1
            fl[F_SEM], fl[F_COUNTER], fl[F_EXPECT], fl[F_ARRIVE] = sem, counter, expect, arrives
            po[P_TAIL] += 1
            st.sl[r, S_NEXT] = min(st.sl[r, S_NEXT], begin + f[facts.BANK])
        else:
            visible = done + op[cycles.TAIL]
            if visible >= st.sl[r, S_END]:
                st.sl[r, S_END], st.sl[r, S_END_REF] = visible, number
            if arrives:
                arrive(st, r, visible, number, sem, counter, expect)
    st.sl[s, S_EGRESS] = sent
    st.qu[s, _C, Q_BUSY] += flits
    end = finish(st, s, _C, number, first_flit, first_flit, sent, sent)
    consider(st, s, _C)
    return end

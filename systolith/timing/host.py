"""The host's side: RING records as they end, and HALT, which waits for all queues."""

from __future__ import annotations

from .records import new_record, slot_of
from .state import (
    G_RINGS,
    INF,
    ORDER,
    P_HEAD,
    P_PENDING,
    P_TAIL,
    Q_HEAD,
    Q_TAIL,
    QUEUES,
    R_BEGIN,
    R_CAUSE,
    R_DISPATCH,
    R_END,
    R_FIRST,
    R_KIND,
    R_OWN_END,
    R_PC,
    R_PREVIOUS,
    R_QUEUE,
    R_REF,
    R_RUN,
    R_RUN_CAUSE,
    R_RUN_REF,
    R_START,
    S_END,
    S_END_REF,
    S_HALT,
    S_RUN,
    S_RUN_CAUSE,
    S_RUN_REF,
    S_TIME,
    State,
    kernel,
)

__all__ = ["halt", "ring"]

_SEQUENCER = 7


@kernel
def ring(st: State, s: int, number: int, end: int) -> None:
    """Note a record to the host: its last word left at `end`."""
    at = st.g[G_RINGS] % st.rings.shape[0]
    st.rings[at, 0], st.rings[at, 1], st.rings[at, 2] = s, end, number
    st.g[G_RINGS] += 1


@kernel
def halt(st: State, s: int, pc: int, now: int) -> bool:
    """Stop a slice at `now` at the earliest, if all its queues are empty and all their writes visible; say whether."""
    for q in range(QUEUES):
        if st.qu[s, q, Q_HEAD] != st.qu[s, q, Q_TAIL]:
            return False
    for port in range(4):
        if st.po[s, port, P_HEAD] != st.po[s, port, P_TAIL] or st.po[s, port, P_PENDING]:
            return False
    sl = st.sl[s]
    at = max(now + 1, sl[S_END])
    rec = st.rec[slot_of(st, new_record(st, s))]
    rec[R_QUEUE], rec[R_PC], rec[R_KIND], rec[R_DISPATCH], rec[R_PREVIOUS] = QUEUES, pc, _SEQUENCER, at, -1
    rec[R_START] = rec[R_BEGIN] = rec[R_FIRST] = rec[R_OWN_END] = rec[R_END] = at
    rec[R_RUN], rec[R_RUN_CAUSE], rec[R_RUN_REF] = sl[S_RUN], sl[S_RUN_CAUSE], sl[S_RUN_REF]
    if at == sl[S_END]:
        rec[R_CAUSE], rec[R_REF] = ORDER, sl[S_END_REF]
    sl[S_HALT] = at
    sl[S_TIME] = INF
    return True

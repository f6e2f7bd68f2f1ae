"""A cut: one cycle at which every slice's counters are written down, so that a window is the difference of two.

Slices do not run in step: a slice takes a cut when all that it does before that cycle is done and nothing after it is.
What a queue waits for at a cut is known when its next instruction starts.
"""

from __future__ import annotations

from systolith.isa import facts

from .state import (
    AT_ONCE,
    G_CUT,
    K_BUS_BUSY,
    K_BUSY,
    K_BYTES,
    K_ISSUED,
    K_STALL_FULL,
    K_STALL_WAIT,
    K_WAIT_EMPTY,
    K_WAIT_SEM,
    K_WAIT_UNIT,
    P_HEAD,
    P_TAIL,
    Q_BUSY,
    Q_BYTES,
    Q_CUTS,
    Q_END,
    Q_WAIT_EMPTY,
    Q_WAIT_SEM,
    Q_WAIT_UNIT,
    QUEUES,
    S_BUS_BUSY,
    S_CUTS,
    S_ISSUED,
    S_STALL_FULL,
    S_STALL_WAIT,
    SEMAPHORE,
    State,
    kernel,
)

__all__ = ["lookahead", "take_cut", "waited"]


@kernel
def lookahead(st: State) -> int:
    """Cycles that one slice may be ahead of another: nothing travels faster between two."""
    return int(2 * st.f[facts.BANK] + st.f[facts.NET_LATENCY])


@kernel
def take_cut(st: State, s: int) -> None:
    """Write a slice's counters down for its next cut."""
    sl = st.sl[s]
    i = sl[S_CUTS]
    sl[S_CUTS] += 1
    kept = st.cs[s, i]
    kept[K_BUS_BUSY], kept[K_ISSUED] = sl[S_BUS_BUSY], sl[S_ISSUED]
    kept[K_STALL_FULL], kept[K_STALL_WAIT] = sl[S_STALL_FULL], sl[S_STALL_WAIT]
    for q in range(QUEUES):
        qu, row = st.qu[s, q], st.cq[s, q, i]
        row[K_WAIT_SEM], row[K_WAIT_EMPTY], row[K_WAIT_UNIT] = qu[Q_WAIT_SEM], qu[Q_WAIT_EMPTY], qu[Q_WAIT_UNIT]
        row[K_BUSY], row[K_BYTES] = qu[Q_BUSY], qu[Q_BYTES]


@kernel
def waited(st: State, s: int, q: int, port: int, at: int, cause: int) -> None:
    """Count the cycles in which a queue had nothing under way before the instruction that starts at `at`.

    port : its memory port, -1 without one.
    """
    qu, sl = st.qu[s, q], st.sl[s]
    ended = max(qu[Q_END], 0)
    if port >= 0 and st.po[s, port, P_HEAD] != st.po[s, port, P_TAIL]:
        ended = at  # others are in flight
    gap = max(at - ended, 0)
    column, kept = Q_WAIT_UNIT, K_WAIT_UNIT
    if cause == SEMAPHORE:
        column, kept = Q_WAIT_SEM, K_WAIT_SEM
    elif cause == AT_ONCE:
        column, kept = Q_WAIT_EMPTY, K_WAIT_EMPTY
    qu[column] += gap
    while qu[Q_CUTS] < sl[S_CUTS]:
        st.cq[s, q, qu[Q_CUTS], kept] += min(max(st.g[G_CUT + qu[Q_CUTS]] - ended, 0), gap)
        qu[Q_CUTS] += 1

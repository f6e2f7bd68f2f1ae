"""What the event loop keeps: int64 arrays and the names of their columns. Times are cycles unless a name says units.

A unit is 1/UNITS_PER_CYCLE of a cycle: the memory channel's time, in which a burst takes a whole number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numba
import numpy as np

from systolith.isa import facts
from systolith.isa.compiled import STAMP, TYPES, compiled, stamp_of
from systolith.isa.issue import OP_COLS, OP_KEPT
from systolith.spec import SEMAPHORE_MAX, SEMAPHORES, Chip

__all__ = ["INF", "RECORD", "REC_COLS", "State", "kernel", "make_state"]

_F = TypeVar("_F", bound=Callable[..., Any])

INF: Final = 1 << 60

# In a queue, beside an issue: when it was dispatched, and since when, why and by whom the sequencer has been running.
E_TIME, E_RUN, E_RUN_CAUSE, E_RUN_REF = range(OP_KEPT, OP_KEPT + 4)
ENTRY_COLS: Final = OP_KEPT + 4

DEPTH_MAX: Final = 64
QUEUES: Final = 6
TOKENS: Final = SEMAPHORE_MAX + 1

# A record of an instruction that has run. Its number counts from the start of the run.
RECORD: Final = (
    "slice", "queue", "pc", "kind", "dispatch", "start", "begin", "first", "own_end", "end", "cause", "ref", "run",
    "run_cause", "run_ref", "previous", "bound", "bytes", "data_end",
)  # fmt: skip
(R_SLICE, R_QUEUE, R_PC, R_KIND, R_DISPATCH, R_START, R_BEGIN, R_FIRST, R_OWN_END, R_END, R_CAUSE, R_REF, R_RUN,
 R_RUN_CAUSE, R_RUN_REF, R_PREVIOUS, R_BOUND, R_BYTES, R_DATA_END) = range(len(RECORD))  # fmt: skip
REC_COLS: Final = len(RECORD)

# Why an instruction started no earlier, or the sequencer ran no earlier. `ref` is the record it waited for.
AT_ONCE, SEMAPHORE, UNIT, TABLE, ORDER, HEAD, FULL = range(7)
# AT_ONCE: when it was dispatched. UNIT: the one before it held the unit. TABLE: too many of its queue in flight.
# ORDER: the ones before it had to end. HEAD: the one before it started a cycle ago. FULL (sequencer): no free entry.

# A slice.
(S_TIME, S_STATE, S_BLOCKED, S_RUN, S_RUN_CAUSE, S_RUN_REF, S_ARRAY, S_LOADER, S_VECTOR, S_EGRESS, S_INGRESS,
 S_BUS, S_BUS_LAST, S_END, S_END_REF, S_HALT, S_NEXT, S_OPS_HEAD, S_OPS_TAIL, S_STALL_FULL, S_STALL_WAIT, S_ISSUED,
 S_BUS_BUSY, S_CUTS) = range(24)  # fmt: skip
# S_CUTS: how many cuts it has passed.
S_COUNTER: Final = 24
"""Arrival counters: (arrivals, time of the latest, its record)."""
SLICE_COLS: Final = S_COUNTER + 3 * 16

RUN, DRY, BLOCKED, WAITING, DRAINING, HALTED = range(6)
"""States of a sequencer: DRY has used up the resolved stream it was given."""

# A queue.
(Q_HEAD, Q_TAIL, Q_START, Q_END, Q_CAND, Q_CAUSE, Q_REF, Q_LAST, Q_TABLE, Q_TABLE_REF, Q_BARRIER, Q_BUSY, Q_COUNT,
 Q_BYTES, Q_WAIT_SEM, Q_WAIT_EMPTY, Q_WAIT_UNIT, Q_END_REF, Q_CUTS) = range(19)  # fmt: skip
# Q_CUTS: for how many cuts it is known what the queue waited for then.
QUEUE_COLS: Final = 19

# A memory port: queues W, L, S, and the network.
(P_HEAD, P_TAIL, P_SERVED, P_TOTAL, P_BEGIN, P_ASKED, P_LIMIT, P_ASKED_LEAST, P_PENDING) = range(9)
# P_ASKED: when the last request of the newest instruction was made, -1 while unknown: then at the P_LIMIT-th burst.
PORT_COLS: Final = 9
NETWORK_PORT: Final = 3
# An instruction on a port. With F_RECORD the numbers of a sender, F_SEM..F_ARRIVE, for arrivals.
(F_RECORD, F_KIND, F_LEFT, F_ELIGIBLE, F_OWN, F_TAIL, F_POST, F_OWN_END, F_START, F_LEAD, F_HOLD, F_NEW, F_SEM,
 F_COUNTER, F_EXPECT, F_ARRIVE, F_BURSTS) = range(17)  # fmt: skip
FLIGHT_COLS: Final = 17

# The run.
(G_RECORDS, G_STATUS, G_SLICE, G_WHERE, G_RINGS, G_NEW_RINGS, G_DONE, G_NOW, G_MARK, G_PASSED, G_CUTS,
 G_CUT) = range(12)  # fmt: skip
# G_MARK: 0: slice 0's sequencer stops the loop before a marked word (AT_MARK), -1: never. G_PASSED: it has, and may go
# on. G_CUTS: how many cuts are set; G_CUT and what follows: their cycles.
CUTS: Final = 2
"""Cycles at which each slice's counters are written down: where a window begins and where it ends."""
GLOBAL_COLS: Final = G_CUT + CUTS
# At a cut, of a queue: cycles that it has waited, by cause, that its unit has worked, bytes it has moved. Of a slice:
# bursts on its channel, words issued, stalls of the sequencer.
(K_WAIT_SEM, K_WAIT_EMPTY, K_WAIT_UNIT, K_BUSY, K_BYTES) = range(5)
CUT_QUEUE_COLS: Final = 5
(K_BUS_BUSY, K_ISSUED, K_STALL_FULL, K_STALL_WAIT) = range(4)
CUT_SLICE_COLS: Final = 4
GOING, NEEDS_FEED, FINISHED, DEADLOCK, OVERFLOW, RINGS_FULL, RECORDS_FULL, AT_MARK = range(8)


class State(NamedTuple):
    """All arrays, int64."""

    f: Any
    """[FACTS] `isa.facts.facts`."""
    g: Any
    """[GLOBAL_COLS]"""
    sl: Any
    """[slices, SLICE_COLS]"""
    ops: Any
    """[slices, capacity, OP_COLS]: issues (`isa.issue`) that the sequencer has still to dispatch, a ring."""
    qu: Any
    """[slices, 6, QUEUE_COLS]"""
    qe: Any
    """[slices, 6, 64, ENTRY_COLS]: entries of the queues."""
    qs: Any
    """[slices, 6, 64, 2]: start and record of the latest instructions of each queue."""
    tok: Any
    """[slices, 24, 258, 2]: time and record of each semaphore's tokens, a ring; [256, 0] taken, [257, 0] given."""
    po: Any
    """[slices, 4, PORT_COLS]"""
    pf: Any
    """[slices, 4, flights, FLIGHT_COLS]"""
    rec: Any
    """[records, REC_COLS], a ring."""
    rings: Any
    """[1024, 3]: slice, end, record of RING instructions."""
    cs: Any
    """[slices, CUTS, CUT_SLICE_COLS]"""
    cq: Any
    """[slices, 6, CUTS, CUT_QUEUE_COLS]"""


_I: Final = numba.int64
_DIMENSIONS: Final = {
    "f": 1, "g": 1, "sl": 2, "ops": 3, "qu": 3, "qe": 4, "qs": 4, "tok": 4, "po": 3, "pf": 4, "rec": 2, "rings": 2,
    "cs": 3, "cq": 4,
}  # fmt: skip
_NUMBA: Any = numba.types  # has no types of its own
_TYPES: Final = TYPES | {
    "tuple[int, int]": _NUMBA.UniTuple(_I, 2),
    "Row": _I[::1],
    "State": _NUMBA.NamedTuple([_NUMBA.Array(_I, _DIMENSIONS[name], "C") for name in State._fields], State),
}
Row: TypeAlias = Any
"""int64 [n]"""


_STAMP: Final = STAMP + stamp_of(
    Path(__file__).parent / f"{name}.py"
    for name in (
        "candidate", "collective", "cut", "dma", "host", "loop", "matrix", "path", "records", "repeat", "sequencer",
        "state", "vector",
    )
)  # fmt: skip


def kernel(function: _F) -> _F:
    """Compile a part of the event loop for the types that its annotations name; kept on disk.

    Always a part of its callers: the state is a hundred words that a call would have to hand over.
    """
    return compiled(function, _TYPES, _STAMP, inner=True, inline=True)


def entry(function: _F) -> _F:
    """Compile as `kernel` does, to be called from Python."""
    return compiled(function, _TYPES, _STAMP, inner=False)


def make_state(chip: Chip, slices: int, sem_init: tuple[int, ...], records: int, capacity: int) -> State:
    """Make the state of `slices` slices of a chip at cycle 0. `records` and `capacity` are powers of two."""
    n = slices
    flights = DEPTH_MAX
    while flights < n * chip.queue_depth("C"):
        flights *= 2
    st = State(
        f=facts.facts(chip).copy(),
        g=np.zeros(GLOBAL_COLS, np.int64),
        sl=np.zeros((n, SLICE_COLS), np.int64),
        ops=np.zeros((n, capacity, OP_COLS), np.int64),
        qu=np.zeros((n, QUEUES, QUEUE_COLS), np.int64),
        qe=np.zeros((n, QUEUES, DEPTH_MAX, ENTRY_COLS), np.int64),
        qs=np.zeros((n, QUEUES, DEPTH_MAX, 2), np.int64),
        tok=np.zeros((n, SEMAPHORES, TOKENS + 2, 2), np.int64),
        po=np.zeros((n, 4, PORT_COLS), np.int64),
        pf=np.zeros((n, 4, flights, FLIGHT_COLS), np.int64),
        rec=np.zeros((records, REC_COLS), np.int64),
        rings=np.zeros((1024, 3), np.int64),
        cs=np.zeros((n, CUTS, CUT_SLICE_COLS), np.int64),
        cq=np.zeros((n, QUEUES, CUTS, CUT_QUEUE_COLS), np.int64),
    )
    st.f[facts.SLICES] = n  # that take part
    st.g[G_MARK] = -1
    st.sl[:, S_TIME] = chip.branch_cycles  # the first words are fetched
    st.sl[:, S_RUN_REF] = st.sl[:, S_END_REF] = -1
    st.sl[:, S_BUS_LAST] = NETWORK_PORT
    st.qu[:, :, Q_CAND] = INF
    st.qu[:, :, Q_START] = -1
    st.qu[:, :, [Q_LAST, Q_REF, Q_TABLE_REF, Q_END_REF]] = -1
    for i, count in enumerate(sem_init):
        st.tok[:, i, :count, 1] = -1
        st.tok[:, i, :count, 0] = -chip.semaphore_cycles  # there at cycle 0
        st.tok[:, i, TOKENS + 1, 0] = count
    return st

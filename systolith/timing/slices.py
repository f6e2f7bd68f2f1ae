"""What each slice did in a window: how long its queues worked and what they waited for, its units, its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from systolith.isa import facts
from systolith.spec import QUEUES

from . import state as at
from .state import State

__all__ = ["STATES", "SliceTimes", "slice_times"]

STATES: Final = ("works", "semaphore", "empty", "unit")
"""works: an instruction of the queue is under way, waits for memory included. Else what its next one waits for:
semaphore: a token; empty: to be issued; unit: its unit, or an order that it must keep."""

_WAITS: Final = (at.Q_WAIT_SEM, at.Q_WAIT_EMPTY, at.Q_WAIT_UNIT)
_UNITS: Final = {"matrix": 2, "vector": 3, "collective": 5}
_BYTES: Final = {"weights": 0, "load": 1, "store": 4, "network": 5}


@dataclass(frozen=True)
class SliceTimes:
    """A slice in a window of `cycles`."""

    slice: int
    cycles: int
    queues: dict[str, dict[str, int]]
    """Cycles of each queue by `STATES`; they sum to `cycles` exactly."""
    busy: dict[str, int]
    """Cycles each unit worked: memory (the channel carries bursts), matrix (passes), vector, collective (flits out);
    of these three all that instructions do which start in the window."""
    bytes: dict[str, int]
    """Bytes of instructions that start in the window: weights (queue W), load, store (whole bursts), network (once a
    PUT)."""
    sequencer: dict[str, int]
    """words that it issued until the end of the window, and the cycles that it stood still for them: queue full,
    semaphore. It runs ahead of its queues as far as they hold."""

    def to_dict(self, hz: int) -> dict[str, Any]:
        """The same in seconds of a clock, but for words and bytes."""
        stood = {f"{why}_s": self.sequencer[why] / hz for why in ("queue full", "semaphore")}
        return {
            "slice": self.slice,
            "seconds": self.cycles / hz,
            "queues": {
                queue: {state: cycles / hz for state, cycles in parts.items()} for queue, parts in self.queues.items()
            },
            "busy": {unit: cycles / hz for unit, cycles in self.busy.items()},
            "bytes": dict(self.bytes),
            "sequencer": {"words": self.sequencer["words"]} | stood,
        }


@dataclass(frozen=True)
class _Totals:
    """What has been counted up to a cycle: waits [slices, 6, 3], busy and bytes [slices, 6], of slices [slices, 4]."""

    cycle: int
    waits: npt.NDArray[np.int64]
    busy: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    slices: npt.NDArray[np.int64]


def slice_times(st: State, end: int) -> tuple[SliceTimes, ...]:
    """Give every slice's part in the window between two cuts, or from 0 to `end`, the last halt, where none is set."""
    cuts = int(st.g[at.G_CUTS])
    if cuts:
        assert cuts == at.CUTS, "a window has two ends"
        before, after = (_at_cut(st, i) for i in range(cuts))
    else:
        zero = np.zeros_like(st.qu[:, :, 0])
        before = _Totals(0, np.zeros((*zero.shape, 3), np.int64), zero, zero, np.zeros((len(zero), 4), np.int64))
        after = _now(st, end)
    cycles = after.cycle - before.cycle
    waits, busy, moved = after.waits - before.waits, after.busy - before.busy, after.bytes - before.bytes
    words = after.slices - before.slices
    memory = -(-words[:, at.K_BUS_BUSY] * int(st.f[facts.BURST_UNITS]) // int(st.f[facts.UNITS_PER_CYCLE]))
    return tuple(
        SliceTimes(
            slice=s, cycles=cycles,
            queues={
                queue: dict(zip(STATES, (cycles - int(waits[s, q].sum()), *waits[s, q].tolist()), strict=True))
                for q, queue in enumerate(QUEUES)
            },
            busy={"memory": int(memory[s])} | {unit: int(busy[s, q]) for unit, q in _UNITS.items()},
            bytes={kind: int(moved[s, q]) for kind, q in _BYTES.items()},
            sequencer={
                "words": int(words[s, at.K_ISSUED]), "queue full": int(words[s, at.K_STALL_FULL]),
                "semaphore": int(words[s, at.K_STALL_WAIT]),
            },
        )
        for s in range(len(waits))
    )  # fmt: skip


def _now(st: State, end: int) -> _Totals:
    """Totals of a run that has ended: behind its last instruction a queue is empty."""
    waits = st.qu[:, :, _WAITS].copy()
    waits[:, :, 1] += end - np.maximum(st.qu[:, :, at.Q_END], 0)
    columns = [at.S_BUS_BUSY, at.S_ISSUED, at.S_STALL_FULL, at.S_STALL_WAIT]
    return _Totals(end, waits, st.qu[:, :, at.Q_BUSY], st.qu[:, :, at.Q_BYTES], st.sl[:, columns])


def _at_cut(st: State, i: int) -> _Totals:
    """Totals at a cut. A slice, or a queue, that has done nothing since is as it was then."""
    cycle = int(st.g[at.G_CUT + i])
    found = _now(st, cycle)
    passed = st.sl[:, at.S_CUTS] > i
    kept, rows = st.cs[:, i], st.cq[:, :, i]
    known = st.qu[:, :, at.Q_CUTS] > i
    waits = np.where(passed[:, None, None], rows[:, :, :3], st.qu[:, :, _WAITS])
    waits[:, :, 1] += np.where(known, 0, np.maximum(cycle - np.maximum(st.qu[:, :, at.Q_END], 0), 0))
    return _Totals(
        cycle, waits, np.where(passed[:, None], rows[:, :, at.K_BUSY], found.busy),
        np.where(passed[:, None], rows[:, :, at.K_BYTES], found.bytes), np.where(passed[:, None], kept, found.slices),
    )  # fmt: skip

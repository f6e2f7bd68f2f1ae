"""`TimingMachine`: cycles of a program on a chip, from the resolved stream; `simulate` runs it with an executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from systolith.isa import Program, facts
from systolith.isa.issue import C_BEFORE, C_WORDS, CARRY_COLS, OP_COLS, OP_PC, issues
from systolith.isa.resolved import COLS
from systolith.spec import QUEUES, Chip, ProgramError

from . import state as at
from .loop import go_on
from .sequencer import push
from .slices import SliceTimes, slice_times
from .state import State, make_state
from .waterfall import Repeat, Waterfall, waterfall

__all__ = ["Executor", "RingEvent", "TimingMachine", "TimingResult", "simulate"]

Ints = npt.NDArray[np.int64]

_MAX_RECORDS: Final = 1 << 19
"""Records kept at most, unless all are asked for: 80 MB."""


class Executor(Protocol):
    """What `simulate` needs of `isa.execute.Machine` or `sim.FastMachine`."""

    def run_resolved(self, buffer: Ints) -> Ints:
        """Fill rows [slices, rows, COLS], give the counts [slices]."""


@dataclass(frozen=True)
class RingEvent:
    """A record that reached the host."""

    slice: int
    cycle: int
    """When its last word left."""


@dataclass(frozen=True)
class TimingResult:
    """Times of a whole run. Per-slice lists are in the order of ranks."""

    cycles: int
    """From start to the last slice's halt."""
    rings: tuple[RingEvent, ...]
    busy: dict[str, list[int]]
    """Cycles each unit worked, by slice: memory (the channel carries bursts), matrix (passes), vector, collective
    (flits out), sequencer (words issued)."""
    utilisation: dict[str, float]
    """Mean share of the cycles that each unit was busy."""
    bytes: dict[str, int]
    """Bytes moved over all slices: weights (queue W), load, store (whole bursts), network (once a PUT)."""
    instructions: dict[str, int]
    """Instructions by queue, and words of the sequencer."""
    stalls: dict[str, dict[str, int]]
    """Idle cycles of each queue by what its next instruction waited for (semaphore, empty, unit), summed over slices;
    sequencer: queue full, semaphore."""
    waterfall: Waterfall
    """The whole run: sum of `windows`."""
    windows: tuple[Waterfall, ...] = field(repr=False)
    """From one record of slice 0 to the next, the first from cycle 0; the last one ends at the halt."""
    slices: tuple[SliceTimes, ...] = field(repr=False)
    """Every slice in the whole run, or in the window of `TimingMachine.watch`."""


class TimingMachine:
    """A chip in time. `feed` it the resolved stream in pieces; it reads nothing else.

    keep_all : keep every record (a trace of the whole run), not only those of the newest windows.
    Raises ProgramError where tokens overflow a semaphore or no slice can go on.
    """

    def __init__(self, chip: Chip, program: Program, *, keep_all: bool = False) -> None:
        self.chip = chip
        self.program = program
        self.slices = program.requires.slices
        self._limit = 1 << 26 if keep_all else _MAX_RECORDS
        self._keep_all = keep_all
        self.state: State = make_state(chip, self.slices, tuple(program.sem_init), 1 << 15, 1024)
        self._carry = np.zeros((self.slices, CARRY_COLS), np.int64)
        self._marked = -1
        """Word that begins an issue always."""
        self.finished = False
        self.rings: list[RingEvent] = []
        self.windows: list[Waterfall] = []
        self.on_window: Callable[[TimingMachine, Waterfall], None] | None = None
        """Called with each new window, while its records are still there."""
        self.watch: tuple[int, int] | None = None
        """Numbers of two records of slice 0 to the host: what slices do between them is wanted, not in all of the run.
        The window is as long, and begins and ends later by what slices may be ahead of each other."""
        self._told = 0
        self._since = 0
        self._first_record = 0
        self._repeats: tuple[Repeat, ...] = ()
        """Stretches of the open window that stand for others."""

    @property
    def now(self) -> int:
        """Latest start of any instruction, in cycles; the end of the run once it is finished."""
        return int(self.state.g[at.G_NOW])

    @property
    def records(self) -> Ints:
        """Records that are still there, [n, columns of state.RECORD], oldest first."""
        total, size = int(self.state.g[at.G_RECORDS]), self.state.rec.shape[0]
        picked: Ints = self.state.rec[np.arange(max(0, total - size), total) & (size - 1)]
        return picked

    def ends_since(self, number: int, pcs: Ints) -> tuple[list[int], int]:
        """When instructions of these words ended on slice 0, in their order: those of the records from `number` on,
        which must still be there; and the number of the next record."""
        total, size = int(self.state.g[at.G_RECORDS]), self.state.rec.shape[0]
        assert total - number <= size, "asked for too late"
        rec = self.state.rec
        index = np.arange(number, total) & (size - 1)
        index = index[np.isin(rec[index, at.R_PC], pcs)]
        return rec[index[rec[index, at.R_SLICE] == 0], at.R_END].tolist(), total

    @property
    def first_record(self) -> int:
        """Number of the first of `records`."""
        return max(0, int(self.state.g[at.G_RECORDS]) - int(self.state.rec.shape[0]))

    def feed(self, buffer: Ints, counts: Ints) -> bool:
        """Take rows [slices, rows, COLS] and run until a slice has used up its own; True: all slices have halted."""
        assert buffer.shape[0] == len(counts) == self.slices
        assert buffer.shape[2] == COLS
        if self.finished:
            return True
        self._make_room(int(counts.max(initial=0)))
        for s in range(self.slices):
            push(self.state, s, self._decode(s, buffer[s, : counts[s]]))
        return self._go_on()

    def _decode(self, s: int, rows: Ints) -> Ints:
        """Turn the next rows [n, COLS] of a slice into issues [m, OP_COLS]."""
        ops = np.empty((2 * len(rows), OP_COLS), np.int64)
        return ops[: issues(self.state.f, np.ascontiguousarray(rows), self._carry[s], self._marked, ops)]

    @property
    def sequencer(self) -> int:
        """Cycle at which the last slice that has used up its stream may issue its next word."""
        return int((self.state.sl[:, at.S_TIME] + self._carry[:, C_BEFORE]).max())

    def wait_until(self, cycle: int) -> None:
        """Let no slice that has used up its stream issue anything before a cycle; what is under way goes on till then.

        Right only where the next words could not have been issued earlier: the host holds the chip at a poll.
        """
        sl = self.state.sl
        dry = sl[:, at.S_OPS_HEAD] == sl[:, at.S_OPS_TAIL]
        sl[dry, at.S_TIME] = np.maximum(sl[dry, at.S_TIME] + self._carry[dry, C_BEFORE], cycle)
        sl[dry, at.S_ISSUED] += self._carry[dry, C_WORDS]
        self._carry[dry, C_BEFORE] = self._carry[dry, C_WORDS] = 0
        self._go_on()

    def _go_on(self) -> bool:
        st = self.state
        while True:
            records = int(st.rec.shape[0]) * 3 // 4 + (0 if self._keep_all else self._first_record)
            why = go_on(st, int(st.g[at.G_NEW_RINGS]) + 1, records)
            if why == at.RINGS_FULL:
                self._take_rings()
            elif why == at.RECORDS_FULL:
                st = self._more_records()
            elif why == at.NEEDS_FEED or (why == at.AT_MARK and not self._at_mark()):
                return False
            elif why == at.AT_MARK:
                st = self.state
                st.g[at.G_PASSED] = 1
            elif why == at.FINISHED:
                self.finished = True
                self._window(self._last_halt(), self.now)
                return True
            else:
                raise self._fault(why)

    def _last_halt(self) -> int:
        """Number of the record of the last slice's HALT."""
        st, size = self.state, int(self.state.rec.shape[0])
        last = int(st.sl[:, at.S_HALT].argmax())
        newest = int(st.g[at.G_RECORDS]) - 1
        mine = np.flatnonzero((st.rec[:, at.R_QUEUE] == at.QUEUES) & (st.rec[:, at.R_SLICE] == last))
        return newest - int(((newest - mine) & (size - 1)).min())

    def _at_mark(self) -> bool:
        """Slice 0 is about to issue the marked word: look at the state and say whether to go on."""
        return True

    def _take_rings(self) -> None:
        st = self.state
        for i in range(int(st.g[at.G_NEW_RINGS]), int(st.g[at.G_RINGS])):
            rank, end, number = (int(v) for v in st.rings[i % st.rings.shape[0]])
            self.rings.append(RingEvent(rank, end))
            if rank == 0 and end > self._since:
                self._window(number, end)
            if rank == 0:
                if self.watch and self._told in self.watch:
                    self._cut(end)
                self._told += 1
        st.g[at.G_NEW_RINGS] = st.g[at.G_RINGS]

    def _cut(self, end: int) -> None:
        """Have every slice's counters written down at the first cycle after `end` that none of them has passed."""
        g, ahead = self.state.g, 2 * int(self.state.f[facts.BANK]) + int(self.state.f[facts.NET_LATENCY])
        assert (self.state.qu[:, :, at.Q_START] < end + ahead).all(), "a slice is too far ahead"
        g[at.G_CUT + g[at.G_CUTS]] = end + ahead
        g[at.G_CUTS] += 1

    def _window(self, number: int, end: int) -> None:
        """Close a window at a record's end."""
        found = waterfall(self.state, self.chip, self.first_record, number, end, self._since, self._repeats)
        self.windows.append(found)
        if self.on_window:
            self.on_window(self, found)
        self._since = end
        self._repeats = ()
        self._first_record = int(self.state.g[at.G_RECORDS])

    def _more_records(self) -> State:
        """Make the ring of records larger, or close a window early where it is as large as it may be."""
        st = self.state
        size, total = int(st.rec.shape[0]), int(st.g[at.G_RECORDS])
        if 2 * size > self._limit:
            if self._keep_all:
                raise ProgramError(f"the run has more than {size} instructions, too many for a trace; shorten it.")
            number, end = int(st.sl[0, at.S_END_REF]), int(st.sl[0, at.S_END])
            if end > self._since:
                self._window(number, end)
            self._first_record = total
            return st
        rec = np.zeros((2 * size, at.REC_COLS), np.int64)
        numbers = np.arange(max(0, total - size), total)
        rec[numbers & (2 * size - 1)] = st.rec[numbers & (size - 1)]
        self.state = st._replace(rec=rec)
        return self.state

    def _make_room(self, rows: int) -> None:
        """Give each stream room for `rows` more instructions."""
        st = self.state
        heads, tails = st.sl[:, at.S_OPS_HEAD], st.sl[:, at.S_OPS_TAIL]
        need, size = int((tails - heads).max()) + rows, int(st.ops.shape[1])
        if need <= size:
            return
        new = size
        while new < need:
            new *= 2
        ops = np.zeros((self.slices, new, OP_COLS), np.int64)
        for s in range(self.slices):
            numbers = np.arange(heads[s], tails[s])
            ops[s, numbers & (new - 1)] = st.ops[s, numbers & (size - 1)]
        self.state = st._replace(ops=ops)

    def _fault(self, why: int) -> ProgramError:
        """Say in one sentence why the run cannot go on."""
        st = self.state
        s = int(st.g[at.G_SLICE])
        if why == at.OVERFLOW:
            return ProgramError(
                f"timing: a semaphore of slice {s} or its arrivals overflow at cycle {self.now}; a queue may run ahead "
                "only as far as tokens of another hold it back."
            )
        heads = []
        for i, queue in enumerate(QUEUES):
            qu = st.qu[s, i]
            if qu[at.Q_HEAD] != qu[at.Q_TAIL]:
                pc = int(st.qe[s, i, qu[at.Q_HEAD] % at.DEPTH_MAX, OP_PC])
                heads.append(f"{queue} at word {pc} {self.program.line(pc)}".strip())
        return ProgramError(
            f"timing: slice {s} cannot go on after cycle {self.now}: its queues wait "
            f"({', '.join(heads) or 'all empty'}) for tokens that nobody gives; run the sanitizer."
        )

    def finish(self) -> TimingResult:
        """Give the times of a run whose slices have all halted."""
        assert self.finished, "feed the stream to its end first"
        st, total = self.state, self.now
        f = st.f
        bursts = st.sl[:, at.S_BUS_BUSY] * int(f[facts.BURST_UNITS])
        busy = {
            "memory": (-(-bursts // int(f[facts.UNITS_PER_CYCLE]))).tolist(),
            "matrix": st.qu[:, 2, at.Q_BUSY].tolist(),
            "vector": st.qu[:, 3, at.Q_BUSY].tolist(),
            "collective": st.qu[:, 5, at.Q_BUSY].tolist(),
            "sequencer": (st.sl[:, at.S_ISSUED] * int(f[facts.ISSUE])).tolist(),
        }
        sums = st.qu.sum(axis=0)
        counts = {queue: int(sums[i, at.Q_COUNT]) for i, queue in enumerate(QUEUES)}
        kinds = {"weights": 0, "load": 1, "store": 4, "network": 5}
        stalls = {
            queue: {
                "semaphore": int(sums[i, at.Q_WAIT_SEM]),
                "empty": int(sums[i, at.Q_WAIT_EMPTY]),
                "unit": int(sums[i, at.Q_WAIT_UNIT]),
            }
            for i, queue in enumerate(QUEUES)
        }
        stalls["sequencer"] = {
            "queue full": int(st.sl[:, at.S_STALL_FULL].sum()),
            "semaphore": int(st.sl[:, at.S_STALL_WAIT].sum()),
        }
        return TimingResult(
            cycles=total,
            rings=tuple(self.rings),
            busy=busy,
            utilisation={unit: sum(v) / (total * self.slices) for unit, v in busy.items()},
            bytes={kind: int(sums[i, at.Q_BYTES]) for kind, i in kinds.items()},
            instructions=counts | {"sequencer": int(st.sl[:, at.S_ISSUED].sum()) - sum(counts.values())},
            stalls=stalls,
            waterfall=Waterfall.total(self.windows),
            windows=tuple(self.windows),
            slices=slice_times(st, total),
        )


def simulate(
    chip: Chip,
    program: Program,
    machine: Executor,
    *,
    rows: int = 512,
    keep_all: bool = False,
    on_window: Callable[[TimingMachine, Waterfall], None] | None = None,
) -> TimingResult:
    """Run an executor to its end and time what it executes.

    rows : rows of each slice that are asked for at once.
    """
    timing = TimingMachine(chip, program, keep_all=keep_all)
    timing.on_window = on_window
    buffer = np.zeros((timing.slices, rows, COLS), np.int64)
    counts: Any = None
    while True:
        counts = machine.run_resolved(buffer)
        if timing.feed(buffer, counts):
            return timing.finish()
        if not counts.any():
            raise ProgramError(
                "timing: the executor has stopped before every slice has halted; finish or reset the run."
            )

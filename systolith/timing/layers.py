"""`LayerMachine`: a timing machine that skips layers which must go as those before them have gone.

A program runs its layers in one hardware loop. Each time slice 0 is about to issue the first word of the loop's body,
the state is written down without its date (`repeat`). Where it equals the state p layers ago, and the instructions that
follow equal those p layers ago in every column that timing reads, on every slice, the layers that follow take the same
course: they are left out, and times, counters and the critical path go on by what they would have added. Nothing else
is ever skipped. docs/decisions/0007-scale.md has the argument.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from systolith.isa import Program, facts
from systolith.isa.issue import OP_COLS, OP_MARK
from systolith.isa.sequencer import Loop
from systolith.spec import Chip

from . import state as at
from .machine import TimingMachine
from .repeat import digest, shift, signature
from .sequencer import push
from .state import State
from .waterfall import Repeat

__all__ = ["LayerMachine", "layer_loop"]

Ints = npt.NDArray[np.int64]

_PERIODS: Final = 8
"""Most layers after which a model may repeat itself: a model of 5 layers with a window and one without has 6."""

_KEEP: Final = 1 << 11
"""Issued instructions of a slice that are kept to compare with; two layers at least."""

_MOST_ROWS: Final = 1 << 18
"""Instructions of all slices in a layer, beyond which every layer is simulated: keeping two would take too much."""
_AHEAD: Final = 512
_CHUNK: Final = 1 << 14
"""Instructions of a slice that are brought into its stream at least, and that are handled at once at most."""

_SLICE_TIMES: Final = [
    at.S_TIME, at.S_RUN, at.S_ARRAY, at.S_LOADER, at.S_VECTOR, at.S_EGRESS, at.S_INGRESS, at.S_END, at.S_NEXT,
    *(at.S_COUNTER + 3 * i + 1 for i in range(16)),
]  # fmt: skip
_SLICE_COUNTS: Final = [
    at.S_STALL_FULL, at.S_STALL_WAIT, at.S_ISSUED, at.S_BUS_BUSY,
]  # fmt: skip
_QUEUE_TIMES: Final = [at.Q_START, at.Q_END, at.Q_CAND, at.Q_TABLE]
_QUEUE_COUNTS: Final = [at.Q_BUSY, at.Q_COUNT, at.Q_BYTES, at.Q_WAIT_SEM, at.Q_WAIT_EMPTY, at.Q_WAIT_UNIT]
_PORT_TIMES: Final = [at.P_BEGIN, at.P_ASKED, at.P_ASKED_LEAST]


def layer_loop(program: Program) -> tuple[int, int, int] | None:
    """First word of the loop over layers, the word after it, and its iterations; None where no loop is repeated.

    Of the loops with a fixed count that runs most words. An iteration is a layer, or a few that differ.
    """
    loops = [(pc + 1, pc + 1 + i.len, i.count) for pc, i in enumerate(program.code) if isinstance(i, Loop)]
    fixed = [(first, end, count) for first, end, count in loops if count > 1 and not _counted(program, first - 1)]
    return max(fixed, key=lambda body: (body[1] - body[0]) * body[2], default=None)


def _counted(program: Program, pc: int) -> bool:
    """Whether a loop takes its count from a register."""
    instruction = program.code[pc]
    return isinstance(instruction, Loop) and bool(instruction.use_reg)


class _Stretch(NamedTuple):
    """Instructions that are fed and not yet in a stream: `rows` of them, round and round through ops from `start`."""

    ops: Ints
    start: int
    rows: int


@dataclass
class _Moment:
    """The state at a mark. heads: position of each slice in its stream; places: the same as (layer from slice 0's,
    words into it)."""

    moment: int
    layer: int
    signature: Ints
    heads: Ints
    places: list[tuple[int, int]]
    slices: Ints
    queues: Ints
    ports: Ints
    done: int
    stream: int
    """Digest of what was issued since the moment before."""

    def equals(self, other: _Moment) -> bool:
        """Whether all goes on from here as from another."""
        return self.places == other.places and np.array_equal(self.signature, other.signature)


class LayerMachine(TimingMachine):
    """As TimingMachine, with the same results. body: the first two of `layer_loop`.

    At a mark it waits until every slice has more than a layer's instructions ahead, so that no state hangs on how the
    stream was cut. simulated, skipped: iterations of slice 0.
    """

    def __init__(self, chip: Chip, program: Program, body: tuple[int, int] | None) -> None:
        super().__init__(chip, program)
        self.simulated = self.skipped = 0
        self.on_records: Callable[[], None] | None = None
        """Called before dates of records move, or records are lost."""
        self._body = body
        self._starts: list[list[int]] = [[] for _ in range(self.slices)]
        self._longest = 0
        self._moments: list[_Moment] = []
        self._out = np.zeros(1 << 16, np.int64)
        self._fed = [0] * self.slices
        self._begun = [0] * self.slices
        self._paused = self._exhausted = self._plain = False
        self._matched: tuple[_Moment, _Moment] | None = None
        self._templates: list[Ints] = []
        self._equal = np.zeros(self.slices, np.int64)
        self._other = [False] * self.slices
        self._pending: list[deque[_Stretch]] = [deque() for _ in range(self.slices)]
        self._pieces: list[list[Ints]] = [[] for _ in range(self.slices)]
        self._iterations: list[list[list[Ints]]] = []
        if body is not None:
            self._marked = body[0]
            self.state.g[at.G_MARK] = 0

    # --- the stream ---

    def feed(self, buffer: Ints, counts: Ints) -> bool:
        """Take rows [slices, rows, COLS]; True: all slices have halted. No rows at all: run with what there is."""
        if self._body is None:
            return super().feed(buffer, counts)
        self._take_issues([self._decode(s, buffer[s, : counts[s]]) for s in range(self.slices)], False)
        return self._advance()

    def feed_issues(self, ops: Ints, counts: Ints, *, cuts: bool = False) -> bool:
        """As `feed`, with what `isa.issue` makes of rows: [slices, n, OP_COLS]. The marked word is the body's first.

        cuts : `cut` will tell where an iteration ends.
        """
        if self._body is None:
            self._make_room(int(counts.max(initial=0)))
            for s in range(self.slices):
                push(self.state, s, ops[s, : counts[s]])
            return self._go_on()
        self._take_issues([ops[s, : counts[s]].copy() for s in range(self.slices)], cuts)
        return self._advance()

    def _take_issues(self, fed: list[Ints], cuts: bool) -> None:
        """Put what is fed behind what is pending."""
        for s, ops in enumerate(fed):
            if len(ops):
                self._measure(s, ops[:, OP_MARK])
                if cuts:
                    self._pieces[s].append(ops)
                self._pending[s].append(_Stretch(ops, 0, len(ops)))
        self._exhausted = not any(len(ops) for ops in fed)

    def cut(self, keep: int) -> None:
        """All that is fed from here on belongs to another iteration of the executor; keep the last `keep` of them."""
        self._iterations.append(self._pieces)
        self._pieces = [[] for _ in range(self.slices)]
        del self._iterations[:-keep]

    def repeat(self, times: int, period: int) -> bool:
        """The last `period` iterations come `times` times more, as good as fed. Gives what `feed` gives."""
        for s in range(self.slices):
            ops = np.concatenate([piece for pieces in self._iterations[-period:] for piece in pieces[s]])
            self._pending[s].append(_Stretch(ops, 0, times * len(ops)))
        return self._advance()

    def _advance(self) -> bool:
        """Go on until more is needed; True: all slices have halted."""
        while not self.finished:
            if self._matched is not None:
                for s in range(self.slices):
                    self._compare(s)
                if not self._end():
                    return False
            self._refill()
            if self._paused:
                if self._short():
                    return False
                self._paused = False
                if not self._plain and not self._look_back():
                    continue
                self.state.g[at.G_PASSED] = int(not self._plain)
            if self._go_on() or self._paused or self._matched is not None:
                continue
            if not self._pending[int(self.state.g[at.G_SLICE])]:
                return False
        return True

    def _refill(self) -> None:
        """Bring what is pending into the streams, a little more than a layer ahead."""
        ahead = self.state.sl[:, at.S_OPS_TAIL] - self.state.sl[:, at.S_OPS_HEAD]
        want = max(_AHEAD, self._longest + self._longest // 8 + 1)
        for s in range(self.slices):
            room = want - int(ahead[s])
            while room > 0 and self._pending[s]:
                ops = self._take(s, room)
                self._push(s, ops)
                room -= len(ops)

    def _take(self, s: int, most: int) -> Ints:
        """Take up to `most` instructions from the front of what is pending."""
        front = self._pending[s].popleft()
        count = min(most, front.rows, _CHUNK)
        size = len(front.ops)
        begin = front.start % size
        ops = front.ops[begin : begin + count]
        if len(ops) < count:
            ops = front.ops[np.arange(begin, begin + count) % size]
        if front.rows > count:
            self._pending[s].appendleft(_Stretch(front.ops, begin + count, front.rows - count))
        return ops

    def _short(self) -> bool:
        """Whether a slice might use up its stream before the next mark."""
        ahead = self.state.sl[:, at.S_OPS_TAIL] - self.state.sl[:, at.S_OPS_HEAD]
        waiting = sum(s.rows for pending in self._pending for s in pending if s.rows <= len(s.ops))
        if max(waiting, self._longest * self.slices) > _MOST_ROWS:
            self._give_up()
        if self._plain or self._exhausted:
            return False
        return not self._longest or 8 * int(ahead.min()) < 9 * self._longest

    def _push(self, s: int, ops: Ints) -> None:
        """Add to a slice's stream and note where layers start."""
        assert self._body is not None
        if self._plain:
            self._make_room(len(ops))
            push(self.state, s, ops)
            return
        tail = int(self.state.sl[s, at.S_OPS_TAIL])
        starts = self._starts[s]
        found = np.flatnonzero(ops[:, OP_MARK]) + tail
        starts += found.tolist()
        self._fed[s] += len(found)
        del starts[: -4 * _PERIODS]
        keep = max(2 * self._longest, min(_KEEP, (_PERIODS + 2) * self._longest))
        if tail - max(0, int(self.state.sl[s, at.S_OPS_HEAD]) - keep) + len(ops) > self.state.ops.shape[1]:
            self._make_room(len(ops), keep)
        push(self.state, s, ops)

    def _measure(self, s: int, marks: Ints) -> None:
        """Find the longest layer: from a start to the next, unless the loop begins anew in between."""
        for i in np.flatnonzero(marks).tolist():
            if marks[i] == 1:
                self._longest = max(self._longest, i - self._begun[s])
            self._begun[s] = i
        self._begun[s] -= len(marks)

    def _give_up(self) -> None:
        """Skip nothing any more: layers are too long to be kept."""
        self.state.g[at.G_MARK] = -1
        self._moments.clear()
        self._longest = 0
        self._plain = True

    def _make_room(self, rows: int, keep: int = 0) -> None:
        """Room for `rows` more instructions, with the last `keep` issued ones still there."""
        heads = self.state.sl[:, at.S_OPS_HEAD].copy()
        self.state.sl[:, at.S_OPS_HEAD] = np.maximum(0, heads - keep)
        super()._make_room(rows)
        self.state.sl[:, at.S_OPS_HEAD] = heads

    def _window(self, number: int, end: int) -> None:
        if self.on_records:
            self.on_records()
        super()._window(number, end)

    def _more_records(self) -> State:
        if self.on_records:
            self.on_records()
        return super()._more_records()

    # --- marks ---

    def _at_mark(self) -> bool:
        self.simulated += 1
        self._paused = self._short()
        return not self._paused and (self._plain or self._look_back())

    def _look_back(self) -> bool:
        """Compare the state with those at the marks before; False: it repeats, and the stream is to be compared."""
        now = self._look()
        if now is None:
            self._moments.clear()
            return True
        size = int(self.state.ops.shape[1])
        streams = [m.stream for m in self._moments] + [now.stream]
        for before in reversed(self._moments):
            period = now.layer - before.layer
            if period > _PERIODS or (self.state.sl[:, at.S_OPS_TAIL] - before.heads > size).any():
                break  # its instructions are no longer there
            if not before.equals(now):
                continue
            first = next((m for m in self._moments if m.layer == before.layer - period), None)
            if first is not None and first.equals(before) and streams[-period:] == streams[-2 * period : -period]:
                self._begin(before, now)
                return False
        self._moments.append(now)
        del self._moments[: -2 * _PERIODS]
        return True

    def _look(self) -> _Moment | None:
        """Write the state down; None where a slice has nothing left to issue, so that its state hangs on the feed."""
        st = self.state
        assert self._body is not None
        heads, tails = st.sl[:, at.S_OPS_HEAD].copy(), st.sl[:, at.S_OPS_TAIL]
        if (heads == tails).any():
            return None
        if st.ops[0, heads[0] & (st.ops.shape[1] - 1), OP_MARK] > 1:
            self._moments.clear()  # the loop begins: what came before is another step's
        places = []
        for s in range(self.slices):
            starts = self._starts[s]
            i = bisect_right(starts, int(heads[s])) - 1
            if i < 0:
                return None
            places.append((self._fed[s] - len(starts) + i, int(heads[s]) - starts[i]))
        layer = places[0][0]
        moment = int(st.sl[0, at.S_TIME])
        waiting = st.qu[:, :, at.Q_TAIL] - st.qu[:, :, at.Q_HEAD]
        flights = st.po[:, :, at.P_TAIL] - st.po[:, :, at.P_HEAD] + 1
        tokens = st.tok[:, :, at.TOKENS + 1, 0] - st.tok[:, :, at.TOKENS, 0]
        need = 1024 * self.slices + int((OP_COLS + 1) * waiting.sum() + 13 * flights.sum() + 2 * tokens.sum())
        if len(self._out) < need:
            self._out = np.zeros(2 * need, np.int64)
        n = signature(st, moment, self._out)
        stream = digest(st, self._moments[-1].heads) if self._moments else 0
        assert n <= need
        return _Moment(
            moment, layer, self._out[:n].copy(), heads, [(number - layer, offset) for number, offset in places],
            st.sl.copy(), st.qu.copy(), st.po.copy(), int(st.g[at.G_DONE]), stream,
        )  # fmt: skip

    # --- what follows a repeated state ---

    def _begin(self, before: _Moment, now: _Moment) -> None:
        """Take back what has been fed and not issued, and compare it with the period that has just passed."""
        st, size = self.state, int(self.state.ops.shape[1])
        self._moments.clear()
        self._matched = (before, now)
        self._equal[:] = 0
        self._templates = []
        for s in range(self.slices):
            first, head, tail = int(before.heads[s]), int(now.heads[s]), int(st.sl[s, at.S_OPS_TAIL])
            self._templates.append(st.ops[s, np.arange(first, head) & (size - 1)].copy())
            rest = st.ops[s, np.arange(head, tail) & (size - 1)].copy()
            st.sl[s, at.S_OPS_TAIL] = head
            keep = bisect_left(self._starts[s], head)
            self._fed[s] -= len(self._starts[s]) - keep
            del self._starts[s][keep:]
            self._other[s] = False
            if len(rest):
                self._pending[s].appendleft(_Stretch(rest, 0, len(rest)))

    def _compare(self, s: int) -> None:
        """Count the pending instructions that go on as the period went; the first other one ends it."""
        template, pending = self._templates[s], self._pending[s]
        size = len(template)
        while pending and not self._other[s]:
            front, done = pending[0], int(self._equal[s])
            length = max(size, len(front.ops))
            if front.rows > length and (len(front.ops) % size == 0 or size % len(front.ops) == 0):
                # Both go round: they are equal for good if they are for one round of the longer.
                here = template[np.arange(done, done + length) % size]
                there = front.ops[np.arange(front.start, front.start + length) % len(front.ops)]
                if np.array_equal(here, there):
                    self._equal[s] += front.rows
                    pending.popleft()
                    continue
            ops = self._take(s, size - done % size)
            same = template[done % size : done % size + len(ops)] == ops
            count = len(ops) if same.all() else int(same.all(axis=1).argmin())
            self._equal[s] += count
            if count < len(ops):
                self._other[s] = True
                pending.appendleft(_Stretch(ops[count:], 0, len(ops) - count))

    def _end(self) -> bool:
        """Jump as far as is known to be equal on all slices, once that is known; False: more is needed for that."""
        assert self._matched is not None
        before, now = self._matched
        whole = np.array([int(n) // len(t) for n, t in zip(self._equal, self._templates, strict=True)])
        ended = np.array(self._other) | self._exhausted
        if not ended.any() or int(whole.min()) < int(whole[ended].min()):
            return False
        times = int(whole.min())
        if self._since + sum(r.skipped for r in self._repeats) > before.moment:
            times = 0  # a window was closed in this period
        if (self.state.sl[:, at.S_CUTS] < self.state.g[at.G_CUTS]).any():
            times = 0  # a cut would lie in what is skipped
        if times:
            self._jump(before, now, times)
            self.simulated -= 1  # slice 0 stands at a mark again, another one
        else:
            self.state.g[at.G_PASSED] = 1
        self._matched = None
        for s, template in enumerate(self._templates):
            left = int(self._equal[s]) - times * len(template)
            if left:
                self._pending[s].appendleft(_Stretch(template, 0, left))
        return True

    def _jump(self, before: _Moment, now: _Moment, times: int) -> None:
        """Move the state on by `times` periods."""
        if self.on_records:
            self.on_records()
        st = self.state
        period = now.moment - before.moment
        by = times * period
        units = int(st.f[facts.UNITS_PER_CYCLE])
        for table, old, dates, counts in (
            (st.sl, before.slices, _SLICE_TIMES, _SLICE_COUNTS), (st.qu, before.queues, _QUEUE_TIMES, _QUEUE_COUNTS),
            (st.po, before.ports, _PORT_TIMES, []),
        ):  # fmt: skip
            # What is too old to matter may have moved by less than a period, or not at all, and must stay as old.
            moved = np.clip(table[..., dates] - old[..., dates], 0, period)
            table[..., dates] += times * moved
            table[..., counts] += times * (table[..., counts] - old[..., counts])
        moved = np.clip(st.sl[:, at.S_BUS] - before.slices[:, at.S_BUS], 0, period * units)
        st.sl[:, at.S_BUS] += times * moved
        st.g[at.G_NOW] += by
        st.g[at.G_DONE] += times * (int(st.g[at.G_DONE]) - before.done)
        shift(st, by, self._first_record)
        moved_on = tuple(Repeat(r.start + by, r.end + by, r.times) for r in self._repeats)
        self._repeats = (*moved_on, Repeat(before.moment + by, now.moment + by, times))
        self.skipped += times * (now.layer - before.layer)

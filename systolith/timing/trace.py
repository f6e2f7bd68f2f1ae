"""A Perfetto trace: a track per unit and slice, a stall with its reason in every gap, counters, the critical path.

# Ref: Perfetto, protos/perfetto/trace: trace.proto, trace_packet.proto, track_event/*.proto: field numbers below.
Times are cycles: what the viewer calls a nanosecond is one cycle, so that nothing is rounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from systolith.isa import Program, cycles
from systolith.spec import QUEUES, Chip

from . import state as at
from .machine import TimingMachine
from .path import PARTS, WHY
from .waterfall import Waterfall

__all__ = ["Trace"]

Ints = npt.NDArray[np.int64]

# TracePacket, TrackEvent, TrackDescriptor.
_PACKET, _TIMESTAMP, _SEQUENCE, _EVENT, _DESCRIPTOR = 1, 8, 10, 11, 60
_TYPE, _TRACK, _NAME, _CATEGORY, _DOUBLE = 9, 11, 23, 22, 44
_UUID, _TRACK_NAME, _PARENT, _TRACK_COUNTER = 1, 2, 5, 8
_BEGIN, _END, _VALUE = 1, 2, 4
_FLOW, _ENDING_FLOW = 47, 48

TRACKS: Final = ("W", "L", "M", "V", "S", "C", "sequencer", "critical path")
"""Tracks of a slice, in order; stalls stand on a track of their own beside each queue's."""
COUNTERS: Final = ("memory bytes per cycle", "slots in use", *(f"queue {q}" for q in QUEUES))
STALLS: Final = ("dispatch", "semaphore", "unit", "in flight", "order", "head", "queue full")
"""Why an instruction did not start earlier, by the cause in its record."""
_PER_SLICE: Final = 64


@dataclass(frozen=True)
class _Item:
    time: int
    order: int
    data: bytes


class Trace:
    """Collects windows of a `TimingMachine` (give `add` to `simulate` as `on_window`), then writes them.

    slices : the slices that get tracks; all if left out. The critical path is drawn on slice 0.
    """

    def __init__(self, chip: Chip, program: Program, slices: Iterable[int] | None = None) -> None:
        self.chip = chip
        self.program = program
        self.slices = tuple(slices) if slices is not None else tuple(range(program.requires.slices))
        self._records: list[Ints] = []
        self._edges: list[Ints] = []
        self._next = 0
        self._names = [i.mnemonic for i in program.code]
        self._pairs = _slot_semaphores(program)

    def add(self, machine: TimingMachine, window: Waterfall) -> None:
        """Keep the records that have come since the last window, and the window's path."""
        rec, first = machine.records, machine.first_record
        new = rec[max(0, self._next - first) :]
        numbers = np.arange(max(self._next, first), first + len(rec))
        self._next = first + len(rec)
        self._records.append(np.column_stack([new, numbers]))
        if window.edges is not None:
            self._edges.append(window.edges)

    def bytes(self) -> bytes:
        """The trace in Perfetto's binary form."""
        items: list[_Item] = []
        out = [_packet(_describe(1 + s * _PER_SLICE, f"slice {s}")) for s in self.slices]
        for s in self.slices:
            base = 1 + s * _PER_SLICE
            for i, name in enumerate(TRACKS):
                out.append(_packet(_describe(base + 1 + i, name, base)))
                if i < len(QUEUES):
                    out.append(_packet(_describe(base + 17 + i, f"{name} stalls", base)))
            for i, name in enumerate(COUNTERS):
                out.append(_packet(_describe(base + 33 + i, name, base, counter=True)))
        rec = np.concatenate(self._records) if self._records else np.zeros((0, at.REC_COLS + 1), np.int64)
        rec = rec[rec[:, at.R_END] < at.INF]
        for s in self.slices:
            items += self._slice(s, rec[rec[:, at.R_SLICE] == s])
        items += self._path()
        items.sort(key=lambda item: (item.time, item.order))
        return b"".join([*out, *(item.data for item in items)])

    def write(self, path: Path) -> None:
        """Write the trace; the file appears whole or not at all."""
        part = path.with_name(path.name + ".part")
        try:
            part.write_bytes(self.bytes())
            os.replace(part, path)  # noqa: PTH105 # atomic on every platform
        finally:
            part.unlink(missing_ok=True)

    def _slice(self, s: int, rec: Ints) -> Iterator[_Item]:
        base = 1 + s * _PER_SLICE
        for q in range(len(QUEUES)):
            mine = rec[rec[:, at.R_QUEUE] == q]
            mine = mine[np.argsort(mine[:, at.R_START], kind="stable")]
            free = 0
            for r in mine.tolist():
                start, end = max(r[at.R_START], free), r[at.R_END]
                if r[at.R_START] > free:
                    yield from _span(base + 17 + q, free, r[at.R_START], self._reason(r), "stall")
                if end > start:
                    yield from _span(base + 1 + q, start, end, self._names[r[at.R_PC]], self.program.line(r[at.R_PC]))
                free = max(free, end)
            yield from _levels(base + 35 + q, mine[:, at.R_DISPATCH], mine[:, at.R_START])
        yield from self._sequencer(base + 7, rec)
        memory = rec[(rec[:, at.R_KIND] == cycles.READ) | (rec[:, at.R_KIND] == cycles.WRITE)]
        length = np.maximum(1, memory[:, at.R_DATA_END] - memory[:, at.R_FIRST])
        yield from _rates(base + 33, memory[:, at.R_FIRST], length, memory[:, at.R_BYTES])
        yield from self._slots(base + 34, rec)

    def _reason(self, r: list[int]) -> str:
        """Say what the instruction of a record waited for."""
        cause = r[at.R_CAUSE]
        if cause == at.SEMAPHORE:
            return f"semaphore posted by record {r[at.R_REF]}"
        if cause == at.AT_ONCE:
            held = r[at.R_RUN_CAUSE]
            return "queue empty, sequencer: " + ("issues" if held == at.AT_ONCE else STALLS[held])
        return STALLS[cause]

    def _sequencer(self, track: int, rec: Ints) -> Iterator[_Item]:
        """Runs of the sequencer between its stalls, from what the instructions noted of them."""
        runs = np.unique(rec[:, [at.R_RUN, at.R_RUN_CAUSE]], axis=0)
        last = {int(run): int(rec[rec[:, at.R_RUN] == run, at.R_DISPATCH].max()) for run in runs[:, 0]}
        before = 0
        for run, cause in runs.tolist():
            if run > before:
                yield from _span(track, before, run, STALLS[cause], "stall")
            if last[run] > run:
                yield from _span(track, run, last[run], "issue", "issue")
            before = max(before, last[run])

    def _slots(self, track: int, rec: Ints) -> Iterator[_Item]:
        """Buffers in use: taken where W waits for a token that M gives back."""
        words = self.program.code
        taken: list[int] = []
        given: list[int] = []
        for r in rec.tolist():
            word = words[r[at.R_PC]]
            if r[at.R_QUEUE] == 0:
                taken += [r[at.R_START]] * (word.waits & self._pairs).bit_count()
            elif r[at.R_QUEUE] == 2:
                given += [r[at.R_END]] * (word.posts & self._pairs).bit_count()
        yield from _levels(track, np.array(taken, np.int64), np.array(given, np.int64))

    def _path(self) -> Iterator[_Item]:
        """Edges of the critical path as slices on slice 0, each with a flow to the next."""
        track = 1 + self.slices[0] * _PER_SLICE + 1 + TRACKS.index("critical path") if self.slices else 0
        if not self.slices:
            return
        flow = 0
        for edges in self._edges:
            for start, end, part, why, _ in edges.tolist():
                flow += 1
                yield from _span(track, start, end, f"{PARTS[part]}: {WHY[why]}", PARTS[part], flow)


def _slot_semaphores(program: Program) -> int:
    """Mask of the semaphores that M gives and W waits for: free weight buffers."""
    waited = given = 0
    for word in program.code:
        if word.queue == 0:
            waited |= word.waits
        elif word.queue == 2:
            given |= word.posts
    return waited & given


def _levels(track: int, ups: Ints, downs: Ints) -> Iterator[_Item]:
    """A counter that goes up and down by one."""
    times = np.concatenate([ups, downs])
    steps = np.concatenate([np.ones(len(ups), np.int64), -np.ones(len(downs), np.int64)])
    for time, value in _summed(times, steps.astype(np.float64)):
        yield _count(track, time, value)


def _rates(track: int, starts: Ints, lengths: Ints, amounts: Ints) -> Iterator[_Item]:
    """A counter of amount per cycle of overlapping transfers."""
    rate = amounts / lengths
    for time, value in _summed(np.concatenate([starts, starts + lengths]), np.concatenate([rate, -rate])):
        yield _count(track, time, round(value, 6))


def _summed(times: Ints, steps: npt.NDArray[np.float64]) -> Iterator[tuple[int, float]]:
    """Running sum of steps, once for each time."""
    unique, where = np.unique(times, return_inverse=True)
    total = np.cumsum(np.bincount(where, weights=steps, minlength=len(unique))) if len(unique) else np.zeros(0)
    yield from zip(unique.tolist(), total.tolist(), strict=True)


# --- protobuf ---


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _packet(body: bytes) -> bytes:
    return _text(_PACKET, body + _number(_SEQUENCE, 1))


def _describe(uuid: int, name: str, parent: int = 0, counter: bool = False) -> bytes:
    body = _number(_UUID, uuid) + _text(_TRACK_NAME, name.encode())
    if parent:
        body += _number(_PARENT, parent)
    if counter:
        body += _text(_TRACK_COUNTER, b"")
    return _text(_DESCRIPTOR, body)


def _span(track: int, start: int, end: int, name: str, category: str, flow: int = 0) -> Iterator[_Item]:
    """A slice on a track."""
    body = _number(_TYPE, _BEGIN) + _number(_TRACK, track) + _text(_NAME, name.encode())
    if category:
        body += _text(_CATEGORY, category.encode())
    if flow:
        fixed = [_varint(_FLOW << 3 | 1) + flow.to_bytes(8, "little")]
        if flow > 1:
            fixed.append(_varint(_ENDING_FLOW << 3 | 1) + (flow - 1).to_bytes(8, "little"))
        body += b"".join(fixed)
    yield _Item(start, 1, _packet(_number(_TIMESTAMP, start) + _text(_EVENT, body)))
    body = _number(_TYPE, _END) + _number(_TRACK, track)
    yield _Item(end, 0, _packet(_number(_TIMESTAMP, end) + _text(_EVENT, body)))


def _count(track: int, time: int, value: float) -> _Item:
    """A value of a counter."""
    body = _number(_TYPE, _VALUE) + _number(_TRACK, track)
    body += _varint(_DOUBLE << 3 | 1) + np.float64(value).tobytes()
    return _Item(time, 2, _packet(_number(_TIMESTAMP, time) + _text(_EVENT, body)))

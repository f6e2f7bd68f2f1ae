"""What every instruction writes, byte for byte: a `FastMachine` that goes word by word and keeps it.

`Footprints.compare` holds it against the writes of another machine that tells port, address, value and cycle of each,
the RTL: every byte of every instruction, no byte more, within the instruction's own time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from systolith.isa.descriptor import Format, Space
from systolith.isa.execute import where
from systolith.isa.instruction import Queue
from systolith.isa.program import Program
from systolith.isa.registry import layout_of
from systolith.isa.resolved import COLS, COUNT, EXT2, FIELDS, FIRST, A
from systolith.spec import BLOCK, QUEUES, Chip

from . import _footprints as fp
from . import _state as S
from ._accesses import ACCESSES
from .machine import FastMachine

__all__ = ["Difference", "Footprints"]

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_LETTERS: Final = "DABCEF"
_SEQ: Final = int(Queue.SEQ)
_C: Final = int(Queue.C)


@dataclass(frozen=True)
class Difference:
    """The first write that is not the definition's."""

    cycle: int
    where: str
    """Slice, word, assembly, source line; of a stray write the slice and the queue."""
    what: str
    """The element and its place, and both values."""

    def __str__(self) -> str:
        return f"cycle {self.cycle}: {self.where}: {self.what}"


class Footprints:
    """The functional simulator, and the bytes that its instructions have written and nobody has compared yet."""

    def __init__(self, chip: Chip, program: Program, setup: Callable[[Any], None] = lambda machine: None) -> None:
        self.chip, self.program = chip, program
        self.machine = FastMachine(chip, program)
        setup(self.machine)
        self.threads = program.requires.slices * len(QUEUES)
        self.pcs: list[list[int]] = [[] for _ in range(self.threads)]
        """Words of each thread so far, in order."""
        self._numbers: list[list[int]] = [[] for _ in range(self.threads)]
        """Number of each of those among all instructions."""
        self._thread: list[int] = []
        self._pc: list[int] = []
        self._formats: list[tuple[int, ...]] = []
        self._extents: list[tuple[tuple[int, int, int], ...]] = []
        self._passes: list[int] = []
        self._size = 1 << 16
        self._fresh()
        empty = [np.zeros(0, kind) for kind in (np.int64, np.uint8, np.int64, np.int32)]
        self._kept: list[Any] = empty
        self._writes: list[Any] = empty[:3]
        self.halted = False
        self.compared = self.last_only = 0
        """Bytes compared, and those of instructions so close to each other that only the last one's value was."""

    def _fresh(self) -> None:
        n = self._size
        self._buffer = [np.empty(n, kind) for kind in (np.int64, np.uint8, np.int64, np.int32)]
        self._n = 0

    # --- the simulator ---

    def advance(self, counts: list[int]) -> None:
        """Run until every thread has as many instructions as `counts` says, or all slices have halted."""
        row = np.zeros(COLS, np.int64)
        lacking = {t for t in range(self.threads) if len(self.pcs[t]) < counts[t]}
        while lacking and not self.halted:
            ran = self.machine.step(row)
            if ran is None:
                self.halted = True
                return
            rank, pc = ran
            instruction = self.program.code[pc]
            queue = int(instruction.queue)
            if queue == _SEQ:
                continue
            thread = rank * len(QUEUES) + queue
            self._note(rank, pc, thread, instruction, row)
            if len(self.pcs[thread]) >= counts[thread]:
                lacking.discard(thread)

    def _note(self, rank: int, pc: int, thread: int, instruction: Any, row: Ints) -> None:
        who = len(self._pc)
        self.pcs[thread].append(pc)
        self._numbers[thread].append(who)
        self._thread.append(thread)
        self._pc.append(pc)
        o = self.machine._head[3]
        name = instruction.NAME
        passes = 1
        if name == "MATMUL":
            terms = int(row[FIELDS]) >> layout_of("MATMUL", "terms") & 1
            passes = -(-int(row[A + EXT2]) // BLOCK) << terms
        self._passes.append(passes)
        written: list[tuple[int, tuple[int, int, int], int]] = []
        if name == "PUT":
            d = (int(o[S.OD, S.O_EXT]), int(o[S.OD, S.O_EXT + 1]), int(o[S.OD, S.O_EXT + 2]))
            first, count, apart = int(row[FIRST]), int(row[COUNT]), instruction.apart
            written = [(S.OD, d, m - rank) for m in range(first, first + (count << apart), 1 << apart)]
        elif name in ACCESSES:
            written = [(k, e, 0) for k, e, write in ACCESSES[name](o, instruction, row) if write]
        self._formats.append(tuple(int(o[k, S.O_FORMAT]) for k in range(S.OPERANDS)))
        self._extents.append(tuple((0, 0, 0) for _ in range(S.OPERANDS)))
        for k, extents, away in written:
            new = list(self._extents[-1])
            new[k] = extents
            self._extents[-1] = tuple(new)
            self._collect(k, extents, away * self.machine._stride, thread, who)

    def _collect(self, k: int, extents: tuple[int, int, int], away: int, thread: int, who: int) -> None:
        machine = self.machine
        while True:
            keys, values, places, owners = self._buffer
            n = fp.collect(
                machine._head[3], k, *extents, away, thread, who, machine._tail[1], machine._memory_bytes,
                keys, values, places, owners, self._n,
            )  # fmt: skip
            if n >= 0:
                self._n = int(n)
                return
            self._buffer = [np.concatenate([part, np.empty_like(part)]) for part in self._buffer]
            self._size *= 2

    # --- the other machine ---

    def key(self, thread: Ints, rank: Ints, space: Ints, address: Ints) -> Ints:
        """Keys of bytes that a thread writes; those outside of a space get one that no instruction has."""
        machine = self.machine
        sizes, offsets = np.array(machine._sizes), np.array(machine._offsets)
        inside = address < sizes[space]
        place = rank * machine._stride + offsets[space] + address
        outside = (1 << 39) + (space << 36) + address
        return thread << fp.THREAD_SHIFT | np.where(inside, place, outside)

    def compare(self, writes: tuple[Ints, Bytes, Ints], events: Ints, *, final: bool) -> Difference | None:
        """Compare what has ended; the rest waits for the next call. Gives the first difference.

        writes : key, value, cycle of each byte since the last call, in order    events : all instructions so far,
        [n, 5]: slice, queue, word, start, end (-1: still under way)    final : nothing is to come
        """
        thread = events[:, 0] * len(QUEUES) + events[:, 1]
        starts, ends, judged = self._times(thread, events, final)
        if isinstance(starts, Difference):
            return starts
        # A PUT ends when its source may be overwritten; its data are on their way to the members.
        sends = np.array(self._thread or [0]) % len(QUEUES) == _C
        ends = ends + sends * (self.chip.network_latency_cycles + 2 * self.chip.bank_cycles)
        new: list[Any] = [
            np.concatenate([old, part[: self._n]]) for old, part in zip(self._kept, self._buffer, strict=True)
        ]
        self._fresh()
        ready = judged[new[3]]
        self._kept = [part[~ready] for part in new]
        mine = _sorted([part[ready] for part in new], 0)
        theirs = _sorted([np.concatenate([old, part]) for old, part in zip(self._writes, writes, strict=True)], 0)
        found, used = np.zeros(8, np.int64), np.zeros(len(theirs[0]), np.uint8)
        passes = np.array(self._passes or [0], np.int64)
        fp.match(
            mine[0], mine[1], mine[3], starts, ends, passes, theirs[0], theirs[1], theirs[2], found, used, int(final)
        )  # fmt: skip
        self._writes = _sorted([part[used == 0] for part in theirs], 2)
        self.compared += int(found[fp.F_COMPARED])
        self.last_only += int(found[fp.F_LAST_ONLY])
        return self._difference(found, mine, theirs) if found[fp.F_KIND] else None

    def _times(self, thread: Ints, events: Ints, final: bool) -> tuple[Any, Any, Any]:
        """Start and end of each instruction of the simulator, and which can be judged: nothing that has begun before
        their end is still under way."""
        total = len(self._pc)
        starts, ends = np.zeros(max(1, total), np.int64), np.zeros(max(1, total), np.int64)
        judged = np.zeros(max(1, total), np.bool_)
        for t in range(self.threads):
            mine = events[thread == t]
            have = min(len(mine), len(self.pcs[t]))
            pcs = np.array(self.pcs[t][:have], np.int64)
            wrong = np.flatnonzero(mine[:have, 2] != pcs)
            rank, queue = divmod(t, len(QUEUES))
            ended = final or self.halted
            if len(wrong) or (final and len(mine) < len(self.pcs[t])) or (ended and len(mine) > len(self.pcs[t])):
                at = int(wrong[0]) if len(wrong) else have
                cycle = int(mine[at, 3]) if at < len(mine) else -1
                ran = f"word {int(mine[at, 2])}" if at < len(mine) else "nothing"
                should = where(self.program, rank, self.pcs[t][at]) if at < len(self.pcs[t]) else "nothing"
                place = f"slice {rank}, queue {QUEUES[queue]}"
                return Difference(cycle, place, f"instruction {at} is {should} in sim, {ran} on the rtl"), ends, judged
            numbers = np.array(self._numbers[t][:have], np.int64)
            open_ = mine[:have, 4] < 0
            starts[numbers], ends[numbers] = mine[:have, 3], mine[:have, 4]
            edge = int(mine[:have, 3][open_].min()) if open_.any() else 1 << 62
            judged[numbers] = ~open_ & (mine[:have, 4] <= edge)
        return starts, ends, judged

    def _difference(self, found: Ints, mine: list[Any], theirs: list[Any]) -> Difference:
        """Name the finding."""
        kind, byte, write, cycle = (int(x) for x in found[:4])
        if byte < 0:
            thread, at = divmod(int(theirs[0][write]), 1 << fp.THREAD_SHIFT)
            rank, queue = divmod(thread, len(QUEUES))
            value = int(theirs[1][write])
            return Difference(
                cycle, f"slice {rank}, queue {QUEUES[queue]}",
                f"it writes {value:#04x} to {self._byte(at)}, where no instruction of the queue writes",
            )  # fmt: skip
        who, mark = int(mine[3][byte]), int(mine[2][byte])
        rank = self._thread[who] // len(QUEUES)
        name = where(self.program, rank, self._pc[who])
        operand, rest = divmod(mark, 1 << fp.OPERAND_SHIFT)
        form, e = Format(self._formats[who][operand]), self._extents[who][operand]
        number = rest & (1 << fp.SCALE_BIT) - 1
        index = f"[{number // (e[1] * e[2])}, {number // e[2] % e[1]}, {number % e[2]}]"
        part = f"scale of {_LETTERS[operand]}" if rest >> fp.SCALE_BIT else f"{_LETTERS[operand]}"
        key = int(mine[0][byte])
        there = self._byte(key & (1 << fp.THREAD_SHIFT) - 1)
        # All bytes of the element: the simulator's, and what the other has written there last by then.
        size = 1 if rest >> fp.SCALE_BIT else max(1, form.bits // 8)
        near = (mine[3] == who) & (mine[2] == mark) & (abs(mine[0] - key) < size)
        wanted = {int(k): int(v) for k, v in zip(mine[0][near], mine[1][near], strict=True)}
        by = cycle if kind == fp.WRONG else cycle - 1
        got = {}
        for k in wanted:
            past = np.flatnonzero((theirs[0] == k) & (theirs[2] <= by))
            got[k] = int(theirs[1][past[-1]]) if len(past) else 0
        sim, rtl = (
            f"0x{int.from_bytes(bytes(x[k] for k in sorted(wanted)), 'little'):0{2 * size}x}" for x in (wanted, got)
        )
        text = f"element {index} of {part} ({form.name}), {there}: sim has {sim}"
        if kind == fp.WRONG:
            return Difference(cycle, name, f"{text}, rtl has {rtl}")
        if kind == fp.MISSING:
            late = f"writes it only at cycle {int(theirs[2][write])}" if write >= 0 else "writes nothing there"
            return Difference(cycle, name, f"{text}, rtl {late}; the instruction has ended")
        value = int(theirs[1][write])
        return Difference(cycle, name, f"{text}, rtl writes {value:#04x} to it while that instruction is not under way")

    def _byte(self, place: int) -> str:
        """Name a byte of the memory array."""
        if place >> 39 & 1:
            return f"{Space(place >> 36 & 7).name} byte {place & (1 << 36) - 1}, outside of it"
        rank, at = divmod(place, self.machine._stride)
        space = max(s for s in range(S.SPACES) if self.machine._offsets[s] <= at)
        return f"{Space(space).name} byte {at - self.machine._offsets[space]} of slice {rank}"


def _sorted(parts: list[Any], by: int) -> list[Any]:
    """Sort all parts by one of them; what is equal keeps its order."""
    order = np.argsort(parts[by], kind="stable")
    return [part[order] for part in parts]

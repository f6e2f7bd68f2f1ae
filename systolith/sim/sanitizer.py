"""Sanitizer: runs a program once and finds what could go wrong under another timing.

A program is a network of in-order queues joined by semaphores. Each queue of each slice, and each sequencer, is a
thread with a vector clock; queue order, dispatch, posts taken by waits (first in, first out) and arrivals of PUT are
its edges. Two accesses to one byte, one of them a write, that no chain of edges orders are a race, whatever this
run's order was. As every semaphore has one posting and one waiting queue, one run speaks for every timing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from systolith.isa.descriptor import Space
from systolith.isa.dma import Copy
from systolith.isa.execute import OnRing, where
from systolith.isa.instruction import Queue
from systolith.isa.program import EVERY_SLICE, Program
from systolith.isa.resolved import COLS, COUNT, FIELDS, FIRST, SPACE, A, D
from systolith.spec import SEMAPHORE_MAX, SEMAPHORES, CapacityError, Chip, ProgramError

from . import _shadow as shadow
from . import _state as S
from ._accesses import ACCESSES
from ._traps import T_BOUNDS, T_LIST_BOUNDS, T_POST, T_SCALE_BOUNDS
from .machine import FastMachine

__all__ = ["FAULTS", "Finding", "Sanitizer", "sanitize"]

FAULTS: Final = {
    "race": "two accesses to the same bytes, one a write, that nothing orders",
    "deadlock": "no slice can go on",
    "bounds": "an access outside its space",
    "unwritten": "a read of memory that nothing has written",
    "bank": "two queues may use one scratchpad bank at the same time (a warning: it costs cycles, no bit)",
    "capacity": "the program needs more than the chip, or uses more than it says it needs",
    "semaphore": "a semaphore may hold more tokens than it can, or has two posting or two waiting queues",
    "trap": "an instruction that is illegal as its operands are",
}
"""Classes of findings."""

_WARNINGS: Final = frozenset({"bank"})
_THREADS: Final = shadow.QUEUES
_SEQ: Final = int(Queue.SEQ)
_C: Final = int(Queue.C)
_L: Final = int(Queue.L)
_FREE: Final = next(bits.low for bits in Copy.LAYOUT if bits.name == "free")
_NETWORK: Final = -1
_RACES: Final = {
    shadow.RACE_WRITE_WRITE: "both write", shadow.RACE_WRITE_READ: "reads what is written by",
    shadow.RACE_READ_WRITE: "writes what is read by",
}  # fmt: skip
Clock = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Finding:
    """One fault, found first at these words; the same pair of words is not reported again."""

    fault: str
    """A class of FAULTS."""
    sentence: str
    """Names the instructions and their source lines."""
    slice: int = 0
    words: tuple[int, ...] = ()
    """The words involved, the later one first."""

    @property
    def warning(self) -> bool:
        """Whether no bit depends on it."""
        return self.fault in _WARNINGS

    def __str__(self) -> str:
        return f"{self.fault}: {self.sentence}"


@dataclass
class _Semaphore:
    """Tokens of one semaphore of one slice, each with the clock of the post that gave it."""

    tokens: deque[Clock] = field(default_factory=deque)
    given: int = 0
    taken_epochs: list[int] = field(default_factory=list)
    """Epochs of the waits in the thread of the waiting queue."""
    waiting: int | None = None
    posting: int | None = None

    def all_taken(self, clock: Clock, rank: int) -> bool:
        """Whether every token that was given has been taken before what `clock` knows of."""
        if self.waiting is None:
            return self.given == 0
        return bisect_right(self.taken_epochs, int(clock[rank * _THREADS + self.waiting])) == self.given

    def start_over(self) -> None:
        """Forget who posts and who waits."""
        self.given, self.waiting, self.posting = 0, None, None
        self.taken_epochs.clear()


class Sanitizer:
    """A FastMachine under observation. `findings` grow while it runs; a trap or a deadlock ends the run.

    Memory: 4 bytes for each byte of memory and queue that touches it.

    bells : (slice, address) of words in DRAM that the host writes while the program polls them. What the host writes
    before the start is before everything. What it writes later comes after all that led to the records of slice 0 so
    far, and before what follows a read of a bell that was rung after it; anything else is a race.
    """

    def __init__(self, chip: Chip, program: Program, bells: Collection[tuple[int, int]] = ()) -> None:
        self.program, self.chip = program, chip
        self.findings: list[Finding] = []
        self.machine = machine = FastMachine(chip, program)
        slices, total = program.requires.slices, len(machine._memory_bytes)
        threads = slices * _THREADS + 1
        self._host = threads - 1
        self._bells = {bell: np.zeros(threads, np.int64) for bell in bells}
        self._clock = np.zeros((threads, threads), np.int64)
        self._writer = np.zeros(total, np.int32)
        self._reader = np.zeros((_THREADS, total), np.int32)
        self._thread_of = np.zeros(1 << 16, np.int32)
        self._epoch_of = np.zeros(1 << 16, np.int32)
        self._word_of = np.zeros(1 << 16, np.int32)
        self._events = 1  # event 0 is never, 1 the host's writes and what is there at start: before everything
        self._found = np.zeros(4, np.int64)
        self._banks = np.zeros((2, chip.banks), np.int64)
        self._bank_last = np.zeros((slices, chip.banks, _THREADS), np.int64)
        self._sems = [[_Semaphore() for _ in range(SEMAPHORES)] for _ in range(slices)]
        for sems in self._sems:
            for sem, tokens in zip(sems, program.sem_init, strict=True):
                sem.tokens.extend(np.zeros(threads, np.int64) for _ in range(tokens))
                sem.given = tokens
        self._arrived = np.zeros((slices, S.COUNTER_COUNT, threads), np.int64)
        self._arrivals = np.zeros((slices, S.COUNTER_COUNT), np.int64)
        self._settled = np.zeros(slices, np.int64)
        """Epoch of L up to which a copy that starts now knows all before it to be done."""
        self._seen: set[tuple[str, int, int, int]] = set()
        self._top = np.zeros(S.SPACES, np.int64)
        self._sizes = (
            program.requires.dram_bytes, program.requires.spad_bytes, program.requires.slot_bytes,
            program.requires.acc_bytes, S.CELL_BYTES,
        )  # fmt: skip
        for image in program.images:
            for rank in range(slices):
                if image.slice in (rank, EVERY_SLICE):
                    self.written(rank, Space.DRAM, image.address, len(image.data))
        for rank in range(slices):
            self.written(rank, Space.CELL, 0, S.CELL_BYTES)

    # --- what the host does ---

    def write_dram(self, rank: int, address: int, data: bytes) -> None:
        """Write DRAM of a slice from the host."""
        self.machine.write_dram(rank, address, data)
        if self._events == 1:
            self.written(rank, Space.DRAM, address, len(data))
            return
        clock = self._clock[self._host]
        if (rank, address) in self._bells:
            self._bells[rank, address][:] = clock
            return
        clock[self._host] += 1
        event = self._event(self._host, int(clock[self._host]), -1)
        at = rank * self.machine._stride + self.machine._offsets[Space.DRAM] + address
        self._found[:] = 0
        shadow.mark(
            at, at + len(data), 1, event, 0, self._writer, self._reader, self._thread_of, self._epoch_of, clock,
            self._found,
        )  # fmt: skip
        self._judge(rank, -1, Space.DRAM)

    def written(self, rank: int, space: Space, address: int, count: int) -> None:
        """Take bytes as written before everything that follows."""
        at = rank * self.machine._stride + self.machine._offsets[space] + address
        self._writer[at : at + count] = 1

    def run(self, limit: int | None = None, on_ring: OnRing | None = None) -> bool:
        """Run until all slices have halted or a fault ends it (True), or `limit` words in all have run (False)."""
        row = np.zeros(COLS, np.int64)
        done = 0
        sent = len(self.machine.records(0))
        while limit is None or done < limit:
            turn = self._next()
            try:
                ran = self.machine.step(row)
            except ProgramError as fault:
                self._ended(fault, turn)
                return True
            if ran is None:
                self._capacity()
                return True
            done += 1
            self._observe(ran[0], ran[1], row)
            if on_ring is not None and ran[0] == 0 and len(self.machine._sent[0]) > sent:
                sent = len(self.machine._sent[0])
                on_ring(0, self.machine._sent[0][-1])
        return False

    @property
    def faults(self) -> list[Finding]:
        """Findings that are no warnings."""
        return [finding for finding in self.findings if not finding.warning]

    # --- one instruction ---

    def _next(self) -> int:
        return self.machine._turn

    def _observe(self, rank: int, pc: int, row: Clock) -> None:
        instruction = self.program.code[pc]
        queue = int(instruction.queue)
        thread = rank * _THREADS + queue
        clock = self._clock[thread]
        # Dispatch: what the sequencer has waited for is before all that it hands out.
        if queue != _SEQ:
            np.maximum(clock, self._clock[rank * _THREADS + _SEQ], out=clock)
        clock[thread] += 1
        waits, posts = instruction.waits, instruction.posts
        n = 0
        while waits >> n:
            if waits >> n & 1:
                self._take(rank, n, queue, clock, pc)
            n += 1
        event = self._event(thread, int(clock[thread]), pc)
        name = instruction.NAME
        if name == "COPY" and self._bells:
            o = self.machine._head[3]
            bell = self._bells.get((rank, int(o[S.OA, S.O_BASE])))
            if bell is not None and int(o[S.OA, S.O_SPACE]) == Space.DRAM:
                np.maximum(clock, bell, out=clock)
        elif name == "RING" and rank == 0:
            np.maximum(self._clock[self._host], clock, out=self._clock[self._host])
        if name in ACCESSES:
            seen = self._load_clock(rank, row, clock) if name == "COPY" and queue == _L else clock
            self._banks[:] = 0
            for operand, extents, write in ACCESSES[name](self.machine._head[3], instruction, row):
                # Cells are read at a start and written at an end, both in the order of the queue.
                known = clock if write and row[D + SPACE] == Space.CELL else seen
                self._touch(rank, pc, queue, event, known, operand, extents, write, 0)
            if name == "PUT":
                self._put(rank, pc, row, event, clock, instruction)
            self._cells(rank, pc, queue, event, clock, instruction)
            self._check_banks(rank, pc, queue, event, clock)
        elif name == "READX" and instruction.x:  # type: ignore[attr-defined]
            self._cell(rank, pc, queue, event, clock, instruction.x)  # type: ignore[attr-defined]
        elif name == "HALT":
            home = self._clock[rank * _THREADS : (rank + 1) * _THREADS]
            clock[:] = home.max(axis=0)
        n = 0
        while posts >> n:
            if posts >> n & 1:
                self._give(rank, n, queue, clock, pc, rank)
            n += 1

    def _load_clock(self, rank: int, row: Clock, clock: Clock) -> Clock:
        """What a copy of L knows to be done when it starts: of its own queue only what it waits for.

        Copies of L overlap in time. One that reads the scratchpad waits for those before it, and one that writes cells
        makes the next one wait, unless it is free; and a token that L takes tells of the copies that led to it.
        """
        thread = rank * _THREADS + _L
        epoch = int(clock[thread])
        free = int(row[FIELDS]) >> _FREE & 1
        # What the sequencer has waited for was done before it handed this one out.
        self._settled[rank] = max(self._settled[rank], int(self._clock[rank * _THREADS + _SEQ][thread]))
        if row[A + SPACE] != Space.DRAM and not free:
            self._settled[rank] = max(self._settled[rank], epoch - 1)
        seen = clock.copy()
        seen[thread] = self._settled[rank]
        if row[D + SPACE] == Space.CELL and not free:
            self._settled[rank] = epoch
        return seen

    def _event(self, thread: int, epoch: int, pc: int) -> int:
        self._events += 1
        if self._events >= len(self._thread_of):
            for name in ("_thread_of", "_epoch_of", "_word_of"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        event = self._events
        self._thread_of[event], self._epoch_of[event], self._word_of[event] = thread, epoch, pc
        return event

    def _touch(
        self, rank: int, pc: int, queue: int, event: int, clock: Clock, operand: int, extents: tuple[int, int, int],
        write: int, member: int,
    ) -> None:  # fmt: skip
        """Mark an operand's accesses, in the memory of the slice `member` places after this one."""
        machine, found = self.machine, self._found
        operands = machine._head[3]
        found[:] = 0
        shadow.touch(
            operands, operand, *extents, member * machine._stride, write, event, queue, machine._tail[1], self._banks,
            self.chip.bank_size_bytes, self._writer, self._reader, self._thread_of, self._epoch_of, clock, found,
        )  # fmt: skip
        space = int(operands[operand, S.O_SPACE])
        if found[shadow.F_TOP]:
            home = int(operands[operand, S.O_ABS]) + member * machine._stride
            self._top[space] = max(self._top[space], found[shadow.F_TOP] - home)
        self._judge(rank, pc, space)

    def _judge(self, rank: int, pc: int, space: int) -> None:
        """Report what `mark` has found."""
        kind, event, at = (int(x) for x in self._found[:3])
        if not kind:
            return
        member, offset = divmod(at, self.machine._stride)
        while (
            offset < self.machine._offsets[space]
        ):  # an index list lies in the scratchpad, whatever the operand's space
            space -= 1
        place = f"{Space(space).name} byte {offset - self.machine._offsets[space]} of slice {member}"
        here = self._name(rank, pc)
        if kind == shadow.NEVER_WRITTEN:
            self._report("unwritten", f"{here} reads {place}, which nothing has written", rank, pc, -1)
            return
        other = int(self._word_of[event])
        there = self._name(int(self._thread_of[event]) // _THREADS, other)
        what = (
            f"{here} and {there} both write" if kind == shadow.RACE_WRITE_WRITE else f"{here} {_RACES[kind]} {there}:"
        )
        self._report("race", f"{what} {place}, and no semaphore orders them", rank, pc, other)

    def _name(self, rank: int, pc: int) -> str:
        """Name a word, or the host."""
        return where(self.program, rank, pc) if pc >= 0 else "the host"

    def _cells(self, rank: int, pc: int, queue: int, event: int, clock: Clock, instruction: Any) -> None:
        """Mark the cells that shift or shorten operands."""
        state = self.machine._state[rank]
        for register in instruction.operands().values():
            at = S.DESCS + register * S.D_FIELDS
            for cell in (int(state[at + S.D_XB]), int(state[at + S.D_XE])):
                if cell:
                    self._cell(rank, pc, queue, event, clock, cell)
        if instruction.NAME == "PUT" and instruction.count and instruction.b:
            self._cell(rank, pc, queue, event, clock, instruction.b)

    def _cell(self, rank: int, pc: int, queue: int, event: int, clock: Clock, cell: int) -> None:
        at = rank * self.machine._stride + self.machine._offsets[Space.CELL] + 4 * cell
        self._found[:] = 0
        shadow.mark(
            at, at + 4, 0, event, queue, self._writer, self._reader, self._thread_of, self._epoch_of, clock, self._found
        )
        self._judge(rank, pc, Space.CELL)

    def _put(self, rank: int, pc: int, row: Clock, event: int, clock: Clock, instruction: Any) -> None:
        """Mark what a PUT writes in each member, and count its arrival."""
        o = self.machine._head[3]
        extents = (int(o[S.OD, S.O_EXT]), int(o[S.OD, S.O_EXT + 1]), int(o[S.OD, S.O_EXT + 2]))
        expect = instruction.expect or self.program.requires.slices
        first, count, apart = int(row[FIRST]), int(row[COUNT]), instruction.apart
        for member in range(first, first + (count << apart), 1 << apart):
            self._touch(rank, pc, _C, event, clock, S.OD, extents, 1, member - rank)
            if instruction.arrive:
                counter = instruction.counter
                arrived = self._arrived[member, counter]
                np.maximum(arrived, clock, out=arrived)
                self._arrivals[member, counter] += 1
                if self._arrivals[member, counter] == expect:
                    self._arrivals[member, counter] = 0
                    self._give(member, instruction.sem, _NETWORK, arrived, pc, rank)
                    arrived[:] = 0

    # --- semaphores ---

    def _take(self, rank: int, n: int, queue: int, clock: Clock, pc: int) -> None:
        sem = self._sems[rank][n]
        if sem.waiting is not None and sem.waiting != queue:
            self._report(
                "semaphore", f"{where(self.program, rank, pc)} waits for semaphore {n}, for which queue "
                f"{Queue(sem.waiting).name} waits already: one queue may", rank, pc, n,
            )  # fmt: skip
        sem.waiting = queue
        token = sem.tokens.popleft()
        if queue == _L:
            self._settled[rank] = max(self._settled[rank], int(token[rank * _THREADS + _L]))
        np.maximum(clock, token, out=clock)
        sem.taken_epochs.append(int(clock[rank * _THREADS + queue]))

    def _give(self, rank: int, n: int, queue: int, clock: Clock, pc: int, sender: int) -> None:
        """Give a token; count how many there may be by the time it is given, as far as anything orders the waits."""
        sem = self._sems[rank][n]
        if sem.posting not in (None, queue) and sem.all_taken(clock, rank):
            sem.start_over()  # another may have it from here on
        if sem.posting is not None and sem.posting != queue:
            first = "the network" if sem.posting == _NETWORK else f"queue {Queue(sem.posting).name}"
            self._report(
                "semaphore",
                f"{where(self.program, sender, pc)} posts semaphore {n} of slice {rank}, which {first} posts already: "
                "one queue may, as long as tokens are open",
                sender,
                pc,
                n,
            )
        sem.posting = queue
        sem.tokens.append(clock.copy())
        sem.given += 1
        taken = 0
        if sem.waiting is not None and sem.given > SEMAPHORE_MAX:
            taken = bisect_right(sem.taken_epochs, int(clock[rank * _THREADS + sem.waiting]))
        if sem.given - taken > SEMAPHORE_MAX:
            self._report(
                "semaphore", f"{where(self.program, sender, pc)} may give semaphore {n} of slice {rank} token "
                f"{sem.given - taken}, as nothing makes it wait for those that take them; it holds {SEMAPHORE_MAX}",
                sender, pc, n,
            )  # fmt: skip

    # --- the rest ---

    def _check_banks(self, rank: int, pc: int, queue: int, event: int, clock: Clock) -> None:
        """Report another queue's access to one of the banks in use that is not ordered before this one."""
        for bank in np.flatnonzero(self._banks.any(axis=0)):
            last = self._bank_last[rank, bank]
            for other in range(_THREADS):
                past = int(last[other])
                if other != queue and past and clock[self._thread_of[past]] < self._epoch_of[past]:
                    word = int(self._word_of[past])
                    self._report(
                        "bank",
                        f"{where(self.program, rank, pc)} and {where(self.program, rank, word)} may use bank {bank} at "
                        "the same time",
                        rank,
                        pc,
                        word,
                    )
            last[queue] = event

    def _capacity(self) -> None:
        for space, (top, size) in enumerate(zip(self._top, self._sizes, strict=True)):
            if space != Space.CELL and top > size:
                name = {1: "spad_bytes", 2: "slot_bytes", 3: "acc_bytes", 0: "dram_bytes"}[space]
                self._report(
                    "capacity",
                    f"program {self.program.name!r} uses {int(top)} bytes of {Space(space).name}, but requires "
                    f"{name}={size}: state what it needs",
                    0,
                    -1,
                    space,
                )

    def _ended(self, fault: ProgramError, turn: int) -> None:
        message = str(fault)
        if message.startswith("deadlock"):
            self._report("deadlock", message, turn, -1, -1)
            return
        rank = self.machine._turn
        code, pc = int(self.machine._state[rank, S.ERR]), int(self.machine._state[rank, S.PC])
        name = (
            "bounds" if code in (T_BOUNDS, T_SCALE_BOUNDS, T_LIST_BOUNDS) else "semaphore" if code == T_POST else "trap"
        )
        self._report(name, message, rank, pc, -1)

    def _report(self, fault: str, sentence: str, rank: int, pc: int, other: int) -> None:
        key = (fault, pc, other, 0 if fault != "deadlock" else rank)
        if key not in self._seen:
            self._seen.add(key)
            words = tuple(word for word in (pc, other) if word >= 0)
            self.findings.append(Finding(fault, sentence, rank, words if fault in ("race", "bank") else words[:1]))


def sanitize(
    chip: Chip, program: Program, prepare: Callable[[Sanitizer], None] | None = None, limit: int | None = None
) -> list[Finding]:
    """Run a program under observation; give what it finds, in order.

    prepare : writes the host's data (`Sanitizer.write_dram`) before the start    limit : most words, of all slices
    together
    """
    try:
        sanitizer = Sanitizer(chip, program)
    except CapacityError as fault:
        return [Finding("capacity", str(fault))]
    if prepare is not None:
        prepare(sanitizer)
    sanitizer.run(limit)
    return sanitizer.findings

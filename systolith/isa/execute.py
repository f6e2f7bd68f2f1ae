"""`Machine`: the definition of what a program does, in plain Python, one word at a time.

docs/decisions/0002-program-and-executors.md has the order of slices and the surface, which `sim` shares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from systolith.spec import CELLS, Chip, ProgramError

from .descriptor import Space
from .program import EVERY_SLICE, Program
from .resolved import COLS, fill_row
from .state import Footprint, Slice

__all__ = ["Machine", "OnRing", "where"]

Bytes = npt.NDArray[np.uint8]
Row = npt.NDArray[np.int64]
OnRing = Callable[[int, tuple[int, ...]], None]
"""Called with (slice, record) when RING sends a record."""


def where(program: Program, rank: int, pc: int) -> str:
    """Name a word for a message: slice, number, assembly, source line."""
    from .asm import line_of

    source = program.line(pc)
    return f"slice {rank}, word {pc} ({line_of(program.code[pc])}{', ' + source if source else ''})"


class Machine:
    """The slices of a chip while they execute a program.

    Raises CapacityError where the chip offers less than the program needs, ProgramError when a word traps.
    """

    def __init__(self, chip: Chip, program: Program) -> None:
        program.check_chip(chip)
        self.chip = chip
        self.program = program
        self.slices: list[Slice] = []
        for rank in range(program.requires.slices):
            self.slices.append(Slice.fresh(rank, chip, program, self.slices))
        for image in program.images:
            for s in self.slices:
                if image.slice in (s.rank, EVERY_SLICE):
                    s.memory[Space.DRAM][image.address : image.address + len(image.data)] = image.data
        self.counts: Counter[str] = Counter()
        """Executed instructions by mnemonic."""
        self._turn = 0

    # --- execution ---

    def step(self) -> list[Footprint]:
        """Execute one word on the next slice in order; give what it wrote. Nothing once all slices have halted."""
        return self._step(None)

    def run(self, limit: int | None = None, on_ring: OnRing | None = None) -> bool:
        """Run until all slices have halted (True), or each that can has executed `limit` words in this call (False).

        Raises ProgramError for a trap, and for a deadlock.
        """
        sent = [len(s.records) for s in self.slices]
        done = [0] * len(self.slices)
        while True:
            progress = tired = False
            for s in self.slices:
                self._turn = s.rank
                while self._ready(s):
                    if done[s.rank] == limit:
                        tired = True
                        break
                    self._execute(s)
                    done[s.rank] += 1
                    progress = True
                    if on_ring and s.rank == 0:
                        for record in s.records[sent[0] :]:
                            on_ring(0, record)
                        sent[0] = len(s.records)
            if all(s.halted for s in self.slices):
                return True
            if not progress:
                if tired:
                    return False
                raise self._deadlock()

    def resolved(self) -> Iterator[Row]:
        """Run to the end; give the resolved row of each word in the order of execution."""
        while not all(s.halted for s in self.slices):
            row = np.zeros(COLS, np.int64)
            self._step(row)
            yield row

    def _step(self, row: Row | None) -> list[Footprint]:
        for _ in range(len(self.slices)):
            s = self.slices[self._turn]
            if self._ready(s):
                self._execute(s, row)
                return list(s.footprint)
            self._turn = (self._turn + 1) % len(self.slices)
        if all(s.halted for s in self.slices):
            return []
        raise self._deadlock()

    def _ready(self, s: Slice) -> bool:
        """Whether a slice can execute its next word: not halted, all tokens there."""
        if s.halted:
            return False
        if s.pc >= len(self.program.code):
            raise ProgramError(
                f"program {self.program.name!r}, slice {s.rank}: it ran past the last word, "
                f"{len(self.program.code) - 1}; end it with HALT."
            )
        return not s.missing(self.program.code[s.pc].waits)

    def _execute(self, s: Slice, row: Row | None = None) -> None:
        """Execute the next word of a slice that is ready."""
        instruction = self.program.code[s.pc]
        s.footprint.clear()
        s.next_pc = s.pc + 1
        try:
            if row is not None:
                fill_row(row, s, instruction, self.program.words[s.pc])
            s.take(instruction.waits)
            instruction.execute(s)
            s.give(instruction.posts)
        except ProgramError as cause:
            sentence = str(cause).removesuffix(".")
            raise ProgramError(f"{where(self.program, s.rank, s.pc)}: {sentence}.") from None
        self.counts[instruction.mnemonic] += 1
        s.end_word()

    def _deadlock(self) -> ProgramError:
        stuck = [
            f"{where(self.program, s.rank, s.pc)} waits for semaphore {', '.join(map(str, missing))}"
            for s in self.slices
            if not s.halted and (missing := s.missing(self.program.code[s.pc].waits))
        ]
        return ProgramError(f"deadlock: no slice can go on; {'; '.join(stuck)}.")

    # --- memory and state ---

    def write_dram(self, rank: int, address: int, data: bytes) -> None:
        """Write DRAM of a slice from the host."""
        self._check(rank, address, len(data))
        self.slices[rank].memory[Space.DRAM][address : address + len(data)] = data

    def read_dram(self, rank: int, address: int, count: int) -> bytes:
        """Read DRAM of a slice."""
        self._check(rank, address, count)
        return bytes(self.slices[rank].memory[Space.DRAM][address : address + count])

    def _check(self, rank: int, address: int, count: int) -> None:
        size = self.program.requires.dram_bytes
        if not 0 <= rank < len(self.slices) or address < 0 or address + count > size:
            raise ProgramError(
                f"bytes {address}..{address + count - 1} of DRAM of slice {rank} are not there: "
                f"{len(self.slices)} slices have {size} bytes each."
            )

    def dram(self, rank: int) -> Bytes:
        """DRAM of a slice, a view: as much as the program uses."""
        return self._memory(rank, Space.DRAM)

    def spad(self, rank: int) -> Bytes:
        """Scratchpad of a slice, a view."""
        return self._memory(rank, Space.SPAD)

    def slot(self, rank: int) -> Bytes:
        """Weight slots of a slice, a view."""
        return self._memory(rank, Space.SLOT)

    def acc(self, rank: int) -> Bytes:
        """Accumulator of a slice, a view."""
        return self._memory(rank, Space.ACC)

    def _memory(self, rank: int, space: Space) -> Bytes:
        return np.frombuffer(self.slices[rank].memory[space], np.uint8)

    def regs(self, rank: int) -> list[int]:
        """Registers of a slice, unsigned."""
        return list(self.slices[rank].regs)

    def cells(self, rank: int) -> list[int]:
        """Cells of a slice, unsigned; entry 0 is the memory behind cell 0, which no instruction can name."""
        memory = self.slices[rank].memory[Space.CELL]
        return [int.from_bytes(memory[4 * n : 4 * n + 4], "little") for n in range(CELLS)]

    def sems(self, rank: int) -> list[int]:
        """Tokens of each semaphore of a slice."""
        return list(self.slices[rank].sems)

    def records(self, rank: int) -> list[tuple[int, ...]]:
        """What RING of a slice has sent so far."""
        return list(self.slices[rank].records)

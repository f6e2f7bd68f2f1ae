"""`FastMachine`: the fast functional simulator. Same surface and same bits as `isa.execute.Machine`.

Every word is interpreted by compiled kernels, one file a unit. A slice's spaces lie in one byte array, slices one
after the other; only PUT reaches another slice's part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from systolith.isa.descriptor import Space
from systolith.isa.execute import OnRing, where
from systolith.isa.program import EVERY_SLICE, Program
from systolith.isa.resolved import COLS
from systolith.spec import CELLS, RANK_REGISTER, REGISTERS, SEMAPHORES, Chip, ProgramError

from . import _interpreter as loop
from . import _state as S
from ._decode import constant_table, format_tables, mnemonics, word_table
from ._explain import sentence
from .matrix import CAPACITY
from .vector import ROW

__all__ = ["FastMachine"]

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
LastRecord = Callable[[tuple[int, ...]], bool]
_PAGE: Final = 4096
_NO_LIMIT: Final = 1 << 62
_NO_ROWS: Final = np.zeros((1, COLS), np.int64)


class FastMachine:
    """The slices of a chip while they execute a program, compiled.

    Raises CapacityError where the chip offers less than the program needs, ProgramError when a word traps.
    """

    _dram_bytes: int
    """Bytes of DRAM of a slice."""

    def __init__(self, chip: Chip, program: Program) -> None:
        program.check_chip(chip)
        if not hasattr(self, "_dram_bytes"):
            self._dram_bytes = program.requires.dram_bytes
        self.chip = chip
        self.program = program
        count = program.requires.slices
        sizes = (
            self._dram_bytes, chip.scratchpad_bytes, chip.slots_bytes, chip.accumulator_bytes, S.CELL_BYTES
        )  # fmt: skip
        offsets, end = [], 0
        for size in sizes:
            offsets.append(end)
            end += -(-size // 64) * 64
        stride = -(-end // _PAGE) * _PAGE
        self._sizes, self._offsets, self._stride = sizes, offsets, stride
        cfg = np.zeros(S.CONFIG, np.int64)
        cfg[S.C_SLICES], cfg[S.C_WORDS], cfg[S.C_STRIDE] = count, len(program.words), stride
        cfg[S.C_OFFSET : S.C_OFFSET + S.SPACES] = offsets
        cfg[S.C_SIZE : S.C_SIZE + S.SPACES] = sizes
        state = np.zeros((count, S.STATE), np.int64)
        state[:, S.REGS + RANK_REGISTER] = np.arange(count)
        state[:, S.REGS + RANK_REGISTER - 1] = count
        state[:, S.SEMS : S.SEMS + SEMAPHORES] = program.sem_init
        self._state, self._cfg = state, cfg
        memory = np.zeros(count * stride, np.uint8)
        self._memory_bytes = memory
        for image in program.images:
            if image.address >= self._dram_bytes:
                continue
            for rank in range(count):
                if image.slice in (rank, EVERY_SLICE):
                    self._space(rank, Space.DRAM)[image.address : image.address + len(image.data)] = np.frombuffer(
                        image.data, np.uint8
                    )
        self._ran = np.zeros(len(program.words), np.int64)
        self._records = np.zeros(1 << 16, np.int64)
        self._sent: list[list[tuple[int, ...]]] = [[] for _ in range(count)]
        self._fill = np.zeros(2 + count, np.int64)
        self._turn = 0
        self._settling = False
        constants = constant_table(program.constants)
        operands = np.zeros((S.OPERANDS, S.O_FIELDS), np.int64)
        scratch = _scratch()
        self._head = (state, word_table(program), constants, operands, cfg, self._ran)
        self._tail = (memory, memory.view(np.int32), memory.view(np.float32), *format_tables(), *scratch)

    # --- execution ---

    def run(self, limit: int | None = None, on_ring: OnRing | None = None) -> bool:
        """Run until all slices have halted (True), or each that can has executed `limit` words in this call (False).

        Raises ProgramError for a trap, and for a deadlock.
        """
        self._fill[0] = 0
        self._begin(on_ring is not None)
        while True:
            why = self._call(0, _NO_LIMIT if limit is None else limit, _NO_ROWS)
            self._drain(on_ring)
            if why == loop.STOPPED:
                return True
            if why == loop.LIMIT:
                return False
            if why != loop.RANG:
                raise self._fault(why)

    def run_resolved(self, buffer: Ints) -> Ints:
        """Run and write resolved rows, int64 [slices, rows, COLS]; give the rows of each slice, int64 [slices].

        Returns when all slices that can go on have filled their rows, or all have halted; called again it goes on.
        Raises ProgramError for a trap, and for a deadlock.
        """
        slices = len(self._state)
        if buffer.dtype != np.int64 or buffer.ndim != 3 or buffer.shape[0] != slices or buffer.shape[2] != COLS:
            raise ProgramError(
                f"run_resolved: buffer {buffer.dtype}{buffer.shape} must be int64 [{slices}, rows, {COLS}]."
            )
        if not buffer.flags.c_contiguous or buffer.shape[1] == 0:
            raise ProgramError("run_resolved: buffer must be contiguous and hold at least one row a slice.")
        self._fill[:] = 0
        self._fill[0], self._fill[1] = 1, buffer.shape[1]
        rows = buffer.reshape(-1, COLS)
        self._begin(False)
        while True:
            why = self._call(0, _NO_LIMIT, rows)
            self._drain(None)
            if why in (loop.STOPPED, loop.LIMIT):
                return self._fill[2:].copy()
            if why != loop.RANG:
                raise self._fault(why)

    def run_to_record(self, last: LastRecord, buffer: Ints | None = None) -> tuple[Ints, bool]:
        """Run until slice 0 has sent a record that is `last`, and then the other slices until they wait.

        buffer : resolved rows as in `run_resolved`, if given. Gives the counts [slices] and True, or False where the
        rows were full before: called again it goes on.
        Raises ProgramError for a trap, for a deadlock, and where slice 0 halts without such a record.
        """
        self._fill[:] = 0
        rows = _NO_ROWS
        if buffer is not None:
            self._fill[0], self._fill[1] = 1, buffer.shape[1]
            rows = buffer.reshape(-1, COLS)
        while not self._settling:
            self._begin(True)
            why = self._call(0, _NO_LIMIT, rows)
            before = len(self._sent[0])
            self._drain(None)
            if why == loop.LIMIT:
                return self._fill[2:].copy(), False
            if why == loop.STOPPED:
                raise ProgramError("the program has halted without the record that was waited for.")
            if why != loop.RANG:
                raise self._fault(why)
            self._settling = any(last(record) for record in self._sent[0][before:])
        # Slice 0 is passed over as one that has halted; the others then come to stand still.
        self._state[0, S.STATUS] = S.HALTED
        try:
            self._begin(False)
            while (why := self._call(0, _NO_LIMIT, rows)) == loop.RANG:
                self._drain(None)
            self._drain(None)
        finally:
            self._state[0, S.STATUS] = S.RUNNING
        if why == loop.TRAPPED:
            raise self._fault(why)
        if why == loop.LIMIT:
            return self._fill[2:].copy(), False
        self._settling = False
        return self._fill[2:].copy(), True

    def take_records(self) -> list[tuple[int, ...]]:
        """Give what RING of slice 0 has sent since the last call, and forget what all slices have sent."""
        taken = self._sent[0]
        self._sent = [[] for _ in self._sent]
        return taken

    def step(self, row: Ints | None = None) -> tuple[int, int] | None:
        """Execute one word on the next slice in order, as Machine.step; give (slice, pc), None once all have halted.

        row : int64 [COLS] that gets the resolved row, if given
        """
        slices = len(self._state)
        rows = _NO_ROWS if row is None else np.zeros((slices, COLS), np.int64)
        tries = 0
        while tries < slices:
            rank, pc = self._turn, int(self._state[self._turn, S.PC])
            halted = bool(self._state[rank, S.STATUS] == S.HALTED)
            self._begin(False)
            self._fill[:] = 0
            self._fill[:2] = row is not None, 1
            self._cfg[S.C_CURSOR] = rank
            why = loop.STOPPED if halted else self._call(1, 1, rows)
            self._drain(None)
            if why == loop.TRAPPED:
                raise self._fault(why)
            if self._state[rank, S.DONE]:
                if row is not None:
                    row[:] = rows[rank]
                return rank, pc
            if why != loop.RANG:  # else the record found no room, and has some now
                self._turn = (rank + 1) % slices
                tries += 1
        if bool((self._state[:, S.STATUS] == S.HALTED).all()):
            return None
        raise self._fault(loop.DEADLOCK)

    def _begin(self, stop_on_ring: bool) -> None:
        self._state[:, S.DONE] = 0
        cfg = self._cfg
        cfg[S.C_CURSOR] = cfg[S.C_MOVED] = cfg[S.C_TIRED] = 0
        cfg[S.C_STOP] = int(stop_on_ring)

    def _call(self, only: int, limit: int, rows: Ints) -> int:
        return self._after(int(loop.run(only, limit, *self._head, self._records, rows, self._fill, *self._tail)))

    def _after(self, why: int) -> int:
        self._turn = int(self._cfg[S.C_CURSOR])
        if why == loop.RANG and self._cfg[S.C_RINGS] == 0:  # one record is larger than the whole buffer
            self._records = np.zeros(4 * len(self._records), np.int64)
        return why

    def _drain(self, on_ring: OnRing | None) -> None:
        """Take the records out of the buffer; those of slice 0 go to the host."""
        data, at = self._records, 0
        end = int(self._cfg[S.C_RINGS])
        self._cfg[S.C_RINGS] = 0
        while at < end:
            rank, count = int(data[at]), int(data[at + 1])
            record = tuple(data[at + 2 : at + 2 + count].tolist())
            self._sent[rank].append(record)
            at += 2 + count
            if on_ring is not None and rank == 0:
                on_ring(0, record)

    def _fault(self, why: int) -> ProgramError:
        state = self._state
        if why == loop.DEADLOCK:
            stuck = []
            for rank in range(len(state)):
                pc, sems = int(state[rank, S.PC]), self.sems(rank)
                waits = self.program.code[pc].waits
                lacking = [str(n) for n, tokens in enumerate(sems) if waits >> n & 1 and not tokens]
                if state[rank, S.STATUS] != S.HALTED and lacking:
                    stuck.append(f"{where(self.program, rank, pc)} waits for semaphore {', '.join(lacking)}")
            return ProgramError(f"deadlock: no slice can go on; {'; '.join(stuck)}.")
        rank = int(self._cfg[S.C_CURSOR])
        return ProgramError(sentence(self, rank))

    # --- memory and state ---

    @property
    def counts(self) -> Counter[str]:
        """Executed instructions by mnemonic."""
        result: Counter[str] = Counter()
        for name, n in zip(mnemonics(self.program.code), self._ran.tolist(), strict=True):
            if n:
                result[name] += n
        return result

    @property
    def executed(self) -> Ints:
        """Executions of each word, over all slices: int64 [words]."""
        return self._ran.copy()

    def write_dram(self, rank: int, address: int, data: bytes) -> None:
        """Write DRAM of a slice from the host."""
        self._check(rank, address, len(data))
        self.dram(rank)[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def read_dram(self, rank: int, address: int, count: int) -> bytes:
        """Read DRAM of a slice."""
        self._check(rank, address, count)
        return self.dram(rank)[address : address + count].tobytes()

    def _check(self, rank: int, address: int, count: int) -> None:
        size, slices = self._dram_bytes, len(self._state)
        if not 0 <= rank < slices or address < 0 or address + count > size:
            raise ProgramError(
                f"bytes {address}..{address + count - 1} of DRAM of slice {rank} are not there: {slices} slices "
                f"have {size} bytes each."
            )

    def _space(self, rank: int, space: int) -> Bytes:
        start = rank * self._stride + self._offsets[space]
        return self._memory_bytes[start : start + self._sizes[space]]

    def dram(self, rank: int) -> Bytes:
        """DRAM of a slice, a view: as much as the program uses."""
        return self._space(rank, Space.DRAM)

    def spad(self, rank: int) -> Bytes:
        """Scratchpad of a slice, a view."""
        return self._space(rank, Space.SPAD)

    def slot(self, rank: int) -> Bytes:
        """Weight slots of a slice, a view."""
        return self._space(rank, Space.SLOT)

    def acc(self, rank: int) -> Bytes:
        """Accumulator of a slice, a view."""
        return self._space(rank, Space.ACC)

    def regs(self, rank: int) -> list[int]:
        """Registers of a slice, unsigned."""
        return [int(x) for x in self._state[rank, S.REGS : S.REGS + REGISTERS]]

    def cells(self, rank: int) -> list[int]:
        """Cells of a slice, unsigned; entry 0 is the memory behind cell 0, which no instruction can name."""
        return [int(x) for x in self._space(rank, Space.CELL).view(np.uint32)[:CELLS]]

    def sems(self, rank: int) -> list[int]:
        """Tokens of each semaphore of a slice."""
        return [int(x) for x in self._state[rank, S.SEMS : S.SEMS + SEMAPHORES]]

    def arrivals(self, rank: int) -> list[int]:
        """Arrival counters of a slice."""
        return [int(x) for x in self._state[rank, S.COUNTERS : S.COUNTERS + S.COUNTER_COUNT]]

    def cause(self, rank: int) -> int:
        """Cause of the HALT that stopped a slice; 0 while it runs."""
        return int(self._state[rank, S.CAUSE])

    def records(self, rank: int) -> list[tuple[int, ...]]:
        """What RING of a slice has sent so far."""
        return list(self._sent[rank])


def _scratch() -> tuple[Any, ...]:
    """Scratch of the kernels; pages that no program touches take no memory."""
    rows = [np.empty(ROW + 64, np.float32) for _ in range(4)]
    pairs = [view for row in rows for view in (row, row.view(np.int32))]
    tiles = [np.empty(CAPACITY + 64, np.int32) for _ in range(2)]
    wide = [view for tile in tiles for view in (tile.view(np.int16), tile)]
    blocks = [np.empty(n + 64, np.float64) for n in (CAPACITY // 32, CAPACITY // 32, CAPACITY)]
    return (*pairs, np.zeros(ROW + 64, np.uint8), np.zeros(256, np.int64), *wide, *blocks)

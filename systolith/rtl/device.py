"""`RtlMachine`: a program on the Verilog of a chip, with the surface of the other machines and the cycles of each
word."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from systolith.isa.descriptor import DESCRIPTOR_BYTES, Space, pack
from systolith.isa.program import EVERY_SLICE, Program
from systolith.spec import CELLS, QUEUES, WORD_BYTES, Chip, ConfigError, ProgramError

from .build import Library, build

__all__ = ["FAULTS", "Rtl", "RtlMachine", "program_verilog"]

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
OnRing = Callable[[int, tuple[int, ...]], None]

FAULTS: Final = {
    1: "CEILDIV by 0", 2: "ADV leaves its field", 3: "a word that no unit knows",
    4: "ADV by a part of a byte or of a block",
    16: "a semaphore left 0..255",
    32: "a PUT with spaces, formats or extents it does not take, or an address outside a space",
    64: "an instruction of queue V with spaces, formats or extents it does not take, or an address outside a space",
    128: "a MATMUL with spaces, formats, extents or strides it does not take, or an address outside a space",
    256: "a COPY or RING with spaces, formats or extents it does not take, or an address outside a space",
    512: "a cell that asks for more than the extent it replaces",
}  # fmt: skip
"""Causes in the fault register of a slice; those from 16 on are bits of their own."""
GOING, ALL_HALTED, RECORDS, FAULT, OUTSIDE = range(5)
_STEP: Final = 1 << 20
_FROM_NETWORK: Final = 8
WRITE: Final = np.dtype(
    [("cycle", "<i8"), ("slice", "<i4"), ("owner", "<i4"), ("space", "<i4"), ("mask", "<u4"), ("address", "<u8"),
     ("data", "u1", 32)]
)  # fmt: skip
"""A write of a port, as the harness keeps it."""


def program_verilog(chip: Chip, folder: Path | None = None) -> str:
    """Verilog to run: of a folder that `systolith rtl` wrote, or emitted now."""
    if folder is not None:
        path = folder / "systolith.v"
        if not path.is_file():
            raise ConfigError(
                f"{folder}: there is no systolith.v; write the folder with `systolith rtl {chip.name} -o`."
            )
        return path.read_text(encoding="utf-8")
    from .emit import verilog_of

    return verilog_of(chip)


class Rtl:
    """The device: a chip's Verilog under Verilator."""

    name = "rtl"
    runs = True

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        """Run the Verilog of this folder instead of emitting it."""

    def open(self, chip: Chip, program: Program) -> RtlMachine:
        """Build the chip and load a program."""
        return RtlMachine(chip, program, folder=self.folder)


class RtlMachine:
    """The slices of a chip's RTL while they run a program.

    hold_share, seed : of 256, how often the memory channel holds back a burst, the network a piece, the host a word,
    drawn a slice and a cycle.
    events : keep start and end of every instruction of a queue. writes : keep what every port writes.
    trace : write a waveform of all signals to a file (VCD), from the first cycle given to the last
    fault : the one to switch on, of a text of `rtl.faults`
    Raises CapacityError where the chip offers less than the program needs, ConfigError where it cannot be built,
    ProgramError for a fault and for a run without progress.
    """

    def __init__(
        self,
        chip: Chip,
        program: Program,
        *,
        folder: Path | None = None,
        hold_share: int = 0,
        seed: int = 1,
        events: bool = True,
        writes: bool = False,
        trace: tuple[Path, int, int] | None = None,
        fault: int = 0,
    ) -> None:
        program.check_chip(chip)
        self.chip, self.program = chip, program
        self.n = program.requires.slices
        self.library: Library = build(chip, program_verilog(chip, folder), trace=trace is not None)
        self._lib = _load(self.library.path)
        self._h = ctypes.c_void_p(self._lib.chip_new())
        self._dram = [np.zeros(program.requires.dram_bytes, np.uint8) for _ in range(self.n)]
        for image in program.images:
            for rank in range(self.n):
                if image.slice in (rank, EVERY_SLICE):
                    self._dram[rank][image.address : image.address + len(image.data)] = np.frombuffer(
                        image.data, np.uint8
                    )
        for rank in range(self.n):
            self._lib.chip_memory(self._h, rank, self._dram[rank].ctypes.data, self._dram[rank].size)
            for i, word in enumerate(program.words):
                self._lib.chip_load(self._h, rank, 0, i, word.to_bytes(WORD_BYTES, "little"))
            for i, constant in enumerate(program.constants):
                self._lib.chip_load(self._h, rank, 1, i, pack(constant).to_bytes(DESCRIPTOR_BYTES, "little"))
            for i, count in enumerate(program.sem_init):
                self._lib.chip_load(self._h, rank, 2, i, count.to_bytes(WORD_BYTES, "little"))
        self._lib.chip_options(self._h, self.n, seed, hold_share, int(events), int(writes))
        if fault and not self._lib.chip_fault(self._h, fault):
            raise ConfigError(f"fault={fault}: this Verilog has no faults to choose from; make it with rtl.faults")
        self._sent = 0
        self.finished = False
        if trace is not None:
            self._lib.chip_trace(self._h, str(trace[0]).encode(), trace[1], trace[2])

    def __del__(self) -> None:
        if getattr(self, "_h", None):
            self._lib.chip_free(self._h)
            self._h = ctypes.c_void_p()

    def run(self, limit: int | None = None, on_ring: OnRing | None = None, *, cycles: int = 1 << 40) -> bool:
        """Run until all slices have halted (True) or for `cycles` cycles (False); records of slice 0 go to `on_ring`.

        limit : ignored but for its being there: what the others count in words.
        """
        idle, before = 0, -1
        left = cycles
        while left > 0:
            start = self.cycles
            why = self._lib.chip_run(self._h, self.n, min(left, _STEP), self._sent + 1)
            left -= self.cycles - start
            records = self.records(0)
            for record in records[self._sent :]:
                if on_ring is not None:
                    on_ring(0, record)
            self._sent = len(records)
            if why == ALL_HALTED:
                self.finished = True
                return True
            if why in (FAULT, OUTSIDE):
                raise self._fault(why)
            issued = sum(self.status(rank)["issued"] for rank in range(self.n))
            idle = idle + 1 if issued == before else 0
            before = issued
            if idle > 8:
                raise ProgramError(
                    f"program {self.program.name!r} on the RTL of {self.chip.name}: no slice has issued a word in "
                    f"{idle * _STEP} cycles; run it with --device sim, which names what waits."
                )
        return False

    @property
    def cycles(self) -> int:
        """Cycles that were simulated."""
        return self.status(0)["cycles"]

    @property
    def halt_time(self) -> int:
        """Cycle in which the last slice halted, as timing counts."""
        return max(self.status(rank)["halt_time"] for rank in range(self.n))

    def status(self, rank: int) -> dict[str, int]:
        """State of a slice and its counters."""
        out = np.zeros(32, np.int64)
        self._lib.chip_status(self._h, rank, out.ctypes.data)
        names = ["halted", "cause", "halt_time", "fault", "cycles"]
        names += [f"wait_{q}" for q in QUEUES] + ["full", "bus", "issued"]
        return {name: int(v) for name, v in zip(names, out, strict=False)}

    def events(self) -> Ints:
        """Instructions of queues, [n, 7]: slice, queue, word, start, end (-1: still under way), cycles at the head of
        the queue before the start, whether a token was missing in the last of them; in order of starts."""
        data = ctypes.POINTER(ctypes.c_int64)()
        n = self._lib.chip_events(self._h, ctypes.byref(data))
        if n == 0:
            return np.zeros((0, 7), np.int64)
        return np.ctypeslib.as_array(data, (n, 7)).copy()

    def take_writes(self) -> tuple[Ints, Ints, Ints, Ints, Bytes, Ints]:
        """Give and forget what has been written, byte by byte in order: thread (slice * 6 + queue) of the writer,
        slice, space, address, value, cycle; needs `writes`."""
        data = ctypes.c_void_p()
        n = self._lib.chip_writes(self._h, ctypes.byref(data))
        if n:
            raw = np.ctypeslib.as_array((ctypes.c_uint8 * (n * WRITE.itemsize)).from_address(data.value or 0))
            found = raw.view(WRITE).copy()
        else:
            found = np.zeros(0, WRITE)
        self._lib.chip_forget(self._h)
        bits = np.unpackbits(found["mask"].astype("<u4").view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
        row, byte = np.nonzero(bits)
        ranks, owner = found["slice"].astype(np.int64), found["owner"].astype(np.int64)
        queues = len(QUEUES)
        thread = np.where(
            owner >= _FROM_NETWORK, (owner - _FROM_NETWORK) * queues + QUEUES.index("C"), ranks * queues + owner
        )
        return (
            thread[row], ranks[row], found["space"].astype(np.int64)[row],
            found["address"].astype(np.int64)[row] + byte, found["data"][row, byte], found["cycle"][row],
        )  # fmt: skip

    def close_trace(self) -> None:
        """End the waveform's file."""
        self._lib.chip_trace(self._h, b"", 1, 0)

    def record_cycles(self) -> list[int]:
        """Cycles at which the records of slice 0 had left, as timing counts; needs `events`."""
        ev = self.events()
        ring = np.array([type(i).__name__ == "Ring" for i in self.program.code])
        mine = (ev[:, 0] == 0) & (ev[:, 1] == QUEUES.index("S")) & (ev[:, 4] >= 0)
        mine &= ring[np.minimum(ev[:, 2], len(ring) - 1)]
        # An empty one sends nothing and takes a cycle.
        return [int(end) for start, end in ev[mine][:, 3:5] if end - start > 1]

    def run_resolved(self, buffer: Ints) -> Ints:
        """The RTL has its own time and yields no resolved rows."""
        raise ConfigError("device rtl keeps its own time and yields no instructions; use sim for what needs them")

    def run_to_record(self, last: Callable[[tuple[int, ...]], bool], buffer: Ints | None = None) -> tuple[Ints, bool]:
        """The RTL runs jobs to their end, no engine."""
        raise ConfigError("device rtl runs jobs, no engine; serve from sim")

    def take_records(self) -> list[tuple[int, ...]]:
        """As `run_to_record`."""
        raise ConfigError("device rtl runs jobs, no engine; serve from sim")

    def _fault(self, why: int) -> ProgramError:
        if why == OUTSIDE:
            return ProgramError(
                f"program {self.program.name!r} on the RTL of {self.chip.name}: an access outside DRAM, at cycle "
                f"{self.cycles}."
            )
        for rank in range(self.n):
            code = self.status(rank)["fault"]
            if code:
                causes = [FAULTS.get(code & 15, "")] + [
                    text for bit, text in FAULTS.items() if bit >= 16 and code & bit
                ]
                return ProgramError(
                    f"program {self.program.name!r} on the RTL of {self.chip.name}: slice {rank} stops at cycle "
                    f"{self.cycles}: {'; '.join(filter(None, causes))}."
                )
        return ProgramError("a fault without a cause")

    # --- memory and state ---

    def write_dram(self, rank: int, address: int, data: bytes) -> None:
        """Write DRAM of a slice from the host."""
        self._check(rank, address, len(data))
        self._dram[rank][address : address + len(data)] = np.frombuffer(data, np.uint8)

    def read_dram(self, rank: int, address: int, count: int) -> bytes:
        """Read DRAM of a slice."""
        self._check(rank, address, count)
        return self._dram[rank][address : address + count].tobytes()

    def _check(self, rank: int, address: int, count: int) -> None:
        size = self.program.requires.dram_bytes
        if not 0 <= rank < self.n or address < 0 or address + count > size:
            raise ProgramError(
                f"bytes {address}..{address + count - 1} of DRAM of slice {rank} are not there: "
                f"{self.n} slices have {size} bytes each."
            )

    def dram(self, rank: int) -> Bytes:
        """DRAM of a slice."""
        return self._dram[rank]

    def spad(self, rank: int) -> Bytes:
        """Scratchpad of a slice, a copy."""
        return self._look(rank, Space.SPAD, self.chip.scratchpad_bytes)

    def slot(self, rank: int) -> Bytes:
        """Weight slots of a slice, a copy."""
        return self._look(rank, Space.SLOT, self.chip.slots_bytes)

    def acc(self, rank: int) -> Bytes:
        """Accumulator of a slice, a copy."""
        return self._look(rank, Space.ACC, self.chip.accumulator_bytes)

    def cells(self, rank: int) -> list[int]:
        """Cells of a slice, unsigned."""
        return [int(v) for v in self._look(rank, Space.CELL, 4 * CELLS).view("<u4")]

    def _look(self, rank: int, space: Space, size: int) -> Bytes:
        width = self.chip.bank_bytes
        out = np.zeros(-(-size // width) * width, np.uint8)
        for at in range(0, size, width):
            self._lib.chip_look(self._h, rank, int(space), at, out[at:].ctypes.data)
        return out[:size]

    def records(self, rank: int) -> list[tuple[int, ...]]:
        """What RING of a slice has sent so far."""
        data = ctypes.POINTER(ctypes.c_int64)()
        n = self._lib.chip_rings(self._h, rank, ctypes.byref(data))
        flat = np.ctypeslib.as_array(data, (n,)).tolist() if n else []
        result, at = [], 0
        while at < len(flat):
            result.append(tuple(flat[at + 1 : at + 1 + flat[at]]))
            at += 1 + flat[at]
        return result


def _load(path: Path) -> Any:
    """Open a library and give its functions their types."""
    lib = ctypes.CDLL(str(path))
    p, i64, u64, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64, ctypes.c_int
    lib.chip_new.restype = p
    for name, types, result in (
        ("chip_free", (p,), None), ("chip_memory", (p, i, p, u64), None), ("chip_load", (p, i, i, i,
        ctypes.c_char_p), None),
        ("chip_options", (p, i, u64, ctypes.c_uint32, i, i), None), ("chip_run", (p, i, i64, u64), i),
        ("chip_events", (p, p), i64), ("chip_writes", (p, p), i64), ("chip_forget", (p,), None),
        ("chip_fault", (p, i), i),
        ("chip_trace", (p, ctypes.c_char_p, i64, i64), i),
        ("chip_rings", (p, i, p), i64),
        ("chip_look", (p, i, i, ctypes.c_uint32, p), None), ("chip_status", (p, i, p), None),
    ):  # fmt: skip
        function = getattr(lib, name)
        function.argtypes, function.restype = types, result
    return lib

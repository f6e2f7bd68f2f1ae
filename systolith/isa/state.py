"""The state of a slice while it executes, and `View`: a tensor as an instruction meets it, cells resolved."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from systolith.numerics.blocks import dequantise
from systolith.numerics.formats import BLOCK, SCALE_BIAS, SCALE_NAN
from systolith.numerics.fp32 import from_bits, to_bits
from systolith.spec import CELLS, DESCRIPTORS, LOOP_DEPTH, RANK_REGISTER, REGISTERS, SEMAPHORE_MAX, Chip, ProgramError

from .descriptor import ZERO, Descriptor, Format, Space
from .sequencer import signed, wrap32

if TYPE_CHECKING:
    from .program import Program

__all__ = ["ARRIVAL_COUNTERS", "SLICES_REGISTER", "Footprint", "LoopState", "Slice", "View"]

ARRIVAL_COUNTERS = 16
"""Arrival counters a slice."""

SLICES_REGISTER = RANK_REGISTER - 1
"""The register that holds the number of slices at start."""


class Footprint(NamedTuple):
    """Bytes that one instruction wrote."""

    slice: int
    space: Space
    address: int
    data: bytes


@dataclass
class LoopState:
    """One entry of the loop stack."""

    start: int
    """First word of the body."""
    end: int
    """Word after the body."""
    left: int
    """Iterations left, this one included."""
    first: bool = True
    """Whether this is the first iteration."""


@dataclass
class Slice:
    """Everything a slice holds. `slices` are all slices of the machine, this one included."""

    rank: int
    program: Program
    memory: dict[Space, bytearray]
    slices: list[Slice] = field(repr=False)
    regs: list[int] = field(default_factory=list)
    descriptors: list[Descriptor] = field(default_factory=lambda: [ZERO] * DESCRIPTORS)
    rings: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)] * DESCRIPTORS)
    """Base and scale base of the constant each descriptor was loaded from: where its ring starts."""
    sems: list[int] = field(default_factory=list)
    arrivals: list[int] = field(default_factory=lambda: [0] * ARRIVAL_COUNTERS)
    loops: list[LoopState] = field(default_factory=list)
    pc: int = 0
    next_pc: int = 0
    halted: bool = False
    cause: int = 0
    records: list[tuple[int, ...]] = field(default_factory=list)
    """What RING sent."""
    footprint: list[Footprint] = field(default_factory=list)
    """What the running instruction has written, adjacent bytes joined."""

    @classmethod
    def fresh(cls, rank: int, chip: Chip, program: Program, slices: list[Slice]) -> Slice:
        """Make the state at start; memory is zero."""
        memory = {
            Space.DRAM: bytearray(program.requires.dram_bytes),
            Space.SPAD: bytearray(chip.scratchpad_bytes),
            Space.SLOT: bytearray(chip.slots_bytes),
            Space.ACC: bytearray(chip.accumulator_bytes),
            Space.CELL: bytearray(4 * CELLS),
        }
        regs = [0] * REGISTERS
        regs[SLICES_REGISTER], regs[RANK_REGISTER] = program.requires.slices, rank
        return cls(rank, program, memory, slices, regs, sems=list(program.sem_init))

    def trap(self, cause: str) -> ProgramError:
        """Give the error of an instruction that cannot go on; the machine adds where it was."""
        return ProgramError(cause)

    def cell(self, n: int) -> int:
        """Value of a cell, unsigned; cell 0 cannot be named and reads as 0."""
        return int.from_bytes(self.memory[Space.CELL][4 * n : 4 * n + 4], "little") if n else 0

    @property
    def first_iteration(self) -> bool:
        """Whether the innermost running loop is in its first iteration; true outside every loop."""
        return not self.loops or self.loops[-1].first

    def push_loop(self, start: int, end: int, count: int) -> None:
        """Enter a loop."""
        if len(self.loops) == LOOP_DEPTH:
            raise self.trap(f"loops nest deeper than {LOOP_DEPTH}")
        self.loops.append(LoopState(start, end, count))

    def end_word(self) -> None:
        """Go to the next word; at the end of a body to its start, or out of the loop."""
        while self.loops and self.next_pc == self.loops[-1].end:
            loop = self.loops[-1]
            loop.left -= 1
            loop.first = False
            if loop.left:
                self.next_pc = loop.start
                break
            self.loops.pop()
        self.pc = self.next_pc

    def missing(self, mask: int) -> list[int]:
        """Semaphores of a wait mask that have no token."""
        return [n for n, tokens in enumerate(self.sems) if mask >> n & 1 and not tokens]

    def take(self, mask: int) -> None:
        """Take one token of each semaphore of a mask."""
        for n in range(len(self.sems)):
            if mask >> n & 1:
                self.sems[n] -= 1

    def give(self, mask: int, to: Slice | None = None) -> None:
        """Give one token to each semaphore of a mask, of this slice or of another."""
        target = to or self
        for n in range(len(target.sems)):
            if mask >> n & 1:
                if target.sems[n] == SEMAPHORE_MAX:
                    raise self.trap(
                        f"semaphore {n} of slice {target.rank} holds {SEMAPHORE_MAX} tokens, the most it can"
                    )
                target.sems[n] += 1

    def view(self, n: int) -> View:
        """Resolve the tensor of descriptor register n with the cells as they are now."""
        return View(self, self, self.descriptors[n])


class View:
    """A tensor of a slice as one instruction meets it: cells and index list resolved, every access checked."""

    __slots__ = ("base", "descriptor", "ext", "format", "offset", "owner", "rows", "sbase", "scale", "space", "target")

    def __init__(self, owner: Slice, target: Slice, d: Descriptor) -> None:
        self.owner = owner
        """The slice whose cells and index lists count."""
        self.target = target
        """The slice whose memory is read or written."""
        self.descriptor = d
        self.space, self.format, self.scale = d.space, d.format, d.scale
        self.ext = d.ext
        if d.xe:
            extent = owner.cell(d.xe)
            if extent > d.ext[0]:
                raise owner.trap(f"cell {d.xe} holds {extent}, more than ext[0]={d.ext[0]}, which it replaces")
            self.ext = (extent, d.ext[1], d.ext[2])
        shift = owner.cell(d.xb) if d.xb else 0
        self.rows = shift if d.via else 0
        self.offset = 0 if d.via else shift * d.step
        self.base = d.base + self.offset * d.bits // 8
        self.sbase = d.sbase + self.offset // BLOCK if self.scale else d.sbase

    def within(self, target: Slice) -> View:
        """Give the same addresses in another slice."""
        return View(self.owner, target, self.descriptor)

    def row(self, i0: int, i1: int) -> int:
        """Offset of element (i0, i1, 0) in elements, from `base`."""
        d = self.descriptor
        if d.via:
            j = i0 + self.rows
            table = self.owner.descriptors[d.via]
            if table.space is not Space.SPAD or table.format is not Format.INT32:
                raise self.owner.trap(f"the index list D{d.via} is not INT32 in SPAD")
            page = int.from_bytes(self._read(self.owner, Space.SPAD, table.base + 4 * (j >> d.unit), 4), "little")
            i0 = page << d.unit | j & (1 << d.unit) - 1
        return i0 * d.stride[0] + i1 * d.stride[1]

    def codes(self, i0: int, i1: int, n: int) -> list[int]:
        """Raw unsigned values of the first n elements of a row."""
        o, step, bits = self.row(i0, i1), self.descriptor.stride[2], self.format.bits
        if bits == 4:
            packed = self._bytes(self.base + o // 2, (n + 1) // 2)
            return [x for byte in packed for x in (byte & 15, byte >> 4)][:n]
        size = bits // 8
        if step == 1:
            data = self._bytes(self.base + o * size, n * size)
            return list(data) if size == 1 else list(struct.unpack(f"<{n}I", data))
        if step == 0 and n:
            return [int.from_bytes(self._bytes(self.base + o * size, size), "little")] * n
        places = range(self.base + o * size, self.base + (o + n * step) * size, step * size) if n else range(0)
        return [int.from_bytes(self._bytes(at, size), "little") for at in places]

    def scales(self, i0: int, i1: int, blocks: int) -> list[int]:
        """Scale codes of the first blocks of a row; 2^0 where the tensor has no scales."""
        if not self.scale:
            return [SCALE_BIAS] * blocks
        return list(self._bytes(self.sbase + self.row(i0, i1) // BLOCK, blocks))

    def numbers(self, i0: int, i1: int, n: int) -> list[float] | list[int]:
        """Values of the first n elements of a row: FP32 as float, INT32 as signed int, others dequantised to FP32."""
        codes = self.codes(i0, i1, n)
        if self.format is Format.FP32:
            return [from_bits(code) for code in codes]
        if self.format is Format.INT32:
            return [signed(code) for code in codes]
        if self.format is Format.E8M0:
            return [
                from_bits(0x400000 if code == 0 else code << 23) if code != SCALE_NAN else float("nan")
                for code in codes
            ]
        scales = self.scales(i0, i1, -(-n // BLOCK))
        return [dequantise(code, self.format.numeric, scales[k // BLOCK]) for k, code in enumerate(codes)]

    def store_codes(self, i0: int, i1: int, codes: Sequence[int]) -> None:
        """Write raw unsigned values from the start of a row; an odd last E2M1 code has a zero code beside it."""
        o, step, size = self.row(i0, i1), self.descriptor.stride[2], self.format.bits // 8
        if size == 0:
            even = [*codes, 0] if len(codes) % 2 else codes
            data = bytes(low | high << 4 for low, high in zip(even[0::2], even[1::2], strict=True))
            self._write(self.base + o // 2, data)
        elif step == 1:
            data = bytes(codes) if size == 1 else struct.pack(f"<{len(codes)}I", *codes)
            self._write(self.base + o * size, data)
        else:
            for k, code in enumerate(codes):
                self._write(self.base + (o + k * step) * size, code.to_bytes(size, "little"))

    def store_scales(self, i0: int, i1: int, scales: Sequence[int]) -> None:
        """Write scale codes from the start of a row."""
        self._write(self.sbase + self.row(i0, i1) // BLOCK, bytes(scales))

    def store_numbers(self, i0: int, i1: int, values: Sequence[float] | Sequence[int]) -> None:
        """Write FP32 or INT32 values from the start of a row."""
        if self.format is Format.FP32:
            self.store_codes(i0, i1, [to_bits(value) for value in values])
        else:
            self.store_codes(i0, i1, [wrap32(int(value)) for value in values])

    def _bytes(self, address: int, count: int) -> bytearray:
        return self._read(self.target, self.space, address, count)

    def _read(self, where: Slice, space: Space, address: int, count: int) -> bytearray:
        memory = where.memory[space]
        if address < 0 or address + count > len(memory):
            raise self._outside(where, space, address, count)
        return memory[address : address + count]

    def _write(self, address: int, data: bytes) -> None:
        memory = self.target.memory[self.space]
        if address < 0 or address + len(data) > len(memory):
            raise self._outside(self.target, self.space, address, len(data))
        memory[address : address + len(data)] = data
        written = self.owner.footprint
        if written:
            last = written[-1]
            if last.slice == self.target.rank and last.space is self.space and last.address + len(last.data) == address:
                written[-1] = last._replace(data=last.data + data)
                return
        written.append(Footprint(self.target.rank, self.space, address, data))

    def _outside(self, where: Slice, space: Space, address: int, count: int) -> ProgramError:
        size = len(where.memory[space])
        return self.owner.trap(
            f"bytes {address}..{address + count - 1} lie outside {space.name} of slice {where.rank}, "
            f"which has {size} bytes"
        )

"""Walks over the segments of a step and the attention units of a slice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from systolith.compiler.context import Cell, Context
from systolith.compiler.memory import SEGMENT_WORDS
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["Segment", "Tile", "Unit", "each_segment", "each_unit"]


_FIELDS = ((0, 10), (10, 10), (20, 10))
"""Lowest bit and width of the request slot, the first row and the rows in a segment's packed register."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment. Registers: request slot, first row of the step and rows, packed; position of the first row."""

    ctx: Context
    packed: int
    position: int

    @contextmanager
    def slot(self) -> Iterator[int]:
        """A register with the request slot, to be changed at will."""
        with self._field(0) as r:
            yield r

    @contextmanager
    def row(self) -> Iterator[int]:
        """A register with the first row of the step, to be changed at will."""
        with self._field(1) as r:
            yield r

    @contextmanager
    def rows(self) -> Iterator[int]:
        """A register with the number of rows, to be changed at will."""
        with self._field(2) as r:
            yield r

    @contextmanager
    def _field(self, word: int) -> Iterator[int]:
        b, (low, width) = self.ctx.b, _FIELDS[word]
        with b.registers(1) as (r,):
            if low:
                b.alu(AluFn.SHR, r, self.packed, low)
            if word != len(_FIELDS) - 1:  # nothing stands above the last
                b.alu(AluFn.AND, r, r if low else self.packed, (1 << width) - 1)
            yield r


@dataclass(frozen=True, slots=True)
class Unit:
    """An attention unit: registers of its local number and lane group; its KV head is worked out where it is needed."""

    ctx: Context
    number: int
    group: int

    @contextmanager
    def head(self) -> Iterator[int]:
        """A register with the KV head."""
        b = self.ctx.b
        with b.registers(1) as (r,):
            b.read(r, Cell.UNIT_FIRST)
            b.alu_r(AluFn.ADD, r, r, self.number)
            b.alu(AluFn.SHR, r, r, self.ctx.plan.group.bit_length() - 1)
            yield r


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of query tokens: its segment and unit; registers of its first token in the segment and their number."""

    segment: Segment
    unit: Unit
    first: int
    tokens: int

    def chunks(self, r: int) -> None:
        """R[r] = chunks up to the segment's."""
        b = self.segment.ctx.b
        b.alu(AluFn.SHR, r, self.segment.position, CHUNK_TOKENS.bit_length() - 1)
        b.alu(AluFn.ADD, r, r, 1)


@contextmanager
def each_segment(ctx: Context) -> Iterator[Segment]:
    """Repeat for each segment of the step. L brings the next one before it takes up anything for this one."""
    b = ctx.b
    with b.registers(3) as (index, packed, position):
        b.set(index, 0)
        _bring(ctx, index)
        b.read(packed, Cell.SEGMENTS)
        place = b.open_loop(packed)
        b.read(packed, Cell.SEGMENT, wait="loaded")
        for number, (low, _) in enumerate(_FIELDS[1:], 1):
            b.read(position, Cell.SEGMENT + number)
            b.alu(AluFn.SHL, position, position, low)
            b.alu_r(AluFn.OR, packed, packed, position)
        b.alu(AluFn.ADD, index, index, 1)
        last = ctx.label()
        with b.registers(1) as (total,):
            b.read(position, Cell.SEGMENT + 3)
            b.read(total, Cell.SEGMENTS)
            b.branch_r(last, Cond.EQ, index, total)
        _bring(ctx, index)
        b.place(last)
        yield Segment(ctx, packed, position)
        b.close_loop(place)


def _bring(ctx: Context, index: int) -> None:
    """Copy segment R[index] into cells."""
    b, offset = ctx.b, 4 * ctx.memory.record.segments
    with b.descriptors(2) as (cells, source):
        b.load(cells, ctx.cell(Cell.SEGMENT, SEGMENT_WORDS))
        b.load(source, ctx.spad("record", "INT32", (1, 1, SEGMENT_WORDS), (0, 0, 1), offset=offset, step=SEGMENT_WORDS))
        b.advance_r(source, 3, index)
        b.copy(Queue.L, cells, source, post="loaded", free=True)


@contextmanager
def each_unit(ctx: Context) -> Iterator[Unit]:
    """Repeat for each attention unit of the slice."""
    b = ctx.b
    with b.registers(1) as (group,), ctx.cell_loop(Cell.UNITS) as number:
        b.read(group, Cell.UNIT_FIRST)
        b.alu_r(AluFn.ADD, group, group, number)
        b.alu(AluFn.AND, group, group, ctx.plan.group - 1)
        yield Unit(ctx, number, group)

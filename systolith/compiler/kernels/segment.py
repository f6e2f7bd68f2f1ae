"""Walks over the segments of a step and the attention units of a slice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from systolith.compiler.builder import tensor
from systolith.compiler.context import Cell, Context
from systolith.compiler.memory import SEGMENT_WORDS
from systolith.isa.descriptor import Space
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["Segment", "Tile", "Unit", "chunks_of", "each_decode_row", "each_segment", "each_unit"]

ROWS_AT_ONCE = 4
"""Decode rows that a set of cells holds, a power of two."""


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
            b.alu(AluFn.SHR, r, r, self.ctx.plan.head_units.bit_length() - 1)
            yield r

    def slot_group(self, r: int) -> None:
        """R[r] = the group of request slots that this unit has: those whose number ends in it."""
        b, plan = self.ctx.b, self.ctx.plan
        b.read(r, Cell.UNIT_FIRST)
        b.alu_r(AluFn.ADD, r, r, self.number)
        b.alu(AluFn.SHR, r, r, plan.group.bit_length() - 1)
        b.alu(AluFn.AND, r, r, plan.slot_groups - 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of query tokens: its segment and unit; registers of its first token in the segment and their number."""

    segment: Segment
    unit: Unit
    first: int
    tokens: int

    def chunks(self, r: int) -> None:
        """R[r] = chunks up to the segment's."""
        chunks_of(self.segment, r)


def chunks_of(segment: Segment, r: int) -> None:
    """R[r] = chunks up to the segment's."""
    b = segment.ctx.b
    b.alu(AluFn.SHR, r, segment.position, CHUNK_TOKENS.bit_length() - 1)
    b.alu(AluFn.ADD, r, r, 1)


@contextmanager
def each_segment(ctx: Context) -> Iterator[Segment]:
    """Repeat for each segment of the step, but for those of decode rows where these are attended by themselves. L
    brings the next one before it takes up anything for this one."""
    b = ctx.b
    end = ctx.label()
    with b.registers(3) as (index, packed, position):
        if ctx.plan.round_chunks:
            b.read(index, Cell.DECODE)
            b.read(packed, Cell.SEGMENTS)
            b.alu_r(AluFn.SUB, packed, packed, index)
            b.branch(end, Cond.EQ, packed, 0)
            _bring(ctx, index)
        else:
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
    b.place(end)


def _bring(ctx: Context, index: int) -> None:
    """Copy segment R[index] into cells."""
    b, offset = ctx.b, 4 * ctx.memory.record.segments
    with b.descriptors(2) as (cells, source):
        b.load(cells, ctx.cell(Cell.SEGMENT, SEGMENT_WORDS))
        b.load(source, ctx.spad("record", "INT32", (1, 1, SEGMENT_WORDS), (0, 0, 1), offset=offset, step=SEGMENT_WORDS))
        b.advance_r(source, 3, index)
        b.copy(Queue.L, cells, source, post="loaded", free=True)


@contextmanager
def each_unit(ctx: Context, segment: Segment | None = None) -> Iterator[Unit]:
    """Repeat for each attention unit of the slice, of those that have the segment's request slot where one is given."""
    b, plan = ctx.b, ctx.plan
    with b.registers(1) as (group,), ctx.cell_loop(Cell.UNITS) as number:
        b.read(group, Cell.UNIT_FIRST)
        b.alu_r(AluFn.ADD, group, group, number)
        b.alu(AluFn.AND, group, group, plan.group - 1)
        unit, elsewhere = Unit(ctx, number, group), ctx.label()
        if segment is not None and plan.slot_groups > 1:
            with b.registers(1) as (mine,), segment.slot() as slot:
                unit.slot_group(mine)
                b.alu(AluFn.AND, slot, slot, plan.slot_groups - 1)
                b.branch_r(elsewhere, Cond.NE, slot, mine)
        yield unit
        b.place(elsewhere)


@contextmanager
def each_decode_row(ctx: Context, unit: Unit) -> Iterator[Segment]:
    """Repeat for each decode row of the step whose request slot a unit has: a segment of one row.

    Where slots are dealt out, row r is that of slot r. L brings slot and position of ROWS_AT_ONCE of them into one of
    two sets of cells, a set ahead of use.
    """
    b, plan, cells = ctx.b, ctx.plan, Cell.ROW
    every = plan.slot_groups
    body, again, end = (ctx.label() for _ in range(3))
    places = [ctx.label() for _ in range(2 * ROWS_AT_ONCE)]
    with b.registers(3) as (row, packed, position):
        if every == 1:
            b.set(row, 0)
        else:
            unit.slot_group(row)
        with b.registers(1) as (total,):
            b.read(total, Cell.DECODE)
            b.alu_r(AluFn.MAX, total, total, row)
            b.branch_r(end, Cond.EQ, total, row)
        _bring_rows(ctx, row, 0, 0)
        b.place(again)
        for place, label in enumerate(places):
            b.place(label)
            first = place % ROWS_AT_ONCE == 0
            b.read(packed, cells + 2 * place, wait="loaded" if first else "")
            b.read(position, cells + 2 * place + 1)
            if first:
                _bring_rows(ctx, row, ROWS_AT_ONCE, (place + ROWS_AT_ONCE) % len(places))
            if label is not places[-1]:
                b.branch(body)
        b.place(body)
        with b.registers(1) as (field,):
            b.alu(AluFn.SHL, field, row, _FIELDS[1][0])
            b.alu_r(AluFn.OR, packed, packed, field)
            b.set(field, 1 << _FIELDS[2][0])
            b.alu_r(AluFn.OR, packed, packed, field)
        yield Segment(ctx, packed, position)
        b.alu(AluFn.ADD, row, row, every)
        with b.registers(2) as (total, number):
            b.read(total, Cell.DECODE)
            b.alu_r(AluFn.MAX, total, total, row)
            b.branch_r(end, Cond.EQ, total, row)
            b.alu(AluFn.SHR, number, row, every.bit_length() - 1)
            b.alu(AluFn.AND, number, number, len(places) - 1)
            for place, label in enumerate(places[1:], 1):
                b.branch(label, Cond.EQ, number, place)
        b.branch(again)
        b.place(end)


def _bring_rows(ctx: Context, row: int, ahead: int, place: int) -> None:
    """Copy slot and position of the rows from the `ahead`-th after R[row] on into cells, as many as there are, without
    the words of a segment's record in between. Nothing is brought, and nobody waits, where there is none."""
    b, plan, offset = ctx.b, ctx.plan, 4 * ctx.memory.record.segments
    every, none = plan.slot_groups, ctx.label()
    with b.registers(2) as (first, count), b.descriptors(2) as (cells, source):
        b.alu(AluFn.ADD, first, row, ahead * every)
        b.read(count, Cell.DECODE)
        b.alu_r(AluFn.MAX, count, count, first)
        b.alu_r(AluFn.SUB, count, count, first)
        b.branch(none, Cond.EQ, count, 0)
        with b.registers(1) as (step,):
            b.set(step, every)
            b.alu_r(AluFn.CEILDIV, count, count, step)
        b.alu(AluFn.MIN, count, count, ROWS_AT_ONCE)
        b.load(cells, tensor(Space.CELL, "INT32", 4 * (Cell.ROW + 2 * place), (ROWS_AT_ONCE, 1, 2), (2, 0, 1)))
        b.load(source, ctx.spad("record", "INT32", (ROWS_AT_ONCE, 1, 2), (SEGMENT_WORDS * every, 0, SEGMENT_WORDS - 1),
                                offset=offset, step=SEGMENT_WORDS))  # fmt: skip
        b.advance_r(source, 3, first)
        b.extent_r(source, 0, count)
        b.extent_r(cells, 0, count)
        b.copy(Queue.L, cells, source, post="loaded", free=True)
        b.place(none)

"""Walks over the segments of a step and the attention units of a slice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from systolith.compiler.context import Cell, Context
from systolith.compiler.memory import SEGMENT_WORDS
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["Segment", "Tile", "Unit", "each_segment", "each_unit"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment: four cells, the last of which, the position of the first row, is in a register too."""

    ctx: Context
    position: int

    @contextmanager
    def slot(self) -> Iterator[int]:
        """A register with the request slot."""
        with self._read(0) as r:
            yield r

    @contextmanager
    def row(self) -> Iterator[int]:
        """A register with the first row of the step."""
        with self._read(1) as r:
            yield r

    @contextmanager
    def rows(self) -> Iterator[int]:
        """A register with the number of rows."""
        with self._read(2) as r:
            yield r

    @contextmanager
    def _read(self, word: int) -> Iterator[int]:
        with self.ctx.b.registers(1) as (r,):
            self.ctx.b.read(r, Cell.SEGMENT + word)
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
    """Repeat for each segment of the step."""
    b = ctx.b
    offset = 4 * ctx.memory.record.segments
    with b.registers(1) as (position,), ctx.cell_loop(Cell.SEGMENTS) as index:
        with b.descriptors(2) as (cells, source):
            b.load(cells, ctx.cell(Cell.SEGMENT, SEGMENT_WORDS))
            b.load(
                source,
                ctx.spad("record", "INT32", (1, 1, SEGMENT_WORDS), (0, 0, 1), offset=offset, step=SEGMENT_WORDS),
            )
            b.advance_r(source, 3, index)
            b.copy(Queue.L, cells, source, post="loaded")
        b.read(position, Cell.SEGMENT + 3, wait="loaded")
        yield Segment(ctx, position)


@contextmanager
def each_unit(ctx: Context) -> Iterator[Unit]:
    """Repeat for each attention unit of the slice."""
    b = ctx.b
    with b.registers(1) as (group,), ctx.cell_loop(Cell.UNITS) as number:
        b.read(group, Cell.UNIT_FIRST)
        b.alu_r(AluFn.ADD, group, group, number)
        b.alu(AluFn.AND, group, group, ctx.plan.group - 1)
        yield Unit(ctx, number, group)

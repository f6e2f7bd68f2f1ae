"""What a product gives, sent over several rounds of the next one.

All slices end a product at the same time. What each sends to its row group would fill the ways into all of them for
thousands of cycles, and weights would wait behind it. So C sends the rows of one chunk a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from systolith.compiler.context import Cell
from systolith.compiler.kernels.grid.context import GridContext
from systolith.isa.descriptor import Descriptor
from systolith.isa.sequencer import AluFn, Cond

__all__ = ["Spread", "Steps"]


@dataclass(frozen=True, slots=True)
class Steps:
    """What is written over rounds: begin before the first, step in each of `count`, or `count` times where there are
    fewer rounds, end behind the last."""

    count: int
    begin: Callable[[], None]
    step: Callable[[], None]
    end: Callable[[], None]


class Spread:
    """Staged rows [parts, rows, n] on their way to the slices with the same rows. It keeps two descriptors and a
    register.

    Made where the rows have been staged, at the entry that r_stage counts to. half : of the rows of a chunk only the
    first half (0) or the second (1), None: all. guard : register, where it is 0 nothing has been staged. along :
    register and number of products from the first one to this one. tail : writes what goes last and gives the stage
    back.
    """

    def __init__(
        self, ctx: GridContext, source: Descriptor, target: Descriptor, *, half: int | None = None, guard: int = 0,
        along: tuple[int, int] | None = None, tail: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.ctx, self._guard, self._tail, self._half = ctx, guard, tail, half
        b, tokens = ctx.b, ctx.grid.tokens
        self._from, self._to, self._left = b.descriptor(), b.descriptor(), b.register()
        ctx.load_ring(self._from, source, ctx.r_stage)
        b.load(self._to, target)
        for _ in range(target.ext[0] if along is not None else 0):
            assert along is not None
            b.advance_r(self._to, 0, along[0])
            b.advance(self._to, 0, along[1])
        ctx.to_group(self._to)
        for d in (self._from, self._to):
            b.advance(d, 1, tokens // 2 if half else 0)
        b.read(self._left, Cell.GRID_CHUNKS)
        self._tokens = tokens

    def send(self, *, first: bool, last: bool) -> None:
        """Send the rows of the next chunk, if there is one."""
        ctx, b = self.ctx, self.ctx.b
        none = ctx.label()
        if self._guard:
            b.branch(none, Cond.EQ, self._guard, 0)
        frees = last and self._half != 0 and self._tail is None
        with b.registers(1) as (rows,):
            b.alu(AluFn.MIN, rows, self._left, 1)
            b.alu_r(AluFn.SUB, self._left, self._left, rows)
            b.alu(AluFn.MUL, rows, rows, self._tokens // (1 if self._half is None else 2))
            for d in (self._from, self._to):
                b.extent_r(d, 1, rows)
            ctx.put_to_rows(self._to, self._from, wait="stage_full" if first and self._half != 1 else "",
                            post="stage_free" if frees else "")  # fmt: skip
            for d in (self._from, self._to):
                b.advance(d, 1, self._tokens)
        if last and self._tail is not None:
            self._tail()
        b.place(none)

    def close(self) -> None:
        """Give back what it keeps."""
        b = self.ctx.b
        b.release_descriptor(self._to)
        b.release_descriptor(self._from)
        b.release(self._left)

"""Staged parts of the next operand, sent when their turn comes.

All slices of a row group make their last parts of an operand at the same time, and the product that takes them goes
through K. So the slice whose parts come first in K sends at once, the next one a few rounds later: the ways into a
slice never have more to carry than a round brings, and the product begins when its first part is there. All slices of a
row group arrive at every round, the one that has made the part which the round needs behind the part: who has had the
arrivals at a round has the part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from systolith.compiler.kernels.grid.context import GridContext
from systolith.isa.sequencer import AluFn, Cond
from systolith.spec.limits import RANK_REGISTER

__all__ = ["Deal"]


class Deal:
    """Parts of an operand, `each` of a column group, of which the last ones are staged.

    first : the first of these.    sends : what writes a send, each for the part behind the one before.    ahead :
    rounds that a part must be there before its own.
    """

    def __init__(
        self, ctx: GridContext, each: int, first: int, sends: Sequence[Callable[[], None]], ahead: int = 0
    ) -> None:
        self.ctx, self._each, self._first, self._sends, self._ahead = ctx, each, first, sends, ahead

    @property
    def rounds(self) -> int:
        """Rounds that need a part."""
        return self._each * self.ctx.grid.groups - self._ahead

    def begin(self, number: int = 0) -> None:
        """The next arrival is that at round `number`, which r_turn counts; r_mine is the round of the slice's first
        part."""
        ctx, b = self.ctx, self.ctx.b
        b.set(ctx.r_turn, number)
        b.alu(AluFn.SHR, ctx.r_mine, RANK_REGISTER, ctx.grid.apart)
        b.alu(AluFn.MUL, ctx.r_mine, ctx.r_mine, self._each)
        b.alu(AluFn.SUB, ctx.r_mine, ctx.r_mine, self._ahead)

    def step(self) -> None:
        """Send what the round of r_turn needs, if it is staged here."""
        ctx, b = self.ctx, self.ctx.b
        none = ctx.label()
        with b.registers(1) as (place,):
            b.alu_r(AluFn.SUB, place, ctx.r_turn, ctx.r_mine)
            for number, send in enumerate(self._sends):
                other = ctx.label()
                b.branch(other, Cond.NE, place, self._first + number)
                send()
                b.branch(none)
                b.place(other)
        b.place(none)

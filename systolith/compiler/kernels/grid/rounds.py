"""Rounds of weights on the grid: each slice reads its own, sends them to its column group, multiplies all that come.

A product is `width` columns of all rows; it takes its weights in rounds of `width` of K. Rounds have one order over
the whole step, alike on all slices, and run on over products, operators and layers. With round j in hand

    M  knows that round j has come whole, and says so when round j - 1 is done ("consumed")
    C  sends this slice's columns of round j + 2 and arrives; what is in round j + 2's place then was round j - 3,
       which every slice has done, as each arrived at round j only after it
    L  reads this slice's columns of a later round, into the place of a round that has been sent

so that no slice asks another for leave. Arrivals take turns between four counters: who arrives at round j + 4 knows
that all have had all arrivals at round j. A slice has as many columns of each product as any other, and they lie in the
order of the rounds: what is read and what is sent are descriptors that step from round to round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

from systolith.compiler.context import ROUND_COUNTERS, Cell
from systolith.compiler.grid import RECEIVE, SENT, GridLinear
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.grid.spread import Spread
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond

__all__ = ["Rounds", "Streamed"]


@dataclass(frozen=True, slots=True)
class Streamed:
    """An operand that lies in memory, part by part [rows, width]: its region."""

    region: str


class Rounds:
    """The rounds of a step. See the module."""

    def __init__(self, ctx: GridContext) -> None:
        self.ctx = ctx
        b = ctx.b
        self._sent_from, self._sent_to, self._read_from, self._read_to = (b.descriptor() for _ in range(4))
        self._weights, self._acc, self._a, self._part, self._source = (b.descriptor() for _ in range(5))

    def close(self) -> None:
        """Give back the descriptors."""
        for d in (self._source, self._part, self._a, self._acc, self._weights, self._read_to, self._read_from,
                  self._sent_to, self._sent_from):  # fmt: skip
            self.ctx.b.release_descriptor(d)

    def begin(self) -> None:
        """Before the first layer: L reads the first rounds, C sends the first."""
        ctx, b, grid = self.ctx, self.ctx.b, self.ctx.grid
        k = grid.width * grid.terms
        b.set(ctx.r_round, 0)
        b.load(self._weights, self._received(grid.width))
        b.load(self._sent_to, self._received(grid.own))
        with b.registers(1) as (first,):
            b.alu(AluFn.MUL, first, ctx.r_member, grid.own)
            b.advance_r(self._sent_to, 0, first)
        own, ext, stride = grid.round_elements, (grid.own, 1, k), (k, 0, 1)
        ring = ctx.ring_of("send", grid.format, own, grid.ahead, ext, stride)
        b.load(self._sent_from, ring)
        b.load(self._read_to, ring)
        b.load(self._read_from, ctx.dram("grid_w", grid.format, ext, stride, scales="grid_w_scales", step=own))
        for _ in range(grid.ahead):
            self._read()
        for number in range(SENT):
            self._send(number)

    def product(
        self, linear: GridLinear, source: Descriptor | Streamed, *, last: bool = False,
        opening: Callable[[], object] | None = None, between: Callable[[], list[Spread]] | None = None, after: int = 2,
        spreads: int = 0, more: Sequence[Spread] = (), behind: int = 2,
        aside: Callable[[], object] | None = None, again: bool = False,
    ) -> None:  # fmt: skip
        """Multiply the operand by the rounds of the next product, one of a class, into the next accumulator half.

        source : the operand in the scratchpad [rows, 1, k], or parts in memory.    last : of a layer.
        opening : makes M wait for it.    between : written behind about `after` rounds: what V and C do with the
        product before.    spreads : what it leaves to be sent over these rounds, beside `more`, from `behind`
        rounds after it on.    aside : written where these begin.    again : the next
        product takes the same parts.
        """
        ctx, b, grid = self.ctx, self.ctx.b, self.ctx.grid
        rounds, ahead = linear.k // grid.width, grid.ahead
        b.tensor_name = linear.name
        b.sync(Queue.M, wait="acc_free")
        ctx.load_ring(self._acc, ctx.acc(ctx.rows, grid.width, xe=Cell.ROWS), ctx.r_acc)
        if isinstance(source, Descriptor):
            b.load(self._a, source.with_ext(2, grid.width))
        most = rounds - grid.chunks
        starts = [min(after + behind + k * grid.chunks, most) for k in range(max(spreads, len(more)))]
        pause = min(after, rounds - 1, *starts[:spreads]) if between is not None else 0
        sent: list[Spread] = list(more)
        parts = {rounds - grid.parts, rounds - grid.parts + 1} if isinstance(source, Streamed) else set()
        late = min(after + behind, rounds - 1) if aside is not None else 0
        ends = {s + i for s in starts for i in (0, 1, grid.chunks - 1, grid.chunks)}
        cuts = sorted(
            {0, 1, rounds, pause, late, *ends, *(cut for cut in parts if cut > 0)}
            | ({rounds - ahead, rounds - SENT} if last else set())
        )
        for start, end in pairwise(cuts):
            if between is not None and start == pause:
                sent += between()
                between = None
                b.tensor_name = linear.name
            if aside is not None and start == late:
                aside()
            now = [(x, start - s) for x, s in zip(sent, starts, strict=False) if s <= start < s + grid.chunks]
            # Of the last layer nothing follows.
            more_sent, more_read = (not last or start < rounds - n for n in (SENT, ahead))
            with b.loop(end - start) if end - start > 1 else nullcontext():
                self._round(start, rounds, source, None if start else opening, again, (more_sent, more_read), now)
        b.sync(Queue.M, post="acc_full")
        ctx.bump(ctx.r_acc)
        b.tensor_name = ""
        for one in sent[len(more) :]:
            one.close()

    def can_spread(self, linear: GridLinear) -> bool:
        """Whether a product has rounds enough to send over them."""
        return linear.k // self.ctx.grid.width > self.ctx.grid.chunks

    def _round(
        self, start: int, rounds: int, source: Descriptor | Streamed, opening: Callable[[], object] | None,
        again: bool, more: tuple[bool, bool], now: Sequence[tuple[Spread, int]],
    ) -> None:  # fmt: skip
        """One round, number `start` of the product or one that goes like it. more : whether there are others to send
        and to read in any layer, not only before the last."""
        ctx, b = self.ctx, self.ctx.b
        b.sync(Queue.M, wait="operand", post="consumed kv_free")
        b.sync(Queue.C, wait="consumed")
        with self._unless_last(more[0]):
            self._send(SENT)
        for spread, part in now:
            spread.send(first=part == 0, last=part == self.ctx.grid.chunks - 1)
        b.sync(Queue.L, wait="kv_free")
        with self._unless_last(more[1]):
            self._read()
        if opening is not None:
            opening()
        streamed = isinstance(source, Streamed)
        b.matmul(self._acc, self._a, self._weights, zero=int(start == 0), terms=ctx.grid.terms,
                 wait="kv_full" if streamed else "", post="kv_free" if streamed else "")  # fmt: skip
        b.advance(self._weights, 3, 1)
        if isinstance(source, Streamed):
            b.advance(self._a, 3, 1)
            self._next_part(source, start + ctx.grid.parts - rounds, again)
        else:
            b.advance(self._a, 2, ctx.grid.width)
        ctx.bump(ctx.r_round)

    # ---- operands in memory ----------------------------------------------------------------------------------------

    def open_parts(self, source: Streamed) -> None:
        """Load the first parts of an operand, behind its arrival."""
        b, grid = self.ctx.b, self.ctx.grid
        w, rows, fmt = grid.width, self.ctx.rows, grid.plan.profile.activations
        ring = self.ctx.ring_of("operand", fmt, rows * w, grid.parts, (rows, 1, w), (w, 0, 1), xe=Cell.ROWS)
        b.load(self._a, ring)
        b.load(self._part, ring)
        self._rewind(source)
        b.sync(Queue.L, wait="arrived")
        for _ in range(grid.parts):
            self._load_part()

    def _rewind(self, source: Streamed) -> None:
        ctx, w = self.ctx, self.ctx.grid.width
        rows, fmt = ctx.rows, ctx.plan.profile.activations
        ctx.b.load(self._source, ctx.dram(source.region, fmt, (rows, 1, w), (w, 0, 1),
                                          scales=f"{source.region}_scales", step=rows * w, xe=Cell.ROWS))  # fmt: skip

    def _load_part(self) -> None:
        b = self.ctx.b
        b.copy(Queue.L, self._part, self._source, post="kv_full")
        b.advance(self._part, 3, 1)
        b.advance(self._source, 3, 1)

    def _next_part(self, source: Streamed, beyond: int, again: bool) -> None:
        """When M is done with a part, L loads a later one into its place. beyond: parts of it beyond the product's."""
        self.ctx.b.sync(Queue.L, wait="kv_free")
        if beyond >= 0 and not again:
            return
        if beyond == 0:
            self._rewind(source)
        self._load_part()

    # ---- weights ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _unless_last(self, always: bool) -> Iterator[None]:
        """What is written inside is passed over in the last layer, unless it is for any."""
        end = self.ctx.label()
        if not always:
            self.ctx.b.branch(end, Cond.EQ, self.ctx.r_layer, self.ctx.plan.model.layers - 1)
        yield
        self.ctx.b.place(end)

    def _received(self, columns: int) -> Descriptor:
        grid = self.ctx.grid
        k = grid.width * grid.terms
        return self.ctx.ring_of("receive", grid.format, grid.width * k, RECEIVE, (columns, 1, k), (k, 0, 1))

    def _send(self, ahead: int) -> None:
        """C sends this slice's columns of a round, which L has read, and arrives."""
        ctx, b = self.ctx, self.ctx.b
        said = ctx.label()
        ctx.put_to_columns(self._sent_to, self._sent_from, wait="own_weights")
        b.advance(self._sent_from, 3, 1)
        b.advance(self._sent_to, 3, 1)
        with b.registers(1) as (turn,):
            b.alu(AluFn.ADD, turn, ctx.r_round, ahead)
            b.alu(AluFn.AND, turn, turn, len(ROUND_COUNTERS) - 1)
            for number, counter in enumerate(ROUND_COUNTERS):
                other = ctx.label()
                if number < len(ROUND_COUNTERS) - 1:
                    b.branch(other, Cond.NE, turn, number)
                b.arrive(ctx.nothing, "operand", counter, Cell.COLUMN_FIRST, ctx.grid.members)
                if number < len(ROUND_COUNTERS) - 1:
                    b.branch(said)
                b.place(other)
        b.place(said)

    def _read(self) -> None:
        """L reads this slice's columns of a round."""
        b = self.ctx.b
        b.copy(Queue.L, self._read_to, self._read_from, post="own_weights")
        b.advance(self._read_to, 3, 1)
        b.advance(self._read_from, 3, 1)

"""Rounds of weights on the grid: each slice reads its own, sends them to its column group, multiplies all that come.

A product is `width` columns of all rows; it takes its weights in rounds of `width` of K. Rounds have one order over
the whole step, alike on all slices, and run on over products, operators and layers. With round j in hand

    M  knows that round j has come whole, and says so when round j - 1 is done ("consumed")
    C  sends this slice's columns of round j + 2 and arrives; what is in round j + 2's place then was round j - 3,
       which every slice has done, as each arrived at round j only after it
    L  reads this slice's columns of a later round, into the place of a round that has been sent

so that no slice asks another for leave. Arrivals take turns between four counters: who arrives at round j + 4 knows
that all have had all arrivals at round j. What is sent and what is read are descriptors that step from round to round;
they are pointed at the next product when their time has come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

from systolith.compiler.context import ROUND_COUNTERS, Cell
from systolith.compiler.grid import OPERAND, RECEIVE, SEND, SENT, GridLinear
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.grid.spread import Spread
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond

__all__ = ["Product", "Rounds", "Streamed"]


@dataclass(frozen=True, slots=True)
class Product:
    """A product of a class: number `number`, plus R[counter] where that is not 0; of the next layer or of this one."""

    linear: GridLinear
    number: int = 0
    counter: int = 0
    next_layer: bool = False


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

    def begin(self, first: Product) -> None:
        """Before the first layer: L reads the first rounds, C sends the first."""
        ctx, b = self.ctx, self.ctx.b
        b.set(ctx.r_round, 0)
        b.load(self._weights, self._received())
        self._point_reads(first, 0)
        for _ in range(ctx.grid.ahead):
            self._read(first.linear)
        self._point_sends(first, 0)
        for number in range(SENT):
            self._send(number)

    def product(
        self, this: Product, follows: Product, source: Descriptor | Streamed, *,
        opening: Callable[[], object] | None = None, between: Callable[[], list[Spread]] | None = None, after: int = 2,
        spreads: int = 0, more: Sequence[Spread] = (), behind: int = 2,
        aside: Callable[[], object] | None = None, again: bool = False,
    ) -> None:  # fmt: skip
        """Multiply the operand by the product's rounds into the next accumulator half.

        follows : the product after it.    source : the operand in the scratchpad [rows, 1, k], or parts in memory.
        opening : makes M wait for it.    between : written behind about `after` rounds: what V and C do with the
        product before.    spreads : what it leaves to be sent over these rounds, beside `more`, from `behind`
        rounds after it on.    aside : written where these begin.    again : the next
        product takes the same parts.
        """
        ctx, b, grid = self.ctx, self.ctx.b, self.ctx.grid
        rounds, ahead = this.linear.k // grid.width, grid.ahead
        b.tensor_name = this.linear.name
        b.sync(Queue.M, wait="acc_free")
        ctx.load_ring(self._acc, ctx.acc(ctx.rows, grid.width, xe=Cell.ROWS), ctx.r_acc)
        if isinstance(source, Descriptor):
            b.load(self._a, source.with_ext(2, grid.width))
        most = rounds - grid.chunks
        starts = [min(after + behind + k * grid.chunks, most) for k in range(max(spreads, len(more)))]
        pause = min(after, rounds - 1, *starts[:spreads]) if between is not None else 0
        sent: list[Spread] = list(more)
        parts = {rounds - OPERAND, rounds - OPERAND + 1} if isinstance(source, Streamed) else set()
        late = min(after + behind, rounds - 1) if aside is not None else 0
        ends = {s + i for s in starts for i in (0, 1, grid.chunks - 1, grid.chunks)}
        cuts = sorted(
            {0, 1, rounds - ahead, rounds - SENT, rounds, pause, late, *ends, *(cut for cut in parts if cut > 0)}
        )
        reads = this.linear
        for start, end in pairwise(cuts):
            if start == rounds - ahead:
                self._point_reads(follows, ahead)
                reads = follows.linear
            if start == rounds - SENT:
                self._point_sends(follows, SENT)
            if between is not None and start == pause:
                sent += between()
                between = None
                b.tensor_name = this.linear.name
            if aside is not None and start == late:
                aside()
            now = [(x, start - s) for x, s in zip(sent, starts, strict=False) if s <= start < s + grid.chunks]
            may_end = follows.next_layer and start >= rounds - SENT
            with b.loop(end - start) if end - start > 1 else nullcontext():
                self._round(start, rounds, reads, source, None if start else opening, again, may_end, now)
        b.sync(Queue.M, post="acc_full")
        ctx.bump(ctx.r_acc)
        b.tensor_name = ""
        for one in sent[len(more) :]:
            one.close()

    def can_spread(self, linear: GridLinear) -> bool:
        """Whether a product has rounds enough to send over them."""
        return linear.k // self.ctx.grid.width > self.ctx.grid.chunks

    def _round(
        self, start: int, rounds: int, reads: GridLinear, source: Descriptor | Streamed,
        opening: Callable[[], object] | None, again: bool, may_end: bool, now: Sequence[tuple[Spread, int]],
    ) -> None:  # fmt: skip
        """One round, number `start` of the product or one that goes like it."""
        ctx, b = self.ctx, self.ctx.b
        b.sync(Queue.M, wait="operand", post="consumed kv_free")
        b.sync(Queue.C, wait="consumed")
        end = ctx.label()
        if may_end:
            b.branch(end, Cond.EQ, ctx.r_layer, ctx.plan.model.layers - 1)
        self._send(SENT)
        b.place(end)
        for spread, part in now:
            spread.send(first=part == 0, last=part == self.ctx.grid.chunks - 1)
        b.sync(Queue.L, wait="kv_free")
        self._read(reads)
        if opening is not None:
            opening()
        streamed = isinstance(source, Streamed)
        b.matmul(self._acc, self._a, self._weights, zero=int(start == 0), wait="kv_full" if streamed else "",
                 post="kv_free" if streamed else "")  # fmt: skip
        b.advance(self._weights, 3, 1)
        if isinstance(source, Streamed):
            b.advance(self._a, 3, 1)
            self._next_part(source, start + OPERAND - rounds, again)
        else:
            b.advance(self._a, 2, ctx.grid.width)
        ctx.bump(ctx.r_round)

    # ---- operands in memory ----------------------------------------------------------------------------------------

    def open_parts(self, source: Streamed) -> None:
        """Load the first parts of an operand, behind its arrival."""
        b, grid = self.ctx.b, self.ctx.grid
        w, rows, fmt = grid.width, self.ctx.rows, grid.plan.profile.activations
        ring = self.ctx.ring_of("operand", fmt, rows * w, OPERAND, (rows, 1, w), (w, 0, 1), xe=Cell.ROWS)
        b.load(self._a, ring)
        b.load(self._part, ring)
        self._rewind(source)
        b.sync(Queue.L, wait="arrived")
        for _ in range(OPERAND):
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

    def _received(self) -> Descriptor:
        w = self.ctx.grid.width
        return self.ctx.ring_of("receive", self.ctx.grid.format, w * w, RECEIVE, (w, 1, w), (w, 0, 1))

    def _own(self, pieces: int) -> Descriptor:
        grid = self.ctx.grid
        k = grid.width
        return self.ctx.ring_of("send", grid.format, grid.own * k, SEND, (pieces, grid.own, k // pieces),
                                (k // pieces, k, 1))  # fmt: skip

    def _overlap(self, product: Product, count: int, start: int, low: int) -> None:
        """R[count] = columns that this slice has of a product, R[start] = the first of them in its tile, R[low] = the
        product's first column."""
        ctx, b = self.ctx, self.ctx.b
        nt, w = product.linear.nt, ctx.grid.width
        if product.counter:
            b.alu(AluFn.ADD, low, product.counter, product.number)
            b.alu(AluFn.MUL, low, low, w)
        else:
            b.set(low, product.number * w)
        with b.registers(1) as (own,):
            b.alu(AluFn.MUL, own, ctx.r_member, nt)
            b.alu_r(AluFn.MAX, start, own, low)
            b.alu(AluFn.ADD, count, low, w)
            with b.registers(1) as (end,):
                b.alu(AluFn.ADD, end, own, nt)
                b.alu_r(AluFn.MIN, count, count, end)
            b.alu_r(AluFn.MAX, count, count, start)
            b.alu_r(AluFn.SUB, count, count, start)
            b.alu_r(AluFn.SUB, low, start, low)  # the first of them in the product
            b.alu_r(AluFn.SUB, start, start, own)

    def _point_sends(self, product: Product, ahead: int) -> None:
        """Point what C sends at the first round of a product, which is `ahead` rounds from the one in hand."""
        ctx, b, grid = self.ctx, self.ctx.b, self.ctx.grid
        none = ctx.label()
        with b.registers(2) as (start, low):
            self._overlap(product, ctx.r_sends, start, low)
            b.branch(none, Cond.EQ, ctx.r_sends, 0)
            ctx.load_ring(self._sent_from, _flat(self._own(1), grid.own, grid.width), ctx.r_round)
            ctx.load_ring(self._sent_to, self._received(), ctx.r_round)
            b.advance_r(self._sent_to, 0, low)
            for d in (self._sent_from, self._sent_to):
                if ahead:
                    b.advance(d, 3, ahead)
                b.extent_r(d, 0, ctx.r_sends)
        b.place(none)

    def _send(self, ahead: int) -> None:
        """C sends this slice's columns of a round, which L has read, and arrives."""
        ctx, b = self.ctx, self.ctx.b
        none, said = ctx.label(), ctx.label()
        b.branch(none, Cond.EQ, ctx.r_sends, 0)
        ctx.put_to_columns(self._sent_to, self._sent_from, wait="own_weights")
        b.advance(self._sent_from, 3, 1)
        b.advance(self._sent_to, 3, 1)
        b.place(none)
        with b.registers(1) as (turn,):
            b.alu(AluFn.ADD, turn, ctx.r_round, ahead)
            b.alu(AluFn.AND, turn, turn, len(ROUND_COUNTERS) - 1)
            for number, counter in enumerate(ROUND_COUNTERS):
                other = ctx.label()
                if number < len(ROUND_COUNTERS) - 1:
                    b.branch(other, Cond.NE, turn, number)
                b.arrive(ctx.nothing, "operand", counter, Cell.GROUP_RANK, ctx.grid.members)
                if number < len(ROUND_COUNTERS) - 1:
                    b.branch(said)
                b.place(other)
        b.place(said)

    def _point_reads(self, product: Product, ahead: int) -> None:
        """Point what L reads at the first round of a product, which is `ahead` rounds from the one in hand; at nothing
        where its layer does not come."""
        ctx, b, grid, x = self.ctx, self.ctx.b, self.ctx.grid, product.linear
        none = ctx.label()
        if product.next_layer:
            over = ctx.label()
            b.branch(over, Cond.EQ, ctx.r_layer, ctx.plan.model.layers - 1)
        pieces = max(1, grid.width // x.kt)
        with b.registers(2) as (start, low):
            self._overlap(product, ctx.r_reads, start, low)
            b.branch(none, Cond.EQ, ctx.r_reads, 0)
            region = ctx.dram(
                x.region, grid.format, (pieces, x.nt, grid.width // pieces), (x.nt * x.kt, x.kt, 1),
                scales=x.region.replace("w_", "ws_", 1), step=x.nt * x.k,
            )  # fmt: skip
            b.load(self._read_from, region)
            b.advance_r(self._read_from, 3, ctx.r_layer)
            if product.next_layer:
                b.advance(self._read_from, 3, 1)
            b.advance_r(self._read_from, 1, start)
            ctx.load_ring(self._read_to, self._own(pieces), ctx.r_round)
            if ahead:
                b.advance(self._read_to, 3, ahead)
            for d in (self._read_from, self._read_to):
                b.extent_r(d, 1, ctx.r_reads)
        b.set(ctx.r_slot_left, max(1, x.kt // grid.width))
        if product.next_layer:
            b.branch(none)
            b.place(over)
            b.set(ctx.r_reads, 0)
        b.place(none)

    def _read(self, x: GridLinear) -> None:
        """L reads this slice's columns of a round."""
        ctx, b, k = self.ctx, self.ctx.b, self.ctx.grid.width
        none = ctx.label()
        b.branch(none, Cond.EQ, ctx.r_reads, 0)
        b.copy(Queue.L, self._read_to, self._read_from, post="own_weights")
        b.advance(self._read_to, 3, 1)
        each = x.kt // k
        if each <= 1:
            b.advance(self._read_from, 0, max(1, k // x.kt))
        else:
            b.advance(self._read_from, 2, k)
            b.alu(AluFn.SUB, ctx.r_slot_left, ctx.r_slot_left, 1)
            b.branch(none, Cond.NE, ctx.r_slot_left, 0)
            b.set(ctx.r_slot_left, each)
            b.advance(self._read_from, 2, -each * k)
            b.advance(self._read_from, 0, 1)
        b.place(none)


def _flat(view: Descriptor, columns: int, k: int) -> Descriptor:
    return replace(view, ext=(columns, 1, k), stride=(k, 0, 1))

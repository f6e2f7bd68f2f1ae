"""Rounds of weights on the grid: each slice reads its own, sends them to its column group, multiplies all that come.

A product is `wide` columns of all rows; it takes its weights in rounds of `deep` of K, both of its class. Rounds have
one order over the whole step, alike on all slices, and run on over products, operators and layers. With round j in hand

    M  knows that round j has come whole, and says so when round j - 1 is done ("consumed")
    C  sends this slice's columns of round j + 2 and arrives; what is in round j + 2's place then was round j - 3,
       which every slice has done, as each arrived at round j only after it
    L  reads this slice's columns of a later round, into the place of a round that has been sent

so that no slice asks another for leave. It arrives at its row group, too: what the round needs of its part of the
operand it has sent before (`Deal`). The same slices arrive at every round, each in order, so that the arrivals at a
round are whole before those at the next, and a token stands for the round that it is taken for. Were only the slice
with the part to arrive, those at the next round, of another one, could be whole first, and M would begin without it.
Arrivals take turns between four counters: who arrives at round j + 4 knows that all have had all arrivals at round j.
A slice has as many columns of each product as any other, and they lie in the order of the rounds: what is read and what
is sent are descriptors that step from round to round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

from systolith.compiler.context import ROUND_COUNTERS, Cell
from systolith.compiler.grid import RECEIVE, SENT, GridLinear
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.grid.deal import Deal
from systolith.compiler.kernels.grid.spread import Spread, Steps
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond

__all__ = ["STEPS_AFTER", "Rounds", "Streamed"]

STEPS_AFTER = 6
"""Rounds of a product before what is spread over the rest: the operator's first ones have enough to load."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """An operand that lies in memory, part by part [rows, deep]: its region, and the ring that takes parts."""

    region: str
    ring: str


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
        b.set(ctx.r_round, 0)
        # What a slice sends of a round is a run, of columns in their order: to copies all rounds are alike.
        own = grid.round_elements
        ext, stride = (1, 1, own), (own, 0, 1)
        whole = grid.width * grid.width * grid.terms
        b.load(self._sent_to, ctx.ring_of("receive", grid.format, whole, RECEIVE, ext, stride))
        b.advance_r(self._sent_to, 0, ctx.r_member)
        ring = ctx.ring_of("send", grid.format, own, grid.ahead, ext, stride)
        b.load(self._sent_from, ring)
        b.load(self._read_to, ring)
        b.load(self._read_from, ctx.dram("grid_w", grid.format, ext, stride, scales="grid_w_scales", step=own))
        for _ in range(grid.ahead):
            self._read()
        for _ in range(SENT):
            self._send()

    def open(self, deal: Deal) -> None:
        """Arrive at the first rounds of an operator, which `product` has held: what they need of an operand is sent
        now."""
        deal.begin()
        for number in range(SENT):
            self._arrive(number, deal)

    def product(
        self, linear: GridLinear, source: Descriptor | Streamed, *, last: bool = False,
        opening: Callable[[], object] | None = None, between: Callable[[], list[Spread]] | None = None, after: int = 2,
        spreads: int = 0, more: Sequence[Spread] = (), behind: int = 2,
        aside: Callable[[], object] | None = None, again: bool = False, deal: Deal | None = None, hold: bool = False,
        steps: Steps | None = None,
    ) -> None:  # fmt: skip
        """Multiply the operand by the rounds of the next product, one of a class, into the next accumulator half, or
        into both.

        source : the operand in the scratchpad by parts [rows, 1, deep], or parts in memory.    last : of a layer.
        opening : makes L load it.    between : written behind about `after` rounds: what V and C do with the product
        before.    spreads : what it leaves to be sent over these rounds, beside `more`, from `behind` rounds after it
        on.    aside : written where these begin.    again : the next product takes the same parts.
        deal : parts of the operand that are sent before rounds arrive.    hold : leave the arrivals at the first
        rounds of the next product to `open`.    steps : written over rounds from STEPS_AFTER on.
        """
        ctx, b, grid = self.ctx, self.ctx.b, self.ctx.grid
        rounds, ahead = linear.rounds, grid.ahead
        sent: list[Spread] = list(more)
        spread_from = after + behind
        if between is not None and linear.wide > grid.width:  # M takes both halves of the accumulator
            sent += between()
            between, spread_from = None, behind
        b.tensor_name = linear.name
        for _ in range(linear.wide // grid.width):
            b.sync(Queue.M, wait="acc_free")
        if linear.wide > grid.width:  # both halves are free: the ring begins anew
            b.set(ctx.r_acc, 0)
        ctx.load_ring(self._acc, ctx.acc(ctx.rows, linear.wide, xe=Cell.ROWS), ctx.r_acc)
        ctx.load_ring(self._weights, self._received(linear), ctx.r_round)
        if isinstance(source, Descriptor):
            b.load(self._a, source)
        most = rounds - grid.chunks
        starts = [min(spread_from + k * grid.chunks, most) for k in range(max(spreads, len(more)))]
        pause = min(after, rounds - 1, *starts[:spreads]) if between is not None else 0
        parts = {rounds - grid.parts, rounds - grid.parts + 1} if isinstance(source, Streamed) else set()
        late = min(after + behind, rounds - 1) if aside is not None else 0
        ends = {s + i for s in starts for i in (0, 1, grid.chunks - 1, grid.chunks)}
        early = min(STEPS_AFTER, rounds - 1)
        stepped = range(early, early + (steps.count if steps and early + steps.count < rounds else 1))
        if steps is not None:
            ends |= {stepped.start, stepped.stop}
        cuts = sorted(
            {0, 1, rounds, pause, late, *ends, *(cut for cut in parts if cut > 0)}
            | ({rounds - ahead} if last else set()) | ({rounds - SENT} if last or hold else set())
        )  # fmt: skip
        for start, end in pairwise(cuts):
            if between is not None and start == pause:
                sent += between()
                between = None
                b.tensor_name = linear.name
            if aside is not None and start == late:
                aside()
            now = [(x, start - s) for x, s in zip(sent, starts, strict=False) if s <= start < s + grid.chunks]
            if steps is not None and start == stepped.start:
                steps.begin()
            # Of the last layer nothing follows.
            more_sent, more_read = (not last or start < rounds - n for n in (SENT, ahead))
            with b.loop(end - start) if end - start > 1 else nullcontext():
                b.sync(Queue.M, wait="operand", post="consumed kv_free")
                b.sync(Queue.C, wait="consumed")
                with self._unless_last(more_sent):
                    if hold and start >= rounds - SENT:
                        self._send()
                    else:
                        self._arrive(SENT, deal, weights=True)
                for spread, part in now:
                    spread.send(first=part == 0, last=part == grid.chunks - 1)
                b.sync(Queue.L, wait="kv_free")
                with self._unless_last(more_read):
                    self._read()
                if steps is not None and start in stepped:
                    with b.loop(steps.count) if len(stepped) == 1 and steps.count > 1 else nullcontext():
                        steps.step()
                if opening is not None and start == 0:
                    opening()
                self._multiply(start, linear, source, again)
            if steps is not None and end == stepped.stop:
                steps.end()
        b.sync(Queue.M, post="acc_full")
        ctx.bump(ctx.r_acc, linear.wide // grid.width)
        b.tensor_name = ""
        for one in sent[len(more) :]:
            one.close()

    def can_spread(self, linear: GridLinear) -> bool:
        """Whether a product has rounds enough to send over them."""
        return linear.rounds > self.ctx.grid.chunks

    def _multiply(self, start: int, x: GridLinear, source: Descriptor | Streamed, again: bool) -> None:
        """The product of a round, number `start` or one that goes like it."""
        ctx, b = self.ctx, self.ctx.b
        streamed = isinstance(source, Streamed)
        b.matmul(self._acc, self._a, self._weights, zero=int(start == 0), terms=ctx.grid.terms,
                 wait="kv_full" if streamed else "", post="kv_free" if streamed else "")  # fmt: skip
        b.advance(self._weights, 3, 1)
        b.advance(self._a, 3, 1)
        if isinstance(source, Streamed):
            self._next_part(x, source, start + self.ctx.grid.parts - x.rounds, again)
        ctx.bump(ctx.r_round)

    # ---- operands in memory ----------------------------------------------------------------------------------------

    def open_parts(self, x: GridLinear, source: Streamed, wait: str) -> None:
        """Load the first parts of an operand. wait : of a token that says that they are there."""
        b = self.ctx.b
        rows, fmt = self.ctx.rows, self.ctx.plan.profile.activations
        ring = self.ctx.ring_of(source.ring, fmt, rows * x.deep, self.ctx.grid.parts, (rows, 1, x.deep), (x.deep, 0, 1),
                                xe=Cell.ROWS)  # fmt: skip
        b.load(self._a, ring)
        b.load(self._part, ring)
        self._rewind(x, source)
        if wait:
            b.sync(Queue.L, wait=wait)
        for _ in range(self.ctx.grid.parts):
            self._load_part()

    def _rewind(self, x: GridLinear, source: Streamed) -> None:
        rows, fmt = self.ctx.rows, self.ctx.plan.profile.activations
        view = self.ctx.dram(source.region, fmt, (rows, 1, x.deep), (x.deep, 0, 1), scales=f"{source.region}_scales",
                             step=rows * x.deep, xe=Cell.ROWS)  # fmt: skip
        self.ctx.b.load(self._source, view)

    def _load_part(self) -> None:
        b = self.ctx.b
        b.copy(Queue.L, self._part, self._source, post="kv_full")
        b.advance(self._part, 3, 1)
        b.advance(self._source, 3, 1)

    def _next_part(self, x: GridLinear, source: Streamed, beyond: int, again: bool) -> None:
        """When M is done with a part, L loads a later one into its place. beyond: parts of it beyond the product's."""
        self.ctx.b.sync(Queue.L, wait="kv_free")
        if beyond >= 0 and not again:
            return
        if beyond == 0:
            self._rewind(x, source)
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

    def _received(self, x: GridLinear) -> Descriptor:
        grid = self.ctx.grid
        k = x.deep * grid.terms
        return self.ctx.ring_of("receive", grid.format, x.wide * k, RECEIVE, (x.wide, 1, k), (k, 0, 1))

    def _send(self) -> None:
        """C sends this slice's columns of a round, which L has read, to the column group."""
        self.ctx.put_to_columns(self._sent_to, self._sent_from, wait="own_weights")
        self._step_sends()

    def _step_sends(self) -> None:
        for d in (self._sent_from, self._sent_to):
            self.ctx.b.advance(d, 3, 1)

    def _arrive(self, ahead: int, deal: Deal | None, *, weights: bool = False) -> None:
        """Arrive at the round that is `ahead` from the one in hand, at the column group and at the row group, to which
        goes before what the round needs of the operand and this slice has staged. weights : send these too."""
        ctx, b, grid = self.ctx, self.ctx.b, self.ctx.grid
        said = ctx.label()
        if deal is not None:
            alone = ctx.label()
            b.branch(alone, Cond.GE, ctx.r_turn, deal.rounds)
            deal.step()
            b.place(alone)
            b.alu(AluFn.ADD, ctx.r_turn, ctx.r_turn, 1)
        with b.registers(1) as (turn,):
            b.alu(AluFn.ADD, turn, ctx.r_round, ahead)
            b.alu(AluFn.AND, turn, turn, len(ROUND_COUNTERS) - 1)
            for number, counter in enumerate(ROUND_COUNTERS):
                other, last = ctx.label(), number == len(ROUND_COUNTERS) - 1
                if not last:
                    b.branch(other, Cond.NE, turn, number)
                arrival, expect = ("operand", counter), grid.members + grid.groups
                ctx.put_to_rows(ctx.nothing, ctx.nothing, arrival=arrival, expect=expect)
                if weights:
                    ctx.put_to_columns(self._sent_to, self._sent_from, wait="own_weights", arrival=arrival,
                                       expect=expect)  # fmt: skip
                else:
                    ctx.put_to_columns(ctx.nothing, ctx.nothing, arrival=arrival, expect=expect)
                if not last:
                    b.branch(said)
                b.place(other)
        b.place(said)
        if weights:
            self._step_sends()

    def _read(self) -> None:
        """L reads this slice's columns of a round."""
        b = self.ctx.b
        b.copy(Queue.L, self._read_to, self._read_from, post="own_weights")
        b.advance(self._read_to, 3, 1)
        b.advance(self._read_from, 3, 1)

"""The way of the vector unit through its operands: rows, beats, and where each operand's elements lie.

A beat is `lanes` elements of a row, or one element where an operand strides (then every beat is narrow). The way is
walked in time, `period` cycles a row, as the cycle rule counts; beats come first in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.isa.descriptor import Format
from systolith.spec import Chip

from .functions import delayed
from .ports import ADDRESS_BITS, OPERAND

__all__ = ["CYCLE_BITS", "Address", "Place", "Walk", "byte_offset", "log2_up"]

CYCLE_BITS: Final = 24
"""A row takes six times 2^20 cycles at most."""


def log2_up(m: Module, n: Value, name: str) -> Signal:
    """Levels of a tree over n values, n at least 1."""
    out = Signal(range(len(n) + 1), name=name)
    less = Signal(len(n), name=f"{name}_less")
    m.d.comb += less.eq(n - 1)
    for i in range(len(n)):
        with m.If(less[i]):
            m.d.comb += out.eq(i + 1)
    return out


def byte_offset(form: Value, elements: Value) -> Value:
    """Bytes of an offset in elements (signed, 32 bits)."""
    wide = elements.as_signed()
    word = (form == Format.FP32) | (form == Format.INT32)
    return Mux(word, Cat(Const(0, 2), elements[:30]), Mux(form == Format.E2M1, (wide >> 1)[:32], elements))[:32]


class Walk(wiring.Component):
    """Counts rows and beats.

    In: go, for one cycle; then, standing still: rows0, rows1, elements, narrow, steps (beats of a row), period,
    sweeps (times that a row is gone through before the next), gap (cycles between two sweeps, before the next period).
    rounds, crowd, pad: with more than one round (TOPK; one sweep then) rows are taken in groups of `crowd`, the last
    one with what is left, fewer than twice as many; a group is gone through `rounds` times, `pad` cycles in between.
    Out: valid, i0, i1, element (first of the beat), count (elements of the beat), last (of the row), sweep, member
    (of the row in its group), round.
    At the end of a period: restart; advance1, advance0: the next row is the next i1, or i1 = 0 of the next i0;
    rewind: it is the first of the group again; fresh: it is that of the next group; final: the walk's last cycle.
    The first beat comes in the cycle after `go`.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(
            {
                "go": In(1), "rows0": In(20), "rows1": In(20), "elements": In(20), "narrow": In(1),
                "steps": In(20), "period": In(CYCLE_BITS), "sweeps": In(5), "gap": In(16),
                "rounds": In(7), "crowd": In(6), "pad": In(6),
                "member": Out(6), "round": Out(7), "rewind": Out(1), "fresh": Out(1),
                "busy": Out(1), "valid": Out(1), "i0": Out(20), "i1": Out(20), "element": Out(20),
                "count": Out(range(lanes + 1)), "last": Out(1), "sweep": Out(5),
                "restart": Out(1), "advance1": Out(1), "advance0": Out(1), "final": Out(1),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        time = Signal(CYCLE_BITS)
        waiting = Signal()  # in a gap
        left = Signal(20)
        m.d.comb += [
            left.eq(self.elements - self.element),
            self.valid.eq(self.busy & ~waiting & (time < self.steps)),
            self.count.eq(Mux(self.valid, Mux(self.narrow, 1, Mux(left > self.lanes, self.lanes, left)), 0)),
            self.last.eq(self.valid & (time == self.steps - 1)),
        ]
        over = Signal()  # the sweep's period ends
        done = Signal()  # and with it the row
        last_row = Signal()
        m.d.comb += [
            over.eq(self.busy & ~waiting & (time == self.period - 1)),
            done.eq(over & (self.sweep == self.sweeps - 1)),
            last_row.eq((self.i1 == self.rows1 - 1) & (self.i0 == self.rows0 - 1)),
            self.restart.eq(over),
        ]
        # Groups of rows.
        many, closes = Signal(), Signal()
        size, left_rows = Signal(7), Signal(40)  # of this group; from its first row on
        rest = Signal(40)
        mark0, mark1 = Signal(20, reset_less=True), Signal(20, reset_less=True)
        first = Signal()
        rows = Signal(40)
        m.d.comb += [
            rows.eq(Mux(first, self.rows0 * self.rows1, left_rows)),
            many.eq(self.rounds > 1),
            size.eq(Mux(rows < 2 * self.crowd, rows, self.crowd)),
            rest.eq(rows - size),
            closes.eq(done & many & (self.member == size - 1)),
            self.rewind.eq(closes & (self.round != self.rounds - 1)),
            self.fresh.eq(closes & ~self.rewind),
            self.advance1.eq(done & ~self.rewind & (self.i1 != self.rows1 - 1)),
            self.advance0.eq(done & ~self.rewind & (self.i1 == self.rows1 - 1)),
            self.final.eq(Mux(many, self.fresh & (rest == 0), done & last_row)),
        ]
        wait = Signal(16, reset_less=True)
        next0, next1 = Signal(20), Signal(20)
        m.d.comb += [next0.eq(self.i0), next1.eq(self.i1)]
        with m.If(self.advance1):
            m.d.comb += next1.eq(self.i1 + 1)
        with m.If(self.advance0):
            m.d.comb += [next1.eq(0), next0.eq(self.i0 + 1)]
        with m.If(self.rewind):
            m.d.comb += [next0.eq(mark0), next1.eq(mark1)]
        with m.If(self.busy):
            m.d.sync += [time.eq(time + 1), self.i0.eq(next0), self.i1.eq(next1)]
            with m.If(self.valid):
                m.d.sync += self.element.eq(self.element + Mux(self.narrow, 1, self.lanes))
            with m.If(waiting & (time == wait - 1)):
                m.d.sync += [waiting.eq(0), time.eq(0)]
            with m.If(over):
                m.d.sync += [time.eq(0), self.element.eq(0), self.sweep.eq(Mux(done, 0, self.sweep + 1))]
                with m.If(~done & (self.gap != 0)):
                    m.d.sync += [waiting.eq(1), wait.eq(self.gap)]
                with m.If(self.rewind & (self.pad != 0)):
                    m.d.sync += [waiting.eq(1), wait.eq(self.pad)]
            with m.If(done & many):
                m.d.sync += self.member.eq(Mux(closes, 0, self.member + 1))
            with m.If(self.rewind):
                m.d.sync += self.round.eq(self.round + 1)
            with m.If(self.fresh):
                m.d.sync += [
                    self.round.eq(0), left_rows.eq(rest), first.eq(0), mark0.eq(next0), mark1.eq(next1),
                ]  # fmt: skip
            with m.If(self.final):
                m.d.sync += self.busy.eq(0)
        with m.If(self.go):
            m.d.sync += [
                self.busy.eq(1), time.eq(0), waiting.eq(0), self.i0.eq(0), self.i1.eq(0), self.element.eq(0),
                self.sweep.eq(0), self.member.eq(0), self.round.eq(0), first.eq(1), mark0.eq(0), mark1.eq(0),
            ]  # fmt: skip
        return m


@dataclass
class Place:
    """Where a beat of one operand starts, in the cycle of its access."""

    elements: Value
    """Offset in elements."""
    address: Value
    """Byte address."""
    scale: Value
    """Byte address of its scale."""


class Address:
    """Follows one operand of a walk: sums of strides, and through the index list where it has one.

    `place` belongs to the beat that the walk gave `late` cycles ago: none, or a bank's latency where the instruction
    has lists (`lists` = 1), whose entries are read meanwhile. still : all beats of a row start at its first element.
    by_sweep, by_round : so do those of a sweep, but each sweep, or each round of a group, is an element further on.
    """

    def __init__(
        self, m: Module, name: str, chip: Chip, walk: Walk, operand: Any, lists: Value, *,
        list_enable: Value, list_address: Value, list_data: Value, still: Value, by_sweep: Value,
        by_round: Value,
    ) -> None:  # fmt: skip
        stride = [operand[f"stride{i}"].as_unsigned() for i in range(3)]
        outer, middle, deep = (Signal(32, name=f"{name}_offset{i}", reset_less=True) for i in range(3))
        step = Signal(32, name=f"{name}_step")
        m.d.comb += step.eq(Mux(still, 0, Mux(walk.narrow, stride[2], Mux(stride[2] == 0, 0, chip.lanes))))
        marks = [Signal(32, name=f"{name}_mark{i}", reset_less=True) for i in range(2)]
        next_outer, next_middle = (Signal(32, name=f"{name}_next{i}") for i in range(2))
        m.d.comb += [next_outer.eq(outer), next_middle.eq(middle)]
        with m.If(walk.advance1):
            m.d.comb += next_middle.eq(middle + stride[1])
        with m.If(walk.advance0):
            m.d.comb += [next_middle.eq(0), next_outer.eq(outer + stride[0])]
        with m.If(walk.rewind):
            m.d.comb += [next_outer.eq(marks[0]), next_middle.eq(marks[1])]
        m.d.sync += [outer.eq(next_outer), middle.eq(next_middle)]
        with m.If(walk.fresh):
            m.d.sync += [marks[0].eq(next_outer), marks[1].eq(next_middle)]
        with m.If(walk.restart):
            with m.If(by_sweep):
                m.d.sync += deep.eq(deep + stride[2])
            with m.Elif(by_round):
                with m.If(walk.rewind):
                    m.d.sync += deep.eq(deep + stride[2])
                with m.If(walk.fresh):
                    m.d.sync += deep.eq(0)
            with m.Else():
                m.d.sync += deep.eq(0)
        with m.Elif(walk.valid):
            m.d.sync += deep.eq(deep + step)
        with m.If(walk.go):
            m.d.sync += [outer.eq(0), middle.eq(0), deep.eq(0), marks[0].eq(0), marks[1].eq(0)]
        row = Signal(32, name=f"{name}_row")
        m.d.comb += [
            row.eq(walk.i0 + operand.row),
            list_enable.eq(walk.valid & operand.via),
            list_address.eq(operand.list[:ADDRESS_BITS] + ((row >> operand.unit) << 2)),
        ]
        bank = chip.bank_cycles
        now = Signal(32, name=f"{name}_sum")
        m.d.comb += now.eq(Mux(operand.via, 0, outer) + middle + deep)
        sum_late = Mux(lists, delayed(m, now, bank, f"{name}_sum"), now)
        row_late = delayed(m, row, bank, f"{name}_row")
        index = Signal(32, name=f"{name}_index")
        low = Signal(16, name=f"{name}_low")
        m.d.comb += [
            low.eq((Const(1, 17) << operand.unit) - 1),
            index.eq((list_data << operand.unit) | (row_late & low)),
        ]
        total = Signal(32, name=f"{name}_elements")
        address = Signal(ADDRESS_BITS, name=f"{name}_address")
        scale = Signal(ADDRESS_BITS, name=f"{name}_scale_address")
        m.d.comb += [
            total.eq(sum_late + Mux(operand.via, (index * stride[0])[:32], 0)),
            address.eq(operand.base + byte_offset(operand.format, total)),
            scale.eq(operand.sbase + (total.as_signed() >> 5)),
        ]
        self.place = Place(total, address, scale)


assert OPERAND.size

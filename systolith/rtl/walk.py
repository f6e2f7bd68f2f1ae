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
    Out: valid, i0, i1, element (first of the beat), count (elements of the beat), last (of the row), sweep;
    advance1, advance0: the row ends, and the next one is the next i1, or i1 = 0 of the next i0; final: the walk's last
    cycle. The first beat comes in the cycle after `go`.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(
            {
                "go": In(1), "rows0": In(20), "rows1": In(20), "elements": In(20), "narrow": In(1),
                "steps": In(20), "period": In(CYCLE_BITS), "sweeps": In(5), "gap": In(16),
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
        m.d.comb += [
            over.eq(self.busy & ~waiting & (time == self.period - 1)),
            done.eq(over & (self.sweep == self.sweeps - 1)),
            self.restart.eq(over),
            self.advance1.eq(done & (self.i1 != self.rows1 - 1)),
            self.advance0.eq(done & (self.i1 == self.rows1 - 1)),
            self.final.eq(self.advance0 & (self.i0 == self.rows0 - 1)),
        ]
        with m.If(self.busy):
            m.d.sync += time.eq(time + 1)
            with m.If(self.valid):
                m.d.sync += self.element.eq(self.element + Mux(self.narrow, 1, self.lanes))
            with m.If(waiting & (time == self.gap - 1)):
                m.d.sync += [waiting.eq(0), time.eq(0)]
            with m.If(over):
                m.d.sync += [time.eq(0), self.element.eq(0), self.sweep.eq(Mux(done, 0, self.sweep + 1))]
                with m.If(~done & (self.gap != 0)):
                    m.d.sync += waiting.eq(1)
            with m.If(self.advance1):
                m.d.sync += self.i1.eq(self.i1 + 1)
            with m.If(self.advance0):
                m.d.sync += [self.i1.eq(0), self.i0.eq(self.i0 + 1)]
            with m.If(self.final):
                m.d.sync += self.busy.eq(0)
        with m.If(self.go):
            m.d.sync += [
                self.busy.eq(1), time.eq(0), waiting.eq(0), self.i0.eq(0), self.i1.eq(0), self.element.eq(0),
                self.sweep.eq(0),
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
    by_sweep : so do those of a sweep, but each sweep is an element further on.
    """

    def __init__(
        self, m: Module, name: str, chip: Chip, walk: Walk, operand: Any, lists: Value, *,
        list_enable: Value, list_address: Value, list_data: Value, still: Value, by_sweep: Value,
    ) -> None:  # fmt: skip
        stride = [operand[f"stride{i}"].as_unsigned() for i in range(3)]
        outer, middle, deep = (Signal(32, name=f"{name}_offset{i}", reset_less=True) for i in range(3))
        step = Signal(32, name=f"{name}_step")
        m.d.comb += step.eq(Mux(still, 0, Mux(walk.narrow, stride[2], Mux(stride[2] == 0, 0, chip.lanes))))
        with m.If(walk.go):
            m.d.sync += [outer.eq(0), middle.eq(0), deep.eq(0)]
        with m.Elif(walk.restart):
            m.d.sync += deep.eq(Mux(by_sweep, deep + stride[2], 0))
            with m.If(walk.advance1):
                m.d.sync += middle.eq(middle + stride[1])
            with m.If(walk.advance0):
                m.d.sync += [middle.eq(0), outer.eq(outer + stride[0])]
        with m.Elif(walk.valid):
            m.d.sync += deep.eq(deep + step)
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

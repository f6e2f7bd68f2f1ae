"""The array: rows of PEs with double-buffered weights, and the feet of its columns.

A row of PEs and a foot are leaves, emitted once. Every PE multiplies `pe_dot` activations with the weights that it
keeps and adds the products exactly; the foot of a column adds its PEs, carries the wide sum from pass to pass where the
array is shorter than a block, rounds the block sum to FP32 and adds it to the accumulator's.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from systolith.isa.cycles import CARRY_ROWS
from systolith.isa.descriptor import Format
from systolith.numerics.formats import PAIRS, SCALE_BIAS
from systolith.spec import Chip

from .fp32 import Fp32Add, Fp32Normalise

__all__ = ["EXPONENT", "FACTOR", "ColumnFoot", "Element", "PeRow", "decode", "dot_bits", "unit_exponent"]

FACTOR = 8
"""Bits of a decoded element's signed factor; 4 bits of shift stand beside it."""
SHIFT = 4
SUM_BITS = max(pair.sum_bits for pair in PAIRS.values())
"""Bits of an exact block sum, any pair."""
EXPONENT = signed(11)


@dataclass
class Element:
    """A decoded element: factor * 2^shift in units of its format; `nan` with factor 0; `live` where it is not zero."""

    factor: Value
    shift: Value
    nan: Value
    live: Value

    @property
    def packed(self) -> Value:
        """Bits for a register."""
        return Cat(self.factor, self.shift, self.nan, self.live)

    @classmethod
    def unpack(cls, bits: Value) -> Element:
        """Read `packed` again."""
        return cls(bits[:FACTOR].as_signed(), bits[FACTOR : FACTOR + SHIFT], bits[-2], bits[-1])


ELEMENT_BITS = FACTOR + SHIFT + 2


def decode(m: Module, code: Value, form: Value, name: str) -> Element:
    """Decode a code of 8 bits (E2M1 in the low four)."""
    factor, shift = Signal(signed(FACTOR), name=f"{name}_factor"), Signal(SHIFT, name=f"{name}_shift")
    nan = Signal(name=f"{name}_nan")
    four, eight = Signal(4, name=f"{name}_units"), Signal(4, name=f"{name}_mantissa")
    m.d.comb += [
        four.eq(Mux(code[1:3] == 0, code[0], Cat(code[0], Const(1, 1)) << (code[1:3] - 1)[:2])),
        eight.eq(Cat(code[:3], code[3:7] != 0)),
    ]
    with m.Switch(form):
        with m.Case(Format.E2M1):
            m.d.comb += factor.eq(Mux(code[3], -four, four))
        with m.Case(Format.E4M3):
            m.d.comb += [
                nan.eq(code[:7] == 0x7F),
                factor.eq(Mux(nan, 0, Mux(code[7], -eight, eight))),
                shift.eq(Mux(eight[3], code[3:7] - 1, 0)),
            ]
        with m.Default():
            m.d.comb += factor.eq(code.as_signed())
    return Element(factor, shift, nan, nan | (factor != 0))


def unit_exponent(a: Value, b: Value) -> Value:
    """Exponent of the unit of a block sum from the formats of activations and weights, less twice the scales' bias."""
    units = {Format.E2M1: -1, Format.E4M3: -9, Format.INT8: -6}

    def of(form: Value) -> Value:
        return Mux(
            form == Format.E2M1, units[Format.E2M1], Mux(form == Format.E4M3, units[Format.E4M3], units[Format.INT8])
        )

    return of(a) + of(b) - 2 * SCALE_BIAS


def dot_bits(dot: int) -> int:
    """Bits of an exact sum of `dot` products."""
    return SUM_BITS - (32 // dot).bit_length() + 1


class PeRow(wiring.Component):
    """One row of PEs over all columns.

    x : `pe_dot` decoded activations (`Element.packed`), go : they are good; dotN, nanN a cycle later.
    codeN : codes of column N's next weights, weN : a bit an element. swap : they become the weights in use, in `form`.
    """

    def __init__(self, chip: Chip) -> None:
        self.dot, self.columns = chip.pe_dot, chip.columns
        d = self.dot
        super().__init__(
            {"x": In(d * ELEMENT_BITS), "go": In(1), "swap": In(1), "form": In(4)}
            | {f"code{n}": In(8 * d) for n in range(self.columns)}
            | {f"we{n}": In(d) for n in range(self.columns)}
            | {f"dot{n}": Out(signed(dot_bits(d))) for n in range(self.columns)}
            | {f"nan{n}": Out(1) for n in range(self.columns)}
        )

    def elaborate(self, platform: object) -> Module:  # noqa: D102
        m = Module()
        d = self.dot
        xs = [Element.unpack(self.x[i * ELEMENT_BITS : (i + 1) * ELEMENT_BITS]) for i in range(d)]
        for n in range(self.columns):
            code, we = getattr(self, f"code{n}"), getattr(self, f"we{n}")
            total: Value = Const(0, 1)
            nan: Value = Const(0, 1)
            for i in range(d):
                following = Signal(8, name=f"next{n}_{i}", reset_less=True)
                with m.If(we[i]):
                    m.d.sync += following.eq(code[8 * i : 8 * i + 8])
                in_use = Signal(ELEMENT_BITS, name=f"weight{n}_{i}", reset_less=True)
                with m.If(self.swap):
                    m.d.sync += in_use.eq(decode(m, following, self.form, f"decode{n}_{i}").packed)
                x, w = xs[i], Element.unpack(in_use)
                places = Signal(SHIFT + 1, name=f"places{n}_{i}")
                m.d.comb += places.eq(x.shift + w.shift)
                total = total + ((x.factor * w.factor) << places)
                nan = nan | (x.nan & w.live) | (w.nan & x.live)
            dot, flag = (
                Signal(signed(dot_bits(d)), name=f"sum{n}", reset_less=True),
                Signal(name=f"flag{n}", reset_less=True),
            )
            with m.If(self.go):
                m.d.sync += [dot.eq(total), flag.eq(nan)]
            m.d.comb += [getattr(self, f"dot{n}").eq(dot), getattr(self, f"nan{n}").eq(flag)]
        return m


class ColumnFoot(wiring.Component):
    """The foot of one column.

    Cycle F, 1 after the activations stand at the PEs, 2 where it adds several PEs: valid, first (of a block: no carry),
    place (row of the group), exponent (of the activations' scale and the unit), scale (of the weights), spoilt (a scale
    of NaN). Cycle F + normalise_cycles: zero (start from +0), old (what the accumulator holds). value : the new sum,
    fp32_add_cycles later.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.short = chip.passes_per_block > 1
        bits = dot_bits(chip.pe_dot)
        super().__init__(
            {f"dot{j}": In(signed(bits)) for j in range(chip.pe_rows)}
            | {f"nan{j}": In(1) for j in range(chip.pe_rows)}
            | {
                "valid": In(1), "first": In(1), "place": In(range(CARRY_ROWS)), "exponent": In(EXPONENT),
                "scale": In(8), "spoilt": In(1), "zero": In(1), "old": In(32), "value": Out(32),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:  # noqa: D102
        m = Module()
        chip = self.chip
        total = Signal(signed(SUM_BITS))
        nan = Signal()
        dots = [getattr(self, f"dot{j}") for j in range(chip.pe_rows)]
        nans = [getattr(self, f"nan{j}") for j in range(chip.pe_rows)]
        while len(dots) > 1:
            dots = [x + y for x, y in zip(dots[::2], dots[1::2], strict=True)]
        if chip.pe_rows > 1:
            kept = Signal(signed(SUM_BITS), reset_less=True)
            kept_nan = Signal(reset_less=True)
            m.d.sync += [kept.eq(dots[0]), kept_nan.eq(Cat(*nans).any())]
            dots, nans = [kept], [kept_nan]
        if self.short:
            carry = memory.Memory(shape=SUM_BITS + 1, depth=CARRY_ROWS, init=[])
            m.submodules.carry = carry
            read, write = carry.read_port(domain="comb"), carry.write_port()
            before = read.data[:SUM_BITS].as_signed()
            m.d.comb += [
                read.addr.eq(self.place),
                write.addr.eq(self.place),
                write.en.eq(self.valid),
                write.data.eq(Cat(total, nan)),
                total.eq(dots[0] + Mux(self.first, 0, before)),
                nan.eq(nans[0] | (read.data[-1] & ~self.first)),
            ]
        else:
            m.d.comb += [total.eq(dots[0]), nan.eq(nans[0])]
        normalise = m.submodules.normalise = Fp32Normalise(SUM_BITS, chip.normalise_cycles)
        add = m.submodules.add = Fp32Add(chip.fp32_add_cycles)
        m.d.comb += [
            normalise.total.eq(total),
            normalise.exponent.eq(self.exponent + self.scale),
            normalise.nan.eq(nan | self.spoilt),
        ]
        m.d.comb += [add.x.eq(Mux(self.zero, 0, self.old)), add.y.eq(normalise.value), self.value.eq(add.value)]
        return m

"""A column of an array: PEs with double-buffered weights, and its foot.

It is a leaf, emitted once for each place in a stack. Every PE multiplies `pe_dot` activations with the weights that it
keeps and adds the products exactly; the foot adds the PEs of a block, carries the wide sum from pass to pass where the
array is shorter than a block, rounds block sums to FP32 and adds them, in their order, to the accumulator's or to what
comes from the array below.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from systolith.isa.cycles import CARRY_ROWS
from systolith.isa.descriptor import Format
from systolith.numerics.formats import PAIRS, SCALE_BIAS, SCALE_NAN
from systolith.spec import Chip

from .fp32 import Fp32Add, Fp32Normalise
from .functions import delayed
from .load_shape import LoadShape

__all__ = ["EXPONENT", "FACTOR", "ArrayColumn", "Element", "decode", "dot_bits", "foot_cycles", "unit_exponent"]

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


def foot_cycles(chip: Chip) -> int:
    """Cycles from the activations at the PEs to the sums of blocks at the foot of a column."""
    return 1 if chip.pe_rows == chip.blocks_per_pass else 2


def dot_bits(dot: int) -> int:
    """Bits of an exact sum of `dot` products."""
    return SUM_BITS - (32 // dot).bit_length() + 1


class ArrayColumn(wiring.Component):
    """One column of an array: PEs with double-buffered weights, and its foot. level : arrays that may stand below it.

    At the PEs: xJ, `pe_dot` decoded activations (`Element.packed`) of PE j, go : they are good; form, swap_by_rows,
    swap : the next weights become those in use. col : codes of consecutive elements of this column, row : codes of it
    in consecutive rows, by_rows : which of them, take and we : they are written, a bit of we for `granule` rows.
    scale : of col's elements.
    Cycle F, 1 after the activations stand at the PEs, 2 where a block has several PEs: valid, first (of a block: no
    carry), place (row of the group); exponentB (of the activations' scale and the unit), spoiltB (a scale of NaN) and
    absentB (past the end of K) of block b.
    Cycle F + normalise_cycles: now, a row is here whose blocks are added `deep` arrays later; in the cycle of the
    first addition: old, the sum before. value : the new one, fp32_add_cycles for each block later.
    """

    def __init__(self, chip: Chip, shape: LoadShape, level: int) -> None:
        self.chip, self.shape, self.level = chip, shape, level
        self.short = chip.passes_per_block > 1
        self.depths = sorted({level % (1 << i) for i in range(chip.array_stack.bit_length())})
        """Arrays below this one, in any way of stacking."""
        super().__init__(
            {f"x{j}": In(chip.pe_dot * ELEMENT_BITS) for j in range(chip.pe_rows)}
            | {
                "go": In(1), "swap": In(1), "swap_by_rows": In(1), "form": In(4), "by_rows": In(1), "take": In(1),
                "we": In(chip.array_rows // shape.granule), "col": In(8 * shape.column_codes),
                "row": In(8 * shape.row_codes), "scale": In(8),
                "valid": In(1), "first": In(1), "place": In(range(CARRY_ROWS)), "now": In(1),
                "deep": In(range(max(2, chip.array_stack))), "old": In(32), "value": Out(32),
            }
            | {f"exponent{b}": In(EXPONENT) for b in range(chip.blocks_per_pass)}
            | {f"{x}{b}": In(1) for b in range(chip.blocks_per_pass) for x in ("spoilt", "absent")}
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:  # noqa: D102
        m = self.m = Module()
        chip, add = self.chip, self.chip.fp32_add_cycles
        per_block = chip.pe_rows // chip.blocks_per_pass
        scales = self._scales()
        dots = [self._pe(j) for j in range(chip.pe_rows)]
        total: Value = self.old
        for b in range(chip.blocks_per_pass):
            value = self._waiting(self._block(b, dots[b * per_block : (b + 1) * per_block], scales[b]), b)
            adder = Fp32Add(add)
            m.submodules[f"add{b}"] = adder
            m.d.comb += [adder.x.eq(total), adder.y.eq(delayed(m, value, b * add, f"waits{b}"))]
            total = adder.value
        m.d.comb += self.value.eq(total)
        return m

    def _pe(self, j: int) -> tuple[Value, Value]:
        """PE j: the exact sum of its products and whether it is NaN, a cycle after x."""
        m, d, shape = self.m, self.chip.pe_dot, self.shape
        x_bits = getattr(self, f"x{j}")
        total: Value = Const(0, 1)
        nan: Value = Const(0, 1)
        for i in range(d):
            r = j * d + i
            following = Signal(8, name=f"next{r}", reset_less=True)
            at_row, at_col = 8 * (r % shape.row_codes), 8 * (r % shape.column_codes)
            with m.If(self.take & self.we[r // shape.granule]):
                m.d.sync += following.eq(
                    Mux(self.by_rows, self.row[at_row : at_row + 8], self.col[at_col : at_col + 8])
                )
            in_use = Signal(ELEMENT_BITS, name=f"weight{r}", reset_less=True)
            with m.If(self.swap):
                m.d.sync += in_use.eq(decode(m, following, self.form, f"decode{r}").packed)
            x, w = Element.unpack(x_bits[i * ELEMENT_BITS : (i + 1) * ELEMENT_BITS]), Element.unpack(in_use)
            places = Signal(SHIFT + 1, name=f"places{r}")
            m.d.comb += places.eq(x.shift + w.shift)
            total = total + ((x.factor * w.factor) << places)
            nan = nan | (x.nan & w.live) | (w.nan & x.live)
        dot = Signal(signed(dot_bits(d)), name=f"dot{j}", reset_less=True)
        flag = Signal(name=f"nan{j}", reset_less=True)
        with m.If(self.go):
            m.d.sync += [dot.eq(total), flag.eq(nan)]
        return dot, flag

    def _scales(self) -> list[Value]:
        """Scales of the weights in use, a block each, as they are in cycle F."""
        m, found = self.m, []
        granules = max(1, len(self.we) // self.chip.blocks_per_pass)
        for b in range(self.chip.blocks_per_pass):
            following, in_use = (Signal(8, name=f"scale{b}_{x}", reset_less=True) for x in ("next", "now"))
            with m.If(self.take & ~self.by_rows & self.we[b * granules : (b + 1) * granules].any()):
                m.d.sync += following.eq(self.scale)
            with m.If(self.swap):
                m.d.sync += in_use.eq(Mux(self.swap_by_rows, SCALE_BIAS, following))
            found.append(delayed(m, in_use, foot_cycles(self.chip), f"scale{b}"))
        return found

    def _block(self, b: int, pes: list[tuple[Value, Value]], scale: Value) -> Value:
        """FP32 sum of block b, normalise_cycles after F."""
        m, chip = self.m, self.chip
        total, nan = Signal(signed(SUM_BITS), name=f"total{b}"), Signal(name=f"total_nan{b}")
        dots, nans = [dot for dot, _ in pes], [flag for _, flag in pes]
        while len(dots) > 1:
            dots = [x + y for x, y in zip(dots[::2], dots[1::2], strict=True)]
        if len(pes) > 1:
            kept = Signal(signed(SUM_BITS), name=f"kept{b}", reset_less=True)
            kept_nan = Signal(name=f"kept_nan{b}", reset_less=True)
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
        normalise = Fp32Normalise(SUM_BITS, chip.normalise_cycles)
        m.submodules[f"normalise{b}"] = normalise
        m.d.comb += [
            normalise.total.eq(total),
            normalise.exponent.eq(getattr(self, f"exponent{b}") + scale),
            normalise.nan.eq(nan | getattr(self, f"spoilt{b}") | (scale == SCALE_NAN)),
        ]
        if chip.blocks_per_pass == chip.array_stack == 1:
            return normalise.value
        # x + -0 is x, whatever it is: what is past the end of K adds nothing, not even to a zero of either sign.
        gone = delayed(m, getattr(self, f"absent{b}"), chip.normalise_cycles, f"absent{b}")
        value = Signal(32, name=f"block{b}")
        m.d.comb += value.eq(Mux(gone, 0x80000000, normalise.value))
        return value

    def _waiting(self, value: Value, b: int) -> Value:
        """Let a block's sum wait for the arrays below: it enters the line as many cycles before its end."""
        m = self.m
        wait = self.chip.blocks_per_pass * self.chip.fp32_add_cycles
        length = self.depths[-1] * wait
        if not length:
            return value
        enters = {d * wait: self.now & (self.deep == d) for d in self.depths}
        line = [Signal(32, name=f"line{b}_{i}", reset_less=True) for i in range(length)]
        for i, place in enumerate(line):
            behind: Value = line[i + 1] if i + 1 < length else value
            m.d.sync += place.eq(Mux(enters[i + 1], value, behind) if i + 1 in enters and i + 1 < length else behind)
        return Mux(enters[0], value, line[0])

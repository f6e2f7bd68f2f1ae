"""Between FP32 and the formats in memory: dequantise an element, choose a scale, quantise an element.

Combinational leaves, equal to `numerics.blocks` bit for bit (docs/numerics.md rule 4).
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.isa.descriptor import Format

from .rounding import INFINITY, NAN, length_of, round_fp32, sticky_right

__all__ = ["Dequantise", "Encode", "e8m0", "scale_code"]


def e8m0(code: Value) -> Value:
    """FP32 bits of an E8M0 code: 2^(code - 127), 255 is NaN."""
    return Mux(
        code == 255, Const(NAN, 32), Mux(code == 0, Const(0x400000, 32), Cat(Const(0, 23), code[:8], Const(0, 1)))
    )


def scale_code(largest: Value, form: Value) -> Value:
    """E8M0 code of a block from the bits of its largest magnitude (31 bits): 255 if it is not finite, 0 for zeros.

    e = floor(log2) - emax clamped to -127..127. A subnormal's exponent is below -126, so its code is 0 anyway.
    """
    field = largest[23:31]
    emax = Mux(form == Format.E2M1, 2, Mux(form == Format.E4M3, 8, 0))
    return Mux(field == 255, 255, Mux(field <= emax, 0, (field - emax)[:8]))[:8]


class Dequantise(wiring.Component):
    """code, scale, form -> value. code : 8 bits, E2M1 in the low four. scale : E8M0, 127 where there is none.

    E2M1, E4M3, INT8 only; the exact product is rounded once, as it may be subnormal. NaN for scale 255.
    """

    def __init__(self) -> None:
        super().__init__({"code": In(8), "scale": In(8), "form": In(4), "value": Out(32)})

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        sign = Signal()
        units = Signal(8)  # magnitude
        power = Signal(signed(5), name="power")  # of the unit
        nan = Signal()
        code = self.code
        with m.Switch(self.form):
            with m.Case(Format.E2M1):
                field = code[1:3]
                m.d.comb += [
                    sign.eq(code[3]),
                    units.eq(Mux(field == 0, code[0], (2 | code[0]))),
                    power.eq(Mux(field == 0, -1, field.as_unsigned() - 2)),
                ]
            with m.Case(Format.E4M3):
                field = code[3:7]
                m.d.comb += [
                    sign.eq(code[7]),
                    units.eq(Mux(field == 0, code[:3], 8 | code[:3])),
                    power.eq(Mux(field == 0, -9, field.as_unsigned() - 10)),
                    nan.eq(code[:7] == 0x7F),
                ]
            with m.Default():
                m.d.comb += [
                    sign.eq(code[7]),
                    units.eq(Mux(code[7], -code.as_signed(), code)),
                    power.eq(-6),
                ]
        exponent = Signal(signed(10))
        m.d.comb += exponent.eq(power + self.scale - 127)
        value = round_fp32(m, sign & (units != 0), units, exponent, "rounded")
        m.d.comb += self.value.eq(Mux(nan | (self.scale == 255), NAN, value))
        return m


class Encode(wiring.Component):
    """value (FP32 bits), scale (E8M0 code), form -> code: value * 2^(127-scale), one rounding, saturating, no -0.

    Scale 255 gives code 0. E2M1 in the low four bits.
    """

    def __init__(self) -> None:
        super().__init__({"value": In(32), "scale": In(8), "form": In(4), "code": Out(8)})

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        sign, field = self.value[31], self.value[23:31]
        # value = mantissa * 2^(exponent - 23), exponent relative to the scale; a subnormal is made normal, as a small
        # scale keeps it so.
        fraction = self.value[:23]
        length = length_of(m, fraction, "length")
        mantissa = Signal(24)
        exponent = Signal(signed(10))
        with m.If(field == 0):
            m.d.comb += [mantissa.eq(fraction << (24 - length)[:5]), exponent.eq(length - 23 - self.scale)]
        with m.Else():
            m.d.comb += [mantissa.eq(Cat(fraction, Const(1, 1))), exponent.eq(field - self.scale)]
        bits = Signal(3)  # mantissa bits after the leading one
        least = Signal(signed(4))  # exponent of the smallest normal binade
        largest = Signal(8)
        with m.Switch(self.form):
            with m.Case(Format.E2M1):
                m.d.comb += [bits.eq(1), least.eq(0), largest.eq(7)]
            with m.Case(Format.E4M3):
                m.d.comb += [bits.eq(3), least.eq(-6), largest.eq(0x7E)]
            with m.Default():
                m.d.comb += [bits.eq(6), least.eq(0), largest.eq(127)]
        integer = self.form == Format.INT8
        # The binade that sets the unit: the value's own, `least` below it; INT8 has one unit for all.
        binade = Signal(signed(10))
        m.d.comb += binade.eq(Mux(integer | (exponent < least), least, exponent))
        # units = mantissa * 2^(exponent - 23 + bits - binade)
        right = Signal(signed(11))
        m.d.comb += right.eq(23 - bits + binade - exponent)
        # keep two bits below the unit: shift mantissa << 2 right by `right`
        placed = sticky_right(m, Cat(Const(0, 2), mantissa, Const(0, 2)), Mux(right > 31, 31, right)[:5], "placed")
        units = Signal(26)
        m.d.comb += units.eq((placed >> 2) + (placed[1] & (placed[0] | placed[2])))
        code = Signal(12)
        # A mantissa that rounds up to the next power of two carries into the exponent field by itself.
        m.d.comb += code.eq(Mux(integer, units[:9], units[:9] + ((binade - least)[:5] << bits)))
        small = Signal(8)
        m.d.comb += small.eq(Mux(code > largest, largest, code))
        live = (small != 0) & (self.scale != 255)
        with m.Switch(self.form):
            with m.Case(Format.E2M1):
                m.d.comb += self.code.eq(Mux(live, Cat(small[:3], sign), 0))
            with m.Case(Format.E4M3):
                m.d.comb += self.code.eq(Mux(live, Cat(small[:7], sign), 0))
            with m.Default():
                m.d.comb += self.code.eq(Mux(live, Mux(sign, -small, small)[:8], 0))
        return m


assert INFINITY >> 23 == 255

"""The one rounding: an exact number with a sticky bit to FP32, gradual underflow and overflow included.

Source: docs/numerics.md rule 5; `numerics.fp32.round_scaled` is the definition.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed

__all__ = ["INFINITY", "NAN", "length_of", "rne", "rom", "round_fp32", "sticky_right"]

NAN = 0x7FC00000
INFINITY = 0x7F800000


def length_of(m: Module, value: Value, name: str) -> Signal:
    """Bits of `value` up to its highest one; 0 for 0."""
    out = Signal(range(len(value) + 1), name=name)
    for i in range(len(value)):
        with m.If(value[i]):
            m.d.comb += out.eq(i + 1)
    return out


def sticky_right(m: Module, value: Value, shift: Value, name: str) -> Signal:
    """Shift right; every bit that falls out is or-ed into the lowest one that stays. A shift beyond the width is one
    by the width."""
    width = len(value)
    out = Signal(width, name=name)
    amount = Signal(range(width + 1), name=f"{name}_by")
    lost = Signal(name=f"{name}_lost")
    m.d.comb += [
        amount.eq(Mux(shift > width, width, shift)),
        lost.eq((value & ((Const(1, width + 1) << amount) - 1)[:width]).any()),
        out.eq((value >> amount) | lost),
    ]
    return out


def rne(m: Module, value: Value, name: str) -> Signal:
    """Drop two bits, guard and sticky, rounding to nearest even."""
    out = Signal(len(value) - 1, name=name)
    m.d.comb += out.eq((value >> 2) + (value[1] & (value[0] | value[2])))
    return out


def round_fp32(m: Module, sign: Value, magnitude: Value, exponent: Value, name: str) -> Signal:
    """FP32 bits of (-1)^sign * magnitude * 2^exponent, rounded once; the lowest bit of magnitude may be sticky.

    magnitude : 26 bits or more where it is not exact    exponent : signed
    A zero magnitude gives a zero of `sign`.
    """
    width = max(len(magnitude), 27)
    wide = len(exponent) + 2
    length = length_of(m, magnitude, f"{name}_length")
    left = Signal(width, name=f"{name}_left")  # the highest one at the top
    top = Signal(signed(wide), name=f"{name}_top")  # 2^(top-1) <= value < 2^top
    under = Signal(signed(wide), name=f"{name}_under")
    m.d.comb += [
        left.eq(magnitude << (width - length)[: (width).bit_length()]),
        top.eq(exponent + length),
        under.eq(-125 - top),  # places below the smallest normal
    ]
    kept = Signal(26, name=f"{name}_kept")  # 24 bits, guard, sticky
    m.d.comb += kept.eq(Cat(left[: width - 25].any(), left[width - 25 :]))
    placed = sticky_right(m, kept, Mux(under > 0, Mux(under > 31, 31, under), 0)[:5], f"{name}_placed")
    units = rne(m, placed, f"{name}_units")
    field = Signal(signed(wide), name=f"{name}_field")  # exponent field of the kept 24 bits, less the leading one
    m.d.comb += field.eq(Mux(under > 0, 0, top + 125))
    out = Signal(32, name=name)
    packed = Signal(32, name=f"{name}_packed")
    over = Signal(name=f"{name}_over")
    m.d.comb += [
        packed.eq((field[:8] << 23) + units),
        over.eq((field > 254) | (packed >= INFINITY)),
        out.eq(Cat(Mux(magnitude == 0, 0, Mux(over, INFINITY, packed))[:31], sign)),
    ]
    return out


def rom(m: Module, table: list[int] | tuple[int, ...], index: Value, width: int, name: str) -> Signal:
    """Read a constant table."""
    out = Signal(width, name=name)
    m.d.comb += out.eq(Array([Const(x, width) for x in table])[index])
    return out

"""FP32 adder, multiplier and the rounding of an exact integer, each a pipeline of a given number of cycles.

Round to nearest, ties to even; gradual underflow; the only NaN is 0x7FC00000 (docs/numerics.md rules 2 and 5). The
definition is `numerics.fp32`.
"""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .rounding import INFINITY, NAN

__all__ = ["Fp32Add", "Fp32Multiply", "Fp32Normalise", "Pipeline", "justify"]


class Pipeline:
    """Places `cycles` registers (no reset: data only) at the ends of `stages` stages, the last one at the very end.

    Where there are more registers than stages, the rest stand at the end, for a tool that retimes.
    """

    def __init__(self, m: Module, stages: int, cycles: int) -> None:
        self.m, self.stages = m, stages
        self.at = [0] * stages
        for i in range(min(stages, cycles)):
            self.at[stages - 1 - i * stages // min(stages, cycles)] += 1
        self.at[-1] += max(0, cycles - stages)

    def cut(self, stage: int, **values: Value) -> Sequence[Value]:
        """Give the values as they stand after stage `stage` (from 0)."""
        out = []
        for name, value in values.items():
            for i in range(self.at[stage]):
                register = Signal(value.shape(), name=f"{name}_s{stage}_{i}", reset_less=True)
                self.m.d.sync += register.eq(value)
                value = register
            out.append(value)
        return out


def justify(m: Module, value: Value, name: str) -> tuple[Signal, Signal]:
    """Shift left until the highest bit is one, in steps of powers of two: (shifted, places). A zero moves as far as it
    can."""
    width = len(value)
    levels = (width - 1).bit_length()
    places = Signal(levels, name=f"{name}_places")
    for level in reversed(range(levels)):
        step = 1 << level
        moved = Signal(width, name=f"{name}_by{step}")
        zero = Signal(name=f"{name}_zero{step}")
        m.d.comb += [
            zero.eq(value[width - step :] == 0),
            moved.eq(Mux(zero, value << step, value)),
            places[level].eq(zero),
        ]
        value = moved
    return value, places


def round_justified(m: Module, sign: Value, left: Value, top: Value, name: str) -> Signal:
    """FP32 bits of a number whose highest one is the highest bit of `left`, in the binade 2^top, rounded once.

    left : 26 bits or more, the lowest may be sticky; zero is a zero of `sign`    top : signed
    """
    width = len(left)
    kept = Signal(26, name=f"{name}_kept")  # 24 bits, guard, sticky
    under = Signal(signed(len(top) + 2), name=f"{name}_under")  # places below the smallest normal
    small = Signal(name=f"{name}_small")
    by = Signal(5, name=f"{name}_by")
    placed = Signal(26, name=f"{name}_placed")
    lost = Signal(name=f"{name}_lost")
    field = Signal(signed(len(top) + 2), name=f"{name}_field")
    packed = Signal(33, name=f"{name}_packed")
    out = Signal(32, name=name)
    m.d.comb += [
        kept.eq(Cat(left[: width - 25].any(), left[width - 25 :]) if width > 25 else left << (26 - width)),
        under.eq(-126 - top),
        small.eq(under > 0),
        by.eq(Mux(small, Mux(under > 26, 26, under), 0)),
        placed.eq(kept >> by),
        lost.eq((kept & ((Const(1, 27) << by) - 1)[:26]).any()),
        field.eq(Mux(small, 0, top + 126)),  # the leading one adds one more
        packed.eq(
            (field[:9] << 23) + placed[2:] + (placed[1] & (placed[0] | lost | placed[2]))
        ),
        out.eq(
            Cat(Mux(kept == 0, 0, Mux((top > 127) | (packed >= INFINITY), INFINITY, packed[:31]))[:31], sign)
        ),
    ]  # fmt: skip
    return out


class Fp32Add(wiring.Component):
    """x + y -> value, FP32 bits, `cycles` later; a sum every cycle."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"x": In(32), "y": In(32), "value": Out(32)})

    def elaborate(self, platform: object) -> Module:  # noqa: D102
        m = Module()
        p = Pipeline(m, 3, self.cycles)
        # Align: the larger magnitude first.
        swap = Signal()
        big, small = Signal(32), Signal(32)
        m.d.comb += [
            swap.eq(self.y[:31] > self.x[:31]),
            big.eq(Mux(swap, self.y, self.x)),
            small.eq(Mux(swap, self.x, self.y)),
        ]
        normal_big, normal_small = Signal(), Signal()
        exponent, distance = Signal(8), Signal(8)
        by = Signal(5)
        b, s = Signal(27), Signal(27)  # 24 bits, guard, round, sticky
        lost = Signal()
        m.d.comb += [
            normal_big.eq(big[23:31] != 0),
            normal_small.eq(small[23:31] != 0),
            exponent.eq(big[23:31] | ~normal_big),
            distance.eq(exponent - (small[23:31] | ~normal_small)),
            by.eq(Mux(distance > 26, 27, distance)),
            b.eq(Cat(Const(0, 3), big[:23], normal_big)),
            s.eq(Cat(Const(0, 3), small[:23], normal_small)),
            lost.eq((s & ((Const(1, 28) << by) - 1)[:27]).any()),
        ]
        aligned = Signal(27)
        minus, sign, nan, infinite = Signal(), Signal(), Signal(), Signal()
        zero_sign = Signal()
        m.d.comb += [
            aligned.eq((s >> by) | lost),
            minus.eq(self.x[31] ^ self.y[31]),
            sign.eq(big[31]),
            zero_sign.eq(self.x[31] & self.y[31]),
            infinite.eq(big[23:31] == 255),
            nan.eq((big[:31] > INFINITY) | ((small[23:31] == 255) & minus)),
        ]
        b1, a1, minus1, sign1, zero1, nan1, inf1, exp1 = p.cut(
            0, b=b, aligned=aligned, minus=minus, sign=sign, zero=zero_sign, nan=nan, infinite=infinite, exp=exponent
        )
        # Add: the larger is first, so that no difference is negative.
        total = Signal(28)
        m.d.comb += total.eq(Mux(minus1, b1 - a1, b1 + a1))
        t2, sign2, zero2, nan2, inf2, exp2 = p.cut(
            1, total=total, sign_=sign1, zero_=zero1, nan_=nan1, infinite_=inf1, exp_=exp1
        )
        # Normalise and round: a sum whose last place is a subnormal's is exact, so the shift need not look back.
        left, places = justify(m, t2, "left")
        room = Signal(8)  # shifts until the smallest normal
        limited = Signal()
        moved = Signal(28)
        field = Signal(8)
        packed = Signal(32)
        out = Signal(32)
        m.d.comb += [
            room.eq(exp2),
            limited.eq(places >= room),  # shift by exponent only: the result is subnormal
            moved.eq(Mux(limited, t2 << room[:5], left)),
            field.eq(Mux(limited | ~left[27], 0, exp2 - places)),  # the leading one adds one more
            packed.eq(
                (field << 23) + moved[4:] + (moved[3] & (moved[:3].any() | moved[4]))
            ),
            out.eq(
                Mux(
                    nan2, NAN,
                    Cat(
                        Mux(inf2 | (packed >= INFINITY), INFINITY, packed[:31])[:31],
                        Mux(left[27] | inf2, sign2, zero2),
                    ),
                )
            ),
        ]  # fmt: skip
        (done,) = p.cut(2, out=out)
        m.d.comb += self.value.eq(done)
        return m


class Fp32Multiply(wiring.Component):
    """x * y -> value, FP32 bits, `cycles` later; a product every cycle."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"x": In(32), "y": In(32), "value": Out(32)})

    def elaborate(self, platform: object) -> Module:  # noqa: D102
        m = Module()
        p = Pipeline(m, 3, self.cycles)
        normal_x, normal_y = Signal(), Signal()
        mx, my = Signal(24), Signal(24)
        sign, nan, infinite = Signal(), Signal(), Signal()
        exponent = Signal(signed(11))
        m.d.comb += [
            normal_x.eq(self.x[23:31] != 0),
            normal_y.eq(self.y[23:31] != 0),
            mx.eq(Cat(self.x[:23], normal_x)),
            my.eq(Cat(self.y[:23], normal_y)),
            sign.eq(self.x[31] ^ self.y[31]),
            infinite.eq((self.x[23:31] == 255) | (self.y[23:31] == 255)),
            nan.eq(
                (self.x[:31] > INFINITY) | (self.y[:31] > INFINITY)
                | (infinite & ((self.x[:31] == 0) | (self.y[:31] == 0)))
            ),
            # of the product's highest place, 2^47 of its units
            exponent.eq((self.x[23:31] | ~normal_x) + (self.y[23:31] | ~normal_y) - 253),
        ]  # fmt: skip
        product = Signal(48)
        m.d.comb += product.eq(mx * my)
        product1, sign1, nan1, inf1, exp1 = p.cut(
            0, product=product, sign=sign, nan=nan, infinite=infinite, exp=exponent
        )
        left, places = justify(m, product1, "left")
        top = Signal(signed(11))
        m.d.comb += top.eq(exp1 - places)
        left2, top2, sign2, nan2, inf2 = p.cut(1, left=left, top=top, sign_=sign1, nan_=nan1, infinite_=inf1)
        rounded = round_justified(m, sign2, left2, top2, "rounded")
        out = Signal(32)
        m.d.comb += out.eq(Mux(nan2, NAN, Mux(inf2, Cat(Const(INFINITY, 31), sign2), rounded)))
        (done,) = p.cut(2, out=out)
        m.d.comb += self.value.eq(done)
        return m


class Fp32Normalise(wiring.Component):
    """An exact integer times 2^exponent -> FP32 bits rounded once, `cycles` later; NaN where `nan`.

    total : signed, `bits`    exponent : signed, 11 bits. An exact zero is +0, an underflow to zero keeps its sign.
    """

    def __init__(self, bits: int, cycles: int) -> None:
        self.bits, self.cycles = bits, cycles
        super().__init__({"total": In(signed(bits)), "exponent": In(signed(11)), "nan": In(1), "value": Out(32)})

    def elaborate(self, platform: object) -> Module:  # noqa: D102
        m = Module()
        p = Pipeline(m, 2, self.cycles)
        width = max(self.bits, 26)
        sign = Signal()
        magnitude = Signal(width)
        m.d.comb += [sign.eq(self.total < 0), magnitude.eq(Mux(sign, -self.total, self.total))]
        left, places = justify(m, magnitude, "left")
        top = Signal(signed(12))
        m.d.comb += top.eq(self.exponent + (width - 1) - places)
        left1, top1, sign1, nan1 = p.cut(0, left=left, top=top, sign=sign, nan=self.nan)
        rounded = round_justified(m, sign1, left1, top1, "rounded")
        out = Signal(32)
        m.d.comb += out.eq(Mux(nan1, NAN, rounded))
        (done,) = p.cut(1, out=out)
        m.d.comb += self.value.eq(done)
        return m

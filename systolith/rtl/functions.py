"""Functions of the vector unit: rcp, rsqrt, fix, exp2fx, the sampling weight, the merge of shifted partials.

Equal to `numerics.functions`, `numerics.choose.weight` and `numerics.fp32.shift_add` bit for bit. rcp and rsqrt are
digit recurrences, exact by construction: one bit of the quotient or root a step, the steps spread over the stages.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.numerics.functions import EXP2_T1, EXP2_T2

from .rounding import INFINITY, NAN, length_of, rom, round_fp32, sticky_right

__all__ = ["Exp2", "Fix", "Reciprocal", "ReciprocalRoot", "ShiftAdd", "delayed"]

MASKED = 0x80000000
NAN_FX = 0x7FFFFFFF


def delayed(m: Module, value: Value, cycles: int, name: str) -> Value:
    """Give `value` some cycles later, through registers without reset."""
    for i in range(cycles):
        stage = Signal(value.shape(), name=f"{name}_{i + 1}", reset_less=True)
        m.d.sync += stage.eq(value)
        value = stage
    return value


def _normal(m: Module, x: Value, name: str) -> tuple[Signal, Signal]:
    """Mantissa with its leading one at bit 23, and the exponent of its lowest bit, of a finite number not zero."""
    field, fraction = x[23:31], x[:23]
    length = length_of(m, fraction, f"{name}_length")
    mantissa = Signal(24, name=f"{name}_mantissa")
    exponent = Signal(signed(10), name=f"{name}_exponent")
    with m.If(field == 0):
        m.d.comb += [mantissa.eq(fraction << (24 - length)[:5]), exponent.eq(length - 173)]
    with m.Else():
        m.d.comb += [mantissa.eq(Cat(fraction, Const(1, 1))), exponent.eq(field - 150)]
    return mantissa, exponent


def _cuts(steps: int, cycles: int) -> set[int]:
    """After which steps a register stands: `cycles - 1` of them, evenly."""
    return {steps * (i + 1) // cycles for i in range(cycles - 1)}


class Reciprocal(wiring.Component):
    """x -> 1/x correctly rounded, `cycles` later."""

    STEPS = 26

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"x": In(32), "value": Out(32)})

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        mantissa, exponent = _normal(m, self.x, "x")
        # 2^48 / mantissa is in 2^24 .. 2^25: 26 quotient bits, the first for the power of two itself.
        rest: Value = Const(1, 1) << 23  # 2^48 without its last 25 places
        quotient: Value = Const(0, 1)
        state = [mantissa, exponent, self.x]
        cuts = _cuts(self.STEPS, self.cycles)
        for step in range(self.STEPS):
            for cut in [c for c in cuts if c == step]:
                state = [delayed(m, s, 1, f"state{i}_{cut}") for i, s in enumerate(state)]
                rest, quotient = delayed(m, rest, 1, f"rest_{cut}"), delayed(m, quotient, 1, f"quotient_{cut}")
            doubled = Signal(26, name=f"doubled_{step}")
            bit = Signal(name=f"bit_{step}")
            left = Signal(25, name=f"left_{step}")
            m.d.comb += [
                doubled.eq(rest if step == 0 else rest << 1),
                bit.eq(doubled >= state[0]),
                left.eq(Mux(bit, doubled - state[0], doubled)),
            ]
            quotient, rest = Cat(bit, quotient)[: self.STEPS], left
        missing = self.cycles - 1 - len(cuts)
        mantissa, exponent, x = (delayed(m, s, missing, f"late{i}") for i, s in enumerate(state))
        rest, quotient = delayed(m, rest, missing, "late_rest"), delayed(m, quotient, missing, "late_quotient")
        # value = 2^-48 * quotient * 2^-exponent, the lowest quotient bit of weight 2^0 of 2^(48 - 23 + 25 ...)
        power = Signal(signed(11))
        m.d.comb += power.eq(-49 - exponent)
        value = round_fp32(m, x[31], Cat(rest.any(), quotient), power, "rounded")
        out = Signal(32)
        field, fraction = x[23:31], x[:23]
        with m.If((field == 255) & (fraction != 0)):
            m.d.comb += out.eq(NAN)
        with m.Elif(field == 255):
            m.d.comb += out.eq(Cat(Const(0, 31), x[31]))
        with m.Elif((field == 0) & (fraction == 0)):
            m.d.comb += out.eq(Cat(Const(INFINITY, 31), x[31]))
        with m.Else():
            m.d.comb += out.eq(value)
        m.d.comb += self.value.eq(delayed(m, out, 1, "result"))
        return m


class ReciprocalRoot(wiring.Component):
    """x -> 1/sqrt(x) correctly rounded, `cycles` later.

    x = n * 2^(2k), n in 2^23 .. 2^25. q = floor(2^38 / sqrt(n)), 26 bits or 27: bit after bit, with p = q * n and
    rest = 2^76 - q * p never negative; setting bit i takes (2 * p << i) + (n << 2i) from the rest.
    """

    STEPS = 27

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"x": In(32), "value": Out(32)})

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        mantissa, exponent = _normal(m, self.x, "x")
        n = Signal(25)
        half = Signal(signed(10), name="half")
        m.d.comb += [
            n.eq(Mux(exponent[0], mantissa << 1, mantissa)),
            half.eq((exponent - exponent[0]) >> 1),
        ]
        # Everything in units of 2^(2 * i) at step i, so that no register is wider than 56 bits: before step i the rest
        # is floor((2^76 - q*p) / 4^i) without what lies below, and p counts units of 2^i.
        top = self.STEPS - 1
        state = [n, half, self.x]
        rest: Value = Const(1 << (76 - 2 * top), 76 - 2 * top + 1)
        product: Value = Const(0, 1)
        quotient: Value = Const(0, 1)
        cuts = _cuts(self.STEPS, self.cycles)
        for step in range(self.STEPS):
            for cut in [c for c in cuts if c == step]:
                state = [delayed(m, s, 1, f"state{i}_{cut}") for i, s in enumerate(state)]
                rest, quotient = delayed(m, rest, 1, f"rest_{cut}"), delayed(m, quotient, 1, f"quotient_{cut}")
                product = delayed(m, product, 1, f"product_{cut}")
            old_rest, old_product = Signal(56, name=f"rest{step}"), Signal(53, name=f"product{step}")
            m.d.comb += [
                old_rest.eq(rest if step == 0 else rest << 2),
                old_product.eq(product if step == 0 else product << 1),
            ]
            take = Signal(56, name=f"take{step}")
            bit = Signal(name=f"bit{step}")
            new_rest, new_product = Signal(56, name=f"newrest{step}"), Signal(53, name=f"newproduct{step}")
            m.d.comb += [
                take.eq((old_product << 1) + state[0]),
                bit.eq(old_rest >= take),
                new_rest.eq(Mux(bit, old_rest - take, old_rest)),
                new_product.eq(Mux(bit, old_product + state[0], old_product)),
            ]
            quotient = Cat(bit, quotient)[: self.STEPS]
            rest, product = new_rest, new_product
        missing = self.cycles - 1 - len(cuts)
        n, half, x = (delayed(m, s, missing, f"late{i}") for i, s in enumerate(state))
        rest, quotient = delayed(m, rest, missing, "late_rest"), delayed(m, quotient, missing, "late_quotient")
        power = Signal(signed(11))
        m.d.comb += power.eq(-39 - half)
        value = round_fp32(m, Const(0, 1), Cat(rest.any(), quotient), power, "rounded")
        out = Signal(32)
        field, fraction = x[23:31], x[:23]
        with m.If((field == 0) & (fraction == 0)):
            m.d.comb += out.eq(Cat(Const(INFINITY, 31), x[31]))
        with m.Elif(x[31] | ((field == 255) & (fraction != 0))):
            m.d.comb += out.eq(NAN)
        with m.Elif(field == 255):
            m.d.comb += out.eq(0)
        with m.Else():
            m.d.comb += out.eq(value)
        m.d.comb += self.value.eq(delayed(m, out, 1, "result"))
        return m


class Fix(wiring.Component):
    """y -> RNE(y * 2^16) as INT32, `cycles` later; NaN gives NAN_FX, the rest is clamped to FX_MIN..FX_MAX."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"x": In(32), "value": Out(32)})

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        x = self.x
        field, fraction = x[23:31], x[:23]
        # value * 2^16 = mantissa * 2^(field - 134); clamped from 2^31 on, field >= 142.
        mantissa = Cat(fraction, field != 0)
        right = Signal(signed(10))
        m.d.comb += right.eq(134 - Mux(field == 0, 1, field))
        wide = Cat(Const(0, 10), mantissa)  # two bits below the unit, eight above the mantissa for left shifts
        placed = sticky_right(m, wide, Mux(right + 8 > 63, 63, Mux(right + 8 < 0, 0, right + 8))[:6], "placed")
        units = Signal(33)
        m.d.comb += units.eq((placed >> 2) + (placed[1] & (placed[0] | placed[2])))
        large = (field >= 142) | (units > 0x7FFFFFFE)
        out = Signal(32)
        with m.If((field == 255) & (fraction != 0)):
            m.d.comb += out.eq(NAN_FX)
        with m.Elif(large):
            m.d.comb += out.eq(Mux(x[31], 0x80000001, 0x7FFFFFFE))
        with m.Else():
            m.d.comb += out.eq(Mux(x[31], -units, units)[:32])
        m.d.comb += self.value.eq(delayed(m, out, self.cycles, "result"))
        return m


class Exp2(wiring.Component):
    """f, power -> value = exp2fx(f - power * 2^16), weight = the sampling weight of rule 8; `cycles` + 1 later.

    The first cycle subtracts, the others look up T1 and T2, multiply and round. masked : f is MASKED, as late.
    """

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"f": In(32), "power": In(32), "value": Out(32), "weight": Out(32), "masked": Out(1)})

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        # f - power * 2^16: the fraction is f's own, the integer part a difference.
        whole = Signal(signed(33))
        m.d.comb += whole.eq(self.f[16:].as_signed() - self.power.as_signed())
        whole = delayed(m, whole, 1, "whole")
        fraction = delayed(m, self.f[:16], 1, "fraction")
        masked = delayed(m, self.f == MASKED, 1, "masked")
        nan = delayed(m, self.f == NAN_FX, 1, "nan")
        product = Signal(56)
        m.d.comb += product.eq(rom(m, EXP2_T1, fraction[8:], 28, "coarse") * rom(m, EXP2_T2, fraction[:8], 28, "fine"))
        entry = Signal(24)  # RNE(product / 2^31)
        m.d.comb += entry.eq((product >> 31) + (product[30] & (product[:30].any() | product[31])))
        early = 1 if self.cycles > 1 else 0
        entry = delayed(m, entry, early, "entry")
        whole = delayed(m, whole, early, "whole_entry")
        masked = delayed(m, masked, early, "masked_entry")
        nan = delayed(m, nan, early, "nan_entry")
        power = Signal(signed(11))
        m.d.comb += power.eq(Mux(whole > 400, 400, Mux(whole < -400, -400, whole)) - 23)
        value = round_fp32(m, Const(0, 1), entry, power, "rounded")
        out = Signal(32)
        m.d.comb += out.eq(Mux(masked, 0, Mux(nan, NAN, value)))
        # weight = RNE(2^31 * value): the FP32 value is entry * 2^(whole - 23), subnormals round to 0 all the same.
        right = Signal(signed(11))
        m.d.comb += right.eq(-8 - Mux(whole > 400, 400, Mux(whole < -400, -400, whole)))
        placed = sticky_right(
            m, Cat(Const(0, 11), entry), Mux(right + 9 > 63, 63, Mux(right + 9 < 0, 0, right + 9))[:6], "placed"
        )
        units = Signal(34)
        m.d.comb += units.eq((placed >> 2) + (placed[1] & (placed[0] | placed[2])))
        weight = Signal(32)
        m.d.comb += weight.eq(Mux(masked | nan, 0, Mux(whole >= 1, 0xFFFFFFFF, units[:32])))
        rest = self.cycles - early
        m.d.comb += [
            self.value.eq(delayed(m, out, rest, "value")),
            self.weight.eq(delayed(m, weight, rest, "weight")),
            self.masked.eq(delayed(m, masked, rest, "hidden")),
        ]
        return m


class ShiftAdd(wiring.Component):
    """x, y, x_power, y_power -> x * 2^(x_power - M) + y * 2^(y_power - M), M the larger; `cycles` + 1 later.

    One rounding of the exact sum; a power of -2^31 is an empty partial, and the other side comes back unchanged (NaN
    as its one pattern). The first cycle compares the powers and aligns.
    """

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        super().__init__({"x": In(32), "y": In(32), "x_power": In(32), "y_power": In(32), "value": Out(32)})

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        powers = [self.x_power.as_signed(), self.y_power.as_signed()]
        values = [self.x, self.y]
        ahead = Signal(signed(33))
        m.d.comb += ahead.eq(powers[0] - powers[1])
        exponents, mantissas = [], []
        for i, v in enumerate(values):
            field = v[23:31]
            behind = Mux(ahead < 0, -ahead, 0) if i == 0 else Mux(ahead > 0, ahead, 0)
            e = Signal(signed(11), name=f"exponent_{i}")
            # A shift beyond 400 leaves a term below half an ulp of anything and not zero, as 400 does.
            m.d.comb += e.eq(Mux(field == 0, 1, field) - Mux(behind > 400, 400, behind))
            exponents.append(e)
            mantissas.append(Cat(v[:23], field != 0))
        empty = [p == -(2**31) for p in powers]
        zero = [v[:31] == 0 for v in values]
        nan = [(v[23:31] == 255) & (v[:23] != 0) for v in values]
        infinite = [(v[23:31] == 255) & (v[:23] == 0) for v in values]
        # The larger in front: by exponent, a zero never.
        swap = Signal()
        m.d.comb += swap.eq(zero[0] | (~zero[1] & (exponents[1] > exponents[0])))
        big, small = Signal(24), Signal(24)
        big_sign, small_sign = Signal(), Signal()
        distance = Signal(signed(12))
        exponent = Signal(signed(11))
        m.d.comb += [
            big.eq(Mux(swap, mantissas[1], mantissas[0])),
            small.eq(Mux(swap, mantissas[0], mantissas[1])),
            big_sign.eq(Mux(swap, self.y[31], self.x[31])),
            small_sign.eq(Mux(swap, self.x[31], self.y[31])),
            exponent.eq(Mux(swap, exponents[1], exponents[0])),
            distance.eq(Mux(swap, exponents[1] - exponents[0], exponents[0] - exponents[1])),
        ]
        # 26 places below the mantissa hold every bit that may matter; the rest is sticky.
        moved = sticky_right(
            m, Cat(Const(0, 27), small), Mux((distance > 63) | (distance < 0), 63, distance)[:6], "moved"
        )
        special = Signal(32)
        is_special = Signal()
        none = zero[0] & zero[1]
        with m.If(empty[0]):
            m.d.comb += [is_special.eq(1), special.eq(Mux(nan[1], NAN, self.y))]
        with m.Elif(empty[1]):
            m.d.comb += [is_special.eq(1), special.eq(Mux(nan[0], NAN, self.x))]
        with m.Elif(nan[0] | nan[1] | (infinite[0] & infinite[1] & (self.x[31] != self.y[31]))):
            m.d.comb += [is_special.eq(1), special.eq(NAN)]
        with m.Elif(infinite[0] | infinite[1]):
            m.d.comb += [is_special.eq(1), special.eq(Mux(infinite[0], self.x, self.y))]
        with m.Elif(none):
            m.d.comb += [is_special.eq(1), special.eq(Cat(Const(0, 31), self.x[31] & self.y[31]))]
        special, is_special = delayed(m, special, 1, "special"), delayed(m, is_special, 1, "is_special")
        front = delayed(m, Cat(Const(0, 27), big), 1, "front")
        back = delayed(m, moved, 1, "back")
        sign = delayed(m, big_sign, 1, "sign")
        differ = delayed(m, big_sign ^ small_sign, 1, "differ")
        late = delayed(m, exponent, 1, "late")
        total = Signal(signed(53))
        m.d.comb += total.eq(Mux(differ, front - back, front + back))
        negative = total < 0
        magnitude = Signal(52)
        m.d.comb += magnitude.eq(Mux(negative, -total, total))
        power = Signal(signed(12))
        m.d.comb += power.eq(late - 150 - 27)
        rounded = round_fp32(m, (sign ^ negative) & (magnitude != 0), magnitude, power, "rounded")
        out = Signal(32)
        m.d.comb += out.eq(Mux(is_special, special, rounded))
        m.d.comb += self.value.eq(delayed(m, out, self.cycles, "value"))
        return m

"""One lane of the vector unit: read, two operations, one function, in a row; a leaf that is kept whole.

The stages that an instruction does not use take no cycle, so the way through is as long as `isa.cycles.vector` says:
read (a multiplier's cycles if an operand is dequantised), op1, op2, func. A value travels without a token of its own;
`rtl.vector` knows from the instruction when it is where.
"""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.isa.descriptor import Format
from systolith.isa.vector import Func, Op1, Op2
from systolith.spec import Chip

from .convert import Dequantise, e8m0
from .fp32 import Fp32Add, Fp32Multiply
from .functions import MASKED, Exp2, Fix, Reciprocal, ReciprocalRoot, ShiftAdd
from .rounding import NAN

__all__ = ["LANE_PORTS", "Lane", "is_nan", "op1_cycles", "op2_cycles", "order"]

OPERANDS = "abcf"
LANE_PORTS: dict[str, int] = {
    **{f"{x}_raw": 32 for x in OPERANDS},
    **{f"{x}_scale": 8 for x in "abc"},
    **{f"{x}_form": 4 for x in "abc"},
    "dequantised": 1,
    "op1": 4,
    "op2": 4,
    "func": 2,
    "squared": 1,
    "hide": 1,
}
"""Inputs and their bits. `hide` belongs to the value that leaves `func` in the same cycle."""


def op1_cycles(chip: Chip) -> dict[Op1, int]:
    """Cycles of each first operation."""
    add, multiply, function = chip.fp32_add_cycles, chip.fp32_multiply_cycles, chip.function_cycles
    cycles = dict.fromkeys(Op1, 1)
    cycles |= {Op1.NONE: 0, Op1.ADD: add, Op1.SUB: add, Op1.MUL: multiply, Op1.SHIFTADD: add + 1}
    cycles |= {Op1.EXP2: function + 1, Op1.WEIGHT: function + 1}
    return cycles


def op2_cycles(chip: Chip) -> dict[Op2, int]:
    """Cycles of each second operation."""
    add, multiply = chip.fp32_add_cycles, chip.fp32_multiply_cycles
    cycles = dict.fromkeys(Op2, 1)
    cycles |= {Op2.NONE: 0, Op2.ADD: add, Op2.SUB: add, Op2.MUL: multiply, Op2.MULM: multiply}
    return cycles


def is_nan(x: Value) -> Value:
    """Whether FP32 bits are a NaN."""
    return (x[23:31] == 255) & (x[:23] != 0)


def order(x: Value) -> Value:
    """FP32 bits as a signed integer in the order of max and min: -0 below +0, the NaN 0x7FC00000 on top."""
    return Mux(x[31], Cat(~x[:31], Const(1, 1)), x).as_signed()


def chosen(m: Module, code: Value, taps: Mapping[int, Value], width: int, name: str) -> Signal:
    """Pick by a small code; what is not listed gives the value of code 0."""
    out = Signal(width, name=name)
    with m.Switch(code):
        for key, value in taps.items():
            if key:
                with m.Case(int(key)):
                    m.d.comb += out.eq(value)
        with m.Default():
            m.d.comb += out.eq(taps[0])
    return out


class Line:
    """A value and what it was in the cycles before."""

    def __init__(self, m: Module, value: Value, name: str) -> None:
        self.m, self.name = m, name
        self.stages: list[Value] = [value]

    def __getitem__(self, cycles: int) -> Value:
        while len(self.stages) <= cycles:
            old = self.stages[-1]
            stage = Signal(old.shape(), name=f"{self.name}_{len(self.stages)}", reset_less=True)
            self.m.d.sync += stage.eq(old)
            self.stages.append(stage)
        return self.stages[cycles]


class Lane(wiring.Component):
    """Inputs as `LANE_PORTS`. Outputs: `after`, the value after op1; `square`, a * a; `value`, after func and mask.

    Codes and formats stand still from the first element of an instruction to its last.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        super().__init__(
            {name: In(bits) for name, bits in LANE_PORTS.items()}
            | {"after": Out(32), "square": Out(32), "value": Out(32)}
        )

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        chip = self.chip
        read: dict[str, Value] = {}
        for x in OPERANDS:
            raw = getattr(self, f"{x}_raw")
            if x == "f":
                now: Value = raw
            else:
                form, scale = getattr(self, f"{x}_form"), getattr(self, f"{x}_scale")
                m.submodules[f"dequantise_{x}"] = d = Dequantise()
                m.d.comb += [d.code.eq(raw[:8]), d.scale.eq(scale), d.form.eq(form)]
                now = Signal(32, name=f"{x}_now")
                with m.Switch(form):
                    with m.Case(Format.FP32):
                        m.d.comb += now.eq(Mux(is_nan(raw), NAN, raw))
                    with m.Case(Format.INT32):
                        m.d.comb += now.eq(raw)
                    with m.Case(Format.E8M0):
                        m.d.comb += now.eq(e8m0(raw[:8]))
                    with m.Default():
                        m.d.comb += now.eq(d.value)
            late = Signal(32, name=f"{x}_late")
            m.d.comb += late.eq(Mux(self.dequantised, Line(m, now, f"{x}_read")[chip.fp32_multiply_cycles], now))
            read[x] = late
        a, b = read["a"], read["b"]

        exp2, shift = Exp2(chip.function_cycles), ShiftAdd(chip.fp32_add_cycles)
        m.submodules.exp2, m.submodules.shift = exp2, shift
        m.d.comb += [
            exp2.f.eq(a), exp2.power.eq(b),
            shift.x.eq(a), shift.y.eq(b), shift.x_power.eq(read["c"]), shift.y_power.eq(read["f"]),
        ]  # fmt: skip
        first = self._operations(m, "first", self.op1, a, b)
        first |= {
            int(Op1.SHIFTADD): shift.value, int(Op1.EXP2): exp2.value, int(Op1.WEIGHT): exp2.weight, 0: a,
        }  # fmt: skip
        equal, below = Signal(), Signal()
        m.d.sync += [equal.eq(a == b), below.eq(a.as_signed() < b.as_signed())]
        first |= {int(Op1.IEQ): equal, int(Op1.ILT): below}
        after = chosen(m, self.op1, first, 32, "after_op1")
        m.d.comb += self.after.eq(after)

        # C waits for op1.
        line = Line(m, read["c"], "c_wait")
        waits = {int(op): line[cycles] for op, cycles in op1_cycles(chip).items()}
        c = chosen(m, self.op1, waits, 32, "c_then")
        masked = Signal()
        m.d.comb += masked.eq(exp2.masked & (self.op1 == Op1.EXP2))
        second = self._operations(m, "second", self.op2, after, c)
        hidden = Line(m, masked, "hidden")[chip.fp32_multiply_cycles]
        second |= {int(Op2.MULM): Mux(hidden, 0, second[int(Op2.MUL)]), 0: after}
        v = chosen(m, self.op2, second, 32, "after_op2")

        rcp, root, fix = (kind(chip.function_cycles) for kind in (Reciprocal, ReciprocalRoot, Fix))
        m.submodules.rcp, m.submodules.root, m.submodules.fix = rcp, root, fix
        m.d.comb += [rcp.x.eq(v), root.x.eq(v), fix.x.eq(v)]
        functions = {0: v, int(Func.RCP): rcp.value, int(Func.RSQRT): root.value, int(Func.FIX): fix.value}
        result = chosen(m, self.func, functions, 32, "after_func")
        m.d.comb += self.value.eq(Mux(self.hide, MASKED, result))

        m.submodules.squarer = squarer = Fp32Multiply(chip.fp32_multiply_cycles)
        m.d.comb += [squarer.x.eq(a), squarer.y.eq(a), self.square.eq(squarer.value)]
        return m

    def _operations(self, m: Module, name: str, code: Value, x: Value, y: Value) -> dict[int, Value]:
        """Results of the codes 1..9, which op1 and op2 share, each after its own cycles."""
        adder, multiplier = Fp32Add(self.chip.fp32_add_cycles), Fp32Multiply(self.chip.fp32_multiply_cycles)
        m.submodules[f"{name}_adder"], m.submodules[f"{name}_multiplier"] = adder, multiplier
        m.d.comb += [
            adder.x.eq(x), adder.y.eq(Cat(y[:31], y[31] ^ (code == Op1.SUB))),
            multiplier.x.eq(x), multiplier.y.eq(y),
        ]  # fmt: skip
        more = Signal(name=f"{name}_more")
        either = Signal(name=f"{name}_nan")
        simple = {key: Signal(32, name=f"{name}_{key.name.lower()}", reset_less=True) for key in list(Op1)[4:10]}
        m.d.comb += [more.eq(order(x) > order(y)), either.eq(is_nan(x) | is_nan(y))]
        signed_more = Signal(name=f"{name}_signed")
        m.d.comb += signed_more.eq(x.as_signed() > y.as_signed())
        m.d.sync += [
            simple[Op1.MAX].eq(Mux(either, NAN, Mux(more, x, y))),
            simple[Op1.MIN].eq(Mux(either, NAN, Mux(more, y, x))),
            simple[Op1.IADD].eq(x + y),
            simple[Op1.ISUB].eq(x - y),
            simple[Op1.IMAX].eq(Mux(signed_more, x, y)),
            simple[Op1.IMIN].eq(Mux(signed_more, y, x)),
        ]
        results: dict[int, Value] = {int(key): value for key, value in simple.items()}
        return results | {
            int(Op1.ADD): adder.value, int(Op1.SUB): adder.value, int(Op1.MUL): multiplier.value,
        }  # fmt: skip


assert [int(op) for op in list(Op1)[:10]] == [int(op) for op in list(Op2)[:10]]

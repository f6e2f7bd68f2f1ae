"""VEC and PICK, instructions of the vector queue; `choice` has the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

from systolith.numerics import choose, philox
from systolith.numerics.blocks import quantise_block
from systolith.numerics.fp32 import add, maximum, minimum, mul, shift_add, sub, tree_sum
from systolith.numerics.functions import MASKED, ceil_fx, exp2fx, fix, rcp, rsqrt
from systolith.spec import BLOCK, REGISTERS

from .descriptor import Format, Space
from .instruction import POST, WAIT, Bits, Instruction, Kind, Queue, operand
from .sequencer import signed, wrap32

if TYPE_CHECKING:
    from .state import Slice, View

__all__ = ["Func", "Op1", "Op2", "Pick", "Red", "Vec"]


class Op1(IntEnum):
    """First operation, with B."""

    NONE = 0
    ADD = 1
    SUB = 2
    MUL = 3
    MAX = 4
    MIN = 5
    IADD = 6
    """INT32 modulo 2^32, as all of the next five."""
    ISUB = 7
    IMAX = 8
    """Signed."""
    IMIN = 9
    """Signed."""
    IEQ = 10
    """1 or 0."""
    ILT = 11
    """1 or 0, signed."""
    SHIFTADD = 12
    """Merge of A * 2^D[c] and B * 2^D[c+1] (numerics rule 7)."""
    EXP2 = 13
    """exp2fx(A - B * 2^16); a masked A gives +0, a NaN gives NaN."""
    WEIGHT = 14
    """Sampling weight of A under B (numerics rule 8), unsigned 32 bits."""


class Op2(IntEnum):
    """Second operation, with C."""

    NONE = 0
    ADD = 1
    SUB = 2
    MUL = 3
    MAX = 4
    MIN = 5
    IADD = 6
    ISUB = 7
    IMAX = 8
    IMIN = 9
    MULM = 10
    """Multiply, but an element that EXP2 found masked stays +0."""


class Func(IntEnum):
    """Function of the value."""

    NONE = 0
    RCP = 1
    RSQRT = 2
    FIX = 3
    """FP32 to INT32 in units of 2^-16."""


class Red(IntEnum):
    """Reduction over the inner dimension, to E = D[d+1]."""

    NONE = 0
    SUM = 1
    """Tree sum of the value after op1."""
    SUMSQ = 2
    """Tree sum of RNE(a * a), a the value read."""
    CEILMAX = 3
    """Largest INT32: -2^31 if MASKED, else ceil(max / 2^16)."""
    IMAX = 4
    ROWSCALE = 5
    """D is quantised with one scale for the inner row; the scale code goes to E."""
    ISUM = 6
    """Modulo 2^32."""
    FMAX = 7


Value = float | int
FLOAT_OPS: Final[dict[str, Callable[[float, float], float]]] = {
    "ADD": add, "SUB": sub, "MUL": mul, "MAX": maximum, "MIN": minimum, "MULM": mul,
}  # fmt: skip
INT_OPS: Final[dict[str, Callable[[int, int], int]]] = {
    "IADD": lambda x, y: signed(x + y),
    "ISUB": lambda x, y: signed(x - y),
    "IMAX": max,
    "IMIN": min,
    "IEQ": lambda x, y: int(x == y),
    "ILT": lambda x, y: int(x < y),
}
FUNCTIONS: Final[dict[Func, Callable[[float], Value]]] = {Func.RCP: rcp, Func.RSQRT: rsqrt, Func.FIX: fix}


@dataclass(frozen=True, kw_only=True)
class Vec(Instruction):
    """One pass over a tensor: two operations, one function, a mask, a reduction, a conversion on write.

    Iterates over A's extents, rows (i0, i1) in order; B, C, D take the same index with their own strides, 0
    broadcasts. E = D[d+1] takes the reduction at (i0, i1, 0). d = 0: no elementwise result. A row is read whole before
    anything of it is written, so D may be exactly A, B or C; other overlaps are illegal.
    Read: FP32; INT32 signed; E2M1, E4M3, INT8 dequantised (scale 2^0 without scales); E8M0. NaN is one pattern.
    1. op1(v, B). 2. op2(v, C). 3. func(v). 4. mask (with FIX only): column j = i2 + R[rj] is visible to row
    r = i0 * ext1 + i1 when j < hi and, if rw is not 0, j >= hi - R[rw]; hi = R[c] + r // group (group 0: R[c]), c being
    a register and no operand; all signed and exact; not visible: MASKED. 5. reduction. 6. write: D is FP32 or INT32 as
    the value is; or E2M1, E4M3, INT8 with scales, quantised by blocks of 32 of the inner dimension, a last part block
    filled up with zero codes, which are written.
    """

    OPCODE = 11
    NAME = "VEC"
    SUMMARY = "one pass of the vector unit"
    ERRORS = (
        "A, B, C not in SPAD, ACC or CELL; D, E not in SPAD or CELL; codes or scales not in SPAD.",
        "A reduction other than ROWSCALE whose E is not FP32 or INT32.",
        "An FP32 operation on INT32 values, or the reverse; a result whose format is not its value's.",
        "ROWSCALE with scales in D, or with an E that is not E8M0.",
    )
    LAYOUT = (
        WAIT,
        POST,
        operand("d", "d", Kind.DESC, "result; none: reduction only"),
        operand("a", "a", Kind.DESC, "value"),
        operand("b", "b", Kind.DESC, "operand of op1"),
        operand("c", "c", Kind.DESC, "operand of op2; exponents of SHIFTADD; with mask a register"),
        Bits("op1", 0, 4, text="first operation", choices=Op1),
        Bits("op2", 4, 4, text="second operation", choices=Op2),
        Bits("func", 8, 2, text="function", choices=Func),
        Bits("red", 10, 3, text="reduction", choices=Red),
        Bits("mask", 13, 1, text="1: mask the result of FIX"),
        Bits("rj", 14, 5, Kind.REG, "position of column 0"),
        Bits("rw", 19, 5, Kind.REG, "window; R0: none"),
        Bits("group", 24, 8, text="rows of one token; 0: all rows are one token"),
    )

    d: int = 0
    a: int
    b: int = 0
    c: int = 0
    op1: Op1 = Op1.NONE
    op2: Op2 = Op2.NONE
    func: Func = Func.NONE
    red: Red = Red.NONE
    mask: int = 0
    rj: int = 0
    rw: int = 0
    group: int = 0
    wait: int = 0
    post: int = 0

    def fault(self) -> str | None:
        """Refuse combinations that mean nothing."""
        shift = self.op1 is Op1.SHIFTADD
        if self.a == 0:
            return "a=0 means none; name a descriptor."
        if (self.b == 0) != (self.op1 is Op1.NONE):
            return f"b={self.b} and op1={self.op1.name.lower()}: an operation takes b, and b takes an operation."
        if shift and self.op2 is not Op2.NONE:
            return "op2 must be none with op1=shiftadd, whose exponents are D[c] and D[c+1]."
        if self.mask:
            if self.func is not Func.FIX or self.op2 is not Op2.NONE or shift or self.c >= REGISTERS:
                return "mask=1 needs func=fix, no op2, no shiftadd, and a register as c."
        elif self.rj or self.rw or self.group:
            return "rj, rw and group must be 0 without mask=1."
        elif (self.c == 0) != (self.op2 is Op2.NONE and not shift):
            return f"c={self.c} and op2={self.op2.name.lower()}: an operation takes c, and c takes an operation."
        if self.red is Red.NONE and self.d == 0:
            return "d=0 and red=none: there is no result."
        if self.red is Red.ROWSCALE and self.d == 0:
            return "red=rowscale needs d."
        if (self.red is not Red.NONE and self.d == 63) or (shift and self.c == 63):
            return "register 63 has no next one for E = D[d+1] or D[c+1]."
        return None

    @property
    def queue(self) -> Queue:
        """V."""
        return Queue.V

    def kind_of(self, bits: Bits) -> Kind:
        """With mask, c is a register."""
        return Kind.REG if bits.name == "c" and self.mask else bits.kind

    def operands(self) -> dict[str, int]:
        """Those that the operations use."""
        used = {"A": self.a}
        if self.d:
            used["D"] = self.d
        if self.b:
            used["B"] = self.b
        if self.c and not self.mask:
            used["C"] = self.c
        if self.red is not Red.NONE:
            used["E"] = self.d + 1
        if self.op1 is Op1.SHIFTADD:
            used["F"] = self.c + 1
        return used

    def execute(self, s: Slice) -> None:
        """Define VEC."""
        view = {letter: s.view(n) for letter, n in self.operands().items()}
        self._check_spaces(s, view)
        e0, e1, n = view["A"].ext
        if e0 * e1 * n == 0:
            return
        if self.red not in (Red.NONE, Red.ROWSCALE) and view["E"].format not in (Format.FP32, Format.INT32):
            raise s.trap(f"a reduction is written in FP32 or INT32, not in {view['E'].format.name}")
        for i0 in range(e0):
            for i1 in range(e1):
                read: dict[str, list[Any]] = {x: view[x].numbers(i0, i1, n) for x in "ABCF" if x in view}
                a = v = read["A"]
                masked = [False] * n
                if self.op1 is Op1.SHIFTADD:
                    self._want(s, "op1", (v, read["B"]), float)
                    self._want(s, "op1", (read["C"], read["F"]), int)
                    v = [shift_add(*t)[0] for t in zip(v, read["C"], read["B"], read["F"], strict=True)]
                elif self.op1 is Op1.EXP2:
                    self._want(s, "op1", (v, read["B"]), int)
                    masked = [x == MASKED for x in v]
                    v = [exp2fx(x, m) for x, m in zip(v, read["B"], strict=True)]
                elif self.op1 is Op1.WEIGHT:
                    self._want(s, "op1", (v, read["B"]), int)
                    v = [signed(choose.weight(x, m)) for x, m in zip(v, read["B"], strict=True)]
                elif self.op1 is not Op1.NONE:
                    v = self._apply(s, "op1", self.op1.name, v, read["B"])
                after_op1 = v
                if self.op2 is not Op2.NONE:
                    v = self._apply(s, "op2", self.op2.name, v, read["C"])
                if self.op2 is Op2.MULM:
                    v = [0.0 if hidden else x for x, hidden in zip(v, masked, strict=True)]
                if self.func is not Func.NONE:
                    self._want(s, "func", (v,), float)
                    v = [FUNCTIONS[self.func](x) for x in v]
                if self.mask:
                    hi = signed(s.regs[self.c]) + ((i0 * e1 + i1) // self.group if self.group else 0)
                    j0 = signed(s.regs[self.rj])
                    lo = hi - signed(s.regs[self.rw]) if self.rw else j0
                    v = [x if lo <= j < hi else MASKED for j, x in enumerate(v, start=j0)]
                if self.red is Red.ROWSCALE:
                    self._want(s, "red", (v,), float)
                    self._check_rowscale(s, view["D"], view["E"])
                    scale, codes = quantise_block(v, view["D"].format.numeric)
                    view["D"].store_codes(i0, i1, list(codes))
                    view["E"].store_codes(i0, i1, [scale])
                    continue
                if self.d:
                    self._write(s, view["D"], i0, i1, v)
                if self.red is not Red.NONE:
                    self._write(s, view["E"], i0, i1, [self._reduce(s, a, after_op1, v)])

    def _apply(self, s: Slice, stage: str, name: str, x: Sequence[Value], y: Sequence[Value]) -> list[Value]:
        """Apply an operation to a row."""
        if name in INT_OPS:
            self._want(s, stage, (x, y), int)
            return list(map(INT_OPS[name], x, y))  # type: ignore[arg-type]
        self._want(s, stage, (x, y), float)
        return list(map(FLOAT_OPS[name], x, y))

    def _reduce(self, s: Slice, a: Sequence[Value], after_op1: Sequence[Value], v: Sequence[Value]) -> Value:
        """Reduce a row to one value."""
        source = {Red.SUM: after_op1, Red.SUMSQ: a}.get(self.red, v)
        self._want(s, "red", (source,), float if self.red in (Red.SUM, Red.SUMSQ, Red.FMAX) else int)
        if self.red is Red.SUM:
            return tree_sum(after_op1)
        if self.red is Red.SUMSQ:
            return tree_sum([mul(x, x) for x in a])
        if self.red is Red.FMAX:
            return reduce(maximum, v)
        if self.red is Red.ISUM:
            return signed(sum(v))  # type: ignore[arg-type]
        largest = int(max(v))
        if self.red is Red.IMAX or largest == MASKED:
            return largest
        return ceil_fx(largest)

    def _write(self, s: Slice, d: View, i0: int, i1: int, v: Sequence[Value]) -> None:
        """Write a row in D's format."""
        if d.format in (Format.FP32, Format.INT32):
            self._want(s, f"a result in {d.format.name}", (v,), float if d.format is Format.FP32 else int)
            d.store_numbers(i0, i1, v)
            return
        if not d.scale:
            raise s.trap(f"VEC writes FP32, INT32, or elements with scale=1, not {d.format.name} with scale=0")
        self._want(s, f"a result in {d.format.name}", (v,), float)
        blocks = [quantise_block(v[k : k + BLOCK], d.format.numeric) for k in range(0, len(v), BLOCK)]
        codes = [code for _, block in blocks for code in block]
        d.store_codes(i0, i1, codes + [0] * (-len(codes) % BLOCK))
        d.store_scales(i0, i1, [scale for scale, _ in blocks])

    def _want(self, s: Slice, stage: str, rows: Sequence[Sequence[Value]], kind: type) -> None:
        """Trap unless all values of the rows are of one kind (a row has one kind)."""
        for values in rows:
            if not isinstance(values[0], kind):
                found, wanted = ("INT32", "FP32") if kind is float else ("FP32", "INT32")
                name = getattr(self, stage, None)
                what = f"{stage}={name.name.lower()}" if isinstance(name, IntEnum) else stage
                raise s.trap(f"{what} takes {wanted} values, not {found}")

    def _check_spaces(self, s: Slice, view: dict[str, View]) -> None:
        for letter, v in view.items():
            allowed: tuple[Space, ...] = (Space.SPAD, Space.CELL)
            if letter not in "DE":
                allowed = (Space.SPAD, Space.ACC, Space.CELL)
            what = ""
            if v.format.bits < 32:  # codes and scales
                allowed, what = (Space.SPAD,), f" in {v.format.name}"
            if v.space not in allowed:
                names = ", ".join(space.name for space in allowed)
                raise s.trap(f"operand {letter} of VEC{what} must be in {names}, not in {v.space.name}")

    def _check_rowscale(self, s: Slice, d: View, e: View) -> None:
        if not d.format.is_element or d.scale or e.format is not Format.E8M0:
            raise s.trap(
                f"red=rowscale writes E2M1, E4M3 or INT8 with scale=0 and an E8M0 scale, not {d.format.name} with "
                f"scale={d.scale} and {e.format.name}"
            )


@dataclass(frozen=True, kw_only=True)
class Pick(Instruction):
    """Choose the index of a token (numerics rule 8).

    A: logits FP32 [1, 1, V]. B: weights w, INT32 read as unsigned, [1, 1, V]. C: INT32 record {k, P low, P high, seed
    low, seed high}. D[c+1]: INT32, the position of the token to be made. D: INT32, gets the index.
    k > 0 keeps the k best by (value, lowest index), k >= V all; then the threshold by P / 2^32, the word u of Philox,
    the prefix. No weight left (temperature 0 is k = 1): the largest logit, the lowest index among equals.
    """

    OPCODE = 12
    NAME = "PICK"
    SUMMARY = "sample a token"
    ERRORS = ("Operands in other formats, or not in SPAD, ACC or CELL.", "More than one row.")
    LAYOUT = (
        WAIT,
        POST,
        operand("d", "d", Kind.DESC, "index"),
        operand("a", "a", Kind.DESC, "logits"),
        operand("b", "b", Kind.DESC, "weights"),
        operand("c", "c", Kind.DESC, "record; D[c+1] is the position"),
    )

    d: int
    a: int
    b: int
    c: int
    wait: int = 0
    post: int = 0

    def fault(self) -> str | None:
        """Refuse missing operands."""
        if 0 in (self.d, self.a, self.b, self.c) or self.c == 63:
            return "d, a, b and c must be descriptors 1..63, c at most 62: D[c+1] is the position."
        return None

    @property
    def queue(self) -> Queue:
        """V."""
        return Queue.V

    def operands(self) -> dict[str, int]:
        """All four, and the position as F."""
        return {"D": self.d, "A": self.a, "B": self.b, "C": self.c, "F": self.c + 1}

    def execute(self, s: Slice) -> None:
        """Define PICK."""
        view = {letter: s.view(n) for letter, n in self.operands().items()}
        for letter, v in view.items():
            wanted = Format.FP32 if letter == "A" else Format.INT32
            spaces = (Space.SPAD, Space.CELL) if letter == "D" else (Space.SPAD, Space.ACC, Space.CELL)
            if v.format is not wanted or v.space not in spaces:
                raise s.trap(f"operand {letter} of PICK is {v.format.name} in {v.space.name}, which it does not take")
        e0, e1, V = view["A"].ext
        if e0 * e1 * V == 0:
            return
        if e0 * e1 != 1:
            raise s.trap(f"PICK takes one row, not {e0 * e1}")
        logits = view["A"].numbers(0, 0, V)
        weights = [wrap32(w) for w in view["B"].codes(0, 0, V)]
        k, p_low, p_high, seed_low, seed_high = view["C"].codes(0, 0, 5)
        position = view["F"].codes(0, 0, 1)[0]
        if 0 < k < V:
            kept = set(choose.top_k(logits, k))
            weights = [w if i in kept else 0 for i, w in enumerate(weights)]
        u = philox.sample_word(seed_high << 32 | seed_low, position)
        if any(weights):
            index = choose.pick(weights, p_high << 32 | p_low, u)
        else:
            index = choose.argmax(logits)
        view["D"].store_codes(0, 0, [index])

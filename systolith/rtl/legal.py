"""What queue V must not run: spaces, formats and shapes that `isa` traps, and addresses outside a space.

Formats and shapes are known as soon as the instruction stands in its register: it then writes nothing. An address is
known at its access; a memory gives 0 for it and takes nothing.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from systolith.isa.choice import GROUP_MAX, TOPK_MAX
from systolith.isa.descriptor import Format, Space
from systolith.isa.vector import Func, Op1, Op2, Red

__all__ = ["bad_choice", "bad_copy", "bad_operands", "bad_values", "outside"]


def is_code(operand: Any) -> Value:
    """Whether an operand has elements of less than 32 bits."""
    return (operand.format != Format.FP32) & (operand.format != Format.INT32)


def bad_copy(d: Any, a: Any) -> Value:
    """Whether a COPY or a PUT joins tensors of two kinds, or ends within a block. An empty D is no copy."""
    some = (d.ext0 != 0) & (d.ext1 != 0) & (d.ext2 != 0)
    return (d.format != a.format) | (d.scale != a.scale) | (some & d.scale & (d.ext2[:5] != 0))


def bad_operands(m: Module, operands: dict[str, Any], written: Value) -> Signal:
    """Whether an operand lies where the unit does not reach. written : a bit each of a, b, c, f, d, e."""
    found = []
    for bit, x in enumerate("abcfde"):
        o = operands[x]
        near = (o.space == Space.SPAD) | (o.space == Space.CELL) | ((o.space == Space.ACC) & ~written[bit])
        far = o.base[32:].any() | (o.scale & o.sbase[32:].any()) | (o.via & o.list[32:].any())
        found.append(o.present & (~near | (is_code(o) & (o.space != Space.SPAD)) | far))
    out = Signal(name="bad_operands")
    m.d.comb += out.eq(Cat(*found).any())
    return out


def bad_values(m: Module, op: dict[str, Any], codes: dict[str, Value]) -> Signal:
    """Whether a VEC joins FP32 with INT32, or writes a value in a format that is not its own. codes : op1, op2, func,
    red."""
    integer = {x: op[x].format == Format.INT32 for x in "abcf"}
    op1, op2, func, red = (codes[x] for x in ("op1", "op2", "func", "red"))
    shift = op1 == Op1.SHIFTADD
    wants1 = (op1 >= Op1.IADD) & ~shift
    bad1 = (op1 != Op1.NONE) & ((integer["a"] != wants1) | (integer["b"] != wants1))
    bad1 |= shift & (~integer["c"] | ~integer["f"])
    after1, after2, value = (Signal(name=f"legal_{x}") for x in ("after1", "after2", "value"))
    wants2 = (op2 >= Op2.IADD) & (op2 <= Op2.IMIN)
    bad2 = (op2 != Op2.NONE) & ((after1 != wants2) | (integer["c"] != wants2))
    bad3 = (func != Func.NONE) & after2
    m.d.comb += [
        after1.eq(Mux(op1 == Op1.NONE, integer["a"], wants1 & (op1 != Op1.EXP2))),
        after2.eq(after1),
        value.eq(Mux(func == Func.NONE, after2, func == Func.FIX)),
    ]
    d, e = op["d"], op["e"]
    element = d.format <= Format.INT8
    writes = Mux(d.format == Format.INT32, value, ~value & ((d.format == Format.FP32) | (element & d.scale)))
    row = red == Red.ROWSCALE
    source = Mux(red == Red.SUM, after1, Mux(red == Red.SUMSQ, integer["a"], value))
    floats = (red == Red.SUM) | (red == Red.SUMSQ) | (red == Red.FMAX)
    reduced = (source != floats) & (e.format == Mux(floats, Format.FP32, Format.INT32))
    bad4 = Mux(
        row, value | ~element | d.scale | (e.format != Format.E8M0), (d.present & ~writes) | ((red != 0) & ~reduced)
    )
    out = Signal(name="bad_values")
    m.d.comb += out.eq(bad1 | bad2 | bad3 | bad4 | (op1 > Op1.WEIGHT) | (op2 > Op2.MULM))
    return out


def bad_choice(m: Module, op: dict[str, Any], kind: dict[str, Value], rows: Value, pairs: Value) -> Signal:
    """The same of PICK, TOPK and GROUP. kind : pick, topk, group. rows, pairs : of A, exact."""
    integer = {x: op[x].format == Format.INT32 for x in "abcfde"}
    logits = op["a"].format == Format.FP32
    n = op["a"].ext2
    pick = ~logits | ~integer["b"] | ~integer["c"] | ~integer["f"] | ~integer["d"] | (rows != 1)
    k = op["d"].ext2
    topk = ~logits | ~integer["d"] | (op["e"].format != Format.FP32) | (k == 0) | (k > TOPK_MAX) | (k > n)
    lists, keys = op["d"], op["e"]
    group = ~integer["a"] | ~integer["b"] | ~integer["d"] | ~integer["e"] | (pairs > GROUP_MAX)
    group |= (lists.ext0 < 2) | (lists.ext1 < 1) | (lists.ext2 < pairs)
    group |= (keys.ext0 < 1) | (keys.ext1 < 1) | (keys.ext2 < 4)
    out = Signal(name="bad_choice")
    m.d.comb += out.eq((kind["pick"] & pick) | (kind["topk"] & topk) | (kind["group"] & group))
    return out


def outside(enable: Value, address: Value, size: Value | int, limit: int) -> Value:
    """Whether an access of `size` bytes leaves a memory of `limit`. One of no bytes, as of rows of zeros, does not."""
    some = size != 0 if isinstance(size, Value) else Const(int(size != 0), 1)
    return enable & some & ((address + size)[:33] > limit)

"""Activations of a gated feed-forward: h = factor(gate) * up, factor by factor, for one tile of columns.

An activation is found by the operation of the graph that it serves. Others are added by packages of their own through
the entry point group "systolith.kernels" (docs/extending.md); the entry point's object is an `Activation`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from systolith.compiler.context import Cell, Constant, Context
from systolith.compiler.model import KERNELS
from systolith.isa.descriptor import Descriptor
from systolith.isa.vector import Func, Op1, Op2
from systolith.models.plugins import plugins
from systolith.spec.errors import ModelError

__all__ = [
    "ENTRY_POINTS",
    "Activation",
    "Tile",
    "activations",
    "clamp",
    "gelu_tanh",
    "silu",
    "swiglu_clamped",
    "times_sigmoid",
]

ENTRY_POINTS = "systolith.kernels"
"""Group of the entry points that add activations."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of the feed-forward's two work buffers: "gate_tile" holds the gate, "exp_tile" takes the factor.

    count : register of the number of rows, or 0 for all rows of the step.
    columns : of the tile; 0 where the model has one width of them.
    """

    ctx: Context
    count: int = 0
    columns: int = 0

    def view(self, name: str, fmt: str = "FP32") -> Descriptor:
        """Describe a buffer, [rows, 1, columns]; FP32 or INT32 (the same words)."""
        plan, n = self.ctx.plan, self.columns or self.ctx.plan.gate.nt
        return self.ctx.spad(name, fmt, (plan.rows, 1, n), (n, 0, 1), xe=0 if self.count else Cell.ROWS)

    def load(self, d: int, name: str, fmt: str = "FP32") -> None:
        """D[d] = a buffer, as many rows as there are."""
        self.ctx.b.load(d, self.view(name, fmt))
        if self.count:
            self.ctx.b.extent_r(d, 0, self.count)


@dataclass(frozen=True, slots=True)
class Activation:
    """op : the operation (gate, up) of the graph.    emit : writes the factor of gate_tile into exp_tile."""

    op: str
    emit: Callable[[Tile], None]


@functools.cache
def activations() -> Mapping[str, Activation]:
    """All activations by operation. Raises ModelError for an entry point that cannot be loaded or is none."""
    found = {a.op: a for a in (Activation("silu_mul", silu), Activation("gelu_mul", gelu_tanh))}
    for where, activation in plugins(ENTRY_POINTS, Activation):
        if activation.op in KERNELS or found.setdefault(activation.op, activation) is not activation:
            raise ModelError(
                f"{where} serves the operation {activation.op}, which has a kernel already; give it another operation, "
                "or uninstall one of the two"
            )
    return found


def silu(tile: Tile) -> None:
    """gate * sigmoid(gate)."""
    times_sigmoid(tile, "gate_tile")


def gelu_tanh(tile: Tile) -> None:
    """gate * sigmoid(u), u = gate * (gate * gate * c1 + c0), each step rounded."""
    b = tile.ctx.b
    with b.descriptors(3) as (gate, u, c):
        tile.load(gate, "gate_tile")
        tile.load(u, "exp_tile")
        b.load(c, tile.ctx.constant(Constant.GELU_1))
        b.vec(u, gate, gate, c, op1=Op1.MUL, op2=Op2.MUL)
        b.load(c, tile.ctx.constant(Constant.GELU_0))
        b.vec(u, u, c, gate, op1=Op1.ADD, op2=Op2.MUL)
    times_sigmoid(tile, "exp_tile")


def swiglu_clamped(tile: Tile) -> None:
    """g * sigmoid(alpha * g), g = min(gate, limit); up is clamped by `clamp`."""
    b = tile.ctx.b
    with b.descriptors(2) as (gate, limit):
        tile.load(gate, "gate_tile")
        b.load(limit, tile.ctx.constant(Constant.LIMIT))
        b.vec(gate, gate, limit, op1=Op1.MIN)
    times_sigmoid(tile, "gate_tile", Constant.ALPHA)


def clamp(tile: Tile) -> None:
    """gate_tile, which holds up by now, = min and max with the limit."""
    b = tile.ctx.b
    with b.descriptors(3) as (up, high, low):
        tile.load(up, "gate_tile")
        b.load(high, tile.ctx.constant(Constant.LIMIT))
        b.load(low, tile.ctx.constant(Constant.MINUS_LIMIT))
        b.vec(up, up, high, low, op1=Op1.MIN, op2=Op2.MAX)


def times_sigmoid(tile: Tile, source: str, factor: Constant | None = None) -> None:
    """exp_tile = gate * rcp(1 + exp2fx(fix(-u log2 e))), u a buffer, times a constant where one is given."""
    b, ctx = tile.ctx.b, tile.ctx
    with b.descriptors(5) as (gate, u, exp, x, y):
        tile.load(u, source)
        tile.load(exp, "exp_tile", "INT32")
        b.load(y, ctx.constant(Constant.MINUS_LOG2E))
        if factor is None:
            b.vec(exp, u, y, op1=Op1.MUL, func=Func.FIX)
        else:
            b.load(x, ctx.constant(factor))
            b.vec(exp, u, x, y, op1=Op1.MUL, op2=Op2.MUL, func=Func.FIX)
        tile.load(u, "exp_tile")
        b.load(x, ctx.constant(Constant.ZERO, "INT32"))
        b.load(y, ctx.constant(Constant.ONE))
        b.vec(u, exp, x, y, op1=Op1.EXP2, op2=Op2.ADD, func=Func.RCP)
        tile.load(gate, "gate_tile")
        b.vec(u, gate, u, op1=Op1.MUL)

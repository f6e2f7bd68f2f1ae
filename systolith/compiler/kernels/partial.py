"""Partials of attention in the scratchpad: o [tokens, G, dp], l and M [tokens, G], and how two become one."""

from __future__ import annotations

from dataclasses import dataclass

from systolith.compiler.context import Constant, Context
from systolith.compiler.kernels.segment import Tile
from systolith.isa.descriptor import Descriptor
from systolith.isa.sequencer import AluFn
from systolith.isa.vector import Op1

__all__ = ["Partial", "merge", "merge_halves", "start_empty"]


@dataclass(frozen=True)
class Partial:
    """Partial number `index` of a buffer; with `parity`, a register, that many times `group` partials further on."""

    ctx: Context
    index: int
    buffer: str = "partial"
    parity: int = 0
    group: int = 0

    def part(self, name: str) -> Descriptor:
        """Describe "o", "l" or "m"; a step is one partial (with parity: one turn)."""
        plan = self.ctx.plan
        g, dp, rows = plan.group_queries, plan.dp, plan.tile_tokens * plan.group_queries
        words = rows * (dp + 2)
        start = self.index * words + {"o": 0, "l": rows * dp, "m": rows * (dp + 1)}[name]
        step = words * (self.group if self.parity else 1)
        if name == "o":
            ext, stride = (plan.tile_tokens, g, plan.model.head_dim), (g * dp, dp, 1)
        else:
            ext, stride = (plan.tile_tokens, g, 1), (g, 1, 0)
        fmt = "INT32" if name == "m" else "FP32"
        return self.ctx.spad(self.buffer, fmt, ext, stride, offset=4 * start, step=step)

    def parts(self) -> tuple[Descriptor, Descriptor, Descriptor]:
        """Describe o, l and M."""
        return self.part("o"), self.part("l"), self.part("m")

    def load(self, ctx: Context, d: int, name: str) -> None:
        """D[d] = a part."""
        ctx.b.load(d, self.part(name))
        if self.parity:
            ctx.b.advance_r(d, 3, self.parity)

    def copy_from(self, ctx: Context, other: Partial, tile: Tile) -> None:
        """Copy another partial here, on V."""
        b = ctx.b
        with b.descriptors(2) as (d, a):
            for name in ("o", "l", "m"):
                self.load(ctx, d, name)
                other.load(ctx, a, name)
                b.extent_r(a, 0, tile.tokens)
                b.vec(d, a)


def start_empty(ctx: Context, partial: Partial, tile: Tile) -> None:
    """M = -2^31, l = +0, o = +0."""
    b = ctx.b
    g, tokens = ctx.plan.group_queries, ctx.plan.tile_tokens
    with b.descriptors(2) as (d, a):
        for name, which, width in (
            ("o", Constant.ZERO, ctx.plan.model.head_dim), ("l", Constant.ZERO, 1), ("m", Constant.EMPTY, 1),
        ):  # fmt: skip
            partial.load(ctx, d, name)
            fmt = "INT32" if name == "m" else "FP32"
            b.load(a, ctx.spad("consts", fmt, (tokens, g, width), (0, 0, 0), offset=4 * which))
            b.extent_r(a, 0, tile.tokens)
            b.vec(d, a)


def merge(ctx: Context, tile: Tile, out: Partial, left: Partial, right: Partial) -> None:
    """out = left merged with right (rule 7); out may be one of them."""
    b = ctx.b
    with b.pair() as exponents, b.descriptors(3) as (d, x, y):
        left.load(ctx, exponents, "m")
        right.load(ctx, exponents + 1, "m")
        for name in ("o", "l"):
            out.load(ctx, d, name)
            left.load(ctx, x, name)
            right.load(ctx, y, name)
            b.extent_r(x, 0, tile.tokens)
            b.vec(d, x, y, exponents, op1=Op1.SHIFTADD)
        out.load(ctx, d, "m")
        left.load(ctx, x, "m")
        b.extent_r(x, 0, tile.tokens)
        b.vec(d, x, exponents + 1, op1=Op1.IMAX)


def merge_halves(ctx: Context, tile: Tile, buffer: str, parity: int, count: int) -> None:
    """Merge the first half of `count` partials of a buffer of `group` with the second, each with its sibling, at once.

    One pass over all pairs takes little longer than over one. parity: register, as in `Partial`.
    """
    b, plan = ctx.b, ctx.plan
    rows, half = plan.tile_tokens * plan.group_queries, count // 2
    words = rows * (plan.dp + 2)

    def view(d: int, name: str, first: int) -> None:
        """D[d] = a part of half of the partials, [pairs, rows, width]."""
        fmt, width = ("INT32" if name == "m" else "FP32"), (plan.model.head_dim if name == "o" else 1)
        start = first * words + {"o": 0, "l": rows * plan.dp, "m": rows * (plan.dp + 1)}[name]
        stride = (words, plan.dp if name == "o" else 1, int(name == "o"))
        b.load(d, ctx.spad(buffer, fmt, (half, rows, width), stride, offset=4 * start, step=words * plan.group))
        b.advance_r(d, 3, parity)

    with b.pair() as exponents, b.descriptors(2) as (x, y), b.registers(1) as (rows_r,):
        b.alu(AluFn.MUL, rows_r, tile.tokens, plan.group_queries)
        view(exponents, "m", 0)
        view(exponents + 1, "m", half)
        for name in ("o", "l"):
            view(x, name, 0)
            view(y, name, half)
            b.extent_r(x, 1, rows_r)
            b.vec(x, x, y, exponents, op1=Op1.SHIFTADD)
        view(x, "m", 0)
        b.extent_r(x, 1, rows_r)
        b.vec(x, x, exponents + 1, op1=Op1.IMAX)

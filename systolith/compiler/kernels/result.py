"""What attention gives: the merged partial of some rows, with the sink, divided by l, quantised and sent."""

from __future__ import annotations

from typing import Protocol

from systolith.compiler.context import Constant, Context
from systolith.compiler.kernels.dump import store_rows, tap
from systolith.compiler.kernels.segment import Tile
from systolith.compiler.memory import sink_layers
from systolith.isa.sequencer import AluFn
from systolith.isa.vector import Func, Op1

__all__ = ["Result", "finish"]


class Result(Protocol):
    """A merged partial."""

    def load(self, ctx: Context, d: int, name: str) -> None:
        """D[d] = "o" [tokens, G, d], "l" or "m" [tokens, G, 1]."""


def finish(ctx: Context, tile: Tile, result: Result) -> None:
    """Merge the sink, divide by l, quantise and send."""
    b, plan = ctx.b, ctx.plan
    model, g, dp, d = plan.model, plan.group_queries, plan.dp, plan.model.head_dim
    fmt, tokens = plan.profile.activations, plan.tile_tokens
    if model.sinks is not None or plan.profile.sink is not None:
        _sink(ctx, tile, result)
    with b.descriptors(5) as (a, inverse, stage, out, wide):
        result.load(ctx, a, "l")
        b.extent_r(a, 0, tile.tokens)
        b.load(inverse, ctx.spad("inverse", "FP32", (tokens, g, 1), (g, 1, 0)))
        b.vec(inverse, a, func=Func.RCP)
        result.load(ctx, a, "o")
        b.extent_r(a, 0, tile.tokens)
        ctx.load_ring(stage, ctx.stage(fmt, (tokens, g, dp), (g * dp, dp, 1), scales=True), ctx.r_stage)
        b.extent_r(stage, 0, tile.tokens)
        if tap(ctx):
            name = "attention" if model.latent is None else "latent"
            view = ctx.spad("dump_head", "FP32", (tokens, g, d), (g * dp, dp, 1), step=0)
            b.load(wide, view)
            b.vec(wide, a, inverse, op1=Op1.MUL)
            with tile.unit.head() as head, tile.segment.row() as row:
                store_rows(ctx, name, view, step=g * dp, index=head, row=row, tile=tile.first,
                           extent=tile.tokens)  # fmt: skip
            b.extent_r(wide, 0, tile.tokens)
            b.vec(stage, wide, wait="stage_free", post="stage_full")
        else:
            b.vec(stage, a, inverse, op1=Op1.MUL, wait="stage_free", post="stage_full")
        width = model.heads * dp
        b.load(
            out,
            ctx.spad("attention", fmt, (tokens, g, dp), (width, dp, 1), scales=plan.rows * width, step=g * dp),
        )
        with tile.unit.head() as head, tile.segment.row() as row:
            b.advance_r(out, 0, row)
            b.advance_r(out, 3, head)
        b.advance_r(out, 0, tile.first)
        b.extent_r(out, 0, tile.tokens)
        b.put(out, stage, wait="stage_full", post="stage_free")
    ctx.bump(ctx.r_stage)


def _sink(ctx: Context, tile: Tile, result: Result) -> None:
    """Merge the head's sink: M_s and l_s from the table, o = +0."""
    b, plan = ctx.b, ctx.plan
    g, heads = plan.group_queries, plan.model.heads
    with b.pair() as exponents, b.descriptors(2) as (value, other), b.registers(1) as (place,):
        # The table has, layer by layer where layers differ, M_s of all heads and then l_s.
        b.set(place, 0)
        if sink_layers(plan) > 1:
            b.alu(AluFn.MUL, place, ctx.r_layer, 2 * plan.model.kv_heads)
        with tile.unit.head() as head:
            b.alu_r(AluFn.ADD, place, place, head)
        for part in ("o", "l"):
            result.load(ctx, exponents, "m")
            b.load(exponents + 1, ctx.spad("sinks", "INT32", (1, g, 1), (0, 1, 0), step=g))
            b.advance_r(exponents + 1, 3, place)
            if part == "o":
                b.load(other, ctx.constant(Constant.ZERO))
            else:
                b.load(other, ctx.spad("sinks", "FP32", (1, g, 1), (0, 1, 0), offset=4 * heads, step=g))
                b.advance_r(other, 3, place)
            result.load(ctx, value, part)
            b.extent_r(value, 0, tile.tokens)
            b.vec(value, value, other, exponents, op1=Op1.SHIFTADD)

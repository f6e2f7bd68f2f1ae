"""The two projections that add to the residual stream: o after attention, down after the feed-forward."""

from __future__ import annotations

from systolith.compiler.context import Cell, Context, Norm
from systolith.compiler.kernels.columns import columns, made_tiles, pass_on, place_columns
from systolith.compiler.kernels.linear import bias_tile, operand, product, sums
from systolith.compiler.kernels.norm import (
    branch,
    finish_norm,
    load_gains,
    load_residual,
    norm_branch,
    residual,
    residual_tiles,
    send_tile,
    store_residual,
    tap_residual,
)
from systolith.compiler.plan import LinearPlan
from systolith.compiler.team import later_columns
from systolith.isa.instruction import Queue
from systolith.isa.vector import Op1, Op2

__all__ = ["add_columns", "project"]


def project(ctx: Context, linear: LinearPlan, source: str, which: str) -> None:
    """x = RNE(x + source times w), tile by tile, each sent on as the operand `which` of the next norm."""
    b, plan = ctx.b, ctx.plan
    rows, xe = ctx.rows, Cell.ROWS
    b.tensor_name = linear.name
    load_gains(ctx, Norm.SECOND if which == "b" else Norm.NEXT)
    b.sync(Queue.M, wait="operand")
    apart = plan.model.post_norms is not None
    later = later_columns(plan) if source == "h" else 0
    if linear.unit:
        whole = columns(ctx, linear, "x", (rows, 1, plan.made(linear)), (-1, 0, 1), xe=xe)
        with made_tiles(ctx, linear) as place, b.descriptors(1) as (y,):
            product(ctx, linear, operand(ctx, source, linear.k, plan.profile.activations, rows, xe), rows, xe,
                    later=later)  # fmt: skip
            place_columns(ctx, y, columns(ctx, linear, "x", (rows, 1, linear.nt), (-1, 0, 1)), place)
            _finish(ctx, linear, y)
        pass_on(ctx, linear, whole)
    elif apart:
        with ctx.cell_loop(Cell.O_TILES) as tile, b.descriptors(1) as (y,):
            product(ctx, linear, operand(ctx, source, linear.k, plan.profile.activations, rows, xe), rows, xe)
            b.load(y, branch(ctx))
            b.advance_r(y, 3, tile)
            _finish(ctx, linear, y)
        norm_branch(ctx, Norm.POST_O if which == "b" else Norm.POST_DOWN)
    with residual_tiles(ctx) as tile, b.descriptors(2) as (x, y):
        if not (apart or linear.unit):
            product(ctx, linear, operand(ctx, source, linear.k, plan.profile.activations, rows, xe), rows, xe,
                    later=later)  # fmt: skip
        load_residual(ctx, tile)
        residual(ctx, x, tile)
        if linear.unit:
            add_columns(ctx, linear, tile)
        elif apart:
            b.load(y, branch(ctx))
            b.advance_r(y, 3, tile)
            b.vec(x, x, y, op1=Op1.ADD)
        else:
            _finish(ctx, linear, x, x)
        tap_residual(ctx, "x_attention" if linear.name == "o" else "x_ffn", tile)
        send_tile(ctx, which, tile)
        store_residual(ctx, tile)
    finish_norm(ctx, which, ahead=int(which == "a"))
    b.tensor_name = ""


def add_columns(ctx: Context, linear: LinearPlan, tile: int) -> None:
    """x += what has come together of a residual tile."""
    b, nt = ctx.b, ctx.plan.tile
    with b.descriptors(2) as (x, y):
        residual(ctx, x, tile)
        b.load(y, columns(ctx, linear, "x", (ctx.rows, 1, nt), (-1, 0, 1), step=nt, xe=Cell.ROWS))
        b.advance_r(y, 3, tile)
        b.vec(x, x, y, op1=Op1.ADD)


def _finish(ctx: Context, linear: LinearPlan, out: int, x: int = 0) -> None:
    """D[out] = sums + bias, or that + D[x]."""
    b = ctx.b
    with sums(ctx, linear, ctx.rows, Cell.ROWS) as s:
        if ctx.plan.model.bias(linear.name):
            with bias_tile(ctx, linear) as bias:
                b.vec(out, s.d, bias, x, op1=Op1.ADD, op2=Op2.ADD if x else Op2.NONE, wait=f"{s.wait} load_full",
                      post=f"{s.post} load_free")  # fmt: skip
        else:
            b.vec(out, s.d, x, op1=Op1.ADD if x else Op1.NONE, wait=s.wait, post=s.post)

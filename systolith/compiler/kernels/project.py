"""The two projections that add to the residual stream: o after attention, down after the feed-forward."""

from __future__ import annotations

from systolith.compiler.context import Cell, Context, Norm
from systolith.compiler.kernels.dump import store_rows, tap
from systolith.compiler.kernels.linear import bias_tile, operand, product, sums
from systolith.compiler.kernels.norm import (
    finish_norm,
    load_gains,
    load_residual,
    residual,
    send_tile,
    store_residual,
)
from systolith.compiler.plan import LinearPlan
from systolith.isa.instruction import Queue
from systolith.isa.vector import Op1, Op2

__all__ = ["project"]


def project(ctx: Context, linear: LinearPlan, source: str, which: str) -> None:
    """x = RNE(x + source times w), tile by tile, each sent on as the operand `which` of the next norm."""
    b, plan = ctx.b, ctx.plan
    rows, xe = ctx.rows, Cell.ROWS
    b.tensor_name = linear.name
    load_gains(ctx, Norm.SECOND if which == "b" else Norm.NEXT)
    b.sync(Queue.M, wait="operand")
    with ctx.cell_loop(Cell.O_TILES) as tile, b.descriptors(1) as (x,):
        product(ctx, linear, operand(ctx, source, linear.k, plan.profile.activations, rows, xe), rows, xe)
        if not plan.x_resident:
            load_residual(ctx, tile)
            b.sync(Queue.V, wait="load_full")
        with sums(ctx, linear, rows, xe) as s:
            residual(ctx, x, tile)
            if plan.model.bias(linear.name):
                with bias_tile(ctx, linear) as bias:
                    b.vec(x, s.d, bias, x, op1=Op1.ADD, op2=Op2.ADD, wait=f"{s.wait} load_full",
                          post=f"{s.post} load_free")  # fmt: skip
            else:
                b.vec(x, s.d, x, op1=Op1.ADD, wait=s.wait, post=s.post)
        if tap(ctx):
            name = "x_attention" if linear.name == "o" else "x_ffn"
            nt = plan.o.nt
            stride = ctx.shard if plan.x_resident else nt
            view = ctx.spad("x", "FP32", (rows, 1, nt), (stride, 0, 1), step=nt, xe=xe)
            store_rows(ctx, name, view, first=Cell.O_FIRST, step=nt, index=tile, advance=tile if plan.x_resident else 0)
        send_tile(ctx, which, tile)
        if not plan.x_resident:
            store_residual(ctx, tile)
    finish_norm(ctx, which, ahead=int(which == "a"))
    b.tensor_name = ""

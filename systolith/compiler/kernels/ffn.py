"""The gated feed-forward: h = factor(gate) * up tile by tile, the factor an activation's, quantised and sent."""

from __future__ import annotations

from systolith.compiler.context import Cell, Constant, Context, Counter
from systolith.compiler.kernels.activation import Tile, activations
from systolith.compiler.kernels.dump import store_rows, tap
from systolith.compiler.kernels.linear import Sums, bias_tile, operand, product, sums
from systolith.compiler.kernels.norm import make_r
from systolith.compiler.plan import LinearPlan
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.vector import Func, Op1, Op2

__all__ = ["ffn"]

_ARRIVAL = ("operand", Counter.OPERAND_H)


def ffn(ctx: Context) -> None:
    """Make and send this slice's columns of h."""
    b, plan = ctx.b, ctx.plan
    rows, xe, fmt = ctx.rows, Cell.ROWS, plan.profile.activations
    b.tensor_name = "ffn"
    b.sync(Queue.M, wait="operand")
    if plan.profile.deferred_norm:
        make_r(ctx, "b")
    with ctx.cell_loop(Cell.FFN_TILES) as tile:
        b.tensor_name = "gate"
        product(ctx, plan.gate, operand(ctx, "b", ctx.hidden, fmt, rows, xe), rows, xe)
        _activate_gate(ctx)
        b.tensor_name = "up"
        product(ctx, plan.up, operand(ctx, "b", ctx.hidden, fmt, rows, xe), rows, xe)
        _times_up(ctx, tile)
    if not plan.one_tile(plan.gate):
        ctx.arrive(_ARRIVAL)
    b.tensor_name = ""


def _tile(ctx: Context, name: str, fmt: str = "FP32", xe: int = 0) -> Descriptor:
    n = ctx.plan.gate.nt
    return ctx.spad(name, fmt, (ctx.rows, 1, n), (n, 0, 1), xe=xe)


def _activate_gate(ctx: Context) -> None:
    """exp_tile = the factor of g = sums * r + bias."""
    b, plan = ctx.b, ctx.plan
    rows, xe = ctx.rows, Cell.ROWS
    with b.descriptors(2) as (gate, r), sums(ctx, plan.gate, rows, xe) as s:
        if not plan.gate_apart:
            _silu_of_sums(ctx, s)
            return
        b.load(gate, _tile(ctx, "gate_tile", xe=xe))
        _finish_sums(ctx, plan.gate, gate, s.d, s.wait, s.post, r)
    activations()[plan.model.activation].emit(Tile(ctx))


def _silu_of_sums(ctx: Context, s: Sums) -> None:
    """exp_tile = silu(g), g = sums * r: read from the accumulator twice, so that it need not be stored."""
    b, rows, xe = ctx.b, ctx.rows, Cell.ROWS
    deferred = ctx.plan.profile.deferred_norm
    with b.descriptors(5) as (exp, minus, one, r, zero):
        b.load(exp, _tile(ctx, "exp_tile", "INT32", xe))
        b.load(minus, ctx.constant(Constant.MINUS_LOG2E))
        if deferred:
            b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
            b.vec(exp, s.d, r, minus, op1=Op1.MUL, op2=Op2.MUL, func=Func.FIX, wait=s.wait)
        else:
            b.vec(exp, s.d, minus, op1=Op1.MUL, func=Func.FIX, wait=s.wait)
        b.load(zero, ctx.constant(Constant.ZERO, "INT32"))
        b.load(one, ctx.constant(Constant.ONE))
        b.load(minus, _tile(ctx, "exp_tile", xe=xe))
        b.vec(minus, exp, zero, one, op1=Op1.EXP2, op2=Op2.ADD, func=Func.RCP)
        if deferred:
            b.vec(minus, s.d, r, minus, op1=Op1.MUL, op2=Op2.MUL, post=s.post)
        else:
            b.vec(minus, s.d, minus, op1=Op1.MUL, post=s.post)


def _times_up(ctx: Context, tile: int) -> None:
    """Send quantise(silu * u), u = sums * r + bias."""
    b, plan = ctx.b, ctx.plan
    rows, xe, nt, fmt = ctx.rows, Cell.ROWS, plan.up.nt, plan.profile.activations
    with b.descriptors(5) as (stage, silu, r, up, out), sums(ctx, plan.up, rows, xe) as s:
        ctx.load_ring(stage, ctx.stage(fmt, (rows, 1, nt), (nt, 0, 1), scales=True, xe=xe), ctx.r_stage)
        b.load(silu, _tile(ctx, "exp_tile", xe=xe))
        if tap(ctx) or plan.model.bias("up"):
            b.load(up, _tile(ctx, "gate_tile", xe=xe))
            _finish_sums(ctx, plan.up, up, s.d, s.wait, s.post, r)
            b.vec(up, up, silu, op1=Op1.MUL)
            if tap(ctx):
                store_rows(ctx, "h", _tile(ctx, "gate_tile", xe=xe), first=Cell.FFN_FIRST, step=nt, index=tile)
            b.vec(stage, up, wait="stage_free", post="stage_full")
        elif plan.profile.deferred_norm:
            b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
            b.vec(stage, s.d, r, silu, op1=Op1.MUL, op2=Op2.MUL, wait=f"{s.wait} stage_free",
                  post=f"{s.post} stage_full")  # fmt: skip
        else:
            b.vec(stage, s.d, silu, op1=Op1.MUL, wait=f"{s.wait} stage_free", post=f"{s.post} stage_full")
        width = plan.down.k
        b.load(
            out,
            ctx.spad("h", fmt, (rows, 1, nt), (width, 0, 1), scales=rows * width, step=nt, xb=Cell.FFN_FIRST, xe=xe),
        )
        b.advance_r(out, 3, tile)
        arrival = _ARRIVAL if plan.one_tile(plan.gate) else None
        b.put(out, stage, wait="stage_full", post="stage_free", arrival=arrival)
    ctx.bump(ctx.r_stage)


def _finish_sums(ctx: Context, linear: LinearPlan, out: int, source: int, wait: str, post: str, r: int) -> None:
    """D[out] = sums * r + bias; `r` is a free descriptor register."""
    b, deferred = ctx.b, ctx.plan.profile.deferred_norm
    op1, left = (Op1.MUL, r) if deferred else (Op1.NONE, 0)
    if deferred:
        b.load(r, ctx.spad("r", "FP32", (ctx.rows, 1, 1), (1, 0, 0)))
    if ctx.plan.model.bias(linear.name):
        with bias_tile(ctx, linear) as bias:
            b.vec(out, source, left, bias, op1=op1, op2=Op2.ADD, wait=f"{wait} load_full", post=f"{post} load_free")
    else:
        b.vec(out, source, left, op1=op1, wait=wait, post=post)

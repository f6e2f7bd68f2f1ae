"""A mixture of experts: h of every pair of a row and one of its experts, and the weighted sum of what they give.

All slices work on every expert: its columns are dealt out like those of any other matrix. An expert is read once a
step, for all rows that chose it; its rows are found by the order that GROUP made (kernels/route.py). h lies in that
order; what `down` gives goes back to the place of the pair, where the tree over a row's choices adds it up.
"""

from __future__ import annotations

from systolith.compiler.context import Cell, Constant, Context, Counter, Norm
from systolith.compiler.kernels.activation import Tile, clamp, silu, swiglu_clamped
from systolith.compiler.kernels.linear import bias_tile, finish, load_stream, operand, product, sums
from systolith.compiler.kernels.norm import (
    finish_norm,
    load_gains,
    load_residual,
    residual,
    send_tile,
    store_residual,
    tap_residual,
)
from systolith.compiler.kernels.route import Entry, each_entry
from systolith.compiler.plan import LinearPlan
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.vector import Op1, Op2

__all__ = ["experts_down", "experts_up"]


def experts_up(ctx: Context) -> None:
    """Make and send this slice's columns of h, [pairs, inner] in the order of experts."""
    b, plan = ctx.b, ctx.plan
    with each_entry(ctx, wait="decided") as entry:
        for linear in (plan.gate, plan.up):
            _point(ctx, linear, entry)
        with ctx.cell_loop(Cell.FFN_TILES) as tile:
            b.tensor_name = "expert gate"
            _product_of_rows(ctx, plan.gate, entry)
            _gate(ctx, entry)
            b.tensor_name = "expert up"
            _product_of_rows(ctx, plan.up, entry)
            _send_h(ctx, entry, tile)
    ctx.arrive(("operand", Counter.OPERAND_H))
    b.tensor_name = ""


def _point(ctx: Context, linear: LinearPlan, entry: Entry, tile: int = 0) -> None:
    """Point the streams of a class at the expert's matrix (and there at a tile)."""
    b = ctx.b
    load_stream(ctx, linear)
    for name in (linear.name, f"bias_{linear.name}"):
        if name in ctx.streams:
            b.advance_r(ctx.streams[name], 3, entry.matrix)
            if tile:
                b.advance_r(ctx.streams[name], 1, tile)


def _product_of_rows(ctx: Context, linear: LinearPlan, entry: Entry) -> None:
    """Multiply the rows of b that chose the expert by the next tile."""
    rows, hidden, fmt = ctx.rows, ctx.hidden, ctx.plan.profile.activations
    source = ctx.spad("b", fmt, (rows, 1, hidden), (hidden, 0, 1), scales=rows * hidden, via=entry.rows)
    product(ctx, linear, source, rows, 0, count=entry.count)


def _finish_sums(ctx: Context, linear: LinearPlan, entry: Entry, out: int) -> None:
    """D[out] = sums * r + bias, rows of the entry."""
    with ctx.b.descriptors(1) as (r,), sums(ctx, linear, ctx.rows, 0, count=entry.count) as s:
        ctx.b.load(r, ctx.spad("r", "FP32", (ctx.rows, 1, 1), (1, 0, 0), via=entry.rows))
        finish(ctx, linear, s, out, r if ctx.plan.profile.deferred_norm else 0)


def _gate(ctx: Context, entry: Entry) -> None:
    """exp_tile = the factor of the gate of the entry's rows."""
    work = Tile(ctx, entry.count, ctx.plan.gate.nt)
    with ctx.b.descriptors(1) as (gate,):
        ctx.b.load(gate, work.view("gate_tile"))
        _finish_sums(ctx, ctx.plan.gate, entry, gate)
    emit = {"silu": silu, "swiglu_clamped": swiglu_clamped}[ctx.experts.activation]
    emit(work)


def _send_h(ctx: Context, entry: Entry, tile: int) -> None:
    """Send quantise(up' * exp_tile) to the rows of the entry in h."""
    b, plan = ctx.b, ctx.plan
    rows, nt, fmt = ctx.rows, plan.up.nt, plan.profile.activations
    clamped, work = ctx.experts.activation == "swiglu_clamped", Tile(ctx, entry.count, nt)
    with b.descriptors(5) as (stage, exp, up, x, out):
        ctx.load_ring(stage, ctx.stage(fmt, (rows, 1, nt), (nt, 0, 1), scales=True), ctx.r_stage)
        b.load(exp, work.view("exp_tile"))
        b.load(up, work.view("gate_tile"))
        _finish_sums(ctx, plan.up, entry, up)
        b.extent_r(up, 0, entry.count)
        if clamped:
            clamp(work)
            b.load(x, ctx.constant(Constant.ONE))
            b.vec(stage, up, x, exp, op1=Op1.ADD, op2=Op2.MUL, wait="stage_free", post="stage_full")
        else:
            b.vec(stage, up, exp, op1=Op1.MUL, wait="stage_free", post="stage_full")
        b.extent_r(stage, 0, entry.count)
        width, pairs = plan.down.k, plan.pairs
        b.load(out, ctx.spad("h", fmt, (pairs, 1, nt), (width, 0, 1), scales=pairs * width, step=nt,
                             xb=Cell.FFN_FIRST))  # fmt: skip
        b.advance_r(out, 0, entry.first)
        b.advance_r(out, 3, tile)
        b.extent_r(out, 0, entry.count)
        b.put(out, stage, wait="stage_full", post="stage_free")
    ctx.bump(ctx.r_stage)


def experts_down(ctx: Context) -> None:
    """x = RNE(x + sum of weight * (h times w) over a row's experts), tile by tile, each sent on to the next norm."""
    b, plan = ctx.b, ctx.plan
    rows, xe = ctx.rows, Cell.ROWS
    b.tensor_name = "expert down"
    load_gains(ctx, Norm.NEXT)
    b.sync(Queue.M, wait="operand")
    with ctx.cell_loop(Cell.O_TILES) as tile:
        with each_entry(ctx) as entry:
            _down(ctx, entry, tile)
        if plan.shared is not None:
            source = operand(ctx, "h_shared", plan.shared.down.k, plan.profile.activations, rows, xe)
            product(ctx, plan.shared.down, source, rows, xe)
        load_residual(ctx, tile)
        _add_choices(ctx, tile)
        tap_residual(ctx, "x_ffn", tile)
        send_tile(ctx, "a", tile)
        store_residual(ctx, tile)
    finish_norm(ctx, "a", ahead=1)
    b.tensor_name = ""


def _down(ctx: Context, entry: Entry, tile: int) -> None:
    """y = weight * (h times w) of the entry's pairs, each at its place."""
    b, plan = ctx.b, ctx.plan
    linear, rows, pairs, nt = plan.down, ctx.rows, plan.pairs, plan.down.nt
    _point(ctx, linear, entry, tile)
    source = operand(ctx, "h", linear.k, plan.profile.activations, pairs, 0)
    product(ctx, linear, source, rows, 0, first=entry.first, count=entry.count)
    with b.descriptors(2) as (y, weight), sums(ctx, linear, rows, 0, count=entry.count) as s:
        b.load(y, ctx.spad("y", "FP32", (pairs, 1, nt), (nt, 0, 1), via=entry.pairs))
        b.load(weight, ctx.spad("route_w", "FP32", (pairs, 1, 1), (1, 0, 0), via=entry.pairs))
        if plan.model.bias(linear.name):
            with bias_tile(ctx, linear) as bias:
                b.vec(y, s.d, bias, weight, op1=Op1.ADD, op2=Op2.MUL, wait=f"{s.wait} load_full",
                      post=f"{s.post} load_free")  # fmt: skip
        else:
            b.vec(y, s.d, weight, op1=Op1.MUL, wait=s.wait, post=s.post)


def _add_choices(ctx: Context, tile: int) -> None:
    """x += the tree over the choices of a row. A level adds in place; an odd last one stays for the next level."""
    b, rows, nt, k = ctx.b, ctx.rows, ctx.plan.down.nt, ctx.experts.top_k

    def choices(first: int, every: int, count: int) -> Descriptor:
        return ctx.spad("y", "FP32", (rows, count, nt), (k * nt, every * nt, 1), offset=4 * first * nt, xe=Cell.ROWS)

    with b.descriptors(3) as (left, right, x):
        every = 1
        while 2 * every < k:
            pairs = (-(-k // every)) // 2
            b.load(left, choices(0, 2 * every, pairs))
            b.load(right, choices(every, 2 * every, pairs))
            b.vec(left, left, right, op1=Op1.ADD)
            every *= 2
        residual(ctx, x, tile)
        b.load(left, choices(0, 1, 1))
        b.load(right, choices(every if every < k else 0, 1, 1))
        if ctx.plan.shared is not None:
            if every < k:
                b.vec(left, left, right, op1=Op1.ADD)
            with sums(ctx, ctx.plan.shared.down, rows, Cell.ROWS) as s:
                b.vec(x, left, s.d, x, op1=Op1.ADD, op2=Op2.ADD, wait=s.wait, post=s.post)
        elif every < k:
            b.vec(x, left, right, x, op1=Op1.ADD, op2=Op2.ADD)
        else:
            b.vec(x, left, x, op1=Op1.ADD)

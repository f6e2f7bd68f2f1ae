"""Queries, keys and values: projection, deferred norm, head norms, rotary, quantisation, and the gather to the slices
that have the head's units.

A slice makes whole heads, or as many columns as any other and gets the rest of its heads (kernels/columns.py). A head's
columns come in tiles; they are collected in FP32, turned, quantised and sent.
"""

from __future__ import annotations

from systolith.compiler.context import Cell, Context, Counter
from systolith.compiler.kernels.columns import columns, made_tiles, pass_on, place_columns
from systolith.compiler.kernels.dump import store_rows, tap
from systolith.compiler.kernels.head_norm import give_back_head_gains, load_head_gains, norm_head
from systolith.compiler.kernels.linear import finish, operand, product, sums
from systolith.compiler.kernels.norm import make_r
from systolith.compiler.plan import LinearPlan
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn
from systolith.isa.vector import Op1, Op2, Red

__all__ = ["qkv", "rotate", "rotate_and_quantise"]

_CELLS = {
    "q": (Cell.Q_FIRST, Cell.Q_HEADS),
    "k": (Cell.K_FIRST, Cell.K_HEADS),
    "v": (Cell.V_FIRST, Cell.V_HEADS),
}


def qkv(ctx: Context) -> None:
    """Make and send this slice's heads of q, k and v."""
    b, plan = ctx.b, ctx.plan
    b.tensor_name = "qkv"
    b.sync(Queue.M, wait="operand")
    if plan.profile.deferred_norm:
        make_r(ctx, "a")
    normed = plan.model.head_norms is not None
    if normed:
        load_head_gains(ctx)
    if plan.qkv is not None:
        _project_evenly(ctx, plan.qkv)
    for linear in (plan.q, plan.k, plan.v):
        b.tensor_name = linear.name
        first, count = _CELLS[linear.name]
        with ctx.cell_loop(count) as head:
            if plan.qkv is None:
                _project_head(ctx, linear)
            else:
                _take_head(ctx, plan.qkv, linear.name, head)
            if linear.name == "v":
                _send_values(ctx, first, head)
            else:
                if normed:
                    norm_head(ctx, linear.name)
                _send_codes(ctx, linear.name, first, head)
    if normed:
        give_back_head_gains(ctx)
    ctx.arrive(("operand", Counter.OPERAND_Q), ("arrived", Counter.KV_FRESH))
    b.tensor_name = ""


def _project_evenly(ctx: Context, linear: LinearPlan) -> None:
    """Make this slice's columns of q, k and v, and bring those of its heads together."""
    b, plan = ctx.b, ctx.plan
    rows, xe = ctx.rows, Cell.ROWS
    b.tensor_name = "qkv"
    with made_tiles(ctx, linear) as place, b.descriptors(2) as (out, r):
        product(ctx, linear, operand(ctx, "a", ctx.hidden, plan.profile.activations, rows, xe), rows, xe)
        place_columns(ctx, out, columns(ctx, linear, "qkv", (rows, 1, linear.nt), (-1, 0, 1)), place)
        b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
        with sums(ctx, linear, rows, xe) as s:
            finish(ctx, linear, s, out, r if plan.profile.deferred_norm else 0)
    pass_on(ctx, linear, columns(ctx, linear, "qkv", (rows, 1, plan.made(linear)), (-1, 0, 1), xe=xe))


def _take_head(ctx: Context, linear: LinearPlan, name: str, head: int) -> None:
    """head_tile = head R[head] of the slice's heads of q, k or v: they stand in this order."""
    b, rows, dp = ctx.b, ctx.rows, ctx.plan.dp
    with b.registers(2) as (place, count), b.descriptors(2) as (d, x):
        b.move(place, head)
        for before in ("q", "k")[: "qkv".index(name)]:
            b.read(count, _CELLS[before][1])
            b.alu_r(AluFn.ADD, place, place, count)
        b.load(x, columns(ctx, linear, "qkv", (rows, 1, dp), (-1, 0, 1), step=dp, xe=Cell.ROWS))
        b.advance_r(x, 3, place)
        b.load(d, ctx.spad("head_tile", "FP32", (rows, 1, dp), (dp, 0, 1)))
        b.vec(d, x)


def _project_head(ctx: Context, linear: LinearPlan) -> None:
    """head_tile [rows, dp] = (a times w) * r + bias, FP32."""
    b, plan = ctx.b, ctx.plan
    rows, xe, dp = ctx.rows, Cell.ROWS, plan.dp
    with b.registers(1) as (tile,), b.descriptors(2) as (out, r):
        b.set(tile, 0)
        with b.loop(dp // linear.nt):
            product(ctx, linear, operand(ctx, "a", ctx.hidden, plan.profile.activations, rows, xe), rows, xe)
            b.load(out, ctx.spad("head_tile", "FP32", (rows, 1, linear.nt), (dp, 0, 1), step=linear.nt))
            b.advance_r(out, 3, tile)
            b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
            with sums(ctx, linear, rows, xe) as s:
                finish(ctx, linear, s, out, r if plan.profile.deferred_norm else 0)
            b.alu(AluFn.ADD, tile, tile, 1)


def rotate(ctx: Context, name: str, pitch: int, start: int = 0) -> None:
    """Turn columns from `start` on of a buffer [rows, pitch] by the rows' positions: y1 = x1 cos - x2 sin,
    y2 = x2 cos + x1 sin."""
    b, rows, half = ctx.b, ctx.rows, ctx.plan.model.turned // 2
    with b.descriptors(4) as (x, table, turned, y):
        # turned [rows, 2, half] = (x2, x1) * sin
        b.load(x, ctx.spad(name, "FP32", (rows, 2, half), (pitch, -half, 1), offset=4 * (start + half), xe=Cell.ROWS))
        b.load(table, _turns(ctx, "sin", 2))
        b.load(turned, ctx.spad("head_turned", "FP32", (rows, 2, half), (2 * half, half, 1)))
        b.vec(turned, x, table, op1=Op1.MUL)
        b.load(table, _turns(ctx, "cos"))
        for number, op2 in ((0, Op2.SUB), (1, Op2.ADD)):
            place = 4 * (start + half * number)
            b.load(x, ctx.spad(name, "FP32", (rows, 1, half), (pitch, 0, 1), offset=place, xe=Cell.ROWS))
            b.load(y, ctx.spad(name, "FP32", (rows, 1, half), (pitch, 0, 1), offset=place))
            b.load(turned, ctx.spad("head_turned", "FP32", (rows, 1, half), (2 * half, 0, 1), offset=4 * half * number))
            b.vec(y, x, table, turned, op1=Op1.MUL, op2=op2)


def rotate_and_quantise(ctx: Context, out: int, *, wait: str = "", post: str = "") -> None:
    """D[out] [rows, 1, d] = the codes of head_tile, turned: the same, half by half, as halves are whole blocks.

    wait, post : of the first and the last instruction that writes.
    """
    b, rows, half = ctx.b, ctx.rows, ctx.plan.model.head_dim // 2
    with b.descriptors(3) as (x, table, turned):
        b.load(turned, ctx.spad("head_turned", "FP32", (rows, 1, half), (half, 0, 1)))
        for number, op2 in ((0, Op2.SUB), (1, Op2.ADD)):
            b.load(x, _half(ctx, 1 - number))
            b.load(table, _turns(ctx, "sin"))
            b.vec(turned, x, table, op1=Op1.MUL)
            b.load(x, _half(ctx, number))
            b.load(table, _turns(ctx, "cos"))
            b.vec(out, x, table, turned, op1=Op1.MUL, op2=op2, wait="" if number else wait, post=post if number else "")
            b.advance(out, 2, half)


def _turns(ctx: Context, name: str, times: int = 1) -> Descriptor:
    """Cosines or sines of the rows' positions, of the layer's rotary table: [rows, times, d / 2]."""
    rows, half = ctx.rows, ctx.plan.model.turned // 2
    return ctx.spad(name, "FP32", (rows, times, half), (half, 0, 1), offset=4 * ctx.kind.rope * rows * half)


def _half(ctx: Context, number: int) -> Descriptor:
    """A half of head_tile's columns [rows, 1, d / 2]."""
    dp, half = ctx.plan.dp, ctx.plan.model.head_dim // 2
    return ctx.spad("head_tile", "FP32", (ctx.rows, 1, half), (dp, 0, 1), offset=4 * half * number, xe=Cell.ROWS)


def _send_codes(ctx: Context, name: str, first: Cell, head: int) -> None:
    """Rotate head_tile, quantise it by blocks along the head and send it to [heads, rows, dp]."""
    b, plan = ctx.b, ctx.plan
    rows, xe, dp, d = ctx.rows, Cell.ROWS, plan.dp, plan.model.head_dim
    heads = plan.model.heads if name == "q" else plan.model.kv_heads
    fmt = plan.profile.k
    with b.descriptors(3) as (x, stage, out):
        view = ctx.stage(fmt, (rows, 1, dp), (dp, 0, 1), scales=True, xe=xe)
        ctx.load_ring(stage, view, ctx.r_stage)
        if plan.turn_whole:
            rotate(ctx, "head_tile", dp)
            if tap(ctx):
                _store(ctx, name, first, head)
            b.load(x, ctx.spad("head_tile", "FP32", (rows, 1, d), (dp, 0, 1), xe=xe))
            b.vec(stage, x, wait="stage_free", post="stage_full")
        else:
            rotate_and_quantise(ctx, stage, wait="stage_free", post="stage_full")
            ctx.load_ring(stage, view, ctx.r_stage)
        b.load(
            out,
            ctx.spad(name, fmt, (rows, 1, dp), (dp, 0, 1), scales=heads * rows * dp, step=rows * dp, xb=first, xe=xe),
        )
        b.advance_r(out, 3, head)
        b.put(out, stage, *_receivers(ctx, name), wait="stage_full", post="stage_free")
    ctx.bump(ctx.r_stage)


def _send_values(ctx: Context, first: Cell, head: int) -> None:
    """Quantise head_tile with one scale a row; send codes to [heads, rows, dp] and scales to [heads, rows]."""
    b, plan = ctx.b, ctx.plan
    rows, xe, dp = ctx.rows, Cell.ROWS, plan.dp
    fmt = plan.profile.v
    if tap(ctx):
        _store(ctx, "v", first, head)
    with b.pair() as d, b.descriptors(2) as (x, out):
        b.load(x, ctx.spad("head_tile", "FP32", (rows, 1, dp), (dp, 0, 1), xe=xe))
        scales = ctx.words("stage_vscale", "E8M0", -(-rows // 4) * 4, (rows, 1, 1), (1, 0, 0), xe=xe)
        ctx.load_ring(d, ctx.stage(fmt, (rows, 1, dp), (dp, 0, 1), xe=xe), ctx.r_stage)
        ctx.load_ring(d + 1, scales, ctx.r_stage)
        b.vec(d, x, red=Red.ROWSCALE, wait="stage_free", post="stage_full")
        b.load(out, ctx.spad("v", fmt, (rows, 1, dp), (dp, 0, 1), step=rows * dp, xb=first, xe=xe))
        b.advance_r(out, 3, head)
        b.put(out, d, *_receivers(ctx, "v"), wait="stage_full")
        b.load(out, ctx.spad("vscale", "E8M0", (rows, 1, 1), (1, 0, 0), step=rows, xb=first, xe=xe))
        b.advance_r(out, 3, head)
        b.put(out, d + 1, *_receivers(ctx, "v"), post="stage_free")
    ctx.bump(ctx.r_stage)


def _receivers(ctx: Context, name: str) -> tuple[int, int]:
    """Cell of the first rank, and ranks, that take this slice's heads of a class; nobody else reads them."""
    count = ctx.plan.receivers(name, 0)[1]
    if count >= ctx.plan.slices:
        return 0, 0
    return {"q": Cell.Q_RECEIVERS, "k": Cell.K_RECEIVERS, "v": Cell.V_RECEIVERS}[name], count


def _store(ctx: Context, name: str, first: Cell, head: int) -> None:
    """Tap head_tile."""
    rows, dp, d = ctx.rows, ctx.plan.dp, ctx.plan.model.head_dim
    view = ctx.spad("head_tile", "FP32", (rows, 1, d), (dp, 0, 1), xe=Cell.ROWS)
    store_rows(ctx, name, view, first=first, step=dp, index=head)

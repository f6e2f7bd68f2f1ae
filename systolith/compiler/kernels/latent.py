"""Latent attention around its core: what q, the keys and the values of the core are, and what o takes of its result.

The first matrices, q_a and kv_a, are dealt out by columns; what they give travels in FP32, and every slice norms,
turns and quantises all rows alike, so that K needs no gather of its own. Heads of q are dealt out as elsewhere: who
makes a head also takes it through the head's matrix of keys, and what attention gives through that of its values.
Source of the rules: docs/numerics.md, "MLA".
"""

from __future__ import annotations

from systolith.compiler.context import SCRATCH, Cell, Constant, Context, Counter
from systolith.compiler.kernels.dump import store_rows, tap
from systolith.compiler.kernels.linear import finish, operand, product, sums
from systolith.compiler.kernels.norm import make_r
from systolith.compiler.kernels.qkv import rotate
from systolith.compiler.memory import low_gains
from systolith.compiler.model import Latent
from systolith.compiler.plan import LinearPlan, padded
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn
from systolith.isa.vector import Func, Op1, Op2, Red
from systolith.numerics.formats import FORMATS
from systolith.spec.limits import BLOCK

__all__ = ["latent_qk", "latent_values", "rewind_low_gains"]


def latent_of(ctx: Context) -> Latent:
    """The latent attention of the model."""
    latent = ctx.plan.model.latent
    assert latent is not None
    return latent


def rewind_low_gains(ctx: Context) -> None:
    """Point the stream of the inner norms' gains at the first layer: once a step."""
    words = low_gains(ctx.plan)
    ctx.b.load(ctx.streams["g_low"], ctx.dram("g_low", "FP32", (1, 1, words), (0, 0, 1), step=words))


def latent_qk(ctx: Context) -> None:
    """Make the rows of K, alike on every slice, and send this slice's heads of q."""
    b, plan = ctx.b, ctx.plan
    b.tensor_name = "latent"
    b.sync(Queue.M, wait="operand")
    if plan.profile.deferred_norm:
        make_r(ctx, "a")
    _low(ctx)
    # One buffer of gains will do: L comes to the next layer's behind the rows that V sends after it has used these.
    with b.descriptors(1) as (d,):
        b.load(d, ctx.spad("g_low", "FP32", (1, 1, low_gains(plan)), (0, 0, 1)))
        b.copy(Queue.L, d, ctx.streams["g_low"], wait="load_free", post="load_full")
        b.advance(ctx.streams["g_low"], 3, 1)
    b.sync(Queue.V, wait="partials load_full")
    if plan.q_a is not None:
        _norm_queries(ctx)
    _keys(ctx)
    b.sync(Queue.V, post="load_free p_full")
    b.sync(Queue.M, wait="p_full")
    with ctx.cell_loop(Cell.Q_HEADS) as head:
        _head(ctx, head)
    ctx.arrive(("operand", Counter.OPERAND_Q), ("arrived", Counter.KV_FRESH))
    b.tensor_name = ""


def _low_view(ctx: Context, start: int, width: int, *, xe: int = Cell.ROWS) -> Descriptor:
    """Columns of what q_a (first) and kv_a give: the low row of q, the latent, the turned row."""
    pitch = ctx.plan.q_width + ctx.plan.kp
    return ctx.spad("low", "FP32", (ctx.rows, 1, width), (pitch, 0, 1), offset=4 * start, xe=xe)


def _low(ctx: Context) -> None:
    """low [rows, q_width + kp] of all slices = a times the matrices, times r, plus bias."""
    b, plan = ctx.b, ctx.plan
    rows, xe = ctx.rows, Cell.ROWS
    pitch = plan.q_width + plan.kp
    for linear, first, tiles, start in (
        (plan.q_a, Cell.K_FIRST, Cell.K_HEADS, 0), (plan.kv_a, Cell.V_FIRST, Cell.V_HEADS, plan.q_width),
    ):  # fmt: skip
        if linear is None:
            continue
        b.tensor_name = linear.name
        nt = linear.nt
        with ctx.cell_loop(tiles) as tile, b.descriptors(2) as (stage, out):
            product(ctx, linear, operand(ctx, "a", ctx.hidden, plan.profile.activations, rows, xe), rows, xe)
            ctx.load_ring(stage, ctx.stage("FP32", (rows, 1, nt), (nt, 0, 1), xe=xe), ctx.r_stage)
            _finish_sums(ctx, linear, stage, "r" if plan.profile.deferred_norm else "", send=True)
            b.load(out, ctx.spad("low", "FP32", (rows, 1, nt), (pitch, 0, 1), offset=4 * start, step=nt, xb=first,
                                 xe=xe))  # fmt: skip
            b.advance_r(out, 3, tile)
            b.put(out, stage, wait="stage_full", post="stage_free")
            ctx.bump(ctx.r_stage)
    ctx.arrive(("partials", Counter.LOW))


def _finish_sums(ctx: Context, linear: LinearPlan, out: int, r: str, *, send: bool = False) -> None:
    """D[out] = sums, times the factor of each row in buffer r where one is named, plus bias. send: it is staged."""
    free, full = ("stage_free", "stage_full") if send else ("", "")
    with ctx.b.descriptors(1) as (factor,), sums(ctx, linear, ctx.rows, Cell.ROWS) as s:
        if r:
            ctx.b.load(factor, ctx.spad(r, "FP32", (ctx.rows, 1, 1), (1, 0, 0)))
        finish(ctx, linear, s, out, factor if r else 0, wait=free, post=full)


def _r(ctx: Context, start: int, width: int, mean: Constant, place: int) -> None:
    """r_low number `place` = rsqrt(t * c + eps), t the tree over the squares of some columns of low."""
    b, rows = ctx.b, ctx.rows
    with b.descriptors(4) as (x, r, c, eps):
        b.load(x, _low_view(ctx, start, width))
        b.load(SCRATCH, ctx.spad("r_low", "FP32", (rows, 1, 1), (1, 0, 0), offset=4 * place * rows))
        b.vec(0, x, red=Red.SUMSQ)
        b.load(r, ctx.spad("r_low", "FP32", (rows, 1, 1), (1, 0, 0), offset=4 * place * rows, xe=Cell.ROWS))
        b.load(c, ctx.constant(mean))
        b.load(eps, ctx.constant(Constant.EPS_LOW))
        b.vec(r, r, c, eps, op1=Op1.MUL, op2=Op2.ADD, func=Func.RSQRT)


def _row_factor(ctx: Context, place: int, width: int) -> Descriptor:
    return ctx.spad("r_low", "FP32", (ctx.rows, 1, width), (1, 0, 0), offset=4 * place * ctx.rows)


def _norm_queries(ctx: Context) -> None:
    """q_low = the operand of q: codes of x * g, or of x * r * g where the norm is not deferred; r_low[0] = r."""
    b, plan, rank = ctx.b, ctx.plan, latent_of(ctx).q_rank
    assert rank is not None
    fmt, rows, width = plan.profile.activations, ctx.rows, plan.q_width
    _r(ctx, 0, rank, Constant.MEAN_Q, 0)
    if tap(ctx):
        store_rows(ctx, "r_q", ctx.spad("r_low", "FP32", (rows, 1, 1), (1, 0, 1), xe=Cell.ROWS))
    with b.descriptors(4) as (d, x, r, g):
        b.load(d, ctx.spad("q_low", fmt, (rows, 1, width), (width, 0, 1), scales=rows * width))
        b.load(x, _low_view(ctx, 0, rank))
        b.load(g, ctx.spad("g_low", "FP32", (rows, 1, rank), (0, 0, 1)))
        if plan.profile.deferred_norm:
            b.vec(d, x, g, op1=Op1.MUL)
        else:
            b.load(r, _row_factor(ctx, 0, rank))
            b.vec(d, x, r, g, op1=Op1.MUL, op2=Op2.MUL)


def _keys(ctx: Context) -> None:
    """k [rows, kp] and vscale: the normed latent with one scale a row, at each of its blocks, and the turned row."""
    b, plan, latent = ctx.b, ctx.plan, latent_of(ctx)
    rows, fmt, dp, kp, start = ctx.rows, plan.profile.k, plan.dp, plan.kp, plan.q_width
    rank, blocks = latent.rank, plan.dp // BLOCK
    _r(ctx, start, rank, Constant.MEAN_LATENT, 1)
    with b.descriptors(3) as (x, r, g):
        b.load(x, _low_view(ctx, start, rank))
        b.load(r, _row_factor(ctx, 1, rank))
        b.load(g, ctx.spad("g_low", "FP32", (rows, 1, rank), (0, 0, 1), offset=4 * (latent.q_rank or 0)))
        b.vec(x, x, r, g, op1=Op1.MUL, op2=Op2.MUL)
    rotate(ctx, "low", plan.q_width + kp, start + dp)
    if tap(ctx):
        store_rows(ctx, "k", _low_view(ctx, start, kp))
    with b.pair() as d, b.descriptors(1) as (x,):
        b.load(x, _low_view(ctx, start, dp))
        b.load(d, ctx.spad("k", fmt, (rows, 1, dp), (kp, 0, 1)))
        b.load(d + 1, ctx.spad("vscale", "E8M0", (rows, 1, 1), (1, 0, 0)))
        b.vec(d, x, red=Red.ROWSCALE)
        # The same codes once more for each block, for the sake of the scale there.
        pitch = plan.q_width + kp
        codes = padded(rows * kp * FORMATS[fmt].bits // 8, 4)
        b.load(x, ctx.spad("low", "FP32", (rows, blocks, dp), (pitch, 0, 1), offset=4 * start, xe=Cell.ROWS))
        b.load(d, ctx.spad("k", fmt, (rows, blocks, dp), (kp, 0, 1)))
        b.load(d + 1, ctx.spad("k", "E8M0", (rows, blocks, 1), (kp // BLOCK, 1, 0), offset=codes))
        b.vec(d, x, red=Red.ROWSCALE)
        b.load(x, _low_view(ctx, start + dp, latent.turned))
        b.load(d, ctx.spad("k", fmt, (rows, 1, kp - dp), (kp, 0, 1), offset=dp * FORMATS[fmt].bits // 8,
                           scales=rows * kp))  # fmt: skip
        b.vec(d, x)


def _head(ctx: Context, head: int) -> None:
    """Make head R[head] of this slice's: its columns, plain ones through the matrix of the keys, turned ones turned."""
    b, plan, latent = ctx.b, ctx.plan, latent_of(ctx)
    rows, xe, fmt, act = ctx.rows, Cell.ROWS, plan.profile.k, plan.profile.activations
    hp, kp, dp, plain = plan.hp, plan.kp, plan.dp, padded(latent.plain)
    deferred = plan.profile.deferred_norm
    b.tensor_name = "q"
    source = operand(ctx, "a", ctx.hidden, act, rows, xe)
    if plan.q_a is not None:
        source = operand(ctx, "q_low", plan.q_width, act, rows, xe)
    with b.registers(1) as (tile,), b.descriptors(1) as (out,):
        b.set(tile, 0)
        with b.loop(hp // plan.q.nt):
            product(ctx, plan.q, source, rows, xe)
            b.load(out, ctx.spad("head_tile", "FP32", (rows, 1, plan.q.nt), (hp, 0, 1), step=plan.q.nt))
            b.advance_r(out, 3, tile)
            _finish_sums(ctx, plan.q, out, "" if not deferred else "r" if plan.q_a is None else "r_low")
            b.alu(AluFn.ADD, tile, tile, 1)
    with b.descriptors(2) as (d, x):
        b.load(d, ctx.spad("q_plain", act, (rows, 1, plain), (plain, 0, 1), scales=rows * plain))
        b.load(x, ctx.spad("head_tile", "FP32", (rows, 1, latent.plain), (hp, 0, 1), xe=xe))
        b.vec(d, x, wait="p_free", post="p_full")
    rotate(ctx, "head_tile", hp, plain)
    with b.descriptors(3) as (stage, x, wide):
        width = kp - dp
        ctx.load_ring(stage, ctx.stage(fmt, (rows, 1, width), (width, 0, 1), scales=True, xe=xe), ctx.r_stage)
        b.load(x, ctx.spad("head_tile", "FP32", (rows, 1, latent.turned), (hp, 0, 1), offset=4 * plain, xe=xe))
        if tap(ctx):
            b.load(wide, ctx.spad("q_tile", "FP32", (rows, 1, latent.turned), (kp, 0, 1), offset=4 * dp))
            b.vec(wide, x)
        b.vec(stage, x, wait="stage_free", post="stage_full")
        _send_q(ctx, stage, dp, width, head)
    b.tensor_name = "k"
    b.sync(Queue.M, wait="p_full")
    for number in range(dp // plan.k.nt):
        nt = plan.k.nt
        product(ctx, plan.k, operand(ctx, "q_plain", plain, act, rows, xe), rows, xe)
        with b.descriptors(2) as (stage, wide):
            ctx.load_ring(stage, ctx.stage(fmt, (rows, 1, nt), (nt, 0, 1), scales=True, xe=xe), ctx.r_stage)
            if tap(ctx):
                view = ctx.spad("q_tile", "FP32", (rows, 1, nt), (kp, 0, 1), offset=4 * nt * number, xe=xe)
                b.load(wide, view)
                _finish_sums(ctx, plan.k, wide, "")
                b.vec(stage, wide, wait="stage_free", post="stage_full")
            else:
                _finish_sums(ctx, plan.k, stage, "", send=True)
            _send_q(ctx, stage, nt * number, nt, head)
    b.sync(Queue.M, post="p_free")
    if tap(ctx):
        view = ctx.spad("q_tile", "FP32", (rows, 1, kp), (kp, 0, 1), xe=xe)
        store_rows(ctx, "q", view, first=Cell.Q_FIRST, step=kp, index=head)


def _send_q(ctx: Context, stage: int, start: int, width: int, head: int) -> None:
    """Send staged columns of a head to [heads, rows, kp], from column `start` on."""
    b, plan = ctx.b, ctx.plan
    rows, kp, fmt = ctx.rows, plan.kp, plan.profile.k
    with b.descriptors(1) as (out,):
        b.load(out, ctx.spad("q", fmt, (rows, 1, width), (kp, 0, 1), offset=start * FORMATS[fmt].bits // 8,
                             scales=plan.model.heads * rows * kp, step=rows * kp, xb=Cell.Q_FIRST,
                             xe=Cell.ROWS))  # fmt: skip
        b.advance_r(out, 3, head)
        b.put(out, stage, wait="stage_full", post="stage_free")
    ctx.bump(ctx.r_stage)


def latent_values(ctx: Context) -> None:
    """Take what attention gives through the matrices of the values: the operand of o, head by head."""
    b, plan = ctx.b, ctx.plan
    rows, xe, act, dp, vp = ctx.rows, Cell.ROWS, plan.profile.activations, plan.dp, plan.vp
    nt, width = plan.v.nt, plan.model.heads * dp
    b.tensor_name = "v"
    b.sync(Queue.M, wait="operand")
    source = ctx.spad("attention", act, (rows, 1, width), (width, 0, 1), scales=rows * width, step=dp,
                      xb=Cell.Q_FIRST, xe=xe)  # fmt: skip
    with ctx.cell_loop(Cell.Q_HEADS) as head:
        for number in range(vp // nt):
            product(ctx, plan.v, source, rows, xe, turn=head)
            with b.descriptors(3) as (stage, out, wide):
                ctx.load_ring(stage, ctx.stage(act, (rows, 1, nt), (nt, 0, 1), scales=True, xe=xe), ctx.r_stage)
                if tap(ctx):
                    b.load(wide, ctx.spad("value_tile", "FP32", (rows, 1, nt), (vp, 0, 1), offset=4 * nt * number,
                                          xe=xe))  # fmt: skip
                    _finish_sums(ctx, plan.v, wide, "")
                    b.vec(stage, wide, wait="stage_free", post="stage_full")
                else:
                    _finish_sums(ctx, plan.v, stage, "", send=True)
                wide_row = plan.model.heads * vp
                b.load(out, ctx.spad("attended", act, (rows, 1, nt), (wide_row, 0, 1), scales=rows * wide_row, step=vp,
                                     offset=nt * number * FORMATS[act].bits // 8, xb=Cell.Q_FIRST, xe=xe))  # fmt: skip
                b.advance_r(out, 3, head)
                b.put(out, stage, wait="stage_full", post="stage_free")
            ctx.bump(ctx.r_stage)
        if tap(ctx):
            view = ctx.spad("value_tile", "FP32", (rows, 1, vp), (vp, 0, 1), xe=xe)
            store_rows(ctx, "attention", view, first=Cell.Q_FIRST, step=vp, index=head)
    ctx.arrive(("operand", Counter.ATTENDED))
    b.tensor_name = ""

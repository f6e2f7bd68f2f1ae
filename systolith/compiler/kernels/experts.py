"""A mixture of experts: h of every pair of a row and one of its experts, and the weighted sum of what they give.

All slices work on every expert: its columns are dealt out like those of any other matrix. An expert is read once a
step, for all rows that chose it; its rows are found by the order that GROUP made (kernels/route.py). h lies in that
order; what `down` gives goes back to the place of the pair, where the tree over a row's choices adds it up.
"""

from __future__ import annotations

from systolith.compiler.context import Cell, Constant, Context, Counter, Norm
from systolith.compiler.kernels.activation import Tile, clamp, silu, swiglu_clamped
from systolith.compiler.kernels.columns import columns, made_tiles, pass_on, place_columns
from systolith.compiler.kernels.linear import bias_tile, finish, load_stream, operand, product, sums
from systolith.compiler.kernels.norm import (
    finish_norm,
    load_gains,
    load_residual,
    residual,
    residual_tiles,
    send_tile,
    store_residual,
    tap_residual,
)
from systolith.compiler.kernels.project import add_columns
from systolith.compiler.kernels.route import Entry, each_entry
from systolith.compiler.kernels.team import Sent, send_by_team
from systolith.compiler.plan import LinearPlan
from systolith.compiler.team import deal_of_h
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn
from systolith.isa.vector import Op1, Op2
from systolith.spec.limits import BLOCK

__all__ = ["experts_down", "experts_up"]

_ARRIVAL = ("operand", Counter.OPERAND_H)


def experts_up(ctx: Context) -> None:
    """Make and send this slice's columns of h, [pairs, inner] in the order of experts."""
    b, plan = ctx.b, ctx.plan
    b.tensor_name = "router"
    with each_entry(ctx, wait="decided") as entry:
        for linear in (plan.gate, plan.up):
            _point(ctx, linear, entry)
        with made_tiles(ctx, plan.gate) if plan.gate.unit else ctx.cell_loop(Cell.FFN_TILES) as tile:
            b.tensor_name = "expert gate"
            _product_of_rows(ctx, plan.gate, entry)
            _gate(ctx, entry)
            b.tensor_name = "expert up"
            _product_of_rows(ctx, plan.up, entry)
            _make_h(ctx, entry, tile)
    said = False
    if plan.gate.unit:
        said = _send_blocks(ctx, _ARRIVAL)
    if not said:
        ctx.arrive(_ARRIVAL)
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


def _make_h(ctx: Context, entry: Entry, tile: int) -> None:
    """Send quantise(up' * exp_tile) to the rows of the entry in h. Where columns are dealt out evenly, put up' *
    exp_tile into their buffer, in the order of pairs, from column R[tile] on."""
    b, plan = ctx.b, ctx.plan
    rows, nt, fmt, even = ctx.rows, plan.up.nt, plan.profile.activations, plan.up.unit > 0
    clamped, work = ctx.experts.activation == "swiglu_clamped", Tile(ctx, entry.count, nt)
    wait, post = ("", "") if even else ("stage_free", "stage_full")
    with b.descriptors(5) as (stage, exp, up, x, out):
        if even:
            place_columns(ctx, stage, columns(ctx, plan.gate, "h", (rows, 1, nt), (-1, 0, 1)), tile)
            b.advance_r(stage, 0, entry.first)
        else:
            ctx.load_ring(stage, ctx.stage(fmt, (rows, 1, nt), (nt, 0, 1), scales=True), ctx.r_stage)
        b.load(exp, work.view("exp_tile"))
        b.load(up, work.view("gate_tile"))
        _finish_sums(ctx, plan.up, entry, up)
        b.extent_r(up, 0, entry.count)
        if clamped:
            clamp(work)
            b.load(x, ctx.constant(Constant.ONE))
            b.vec(stage, up, x, exp, op1=Op1.ADD, op2=Op2.MUL, wait=wait, post=post)
        else:
            b.vec(stage, up, exp, op1=Op1.MUL, wait=wait, post=post)
        if even:
            return
        b.extent_r(stage, 0, entry.count)
        width, pairs = plan.down.k, plan.pairs
        b.load(out, ctx.spad("h", fmt, (pairs, 1, nt), (width, 0, 1), scales=pairs * width, step=nt,
                             xb=Cell.FFN_FIRST))  # fmt: skip
        b.advance_r(out, 0, entry.first)
        b.advance_r(out, 3, tile)
        b.extent_r(out, 0, entry.count)
        b.put(out, stage, wait="stage_full", post="stage_free")
    ctx.bump(ctx.r_stage)


def _send_blocks(ctx: Context, arrival: tuple[str, int]) -> bool:
    """Bring this slice's blocks of all rows of h together, quantise and send them; whether with the arrival."""
    b, plan = ctx.b, ctx.plan
    gate, pairs, fmt, width = plan.gate, plan.pairs, plan.profile.activations, plan.down.k
    most = plan.owned_columns(gate)
    b.tensor_name = "expert h"
    with b.registers(2) as (count, blocks), b.descriptors(3) as (stage, x, out):
        b.read(count, Cell.ROWS)
        b.alu(AluFn.MUL, count, count, ctx.experts.top_k)
        pass_on(ctx, gate, columns(ctx, gate, "h", (pairs, 1, plan.made(gate)), (-1, 0, 1)), count)
        b.read(blocks, Cell.FFN_TILES)
        b.load(x, columns(ctx, gate, "h", (pairs, most // BLOCK, BLOCK), (-1, BLOCK, 1)))
        ctx.load_ring(stage, ctx.stage(fmt, (pairs, most // BLOCK, BLOCK), (most, BLOCK, 1), scales=True), ctx.r_stage)
        for d in (x, stage):
            b.extent_r(d, 0, count)
            b.extent_r(d, 1, blocks)
        b.vec(stage, x, wait="stage_free", post="stage_full")
        deal, staged = deal_of_h(plan, gate), ctx.stage(fmt, (pairs, 1, most), (most, 0, 1), scales=True)
        if deal is not None and plan.team > 1:
            cells = Cell.FFN_FIRST, Cell.FFN_TILES
            send_by_team(ctx, Sent(staged, deal, cells, "team_h0", "h", width, arrival), rows=count)
            ctx.bump(ctx.r_stage)
            return True
        b.alu(AluFn.MUL, blocks, blocks, BLOCK)
        ctx.load_ring(stage, staged, ctx.r_stage)
        b.load(out, ctx.spad("h", fmt, (pairs, 1, most), (width, 0, 1), scales=pairs * width, step=BLOCK,
                             xb=Cell.FFN_FIRST))  # fmt: skip
        for d in (stage, out):
            b.extent_r(d, 0, count)
            b.extent_r(d, 2, blocks)
        b.put(out, stage, wait="stage_full", post="stage_free")
    ctx.bump(ctx.r_stage)
    return False


def experts_down(ctx: Context) -> None:
    """x = RNE(x + sum of weight * (h times w) over a row's experts), tile by tile, each sent on to the next norm."""
    b, plan = ctx.b, ctx.plan
    rows, xe = ctx.rows, Cell.ROWS
    b.tensor_name = "expert down"
    load_gains(ctx, Norm.NEXT)
    b.sync(Queue.M, wait="operand")
    even = plan.down.unit > 0
    if even:
        with b.registers(1) as (tile,):
            b.set(tile, 0)
            with made_tiles(ctx, plan.down) as place:
                with each_entry(ctx) as entry:
                    _down(ctx, entry, tile)
                _add_choices(ctx, tile, place)
                b.alu(AluFn.ADD, tile, tile, 1)
        pass_on(ctx, plan.down, columns(ctx, plan.down, "x", (rows, 1, plan.made(plan.down)), (-1, 0, 1), xe=xe))
    with residual_tiles(ctx) as tile:
        if not even:
            with each_entry(ctx) as entry:
                _down(ctx, entry, tile)
        if plan.shared is not None:
            source = operand(ctx, "h_shared", plan.shared.down.k, plan.profile.activations, rows, xe)
            product(ctx, plan.shared.down, source, rows, xe)
        load_residual(ctx, tile)
        if even:
            add_columns(ctx, plan.down, tile)
        else:
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


def _add_choices(ctx: Context, tile: int, place: int = 0) -> None:
    """x += the tree over the choices of a row. A level adds in place; an odd last one stays for the next level.

    place: register of the first of the columns that are dealt out evenly; they get the tree alone.
    """
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
        if place:
            down = ctx.plan.down
            place_columns(ctx, x, columns(ctx, down, "x", (rows, 1, nt), (-1, 0, 1)), place)
        else:
            residual(ctx, x, tile)
        b.load(left, choices(0, 1, 1))
        b.load(right, choices(every if every < k else 0, 1, 1))
        if place:
            b.vec(x, left, right if every < k else 0, op1=Op1.ADD if every < k else Op1.NONE)
        elif ctx.plan.shared is not None:
            if every < k:
                b.vec(left, left, right, op1=Op1.ADD)
            with sums(ctx, ctx.plan.shared.down, rows, Cell.ROWS) as s:
                b.vec(x, left, s.d, x, op1=Op1.ADD, op2=Op2.ADD, wait=s.wait, post=s.post)
        elif every < k:
            b.vec(x, left, right, x, op1=Op1.ADD, op2=Op2.ADD)
        else:
            b.vec(x, left, x, op1=Op1.ADD)

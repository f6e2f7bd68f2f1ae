"""The gated feed-forward: h = factor(gate) * up tile by tile, the factor an activation's, quantised and sent."""

from __future__ import annotations

from systolith.compiler.context import Cell, Constant, Context, Counter
from systolith.compiler.kernels.activation import Tile, activations
from systolith.compiler.kernels.dump import store_rows, tap
from systolith.compiler.kernels.linear import Sums, ffn_cells, finish, operand, product, sums
from systolith.compiler.kernels.norm import make_r
from systolith.compiler.kernels.team import Sent, send_by_team
from systolith.compiler.plan import FeedForward, LinearPlan
from systolith.compiler.team import deal_of_h, later_columns
from systolith.isa.instruction import Queue
from systolith.isa.vector import Func, Op1, Op2

__all__ = ["ffn", "gated"]

_ARRIVAL = ("operand", Counter.OPERAND_H)
_FIRST_PART = ("operand", Counter.OPERAND_H_FIRST)


def ffn(ctx: Context) -> None:
    """Make and send this slice's columns of h, in a layer without experts."""
    b, plan = ctx.b, ctx.plan
    part = plan.dense or plan.feed_forwards[0]
    b.tensor_name = "ffn"
    b.sync(Queue.M, wait="operand")
    if plan.profile.deferred_norm:
        make_r(ctx, "b")
    alone = plan.one_tile(part.gate)
    gated(ctx, part, "h", _ARRIVAL if alone else None)
    if not alone:
        ctx.arrive(_ARRIVAL)
    b.tensor_name = ""


def gated(ctx: Context, part: FeedForward, name: str, arrival: tuple[str, int] | None = None) -> None:
    """Send this slice's columns of a part's h to the operand `name`; `arrival` goes with each tile. V has r."""
    b, plan = ctx.b, ctx.plan
    rows, xe, fmt = ctx.rows, Cell.ROWS, plan.profile.activations
    first, tiles = ffn_cells(ctx, part.gate)
    pieces = [FeedForward(gate, up, part.down) for gate, up in zip(part.gate.parts, part.up.parts, strict=True)]
    with ctx.cell_loop(tiles) as tile:
        start = 0
        for number, piece in enumerate(pieces):
            for linear in (piece.gate, piece.up):
                b.tensor_name = linear.name
                if len(pieces) > 1:
                    b.extent(ctx.streams[linear.name], 0, linear.nt)
                source = operand(ctx, "b", ctx.hidden, fmt, rows, xe)
                product(ctx, linear, source, rows, xe, ahead=piece is pieces[0])
                if linear is piece.gate:
                    _activate_gate(ctx, piece)
            last = piece is pieces[-1]
            _times_up(ctx, piece, name, (first, tiles), tile, arrival, number=number, start=start, last=last)
            start += piece.up.nt * part.up.tiles
    if len(pieces) > 1:  # as the next layer asks for them
        for linear in (pieces[0].gate, pieces[0].up):
            b.extent(ctx.streams[linear.name], 0, linear.nt)


def _activate_gate(ctx: Context, part: FeedForward) -> None:
    """exp_tile = the factor of g = sums * r + bias."""
    b, plan = ctx.b, ctx.plan
    rows, xe = ctx.rows, Cell.ROWS
    tile = Tile(ctx, columns=part.gate.nt)
    with b.descriptors(2) as (gate, r), sums(ctx, part.gate, rows, xe) as s:
        if not plan.gate_apart:
            _silu_of_sums(tile, s)
            return
        tile.load(gate, "gate_tile")
        _finish_sums(ctx, part.gate, s, gate, r)
    activations()[plan.model.activation].emit(tile)


def _silu_of_sums(tile: Tile, s: Sums) -> None:
    """exp_tile = silu(g), g = sums * r: read from the accumulator twice, so that it need not be stored."""
    ctx, b, rows = tile.ctx, tile.ctx.b, tile.ctx.rows
    deferred = ctx.plan.profile.deferred_norm
    with b.descriptors(5) as (exp, minus, one, r, zero):
        tile.load(exp, "exp_tile", "INT32")
        b.load(minus, ctx.constant(Constant.MINUS_LOG2E))
        if deferred:
            b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
            b.vec(exp, s.d, r, minus, op1=Op1.MUL, op2=Op2.MUL, func=Func.FIX, wait=s.wait)
        else:
            b.vec(exp, s.d, minus, op1=Op1.MUL, func=Func.FIX, wait=s.wait)
        b.load(zero, ctx.constant(Constant.ZERO, "INT32"))
        b.load(one, ctx.constant(Constant.ONE))
        tile.load(minus, "exp_tile")
        b.vec(minus, exp, zero, one, op1=Op1.EXP2, op2=Op2.ADD, func=Func.RCP)
        if deferred:
            b.vec(minus, s.d, r, minus, op1=Op1.MUL, op2=Op2.MUL, post=s.post)
        else:
            b.vec(minus, s.d, minus, op1=Op1.MUL, post=s.post)


def _times_up(
    ctx: Context, part: FeedForward, name: str, cells: tuple[Cell, Cell], tile: int, arrival: tuple[str, int] | None, *,
    number: int, start: int, last: bool,
) -> None:  # fmt: skip
    """Send quantise(silu * u), u = sums * r + bias, of part `number` of a tile. start: column where such parts begin,
    one behind the other; arrival: of a tile that is all that a slice sends, with its `last` part; where M begins with
    what the first part gives, that has one of its own."""
    b, plan = ctx.b, ctx.plan
    rows, xe, nt, fmt = ctx.rows, Cell.ROWS, part.up.nt, plan.profile.activations
    work = Tile(ctx, columns=part.gate.nt)
    with b.descriptors(5) as (stage, silu, r, up, out), sums(ctx, part.up, rows, xe) as s:
        ctx.load_ring(stage, ctx.stage(fmt, (rows, 1, nt), (nt, 0, 1), scales=True, xe=xe), ctx.r_stage)
        work.load(silu, "exp_tile")
        tapped = tap(ctx) and plan.model.experts is None
        if tapped or plan.model.bias(part.up.name):
            work.load(up, "gate_tile")
            _finish_sums(ctx, part.up, s, up, r)
            b.vec(up, up, silu, op1=Op1.MUL)
            if tapped:
                store_rows(ctx, "h", work.view("gate_tile"), first=cells[0], step=nt, index=tile)
            b.vec(stage, up, wait="stage_free", post="stage_full")
        elif plan.profile.deferred_norm:
            b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
            b.vec(stage, s.d, r, silu, op1=Op1.MUL, op2=Op2.MUL, wait=f"{s.wait} stage_free",
                  post=f"{s.post} stage_full")  # fmt: skip
        else:
            b.vec(stage, s.d, silu, op1=Op1.MUL, wait=f"{s.wait} stage_free", post=f"{s.post} stage_full")
        width, said = part.down.k, arrival if last else _FIRST_PART if later_columns(plan) else None
        deal = deal_of_h(plan, part.gate) if plan.team > 1 and arrival is not None else None
        if deal is not None:
            view = ctx.stage(fmt, (rows, 1, nt), (nt, 0, 1), scales=True)
            send_by_team(ctx, Sent(view, deal, cells, f"team_h{number}", name, width, said, start), turn=number)
            ctx.bump(ctx.r_stage)
            return
        b.load(out, ctx.spad(name, fmt, (rows, 1, nt), (width, 0, 1), scales=rows * width, step=nt, xb=cells[0],
                             xe=xe))  # fmt: skip
        b.advance(out, 2, start)
        b.advance_r(out, 3, tile)
        b.put(out, stage, wait="stage_full", post="stage_free", arrival=said)
    ctx.bump(ctx.r_stage)


def _finish_sums(ctx: Context, linear: LinearPlan, s: Sums, out: int, r: int) -> None:
    """D[out] = sums * r + bias; `r` is a free descriptor register."""
    deferred = ctx.plan.profile.deferred_norm
    if deferred:
        ctx.b.load(r, ctx.spad("r", "FP32", (ctx.rows, 1, 1), (1, 0, 0)))
    finish(ctx, linear, s, out, r if deferred else 0)

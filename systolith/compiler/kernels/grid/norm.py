"""Norms on the grid: a product's columns of the residual stream as operand of the next norm, and the factor r.

A slice sums the squares of a product's columns, an aligned subtree of the tree over all, and sends one sum of each row.
"""

from __future__ import annotations

from collections.abc import Callable

from systolith.compiler.context import SCRATCH, Cell, Constant, Counter
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.grid.spread import Spread
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.vector import Func, Op1, Op2, Red

__all__ = ["await_store", "load_gains", "load_residual", "make_r", "residual", "send_product", "store_residual"]


def residual(ctx: GridContext) -> Descriptor:
    """The columns of the residual stream in hand: [rows, 1, width]."""
    rows, w = ctx.rows, ctx.grid.width
    return ctx.spad("x", "FP32", (rows, 1, w), (w, 0, 1), xe=Cell.ROWS)


def _stored(ctx: GridContext, product: int) -> Descriptor:
    rows, w = ctx.rows, ctx.grid.width
    return ctx.dram("grid_x", "FP32", (rows, 1, w), (w, 0, 1), step=rows * w, xe=Cell.ROWS).advance(3, product)


def load_residual(ctx: GridContext, product: int) -> None:
    """Load a product's columns of the residual stream, when those before are stored; V waits for load_full."""
    b = ctx.b
    with b.descriptors(2) as (d, a):
        b.load(d, residual(ctx))
        b.load(a, _stored(ctx, product))
        b.copy(Queue.L, d, a, wait="cached", post="load_full")


def store_residual(ctx: GridContext, product: int) -> None:
    """Store them, once V has done everything before."""
    b = ctx.b
    b.sync(Queue.V, post="store_full")
    with b.descriptors(2) as (d, a):
        b.load(a, residual(ctx))
        b.load(d, _stored(ctx, product))
        b.copy(Queue.S, d, a, wait="store_full", post="cached")


def await_store(ctx: GridContext) -> None:
    """Let L and V wait until the residual stream is stored: others may have its place."""
    b = ctx.b
    b.sync(Queue.L, wait="cached", post="load_full")
    b.sync(Queue.S, post="cached")
    b.sync(Queue.V, wait="load_full")


def load_gains(ctx: GridContext, half: int, number: int, per_layer: int) -> None:
    """Load the gains number `number` + `per_layer` * layer of this slice's columns into one of two buffers."""
    b, shard = ctx.b, ctx.grid.shard
    with b.descriptors(2) as (d, a):
        b.load(d, ctx.spad("g", "FP32", (1, 1, shard), (0, 0, 1), offset=4 * shard * half))
        b.load(a, ctx.dram("grid_g", "FP32", (1, 1, shard), (0, 0, 1), step=shard).advance(3, number))
        for _ in range(per_layer):
            b.advance_r(a, 3, ctx.r_layer)
        b.copy(Queue.L, d, a, post="load_full")
    b.sync(Queue.V, wait="load_full")


def send_product(ctx: GridContext, which: str, product: int, half: int, *, spread: bool = False) -> list[Spread]:
    """Send a product's columns of the residual stream to the slices with the same rows, as operand "a" or "b", piece by
    piece: codes of x * g, and one sum of squares. The last one arrives.

    spread : leave them to be sent over rounds.
    """
    b, grid, rows = ctx.b, ctx.grid, ctx.rows
    w, e, shard, hidden = grid.width, grid.piece, grid.shard, ctx.hidden
    fmt = ctx.plan.profile.activations
    counter = Counter.SUMS_A if which == "a" else Counter.SUMS_B
    left = []
    for piece in range(product * (w // e), (product + 1) * (w // e)):
        arrival = ("partials", counter) if piece == shard // e - 1 else None
        with b.pair() as d, b.descriptors(3) as (x, g, out):
            b.load(x, ctx.spad("x", "FP32", (rows, 1, e), (w, 0, 1), offset=4 * (piece * e % w), xe=Cell.ROWS))
            b.load(g, ctx.spad("g", "FP32", (rows, 1, e), (0, 0, 1), offset=4 * (half * shard + piece * e)))
            ctx.load_ring(d, ctx.stage(fmt, (rows, 1, e), (e, 0, 1), scales=True), ctx.r_stage)
            ctx.load_ring(d + 1, ctx.words("stage_total", "FP32", rows, (rows, 1, 1), (1, 0, 0)), ctx.r_stage)
            b.vec(d, x, g, op1=Op1.MUL, red=Red.SUMSQ, wait="stage_free", post="stage_full")
            staged = ctx.stage(fmt, (rows, 1, e), (e, 0, 1), scales=True, xe=Cell.ROWS)
            codes = ctx.spad(which, fmt, (rows, 1, e), (hidden, 0, 1), scales=rows * hidden, step=shard, xe=Cell.ROWS)
            codes = codes.advance(2, piece * e)
            total = ctx.words("stage_total", "FP32", rows, (rows, 1, 1), (1, 0, 0), xe=Cell.ROWS)
            totals = ctx.spad(f"tb_{which}", "FP32", (rows, 1, 1), (hidden // e, 0, 1), step=shard // e, xe=Cell.ROWS)
            if spread:
                turn = b.register()
                b.move(turn, ctx.r_stage)
                left.append(Spread(ctx, staged, codes, tail=_total(ctx, total, totals.advance(2, piece), turn)))
            else:
                ctx.load_ring(x, staged, ctx.r_stage)
                b.load(out, codes)
                ctx.to_group(out)
                ctx.put_to_rows(out, x, wait="stage_full")
                _send_total(ctx, total, totals.advance(2, piece), ctx.r_stage, arrival)
        ctx.bump(ctx.r_stage)
    return left


def _send_total(
    ctx: GridContext, staged: Descriptor, target: Descriptor, turn: int, arrival: tuple[str, int] | None = None
) -> None:
    """Send the staged sums of squares of entry R[turn], and give the stage back."""
    with ctx.b.descriptors(2) as (x, out):
        ctx.load_ring(x, staged, turn)
        ctx.b.load(out, target)
        ctx.to_group(out)
        ctx.put_to_rows(out, x, post="stage_free", arrival=arrival)


def _total(ctx: GridContext, staged: Descriptor, target: Descriptor, turn: int) -> Callable[[], None]:
    """The same, later; `turn` is a register of its own."""

    def send() -> None:
        _send_total(ctx, staged, target, turn)
        ctx.b.release(turn)

    return send


def make_r(ctx: GridContext, which: str) -> None:
    """r = rsqrt(t * c + eps) of every row when all sums and codes have come; M is told that they have."""
    b, rows = ctx.b, ctx.rows
    width = ctx.hidden // ctx.grid.piece
    with b.descriptors(4) as (t, mean, eps, r):
        b.load(t, ctx.spad(f"tb_{which}", "FP32", (rows, 1, width), (width, 0, 1), xe=Cell.ROWS))
        b.load(SCRATCH, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
        b.vec(0, t, red=Red.SUM, wait="partials", post="p_full")
        b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0), xe=Cell.ROWS))
        b.load(mean, ctx.constant(Constant.MEAN))
        b.load(eps, ctx.constant(Constant.EPS))
        b.vec(r, r, mean, eps, op1=Op1.MUL, op2=Op2.ADD, func=Func.RSQRT)

"""Norms on the grid: a slice's columns of the residual stream as operand of the next norm, and the factor r.

The operand lies part by part of `width` columns, [parts, rows, width]; a slice makes a run of them, and sums the
squares of each, an aligned subtree of the tree over all. It sends the parts of the last product of o or down when their
turn comes (`deal`), others over the rounds of the next product (`spread`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from systolith.compiler.context import Cell, Constant, Counter
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.grid.deal import Deal
from systolith.compiler.kernels.grid.spread import Spread, Steps
from systolith.compiler.kernels.norm import add_sums
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Func, Op1, Op2, Red

__all__ = [
    "await_store", "deal_operand", "load_gains", "load_residual", "make_r", "residual", "send_last", "send_part",
    "stage_part", "store_residual",
]  # fmt: skip


def residual(ctx: GridContext, part: int) -> Descriptor:
    """A part of the residual stream in hand, [rows, 1, width]; two have room."""
    rows, w = ctx.rows, ctx.grid.width
    return ctx.spad("x", "FP32", (rows, 1, w), (w, 0, 1), offset=4 * rows * w * (part % 2), xe=Cell.ROWS)


def _stored(ctx: GridContext, part: int) -> Descriptor:
    rows, w = ctx.rows, ctx.grid.width
    return ctx.dram("grid_x", "FP32", (rows, 1, w), (w, 0, 1), step=rows * w, xe=Cell.ROWS).advance(3, part)


def load_residual(ctx: GridContext, parts: range, rounds: int) -> Steps:
    """Load parts of the residual stream, when those before are stored; V waits for load_full. In steps of the rows of a
    chunk or of half of them, so that they hold up nothing else, one in each of at most `rounds` rounds."""
    b, grid, rows = ctx.b, ctx.grid, ctx.rows
    cut = 2 if 2 * len(parts) * grid.chunks <= rounds else 1
    steps, t = len(parts) * grid.chunks * cut, grid.tokens // cut
    d, a, chunk = b.descriptor(), b.descriptor(), b.register()

    def begin() -> None:
        for view, x in ((residual(ctx, parts[0]), d), (_stored(ctx, parts[0]), a)):
            b.load(x, replace(view, ext=(t, 1, grid.width), xe=0))
        b.set(chunk, 0)
        b.sync(Queue.L, wait="cached")

    def step() -> None:
        none, same = ctx.label(), ctx.label()
        with b.registers(1) as (there,):
            b.read(there, Cell.GRID_CHUNKS)
            b.alu(AluFn.MUL, there, there, cut)
            b.branch_r(none, Cond.GE, chunk, there)
        b.copy(Queue.L, d, a)
        b.place(none)
        b.alu(AluFn.ADD, chunk, chunk, 1)
        b.branch(same, Cond.NE, chunk, grid.chunks * cut)
        b.set(chunk, 0)
        b.place(same)
        for x in (d, a):
            b.advance(x, 0, t)

    def end() -> None:
        b.sync(Queue.L, post="load_full")
        b.release(chunk)
        b.release_descriptor(a)
        b.release_descriptor(d)

    assert rows == grid.chunks * grid.tokens  # parts follow each other
    return Steps(steps, begin, step, end)


def store_residual(ctx: GridContext, parts: range) -> None:
    """Store them, once V has done everything before."""
    b = ctx.b
    b.sync(Queue.V, post="store_full")
    with b.descriptors(2) as (d, a):
        for part in parts:
            b.load(a, residual(ctx, part))
            b.load(d, _stored(ctx, part))
            b.copy(Queue.S, d, a, wait="store_full" if part == parts[0] else "",
                   post="cached" if part == parts[-1] else "")  # fmt: skip


def await_store(ctx: GridContext, *, tell: bool = True) -> None:
    """Let L wait until the residual stream is stored: others may have its place. tell : V too."""
    b = ctx.b
    b.sync(Queue.L, wait="cached", post="load_full" if tell else "")
    b.sync(Queue.S, post="cached")
    if tell:
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


# ---- parts of the operand ------------------------------------------------------------------------------------------


def _staged(ctx: GridContext, *, xe: int = 0) -> Descriptor:
    rows, w = ctx.rows, ctx.grid.width
    return ctx.stage(ctx.plan.profile.activations, (1, rows, w), (rows * w, w, 1), scales=True, xe=xe)


def _total(ctx: GridContext, *, xe: int = 0) -> Descriptor:
    return ctx.words("stage_total", "FP32", ctx.rows, (ctx.rows, 1, 1), (1, 0, 0), xe=xe)


def stage_part(ctx: GridContext, part: int, half: int) -> None:
    """Codes of x * g and the sum of squares of a part of the residual stream, into the next entry of the stage."""
    b, rows, w = ctx.b, ctx.rows, ctx.grid.width
    with b.pair() as d, b.descriptors(2) as (x, g):
        b.load(x, residual(ctx, part))
        b.load(g, ctx.spad("g", "FP32", (rows, 1, w), (0, 0, 1), offset=4 * (half * ctx.grid.shard + part * w)))
        ctx.load_ring(d, replace(_staged(ctx), ext=(rows, 1, w), stride=(w, 0, 1)), ctx.r_stage)
        ctx.load_ring(d + 1, _total(ctx), ctx.r_stage)
        b.vec(d, x, g, op1=Op1.MUL, red=Red.SUMSQ, wait="stage_free", post="stage_full")


def _place(ctx: GridContext, which: str, part: int) -> Descriptor:
    """Part number `part` of slice 0 of a row group, [1, rows, width], in operand "a" or "b"."""
    rows, w = ctx.rows, ctx.grid.width
    fmt = ctx.plan.profile.activations
    view = ctx.spad(which, fmt, (1, rows, w), (rows * w, w, 1), scales=rows * ctx.hidden, step=rows * ctx.grid.shard)
    return view.advance(0, part)


def _put_total(
    ctx: GridContext, which: str, part: int, turn: int, back: int, arrival: tuple[str, int] | None = None
) -> None:  # fmt: skip
    """Send the sums of squares of entry R[turn] - back, and give the stage back."""
    rows = ctx.rows
    with ctx.b.descriptors(2) as (x, out):
        ctx.load_ring(x, _total(ctx, xe=Cell.ROWS), turn)
        ctx.b.advance(x, 3, -back)
        totals = ctx.spad(f"tb_{which}", "FP32", (rows, 1, 1), (1, 0, 0), offset=4 * rows * part,
                          step=rows * ctx.grid.shares, xe=Cell.ROWS)  # fmt: skip
        ctx.b.load(out, totals)
        ctx.to_group(out)
        ctx.put_to_rows(out, x, post="stage_free", arrival=arrival)


def _put_part(
    ctx: GridContext, which: str, part: int, back: int, *, wait: str = "stage_full"
) -> None:  # fmt: skip
    """Send a part that was staged `back` stages ago, with its sums, which of the last one of a slice arrive."""
    b = ctx.b
    counter = Counter.SUMS_A if which == "a" else Counter.SUMS_B
    with b.descriptors(2) as (x, out):
        ctx.load_ring(x, _staged(ctx), ctx.r_stage)
        b.advance(x, 3, -back)
        b.load(out, _place(ctx, which, part))
        ctx.to_group(out)
        with ctx.reading(Cell.ROWS) as rows:
            for d in (x, out):
                b.extent_r(d, 1, rows)
        ctx.put_to_rows(out, x, wait=wait)
    last = ("partials", counter) if part == ctx.grid.shares - 1 else None
    _put_total(ctx, which, part, ctx.r_stage, back, last)


def send_part(ctx: GridContext, which: str, part: int, *, spread: bool = False) -> list[Spread]:
    """Send the part just staged to the slices with the same rows, as operand "a" or "b". spread : leave it to be sent
    over rounds."""
    left = []
    if spread:
        turn = ctx.b.register()
        ctx.b.move(turn, ctx.r_stage)

        def tail() -> None:
            _put_total(ctx, which, part, turn, 0)
            ctx.b.release(turn)

        left.append(Spread(ctx, _staged(ctx), _place(ctx, which, part), tail=tail))
    else:
        _put_part(ctx, which, part, 0)
    ctx.bump(ctx.r_stage)
    return left


def deal_operand(ctx: GridContext, which: str) -> Deal:
    """The parts that the last product of o, of down or of the table has left staged, each sent in its turn."""
    grid = ctx.grid
    first = grid.shares - grid.dealt

    sends = [partial(_put_part, ctx, which, first + n, grid.dealt - n) for n in range(grid.dealt)]
    return Deal(ctx, grid.shares, first, sends)


def send_last(ctx: GridContext, which: str) -> None:
    """Send the parts that are staged where no rounds follow, when all of the row group have done with the operand
    before, parts of which may lie where these come."""
    grid, b = ctx.grid, ctx.b
    for _ in range(grid.dealt):
        b.sync(Queue.C, wait="stage_full")
    ctx.arrive_at_rows("arrived", Counter.OPERAND_H)
    b.sync(Queue.L, wait="arrived", post="own_weights")
    b.sync(Queue.C, wait="own_weights")
    for number in range(grid.dealt):
        _put_part(ctx, which, grid.shares - grid.dealt + number, grid.dealt - number, wait="")


def make_r(ctx: GridContext, which: str) -> None:
    """r = rsqrt(t * c + eps) of every row when all sums have come; t is the tree over the parts, level by level."""
    b, rows, parts = ctx.b, ctx.rows, ctx.hidden // ctx.grid.width
    b.sync(Queue.V, wait="partials")
    with ctx.reading(Cell.ROWS) as count, b.descriptors(4) as (t, other, mean, eps):
        add_sums(ctx, f"tb_{which}", parts, count, t, other)
        b.load(t, ctx.spad(f"tb_{which}", "FP32", (1, 1, rows), (0, 0, 1)))
        b.load(other, ctx.spad("r", "FP32", (1, 1, rows), (0, 0, 1)))
        for d in (t, other):
            b.extent_r(d, 2, count)
        b.load(mean, ctx.constant(Constant.MEAN))
        b.load(eps, ctx.constant(Constant.EPS))
        b.vec(other, t, mean, eps, op1=Op1.MUL, op2=Op2.ADD, func=Func.RSQRT)

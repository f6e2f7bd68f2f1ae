"""RMSNorm: what a slice sends of its residual shard, and the factor r that the receivers apply.

Rule 6: a block of 32 columns is sent as codes of x * g and one sum of squares; every slice adds the sums by the tree.
A norm that is deferred multiplies the product by r; one that is not needs r before it quantises: the sums travel first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from systolith.compiler.context import SCRATCH, Cell, Constant, Context, Counter, Norm
from systolith.compiler.kernels.dump import store_rows, tap
from systolith.compiler.kernels.team import Sent, send_by_team
from systolith.compiler.team import deal_of_x
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn
from systolith.isa.vector import Func, Op1, Op2, Red
from systolith.spec.limits import BLOCK

__all__ = [
    "add_sums", "branch", "cut", "finish_norm", "load_gains", "load_residual", "make_r", "norm_branch", "residual",
    "residual_tiles", "send_tile", "store_residual", "tap_residual",
]  # fmt: skip


def load_gains(ctx: Context, norm: Norm) -> None:
    """Have the gains of the next norm in this slice's shard: loaded, or where they stay, found by `_gains`.

    V waits for what is loaded here and gives it back in `finish_norm`. Either way V knows from the second norm of a
    layer on that S has stored K and V.
    """
    b, shard = ctx.b, ctx.shard
    ctx.norm = norm
    if ctx.plan.gains_resident:
        if norm is Norm.NEXT:
            b.sync(Queue.L, post="load_full")
            b.sync(Queue.V, wait="load_full")
        return
    stream = ctx.streams["g"]
    with b.descriptors(1) as (d,):
        b.load(d, ctx.spad("g", "FP32", (1, 1, shard), (0, 0, 1), offset=4 * shard * _half(norm)))
        b.copy(Queue.L, d, stream, wait="load_free", post="load_full")
        b.advance(stream, 3, 1)
    b.sync(Queue.V, wait="load_full")


def _half(norm: Norm) -> int:
    """Which of two buffers the gains of a norm take: they take turns."""
    return int(norm is Norm.SECOND)


def _gains(ctx: Context, d: int, tile: int, norm: Norm) -> None:
    """D[d] = the gains of a tile, the same for every row: [rows, blocks, 32]."""
    b, nt, shard = ctx.b, ctx.plan.tile, ctx.shard
    resident, sets = ctx.plan.gains_resident, len(ctx.plan.model.layer_norms)
    places = {Norm.FIRST: 0, Norm.SECOND: sets // 2, Norm.NEXT: sets, Norm.POST_O: 1, Norm.POST_DOWN: 3}
    start = places[norm] if resident else _half(norm)
    b.load(d, ctx.spad("g", "FP32", (ctx.rows, nt // BLOCK, BLOCK), (0, BLOCK, 1), offset=4 * shard * start, step=nt))
    b.advance_r(d, 3, tile)
    if resident and norm is not Norm.FIRST:
        with b.registers(1) as (skip,):
            b.set(skip, sets * shard)
            b.alu_r(AluFn.MUL, skip, skip, ctx.r_layer)
            b.advance_r(d, 2, skip)


def residual(ctx: Context, d: int, tile: int, *, blocks: bool = False) -> None:
    """D[d] = the residual tile: [rows, 1, nt] or [rows, nt/32, 32]; `tile` is the register of its number."""
    nt, rows = ctx.plan.tile, ctx.rows
    stride = ctx.shard if ctx.plan.x_resident else nt
    ext, strides = ((rows, nt // BLOCK, BLOCK), (stride, BLOCK, 1)) if blocks else ((rows, 1, nt), (stride, 0, 1))
    ctx.b.load(d, ctx.spad("x", "FP32", ext, strides, step=nt, xe=Cell.ROWS))
    cut(ctx, d, blocks=blocks)
    if ctx.plan.x_resident:
        ctx.b.advance_r(d, 3, tile)


@contextmanager
def residual_tiles(ctx: Context) -> Iterator[int]:
    """Repeat for each residual tile of the slice; gives the register that counts from 0."""
    if not ctx.plan.o.unit:
        with ctx.cell_loop(Cell.O_TILES) as tile:
            yield tile
        return
    with ctx.b.registers(1) as (tile,):
        ctx.b.set(tile, 0)
        yield tile


def cut(ctx: Context, *descriptors: int, blocks: bool = False, sums: bool = False) -> None:
    """Cut residual tiles in registers to the blocks that the slice has, where not all slices have as many: [rows, 1,
    columns]; blocks: [rows, blocks, 32]; sums: [rows, 1, blocks]."""
    if not ctx.plan.o.unit:
        return
    b = ctx.b
    with b.registers(1) as (count,):
        b.read(count, Cell.O_TILES)
        if not (blocks or sums):
            b.alu(AluFn.MUL, count, count, BLOCK)
        for d in descriptors:
            b.extent_r(d, 1 if blocks else 2, count)


def tap_residual(ctx: Context, name: str, tile: int) -> None:
    """Store the residual tile as intermediate `name`, where the program stores any."""
    if not tap(ctx):
        return
    nt, rows, resident = ctx.plan.tile, ctx.rows, ctx.plan.x_resident
    view = ctx.spad("x", "FP32", (rows, 1, nt), (ctx.shard if resident else nt, 0, 1), step=nt, xe=Cell.ROWS)
    with ctx.b.registers(1) as (columns,):
        if ctx.plan.o.unit:
            ctx.b.read(columns, Cell.O_TILES)
            ctx.b.alu(AluFn.MUL, columns, columns, BLOCK)
        store_rows(ctx, name, view, first=Cell.O_FIRST, step=ctx.plan.residual_part, index=tile,
                   advance=tile if resident else 0, columns=columns if ctx.plan.o.unit else 0)  # fmt: skip


def send_tile(ctx: Context, which: str, tile: int, *, late: bool = False) -> None:
    """Send the residual tile as operand `which`, "a" or "b".

    Codes of x * g and sums of squares; only the sums where the norm is not deferred; `late`: only codes of x * r * g.
    """
    b, plan = ctx.b, ctx.plan
    nt, rows, fmt = plan.tile, ctx.rows, plan.profile.activations
    codes = late or plan.profile.deferred_norm
    blocks = nt // BLOCK
    arrivals = _arrivals(which) if plan.one_residual_tile else {}
    with b.pair() as d, b.descriptors(4) as (x, g, r, out):
        residual(ctx, x, tile, blocks=True)
        _gains(ctx, g, tile, ctx.norm)
        b.load(r, ctx.spad("r", "FP32", (rows, blocks, BLOCK), (1, 0, 0)))
        ctx.load_ring(d, ctx.stage(fmt, (rows, blocks, BLOCK), (nt, BLOCK, 1), scales=True), ctx.r_stage)
        strides = (1, rows, 0) if plan.team_norms else (blocks, 1, 0)
        sums = ctx.words("stage_sums", "FP32", rows * blocks, (rows, blocks, 1), strides)
        ctx.load_ring(d + 1, sums, ctx.r_stage)
        if late:
            b.vec(d, x, r, g, op1=Op1.MUL, op2=Op2.MUL, wait="stage_free", post="stage_full")
        elif codes:
            b.vec(d, x, g, op1=Op1.MUL, red=Red.SUMSQ, wait="stage_free", post="stage_full")
        else:
            ctx.load_ring(SCRATCH, sums, ctx.r_stage)
            b.vec(0, x, red=Red.SUMSQ, wait="stage_free", post="stage_full")
        # C: both go to every slice, at this shard's columns.
        free = "stage_free" if late else ""
        if codes and plan.team_norms:
            deal = deal_of_x(plan)
            assert deal is not None
            staged, cells = ctx.stage(fmt, (rows, 1, nt), (nt, 0, 1), scales=True), (Cell.O_FIRST, Cell.O_TILES)
            send_by_team(ctx, Sent(staged, deal, cells, "team_x", which, ctx.hidden, arrivals["operand"]), post=free)
        elif codes:
            width = ctx.hidden
            ctx.load_ring(x, ctx.stage(fmt, (rows, 1, nt), (nt, 0, 1), scales=True, xe=Cell.ROWS), ctx.r_stage)
            b.load(
                out,
                ctx.spad(
                    which,
                    fmt,
                    (rows, 1, nt),
                    (width, 0, 1),
                    scales=rows * width,
                    step=plan.residual_part,
                    xb=Cell.O_FIRST,
                    xe=Cell.ROWS,
                ),
            )
            cut(ctx, x, out)
            b.advance_r(out, 3, tile)
            b.put(out, x, wait="stage_full", post=free, arrival=arrivals.get("operand"))
        if not late:
            arrival = arrivals.get("partials")
            wait = "" if codes else "stage_full"
            if plan.team_norms:
                _send_sums_by_blocks(ctx, f"tb_{which}", x, out, wait=wait, arrival=arrival)
            else:
                _send_sums(ctx, f"tb_{which}", x, out, tile, wait=wait, arrival=arrival)
    ctx.bump(ctx.r_stage)


def _send_sums(
    ctx: Context, name: str, source: int, out: int, tile: int, *, wait: str, arrival: tuple[str, int] | None = None
) -> None:
    """Send a tile's staged sums of squares, one a block, to all slices. source, out: free descriptor registers."""
    b, rows, blocks, width = ctx.b, ctx.rows, ctx.plan.tile // BLOCK, ctx.plan.d_blocks
    ctx.load_ring(
        source, ctx.words("stage_sums", "FP32", rows * blocks, (rows, 1, blocks), (blocks, 0, 1), xe=Cell.ROWS),
        ctx.r_stage,
    )  # fmt: skip
    b.load(
        out,
        ctx.spad(name, "FP32", (rows, 1, blocks), (width, 0, 1), step=ctx.plan.residual_part // BLOCK, xb=Cell.O_FIRST,
                 xe=Cell.ROWS),
    )  # fmt: skip
    cut(ctx, source, out, sums=True)
    b.advance_r(out, 3, tile)
    b.put(out, source, wait=wait, post="stage_free", arrival=arrival)


def _send_sums_by_blocks(
    ctx: Context, name: str, source: int, out: int, *, wait: str, arrival: tuple[str, int] | None = None
) -> None:
    """The same where they lie block by block, [blocks, rows]: a slice's are a few long runs. It has one tile."""
    b, plan = ctx.b, ctx.plan
    rows, blocks, each = ctx.rows, plan.tile // BLOCK, plan.residual_part // BLOCK
    ctx.load_ring(
        source, ctx.words("stage_sums", "FP32", rows * blocks, (blocks, 1, rows), (rows, 0, 1)), ctx.r_stage
    )  # fmt: skip
    b.load(out, ctx.spad(name, "FP32", (blocks, 1, rows), (rows, 0, 1), step=rows * each, xb=Cell.O_FIRST))
    with b.registers(1) as (count,):
        if plan.o.unit:
            b.read(count, Cell.O_TILES)
            for d in (source, out):
                b.extent_r(d, 0, count)
        b.read(count, Cell.ROWS)
        for d in (source, out):
            b.extent_r(d, 2, count)
    b.put(out, source, wait=wait, post="stage_free", arrival=arrival)


def add_sums(ctx: Context, name: str, parts: int, count: int, left: int, right: int, *, wait: str = "") -> None:
    """Add up the sums [parts, rows] of R[count] rows in place by the tree over parts, level by level; an odd last one
    stays for the next level. left, right: free descriptor registers; wait: of the first level."""
    b, rows, every = ctx.b, ctx.rows, 1

    def sums(first: int, number: int) -> Descriptor:
        return ctx.spad(name, "FP32", (number, 1, rows), (2 * every * rows, 0, 1), offset=4 * first * rows)

    while every < parts:
        pairs = -(-parts // every) // 2
        for d, first in ((left, 0), (right, every)):
            b.load(d, sums(first, pairs))
            b.extent_r(d, 2, count)
        b.vec(left, left, right, op1=Op1.ADD, wait=wait if every == 1 else "")
        every *= 2


def branch(ctx: Context, *, blocks: bool = False) -> Descriptor:
    """Describe the first tile of what o or down gives, before its norm; a step is a tile."""
    nt, rows, shard = ctx.plan.tile, ctx.rows, ctx.shard
    ext, stride = ((rows, nt // BLOCK, BLOCK), (shard, BLOCK, 1)) if blocks else ((rows, 1, nt), (shard, 0, 1))
    return ctx.spad("branch", "FP32", ext, stride, step=nt, xe=Cell.ROWS)


def norm_branch(ctx: Context, norm: Norm) -> None:
    """branch = RNE(RNE(y * r) * g), y what o or down gives, r of its whole rows: their sums of squares travel first."""
    b, rows, blocks = ctx.b, ctx.rows, ctx.plan.tile // BLOCK
    with b.descriptors(2) as (y, out), residual_tiles(ctx) as tile:
        b.load(y, branch(ctx, blocks=True))
        b.advance_r(y, 3, tile)
        ctx.load_ring(
            SCRATCH, ctx.words("stage_sums", "FP32", rows * blocks, (rows, blocks, 1), (blocks, 1, 0)), ctx.r_stage
        )
        b.vec(0, y, red=Red.SUMSQ, wait="stage_free", post="stage_full")
        _send_sums(ctx, "tb_post", y, out, tile, wait="stage_full")
        ctx.bump(ctx.r_stage)
    ctx.arrive(("partials", Counter.SUMS_POST))
    make_r(ctx, "post")
    with b.descriptors(3) as (y, r, g), residual_tiles(ctx) as tile:
        b.load(y, branch(ctx, blocks=True))
        b.advance_r(y, 3, tile)
        b.load(r, ctx.spad("r", "FP32", (rows, blocks, BLOCK), (1, 0, 0)))
        _gains(ctx, g, tile, norm)
        b.vec(y, y, r, g, op1=Op1.MUL, op2=Op2.MUL)


def _arrivals(which: str) -> dict[str, tuple[str, int]]:
    """How a slice says that its sums of squares and its codes are sent."""
    sums, codes = (Counter.SUMS_A, Counter.OPERAND_A) if which == "a" else (Counter.SUMS_B, Counter.OPERAND_B)
    return {"partials": ("partials", sums), "operand": ("operand", codes)}


def finish_norm(ctx: Context, which: str, *, ahead: int = 0) -> None:
    """Say that this slice's shard is sent, unless its one tile has said so; where the norm is not deferred, make r and
    send the codes first.

    ahead: layers from the running one to the one whose norm this is.
    """
    b = ctx.b
    arrivals, said = _arrivals(which), ctx.plan.one_residual_tile
    if ctx.plan.profile.deferred_norm:
        if not said:
            ctx.arrive(*arrivals.values())
    else:
        if not said:
            ctx.arrive(arrivals["partials"])
        make_r(ctx, which, ahead=ahead)
        with residual_tiles(ctx) as tile:
            load_residual(ctx, tile)
            send_tile(ctx, which, tile, late=True)
            if not ctx.plan.x_resident:
                # The tile is unchanged; it only gives its buffer back.
                b.sync(Queue.V, post="store_full")
                b.sync(Queue.S, wait="store_full", post="residual")
        if not said:
            ctx.arrive(arrivals["operand"])
    if not ctx.plan.gains_resident:
        b.sync(Queue.V, post="load_free")


def make_r(ctx: Context, which: str, *, ahead: int = 0) -> None:
    """r = rsqrt(t * c + eps) of every row, from the gathered sums of squares; V waits for them."""
    b, rows = ctx.b, ctx.rows
    with b.descriptors(4) as (t, mean, eps, r):
        width = ctx.plan.d_blocks
        by_blocks = ctx.plan.team_norms and which != "post"
        if by_blocks:
            with b.descriptors(2) as (left, right), b.registers(1) as (count,):
                if width == 1:
                    b.sync(Queue.V, wait="partials")
                b.read(count, Cell.ROWS)
                add_sums(ctx, f"tb_{which}", width, count, left, right, wait="partials")
            b.load(t, ctx.spad(f"tb_{which}", "FP32", (rows, 1, 1), (1, 0, 0), xe=Cell.ROWS))
        else:
            b.load(t, ctx.spad(f"tb_{which}", "FP32", (rows, 1, width), (width, 0, 1), xe=Cell.ROWS))
            b.load(SCRATCH, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
            b.vec(0, t, red=Red.SUM, wait="partials")
        b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0), xe=Cell.ROWS))
        b.load(mean, ctx.constant(Constant.MEAN))
        b.load(eps, ctx.constant(Constant.EPS))
        b.vec(r, t if by_blocks else r, mean, eps, op1=Op1.MUL, op2=Op2.ADD, func=Func.RSQRT)
    if tap(ctx) and which != "post":
        store_rows(
            ctx,
            "r_attention" if which == "a" else "r_ffn",
            ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 1), xe=Cell.ROWS),
            ahead=ahead,
        )


def load_residual(ctx: Context, tile: int) -> None:
    """Load a residual tile where the stream lives in DRAM; V waits for it, and `residual` comes back when it is
    stored."""
    if ctx.plan.x_resident:
        return
    b, nt, rows = ctx.b, ctx.plan.tile, ctx.rows
    with b.descriptors(2) as (d, source):
        b.load(d, ctx.spad("x", "FP32", (rows, 1, nt), (nt, 0, 1), xe=Cell.ROWS))
        b.load(source, ctx.dram("x", "FP32", (rows, 1, nt), (nt, 0, 1), step=rows * nt, xe=Cell.ROWS))
        cut(ctx, d, source)
        b.advance_r(source, 3, tile)
        b.copy(Queue.L, d, source, wait="residual", post="load_full")
    b.sync(Queue.V, wait="load_full")


def store_residual(ctx: Context, tile: int) -> None:
    """Store the residual tile that V has just finished, where the stream lives in DRAM."""
    if ctx.plan.x_resident:
        return
    b, nt, rows = ctx.b, ctx.plan.tile, ctx.rows
    b.sync(Queue.V, post="store_full")
    with b.descriptors(2) as (d, source):
        b.load(source, ctx.spad("x", "FP32", (rows, 1, nt), (nt, 0, 1), xe=Cell.ROWS))
        b.load(d, ctx.dram("x", "FP32", (rows, 1, nt), (nt, 0, 1), step=rows * nt, xe=Cell.ROWS))
        cut(ctx, d, source)
        b.advance_r(d, 3, tile)
        b.copy(Queue.S, d, source, wait="store_full", post="residual")

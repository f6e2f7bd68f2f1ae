"""The matrix product of one tile of columns, and its sums as the vector unit sees them.

Weights run through the slots in the order in which they lie in memory; the loop over K is a COPY into a slot and a
MATMUL out of it. A span is one chain of adds in the accumulator; several spans are joined by the tree of rule 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from systolith.compiler.context import Cell, Context
from systolith.compiler.plan import LinearPlan
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn
from systolith.isa.vector import Op1, Op2

__all__ = [
    "Sums", "bias_tile", "fetch_ahead", "ffn_cells", "finish", "load_stream", "open_streams", "operand", "product",
    "sums",
]  # fmt: skip


def open_streams(ctx: Context) -> None:
    """Take the descriptors that walk through the weights (and biases) of each class."""
    for linear in ctx.plan.linears:
        ctx.streams[linear.name] = ctx.b.descriptor()
        if ctx.plan.model.bias(linear.name):
            ctx.streams[f"bias_{linear.name}"] = ctx.b.descriptor()


def rewind(ctx: Context) -> None:
    """Point the streams at the first layer: once a step. Those of experts are pointed at each by itself."""
    for linear in ctx.plan.linears:
        if linear.copies == 1:
            load_stream(ctx, linear)


def load_stream(ctx: Context, linear: LinearPlan) -> None:
    """Point the streams of a class at its first matrix. A step is a matrix, dimension 1 of it a tile of columns."""
    k, tiles = linear.kt * linear.terms, ctx.plan.most_tiles(linear)
    tile = linear.tile_elements
    ctx.b.load(
        ctx.streams[linear.name],
        ctx.dram(f"w_{linear.name}", linear.format, (linear.parts[0].nt, 1, k), (k, tile, 1),
                 scales=f"ws_{linear.name}", step=tiles * tile),
    )  # fmt: skip
    if ctx.plan.model.bias(linear.name):
        ctx.b.load(
            ctx.streams[f"bias_{linear.name}"],
            ctx.dram(f"bias_{linear.name}", "FP32", (1, 1, linear.nt), (0, linear.nt, 1), step=tiles * linear.nt),
        )


def operand(ctx: Context, name: str, width: int, fmt: str, rows: int, xe: int) -> Descriptor:
    """Describe a gathered operand [rows, 1, width] whose MATMULs take `kt` columns at a time (ext[2] is set later)."""
    return ctx.spad(name, fmt, (rows, 1, width), (width, 0, 1), scales=rows * width, xe=xe)


def product(
    ctx: Context,
    linear: LinearPlan,
    source: Descriptor,
    rows: int,
    xe: int,
    *,
    first: int = 0,
    count: int = 0,
    turn: int = 0,
    ahead: bool = True,
    later: int = 0,
) -> None:
    """Multiply the operand by the next tile of a class: weights on W, sums into the next accumulator half on M.

    first, count: registers of the first row and the number of rows, where these are not all of the step; turn: register
    that moves the operand along its step. ahead: what `Plan.ahead` says has been fetched before (`fetch_ahead`).
    later: element of K from which on the operand comes with another token; 0: all is there.
    """
    b = ctx.b
    fetched = ctx.plan.ahead.get(linear.name, 0) if ahead else 0
    stream = ctx.streams[linear.name]
    b.sync(Queue.M, wait="acc_free")
    with b.descriptors(3) as (a, slot, acc):
        for number, (start, length) in enumerate(linear.spans):
            ctx.load_ring(slot, ctx.slot(linear), ctx.r_slot)
            ctx.load_ring(acc, ctx.acc(rows, linear.nt, span=number, xe=xe), ctx.r_acc)
            b.load(a, _columns(source, start, linear.kt))
            if first:
                b.advance_r(a, 0, first)
            if turn:
                b.advance_r(a, 3, turn)
            if count:
                b.extent_r(a, 0, count)
            slots = length // linear.kt
            there = min(fetched, slots)
            fetched -= there
            # The slot that reaches into what comes later, and those behind it.
            late = min(max(0, (later - start) // linear.kt), slots) if later else 0
            ends = sorted({0, there, late, slots})
            for begin, end in pairwise(ends):
                copies = begin >= there
                if later and begin == late and start <= later < start + length:
                    b.sync(Queue.M, wait="operand")
                with b.loop(end - begin):
                    if copies:
                        b.copy(Queue.W, slot, stream, wait="slot_free", post="slot_full")
                        b.advance(stream, 0, linear.nt)
                    b.matmul(acc, a, slot, zero=0 if begin else 2, terms=linear.terms, wait="slot_full",
                             post="slot_free")  # fmt: skip
                    b.advance(slot, 3, 1)
                    b.advance(a, 2, linear.kt)
            ctx.bump(ctx.r_slot, slots)
    b.sync(Queue.M, post="acc_full")


def fetch_ahead(ctx: Context) -> None:
    """Fetch the weights of `Plan.ahead` before the words of attention: the sequencer hands out words in order, and
    would come to them only when attention is nearly done. They lie one behind the other in the ring."""
    b, plan = ctx.b, ctx.plan
    with b.registers(1) as (fill,):
        b.move(fill, ctx.r_slot)
        cells = {"o": Cell.O_TILES, "router": Cell.ROUTER_TILES}
        for linear in plan.after_attention(ctx.kind.experts):
            if linear.name not in plan.ahead:
                continue
            tiles = cells.get(linear.name) or ffn_cells(ctx, linear)[1]
            b.tensor_name = linear.name
            with b.loop(plan.most_tiles(linear)) if linear.unit else ctx.cell_loop(tiles):
                with b.descriptors(1) as (slot,):
                    ctx.load_ring(slot, ctx.slot(linear.parts[0]), fill)
                    stream = ctx.streams[linear.name]
                    with b.loop(plan.ahead[linear.name]):
                        b.copy(Queue.W, slot, stream, wait="slot_free", post="slot_full")
                        b.advance(stream, 0, linear.parts[0].nt)
                        b.advance(slot, 3, 1)
                b.alu(AluFn.ADD, fill, fill, plan.ahead[linear.name])
    b.tensor_name = ""


def ffn_cells(ctx: Context, gate: LinearPlan) -> tuple[Cell, Cell]:
    """Cells with the first tile and the tiles of a feed-forward's gate (or up)."""
    if ctx.plan.dense is not None and gate.name in ("gate", "up"):
        return Cell.DENSE_FIRST, Cell.DENSE_TILES
    shared = gate.name.startswith("shared_")
    return (Cell.SHARED_FIRST, Cell.SHARED_TILES) if shared else (Cell.FFN_FIRST, Cell.FFN_TILES)


def _columns(source: Descriptor, start: int, count: int) -> Descriptor:
    """The first `count` columns of an operand from column `start` on."""
    moved = source.advance(2, start)
    return moved.with_ext(2, count)


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of a tile, ready to be read as [rows, 1, nt].

    d: descriptor register; wait, post: semaphores for the first instruction that reads them and the last one.
    """

    d: int
    wait: str
    post: str


@contextmanager
def sums(ctx: Context, linear: LinearPlan, rows: int, xe: int, *, count: int = 0) -> Iterator[Sums]:
    """Give the sums of the tile that `product` made; joins spans by the tree on V. Counts the accumulator on.

    count: register of the number of rows, where these are not all of the step.
    """
    b = ctx.b
    with b.descriptors(1) as (d,):
        if len(linear.spans) == 1:
            ctx.load_ring(d, ctx.acc(rows, linear.nt, xe=xe), ctx.r_acc)
            wait, post = "acc_full", "acc_free"
        else:
            _join(ctx, linear, rows, xe, count)
            b.load(d, _joined(ctx, linear, rows, xe, 0))
            wait = post = ""
        if count:
            b.extent_r(d, 0, count)
        ctx.bump(ctx.r_acc)
        yield Sums(d, wait, post)


def finish(ctx: Context, linear: LinearPlan, s: Sums, out: int, r: int = 0, *, wait: str = "", post: str = "") -> None:
    """D[out] = the sums, times D[r] where one is given, plus the bias of a class that has one.

    wait, post: semaphores beside those of the sums and of the bias.
    """
    b, op1 = ctx.b, Op1.MUL if r else Op1.NONE
    if ctx.plan.model.bias(linear.name):
        with bias_tile(ctx, linear) as bias:
            b.vec(out, s.d, r, bias, op1=op1, op2=Op2.ADD, wait=f"{s.wait} load_full {wait}",
                  post=f"{s.post} load_free {post}")  # fmt: skip
    else:
        b.vec(out, s.d, r, op1=op1, wait=f"{s.wait} {wait}", post=f"{s.post} {post}")


def _joined(ctx: Context, linear: LinearPlan, rows: int, xe: int, index: int) -> Descriptor:
    n = linear.nt
    return ctx.spad("spans", "FP32", (rows, 1, n), (n, 0, 1), offset=4 * index * rows * n, xe=xe)


def _join(ctx: Context, linear: LinearPlan, rows: int, xe: int, rows_r: int) -> None:
    """Join the spans pairwise, level by level; an odd last one passes up. The first level reads the accumulator."""
    b, count = ctx.b, len(linear.spans)
    with b.descriptors(3) as (d, left, right):
        for i in range(0, count, 2):
            last = i + 2 >= count
            wait, post = ("acc_full" if i == 0 else ""), ("acc_free" if last else "")
            b.load(d, _joined(ctx, linear, rows, xe, i // 2))
            ctx.load_ring(left, ctx.acc(rows, linear.nt, span=i, xe=xe), ctx.r_acc)
            if rows_r:
                b.extent_r(left, 0, rows_r)
            if i + 1 < count:
                ctx.load_ring(right, ctx.acc(rows, linear.nt, span=i + 1, xe=xe), ctx.r_acc)
                b.vec(d, left, right, op1=Op1.ADD, wait=wait, post=post)
            else:
                b.vec(d, left, wait=wait, post=post)
        count = -(-count // 2)
        while count > 1:
            for i in range(0, count, 2):
                b.load(d, _joined(ctx, linear, rows, xe, i // 2))
                b.load(left, _joined(ctx, linear, rows, xe, i))
                if rows_r:
                    b.extent_r(left, 0, rows_r)
                if i + 1 < count:
                    b.load(right, _joined(ctx, linear, rows, xe, i + 1))
                    b.vec(d, left, right, op1=Op1.ADD)
                elif i:
                    b.vec(d, left)
            count = -(-count // 2)


@contextmanager
def bias_tile(ctx: Context, linear: LinearPlan) -> Iterator[int]:
    """Load the next tile of a class's bias for V: gives a descriptor register, broadcast over rows.

    The first reader waits for load_full, the last one posts load_free.
    """
    b = ctx.b
    entries = ctx.plan.load_entries
    width = ctx.memory.spad_sizes["bias_ring"] // 4 // entries
    with b.descriptors(2) as (d, view):
        ctx.load_ring(
            d, ctx.words("bias_ring", "FP32", width, (1, 1, linear.nt), (0, 0, 1), entries=entries), ctx.r_load
        )
        rows = ctx.words("bias_ring", "FP32", width, (ctx.rows, 1, linear.nt), (0, 0, 1), entries=entries)
        ctx.load_ring(view, rows, ctx.r_load)
        stream = ctx.streams[f"bias_{linear.name}"]
        b.copy(Queue.L, d, stream, wait="load_free", post="load_full")
        b.advance(stream, 2, linear.nt)
        ctx.bump(ctx.r_load)
        yield view

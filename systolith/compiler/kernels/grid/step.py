"""Steps on the grid: they come before all others of a job, and leave keys and values behind, no logits."""

from __future__ import annotations

from dataclasses import replace

from systolith.compiler.context import Cell, Constant, Context, Counter
from systolith.compiler.grid import HEAD_WORDS, MAX_CHUNKS, Grid
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.grid.layer import layer
from systolith.compiler.kernels.grid.norm import (
    await_store,
    load_gains,
    make_r,
    residual,
    send_last,
    send_part,
    stage_part,
    store_residual,
)
from systolith.compiler.kernels.grid.rounds import Rounds
from systolith.compiler.memory import Memory
from systolith.compiler.plan import padded
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Op1
from systolith.numerics.formats import FORMATS
from systolith.spec.limits import RANK_REGISTER

__all__ = ["write_grid"]


def write_grid(base: Context, grid: Grid, memory: Memory) -> None:
    """Write the loop of all steps on the grid; it is passed over where there are none."""
    ctx = GridContext.of(base, grid, memory)
    b = ctx.b
    again, done = ctx.label(), ctx.label()
    b.tensor_name = "grid"
    b.alu(AluFn.AND, ctx.r_member, RANK_REGISTER, grid.members - 1)
    with b.descriptors(1) as (stream,):
        left = ctx.r_left
        words = grid.step_words
        b.load(stream, ctx.dram("grid_steps", "INT32", (1, 1, HEAD_WORDS), (0, 0, 1), step=words))
        with b.descriptors(2) as (d, a):
            b.load(d, ctx.cell(Cell.COLUMN_FIRST, 3))
            b.load(a, ctx.dram("ranks", "INT32", (1, 1, 3), (0, 0, 1), offset=4 * 29))
            b.copy(Queue.L, d, a, post="loaded")
        b.read(left, Cell.GRID_STEPS, wait="loaded")
        b.place(again)
        b.branch(done, Cond.EQ, left, 0)
        _load_step(ctx, stream)
        b.advance(stream, 3, 1)
        _step(ctx)
        b.alu(AluFn.SUB, left, left, 1)
        b.branch(again)
        b.place(done)
    ctx.give_back()
    b.tensor_name = ""


def _step(ctx: GridContext) -> None:
    """One step."""
    b, plan = ctx.b, ctx.plan
    # What M gives back in other steps stands for other things here: L takes all of it, and M gives it back at the end.
    for _ in range(ctx.kv_tokens):
        b.sync(Queue.L, wait="kv_free")
    # Of S and L: a token for the one buffer of the residual stream, which goes from tile to tile.
    b.sync(Queue.S, post="cached")
    rounds = Rounds(ctx)
    b.set(ctx.r_layer, 0)
    rounds.begin()
    _embed(ctx)
    layers = ctx.label()
    b.place(layers)
    layer(ctx, rounds)
    b.branch(layers, Cond.NE, ctx.r_layer, plan.model.layers)
    rounds.close()
    send_last(ctx, "a")
    make_r(ctx, "a")
    _send_picked(ctx)
    # When S too has done its last store all slices meet.
    await_store(ctx)
    b.sync(Queue.L, wait="cached")
    for _ in range(ctx.kv_tokens):
        b.sync(Queue.M, post="kv_free")
    ctx.arrive(("arrived", Counter.LOGITS))
    b.sync(Queue.L, wait="arrived")
    b.sync(Queue.V, post="released")


def _send_picked(ctx: GridContext) -> None:
    """Send the operand of the head and the factor r of the prompt's last row to the memory of all slices, if the step
    has that row: the first column group's slice of its row group does."""
    b, fmt, rows, hidden = ctx.b, ctx.plan.profile.activations, ctx.rows, padded(ctx.plan.model.hidden)
    none = ctx.label()
    with ctx.reading(Cell.GRID_PICK) as row, b.registers(1) as (slot,), b.descriptors(2) as (a, d):
        b.branch(none, Cond.EQ, row, 0)
        b.branch(none, Cond.GE, RANK_REGISTER, ctx.grid.members)
        with ctx.reading(Cell.GRID_PICKER) as member:
            b.alu(AluFn.SHR, slot, member, 8)
            b.alu(AluFn.AND, member, member, (1 << 8) - 1)
            b.branch_r(none, Cond.NE, member, ctx.r_member)
        b.alu(AluFn.SUB, row, row, 1)
        b.sync(Queue.V, wait="stage_free", post="stage_full")
        w = ctx.grid.width
        whole, rest = divmod(hidden, w)
        cuts = [(0, whole, w)] * (whole > 0) + [(whole, 1, rest)] * (rest > 0)
        for first, parts, columns in cuts:
            view = ctx.spad("a", fmt, (parts, 1, columns), (rows * w, w, 1), scales=rows * ctx.hidden)
            b.load(a, view.advance(0, first))
            b.advance_r(a, 1, row)
            view = ctx.dram(
                "grid_picked", fmt, (parts, 1, columns), (w, 0, 1), scales="grid_picked_scales", step=hidden
            )
            b.load(d, view.advance(0, first))
            b.advance_r(d, 3, slot)
            b.put(d, a, wait="" if first else "stage_full")
        b.load(a, ctx.spad("r", "FP32", (1, 1, 1), (1, 0, 0)))
        b.advance_r(a, 0, row)
        b.load(d, ctx.dram("grid_r", "FP32", (1, 1, 1), (1, 0, 0)))
        b.advance_r(d, 0, slot)
        b.put(d, a, post="stage_free")
    b.place(none)


def _load_step(ctx: GridContext, stream: int) -> None:
    """Load the head of the step into cells, this row group's ids and positions, the pages and keepers of its chunks."""
    b, plan, grid, rows = ctx.b, ctx.plan, ctx.grid, ctx.rows
    b.tensor_name = "grid"
    with b.descriptors(2) as (d, a), b.registers(2) as (entry, lane):
        b.load(d, ctx.cell(Cell.ROWS, HEAD_WORDS))
        b.copy(Queue.L, d, stream, wait="released", post="loaded")
        b.read(entry, Cell.GRID_FIRST + 1, wait="loaded")
        b.read(lane, Cell.GRID_FIRST + 2)
        b.load(d, ctx.spad("grid_rows", "INT32", (1, 1, 2 * rows), (0, 0, 1)))
        b.load(a, ctx.dram("grid_steps", "INT32", (1, 1, 2 * rows), (0, 0, 1), offset=4 * HEAD_WORDS, step=2 * rows))
        b.advance_r(a, 3, ctx.r_member)
        with b.registers(2) as (number, words):
            b.read(number, Cell.GRID_FIRST + 3)
            b.set(words, grid.step_words)
            b.alu_r(AluFn.MUL, number, number, words)
            b.advance_r(a, 2, number)
        b.copy(Queue.L, d, a)
        bits = plan.page_tokens.bit_length() - 1
        with b.registers(1) as (page,):
            b.alu(AluFn.MUL, page, ctx.r_member, grid.tokens)
            b.alu(AluFn.SHR, page, page, bits)
            b.alu_r(AluFn.ADD, entry, entry, page)
        pages = grid.chunk_pages
        b.load(d, replace(ctx.cell(Cell.GRID_PAGE), ext=(1, grid.chunks, pages), stride=(0, pages, 1)))
        b.load(a, ctx.spad("pages", "INT32", (1, grid.chunks, pages), (0, plan.pages_per_chunk, 1), step=1))
        b.advance_r(a, 3, entry)
        with ctx.reading(Cell.GRID_CHUNKS) as chunks:
            b.extent_r(a, 1, chunks)
            b.extent_r(d, 1, chunks)
        b.copy(Queue.L, d, a)
        b.load(d, ctx.cell(Cell.GRID_KEEPER, MAX_CHUNKS))
        b.load(a, ctx.dram("grid_owners", "INT32", (1, 1, MAX_CHUNKS), (0, 0, 1), step=1))
        b.advance_r(a, 3, lane)
        b.copy(Queue.L, d, a, post="loaded")
        b.read(lane, Cell.GRID_KEEPER, wait="loaded")


def _embed(ctx: GridContext) -> None:
    """x = table[ids], this slice's columns, product by product; then the first layer's norm."""
    b, plan, rows, w = ctx.b, ctx.plan, ctx.rows, ctx.grid.width
    fmt = plan.profile.embed
    b.tensor_name = "embed"
    load_gains(ctx, 0, 0, 0)
    for part in range(ctx.grid.shares):
        with b.descriptors(5) as (ids, table, entry, x, factor):
            b.load(ids, ctx.spad("grid_rows", "INT32", (rows, 1, 1), (1, 0, 0)))
            source = ctx.dram("grid_table", fmt, (rows, 1, w), (ctx.grid.shard, 0, 1), scales="grid_table_scales",
                              xe=Cell.ROWS, via=ids)  # fmt: skip
            b.load(table, source.advance(2, part * w))
            # The table's rows lie where the part after this one comes.
            view = ctx.spad("x", fmt, (rows, 1, w), (w, 0, 1), offset=4 * rows * w * ((part + 1) % 2), xe=Cell.ROWS)
            codes = rows * w * FORMATS[fmt].bits // 8
            b.load(entry, replace(view, scale=1, sbase=view.base + codes))
            b.copy(Queue.L, entry, table, wait="cached", post="load_full")
            b.load(x, residual(ctx, part))
            scaled = plan.model.embed_scale != 1.0
            if scaled:
                b.load(factor, ctx.constant(Constant.EMBED_SCALE))
            b.vec(x, entry, factor if scaled else 0, op1=Op1.MUL if scaled else Op1.NONE, wait="load_full")
        stage_part(ctx, part, 0)
        if part < ctx.grid.shares - ctx.grid.dealt:
            send_part(ctx, "a", part)
        else:
            ctx.bump(ctx.r_stage)
        store_residual(ctx, range(part, part + 1))
    b.tensor_name = ""

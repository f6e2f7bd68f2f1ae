"""Attention on the grid: a slice has all queries of a KV head for its rows, and all keys and values before them.

Chunks come from this slice's copies of the prompt's keys and values; lanes and their tree are those of any step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from systolith.compiler.context import Cell, Counter
from systolith.compiler.kernels.attention import attend_lanes
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.partial import Partial
from systolith.compiler.kernels.segment import Segment, Tile, Unit
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn
from systolith.isa.vector import Func, Op1

__all__ = ["attention"]


@dataclass(frozen=True, slots=True)
class _Whole(Unit):
    """The one unit of a slice: all lanes of its head."""

    @contextmanager
    def head(self) -> Iterator[int]:
        """A register with 0: the queries in the scratchpad are those of the head."""
        with self.ctx.b.registers(1) as (r,):
            self.ctx.b.set(r, 0)
            yield r


def attention(ctx: GridContext) -> None:
    """Attend the rows of this slice, chunk by chunk of the step, and send the result to the slices with the same
    rows."""
    b, grid, plan = ctx.b, ctx.grid, ctx.plan
    b.tensor_name = "attention"
    # Entries for keys and values are free; L has taken the tokens of all rounds before.
    for _ in range(plan.kv_entries):
        b.sync(Queue.M, post="kv_free")
    b.sync(Queue.L, wait="arrived")
    with b.registers(6) as (packed, position, first, tokens, chunk, zero):
        b.set(zero, 0)
        b.set(chunk, 0)
        b.alu(AluFn.MUL, position, ctx.r_member, grid.tokens)
        with ctx.reading(Cell.GRID_FIRST) as start:
            b.alu_r(AluFn.ADD, position, position, start)
        with ctx.reading(Cell.GRID_CHUNKS) as chunks:
            place = b.open_loop(chunks)
        if True:
            b.alu(AluFn.MUL, packed, chunk, grid.tokens)
            b.alu(AluFn.SHL, packed, packed, 10)
            with b.registers(1) as (count,):
                b.set(count, grid.tokens << 20)
                b.alu_r(AluFn.OR, packed, packed, count)
            segment = Segment(ctx, packed, position)
            b.set(first, 0)
            b.set(tokens, plan.tile_tokens)
            with b.loop(grid.tokens // plan.tile_tokens):
                _attend(ctx, Tile(segment, _Whole(ctx, zero, zero), first, tokens))
                b.alu(AluFn.ADD, first, first, plan.tile_tokens)
            b.alu(AluFn.ADD, position, position, 256)
            b.alu(AluFn.ADD, chunk, chunk, 1)
        b.close_loop(place)
    for _ in range(plan.kv_entries):
        b.sync(Queue.L, wait="kv_free")
    b.sync(Queue.V, wait="stage_free", post="stage_full")
    ctx.arrive_at_rows("arrived", Counter.OPERAND_ATTENTION, wait="stage_full", post="stage_free")
    b.tensor_name = ""


def _attend(ctx: GridContext, tile: Tile) -> None:
    """One tile of query tokens: its lanes merged, divided by l, quantised, sent to the parts of the operand of o."""
    b, grid, plan = ctx.b, ctx.grid, ctx.plan
    g, dp, w, rows = plan.group_queries, plan.dp, grid.width, ctx.rows
    fmt, tokens = plan.profile.activations, plan.tile_tokens
    current = Partial(ctx, 0)
    attend_lanes(ctx, tile, current)
    with b.descriptors(4) as (a, inverse, stage, out):
        current.load(ctx, a, "l")
        b.load(inverse, ctx.spad("inverse", "FP32", (tokens, g, 1), (g, 1, 0)))
        b.vec(inverse, a, func=Func.RCP)
        current.load(ctx, a, "o")
        ctx.load_ring(stage, ctx.stage(fmt, (tokens, g, dp), (g * dp, dp, 1), scales=True), ctx.r_stage)
        b.vec(stage, a, inverse, op1=Op1.MUL, wait="stage_free", post="stage_full")
        parts = g * dp // w
        ctx.load_ring(stage, ctx.stage(fmt, (tokens, parts, w), (g * dp, w, 1), scales=True), ctx.r_stage)
        b.load(out, ctx.dram("grid_attention", fmt, (tokens, parts, w), (w, rows * w, 1),
                             scales="grid_attention_scales", step=parts * rows * w))  # fmt: skip
        with tile.segment.row() as row:
            b.advance_r(out, 0, row)
        b.advance_r(out, 0, tile.first)
        ctx.to_group(out)
        ctx.put_to_rows(out, stage, wait="stage_full", post="stage_free")
    ctx.bump(ctx.r_stage)

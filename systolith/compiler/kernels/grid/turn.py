"""Queries, keys and values on the grid: rotary and quantisation of a head, and where the codes go.

Queries stay with their rows. Keys and values of all rows go to all slices of the column group, whose rows meet them, at
the positions of the prompt; and to the one slice that keeps the chunk for the steps to come, into the request's page.
"""

from __future__ import annotations

from dataclasses import replace

from systolith.compiler.context import Cell, Counter
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.qkv import rotate_and_quantise
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Red
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["send_keys", "send_values", "stage_keys", "stage_values", "turn_queries"]


def turn_queries(ctx: GridContext, head: int) -> None:
    """Query head number `head` of the group, turned and quantised, into its place."""
    plan, rows = ctx.plan, ctx.rows
    dp, count = plan.dp, plan.group_queries * ctx.rows * ctx.plan.dp
    view = ctx.spad("q", plan.profile.k, (rows, 1, dp), (dp, 0, 1), scales=count, step=rows * dp)
    with ctx.b.descriptors(1) as (d,):
        ctx.b.load(d, view.advance(3, head))
        rotate_and_quantise(ctx, d)


def stage_keys(ctx: GridContext) -> None:
    """Turn and quantise the key head into the stage."""
    dp, rows = ctx.plan.dp, ctx.rows
    with ctx.b.descriptors(1) as (d,):
        ctx.load_ring(d, ctx.stage(ctx.plan.profile.k, (rows, 1, dp), (dp, 0, 1), scales=True), ctx.r_stage)
        rotate_and_quantise(ctx, d, wait="stage_free", post="stage_full")
    ctx.bump(ctx.r_stage)


def send_keys(ctx: GridContext, back: int) -> None:
    """Send the keys that were staged `back` stages ago. The slice arrives: values went before."""
    plan, grid = ctx.plan, ctx.grid
    fmt, dp = plan.profile.k, plan.dp
    t, pool = grid.tokens, ctx.first_plan.pool_pages * plan.page_tokens
    source = ctx.stage(fmt, (grid.chunks, t, dp), (t * dp, dp, 1), scales=True)
    copy = ctx.dram("grid_k", fmt, (grid.chunks, t, dp), (CHUNK_TOKENS * dp, dp, 1), scales="grid_k_scales",
                    step=grid.positions * dp)  # fmt: skip
    page = ctx.dram(
        "k_cache", fmt, (1, grid.page_part, dp), (pool * dp, dp, 1), scales="k_scales", step=plan.page_tokens * dp
    )
    _send(ctx, source, copy, page, 1, back, wait="stage_full", post="stage_free", arrive=True)


def stage_values(ctx: GridContext) -> None:
    """Quantise the value head with one scale a row into the stage."""
    b, dp, rows = ctx.b, ctx.plan.dp, ctx.rows
    scales = ctx.words("stage_vscale", "E8M0", -(-rows // 4) * 4, (rows, 1, 1), (1, 0, 0))
    with b.pair() as d, b.descriptors(1) as (x,):
        b.load(x, ctx.spad("head_tile", "FP32", (rows, 1, dp), (dp, 0, 1), xe=Cell.ROWS))
        ctx.load_ring(d, ctx.stage(ctx.plan.profile.v, (rows, 1, dp), (dp, 0, 1)), ctx.r_stage)
        ctx.load_ring(d + 1, scales, ctx.r_stage)
        b.vec(d, x, red=Red.ROWSCALE, wait="stage_free", post="stage_full")
    ctx.bump(ctx.r_stage)


def send_values(ctx: GridContext, back: int) -> None:
    """Send the values, codes and scales, that were staged `back` stages ago."""
    plan, grid, rows = ctx.plan, ctx.grid, ctx.rows
    fmt, dp = plan.profile.v, plan.dp
    t, pool = grid.tokens, ctx.first_plan.pool_pages * plan.page_tokens
    source = ctx.stage(fmt, (grid.chunks, t, dp), (t * dp, dp, 1))
    copy = ctx.dram("grid_v", fmt, (grid.chunks, t, dp), (CHUNK_TOKENS * dp, dp, 1), step=grid.positions * dp)
    page = ctx.dram("v_cache", fmt, (1, grid.page_part, dp), (pool * dp, dp, 1), step=plan.page_tokens * dp)
    _send(ctx, source, copy, page, 1, back, wait="stage_full")
    source = ctx.words("stage_vscale", "E8M0", -(-rows // 4) * 4, (grid.chunks, 1, t), (t, 0, 1))
    copy = ctx.dram("grid_vscale", "E8M0", (grid.chunks, 1, t), (CHUNK_TOKENS, 0, 1), step=grid.positions)
    page = ctx.dram("v_scales", "E8M0", (1, 1, grid.page_part), (pool, 0, 1), step=plan.page_tokens)
    _send(ctx, source, copy, page, 2, back, post="stage_free")


def _send(
    ctx: GridContext, source: Descriptor, copy: Descriptor, page: Descriptor, along: int, back: int, *, wait: str = "",
    post: str = "", arrive: bool = False,
) -> None:  # fmt: skip
    """Send staged rows [chunks, ., .] to the column group, at their positions, and chunk by chunk to the pages of those
    who keep them. along : dimension that tokens lie along. back : stages since."""
    b, grid = ctx.b, ctx.grid
    with b.descriptors(2) as (a, d), b.registers(1) as (at,):
        ctx.load_ring(a, source, ctx.r_stage)
        b.advance(a, 3, -back)
        b.load(d, copy)
        with ctx.reading(Cell.GRID_CHUNKS) as chunks:
            b.extent_r(a, 0, chunks)
            b.extent_r(d, 0, chunks)
        b.advance_r(d, 3, ctx.r_layer)
        b.alu(AluFn.MUL, at, ctx.r_member, grid.tokens)
        with ctx.reading(Cell.GRID_FIRST) as first:
            b.alu_r(AluFn.ADD, at, at, first)
        b.advance_r(d, along, at)
        ctx.put_to_columns(d, a, wait=wait)
        b.alu(AluFn.MUL, at, ctx.r_member, grid.tokens)
        b.alu(AluFn.AND, at, at, ctx.plan.page_tokens - 1)
        done = ctx.label()
        for chunk in range(grid.chunks):
            if chunk:
                with ctx.reading(Cell.GRID_CHUNKS) as chunks:
                    b.branch(done, Cond.LT, chunks, chunk + 1)
            for part in range(grid.chunk_pages):
                ctx.load_ring(a, source.with_ext(0, 1).with_ext(along, grid.page_part), ctx.r_stage)
                b.advance(a, 3, -back)
                b.advance(a, 0, chunk)
                b.advance(a, along, part * grid.page_part)
                b.load(d, replace(page, xb=Cell.GRID_PAGE + chunk * grid.chunk_pages + part))
                b.advance_r(d, 0, ctx.r_layer)
                b.advance_r(d, along, at)
                b.put(d, a, Cell.GRID_KEEPER + chunk, 1)
        b.place(done)
        if arrive:
            b.arrive(ctx.nothing, "arrived", Counter.KV, Cell.COLUMN_FIRST, grid.members, post=post)
        elif post:
            b.sync(Queue.C, post=post)

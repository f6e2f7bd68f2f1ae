"""Embedding: rows of the table by token, dequantised, as the first residual stream."""

from __future__ import annotations

from systolith.compiler.context import Cell, Constant, Context, Norm
from systolith.compiler.kernels.norm import (
    cut,
    finish_norm,
    load_gains,
    residual,
    residual_tiles,
    send_tile,
    store_residual,
    tap_residual,
)
from systolith.compiler.memory import ring_bytes
from systolith.isa.instruction import Queue
from systolith.isa.vector import Op1

__all__ = ["embed"]


def embed(ctx: Context) -> None:
    """x = table[ids], this slice's columns; then the first layer's norm. The ids lie in the step record."""
    b, plan = ctx.b, ctx.plan
    nt, rows, fmt = plan.tile, ctx.rows, plan.profile.embed
    b.tensor_name = "embed"
    load_gains(ctx, Norm.FIRST)
    with residual_tiles(ctx) as tile, b.descriptors(5) as (ids, table, entry, x, codes):
        b.load(ids, ctx.spad("record", "INT32", (rows, 1, 1), (1, 0, 0), offset=4 * ctx.memory.record.ids))
        b.load(
            table,
            ctx.dram(
                "table", fmt, (rows, 1, nt), (ctx.shard, 0, 1), scales="table_scales", step=nt, xe=Cell.ROWS, via=ids
            ),
        )
        b.advance_r(table, 3, tile)
        view = ctx.ring(
            "embed_ring", fmt, ring_bytes(rows * nt, fmt), (rows, 1, nt), (nt, 0, 1), scales=True, xe=Cell.ROWS,
            entries=plan.load_entries,
        )  # fmt: skip
        ctx.load_ring(entry, view, ctx.r_load)
        cut(ctx, table, entry)
        wait = "load_free" if plan.x_resident else "load_free residual"
        b.copy(Queue.L, entry, table, wait=wait, post="load_full")
        ctx.load_ring(codes, view, ctx.r_load)
        cut(ctx, codes)
        ctx.bump(ctx.r_load)
        residual(ctx, x, tile)
        scaled = plan.model.embed_scale != 1.0
        if scaled:
            b.load(ids, ctx.constant(Constant.EMBED_SCALE))
        b.vec(x, codes, ids if scaled else 0, op1=Op1.MUL if scaled else Op1.NONE, wait="load_full", post="load_free")
        tap_residual(ctx, "x0", tile)
        send_tile(ctx, "a", tile)
        store_residual(ctx, tile)
    finish_norm(ctx, "a")
    b.tensor_name = ""

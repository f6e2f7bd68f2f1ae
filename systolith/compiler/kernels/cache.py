"""Append: K, V and V's scales of the step's rows go to the pages of their positions, where this slice owns the lane."""

from __future__ import annotations

from systolith.compiler.context import Context
from systolith.compiler.kernels.chunk import page_list
from systolith.compiler.kernels.segment import Segment, Unit, each_segment, each_unit
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["append", "append_row", "await_rows"]


def await_rows(ctx: Context) -> None:
    """Let M wait for q, k and v of all slices, and tell V and S: they came before the arrivals that M counts.

    V too: a unit without a chunk would send its empty partial into a slice that is not done with q, k and v.
    """
    b = ctx.b
    b.sync(Queue.M, wait="operand", post="acc_full")
    b.sync(Queue.V, wait="acc_full", post="store_full")


def append(ctx: Context) -> None:
    """Store this step's K and V, for later steps: attention takes them from the scratchpad. L waits for `cached`.

    Decode rows that are attended by themselves are stored there (`append_row`), and S says so behind them.
    """
    b, plan = ctx.b, ctx.plan
    b.tensor_name = "cache"
    b.sync(Queue.S, wait="store_full")
    with each_segment(ctx) as segment, b.registers(1) as (lane,):
        # Group of the segment's lane: (chunk mod R) / lanes of a unit.
        b.alu(AluFn.SHR, lane, segment.position, CHUNK_TOKENS.bit_length() - 1)
        b.alu(AluFn.AND, lane, lane, plan.profile_lanes - 1)
        b.alu(AluFn.SHR, lane, lane, plan.lanes_local.bit_length() - 1)
        with each_unit(ctx, segment) as unit:
            elsewhere = ctx.label()
            b.branch_r(elsewhere, Cond.NE, lane, unit.group)
            _append_unit(ctx, segment, unit)
            b.place(elsewhere)
    if not plan.round_chunks:
        b.sync(Queue.S, post="cached")
    b.tensor_name = ""


def append_row(ctx: Context, segment: Segment, unit: Unit) -> None:
    """Store K and V of a segment of one row."""
    b = ctx.b
    with b.registers(2) as (place, take), segment.row() as row:
        b.alu(AluFn.AND, place, segment.position, ctx.plan.page_tokens - 1)
        b.set(take, 1)
        _append_rows(ctx, segment, unit, segment.position, row, place, take)


def _append_unit(ctx: Context, segment: Segment, unit: Unit) -> None:
    """Page by page three copies, into the page of the position and at its place there."""
    b, page = ctx.b, ctx.plan.page_tokens
    again = ctx.label()
    with b.registers(5) as (position, row, left, place, take):
        b.move(position, segment.position)
        with segment.row() as first, segment.rows() as rows:
            b.move(row, first)
            b.move(left, rows)
        b.place(again)
        b.alu(AluFn.AND, place, position, page - 1)
        b.set(take, page)
        b.alu_r(AluFn.SUB, take, take, place)
        b.alu_r(AluFn.MIN, take, take, left)
        _append_rows(ctx, segment, unit, position, row, place, take)
        b.alu_r(AluFn.ADD, position, position, take)
        b.alu_r(AluFn.ADD, row, row, take)
        b.alu_r(AluFn.SUB, left, left, take)
        b.branch(again, Cond.NE, left, 0)


def _append_rows(ctx: Context, segment: Segment, unit: Unit, position: int, row: int, place: int, take: int) -> None:
    """Copy R[take] rows from row R[row] of the step on to the page of R[position], from R[place] of the page on."""
    b, plan = ctx.b, ctx.plan
    rows, kv = plan.rows, plan.model.kv_heads
    pool = plan.pool_pages * plan.page_tokens
    layer = plan.units_local * pool
    bits = plan.page_tokens.bit_length() - 1
    with page_list(ctx, segment) as pages, b.descriptors(2) as (a, d):
        pages.advance(position)
        for name, fmt, width, scaled in (
            ("k", plan.profile.k, plan.kp, True), ("v", plan.profile.v, plan.dp, False), ("vscale", "E8M0", 1, False),
        ):  # fmt: skip
            if name == "v" and plan.model.latent is not None:
                continue  # the latent is key and value
            inner = 1 if width > 1 else 0
            b.load(
                a,
                ctx.spad(name, fmt, (rows, 1, width), (width, rows * width, inner),
                         scales=kv * rows * width if scaled else None),
            )  # fmt: skip
            b.advance_r(a, 0, row)
            with unit.head() as head:
                b.advance_r(a, 1, head)
            region = {"k": "k_cache", "v": "v_cache", "vscale": "v_scales"}[name]
            b.load(
                d,
                ctx.dram(region, fmt, (rows, 1, width), (width, pool * width, inner),
                         scales="k_scales" if scaled else "", step=layer * width, via=pages.d, unit=bits),
            )  # fmt: skip
            b.advance_r(d, 0, place)
            b.advance_r(d, 1, unit.number)
            b.advance_r(d, 3, ctx.r_layer)
            b.extent_r(a, 0, take)
            b.extent_r(d, 0, take)
            b.copy(Queue.S, d, a)

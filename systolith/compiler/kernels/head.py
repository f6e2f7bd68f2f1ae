"""The head: rows that need logits are picked, multiplied by the table and told to whoever needs them."""

from __future__ import annotations

from systolith.compiler.context import Cell, Context, Counter
from systolith.compiler.kernels.linear import operand, product, sums
from systolith.compiler.memory import OWNER_CELLS
from systolith.compiler.plan import padded
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Op1

__all__ = ["head"]


def head(ctx: Context) -> None:
    """Logits of the picked rows, FP32, to the slices that sample them, into DRAM or, a single row, the scratchpad. The
    final norm's operand and sums have been gathered; V has r."""
    b, plan = ctx.b, ctx.plan
    fmt, rows, hidden = plan.profile.activations, plan.rows, ctx.hidden
    out_rows, xe = plan.out_rows, Cell.OUT_ROWS
    deferred = plan.profile.deferred_norm
    b.tensor_name = "head"
    # L may read the operand when V has its sums and M, which tells V, its codes.
    b.sync(Queue.M, post="acc_full")
    b.sync(Queue.V, wait="acc_full", post="released")
    with b.descriptors(3) as (index, a, d):
        b.load(index, ctx.spad("record", "INT32", (out_rows, 1, 1), (1, 0, 0), offset=4 * ctx.memory.record.out_rows))
        sources = [(
            ctx.spad("a", fmt, (rows, 1, hidden), (hidden, 0, 1), scales=rows * hidden, via=index),
            ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0), via=index),
        )]  # fmt: skip
        if ctx.after_grid:
            batch = plan.options.batch
            sources.append((
                ctx.dram("grid_picked", fmt, (batch, 1, hidden), (hidden, 0, 1), scales="grid_picked_scales",
                         via=index),
                ctx.dram("grid_r", "FP32", (batch, 1, 1), (1, 0, 0), via=index),
            ))  # fmt: skip
        done = ctx.label()
        for number, (codes, factors) in enumerate(sources):
            other = ctx.label()
            if number < len(sources) - 1:
                with b.registers(1) as (flag,):
                    b.read(flag, Cell.FROM_GRID)
                    b.branch(other, Cond.NE, flag, 0)
            b.load(a, codes)
            b.load(d, ctx.spad("picked", fmt, (out_rows, 1, hidden), (hidden, 0, 1), scales=out_rows * hidden, xe=xe))
            b.copy(Queue.L, d, a, wait="released", post="kv_full" if deferred else "kv_full load_full")
            if deferred:
                b.load(a, factors)
                b.load(d, ctx.spad("r_picked", "FP32", (out_rows, 1, 1), (1, 0, 0), xe=xe))
                b.copy(Queue.L, d, a, post="load_full")
            if number < len(sources) - 1:
                b.branch(done)
            b.place(other)
        b.place(done)
        b.sync(Queue.V, wait="load_full")
    b.sync(Queue.M, wait="kv_full")
    # The words of a tile's product come before those that send the tile before: the sequencer hands out words in order,
    # and there are many of the latter where each row goes to another slice.
    some, last = ctx.label(), ctx.label()
    with b.registers(2) as (tile, tiles):
        b.read(tiles, Cell.HEAD_TILES)
        b.branch(last, Cond.EQ, tiles, 0)
        b.set(tile, 0)
        _product(ctx)
        b.place(some)
        _stage(ctx)
        b.alu(AluFn.ADD, tile, tile, 1)
        sent = ctx.label()
        b.branch_r(sent, Cond.EQ, tile, tiles)
        _product(ctx)
        b.place(sent)
        _send(ctx, tile)
        ctx.bump(ctx.r_stage)
        b.branch_r(some, Cond.NE, tile, tiles)
        b.place(last)
    ctx.arrive(("arrived", Counter.LOGITS))
    b.tensor_name = ""


def _product(ctx: Context) -> None:
    """The next tile's product."""
    plan, xe = ctx.plan, Cell.OUT_ROWS
    source = operand(ctx, "picked", ctx.hidden, plan.profile.activations, plan.out_rows, xe)
    product(ctx, plan.head, source, plan.out_rows, xe)


def _staged(ctx: Context, rows: int, pitch: int, xe: int = 0) -> Descriptor:
    """Describe rows of the staged tile, `pitch` words apart."""
    return ctx.stage("FP32", (rows, 1, ctx.plan.head.nt), (pitch, 0, 1), xe=xe)


def _stage(ctx: Context) -> None:
    """Stage the logits of the tile whose product came last: sums times r."""
    b, plan = ctx.b, ctx.plan
    linear, rows, xe = plan.head, plan.out_rows, Cell.OUT_ROWS
    deferred = plan.profile.deferred_norm
    with b.descriptors(2) as (stage, r), sums(ctx, linear, rows, xe) as s:
        ctx.load_ring(stage, _staged(ctx, rows, linear.nt, xe), ctx.r_stage)
        b.load(r, ctx.spad("r_picked", "FP32", (rows, 1, 1), (1, 0, 0)))
        free = "" if plan.logits_dealt else "stage_free"
        if plan.logits_dealt:
            _name_owners(ctx, 0)
        b.vec(stage, s.d, r if deferred else 0, op1=Op1.MUL if deferred else Op1.NONE,
              wait=f"{s.wait} {free}", post=f"{s.post} stage_full")  # fmt: skip


def _send(ctx: Context, number: int) -> None:
    """Send the staged tile, which is the one before tile R[number]."""
    b = ctx.b
    with b.registers(1) as (tile,):
        b.alu(AluFn.SUB, tile, number, 1)
        if ctx.plan.logits_dealt:
            _deal(ctx, tile)
        else:
            _send_rows(ctx, tile)


def _send_rows(ctx: Context, tile: int) -> None:
    """Send a tile of all rows: to the first slice, or to all where the rows are kept for the host."""
    b, plan = ctx.b, ctx.plan
    nt, rows, width = plan.head.nt, plan.out_rows, padded(plan.model.vocab)
    with b.descriptors(2) as (out, stage):
        ctx.load_ring(stage, _staged(ctx, rows, nt, Cell.OUT_ROWS), ctx.r_stage)
        if plan.logits_stay:
            b.load(out, ctx.spad("logits", "FP32", (1, 1, nt), (0, 0, 1), step=nt, xb=Cell.HEAD_FIRST))
        else:
            b.load(out, ctx.dram("logits", "FP32", (rows, 1, nt), (width, 0, 1), step=nt, xb=Cell.HEAD_FIRST,
                                 xe=Cell.OUT_ROWS))  # fmt: skip
            b.advance_r(out, 0, ctx.r_log)
        b.advance_r(out, 3, tile)
        receivers = 0 if plan.options.log_rows and not plan.options.every_row else 1
        b.put(out, stage, count=receivers, wait="stage_full", post="stage_free")


def _name_owners(ctx: Context, group: int) -> None:
    """Write the ranks of a group of owners into one of two sets of cells, once C is done with what was there."""
    b = ctx.b
    with b.descriptors(2) as (cells, ranks):
        b.load(cells, ctx.cell(Cell.OWNERS + OWNER_CELLS * (group % 2), OWNER_CELLS))
        b.load(ranks, ctx.spad("owners", "INT32", (1, 1, OWNER_CELLS), (0, 0, 1), offset=4 * OWNER_CELLS * group))
        b.vec(cells, ranks, wait="stage_free")


def _deal(ctx: Context, tile: int) -> None:
    """Send the rows of a staged tile to their owners: row r to rank r mod slices, which samples it.

    The ranks come to C in two sets of cells that take turns, each with a token of the staging buffers: so V knows when
    a set has been read.
    """
    b, plan = ctx.b, ctx.plan
    nt, rows, width, slices = plan.head.nt, plan.out_rows, padded(plan.model.vocab), plan.slices
    owners = min(rows, slices)
    groups = -(-owners // (2 * OWNER_CELLS)) * 2
    with b.registers(2) as (total, count), b.descriptors(2) as (out, source):
        b.read(total, Cell.OUT_ROWS)
        for group in range(groups):
            if group:
                _name_owners(ctx, group)
                b.sync(Queue.V, post="stage_full")
            mine = range(OWNER_CELLS * group, min(owners, OWNER_CELLS * (group + 1)))
            if not mine:
                b.sync(Queue.C, wait="stage_full", post="stage_free")
            for owner in mine:
                # Rows owner, owner + slices, ... of those that there are.
                b.alu(AluFn.MAX, count, total, owner)
                b.alu(AluFn.SUB, count, count, owner)
                with b.registers(1) as (every,):
                    b.set(every, slices)
                    b.alu_r(AluFn.CEILDIV, count, count, every)
                most = -(-(rows - owner) // slices)
                ctx.load_ring(source, _staged(ctx, most, slices * nt), ctx.r_stage)
                b.advance(source, 2, owner * nt)
                b.extent_r(source, 0, count)
                b.load(out, ctx.dram("logits", "FP32", (most, 1, nt), (slices * width, 0, 1), step=nt,
                                     offset=4 * owner * width, xb=Cell.HEAD_FIRST))  # fmt: skip
                b.advance_r(out, 3, tile)
                b.extent_r(out, 0, count)
                cell = Cell.OWNERS + OWNER_CELLS * (group % 2) + owner % OWNER_CELLS
                b.put(out, source, cell, 1, wait="stage_full" if owner == mine[0] else "",
                      post="stage_free" if owner == mine[-1] else "")  # fmt: skip

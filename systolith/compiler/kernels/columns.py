"""Columns that are dealt out evenly: how a unit, a head or a block, comes together from the slices that make it.

Slice s of S makes the columns s * c .. (s + 1) * c - 1 of a matrix. A unit of u columns belongs to the slice that makes
its last column; the columns before a border of units that another slice makes come from the slice before, in FP32, into
the same buffer: there r = s * c mod u of them stand before its own. So no slice reads more weights than any other, and
what needs whole units, rotary, norms of heads, scales of blocks, is done where it always is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from systolith.compiler.context import Cell, Context, Counter
from systolith.compiler.plan import LinearPlan
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.spec.limits import RANK_REGISTER

__all__ = ["columns", "made_tiles", "pass_on", "place_columns"]


def columns(
    ctx: Context, linear: LinearPlan, name: str, ext: tuple[int, int, int], stride: tuple[int, int, int], *,
    step: int = 0, xe: int = 0, via: int = 0,
) -> Descriptor:  # fmt: skip
    """Describe a part of the buffer [rows, pitch] of a class. A stride of -1 stands for the pitch of a row."""
    pitch = ctx.plan.column_pitch(linear)
    strides = tuple(pitch if s == -1 else s for s in stride)
    return ctx.spad(f"columns_{name}", "FP32", ext, (strides[0], strides[1], strides[2]), step=step, xe=xe, via=via)


@contextmanager
def made_tiles(ctx: Context, linear: LinearPlan) -> Iterator[int]:
    """Repeat for each tile that the slice makes; gives the register with its first column in the buffer."""
    b = ctx.b
    with b.registers(1) as (place,):
        _before(ctx, linear, place)
        with b.loop(ctx.plan.made(linear) // linear.nt):
            yield place
            b.alu(AluFn.ADD, place, place, linear.nt)


def place_columns(ctx: Context, d: int, view: Descriptor, place: int) -> None:
    """D[d] = a view of the buffer from column R[place] on."""
    ctx.b.load(d, view)
    ctx.b.advance_r(d, 2, place)


def _before(ctx: Context, linear: LinearPlan, r: int) -> None:
    """R[r] = columns of this slice's first unit that the one before makes."""
    b = ctx.b
    b.alu(AluFn.MUL, r, RANK_REGISTER, ctx.plan.made(linear))
    b.alu(AluFn.AND, r, r, linear.unit - 1)


def pass_on(ctx: Context, linear: LinearPlan, whole: Descriptor, count: int = 0) -> None:
    """Send the columns that belong to the next slice there, and let V wait for those of the slice before.

    whole : all columns that a slice makes, from the start of the buffer, [rows, n, made] or [rows, 1, made].
    count : register of the number of rows, where the view does not say it.
    """
    b, last = ctx.b, ctx.label()
    b.sync(Queue.V, wait="stage_free", post="stage_full")
    with b.registers(2) as (tail, start), b.descriptors(2) as (out, source):
        _before(ctx, linear, start)
        b.alu(AluFn.ADD, start, start, ctx.plan.made(linear))
        b.alu(AluFn.AND, tail, start, linear.unit - 1)
        # Behind the last slice there is none: what it has too much are zeros.
        b.branch(last, Cond.NE, RANK_REGISTER, ctx.plan.slices - 1)
        b.set(tail, 0)
        b.place(last)
        b.alu_r(AluFn.SUB, start, start, tail)
        b.load(source, whole)
        b.advance_r(source, 2, start)
        b.load(out, whole)
        for d in (source, out):
            b.extent_r(d, 2, tail)
            if count:
                b.extent_r(d, 0, count)
        b.send(out, source, Cell.NEXT_RANK, ("columns", Counter.COLUMNS), wait="stage_full", post="stage_free")
    b.sync(Queue.V, wait="columns")

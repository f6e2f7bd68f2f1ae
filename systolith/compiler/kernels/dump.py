"""Taps: the same program with intermediates stored in FP32, for `logits --dump`. Nothing else of it changes.

A tap waits until its store is done, so that it needs no buffer of its own: a program with taps is slower, and computes
the same.
"""

from __future__ import annotations

from systolith.compiler.context import Context
from systolith.compiler.memory import dump_widths
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn

__all__ = ["store_rows", "tap"]


def tap(ctx: Context) -> bool:
    """Whether the program stores intermediates."""
    return ctx.plan.options.dump


def store_rows(ctx: Context, name: str, source: Descriptor, *, first: int = 0, step: int = 0, index: int = 0,
               row: int = 0, tile: int = 0, extent: int = 0, columns: int = 0, advance: int = 0,
               ahead: int = 0) -> None:  # fmt: skip
    """Store [rows, e1, e2] of the scratchpad in region `name`, at the layer `ahead` of this and the tokens done so far.

    The columns start at (X[first] + R[index]) * step, e1 runs in steps of its own extent e2 (padded heads). row, tile:
    registers added to the token number; extent, columns: registers of the rows and of e2; advance: register that moves
    the source along its step.
    """
    b, plan = ctx.b, ctx.plan
    width = 1 if name.startswith("r_") else dump_widths(plan).get(name, ctx.hidden)
    tokens = max(plan.options.log_rows, plan.rows)
    rows, e1, e2 = source.ext
    with b.descriptors(2) as (d, a):
        b.load(a, source)
        target = ctx.dram(f"dump_{name}", "FP32", (rows, e1, e2), (width, plan.dp if e1 > 1 else 0, 1), step=step,
                          xb=first, xe=source.xe)  # fmt: skip
        b.load(d, target)
        if name != "x0":
            # A layer is `tokens` rows further on.
            with b.registers(1) as (skip,):
                b.set(skip, tokens)
                b.alu_r(AluFn.MUL, skip, skip, ctx.r_layer)
                b.advance_r(d, 0, skip)
            b.advance(d, 0, ahead * tokens)
        b.advance_r(d, 0, ctx.r_log)
        for register in (row, tile):
            if register:
                b.advance_r(d, 0, register)
        if index:
            b.advance_r(d, 3, index)
        if advance:
            b.advance_r(a, 3, advance)
        for dim, register in ((0, extent), (2, columns)):
            if register:
                b.extent_r(a, dim, register)
                b.extent_r(d, dim, register)
        b.sync(Queue.V, post="store_full")
        b.copy(Queue.S, d, a, wait="store_full", post="store_free")
        b.sync(Queue.V, wait="store_free")

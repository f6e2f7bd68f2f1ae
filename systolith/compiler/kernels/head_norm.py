"""Norms of the heads of q and k: each row of a head by itself, before it is turned (rule 6, not deferred).

The gains of a layer, q's then k's, come in one load; they stay until the last head of k is normed.
"""

from __future__ import annotations

from systolith.compiler.context import SCRATCH, Cell, Constant, Context
from systolith.isa.instruction import Queue
from systolith.isa.vector import Func, Op1, Op2, Red

__all__ = ["give_back_head_gains", "load_head_gains", "norm_head", "rewind_head_gains"]


def rewind_head_gains(ctx: Context) -> None:
    """Point the stream at the first layer: once a step."""
    words = 2 * ctx.plan.model.head_dim
    ctx.b.load(ctx.streams["g_head"], ctx.dram("g_head", "FP32", (1, 1, words), (0, 0, 1), step=words))


def load_head_gains(ctx: Context) -> None:
    """Load this layer's gains; V waits for them here.

    One buffer will do: V has given them back before L gets through the loads of the same layer that follow.
    """
    b, stream = ctx.b, ctx.streams["g_head"]
    with b.descriptors(1) as (d,):
        b.load(d, ctx.spad("g_head", "FP32", (1, 1, 2 * ctx.plan.model.head_dim), (0, 0, 1)))
        b.copy(Queue.L, d, stream, wait="load_free", post="load_full")
        b.advance(stream, 3, 1)
    b.sync(Queue.V, wait="load_full")


def give_back_head_gains(ctx: Context) -> None:
    """Let L fill the gains' buffer again."""
    ctx.b.sync(Queue.V, post="load_free")


def norm_head(ctx: Context, name: str) -> None:
    """head_tile = RNE(RNE(x * r) * g) in its d columns, r = rsqrt(RNE(RNE(t * c) + eps)), t the tree of the squares."""
    b, rows, dp, d = ctx.b, ctx.rows, ctx.plan.dp, ctx.plan.model.head_dim
    with b.descriptors(4) as (x, r, mean, other):
        b.load(x, ctx.spad("head_tile", "FP32", (rows, 1, d), (dp, 0, 1), xe=Cell.ROWS))
        b.load(SCRATCH, ctx.spad("r_head", "FP32", (rows, 1, 1), (1, 0, 0)))
        b.vec(0, x, red=Red.SUMSQ)
        b.load(r, ctx.spad("r_head", "FP32", (rows, 1, 1), (1, 0, 0), xe=Cell.ROWS))
        b.load(mean, ctx.constant(Constant.MEAN_HEAD))
        b.load(other, ctx.constant(Constant.EPS))
        b.vec(r, r, mean, other, op1=Op1.MUL, op2=Op2.ADD, func=Func.RSQRT)
        b.load(r, ctx.spad("r_head", "FP32", (rows, 1, d), (1, 0, 0)))
        b.load(other, ctx.spad("g_head", "FP32", (rows, 1, d), (0, 0, 1), offset=0 if name == "q" else 4 * d))
        b.vec(x, x, r, other, op1=Op1.MUL, op2=Op2.MUL)

"""The router of a mixture of experts: logits, the choice of each row, its weights, and the rows of each expert.

Every slice makes some columns of the logits; after a gather in FP32 every slice chooses for all rows, alike. GROUP then
sorts the pairs of a row and one of its experts by expert: from there on experts are taken one after the other, each
with all rows that chose it, and a step reads an expert at most once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from systolith.compiler.context import SCRATCH, Cell, Constant, Context, Counter
from systolith.compiler.kernels.ffn import gated
from systolith.compiler.kernels.linear import finish, operand, product, sums
from systolith.compiler.kernels.norm import make_r
from systolith.compiler.kernels.sigmoid_route import choice_values, chosen, scores, sigmoid_weights
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Func, Op1, Op2, Red

__all__ = ["ENTRY_WORDS", "Entry", "each_entry", "route"]

ENTRY_WORDS = 4
"""What GROUP tells of an expert: its number, its first pair in the order, pairs, 0."""
ENTRIES_AT_ONCE = 4
"""Entries that the cells hold, a power of two."""


def route(ctx: Context) -> None:
    """Choose experts for all rows of the step; V, L, M and the sequencer know of it through `each_entry`."""
    b, plan = ctx.b, ctx.plan
    b.tensor_name = "router"
    b.sync(Queue.M, wait="operand")
    if plan.profile.deferred_norm:
        make_r(ctx, "b")
    _logits(ctx)
    if plan.shared is not None:
        # While the logits travel: what all rows share needs no choice.
        gated(ctx, plan.shared, "h_shared")
        b.tensor_name = "router"
    sigmoid = ctx.experts.score == "sigmoid"
    b.sync(Queue.V, wait="partials")
    if sigmoid:
        choice_values(ctx)
    with b.pair() as d, b.descriptors(2) as (a, count):
        b.load(a, scores(ctx, "route"))
        b.load(d, chosen(ctx, "chosen", "INT32"))
        b.load(d + 1, chosen(ctx, "route_w", "FP32"))
        b.topk(d, a)
        # The pairs by expert: their order, and an entry for each expert that somebody has chosen.
        pairs, experts = plan.pairs, ctx.experts.count
        b.load(a, chosen(ctx, "chosen", "INT32"))
        b.load(d, ctx.spad("order", "INT32", (2, 1, pairs), (pairs, 0, 1)))
        b.load(d + 1, ctx.spad("entries", "INT32", (experts, 1, ENTRY_WORDS), (ENTRY_WORDS, 0, 1)))
        b.load(count, ctx.cell(Cell.ENTRIES))
        b.group(d, a, count, post="decided released p_full")
    b.sync(Queue.L, wait="released")
    b.sync(Queue.M, wait="p_full")
    # Weights of the choices come last: experts are on their way when V makes them.
    if sigmoid:
        sigmoid_weights(ctx)
    else:
        _weights(ctx)
    b.tensor_name = ""


def _logits(ctx: Context) -> None:
    """This slice's columns of the logits, times r, plus bias, to all slices."""
    b, plan, router = ctx.b, ctx.plan, ctx.plan.router
    assert router is not None
    rows, xe, nt = ctx.rows, Cell.ROWS, router.nt
    with ctx.cell_loop(Cell.ROUTER_TILES) as tile, b.descriptors(3) as (stage, r, out):
        product(ctx, router, operand(ctx, "b", ctx.hidden, plan.profile.activations, rows, xe), rows, xe)
        with sums(ctx, router, rows, xe) as s:
            ctx.load_ring(stage, ctx.stage("FP32", (rows, 1, nt), (nt, 0, 1), xe=xe), ctx.r_stage)
            b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
            finish(ctx, router, s, stage, r if plan.profile.deferred_norm else 0, wait="stage_free", post="stage_full")
        width = ctx.experts.count
        b.load(out, ctx.spad("route", "FP32", (rows, 1, nt), (width, 0, 1), step=nt, xb=Cell.ROUTER_FIRST, xe=xe))
        b.advance_r(out, 3, tile)
        b.put(out, stage, wait="stage_full", post="stage_free")
        ctx.bump(ctx.r_stage)
    ctx.arrive(("partials", Counter.ROUTES))


def _row_words(ctx: Context, name: str, fmt: str, *, xe: int = 0) -> Descriptor:
    """Describe one word for each row."""
    return ctx.spad(name, fmt, (ctx.rows, 1, 1), (1, 0, 0), xe=xe)


def _weights(ctx: Context) -> None:
    """route_w = the weights of the chosen, from their logits: a softmax over them, or over all experts."""
    b, experts = ctx.b, ctx.experts
    over_all = experts.score == "softmax_all"
    with b.pair() as d, b.descriptors(4) as (values, fixed, top, other):
        b.load(other, ctx.constant(Constant.LOG2E))
        if over_all:
            b.load(values, scores(ctx, "route"))
            b.load(fixed, scores(ctx, "route_all", "INT32"))
            b.vec(fixed, values, other, op1=Op1.MUL, func=Func.FIX)
            b.load(SCRATCH, _row_words(ctx, "route_max", "INT32"))
            b.vec(0, fixed, red=Red.CEILMAX)
            b.load(top, _row_words(ctx, "route_max", "INT32"))
            b.load(SCRATCH, _row_words(ctx, "route_sum", "FP32"))
            b.vec(0, fixed, top, op1=Op1.EXP2, red=Red.SUM)
        b.load(values, chosen(ctx, "route_w", "FP32"))
        b.load(fixed, chosen(ctx, "route_f", "INT32"))
        b.vec(fixed, values, other, op1=Op1.MUL, func=Func.FIX)
        if not over_all:
            b.load(SCRATCH, _row_words(ctx, "route_max", "INT32"))
            b.vec(0, fixed, red=Red.CEILMAX)
            b.load(top, _row_words(ctx, "route_max", "INT32"))
        b.load(d, chosen(ctx, "route_w", "FP32"))
        b.load(d + 1, _row_words(ctx, "route_sum", "FP32"))
        if over_all:
            b.vec(d, fixed, top, op1=Op1.EXP2)
        else:
            b.vec(d, fixed, top, op1=Op1.EXP2, red=Red.SUM)
        b.load(other, _row_words(ctx, "route_sum", "FP32", xe=Cell.ROWS))
        b.vec(other, other, func=Func.RCP)
        if experts.scale == 1.0:
            b.vec(values, values, other, op1=Op1.MUL)
        else:
            b.load(top, ctx.constant(Constant.ROUTE_SCALE))
            b.vec(values, values, other, top, op1=Op1.MUL, op2=Op2.MUL)


@dataclass(frozen=True, slots=True)
class Entry:
    """An expert that rows have chosen. Registers: matrix (its number counted over all layers), first pair in the
    order, pairs. Descriptor registers of index lists that begin with its first pair: rows, pairs."""

    matrix: int
    first: int
    count: int
    rows: int
    pairs: int


@contextmanager
def each_entry(ctx: Context, *, wait: str = "") -> Iterator[Entry]:
    """Repeat for each expert that a row of the step has chosen, in ascending order.

    L brings the entries of four into cells with one copy; its end comes after those of all that L has under way.
    wait: semaphores before the number is known; where it is known, the cells still hold up to four entries.
    """
    b, pairs = ctx.b, ctx.plan.pairs
    again, body, end = ctx.label(), ctx.label(), ctx.label()
    places = [ctx.label() for _ in range(ENTRIES_AT_ONCE)]
    with b.registers(5) as (total, done, matrix, first, count), b.descriptors(2) as (rows, order):
        b.read(total, Cell.ENTRIES, wait=wait)
        b.set(done, 0)
        if not wait:
            b.alu(AluFn.MAX, count, total, ENTRIES_AT_ONCE)
            b.branch(places[0], Cond.EQ, count, ENTRIES_AT_ONCE)
        b.place(again)
        _bring(ctx, total, done)
        for place, label in enumerate(places):
            b.place(label)
            for number, r in enumerate((matrix, first, count)):
                b.read(r, Cell.ENTRY + ENTRY_WORDS * place + number)
            if label is not places[-1]:
                b.branch(body)
        b.place(body)
        with b.registers(1) as (base,):
            ctx.mixtures_before(base)
            b.alu(AluFn.MUL, base, base, ctx.experts.count)
            b.alu_r(AluFn.ADD, matrix, matrix, base)
        b.load(rows, ctx.spad("order", "INT32", (pairs, 1, 1), (1, 0, 0), offset=4 * pairs))
        b.load(order, ctx.spad("order", "INT32", (pairs, 1, 1), (1, 0, 0)))
        for d in (rows, order):
            b.advance_r(d, 0, first)
        yield Entry(matrix, first, count, rows, order)
        b.alu(AluFn.ADD, done, done, 1)
        b.branch_r(end, Cond.EQ, done, total)
        b.alu(AluFn.AND, count, done, ENTRIES_AT_ONCE - 1)
        for place, label in enumerate(places[1:], 1):
            b.branch(label, Cond.EQ, count, place)
        b.branch(again)
        b.place(end)


def _bring(ctx: Context, total: int, done: int) -> None:
    """Copy the entries from R[done] on into cells, as many as there are, and let the sequencer wait for them."""
    b = ctx.b
    words = ENTRIES_AT_ONCE * ENTRY_WORDS
    with b.descriptors(2) as (d, a), b.registers(1) as (count,):
        b.alu_r(AluFn.SUB, count, total, done)
        b.alu(AluFn.MIN, count, count, ENTRIES_AT_ONCE)
        b.alu(AluFn.MUL, count, count, ENTRY_WORDS)
        b.load(d, ctx.cell(Cell.ENTRY, words))
        b.load(a, ctx.spad("entries", "INT32", (1, 1, words), (0, 0, 1), step=ENTRY_WORDS))
        b.advance_r(a, 3, done)
        b.extent_r(a, 2, count)
        b.copy(Queue.L, d, a, post="loaded", free=True)
        b.read(count, Cell.ENTRY, wait="loaded")

"""The choice of a router with sigmoid scores, and the weights of the chosen (docs/numerics.md, "Experts").

g = sigmoid(logit) of every expert. What is chosen by is g, plus a correction where the model has one, and -infinity in
all groups but the best; the weights are the g of the chosen, found through a list of their places.
"""

from __future__ import annotations

from systolith.compiler.context import SCRATCH, Cell, Constant, Context
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn
from systolith.isa.vector import Func, Op1, Op2, Red

__all__ = ["choice_values", "chosen", "rewind_correction", "scores", "sigmoid_weights"]


def rewind_correction(ctx: Context) -> None:
    """Point the stream of corrections at the first layer with experts: once a step."""
    count = ctx.experts.count
    ctx.b.load(ctx.streams["correction"], ctx.dram("correction", "FP32", (1, 1, count), (0, 0, 1), step=count))


def scores(ctx: Context, name: str, fmt: str = "FP32") -> Descriptor:
    """Describe one word for each row and expert, [rows, 1, experts]."""
    count = ctx.experts.count
    return ctx.spad(name, fmt, (ctx.rows, 1, count), (count, 0, 1), xe=Cell.ROWS)


def chosen(ctx: Context, name: str, fmt: str) -> Descriptor:
    """Describe one word for each row and choice, [rows, 1, k]."""
    k = ctx.experts.top_k
    return ctx.spad(name, fmt, (ctx.rows, 1, k), (k, 0, 1), xe=Cell.ROWS)


def choice_values(ctx: Context) -> None:
    """route_all = g; route, which holds the logits, = what is chosen by."""
    b, experts = ctx.b, ctx.experts
    corrected = experts.correction is not None
    if corrected:
        _load_correction(ctx)
    with b.descriptors(4) as (a, d, x, y):
        b.load(a, scores(ctx, "route"))
        b.load(d, scores(ctx, "route_all", "INT32"))
        b.load(x, ctx.constant(Constant.MINUS_LOG2E))
        b.vec(d, a, x, op1=Op1.MUL, func=Func.FIX)
        b.load(a, scores(ctx, "route_all"))
        b.load(x, ctx.constant(Constant.ZERO, "INT32"))
        b.load(y, ctx.constant(Constant.ONE))
        b.vec(a, d, x, y, op1=Op1.EXP2, op2=Op2.ADD, func=Func.RCP)
        b.load(d, scores(ctx, "route"))
        if corrected:
            b.load(x, ctx.spad("correction", "FP32", (ctx.rows, 1, experts.count), (0, 0, 1)))
            b.vec(d, a, x, op1=Op1.ADD, wait="load_full", post="load_free")
        else:
            b.vec(d, a)
    if experts.groups > 1:
        _best_groups(ctx)


def _load_correction(ctx: Context) -> None:
    """Load the layer's correction. One buffer will do: L comes to the next layer's only when V has let it go on behind
    the choice of this one."""
    b, stream = ctx.b, ctx.streams["correction"]
    with b.descriptors(1) as (d,):
        b.load(d, ctx.spad("correction", "FP32", (1, 1, ctx.experts.count), (0, 0, 1)))
        b.copy(Queue.L, d, stream, wait="load_free", post="load_full")
        b.advance(stream, 3, 1)


def _best_groups(ctx: Context) -> None:
    """route = -infinity outside of the best groups; a group counts as its two best values."""
    b, rows, xe = ctx.b, ctx.rows, Cell.ROWS
    experts = ctx.experts
    groups, best = experts.groups, experts.top_groups
    size = experts.count // groups
    starts = {"two": 0, "places": 2, "score": 4, "flag": 5}

    def pairs(name: str, fmt: str) -> Descriptor:
        """The two best of each group, "two" (values) or "places": [rows, groups, 2]."""
        start = 4 * rows * groups * starts[name]
        return ctx.spad("route_groups", fmt, (rows, groups, 2), (2 * groups, 2, 1), offset=start, xe=xe)

    def half(number: int) -> Descriptor:
        """One of the two values of each group: [rows, 1, groups]."""
        return ctx.spad("route_groups", "FP32", (rows, 1, groups), (2 * groups, 0, 2), offset=4 * number, xe=xe)

    def part(name: str, fmt: str) -> Descriptor:
        """A word for each group, "score" or "flag": [rows, 1, groups]."""
        start = 4 * rows * groups * starts[name]
        return ctx.spad("route_groups", fmt, (rows, 1, groups), (groups, 0, 1), offset=start, xe=xe)

    def winners(number: int, fmt: str) -> Descriptor:
        """Numbers (0) and scores (1) of the best groups: [rows, 1, best]."""
        start = rows * (6 * groups + number * best)
        return ctx.spad("route_groups", fmt, (rows, 1, best), (best, 0, 1), offset=4 * start, xe=xe)

    with b.pair() as d, b.descriptors(4) as (a, x, y, flag):
        count = experts.count
        members = ctx.spad("route", "FP32", (rows, groups, size), (count, size, 1), xe=xe)
        b.load(a, members)
        b.load(d, pairs("places", "INT32"))
        b.load(d + 1, pairs("two", "FP32"))
        b.topk(d, a)
        b.load(x, half(0))
        b.load(y, half(1))
        b.load(a, part("score", "FP32"))
        b.vec(a, x, y, op1=Op1.ADD)
        b.load(d, winners(0, "INT32"))
        b.load(d + 1, winners(1, "FP32"))
        b.topk(d, a)
        # flag: 1 where the group is among the best; then the exponent 0 there, and that of a masked element elsewhere.
        b.load(a, ctx.spad("route_numbers", "INT32", (rows, 1, groups), (0, 0, 1), offset=4 * rows, xe=xe))
        b.load(flag, part("flag", "INT32"))
        for number in range(best):
            b.load(x, ctx.spad("route_groups", "INT32", (rows, 1, groups), (best, 0, 0),
                               offset=4 * (rows * 6 * groups + number)))  # fmt: skip
            b.vec(flag, a, x, flag if number else 0, op1=Op1.IEQ, op2=Op2.IADD if number else Op2.NONE)
        b.load(x, ctx.constant(Constant.ZERO, "INT32"))
        b.load(y, ctx.constant(Constant.MOST, "INT32"))
        b.vec(flag, flag, x, y, op1=Op1.IEQ, op2=Op2.IADD)  # 2^31 - 1, or wrapped to -2^31
        b.vec(flag, flag, x, op1=Op1.IMIN)
        b.load(a, part("score", "INT32"))
        b.load(y, ctx.constant(Constant.MINUS_INFINITY, "INT32"))
        b.vec(a, flag, y, op1=Op1.IMAX)  # the words of +0 and -infinity
        # A value outside of the best groups, NaN too, becomes +0 and then -infinity; the others keep theirs.
        b.load(flag, ctx.spad("route_groups", "INT32", (rows, groups, size), (groups, 1, 0),
                              offset=4 * rows * groups * starts["flag"], xe=xe))  # fmt: skip
        b.load(a, members)
        b.vec(a, flag, x, a, op1=Op1.EXP2, op2=Op2.MULM)
        b.load(y, ctx.spad("route_groups", "FP32", (rows, groups, size), (groups, 1, 0),
                           offset=4 * rows * groups * starts["score"]))  # fmt: skip
        b.vec(a, a, y, op1=Op1.ADD)


def sigmoid_weights(ctx: Context) -> None:
    """route_w = g of the chosen, over their sum where they are normalised, times the model's scale."""
    b, rows, experts = ctx.b, ctx.rows, ctx.experts
    k = experts.top_k

    with b.pair() as d, b.descriptors(4) as (places, x, a, total), b.registers(1) as (pairs,):
        b.load(places, chosen(ctx, "route_places", "INT32"))
        b.load(x, chosen(ctx, "chosen", "INT32"))
        b.load(a, ctx.spad("route_numbers", "INT32", (rows, 1, k), (1, 0, 0)))
        b.vec(places, x, a, op1=Op1.IADD)
        b.read(pairs, Cell.ROWS)
        b.alu(AluFn.MUL, pairs, pairs, k)
        b.load(places, ctx.spad("route_places", "INT32", (rows * k, 1, 1), (1, 0, 0)))
        b.load(a, ctx.spad("route_all", "FP32", (rows * experts.count, 1, 1), (1, 0, 0), via=places))
        b.extent_r(a, 0, pairs)
        b.load(d, ctx.spad("route_w", "FP32", (rows * k, 1, 1), (1, 0, 0)))
        b.vec(d, a)
        b.load(x, chosen(ctx, "route_w", "FP32"))
        scaled = experts.scale != 1.0
        if scaled:
            b.load(a, ctx.constant(Constant.ROUTE_SCALE))
        if experts.normalise:
            b.load(SCRATCH, ctx.spad("route_sum", "FP32", (rows, 1, 1), (1, 0, 0)))
            b.vec(0, x, red=Red.SUM)
            b.load(total, ctx.spad("route_sum", "FP32", (rows, 1, 1), (1, 0, 0), xe=Cell.ROWS))
            b.load(d, ctx.constant(Constant.ROUTE_TINY))
            b.vec(total, total, d, op1=Op1.ADD, func=Func.RCP)
            b.vec(x, x, total, a if scaled else 0, op1=Op1.MUL, op2=Op2.MUL if scaled else Op2.NONE)
        elif scaled:
            b.vec(x, x, a, op1=Op1.MUL)

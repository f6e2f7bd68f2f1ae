"""A layer on the grid, product by product: what V and C do with the sums of q, k, v, of o and down, of gate and up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from systolith.compiler.context import Cell, Constant, Counter
from systolith.compiler.grid import GridLinear, head_words
from systolith.compiler.kernels.grid.attention import attention
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.grid.norm import (
    await_store,
    load_gains,
    load_residual,
    make_r,
    residual,
    send_product,
    store_residual,
)
from systolith.compiler.kernels.grid.rounds import Rounds, Streamed
from systolith.compiler.kernels.grid.spread import Spread
from systolith.compiler.kernels.grid.turn import send_keys, send_values, stage_keys, stage_values, turn_queries
from systolith.compiler.kernels.head_norm import norm_head
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Func, Op1, Op2

__all__ = ["layer"]

ATTENTION, H = Streamed("grid_attention"), Streamed("grid_h")


def layer(ctx: GridContext, rounds: Rounds) -> None:
    """One layer. The products of an operator follow each other on M; V and C work on the one before."""
    grid, b = ctx.grid, ctx.b
    w, p = grid.width, ctx.plan.profile
    rows, hidden = ctx.rows, ctx.hidden

    def resident(which: str) -> Descriptor:
        return ctx.spad(which, p.activations, (rows, 1, hidden), (hidden, 0, 1), scales=rows * hidden, xe=Cell.ROWS)

    def known() -> list[Spread]:
        b.sync(Queue.M, wait="p_full")
        return []

    # q, k, v.
    make_r(ctx, "a")
    await_store(ctx)
    b.sync(Queue.V, post="released")
    _load_for_heads(ctx)
    count = grid.qkv.columns // w
    for product in range(count):
        rounds.product(
            grid.qkv, resident("a"), opening=None if product else known,
            between=_later(_qkv, ctx, product - 1) if product else None,
            behind=12, aside=_later(_send_heads, ctx, product - 1) if product else None,
        )  # fmt: skip
    _qkv(ctx, count - 1)
    _send_heads(ctx, count - 1)
    b.sync(Queue.V, post="p_full")
    known()  # the queries
    attention(ctx)
    _project(ctx, rounds, grid.o, ATTENTION, "b")

    # gate and up, in turn.
    make_r(ctx, "b")
    await_store(ctx)
    count = grid.gate.columns // w
    with b.registers(1) as (number,):
        again, end = ctx.label(), ctx.label()
        b.set(number, 0)
        known()
        b.place(again)

        spread = rounds.can_spread(grid.gate)
        late: list[Spread] = []

        def up_before() -> list[Spread]:
            none = ctx.label()
            b.branch(none, Cond.EQ, number, 0)
            left = _feed_up(ctx, number, -1, spread=spread)
            b.place(none)
            late.extend(left[1:])
            return left[:1]

        rounds.product(grid.gate, resident("b"), between=up_before, spreads=int(spread))
        b.branch(end, Cond.EQ, number, count - 1)
        feed_gate = _later(_feed_gate, ctx)
        rounds.product(grid.up, resident("b"), between=feed_gate, more=late)
        b.alu(AluFn.ADD, number, number, 1)
        b.branch(again)
        b.place(end)
        rounds.product(grid.up, resident("b"), between=feed_gate, more=late)
        for one in late:
            one.close()
        _feed_up(ctx, number, 0, last=True)

    _project(ctx, rounds, grid.down, H, "a")
    ctx.bump(ctx.r_layer)


def _later(kernel: Callable[..., list[Spread] | None], *args: object) -> Callable[[], list[Spread]]:
    return lambda: kernel(*args) or []


def sums(ctx: GridContext, *, start: int = 0, columns: int = 0) -> Descriptor:
    """Columns of the product before the one in hand, [rows, 1, columns]: of the accumulator half that r_acc left."""
    w = ctx.grid.width
    whole = ctx.acc(ctx.rows, w, xe=Cell.ROWS)
    return replace(whole, base=whole.base + 4 * start, ext=(ctx.rows, 1, columns or w))


def load_sums(ctx: GridContext, d: int, view: Descriptor) -> None:
    """D[d] = a view of `sums`."""
    ctx.load_ring(d, view, ctx.r_acc)
    ctx.b.advance(d, 3, 1)  # of two halves the other one


def _load_for_heads(ctx: GridContext) -> None:
    """Load gains and biases of heads, cosines and sines of the rows' positions, when V has made r and S has stored the
    residual stream: they lie where these were."""
    b, rows, plan = ctx.b, ctx.rows, ctx.plan
    half = plan.model.turned // 2
    here = 4 * ctx.kind.rope * plan.options.context * half
    b.sync(Queue.L, wait="released")
    with b.descriptors(3) as (index, d, a):
        for name, words in head_words(ctx.grid):
            b.load(d, ctx.spad(name, "FP32", (1, 1, words), (0, 0, 1)))
            b.load(a, ctx.dram(name, "FP32", (1, 1, words), (0, 0, 1), step=words))
            b.advance_r(a, 3, ctx.r_layer)
            b.copy(Queue.L, d, a)
        b.load(index, ctx.spad("grid_rows", "INT32", (rows, 1, 1), (1, 0, 0), offset=4 * rows))
        for name in ("cos", "sin"):
            b.load(d, ctx.spad(name, "FP32", (rows, 1, half), (half, 0, 1), xe=Cell.ROWS))
            b.load(a, ctx.dram(name, "FP32", (rows, 1, half), (half, 0, 1), offset=here, xe=Cell.ROWS, via=index))
            b.copy(Queue.L, d, a, post="load_full" if name == "sin" else "")
    b.sync(Queue.V, wait="load_full")


def _heads(ctx: GridContext, product: int) -> range:
    """The heads of a product: 0 is that of values, 1 that of keys, then come those of queries."""
    each = ctx.grid.width // ctx.plan.dp
    return range(product * each, min((product + 1) * each, 2 + ctx.plan.group_queries))


def _qkv(ctx: GridContext, product: int) -> None:
    """The heads of a product: r, bias, norm, rotary, quantised. Queries stay; values and keys, which come first so that
    they are on their way early, are staged."""
    b, dp, rows = ctx.b, ctx.plan.dp, ctx.rows
    b.tensor_name = "qkv"
    heads = _heads(ctx, product)
    biased, normed = ctx.plan.model.bias("q"), ctx.plan.model.head_norms is not None
    for i, head in enumerate(heads):
        with b.descriptors(4) as (d, s, r, bias):
            b.load(d, ctx.spad("head_tile", "FP32", (rows, 1, dp), (dp, 0, 1)))
            load_sums(ctx, s, sums(ctx, start=i * dp, columns=dp))
            b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
            if biased:
                b.load(bias, ctx.spad("grid_bias", "FP32", (rows, 1, dp), (0, 0, 1), offset=4 * head * dp))
            b.vec(d, s, r, bias if biased else 0, op1=Op1.MUL, op2=Op2.ADD if biased else Op2.NONE,
                  wait="" if i else "acc_full", post="acc_free" if i == len(heads) - 1 else "")  # fmt: skip
        if normed and head > 0:
            norm_head(ctx, "q" if head > 1 else "k")
        if head > 1:
            turn_queries(ctx, head - 2)
        elif head == 1:
            stage_keys(ctx)
        else:
            stage_values(ctx)
    b.tensor_name = ""


def _send_heads(ctx: GridContext, product: int) -> None:
    """Send what `_qkv` has staged of a product."""
    staged = [head for head in _heads(ctx, product) if head < 2]
    for place, head in enumerate(staged):
        (send_keys if head else send_values)(ctx, len(staged) - place)


def _project(ctx: GridContext, rounds: Rounds, linear: GridLinear, source: Streamed, which: str) -> None:
    """x = RNE(x + source times w) for all products, each sent on as operand `which` of the next norm."""
    half, count = int(which == "b"), linear.columns // ctx.grid.width
    load_gains(ctx, half, 1 if which == "b" else 2, 2)
    spread = rounds.can_spread(linear)
    for product in range(count):
        last = product == count - 1
        rounds.product(
            linear, source, last=last and linear is ctx.grid.down,
            opening=None if product else _later(rounds.open_parts, source), again=not last,
            between=_later(_add, ctx, product - 1, which, half, spread) if product else None,
            spreads=ctx.grid.width // ctx.grid.piece if product and spread else 0, after=2, behind=12,
            aside=_later(load_residual, ctx, product),
        )  # fmt: skip
    _add(ctx, count - 1, which, half, False)


def _add(ctx: GridContext, product: int, which: str, half: int, spread: bool) -> list[Spread]:
    b = ctx.b
    b.tensor_name = "o" if which == "b" else "down"
    with b.descriptors(2) as (x, s):
        b.load(x, residual(ctx))
        load_sums(ctx, s, sums(ctx))
        b.vec(x, s, x, op1=Op1.ADD, wait="acc_full load_full", post="acc_free")
    left = send_product(ctx, which, product, half, spread=spread)
    store_residual(ctx, product)
    b.tensor_name = ""
    return left


def _feed_gate(ctx: GridContext) -> None:
    """exp_tile = silu(g), g = sums * r."""
    b, rows, w, xe = ctx.b, ctx.rows, ctx.grid.width, Cell.ROWS
    b.tensor_name = "gate"
    with b.descriptors(5) as (d, s, r, x, y):
        b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
        load_sums(ctx, s, sums(ctx))
        b.load(x, ctx.spad("exp_tile", "FP32", (rows, 1, w), (w, 0, 1), xe=xe))
        b.load(d, ctx.spad("exp_tile", "INT32", (rows, 1, w), (w, 0, 1), xe=xe))
        b.load(y, ctx.constant(Constant.MINUS_LOG2E))
        b.vec(d, s, r, y, op1=Op1.MUL, op2=Op2.MUL, func=Func.FIX, wait="acc_full")
        with b.descriptors(1) as (zero,):
            b.load(zero, ctx.constant(Constant.ZERO, "INT32"))
            b.load(y, ctx.constant(Constant.ONE))
            b.vec(x, d, zero, y, op1=Op1.EXP2, op2=Op2.ADD, func=Func.RCP)
        b.vec(x, s, r, x, op1=Op1.MUL, op2=Op2.MUL, post="acc_free")
    b.tensor_name = ""


def _feed_up(
    ctx: GridContext, number: int, by: int, *, last: bool = False, spread: bool = False
) -> list[Spread]:  # fmt: skip
    """Send quantise(silu * u), u = sums * r, of product R[number] + by to the slices with the same rows, piece by
    piece. spread : leave them to be sent over rounds, where R[number] is not 0."""
    b, grid, rows, w, e = ctx.b, ctx.grid, ctx.rows, ctx.grid.width, ctx.grid.piece
    fmt, xe, parts = ctx.plan.profile.activations, Cell.ROWS, grid.gate.columns // grid.width
    b.tensor_name = "up"
    left = []
    for piece in range(w // e):
        final = piece == w // e - 1
        staged = ctx.stage(fmt, (rows, 1, e), (e, 0, 1), scales=True, xe=xe)
        out = ctx.dram("grid_h", fmt, (rows, 1, e), (w, rows * w, 1), scales="grid_h_scales", step=parts * rows * w,
                       xe=xe).advance(2, piece * e)  # fmt: skip
        with b.descriptors(5) as (d, s, r, x, y):
            b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
            load_sums(ctx, s, sums(ctx, start=piece * e, columns=e))
            b.load(x, ctx.spad("exp_tile", "FP32", (rows, 1, e), (w, 0, 1), offset=4 * piece * e, xe=xe))
            ctx.load_ring(d, staged, ctx.r_stage)
            b.vec(d, s, r, x, op1=Op1.MUL, op2=Op2.MUL, wait="stage_free" if piece else "acc_full stage_free",
                  post="acc_free stage_full" if final else "stage_full")  # fmt: skip
            if spread:
                left.append(Spread(ctx, staged, out, guard=number, along=(number, by)))
            else:
                b.load(y, out)
                b.advance_r(y, 1, number)
                b.advance(y, 1, by)
                ctx.to_group(y)
                ctx.put_to_rows(y, d, wait="stage_full", post="stage_free",
                                arrival=("arrived", Counter.OPERAND_H) if last and final else None)  # fmt: skip
        ctx.bump(ctx.r_stage)
    b.tensor_name = ""
    return left

"""A layer on the grid, product by product: what V and C do with the sums of q, k, v, of o and down, of gate and up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from systolith.compiler.context import Cell, Constant, Counter
from systolith.compiler.grid import SENT, GridLinear, head_words
from systolith.compiler.kernels.grid.attention import attention
from systolith.compiler.kernels.grid.context import GridContext
from systolith.compiler.kernels.grid.deal import Deal
from systolith.compiler.kernels.grid.norm import (
    await_store,
    deal_operand,
    load_gains,
    load_residual,
    make_r,
    residual,
    send_part,
    stage_part,
    store_residual,
)
from systolith.compiler.kernels.grid.rounds import STEPS_AFTER, Rounds, Streamed
from systolith.compiler.kernels.grid.spread import Spread
from systolith.compiler.kernels.grid.turn import send_keys, send_values, stage_keys, stage_values, turn_queries
from systolith.compiler.kernels.head_norm import norm_head
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Func, Op1, Op2

__all__ = ["layer"]


def layer(ctx: GridContext, rounds: Rounds) -> None:
    """One layer. The products of an operator follow each other on M; V and C work on the one before."""
    grid, b = ctx.grid, ctx.b
    w, p = grid.width, ctx.plan.profile
    rows, hidden = ctx.rows, ctx.hidden
    attended, h = (Streamed(f"grid_{name}", f"operand_{which}" if grid.overlaid else "operand")
                   for name, which in (("attention", "b"), ("h", "a")))  # fmt: skip

    def resident(which: str) -> Descriptor:
        return ctx.spad(which, p.activations, (rows, 1, w), (w, 0, 1), scales=rows * hidden, step=rows * w,
                        xe=Cell.ROWS)  # fmt: skip

    # q, k, v.
    deal = deal_operand(ctx, "a")
    rounds.open(deal)
    b.sync(Queue.V, post="released")
    count = grid.qkv.products
    for product in range(count):
        rounds.product(
            grid.qkv, resident("a"), between=_later(_qkv, ctx, product - 1) if product else None, behind=12,
            aside=_later(_send_heads, ctx, product - 1) if product else _later(_load_for_heads, ctx),
            deal=None if product else deal,
        )  # fmt: skip
    _qkv(ctx, count - 1)
    _send_heads(ctx, count - 1)
    b.sync(Queue.V, post="p_full")
    b.sync(Queue.M, wait="p_full")  # the queries
    attention(ctx)
    _project(ctx, rounds, grid.o, attended, "arrived", "b")

    # gate and up, in turn.
    deal = deal_operand(ctx, "b")
    rounds.open(deal)
    count = grid.gate.products
    last_up = _deal_up(ctx)
    with b.registers(1) as (number,):
        again, end = ctx.label(), ctx.label()
        b.set(number, 0)
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

        def stored() -> None:
            none = ctx.label()
            b.branch(none, Cond.NE, number, 0)
            await_store(ctx)
            b.place(none)

        rounds.product(grid.gate, resident("b"), between=up_before, spreads=int(spread), deal=deal, aside=stored,
                       behind=2 if grid.chunks + 4 < grid.gate.rounds else 12)  # fmt: skip
        b.branch(end, Cond.EQ, number, count - 1)
        feed_gate = _later(_feed_gate, ctx, number)
        rounds.product(grid.up, resident("b"), between=feed_gate, more=late)
        b.alu(AluFn.ADD, number, number, 1)
        b.branch(again)
        b.place(end)
        rounds.product(grid.up, resident("b"), between=feed_gate, more=late)
        for one in late:
            one.close()
        _feed_up(ctx, number, 0, last=True)
    if last_up is None:
        _put_up(ctx, 1, 0, count - 1)
        ctx.arrive_at_rows("arrived", Counter.OPERAND_H)
    else:
        last_up.begin(SENT)
    _project(ctx, rounds, grid.down, h, "" if last_up else "arrived", "a", last_up)
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
    """Load gains and biases of heads, cosines and sines of the rows' positions, when S has stored the residual stream
    and V is done with it: they lie where it was."""
    b, rows, plan = ctx.b, ctx.rows, ctx.plan
    half = plan.model.turned // 2
    here = 4 * ctx.kind.rope * plan.options.context * half
    await_store(ctx, tell=False)
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
    if product == 0:
        make_r(ctx, "a")
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


def _project(
    ctx: GridContext, rounds: Rounds, linear: GridLinear, source: Streamed, wait: str, which: str,
    deal: Deal | None = None,
) -> None:  # fmt: skip
    """x = RNE(x + source times w) for all products, each sent on as operand `which` of the next norm, the last one's
    part by part when their turn comes. wait : says that the operand's first parts are in memory, where the first round
    does not. deal : of the operand."""
    grid, half = ctx.grid, int(which == "b")
    load_gains(ctx, half, 1 if which == "b" else 2, 2)
    spread = rounds.can_spread(linear)
    for product in range(linear.products):
        last = product == linear.products - 1
        rounds.product(
            linear, source, last=last and linear is grid.down,
            opening=None if product else _later(rounds.open_parts, linear, source, wait), again=not last,
            between=_later(_add, ctx, product - 1, which, half, spread, False) if product else None,
            spreads=grid.dealt if product and spread else 0, deal=None if product else deal, hold=last,
            steps=load_residual(ctx, _parts(ctx, product), linear.rounds - STEPS_AFTER - 2),
        )  # fmt: skip
    _add(ctx, linear.products - 1, which, half, False, True)


def _parts(ctx: GridContext, product: int) -> range:
    """Parts of the residual stream of a product of o or down."""
    dealt = ctx.grid.dealt
    return range(product * dealt, (product + 1) * dealt)


def _add(ctx: GridContext, product: int, which: str, half: int, spread: bool, dealt: bool) -> list[Spread]:
    """Add a product's sums to its parts of the residual stream; stage these as operand, and send them. dealt : they
    stay staged."""
    b, w, parts = ctx.b, ctx.grid.width, _parts(ctx, product)
    b.tensor_name = "o" if which == "b" else "down"
    left = []
    for number, part in enumerate(parts):
        last = part == parts[-1]
        with b.descriptors(2) as (x, s):
            b.load(x, residual(ctx, part))
            if len(parts) > 1:
                whole = ctx.acc(ctx.rows, len(parts) * w, xe=Cell.ROWS)
                b.load(s, replace(whole, base=whole.base + 4 * number * w, ext=(ctx.rows, 1, w)))
            else:
                load_sums(ctx, s, sums(ctx))
            b.vec(x, s, x, op1=Op1.ADD, wait="" if number else "acc_full load_full", post="acc_free" if last else "")
        for _ in range(number if last else 0):
            b.sync(Queue.V, post="acc_free")
        stage_part(ctx, part, half)
        if dealt:
            ctx.bump(ctx.r_stage)
        else:
            left += send_part(ctx, which, part, spread=spread)
    store_residual(ctx, parts)
    b.tensor_name = ""
    return left


def _feed_gate(ctx: GridContext, number: int) -> None:
    """exp_tile = silu(g), g = sums * r; before product 0, which has taken all of the operand, r."""
    b, rows, w, xe = ctx.b, ctx.rows, ctx.grid.width, Cell.ROWS
    made = ctx.label()
    b.branch(made, Cond.NE, number, 0)
    make_r(ctx, "b")
    b.place(made)
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


def _staged_up(ctx: GridContext) -> Descriptor:
    """A product of up in the stage, by parts of the operand of down: [parts, rows, deep]."""
    rows, deep = ctx.rows, ctx.grid.down.deep
    return ctx.stage(ctx.plan.profile.activations, (ctx.grid.width // deep, rows, deep), (rows * deep, deep, 1),
                     scales=True)  # fmt: skip


def _place_up(ctx: GridContext) -> Descriptor:
    """Where product 0 of the first column group goes."""
    rows, deep, fmt = ctx.rows, ctx.grid.down.deep, ctx.plan.profile.activations
    return ctx.dram("grid_h", fmt, (ctx.grid.width // deep, rows, deep), (rows * deep, deep, 1), scales="grid_h_scales",
                    step=ctx.grid.gate.columns * rows)  # fmt: skip


def _feed_up(
    ctx: GridContext, number: int, by: int, *, last: bool = False, spread: bool = False
) -> list[Spread]:  # fmt: skip
    """Send quantise(silu * u), u = sums * r, of product R[number] + by to the slices with the same rows. spread : leave
    it to be sent over rounds, in halves, where R[number] is not 0. last : leave it staged."""
    b, rows, w, deep = ctx.b, ctx.rows, ctx.grid.width, ctx.grid.down.deep
    xe, parts = Cell.ROWS, ctx.grid.width // ctx.grid.down.deep
    b.tensor_name = "up"
    with b.descriptors(4) as (d, s, r, x):
        b.load(r, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0)))
        load_sums(ctx, s, replace(sums(ctx), ext=(rows, parts, deep), stride=(w, deep, 1)))
        b.load(x, ctx.spad("exp_tile", "FP32", (rows, parts, deep), (w, deep, 1), xe=xe))
        staged = replace(_staged_up(ctx), ext=(rows, parts, deep), stride=(deep, rows * deep, 1))
        ctx.load_ring(d, staged, ctx.r_stage)
        b.vec(d, s, r, x, op1=Op1.MUL, op2=Op2.MUL, wait="acc_full stage_free", post="acc_free stage_full")
    left = []
    if spread:
        left = [
            Spread(ctx, _staged_up(ctx), _place_up(ctx), half=half, guard=number, along=(number, by)) for half in (0, 1)
        ]
    elif not last:
        _put_up(ctx, 0, number, by)
    ctx.bump(ctx.r_stage)
    b.tensor_name = ""
    return left


def _put_up(ctx: GridContext, back: int, number: int, by: int) -> None:
    """Send the product staged `back` stages ago as product R[number] (0: none) + by."""
    b = ctx.b
    with b.descriptors(2) as (d, y):
        ctx.load_ring(d, _staged_up(ctx), ctx.r_stage)
        b.advance(d, 3, -back)
        b.load(y, _place_up(ctx))
        for _ in range(ctx.grid.width // ctx.grid.down.deep):
            if number:
                b.advance_r(y, 0, number)
            b.advance(y, 0, by)
        ctx.to_group(y)
        with ctx.reading(Cell.ROWS) as rows:
            for x in (d, y):
                b.extent_r(x, 1, rows)
        ctx.put_to_rows(y, d, wait="stage_full", post="stage_free")


def _deal_up(ctx: GridContext) -> Deal | None:
    """The last product of up, sent when it is about to be loaded; None where parts are so few that it, or the one
    before it, is loaded first: down then waits for all."""
    grid = ctx.grid
    each, parts = grid.gate.columns // grid.down.deep, grid.width // grid.down.deep
    if each - 2 * parts < grid.parts + SENT:
        return None
    return Deal(ctx, each, each - parts, [lambda: _put_up(ctx, 1, 0, grid.gate.products - 1)], grid.parts)

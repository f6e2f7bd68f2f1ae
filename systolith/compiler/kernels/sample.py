"""Sampling on the device, and what follows from the token: position, stop, limit, the word to the host.

Rows are dealt out to the slices: each samples its own, from the row's logits and the request's own record, and sends
the tokens to all; what follows from a token every slice works out alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from systolith.compiler.context import SCRATCH, Cell, Constant, Context, Counter
from systolith.compiler.memory import PARAM_WORDS, STATE_WORDS, STOPS
from systolith.compiler.plan import padded
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Func, Op1, Op2, Red
from systolith.spec.limits import RANK_REGISTER

__all__ = ["column", "out_slots", "sample"]

TOKEN, POSITION, LIVE, SLOT = range(STATE_WORDS)


@contextmanager
def out_slots(ctx: Context) -> Iterator[int]:
    """A descriptor register with the list of the request slots of the output rows; decode rows come first there."""
    b, count = ctx.b, ctx.plan.out_rows
    with b.descriptors(1) as (d,):
        b.load(d, ctx.spad("record", "INT32", (count, 1, 1), (1, 0, 0), offset=4 * ctx.memory.record.out_slots))
        yield d


def column(ctx: Context, which: int, slots: int, xe: int = 0) -> Descriptor:
    """A column of the state of the request slots of a list, [output rows, 1, 1]."""
    count = ctx.plan.out_rows
    return ctx.spad("state", "INT32", (count, 1, 1), (STATE_WORDS, 0, 0), offset=4 * which, via=slots, xe=xe)


def sample(ctx: Context) -> None:
    """Pick a token for each row of logits, tell the host, and find out who goes on."""
    b = ctx.b
    b.tensor_name = "sample"
    b.sync(Queue.L, wait="arrived")
    # After a decode row the token to be made is one further on; a finished request stays where it is.
    with out_slots(ctx) as slots, b.descriptors(2) as (position, live):
        b.load(position, column(ctx, POSITION, slots, Cell.DECODE))
        b.load(live, column(ctx, LIVE, slots))
        b.vec(position, position, live, op1=Op1.IADD)
    _sample_own(ctx)
    ctx.arrive(("partials", Counter.TOKENS))
    b.sync(Queue.V, wait="partials")
    with out_slots(ctx) as slots, b.descriptors(2) as (token, made):
        b.load(made, ctx.spad("tokens", "INT32", (ctx.plan.out_rows, 1, 1), (1, 0, 0), xe=Cell.OUT_ROWS))
        b.load(token, column(ctx, TOKEN, slots))
        b.vec(token, made)
    with ctx.cell_loop(Cell.OUT_ROWS) as row:
        _tell(ctx, row)
    _update(ctx)
    if ctx.plan.options.log_rows:
        with b.registers(1) as (rows,):
            b.read(rows, Cell.OUT_ROWS)
            b.alu_r(AluFn.ADD, ctx.r_log, ctx.r_log, rows)
    b.tensor_name = ""


def _sample_own(ctx: Context) -> None:
    """Pick tokens for this slice's rows, rank, rank + slices, ..., and send each to all."""
    b, slices = ctx.b, ctx.plan.slices
    with b.registers(2) as (row, left):
        b.move(row, RANK_REGISTER)
        b.read(left, Cell.OUT_ROWS)
        b.alu_r(AluFn.MAX, left, left, row)
        b.alu_r(AluFn.SUB, left, left, row)
        with b.registers(1) as (every,):
            b.set(every, slices)
            b.alu_r(AluFn.CEILDIV, left, left, every)
        place = b.open_loop(left)
        with b.registers(1) as (slot,), b.descriptors(1) as (out,):
            _slot_of(ctx, row, slot)
            _load_logits(ctx, row)
            with b.pair() as token:
                ctx.load_ring(token, ctx.stage("INT32", (1, 1, 1), (0, 0, 1)), ctx.r_stage)
                _pick(ctx, slot, token)
                b.load(out, ctx.spad("tokens", "INT32", (1, 1, 1), (0, 0, 1), step=1))
                b.advance_r(out, 3, row)
                b.put(out, token, wait="stage_full", post="stage_free")
                ctx.bump(ctx.r_stage)
            # The row's buffer is free again.
            b.sync(Queue.L, wait="released")
        b.alu(AluFn.ADD, row, row, slices)
        b.close_loop(place)


def _slot_of(ctx: Context, row: int, slot: int) -> None:
    """R[slot] = the request slot of output row R[row]."""
    b = ctx.b
    with b.descriptors(2) as (a, d):
        b.load(d, ctx.cell(Cell.OUT_SLOT))
        b.load(a, ctx.spad("record", "INT32", (1, 1, 1), (0, 0, 1), offset=4 * ctx.memory.record.out_slots, step=1))
        b.advance_r(a, 3, row)
        b.copy(Queue.L, d, a, post="loaded")
        b.read(slot, Cell.OUT_SLOT, wait="loaded")


def _load_logits(ctx: Context, row: int) -> None:
    """Have the row's logits in the scratchpad; V waits for load_full."""
    b, vocab = ctx.b, ctx.plan.model.vocab
    if ctx.plan.logits_stay:
        b.sync(Queue.L, post="load_full")
        return
    with b.descriptors(2) as (d, source):
        b.load(d, ctx.spad("logits", "FP32", (1, 1, vocab), (0, 0, 1)))
        b.load(source, ctx.dram("logits", "FP32", (1, 1, vocab), (padded(vocab), 0, 1)))
        b.advance_r(source, 0, ctx.r_log)
        b.advance_r(source, 0, row)
        b.copy(Queue.L, d, source, post="load_full")


def _pick(ctx: Context, slot: int, token: int) -> None:
    """D[token] = the token of the row, staged for C. Where only the best counts one pass finds it."""
    b, vocab = ctx.b, ctx.plan.model.vocab
    draw, done = ctx.label(), ctx.label()
    with b.registers(1) as (k,), b.descriptors(2) as (cell, logits):
        b.load(cell, ctx.cell(Cell.GREEDY))
        b.load(logits, ctx.spad("params", "INT32", (1, 1, 1), (0, 0, 1), step=PARAM_WORDS))
        b.advance_r(logits, 3, slot)
        b.copy(Queue.L, cell, logits, post="loaded")
        b.read(k, Cell.GREEDY, wait="loaded")
        b.load(logits, ctx.spad("logits", "FP32", (1, 1, vocab), (0, 0, 1)))
        b.branch(draw, Cond.NE, k, 1)
        b.load(token + 1, ctx.spad("max", "FP32", (1, 1, 1), (0, 0, 1)))
        b.topk(token, logits, wait="load_full stage_free", post="stage_full released")
        b.branch(done)
        b.place(draw)
        _draw(ctx, slot, token, logits)
        b.place(done)


def _draw(ctx: Context, slot: int, token: int, logits: int) -> None:
    """The same by rule 8: weights, top-k, top-p, the request's own random number."""
    b, vocab = ctx.b, ctx.plan.model.vocab
    with b.descriptors(4) as (w, largest, scale, one), b.pair() as record:
        b.load(scale, ctx.spad("params", "FP32", (1, 1, 1), (0, 0, 0), offset=4 * 5, step=PARAM_WORDS))
        b.advance_r(scale, 3, slot)
        b.load(w, ctx.spad("weights", "INT32", (1, 1, vocab), (0, 0, 1)))
        b.vec(w, logits, scale, op1=Op1.MUL, func=Func.FIX, wait="load_full")
        # The largest that is no NaN: F + 1 puts NaN (2^31 - 1) below everything.
        b.load(one, ctx.constant(Constant.INT_ONE, "INT32"))
        b.load(SCRATCH, ctx.spad("max", "INT32", (1, 1, 1), (0, 0, 0)))
        b.vec(0, w, one, op1=Op1.IADD, red=Red.IMAX)
        b.load(largest, ctx.spad("max", "INT32", (1, 1, 1), (0, 0, 0)))
        b.vec(0, largest, one, op1=Op1.ISUB, red=Red.CEILMAX)
        b.vec(w, w, largest, op1=Op1.WEIGHT)
        b.load(record, ctx.spad("params", "INT32", (1, 1, 5), (0, 0, 1), step=PARAM_WORDS))
        b.advance_r(record, 3, slot)
        state = ctx.spad("state", "INT32", (1, 1, 1), (0, 0, 1), offset=4 * POSITION, step=STATE_WORDS)
        b.load(record + 1, state)
        b.advance_r(record + 1, 3, slot)
        b.pick(token, logits, w, record, wait="stage_free", post="stage_full released")


def _tell(ctx: Context, row: int) -> None:
    """Tell the host the state of the request slot of an output row."""
    b = ctx.b
    with b.registers(1) as (slot,), b.descriptors(1) as (a,):
        _slot_of(ctx, row, slot)
        b.load(a, ctx.spad("state", "INT32", (1, 1, STATE_WORDS), (0, 0, 1), step=STATE_WORDS))
        b.advance_r(a, 3, slot)
        b.sync(Queue.V, post="store_full")
        b.ring(a, wait="store_full", post="store_free")
        b.sync(Queue.V, wait="store_free")


def _update(ctx: Context) -> None:
    """live = live and token is no stop token and position < limit, of the output rows' request slots; X[LIVE] = how
    many live of all."""
    b, batch, count, xe = ctx.b, ctx.plan.options.batch, ctx.plan.out_rows, Cell.OUT_ROWS
    flags = ctx.spad("flags", "INT32", (count, 1, 1), (1, 0, 0))
    with out_slots(ctx) as slots, b.descriptors(4) as (a, x, y, d):
        b.load(a, ctx.spad("stops", "INT32", (count, 1, STOPS), (STOPS, 0, 1), via=slots, xe=xe))
        b.load(x, column(ctx, TOKEN, slots))
        b.load(SCRATCH, flags)
        b.vec(0, a, x, op1=Op1.IEQ, red=Red.IMAX)
        b.load(a, ctx.spad("consts", "INT32", (count, 1, 1), (0, 0, 0), offset=4 * Constant.INT_ONE, xe=xe))
        b.load(x, flags)
        b.load(y, column(ctx, LIVE, slots))
        b.vec(x, a, x, y, op1=Op1.ISUB, op2=Op2.IMIN)
        b.load(a, column(ctx, POSITION, slots, xe))
        b.load(y, ctx.spad("params", "INT32", (count, 1, 1), (PARAM_WORDS, 0, 0), offset=4 * 6, via=slots))
        b.load(d, column(ctx, LIVE, slots))
        b.vec(d, a, y, x, op1=Op1.ILT, op2=Op2.IMIN)
        b.load(a, ctx.spad("state", "INT32", (1, 1, batch), (0, 0, STATE_WORDS), offset=4 * LIVE))
        b.load(SCRATCH, ctx.cell(Cell.LIVE))
        b.vec(0, a, red=Red.ISUM, post="decided")

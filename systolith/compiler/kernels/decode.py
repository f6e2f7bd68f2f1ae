"""Attention of the decode rows of a batch: several chunks of a row side by side, so that a pass of V is long.

A slice has some request slots of a KV head, with all their chunks, and merges nothing that another slice has made. A
row's chunks come in rounds of neighbouring ones, each of another lane: one pass masks, one exponentiates, one adds a
round to what its lanes have so far. At the end the lanes are joined by the tree of rule 7, level by level, a pass each.
What is not there is left out: an empty partial changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from systolith.compiler.builder import tensor
from systolith.compiler.context import SCRATCH, Constant, Context
from systolith.compiler.kernels.cache import append_row
from systolith.compiler.kernels.chunk import Cached, keys, load, load_old, scales_of_round, values_of
from systolith.compiler.kernels.result import finish
from systolith.compiler.kernels.segment import Segment, Tile, Unit, chunks_of, each_decode_row, each_unit
from systolith.isa.descriptor import Descriptor, Space
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Op1, Op2, Red
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["attend_decode_rows", "load_ahead", "start_ahead"]

CHUNK_BITS = CHUNK_TOKENS.bit_length() - 1
NOT_KNOWN = -1
"""No position."""


def attend_decode_rows(ctx: Context) -> None:
    """Store K and V of the step's decode rows, attend them, and send each result as it is ready."""
    b = ctx.b
    # Two chunks of a prompt's rows have probabilities at a time, and rounds one: the other's place is taken meanwhile.
    b.sync(Queue.V, wait="p_free")
    with each_unit(ctx) as unit, each_decode_row(ctx, unit) as segment:
        append_row(ctx, segment, unit)
        if ctx.plan.row_ahead:
            known = ctx.label()
            b.branch(known, Cond.NE, ctx.r_first_at, NOT_KNOWN)
            b.move(ctx.r_first, segment.packed)
            b.move(ctx.r_first_at, segment.position)
            b.place(known)
        with b.registers(1) as (lanes,):
            # Lanes that have a chunk.
            chunks_of(segment, lanes)
            b.alu(AluFn.MIN, lanes, lanes, ctx.plan.lanes_local)
            if ctx.kind.window is not None:
                _start_empty(ctx, lanes)
            _rounds(ctx, segment, unit)
            _join(ctx, lanes)
        with b.registers(2) as (zero, one):
            b.set(zero, 0)
            b.set(one, 1)
            finish(ctx, Tile(segment, unit, zero, one), Joined())
    b.sync(Queue.M, post="p_free")


def start_ahead(ctx: Context) -> None:
    """Begin a step: nothing is loaded ahead, and no row is known."""
    ctx.b.set(ctx.r_ahead, 0)
    ctx.b.set(ctx.r_first_at, NOT_KNOWN)


def load_ahead(ctx: Context) -> None:
    """Load for the next layer what the first round of its first row takes, as much as the ring holds."""
    b, plan, done = ctx.b, ctx.plan, ctx.label()
    b.tensor_name = "attention"
    with b.registers(4) as (chunks, number, position, tokens):
        b.alu(AluFn.ADD, ctx.r_layer, ctx.r_layer, 1)
        b.branch(done, Cond.EQ, ctx.r_layer, plan.model.layers)
        b.branch(done, Cond.EQ, ctx.r_first_at, NOT_KNOWN)
        b.alu(AluFn.SHR, chunks, ctx.r_first_at, CHUNK_BITS)
        b.alu(AluFn.MIN, chunks, chunks, plan.round_chunks)
        b.set(tokens, CHUNK_TOKENS)
        with b.registers(1) as (fill,):
            b.move(fill, ctx.r_kv)
            b.set(number, 0)
            segment, unit = Segment(ctx, ctx.r_first, ctx.r_first_at), Unit(ctx, number, number)
            for what in (keys(ctx), values_of(ctx)):
                ahead = replace(what, counter=fill)
                b.set(position, 0)
                with b.registers(1) as (room,):
                    b.set(room, plan.kv_entries)
                    b.alu_r(AluFn.SUB, room, room, ctx.r_ahead)
                    b.alu_r(AluFn.MIN, chunks, chunks, room)
                with b.loop_r(chunks):
                    load_old(ctx, segment, unit, ahead, position, tokens, whole=True)
                    b.alu(AluFn.ADD, fill, fill, 1)
                    b.alu(AluFn.ADD, position, position, CHUNK_TOKENS)
                b.alu_r(AluFn.ADD, ctx.r_ahead, ctx.r_ahead, chunks)
        b.place(done)
        b.alu(AluFn.SUB, ctx.r_layer, ctx.r_layer, 1)
    b.tensor_name = ""


def _load_chunk(ctx: Context, segment: Segment, unit: Unit, what: Cached, position: int, tokens: int) -> None:
    """Load a chunk of R[tokens] = 256 tokens of earlier steps, unless it has been loaded ahead."""
    b = ctx.b
    if not ctx.plan.row_ahead:
        load_old(ctx, segment, unit, what, position, tokens, whole=True)
        return
    there, end = ctx.label(), ctx.label()
    b.branch(there, Cond.NE, ctx.r_ahead, 0)
    load_old(ctx, segment, unit, what, position, tokens, whole=True)
    b.branch(end)
    b.place(there)
    b.alu(AluFn.SUB, ctx.r_ahead, ctx.r_ahead, 1)
    b.place(end)


def _rounds(ctx: Context, segment: Segment, unit: Unit) -> None:
    """All chunks of the row that it sees, round by round; a round ends where a multiple of its most chunks does. The
    row's own chunk, which has tokens of this step, is a round by itself: what comes before it waits for nothing."""
    b, plan = ctx.b, ctx.plan
    side, window = plan.round_chunks, ctx.kind.window
    with b.registers(2) as (chunk, count):
        if window is None:
            b.set(chunk, 0)
        else:
            # First chunk that is seen: max(position - (window - 1), 0) / 256.
            b.set(count, window - 1)
            b.alu_r(AluFn.MAX, chunk, segment.position, count)
            b.alu_r(AluFn.SUB, chunk, chunk, count)
            b.alu(AluFn.SHR, chunk, chunk, CHUNK_BITS)
        again, own = ctx.label(), ctx.label()
        b.place(again)
        # count: of the round, min(chunks left before the row's own, chunks to the next multiple).
        with b.registers(1) as (room,):
            b.alu(AluFn.SHR, count, segment.position, CHUNK_BITS)
            b.branch_r(own, Cond.EQ, count, chunk)
            b.alu_r(AluFn.SUB, count, count, chunk)
            b.alu(AluFn.AND, room, chunk, side - 1)
            with b.registers(1) as (most,):
                b.set(most, side)
                b.alu_r(AluFn.SUB, room, most, room)
            b.alu_r(AluFn.MIN, count, count, room)
        _round(ctx, segment, unit, chunk, count)
        _take(ctx, chunk, count)
        b.alu_r(AluFn.ADD, chunk, chunk, count)
        b.branch(again)
        b.place(own)
        b.set(count, 1)
        _round(ctx, segment, unit, chunk, count, own=True)
        _take(ctx, chunk, count)


def _take(ctx: Context, chunk: int, count: int) -> None:
    """Give the round of R[count] chunks from R[chunk] on to its lanes.

    The first round of all lanes is what they have so far; a later one is added. Where a window leaves out the first
    chunks, some lanes begin later than others: all begin empty.
    """
    b, later, done = ctx.b, ctx.label(), ctx.label()
    if ctx.kind.window is None:
        with b.registers(1) as (turn,):
            b.alu(AluFn.SHR, turn, chunk, ctx.plan.profile_lanes.bit_length() - 1)
            b.branch(later, Cond.NE, turn, 0)
        _keep(ctx, chunk, count)
        b.branch(done)
    b.place(later)
    _add(ctx, chunk, count)
    b.place(done)
    ctx.bump(ctx.r_acc)


# ---- what lanes have so far, and what a round gives -----------------------------------------------------------------


def _lanes(ctx: Context, name: str, *, every: int = 1, first: int = 0) -> Descriptor:
    """Describe "o" [lanes, G, d], or "l" or "m" [lanes, 1, G], of every so manieth lane from `first` on; a step is a
    lane."""
    plan = ctx.plan
    g, dp, lanes = plan.group_queries, plan.dp, plan.lanes_local
    if name == "o":
        return ctx.spad("lanes_o", "FP32", (lanes, g, plan.model.head_dim), (every * g * dp, dp, 1),
                        offset=4 * first * g * dp, step=g * dp)  # fmt: skip
    start = 4 * (lanes * g * (name == "m") + first * g)
    return ctx.spad("lanes_lm", "INT32" if name == "m" else "FP32", (lanes, 1, g), (every * g, 0, 1), offset=start,
                    step=g)  # fmt: skip


def _of_round(ctx: Context, name: str) -> Descriptor:
    """Describe "l" or "m" of a round: [chunks, 1, G]."""
    g, side = ctx.plan.group_queries, ctx.plan.round_chunks
    return ctx.spad("round_lm", "INT32" if name == "m" else "FP32", (side, 1, g), (g, 0, 1),
                    offset=4 * side * g * (name == "m"))  # fmt: skip


def _work(ctx: Context, name: str, fmt: str) -> Descriptor:
    """Describe scores or probabilities of a round: [G, chunks, 256]."""
    g, side = ctx.plan.group_queries, ctx.plan.round_chunks
    scales = g * side * CHUNK_TOKENS if name == "p" else None
    return ctx.spad(name, fmt, (g, side, CHUNK_TOKENS), (side * CHUNK_TOKENS, CHUNK_TOKENS, 1), scales=scales)


def _reduced(descriptor: Descriptor, g: int, side: int) -> Descriptor:
    """The same [chunks, 1, G] words as the rows [G, chunks] of `_work` see them."""
    return replace(descriptor, ext=(g, side, 1), stride=(1, g, 0))


def _each_row(words: Descriptor, g: int) -> Descriptor:
    """The same [n, 1, G] words one for each row of [n, G, d]."""
    return replace(words, ext=(words.ext[0], g, 1), stride=(words.stride[0], 1, 0))


def _acc(ctx: Context, ext: tuple[int, int, int], stride: tuple[int, int, int]) -> Descriptor:
    """Describe the accumulator's ring of two halves."""
    half = ctx.plan.acc_half_words
    return tensor(Space.ACC, "FP32", 0, ext, stride, step=half, wrap=2 * half)


def _start_empty(ctx: Context, lanes: int) -> None:
    """M = -2^31, l = +0, o = +0 of R[lanes] lanes."""
    b, plan = ctx.b, ctx.plan
    with b.descriptors(2) as (d, a):
        for name, which in (("o", Constant.ZERO), ("l", Constant.ZERO), ("m", Constant.EMPTY)):
            target = _lanes(ctx, name)
            b.load(d, target)
            fmt = "INT32" if name == "m" else "FP32"
            b.load(a, ctx.spad("consts", fmt, (plan.lanes_local, *target.ext[1:]), (0, 0, 0), offset=4 * which))
            b.extent_r(a, 0, lanes)
            b.vec(d, a)


# ---- a round ---------------------------------------------------------------------------------------------------------


def _round(ctx: Context, segment: Segment, unit: Unit, chunk: int, count: int, *, own: bool = False) -> None:
    """The R[count] chunks from R[chunk] on: M and l in `round_lm`, o in the accumulator, [chunks, G, dp], not freed.

    own: the row's own chunk; all that earlier steps have stored of it is loaded before anything of this step.
    """
    b = ctx.b
    with b.registers(2) as (start, tokens):
        b.alu(AluFn.SHL, start, chunk, CHUNK_BITS)
        if own:
            b.alu_r(AluFn.SUB, tokens, segment.position, start)
            b.alu(AluFn.ADD, tokens, tokens, 1)
            what = (keys(ctx), scales_of_round(ctx), values_of(ctx, 1))
            load(ctx, segment, unit, *what, position=start, start=start, total=tokens)
        else:
            b.set(tokens, CHUNK_TOKENS)
        _scores(ctx, segment, unit, start, count, 0 if own else tokens)
        _probabilities(ctx, segment, unit, start, count, own=own)
        _values(ctx, segment, unit, start, count, 0 if own else tokens)


def _scores(ctx: Context, segment: Segment, unit: Unit, start: int, count: int, tokens: int) -> None:
    """scores [G, chunks, 256] = fix(q k^T * c), masked. tokens: register of 256 where chunks are still to be loaded."""
    b, plan = ctx.b, ctx.plan
    g, dp, fmt, rows, side = plan.group_queries, plan.dp, plan.profile.k, plan.rows, plan.round_chunks
    wide = side * CHUNK_TOKENS
    b.sync(Queue.M, wait="acc_free")
    with b.registers(1) as (position,), b.descriptors(4) as (q, weights, acc, out):
        b.move(position, start)
        b.load(q, ctx.spad("q", fmt, (1, g, dp), (dp, rows * dp, 1), scales=plan.model.heads * rows * dp,
                           step=g * rows * dp))  # fmt: skip
        with segment.row() as row:
            b.advance_r(q, 0, row)
        with unit.head() as head:
            b.advance_r(q, 3, head)
        ctx.load_ring(acc, _acc(ctx, (1, g, CHUNK_TOKENS), (0, wide, 1)), ctx.r_acc)
        with b.loop_r(count):
            if tokens:
                _load_chunk(ctx, segment, unit, keys(ctx), position, tokens)
            ctx.load_ring(weights, keys(ctx).ring, ctx.r_kv)
            ctx.bump(ctx.r_kv)
            b.matmul(acc, q, weights, zero=1, wait="kv_full", post="kv_free")
            b.advance(acc, 2, CHUNK_TOKENS)
            b.alu(AluFn.ADD, position, position, CHUNK_TOKENS)
        b.sync(Queue.M, post="acc_full")
        with b.registers(3) as (columns, window, high):
            b.alu(AluFn.SHL, columns, count, CHUNK_BITS)
            ctx.load_ring(acc, _acc(ctx, (g, 1, wide), (wide, 0, 1)), ctx.r_acc)
            ctx.bump(ctx.r_acc)
            b.extent_r(acc, 2, columns)
            b.load(out, ctx.spad("scores", "INT32", (g, 1, wide), (wide, 0, 1)))
            b.load(weights, ctx.constant(Constant.SCORE_SCALE))
            b.alu(AluFn.ADD, high, segment.position, 1)
            if ctx.kind.window is not None:
                b.set(window, ctx.kind.window)
            b.vec_masked(out, acc, weights, op1=Op1.MUL, red=Red.NONE, j0=start,
                         window=window if ctx.kind.window is not None else 0, high=high, group=0,
                         wait="acc_full", post="acc_free")  # fmt: skip


def _probabilities(ctx: Context, segment: Segment, unit: Unit, start: int, count: int, *, own: bool) -> None:
    """M of each chunk; P = quantise(exp2fx(F - M) * 2^sv); l, the tree over the positions of a chunk."""
    b, plan = ctx.b, ctx.plan
    g, side = plan.group_queries, plan.round_chunks
    with b.pair() as d, b.descriptors(3) as (scores, maxima, scales):
        what = scales_of_round(ctx)
        if not own:
            with b.registers(1) as (columns,):
                b.alu(AluFn.SHL, columns, count, CHUNK_BITS)
                load_old(ctx, segment, unit, what, start, columns, whole=True)
        b.load(scores, _work(ctx, "scores", "INT32"))
        b.extent_r(scores, 1, count)
        b.load(SCRATCH, _reduced(_of_round(ctx, "m"), g, side))
        b.vec(0, scores, red=Red.CEILMAX)
        b.load(maxima, _reduced(_of_round(ctx, "m"), g, side))
        b.load(d, _work(ctx, "p", plan.profile.p))
        b.load(d + 1, _reduced(_of_round(ctx, "l"), g, side))
        ring = replace(what.ring, ext=(g, side, CHUNK_TOKENS), stride=(0, CHUNK_TOKENS, 1))
        ctx.load_ring(scales, ring, what.counter)
        ctx.bump(what.counter)
        b.vec(d, scores, maxima, scales, op1=Op1.EXP2, op2=Op2.MULM, red=Red.SUM, wait="load_full p_free",
              post="load_free p_full")  # fmt: skip


def _values(ctx: Context, segment: Segment, unit: Unit, start: int, count: int, tokens: int) -> None:
    """acc [chunks, G, dp] = P times V of each chunk, blocks ascending. tokens: as in `_scores`."""
    b, plan = ctx.b, ctx.plan
    g, dp, wide = plan.group_queries, plan.dp, plan.round_chunks * CHUNK_TOKENS
    b.sync(Queue.M, wait="p_full acc_free")
    with b.registers(1) as (position,), b.descriptors(3) as (p, weights, acc):
        b.move(position, start)
        b.load(p, ctx.spad("p", plan.profile.p, (1, g, CHUNK_TOKENS), (0, wide, 1), scales=g * wide))
        ctx.load_ring(acc, _acc(ctx, (1, g, dp), (0, dp, 1)), ctx.r_acc)
        with b.loop_r(count):
            what = values_of(ctx)
            if tokens:
                _load_chunk(ctx, segment, unit, what, position, tokens)
            ctx.load_ring(weights, what.ring, ctx.r_kv)
            ctx.bump(ctx.r_kv)
            b.matmul(acc, p, weights, zero=1, by_rows=True, wait="kv_full", post="kv_free")
            b.advance(p, 2, CHUNK_TOKENS)
            b.advance(acc, 1, g)
            b.alu(AluFn.ADD, position, position, CHUNK_TOKENS)
    b.sync(Queue.M, post="acc_full p_free")


def _sums(ctx: Context, d: int, count: int) -> None:
    """D[d] = o of a round, [chunks, G, d], in the accumulator."""
    b, plan = ctx.b, ctx.plan
    g, dp = plan.group_queries, plan.dp
    ctx.load_ring(d, _acc(ctx, (plan.round_chunks, g, plan.model.head_dim), (g * dp, dp, 1)), ctx.r_acc)
    b.extent_r(d, 0, count)


def _at_lane(ctx: Context, d: int, view: Descriptor, chunk: int) -> None:
    """D[d] = what `view` describes, from the lane of chunk R[chunk] on."""
    b = ctx.b
    b.load(d, view)
    with b.registers(1) as (lane,):
        b.alu(AluFn.AND, lane, chunk, ctx.plan.lanes_local - 1)
        b.advance_r(d, 3, lane)


def _keep(ctx: Context, chunk: int, count: int) -> None:
    """What the round gives is what its lanes have."""
    b = ctx.b
    with b.descriptors(2) as (d, a):
        for name in ("o", "l", "m"):
            _at_lane(ctx, d, _lanes(ctx, name), chunk)
            if name == "o":
                _sums(ctx, a, count)
                b.vec(d, a, wait="acc_full", post="acc_free")
            else:
                b.load(a, _of_round(ctx, name))
                b.extent_r(a, 0, count)
                b.vec(d, a)


def _add(ctx: Context, chunk: int, count: int) -> None:
    """Merge what the round gives into what its lanes have."""
    b, g = ctx.b, ctx.plan.group_queries
    with b.pair() as exponents, b.descriptors(2) as (d, y):
        for name in ("o", "l"):
            mine, theirs = _lanes(ctx, "m"), _of_round(ctx, "m")
            if name == "o":
                mine, theirs = _each_row(mine, g), _each_row(theirs, g)
            _at_lane(ctx, exponents, mine, chunk)
            b.load(exponents + 1, theirs)
            _at_lane(ctx, d, _lanes(ctx, name), chunk)
            b.extent_r(d, 0, count)
            if name == "o":
                _sums(ctx, y, count)
                b.vec(d, d, y, exponents, op1=Op1.SHIFTADD, wait="acc_full", post="acc_free")
            else:
                b.load(y, _of_round(ctx, "l"))
                b.vec(d, d, y, exponents, op1=Op1.SHIFTADD)
        _at_lane(ctx, d, _lanes(ctx, "m"), chunk)
        b.extent_r(d, 0, count)
        b.load(y, _of_round(ctx, "m"))
        b.vec(d, d, y, op1=Op1.IMAX)


# ---- the tree over lanes ---------------------------------------------------------------------------------------------


def _join(ctx: Context, lanes: int) -> None:
    """Merge R[lanes] lanes into the first by the tree: neighbours, then every second one; a last one without a sibling
    passes up as it is."""
    b, g, end = ctx.b, ctx.plan.group_queries, ctx.label()
    for level in range(ctx.plan.lanes_local.bit_length() - 1):
        left, right = ({"every": 2 << level, "first": first} for first in (0, 1 << level))
        with b.registers(1) as (pairs,):
            b.alu(AluFn.SHR, pairs, lanes, 1)
            b.branch(end, Cond.EQ, pairs, 0)
            with b.pair() as exponents, b.descriptors(2) as (x, y):
                for name in ("o", "l"):
                    mine, theirs = _lanes(ctx, "m", **left), _lanes(ctx, "m", **right)
                    if name == "o":
                        mine, theirs = _each_row(mine, g), _each_row(theirs, g)
                    b.load(exponents, mine)
                    b.load(exponents + 1, theirs)
                    b.load(x, _lanes(ctx, name, **left))
                    b.load(y, _lanes(ctx, name, **right))
                    b.extent_r(x, 0, pairs)
                    b.vec(x, x, y, exponents, op1=Op1.SHIFTADD)
                b.load(x, _lanes(ctx, "m", **left))
                b.extent_r(x, 0, pairs)
                b.vec(x, x, exponents + 1, op1=Op1.IMAX)
        b.alu(AluFn.ADD, lanes, lanes, 1)
        b.alu(AluFn.SHR, lanes, lanes, 1)
    b.place(end)


@dataclass(frozen=True)
class Joined:
    """What all lanes of a row together give: in the place of the first."""

    def load(self, ctx: Context, d: int, name: str) -> None:
        """D[d] = "o" [1, G, d], "l" or "m" [1, G, 1]."""
        part = _lanes(ctx, name)
        ctx.b.load(d, (part if name == "o" else _each_row(part, ctx.plan.group_queries)).with_ext(0, 1))

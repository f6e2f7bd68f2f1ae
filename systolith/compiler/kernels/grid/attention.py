"""Attention on the grid: a slice has all queries of a KV head for its rows, and all keys and values before them.

Rule 7 of the numerics, as in any step, arranged for many rows: V has most to do, so that its passes decide. A chunk is
two passes over the scores, fix with mask and maximum, then exp2 with sum, and one over the weighted values: that of a
lane's first chunk is put where the tree over lanes wants it, merged with its sibling on the way where it has one. The
next chunk is begun before the one in hand is ended, so that M has its scores to make while V makes probabilities.

Partials lie each in a bank of its own, M and l of those that wait apart from M and l of the chunk in hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from systolith.compiler.builder import Label
from systolith.compiler.context import Cell, Constant, Counter
from systolith.compiler.grid import KV_ENTRIES
from systolith.compiler.kernels.grid.context import GridContext
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Func, Op1, Op2, Red
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["attention"]

_CHUNK_BITS = CHUNK_TOKENS.bit_length() - 1


@dataclass(frozen=True, slots=True)
class _Tile:
    """Registers of a tile of query tokens: position of its first, its row among the slice's, lanes that hold a chunk,
    chunks of the tile that have begun."""

    position: int
    row: int
    active: int
    begun: int


def attention(ctx: GridContext) -> None:
    """Attend the rows of this slice, chunk by chunk of the step, and send the result to the slices with the same
    rows."""
    b, grid, plan = ctx.b, ctx.grid, ctx.plan
    b.tensor_name = "attention"
    # Entries for keys and values are free; L has taken the tokens of all rounds before.
    for _ in range(KV_ENTRIES):
        b.sync(Queue.M, post="kv_free")
    b.sync(Queue.L, wait="arrived")
    with b.registers(4) as (position, row, active, begun):
        b.alu(AluFn.MUL, position, ctx.r_member, grid.tokens)
        with ctx.reading(Cell.GRID_FIRST) as first:
            b.alu_r(AluFn.ADD, position, position, first)
        b.set(row, 0)
        with ctx.reading(Cell.GRID_CHUNKS) as chunks:
            place = b.open_loop(chunks)
        with b.loop(grid.tokens // plan.tile_tokens):
            _attend(ctx, _Tile(position, row, active, begun))
            b.alu(AluFn.ADD, row, row, plan.tile_tokens)
            b.alu(AluFn.ADD, position, position, plan.tile_tokens)
        b.alu(AluFn.ADD, position, position, CHUNK_TOKENS - grid.tokens)
        b.close_loop(place)
    for _ in range(KV_ENTRIES):
        b.sync(Queue.L, wait="kv_free")
    b.sync(Queue.V, wait="stage_free", post="stage_full")
    ctx.arrive_at_rows("arrived", Counter.OPERAND_ATTENTION, wait="stage_full", post="stage_free")
    b.tensor_name = ""


def _attend(ctx: GridContext, tile: _Tile) -> None:
    """One tile: the chunks of lane 0, then of lane 1, ..., the next one begun before the one in hand is ended."""
    b, lanes = ctx.b, ctx.plan.profile_lanes
    again, ended, finish = (ctx.label() for _ in range(3))
    b.alu(AluFn.SHR, tile.active, tile.position, _CHUNK_BITS)
    b.alu(AluFn.ADD, tile.active, tile.active, 1)
    b.alu(AluFn.MIN, tile.active, tile.active, lanes)
    b.set(tile.begun, 0)
    with b.registers(4) as (lane, start, next_lane, next_start):
        b.set(next_lane, 0)
        b.set(next_start, 0)
        _begin(ctx, tile, next_start)
        _probabilities(ctx, tile)
        b.place(again)
        b.move(lane, next_lane)
        b.move(start, next_start)
        # The next chunk: of this lane, or of the next one.
        same = ctx.label()
        with b.registers(1) as (step,):
            b.set(step, lanes << _CHUNK_BITS)
            b.alu_r(AluFn.ADD, next_start, start, step)
        b.branch_r(same, Cond.GE, tile.position, next_start)
        b.alu(AluFn.ADD, next_lane, lane, 1)
        b.alu(AluFn.SHL, next_start, next_lane, _CHUNK_BITS)
        b.branch_r(ended, Cond.EQ, next_lane, tile.active)
        b.place(same)
        _begin(ctx, tile, next_start)
        _probabilities(ctx, tile)
        b.place(ended)
        with b.registers(1) as (newer,):
            _newer(ctx, newer, next_lane, tile)
            _values(ctx, tile, newer)
            _take(ctx, tile, lane, start, next_lane, newer)
        b.branch_r(finish, Cond.EQ, next_lane, tile.active)
        b.branch(again)
        b.place(finish)
    _finish(ctx, tile)


# ---- one chunk -----------------------------------------------------------------------------------------------------


@contextmanager
def _there(ctx: GridContext, tile: _Tile, start: int) -> Iterator[int]:
    """A register: tokens of the chunk at R[start] up to the tile's last one."""
    b = ctx.b
    with b.registers(1) as (total,):
        b.alu(AluFn.ADD, total, tile.position, ctx.plan.tile_tokens)
        b.alu_r(AluFn.SUB, total, total, start)
        b.alu(AluFn.MIN, total, total, CHUNK_TOKENS)
        yield total


def _scores(ctx: GridContext) -> Descriptor:
    """Scores of the tile [tokens, G, 256]."""
    g, tokens = ctx.plan.group_queries, ctx.plan.tile_tokens
    return ctx.spad("scores", "INT32", (tokens, g, CHUNK_TOKENS), (g * CHUNK_TOKENS, CHUNK_TOKENS, 1))


def _begin(ctx: GridContext, tile: _Tile, start: int) -> None:
    """Load keys, values and their scales of the chunk at R[start]; scores = fix(q k^T * c), masked, and the largest of
    each row."""
    b, plan = ctx.b, ctx.plan
    g, dp, tokens, rows, fmt = plan.group_queries, plan.dp, plan.tile_tokens, ctx.rows, plan.profile.k
    step = ctx.grid.positions
    with _there(ctx, tile, start) as total, b.descriptors(2) as (d, a):
        for region, view, ring, wait, post in (
            (ctx.dram("grid_k", fmt, (CHUNK_TOKENS, 1, dp), (dp, 0, 1), scales="grid_k_scales", step=step * dp),
             _entry(ctx, fmt, scales=True), 0, "kv_free", "kv_full"),
            (ctx.dram("grid_vscale", "E8M0", (CHUNK_TOKENS, 1, 1), (1, 0, 0), step=step),
             _value_scales(ctx, (CHUNK_TOKENS, 1, 1), (1, 0, 0)), 1, "kv_free", "load_full"),
            (ctx.dram("grid_v", plan.profile.v, (CHUNK_TOKENS, 1, dp), (dp, 0, 1), step=step * dp),
             _entry(ctx, plan.profile.v), 1, "", "kv_full"),
        ):  # fmt: skip
            b.load(a, region)
            b.advance_r(a, 0, start)
            b.advance_r(a, 3, ctx.r_layer)
            b.extent_r(a, 0, total)
            ctx.load_ring(d, view, ctx.r_kv)
            b.advance(d, 3, ring)
            b.copy(Queue.L, d, a, wait=wait, post=post)
    with b.pair() as d, b.descriptors(3) as (q, keys, acc):
        view = ctx.spad("q", fmt, (tokens, g, dp), (dp, rows * dp, 1), scales=g * rows * dp)
        b.load(q, view)
        b.advance_r(q, 0, tile.row)
        ctx.load_ring(keys, _entry(ctx, fmt, scales=True), ctx.r_kv)
        ctx.load_ring(acc, ctx.acc(tokens, CHUNK_TOKENS, group=g), ctx.r_acc)
        ctx.bump(ctx.r_acc)
        alone = ctx.label()
        b.branch(alone, Cond.EQ, tile.begun, 0)
        b.sync(Queue.M, wait="kv_full")  # the values of the chunk in hand, which came before these keys
        b.place(alone)
        b.matmul(acc, q, keys, zero=1, wait="kv_full acc_free", post="acc_full")
        b.load(d, _scores(ctx))
        _row_values(ctx, d + 1, tile, "m", ahead=0)
        with b.descriptors(1) as (scale,), b.registers(1) as (high,):
            b.load(scale, ctx.constant(Constant.SCORE_SCALE))
            b.alu(AluFn.ADD, high, tile.position, 1)
            b.vec_masked(d, acc, scale, op1=Op1.MUL, red=Red.CEILMAX, j0=start, window=0, high=high, group=g,
                         wait="acc_full", post="acc_free")  # fmt: skip
    b.alu(AluFn.ADD, tile.begun, tile.begun, 1)


def _entry(ctx: GridContext, fmt: str, *, scales: bool = False) -> Descriptor:
    """An entry of the ring of keys and values: [256, 1, dp]; a chunk takes two."""
    dp = ctx.plan.dp
    ring = ctx.ring_of("kv_ring", fmt, CHUNK_TOKENS * dp, KV_ENTRIES, (CHUNK_TOKENS, 1, dp), (dp, 0, 1))
    return ring if scales else ctx.plain(ring)


def _value_scales(ctx: GridContext, ext: tuple[int, int, int], stride: tuple[int, int, int]) -> Descriptor:
    return ctx.words("vscale_ring", "E8M0", CHUNK_TOKENS, ext, stride, entries=KV_ENTRIES)


def _row_values(ctx: GridContext, d: int, tile: _Tile, name: str, *, ahead: int, flat: bool = False) -> None:
    """D[d] = M ("m") or l ("l") of a chunk's rows, [tokens, G, 1] or all in one row. ahead: 0, of the chunk that begins
    now; 1, of the one that has begun last. Both have two entries, which take turns."""
    b, g, tokens = ctx.b, ctx.plan.group_queries, ctx.plan.tile_tokens
    n = tokens * g
    ext, stride = ((1, 1, n), (0, 0, 1)) if flat else ((tokens, g, 1), (g, 1, 0))
    fmt, offset = ("INT32", 0) if name == "m" else ("FP32", 4 * 2 * n)
    b.load(d, ctx.spad("chunk_rows", fmt, ext, stride, offset=offset, step=n, wrap=2 * n))
    b.advance_r(d, 3, tile.begun)
    if ahead:
        b.advance(d, 3, 1)


def _probabilities(ctx: GridContext, tile: _Tile) -> None:
    """P = quantise(exp2fx(F - M) * 2^sv) of the chunk that has begun last; l, the tree over its positions."""
    b = ctx.b
    with b.pair() as d, b.descriptors(3) as (scores, maxima, scales):
        b.load(scores, _scores(ctx))
        _row_values(ctx, maxima, tile, "m", ahead=1)
        _probability_ring(ctx, d, tile)
        _row_values(ctx, d + 1, tile, "l", ahead=1)
        ctx.load_ring(scales, _value_scales(ctx, (1, 1, CHUNK_TOKENS), (0, 0, 1)), ctx.r_kv)
        b.advance(scales, 3, 1)
        b.vec(d, scores, maxima, scales, op1=Op1.EXP2, op2=Op2.MULM, red=Red.SUM, wait="load_full p_free",
              post="p_full")  # fmt: skip
    ctx.bump(ctx.r_kv, 2)


def _probability_ring(ctx: GridContext, d: int, tile: _Tile) -> None:
    """D[d] = P of the chunk that has begun last; there are two, which take turns."""
    plan = ctx.plan
    g, n = plan.group_queries, plan.tile_tokens * plan.group_queries * CHUNK_TOKENS
    view = ctx.spad("p", plan.profile.p, (plan.tile_tokens, g, CHUNK_TOKENS), (g * CHUNK_TOKENS, CHUNK_TOKENS, 1),
                    scales=2 * n, step=n, wrap=2 * n)  # fmt: skip
    ctx.load_ring(d, view, tile.begun)
    ctx.b.advance(d, 3, 1)


def _values(ctx: GridContext, tile: _Tile, newer: int) -> None:
    """Sums [tokens, G, dp] = P times V, for the chunk in hand: that begun last, or where R[newer] is 1 the one before.

    Keys and values of a chunk are given back together.
    """
    b, plan = ctx.b, ctx.plan
    counted = ctx.label()
    b.branch(counted, Cond.NE, newer, 0)
    b.sync(Queue.M, wait="kv_full")
    b.place(counted)
    with b.descriptors(3) as (p, values, acc), b.registers(1) as (entry,):
        _probability_ring(ctx, p, tile)
        b.advance_r(p, 3, newer)
        b.alu(AluFn.SHL, entry, newer, 1)
        b.alu_r(AluFn.SUB, entry, ctx.r_kv, entry)
        ctx.load_ring(values, _entry(ctx, plan.profile.v), entry)
        b.advance(values, 3, -1)
        ctx.load_ring(acc, ctx.acc(plan.tile_tokens, plan.dp, group=plan.group_queries), ctx.r_acc)
        ctx.bump(ctx.r_acc)
        b.matmul(acc, p, values, zero=1, by_rows=True, wait="p_full acc_free", post="kv_free acc_full p_free")
    b.sync(Queue.M, post="kv_free")


# ---- partials ------------------------------------------------------------------------------------------------------


def _slots(ctx: GridContext) -> int:
    """Partials that are kept: one for each level of the tree over lanes, and one that is being made."""
    return ctx.plan.merge_levels + 2


def _kept(ctx: GridContext, d: int, slot: int, name: str, *, flat: bool = False, by: int = 0) -> None:
    """D[d] = "o" [tokens, G, d], "m" or "l" [tokens, G, 1] (or all in one row) of a kept partial; by: register of a
    number of slots beyond."""
    b, plan = ctx.b, ctx.plan
    g, tokens, dp = plan.group_queries, plan.tile_tokens, plan.dp
    n = g * tokens
    if name == "o":
        pitch = ctx.grid.partial_pitch // 4
        view = ctx.spad("partials", "FP32", (tokens, g, plan.model.head_dim), (g * dp, dp, 1), step=pitch)
    else:
        ext, stride = ((1, 1, n), (0, 0, 1)) if flat else ((tokens, g, 1), (g, 1, 0))
        offset = 0 if name == "m" else 4 * n * _slots(ctx)
        view = ctx.spad("partial_rows", "INT32" if name == "m" else "FP32", ext, stride, offset=offset, step=n)
    b.load(d, view.advance(3, slot))
    if by:
        b.advance_r(d, 3, by)


def _take(ctx: GridContext, tile: _Tile, lane: int, start: int, next_lane: int, newer: int) -> None:
    """What the chunk in hand gives goes on: merged with the lane's chunks before it, and when it is the lane's last one
    up the tree."""
    b, making = ctx.b, ctx.plan.merge_levels + 1
    done, others, last = (ctx.label() for _ in range(3))
    first = ctx.label()
    with b.registers(1) as (lanes,):
        b.set(lanes, ctx.plan.profile_lanes << _CHUNK_BITS)
        b.branch_r(first, Cond.LT, start, lanes)
    # A later chunk of the lane: into the partial that is being made.
    _merge(ctx, tile, making, making, None, newer)
    b.branch_r(done, Cond.EQ, next_lane, lane)
    b.branch(last)
    b.place(first)
    b.branch_r(others, Cond.EQ, next_lane, lane)
    # The only one of its lane: straight up the tree.
    _climb(ctx, tile, lane, None, newer, done)
    b.place(others)
    _put_down(ctx, tile, making, None, newer)
    b.branch(done)
    b.place(last)
    _climb(ctx, tile, lane, making, newer, done)
    b.place(done)


def _newer(ctx: GridContext, newer: int, next_lane: int, tile: _Tile) -> None:
    """R[newer] = 1 where a chunk has begun behind the one in hand, else 0: where its M lies hangs on it."""
    b = ctx.b
    none = ctx.label()
    b.set(newer, 0)
    b.branch_r(none, Cond.EQ, next_lane, tile.active)
    b.set(newer, 1)
    b.place(none)


def _climb(ctx: GridContext, tile: _Tile, lane: int, source: int | None, newer: int, done: Label) -> None:
    """Merge a lane's partial with its siblings as far as they wait; put it where the next one will find it.

    source : slot, or None for the chunk in hand. Lane n meets those that wait in the levels of its lowest ones.
    """
    b, levels = ctx.b, ctx.plan.merge_levels
    making, at = levels + 1, source
    with b.registers(1) as (bit,):
        for level in range(levels + 1):
            if level < levels:
                up = ctx.label()
                b.alu(AluFn.SHR, bit, lane, level)
                b.alu(AluFn.AND, bit, bit, 1)
                b.branch(up, Cond.NE, bit, 0)
            _put_down(ctx, tile, level, at, newer)
            b.branch(done)
            if level < levels:
                b.place(up)
                _merge(ctx, tile, making, level, at, newer)
                at = making


def _put_down(ctx: GridContext, tile: _Tile, slot: int, source: int | None, newer: int) -> None:
    """Copy a partial, or the chunk in hand, to a slot."""
    b = ctx.b
    with b.descriptors(2) as (d, x):
        _kept(ctx, d, slot, "o")
        wait = _o_of(ctx, x, source)
        b.vec(d, x, wait=wait, post="acc_free" if wait else "")
        for name in ("l", "m"):
            _kept(ctx, d, slot, name, flat=True)
            _row_of(ctx, x, tile, name, source, newer, flat=True)
            b.vec(d, x)


def _merge(ctx: GridContext, tile: _Tile, out: int, left: int, right: int | None, newer: int) -> None:
    """Slot `out` = slot `left` merged with slot `right`, or with the chunk in hand (rule 7)."""
    b = ctx.b
    with b.pair() as exponents, b.descriptors(3) as (d, x, y):
        _kept(ctx, exponents, left, "m")
        _row_of(ctx, exponents + 1, tile, "m", right, newer)
        _kept(ctx, d, out, "o")
        _kept(ctx, x, left, "o")
        wait = _o_of(ctx, y, right)
        b.vec(d, x, y, exponents, op1=Op1.SHIFTADD, wait=wait, post="acc_free" if wait else "")
        _kept(ctx, exponents, left, "m", flat=True)
        _row_of(ctx, exponents + 1, tile, "m", right, newer, flat=True)
        _kept(ctx, d, out, "l", flat=True)
        _kept(ctx, x, left, "l", flat=True)
        _row_of(ctx, y, tile, "l", right, newer, flat=True)
        b.vec(d, x, y, exponents, op1=Op1.SHIFTADD)
        _kept(ctx, d, out, "m", flat=True)
        b.vec(d, exponents, exponents + 1, op1=Op1.IMAX)


def _o_of(ctx: GridContext, d: int, source: int | None) -> str:
    """D[d] = o of a slot, or the sums of the chunk in hand; gives the semaphore that these wait for."""
    if source is not None:
        _kept(ctx, d, source, "o")
        return ""
    plan = ctx.plan
    view = ctx.acc(plan.tile_tokens, plan.dp, group=plan.group_queries)
    ctx.load_ring(d, view.with_ext(2, plan.model.head_dim), ctx.r_acc)
    ctx.b.advance(d, 3, 1)
    return "acc_full"


def _row_of(ctx: GridContext, d: int, tile: _Tile, name: str, source: int | None, newer: int, *,
            flat: bool = False) -> None:  # fmt: skip
    """D[d] = M or l of a slot, or of the chunk in hand."""
    if source is not None:
        _kept(ctx, d, source, name, flat=flat)
        return
    _row_values(ctx, d, tile, name, ahead=1, flat=flat)
    ctx.b.advance_r(d, 3, newer)


def _finish(ctx: GridContext, tile: _Tile) -> None:
    """Merge what still waits, divide by l, quantise, send to the parts of the operand of o."""
    b, grid, plan = ctx.b, ctx.grid, ctx.plan
    g, dp, deep, rows, levels = plan.group_queries, plan.dp, grid.o.deep, ctx.rows, plan.merge_levels
    fmt, tokens = plan.profile.activations, plan.tile_tokens
    making = levels + 1
    with b.registers(2) as (place, bit):
        # R[place]: the slot that holds all lanes up to the last; levels that wait are the ones of `active`.
        b.set(place, making + 1)
        for level in range(levels + 1):
            none, first = ctx.label(), ctx.label()
            b.alu(AluFn.SHR, bit, tile.active, level)
            b.alu(AluFn.AND, bit, bit, 1)
            b.branch(none, Cond.EQ, bit, 0)
            b.branch(first, Cond.EQ, place, making + 1)
            _merge_at(ctx, making, level, place)
            b.set(place, making)
            b.branch(none)
            b.place(first)
            b.set(place, level)
            b.place(none)
        with b.descriptors(4) as (a, inverse, stage, out):
            _kept(ctx, a, 0, "l", flat=True, by=place)
            b.load(inverse, ctx.spad("inverse", "FP32", (1, 1, tokens * g), (0, 0, 1)))
            b.vec(inverse, a, func=Func.RCP)
            b.load(inverse, ctx.spad("inverse", "FP32", (tokens, g, 1), (g, 1, 0)))
            _kept(ctx, a, 0, "o", by=place)
            # By parts of the operand of o, [parts, tokens, deep]; a part is some heads, or a head some parts. Of a part
            # that has fewer heads only their columns go: the others stay the zeros that they are.
            across, depth = max(1, deep // dp), min(dp, deep)
            whole, left = divmod(g * dp, deep)
            parts = whole + bool(left)
            heads = [across] * whole + [left // dp] * bool(left)
            runs = heads if deep != dp else [g]
            for run, count in enumerate(runs):
                view = ctx.stage(fmt, (tokens, g, dp), (dp, tokens * dp, 1), scales=True)
                if deep != dp:
                    ext = (tokens, count, depth)
                    view = ctx.stage(fmt, ext, (count * depth, dp, 1), scales=True).advance(2, run * tokens * deep)
                    head = run * deep // dp
                    _kept(ctx, a, 0, "o", by=place)
                    b.advance(a, 1, head)
                    b.advance(a, 2, run * deep - head * dp)
                    for dim in (1, 2):
                        b.extent(a, dim, ext[dim])
                    b.load(inverse, ctx.spad("inverse", "FP32", (tokens, count, 1), (g, 1, 0)).advance(1, head))
                ctx.load_ring(stage, view, ctx.r_stage)
                b.vec(stage, a, inverse, op1=Op1.MUL, wait="" if run else "stage_free",
                      post="stage_full" if run == len(runs) - 1 else "")  # fmt: skip
            for start, count, width in [(0, whole, deep)] * bool(whole) + [(whole, 1, left)] * bool(left):
                view = ctx.stage(fmt, (count, tokens, width), (tokens * deep, width, 1), scales=True)
                ctx.load_ring(stage, view.advance(0, start), ctx.r_stage)
                target = ctx.dram("grid_attention", fmt, (count, tokens, width), (rows * deep, deep, 1),
                                  scales="grid_attention_scales", step=parts * rows * deep)  # fmt: skip
                b.load(out, target.advance(0, start))
                b.advance_r(out, 1, tile.row)
                ctx.to_group(out)
                ctx.put_to_rows(out, stage, wait="" if start else "stage_full",
                                post="stage_free" if start + count == parts else "")  # fmt: skip
    ctx.bump(ctx.r_stage)


def _merge_at(ctx: GridContext, out: int, left: int, place: int) -> None:
    """Slot `out` = slot `left` merged with slot R[place]."""
    b = ctx.b
    with b.pair() as exponents, b.descriptors(3) as (d, x, y):
        for name in ("o", "l"):
            flat = name == "l"
            _kept(ctx, exponents, left, "m", flat=flat)
            _kept(ctx, exponents + 1, 0, "m", flat=flat, by=place)
            _kept(ctx, d, out, name, flat=flat)
            _kept(ctx, x, left, name, flat=flat)
            _kept(ctx, y, 0, name, flat=flat, by=place)
            b.vec(d, x, y, exponents, op1=Op1.SHIFTADD)
        _kept(ctx, d, out, "m", flat=True)
        b.vec(d, exponents, exponents + 1, op1=Op1.IMAX)

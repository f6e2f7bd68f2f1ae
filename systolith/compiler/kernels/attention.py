"""Attention of a step's segments over the KV cache: rule 7 of the numerics.

A segment is a run of rows of one request inside one chunk of 256 positions. A unit is a KV head, an aligned group of
lanes and a group of request slots; a slice has one or a few. For each segment, unit and tile of query tokens: for each
lane its chunks in ascending order, lanes merged by the tree, groups of slices exchanged and merged on, the sink last.
Decode rows of a batch go another way (`decode`).
"""

from __future__ import annotations

from systolith.compiler.builder import Label
from systolith.compiler.context import Cell, Context, Counter
from systolith.compiler.kernels.chunk import begin_chunk, begin_none, end_chunk, end_none, wait_for_rows
from systolith.compiler.kernels.decode import attend_decode_rows
from systolith.compiler.kernels.partial import Partial, merge, merge_halves, start_empty
from systolith.compiler.kernels.result import finish
from systolith.compiler.kernels.segment import Tile, each_segment, each_unit
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["attention"]


def attention(ctx: Context) -> None:
    """Attend all rows of the step and send the result to all slices as the operand of o."""
    b = ctx.b
    b.tensor_name = "attention"
    b.set(ctx.r_arrived, 0)
    if ctx.plan.round_chunks:
        attend_decode_rows(ctx)
    with each_segment(ctx) as segment, each_unit(ctx, segment) as unit, b.registers(2) as (first, tokens):
        # first: token of the tile within the segment; tokens: of the tile.
        b.set(first, 0)
        b.set(tokens, ctx.plan.tile_tokens)
        with segment.rows() as rows:
            b.alu_r(AluFn.CEILDIV, rows, rows, tokens)
            place = b.open_loop(rows)
        with segment.rows() as rows:
            b.alu_r(AluFn.SUB, tokens, rows, first)
        b.alu(AluFn.MIN, tokens, tokens, ctx.plan.tile_tokens)
        _attend(ctx, Tile(segment, unit, first, tokens))
        b.alu_r(AluFn.ADD, first, first, tokens)
        b.close_loop(place)
    ctx.arrive(("operand", Counter.OPERAND_ATTENTION))
    if ctx.plan.round_chunks:
        b.sync(Queue.S, post="cached")
    wait_for_rows(ctx)
    # What S stored may be read from here on, and what it stored from may be written: L tells V with the next gains.
    b.sync(Queue.L, wait="cached")
    b.tensor_name = ""


def _attend(ctx: Context, tile: Tile) -> None:
    """One tile of query tokens in one unit."""
    b, plan = ctx.b, ctx.plan
    done, no_lane = ctx.label(), ctx.label()
    current = Partial(ctx, 0)
    with b.registers(1) as (active,):
        # Lanes of this unit that hold a chunk: min(max(chunks - first lane, 0), lanes).
        with b.registers(1) as (first,):
            tile.chunks(active)
            b.alu(AluFn.MUL, first, tile.unit.group, plan.lanes_local)
            b.alu_r(AluFn.MAX, active, active, first)
            b.alu_r(AluFn.SUB, active, active, first)
            b.alu(AluFn.MIN, active, active, plan.lanes_local)
        b.branch(no_lane, Cond.EQ, active, 0)
        with b.registers(1) as (index,):
            b.set(index, 0)
            if plan.lanes_local == 1:
                _lane(ctx, tile, current, index)
            else:
                _lanes(ctx, tile, current, index, active)
        b.branch(done)
        b.place(no_lane)
        start_empty(ctx, current, tile)
        b.place(done)
    others = ctx.label()
    if plan.group > 1:
        _exchange(ctx, tile, current, others)
    finish(ctx, tile, current)
    b.place(others)


def _lane(ctx: Context, tile: Tile, current: Partial, index: int) -> None:
    """The chunks of the unit's lane R[index], ascending: lane, lane + R, ... of those that are there. One ends when the
    next has begun, so that neither M nor V waits for what the other makes of the same chunk."""
    b, lanes, none, over, first = ctx.b, ctx.plan.profile_lanes, *(ctx.label() for _ in range(3))
    start_empty(ctx, current, tile)
    # start: of a chunk; before: chunks that have begun before it.
    with b.registers(2) as (start, before):
        b.alu(AluFn.MUL, start, tile.unit.group, ctx.plan.lanes_local)
        b.alu_r(AluFn.ADD, start, start, index)
        with b.registers(1) as (count,):
            with b.registers(1) as (stride,):
                tile.chunks(count)
                b.set(stride, lanes)
                b.alu_r(AluFn.SUB, count, count, start)
                b.alu_r(AluFn.CEILDIV, count, count, stride)
                if ctx.kind.window is not None:
                    _skip_unseen(ctx, tile, ctx.kind.window, start, count, stride)
            b.branch(none, Cond.EQ, count, 0)
            b.alu(AluFn.SHL, start, start, CHUNK_TOKENS.bit_length() - 1)
            b.set(before, 0)
            b.alu(AluFn.ADD, count, count, 1)
            place = b.open_loop(count)
        # The last round, behind the segment's chunk, begins none.
        b.branch_r(over, Cond.LT, tile.segment.position, start)
        begin_chunk(ctx, tile, start, before)
        begin_none(ctx, over)
        b.alu(AluFn.ADD, before, before, 1)
        b.branch(first, Cond.EQ, before, 1)
        _move(ctx, AluFn.SUB, start)
        end_chunk(ctx, tile, current, start, before)
        _move(ctx, AluFn.ADD, start)
        b.place(first)
        _move(ctx, AluFn.ADD, start)
        b.close_loop(place)
        end_none(ctx)
    b.place(none)


def _move(ctx: Context, fn: AluFn, start: int) -> None:
    """Move R[start] to the lane's next chunk, or back."""
    step = ctx.plan.profile_lanes * CHUNK_TOKENS
    if step < 1 << 15:
        ctx.b.alu(fn, start, start, step)
        return
    with ctx.b.registers(1) as (stride,):
        ctx.b.set(stride, step)
        ctx.b.alu_r(fn, start, start, stride)


def _skip_unseen(ctx: Context, tile: Tile, window: int, start: int, count: int, stride: int) -> None:
    """Leave out the lane's chunks that lie before the window of the tile's first token: empty, they change nothing.

    start, count: registers of the lane's first chunk and its chunks; stride: register of R.
    """
    b = ctx.b
    with b.registers(2) as (seen, bound):
        # First chunk that is seen: max(position - (window - 1), 0) / 256.
        b.alu_r(AluFn.ADD, seen, tile.segment.position, tile.first)
        b.set(bound, window - 1)
        b.alu_r(AluFn.MAX, seen, seen, bound)
        b.alu_r(AluFn.SUB, seen, seen, bound)
        b.alu(AluFn.SHR, seen, seen, CHUNK_TOKENS.bit_length() - 1)
        b.alu_r(AluFn.MAX, seen, seen, start)
        b.alu_r(AluFn.SUB, seen, seen, start)
        b.alu_r(AluFn.CEILDIV, seen, seen, stride)
        b.alu_r(AluFn.SUB, count, count, seen)
        b.alu_r(AluFn.MUL, seen, seen, stride)
        b.alu_r(AluFn.ADD, start, start, seen)


def _lanes(ctx: Context, tile: Tile, current: Partial, index: int, active: int) -> None:
    """All lanes of the unit, merged as the tree over lane numbers does: a partial of 2^k lanes waits in level k until
    its sibling is complete; after the last lane all that wait are merged (an empty sibling changes nothing)."""
    b, plan = ctx.b, ctx.plan
    again, finished = ctx.label(), ctx.label()
    b.place(again)
    _lane(ctx, tile, current, index)
    with b.registers(2) as (last, bit):
        b.alu(AluFn.ADD, last, index, 1)
        b.alu_r(AluFn.SUB, last, active, last)  # 0 at the last lane
        stored = ctx.label()
        for level in range(plan.merge_levels):
            wait, join, after = Partial(ctx, 1 + level), ctx.label(), ctx.label()
            b.alu(AluFn.SHR, bit, index, level)
            b.alu(AluFn.AND, bit, bit, 1)
            b.branch(join, Cond.NE, bit, 0)
            b.branch(after, Cond.EQ, last, 0)
            wait.copy_from(ctx, current, tile)
            b.branch(stored)
            b.place(join)
            merge(ctx, tile, current, wait, current)
            b.place(after)
        b.place(stored)
        b.branch(finished, Cond.EQ, last, 0)
    b.alu(AluFn.ADD, index, index, 1)
    b.branch(again)
    b.place(finished)


def _exchange(ctx: Context, tile: Tile, current: Partial, others: Label) -> None:
    """Send the partial to the slices that share this head; the first of them merges all, the others go on to a label.

    Two receive buffers take turns: who sends the partial after the next has the first one's next, made after its merge.
    """
    b, plan = ctx.b, ctx.plan
    odd, sent = ctx.label(), ctx.label()
    with b.registers(1) as (parity,):
        b.alu(AluFn.AND, parity, ctx.r_exchange, 1)
        b.alu(AluFn.ADD, ctx.r_exchange, ctx.r_exchange, 1)
        b.sync(Queue.V, wait="stage_free", post="stage_full")
        with b.registers(1) as (place,), b.descriptors(2) as (out, source):
            _place_of(ctx, place, tile.unit.group)
            with b.registers(1) as (turn,):
                b.alu(AluFn.MUL, turn, parity, plan.group)
                b.alu_r(AluFn.ADD, place, place, turn)
            parts = list(zip(current.parts(), Partial(ctx, 0, "exchange").parts(), strict=True))
            for number, (mine, theirs) in enumerate(parts):
                b.load(source, mine)
                b.extent_r(source, 0, tile.tokens)
                b.load(out, theirs)
                b.extent_r(out, 0, tile.tokens)
                b.advance_r(out, 3, place)
                b.put(out, source, Cell.GROUP_RANK, plan.group, wait="" if number else "stage_full",
                      post="stage_free" if number == 2 else "")  # fmt: skip
        b.branch(odd, Cond.NE, parity, 0)
        b.arrive(ctx.nothing, "partials", Counter.EXCHANGE, Cell.GROUP_RANK, plan.group)
        b.branch(sent)
        b.place(odd)
        b.arrive(ctx.nothing, "partials", Counter.EXCHANGE + 1, Cell.GROUP_RANK, plan.group)
        b.place(sent)
        b.sync(Queue.V, wait="partials")
        b.branch(others, Cond.NE, tile.unit.group, 0)
        count = plan.group
        while count > 2:
            merge_halves(ctx, tile, "exchange", parity, count)
            count //= 2
        # The last merge goes to `current`, whose address does not depend on the turn.
        left, right = (Partial(ctx, i, "exchange", parity, plan.group) for i in (0, 1))
        merge(ctx, tile, current, left, right)


def _place_of(ctx: Context, place: int, number: int) -> None:
    """R[place] = the bits of R[number] in reverse: where the partial of this slice lies in a buffer of `group`.

    Siblings of the tree then lie half of what is left apart, mostly in other banks, and a level is one pass.
    """
    b, bits = ctx.b, ctx.plan.group.bit_length() - 1
    b.set(place, 0)
    with b.registers(1) as (bit,):
        for i in range(bits):
            b.alu(AluFn.SHR, bit, number, i)
            b.alu(AluFn.AND, bit, bit, 1)
            b.alu(AluFn.SHL, bit, bit, bits - 1 - i)
            b.alu_r(AluFn.OR, place, place, bit)

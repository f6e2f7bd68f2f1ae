"""One chunk of 256 positions: scores, probabilities, weighted values, and the merge into the lane's partial.

K and V come in parts of `part_tokens`; parts behind the last token are left out, they would be masked. Positions are
absolute, so that a part, a page or a tile of another size gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from systolith.compiler.builder import Label
from systolith.compiler.context import SCRATCH, Constant, Context
from systolith.compiler.kernels.partial import Partial
from systolith.compiler.kernels.segment import Segment, Tile, Unit
from systolith.compiler.memory import kv_bytes, slot_pages
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Op1, Op2, Red
from systolith.spec.limits import CHUNK_TOKENS

__all__ = [
    "begin_chunk",
    "begin_none",
    "end_chunk",
    "end_none",
    "keys",
    "load",
    "load_old",
    "page_list",
    "scales_of_round",
    "values_of",
    "wait_for_rows",
]


def begin_chunk(ctx: Context, tile: Tile, start: int, before: int) -> None:
    """Make the probabilities of the chunk that starts at position R[start]; `end_chunk` makes the rest.

    The next chunk begins before this one ends: M makes its scores, and V its probabilities, while M is at the values of
    this one. So P, M and l have two entries each. before: register, chunks of the lane that have begun before.

    Where chunks come whole L brings all of a chunk at once, K before V, so that nothing of the cache waits for rows of
    this step. M takes the next K before this V, and counts both then; K and V of a chunk are given back together. Parts
    of a chunk come in the order in which M takes them.
    """
    with _extent(ctx, tile, start) as (total, parts):
        if ctx.plan.whole_chunks:
            what: tuple[Cached, ...] = (keys(ctx), _scales_of(ctx), values_of(ctx, 1))
            if _kept(ctx):
                what = what[:2]
            load(ctx, tile.segment, tile.unit, *what, position=start, start=start, total=total)
        _scores(ctx, tile, start, total, parts, before)
        _probabilities(ctx, tile, start, total, parts, before)


def begin_none(ctx: Context, over: Label) -> None:
    """Go on behind `begin_chunk`; who comes from `over`, behind the lane's last chunk, counts as if one had begun."""
    b = ctx.b
    if not ctx.plan.whole_chunks:
        b.place(over)
        return
    go_on = ctx.label()
    b.branch(go_on)
    b.place(over)
    if not _kept(ctx):
        b.sync(Queue.M, wait="kv_full")  # the last V
    ctx.bump(ctx.r_kv, _entries(ctx))
    b.place(go_on)


def end_none(ctx: Context) -> None:
    """Take back what `begin_none` has counted."""
    if ctx.plan.whole_chunks:
        ctx.b.alu(AluFn.SUB, ctx.r_kv, ctx.r_kv, _entries(ctx))


def end_chunk(ctx: Context, tile: Tile, current: Partial, start: int, before: int) -> None:
    """Merge the chunk that starts at position R[start] into the partial. before: register, chunks of the lane that have
    begun before it, or two more."""
    with _extent(ctx, tile, start) as (total, parts):
        _values(ctx, tile, start, total, parts, before)
    _merge(ctx, tile, current, before)


def _entries(ctx: Context) -> int:
    """Entries of the ring of K and V that a whole chunk takes."""
    return 1 if _kept(ctx) else 2


@contextmanager
def _extent(ctx: Context, tile: Tile, start: int) -> Iterator[tuple[int, int]]:
    """Registers: tokens of the chunk at position R[start] that are there, and parts that they take; 0 for the latter
    where a chunk is a part."""
    b, one = ctx.b, ctx.plan.part_tokens == CHUNK_TOKENS
    with b.registers(1) as (total,):
        with tile.segment.rows() as rows:
            b.alu_r(AluFn.ADD, total, tile.segment.position, rows)
        b.alu_r(AluFn.SUB, total, total, start)
        b.alu(AluFn.MIN, total, total, CHUNK_TOKENS)
        if one:
            yield total, 0
            return
        with b.registers(1) as (parts,):
            b.set(parts, ctx.plan.part_tokens)
            b.alu_r(AluFn.CEILDIV, parts, total, parts)
            yield total, parts


@contextmanager
def _each_part(ctx: Context, start: int, parts: int) -> Iterator[int]:
    """Repeat for each part of the chunk at R[start], with a register of its position; parts: as `_extent` gives it."""
    b = ctx.b
    if not parts:
        yield start
        return
    with b.registers(1) as (position,):
        b.move(position, start)
        with b.loop_r(parts):
            yield position
            b.alu(AluFn.ADD, position, position, ctx.plan.part_tokens)


def _probability_ring(ctx: Context, d: int, width: int, before: int) -> None:
    """D[d] = P of the chunk that has R[before] others before it, [tokens, G, width]."""
    plan = ctx.plan
    g, tokens, pitch = plan.group_queries, plan.tile_tokens, CHUNK_TOKENS
    entry = tokens * g * pitch
    view = ctx.spad("p", plan.profile.p, (tokens, g, width), (g * pitch, pitch, 1), scales=2 * entry, step=entry,
                    wrap=2 * entry)  # fmt: skip
    ctx.load_ring(d, view, before)


def _row_ring(ctx: Context, d: int, name: str, before: int) -> None:
    """D[d] = M ("m") or l ("l") of the rows of the chunk that has R[before] others before it."""
    g, tokens = ctx.plan.group_queries, ctx.plan.tile_tokens
    rows = tokens * g
    view = ctx.spad("chunk_lm", "INT32" if name == "m" else "FP32", (tokens, g, 1), (g, 1, 0),
                    offset=0 if name == "m" else 4 * 2 * rows, step=rows, wrap=2 * rows)  # fmt: skip
    ctx.load_ring(d, view, before)


def _scores(ctx: Context, tile: Tile, start: int, total: int, parts: int, before: int) -> None:
    """scores [tokens, G, columns] = fix(q k^T * c), masked; and the largest of each row."""
    b, plan = ctx.b, ctx.plan
    g, dp, part, fmt = plan.group_queries, plan.kp, plan.part_tokens, plan.profile.k
    rows, heads = plan.rows, plan.model.heads
    whole, kept = plan.whole_chunks, _kept(ctx)
    with b.descriptors(5) as (q, weights, acc, out, scale), _each_part(ctx, start, parts) as position:
        if not whole:
            load(ctx, tile.segment, tile.unit, keys(ctx), position=position, start=start, total=total)
        b.load(q, ctx.spad("q", fmt, (plan.tile_tokens, g, dp), (dp, rows * dp, 1), scales=heads * rows * dp,
                           step=g * rows * dp))  # fmt: skip
        with tile.segment.row() as row:
            b.advance_r(q, 0, row)
        with tile.unit.head() as head:
            b.advance_r(q, 3, head)
        b.advance_r(q, 0, tile.first)
        b.extent_r(q, 0, tile.tokens)
        ctx.load_ring(weights, keys(ctx).ring, ctx.r_kv)
        ctx.bump(ctx.r_kv, _entries(ctx) if whole else 1)
        ctx.load_ring(acc, ctx.acc(plan.tile_tokens, part, group=g), ctx.r_acc)
        ctx.bump(ctx.r_acc)
        if whole and not kept:  # K and V of a chunk: two entries
            alone = ctx.label()
            b.branch(alone, Cond.EQ, before, 0)
            b.sync(Queue.M, wait="kv_full")  # the V that it takes next
            b.place(alone)
        b.matmul(acc, q, weights, zero=1, wait="kv_full acc_free",
                 post="acc_full" if whole else "kv_free acc_full")  # fmt: skip
        b.extent_r(acc, 0, tile.tokens)
        b.load(out, _score_view(ctx, part))
        with b.registers(1) as (column,):
            b.alu_r(AluFn.SUB, column, position, start)
            b.advance_r(out, 3, column)
        b.load(scale, ctx.constant(Constant.SCORE_SCALE))
        with b.registers(2) as (window, high):
            # Positions that the tile's first token sees: its own and those before.
            b.alu_r(AluFn.ADD, high, tile.segment.position, tile.first)
            b.alu(AluFn.ADD, high, high, 1)
            if ctx.kind.window is not None:
                b.set(window, ctx.kind.window)
            b.vec_masked(out, acc, scale, op1=Op1.MUL, red=Red.NONE, j0=position,
                         window=window if ctx.kind.window is not None else 0, high=high, group=g,
                         wait="acc_full", post="acc_free")  # fmt: skip


def _probabilities(ctx: Context, tile: Tile, start: int, total: int, parts: int, before: int) -> None:
    """M of each row; P = quantise(exp2fx(F - M) * 2^sv); l, the tree over the positions."""
    b, plan, kept = ctx.b, ctx.plan, _kept(ctx)
    with b.pair() as d, b.descriptors(2) as (scores, ring):
        if not plan.whole_chunks:
            load(ctx, tile.segment, tile.unit, _scales_of(ctx), position=start, start=start, total=total)
        b.load(scores, _score_view(ctx, CHUNK_TOKENS))
        b.extent_r(scores, 0, tile.tokens)
        if parts:
            with b.registers(1) as (columns,):
                b.alu(AluFn.MUL, columns, parts, plan.part_tokens)
                b.extent_r(scores, 2, columns)
        _row_ring(ctx, SCRATCH, "m", before)
        b.vec(0, scores, red=Red.CEILMAX)
        _probability_ring(ctx, d, CHUNK_TOKENS, before)
        _row_ring(ctx, d + 1, "l", before)
        ctx.load_ring(ring, _scale_ring(ctx, (1, 1, CHUNK_TOKENS), (0, 0, 1)), ctx.r_kv if kept else ctx.r_load)
        if kept:  # the entry of K, which has been counted
            b.advance(ring, 3, plan.kv_entries - 1)
        b.vec(d, scores, SCRATCH, ring, op1=Op1.EXP2, op2=Op2.MULM, red=Red.SUM, wait="load_full p_free",
              post="p_full" if kept else "load_free p_full")  # fmt: skip
    if not kept:
        ctx.bump(ctx.r_load)


def _score_view(ctx: Context, width: int) -> Descriptor:
    """Describe scores [tokens, G, width] of a chunk; a step is a column."""
    g, tokens = ctx.plan.group_queries, ctx.plan.tile_tokens
    return ctx.spad("scores", "INT32", (tokens, g, width), (g * CHUNK_TOKENS, CHUNK_TOKENS, 1), step=1)


def _kept(ctx: Context) -> bool:
    """Whether a chunk of K stays in its entry and is V too: a latent that came whole."""
    return ctx.plan.keys_stay


def _values(ctx: Context, tile: Tile, start: int, total: int, parts: int, before: int) -> None:
    """acc [tokens, G, dp] = P times V, blocks ascending."""
    b, plan, kept = ctx.b, ctx.plan, _kept(ctx)
    whole = plan.whole_chunks
    g, dp, part = plan.group_queries, plan.dp, plan.part_tokens
    b.sync(Queue.M, wait="p_full acc_free")
    with b.descriptors(3) as (p, weights, acc):
        _probability_ring(ctx, p, part, before)
        b.extent_r(p, 0, tile.tokens)
        ctx.load_ring(acc, ctx.acc(plan.tile_tokens, dp, group=g), ctx.r_acc)
        with _each_part(ctx, start, parts) as position:
            if not whole:
                load(ctx, tile.segment, tile.unit, values_of(ctx), position=position, start=start, total=total)
            ctx.load_ring(weights, values_of(ctx).ring, ctx.r_kv)
            if whole:  # this one and the next have been counted; a latent is in the entry of its K
                b.advance(weights, 3, -(1 + _entries(ctx)) % plan.kv_entries)
            else:
                ctx.bump(ctx.r_kv)
            b.matmul(acc, p, weights, zero=2 if parts else 1, by_rows=True, wait="" if whole else "kv_full",
                     post="kv_free")  # fmt: skip
            if whole and not kept:
                b.sync(Queue.M, post="kv_free")  # K and V
            b.advance(p, 2, part)
    b.sync(Queue.M, post="acc_full p_free")


def _merge(ctx: Context, tile: Tile, current: Partial, before: int) -> None:
    """Merge the chunk into the lane's partial: o from the accumulator, l and M from the work buffers."""
    b, plan = ctx.b, ctx.plan
    with b.pair() as exponents, b.descriptors(3) as (d, x, y):
        current.load(ctx, exponents, "m")
        _row_ring(ctx, exponents + 1, "m", before)
        for name in ("o", "l"):
            current.load(ctx, d, name)
            current.load(ctx, x, name)
            b.extent_r(x, 0, tile.tokens)
            if name == "o":
                ctx.load_ring(y, ctx.acc(plan.tile_tokens, plan.dp, group=plan.group_queries), ctx.r_acc)
                ctx.bump(ctx.r_acc)
                b.vec(d, x, y, exponents, op1=Op1.SHIFTADD, wait="acc_full", post="acc_free")
            else:
                _row_ring(ctx, y, "l", before)
                b.vec(d, x, y, exponents, op1=Op1.SHIFTADD)
        current.load(ctx, d, "m")
        current.load(ctx, x, "m")
        b.extent_r(x, 0, tile.tokens)
        b.vec(d, x, exponents + 1, op1=Op1.IMAX)


# ---- the cache -----------------------------------------------------------------------------------------------------


def _unit_rows(ctx: Context) -> int:
    """Rows (tokens) of the pool of one layer and unit."""
    return ctx.plan.pool_pages * ctx.plan.page_tokens


def _page_bits(ctx: Context) -> int:
    return ctx.plan.page_tokens.bit_length() - 1


@dataclass(frozen=True, slots=True)
class PageList:
    """The page list of a request slot: descriptor register `d`."""

    ctx: Context
    d: int

    def advance(self, position: int) -> None:
        """Move to the page of position R[position]."""
        b = self.ctx.b
        with b.registers(1) as (page,):
            b.alu(AluFn.SHR, page, position, _page_bits(self.ctx))
            b.advance_r(self.d, 0, page)


@contextmanager
def page_list(ctx: Context, segment: Segment) -> Iterator[PageList]:
    """Take the page list of a segment's request slot."""
    b = ctx.b
    pages = slot_pages(ctx.plan)
    with b.descriptors(1) as (d,):
        b.load(d, ctx.spad("pages", "INT32", (pages, 1, 1), (1, 0, 0), step=pages))
        with segment.slot() as slot:
            b.advance_r(d, 3, slot)
        yield PageList(ctx, d)


@dataclass(frozen=True, slots=True)
class Cached:
    """What attention loads: a region of the cache, the same rows of this step, and the ring entry they go to.

    length: tokens of an entry; counter: register of the ring; ahead: entries beyond it; wait, post: semaphores.
    """

    region: Descriptor
    fresh: Descriptor
    ring: Descriptor
    counter: int
    length: int
    wait: str
    post: str
    ahead: int = 0


def keys(ctx: Context) -> Cached:
    """A part of K."""
    plan, fmt = ctx.plan, ctx.plan.profile.k
    part, dp, pool = plan.part_tokens, plan.kp, _unit_rows(ctx)
    return Cached(
        ctx.dram("k_cache", fmt, (part, 1, dp), (dp, pool * dp, 1), scales="k_scales",
                 step=plan.units_local * pool * dp),
        _fresh(ctx, "k", fmt, dp, scaled=True),
        ctx.ring("kv_ring", fmt, kv_bytes(plan), (part, 1, dp), (dp, 0, 1), scales=True, entries=plan.kv_entries),
        ctx.r_kv, part, "kv_free", "kv_full",
    )  # fmt: skip


def values_of(ctx: Context, ahead: int = 0) -> Cached:
    """A part of V, so many entries ahead of the counter; of a latent the first columns of K."""
    plan, fmt = ctx.plan, ctx.plan.profile.v
    part, dp, pool = plan.part_tokens, plan.dp, _unit_rows(ctx)
    name, pitch = ("v", dp) if plan.model.latent is None else ("k", plan.kp)
    return Cached(
        ctx.dram(f"{name}_cache", fmt, (part, 1, dp), (pitch, pool * pitch, 1), step=plan.units_local * pool * pitch),
        _fresh(ctx, name, fmt, dp, pitch=pitch),
        ctx.ring("kv_ring", fmt, kv_bytes(plan), (part, 1, dp), (pitch if _kept(ctx) else dp, 0, 1),
                 entries=plan.kv_entries),
        ctx.r_kv, part, "kv_free", "kv_full", ahead,
    )  # fmt: skip


def _scale_ring(ctx: Context, ext: tuple[int, int, int], stride: tuple[int, int, int]) -> Descriptor:
    """Describe the ring of V's scales. That of a latent goes with the ring of K, entry by entry."""
    return ctx.words("vscale_ring", "E8M0", CHUNK_TOKENS, ext, stride, entries=ctx.plan.scale_entries)


def _scales_of(ctx: Context) -> Cached:
    """V's scales of a chunk. Those of a latent that is kept have the entry of K, which is there."""
    pool, kept = _unit_rows(ctx), _kept(ctx)
    return Cached(
        ctx.dram("v_scales", "E8M0", (CHUNK_TOKENS, 1, 1), (1, pool, 0), step=ctx.plan.units_local * pool),
        _fresh(ctx, "vscale", "E8M0", 1),
        _scale_ring(ctx, (CHUNK_TOKENS, 1, 1), (1, 0, 0)),
        ctx.r_kv if kept else ctx.r_load, CHUNK_TOKENS, "" if kept else "load_free", "load_full",
    )  # fmt: skip


def scales_of_round(ctx: Context) -> Cached:
    """V's scales of a round of chunks (`decode`), in a ring of their own."""
    pool, tokens = _unit_rows(ctx), ctx.plan.round_chunks * CHUNK_TOKENS
    return Cached(
        ctx.dram("v_scales", "E8M0", (tokens, 1, 1), (1, pool, 0), step=ctx.plan.units_local * pool),
        _fresh(ctx, "vscale", "E8M0", 1),
        ctx.words("round_scales", "E8M0", tokens, (tokens, 1, 1), (1, 0, 0), entries=ctx.plan.load_entries),
        ctx.r_load, tokens, "load_free", "load_full",
    )  # fmt: skip


def load(ctx: Context, segment: Segment, unit: Unit, *what: Cached, position: int, start: int, total: int) -> None:
    """Load the tokens from a position on, as many as there are, into ring entries; the rest of an entry is zero.

    Tokens of earlier steps come from the cache, and first, as they are there; those of this step from the scratchpad,
    where the gather puts them: a step does not wait for its own stores.
    """
    b = ctx.b
    with b.registers(2) as (count, old):
        # count: tokens from the position on; old: those before the segment's first.
        b.alu_r(AluFn.SUB, count, position, start)
        b.alu_r(AluFn.SUB, count, total, count)
        b.alu(AluFn.MIN, count, count, what[0].length)
        b.alu_r(AluFn.MAX, old, position, segment.position)
        b.alu_r(AluFn.SUB, old, old, position)
        b.alu_r(AluFn.MIN, old, old, count)
        # Where none is of this step nothing else needs to be waited for.
        mixed, done = ctx.label(), ctx.label()
        b.branch_r(mixed, Cond.NE, count, old)
        for cached in what:
            load_old(ctx, segment, unit, cached, position, old, whole=True)
        b.branch(done)
        b.place(mixed)
        for cached in what:
            load_old(ctx, segment, unit, cached, position, old)
        wait_for_rows(ctx)
        b.alu_r(AluFn.SUB, count, count, old)
        for cached in what:
            _load_fresh(ctx, segment, unit, cached, position, old, count)
        b.place(done)


def wait_for_rows(ctx: Context) -> None:
    """Let L wait for this step's K and V: the first time in a layer."""
    b, known = ctx.b, ctx.label()
    b.branch(known, Cond.NE, ctx.r_arrived, 0)
    b.sync(Queue.L, wait="arrived")
    b.set(ctx.r_arrived, 1)
    b.place(known)


def load_old(
    ctx: Context, segment: Segment, unit: Unit, cached: Cached, position: int, old: int, *, whole: bool = False
) -> None:
    """Load R[old] tokens of the cache from R[position] on. whole: they are all there are, zeros come behind them."""
    b, page = ctx.b, ctx.plan.page_tokens
    with page_list(ctx, segment) as pages, b.descriptors(2) as (a, d):
        pages.advance(position)
        b.load(a, replace(cached.region, via=pages.d, unit=_page_bits(ctx)))
        b.advance_r(a, 1, unit.number)
        b.advance_r(a, 3, ctx.r_layer)
        if cached.length < page:
            with b.registers(1) as (place,):
                b.alu(AluFn.AND, place, position, page - 1)
                b.advance_r(a, 0, place)
        b.extent_r(a, 0, old)
        ctx.load_ring(d, cached.ring, cached.counter)
        b.advance(d, 3, cached.ahead)
        if not whole:  # behind them there is no zero: those of this step come there
            b.extent_r(d, 0, old)
        b.copy(Queue.L, d, a, wait=cached.wait, post=cached.post if whole else "")


def _load_fresh(
    ctx: Context, segment: Segment, unit: Unit, cached: Cached, position: int, old: int, count: int
) -> None:
    """Load R[count] tokens of this step behind the R[old] others, and zeros behind them."""
    b = ctx.b
    with b.descriptors(2) as (a, d):
        b.load(a, cached.fresh)
        with unit.head() as head:
            b.advance_r(a, 1, head)
        with segment.row() as row:
            b.advance_r(a, 0, row)
        with b.registers(1) as (skip,):
            b.alu_r(AluFn.MAX, skip, position, segment.position)
            b.alu_r(AluFn.SUB, skip, skip, segment.position)
            b.advance_r(a, 0, skip)
        b.extent_r(a, 0, count)
        ctx.load_ring(d, cached.ring, cached.counter)
        b.advance(d, 3, cached.ahead)
        b.advance_r(d, 0, old)
        with b.registers(1) as (rest,):
            b.set(rest, cached.length)
            b.alu_r(AluFn.SUB, rest, rest, old)
            b.extent_r(d, 0, rest)
        b.copy(Queue.L, d, a, post=cached.post, free=True)


def _fresh(ctx: Context, name: str, fmt: str, width: int, *, scaled: bool = False, pitch: int = 0) -> Descriptor:
    """Rows of this step as the gather put them: [rows, 1, width], heads along dimension 1; pitch: of rows that are
    wider."""
    rows, kv, pitch = ctx.rows, ctx.plan.model.kv_heads, pitch or width
    return ctx.spad(name, fmt, (rows, 1, width), (pitch, rows * pitch, 1 if width > 1 else 0),
                    scales=kv * rows * width if scaled else None)  # fmt: skip

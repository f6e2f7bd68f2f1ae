"""One chunk of 256 positions: scores, probabilities, weighted values, and the merge into the lane's partial.

K and V come in parts of `part_tokens`; parts behind the last token are left out, they would be masked. Positions are
absolute, so that a part, a page or a tile of another size gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from systolith.compiler.context import SCRATCH, Constant, Context
from systolith.compiler.kernels.partial import Partial
from systolith.compiler.kernels.segment import Segment, Tile
from systolith.compiler.memory import kv_bytes, slot_pages
from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.isa.vector import Op1, Op2, Red
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["attend_chunk", "page_list", "wait_for_rows"]


def attend_chunk(ctx: Context, tile: Tile, current: Partial, start: int) -> None:
    """Merge the chunk that starts at position R[start] into the partial."""
    b, plan = ctx.b, ctx.plan
    with b.registers(2) as (total, parts):
        # total: tokens of the chunk that are there.
        with tile.segment.rows() as rows:
            b.alu_r(AluFn.ADD, total, tile.segment.position, rows)
        b.alu_r(AluFn.SUB, total, total, start)
        b.alu(AluFn.MIN, total, total, CHUNK_TOKENS)
        b.set(parts, plan.part_tokens)
        b.alu_r(AluFn.CEILDIV, parts, total, parts)
        if plan.whole_chunks:
            what = (_keys(ctx), _scales_of(ctx), _values_of(ctx, 1))
            _load(
                ctx, tile, *(what if plan.model.latent is None else what[:2]), position=start, start=start, total=total
            )
        _scores(ctx, tile, start, total, parts)
        _probabilities(ctx, tile, start, total, parts)
        _values(ctx, tile, start, total, parts)
    _merge(ctx, tile, current)


def _tile_view(ctx: Context, buffer: str, fmt: str, width: int, stride: int, *, quantised: bool = False, step: int = 0,
               columns: int = 1) -> Descriptor:  # fmt: skip
    """Describe a work buffer [tokens, G, width] of the tile, rows `stride` elements apart."""
    plan = ctx.plan
    g, tokens = plan.group_queries, plan.tile_tokens
    return ctx.spad(buffer, fmt, (tokens, g, width), (g * stride, stride, columns),
                    scales=tokens * g * stride if quantised else None, step=step)  # fmt: skip


def _maxima(ctx: Context) -> Descriptor:
    return _tile_view(ctx, "chunk_lm", "INT32", 1, 1, columns=0)


def _sums(ctx: Context) -> Descriptor:
    g, tokens = ctx.plan.group_queries, ctx.plan.tile_tokens
    return ctx.spad("chunk_lm", "FP32", (tokens, g, 1), (g, 1, 0), offset=4 * tokens * g)


def _scores(ctx: Context, tile: Tile, start: int, total: int, parts: int) -> None:
    """scores [tokens, G, columns] = fix(q k^T * c), masked; and the largest of each row."""
    b, plan = ctx.b, ctx.plan
    g, dp, part, fmt = plan.group_queries, plan.kp, plan.part_tokens, plan.profile.k
    rows, heads = plan.rows, plan.model.heads
    kept = _kept(ctx)
    with b.registers(3) as (position, window, high), b.descriptors(5) as (q, weights, acc, out, scale):
        b.move(position, start)
        # Positions that the tile's first token sees: its own and those before.
        b.alu_r(AluFn.ADD, high, tile.segment.position, tile.first)
        b.alu(AluFn.ADD, high, high, 1)
        if ctx.kind.window is not None:
            b.set(window, ctx.kind.window)
        with b.loop_r(parts):
            if not plan.whole_chunks:
                _load(ctx, tile, _keys(ctx), position=position, start=start, total=total)
            b.load(q, ctx.spad("q", fmt, (plan.tile_tokens, g, dp), (dp, rows * dp, 1), scales=heads * rows * dp,
                               step=g * rows * dp))  # fmt: skip
            with tile.segment.row() as row:
                b.advance_r(q, 0, row)
            with tile.unit.head() as head:
                b.advance_r(q, 3, head)
            b.advance_r(q, 0, tile.first)
            b.extent_r(q, 0, tile.tokens)
            ctx.load_ring(weights, _keys(ctx).ring, ctx.r_kv)
            if not kept:
                ctx.bump(ctx.r_kv)
            ctx.load_ring(acc, ctx.acc(plan.tile_tokens, part, group=g), ctx.r_acc)
            ctx.bump(ctx.r_acc)
            b.matmul(acc, q, weights, zero=1, wait="kv_full acc_free",
                     post="acc_full" if kept else "kv_free acc_full")  # fmt: skip
            b.extent_r(acc, 0, tile.tokens)
            b.load(out, _tile_view(ctx, "scores", "INT32", part, CHUNK_TOKENS, step=1))
            with b.registers(1) as (column,):
                b.alu_r(AluFn.SUB, column, position, start)
                b.advance_r(out, 3, column)
            b.load(scale, ctx.constant(Constant.SCORE_SCALE))
            b.vec_masked(out, acc, scale, op1=Op1.MUL, red=Red.NONE, j0=position,
                         window=window if ctx.kind.window is not None else 0, high=high, group=g,
                         wait="acc_full", post="acc_free")  # fmt: skip
            b.alu(AluFn.ADD, position, position, part)


def _probabilities(ctx: Context, tile: Tile, start: int, total: int, parts: int) -> None:
    """M of each row; P = quantise(exp2fx(F - M) * 2^sv); l, the tree over the positions."""
    b, plan = ctx.b, ctx.plan
    fmt = plan.profile.p
    with b.pair() as d, b.descriptors(3) as (scores, maxima, ring):
        if not plan.whole_chunks:
            _load(ctx, tile, _scales_of(ctx), position=start, start=start, total=total)
        b.load(scores, _tile_view(ctx, "scores", "INT32", CHUNK_TOKENS, CHUNK_TOKENS))
        b.extent_r(scores, 0, tile.tokens)
        with b.registers(1) as (columns,):
            b.alu(AluFn.MUL, columns, parts, plan.part_tokens)
            b.extent_r(scores, 2, columns)
        b.load(SCRATCH, _maxima(ctx))
        b.vec(0, scores, red=Red.CEILMAX)
        b.load(maxima, _maxima(ctx))
        b.load(d, _tile_view(ctx, "p", fmt, CHUNK_TOKENS, CHUNK_TOKENS, quantised=True))
        b.load(d + 1, _sums(ctx))
        entry = _scale_ring(ctx, (1, 1, CHUNK_TOKENS), (0, 0, 1))
        ctx.load_ring(ring, entry, ctx.r_kv if plan.whole_chunks else ctx.r_load)
        b.vec(d, scores, maxima, ring, op1=Op1.EXP2, op2=Op2.MULM, red=Red.SUM, wait="load_full p_free",
              post="p_full" if plan.whole_chunks else "load_free p_full")  # fmt: skip
    if not plan.whole_chunks:
        ctx.bump(ctx.r_load)


def _kept(ctx: Context) -> bool:
    """Whether a chunk of K stays in its entry and is V too: a latent that came whole."""
    return ctx.plan.model.latent is not None and ctx.plan.whole_chunks


def _values(ctx: Context, tile: Tile, start: int, total: int, parts: int) -> None:
    """acc [tokens, G, dp] = P times V, blocks ascending."""
    b, plan = ctx.b, ctx.plan
    g, dp, part = plan.group_queries, plan.dp, plan.part_tokens
    b.sync(Queue.M, wait="p_full acc_free")
    with b.registers(1) as (position,), b.descriptors(3) as (p, weights, acc):
        b.move(position, start)
        b.load(p, _tile_view(ctx, "p", plan.profile.p, part, CHUNK_TOKENS, quantised=True))
        b.extent_r(p, 0, tile.tokens)
        ctx.load_ring(acc, ctx.acc(plan.tile_tokens, dp, group=g), ctx.r_acc)
        with b.loop_r(parts):
            if not plan.whole_chunks:
                _load(ctx, tile, _values_of(ctx), position=position, start=start, total=total)
            ctx.load_ring(weights, _values_of(ctx).ring, ctx.r_kv)
            ctx.bump(ctx.r_kv)
            b.matmul(acc, p, weights, zero=2, by_rows=True, wait="" if _kept(ctx) else "kv_full", post="kv_free")
            b.advance(p, 2, part)
            b.alu(AluFn.ADD, position, position, part)
    b.sync(Queue.M, post="acc_full p_free")


def _merge(ctx: Context, tile: Tile, current: Partial) -> None:
    """Merge the chunk into the lane's partial: o from the accumulator, l and M from the work buffers."""
    b, plan = ctx.b, ctx.plan
    with b.pair() as exponents, b.descriptors(3) as (d, x, y):
        current.load(ctx, exponents, "m")
        b.load(exponents + 1, _maxima(ctx))
        for name in ("o", "l"):
            current.load(ctx, d, name)
            current.load(ctx, x, name)
            b.extent_r(x, 0, tile.tokens)
            if name == "o":
                ctx.load_ring(y, ctx.acc(plan.tile_tokens, plan.dp, group=plan.group_queries), ctx.r_acc)
                ctx.bump(ctx.r_acc)
                b.vec(d, x, y, exponents, op1=Op1.SHIFTADD, wait="acc_full", post="acc_free")
            else:
                b.load(y, _sums(ctx))
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


def _keys(ctx: Context) -> Cached:
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


def _values_of(ctx: Context, ahead: int = 0) -> Cached:
    """A part of V; of a latent the first columns of K."""
    plan, fmt = ctx.plan, ctx.plan.profile.v
    part, dp, pool = plan.part_tokens, plan.dp, _unit_rows(ctx)
    name, pitch = ("v", dp) if plan.model.latent is None else ("k", plan.kp)
    return Cached(
        ctx.dram(f"{name}_cache", fmt, (part, 1, dp), (pitch, pool * pitch, 1), step=plan.units_local * pool * pitch),
        _fresh(ctx, name, fmt, dp, pitch=pitch),
        ctx.ring("kv_ring", fmt, kv_bytes(plan), (part, 1, dp), (pitch if _kept(ctx) else dp, 0, 1),
                 entries=plan.kv_entries),
        ctx.r_kv, part, "" if plan.whole_chunks else "kv_free", "kv_full", ahead,
    )  # fmt: skip


def _scale_ring(ctx: Context, ext: tuple[int, int, int], stride: tuple[int, int, int]) -> Descriptor:
    """Describe the ring of V's scales. Where chunks come whole it goes with the ring of K and V, entry by entry."""
    entries = ctx.plan.kv_entries if ctx.plan.whole_chunks else ctx.plan.load_entries
    return ctx.words("vscale_ring", "E8M0", CHUNK_TOKENS, ext, stride, entries=entries)


def _scales_wait(ctx: Context) -> str:
    if _kept(ctx):
        return ""  # they have the entry of K, which is there
    return "kv_free" if ctx.plan.whole_chunks else "load_free"


def _scales_of(ctx: Context) -> Cached:
    """V's scales of a chunk. Where chunks come whole they take V's entry of the ring, before V: M gives it back when V
    has read the scales."""
    pool = _unit_rows(ctx)
    whole = ctx.plan.whole_chunks
    return Cached(
        ctx.dram("v_scales", "E8M0", (CHUNK_TOKENS, 1, 1), (1, pool, 0), step=ctx.plan.units_local * pool),
        _fresh(ctx, "vscale", "E8M0", 1),
        _scale_ring(ctx, (CHUNK_TOKENS, 1, 1), (1, 0, 0)),
        ctx.r_kv if whole else ctx.r_load, CHUNK_TOKENS, _scales_wait(ctx), "load_full", int(whole and not _kept(ctx)),
    )  # fmt: skip


def _load(ctx: Context, tile: Tile, *what: Cached, position: int, start: int, total: int) -> None:
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
        b.alu_r(AluFn.MAX, old, position, tile.segment.position)
        b.alu_r(AluFn.SUB, old, old, position)
        b.alu_r(AluFn.MIN, old, old, count)
        # Where none is of this step nothing else needs to be waited for.
        mixed, done = ctx.label(), ctx.label()
        b.branch_r(mixed, Cond.NE, count, old)
        for cached in what:
            _load_old(ctx, tile, cached, position, old, whole=True)
        b.branch(done)
        b.place(mixed)
        for cached in what:
            _load_old(ctx, tile, cached, position, old)
        wait_for_rows(ctx)
        b.alu_r(AluFn.SUB, count, count, old)
        for cached in what:
            _load_fresh(ctx, tile, cached, position, old, count)
        b.place(done)


def wait_for_rows(ctx: Context) -> None:
    """Let L wait for this step's K and V: the first time in a layer."""
    b, known = ctx.b, ctx.label()
    b.branch(known, Cond.NE, ctx.r_arrived, 0)
    b.sync(Queue.L, wait="arrived")
    b.set(ctx.r_arrived, 1)
    b.place(known)


def _load_old(ctx: Context, tile: Tile, cached: Cached, position: int, old: int, *, whole: bool = False) -> None:
    """Load R[old] tokens of the cache from R[position] on. whole: they are all there are, zeros come behind them."""
    b, page = ctx.b, ctx.plan.page_tokens
    with page_list(ctx, tile.segment) as pages, b.descriptors(2) as (a, d):
        pages.advance(position)
        b.load(a, replace(cached.region, via=pages.d, unit=_page_bits(ctx)))
        b.advance_r(a, 1, tile.unit.number)
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


def _load_fresh(ctx: Context, tile: Tile, cached: Cached, position: int, old: int, count: int) -> None:
    """Load R[count] tokens of this step behind the R[old] others, and zeros behind them."""
    b = ctx.b
    with b.descriptors(2) as (a, d):
        b.load(a, cached.fresh)
        with tile.unit.head() as head:
            b.advance_r(a, 1, head)
        with tile.segment.row() as row:
            b.advance_r(a, 0, row)
        with b.registers(1) as (skip,):
            b.alu_r(AluFn.MAX, skip, position, tile.segment.position)
            b.alu_r(AluFn.SUB, skip, skip, tile.segment.position)
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

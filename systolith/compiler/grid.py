"""The plan of a prefill on a grid of slices: rows of a prompt one way, columns of the matrices the other.

A decode step gives every slice its own columns and all rows; what then comes into a slice is all of the operand, and
with many rows that binds (docs/decisions/0012-grid.md). On the grid slice (c, r) = rank c * R + r takes the rows of
row group r and the columns of column group c: an operand's rows travel in a row group (ranks r, r + R, ...), weights in
a column group (ranks c * R and up). They lie in memory a second time, dealt out for the grid: of each product's columns
every slice of the group has as many as any other, round by round in the order of use.

Column group c has KV head c with its query heads, so that rows meet all keys and values of a head in one slice. Row
group r has tokens r * t .. (r + 1) * t - 1 of every chunk of 256, t = 256 / R, so that each has an equal share of the
causal triangle. A step takes up to `chunks` whole chunks of one request; rows behind the end of the prompt are computed
and never seen. The operand of the head of its last row goes to all slices, for a step that has only logits to make.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

from systolith.compiler.memory import Memory, blocks
from systolith.compiler.packing import ALIGN, Phase, pack
from systolith.compiler.plan import Plan, padded
from systolith.numerics.formats import FORMATS
from systolith.spec.limits import BLOCK, CHUNK_TOKENS

__all__ = ["HEAD_WORDS", "HELD", "MAX_CHUNKS", "Grid", "GridLinear", "head_words", "lay_out_grid", "plan_grid"]

WIDTHS = (256, 128, 64, 32)
"""Columns that a product may have."""
MAX_CHUNKS = 8
"""Most chunks of a step: each has a cell with its page, or several, and one with the slice that keeps it."""
SETTLED = 8
"""Rounds of an operator after which a slice may write where its row group had operands of the one before."""
SENT = 2
"""Rounds ahead of the one in hand that a slice sends its weights."""
RECEIVE = 2 * SENT + 1
"""Rounds of weights that a slice has room for: one in use, others that may be elsewhere, those that come."""
LATE = 6
"""Most rounds that parts of operands and weights to send are loaded ahead."""
KV_ENTRIES = 8
"""Entries of the ring of keys and values: four chunks."""
HEAD_WORDS = 8
"""Head of a grid step: rows of a slice, chunks, first position, first page entry, first lane, number, 1 + the row that
makes the first token (0: none), its row group and request slot. The first lane counts from that of slot group 0."""

Q, A, O_, F, D_ = Phase.QKV, Phase.ATTENTION, Phase.O, Phase.FFN, Phase.DOWN
ALL = tuple(Phase)
HELD = ("consts", "pages", "state", "params", "stops", "flags", "owners", "sinks", "mail", "record")
"""Buffers that hold what steps of both kinds need, and the record: a run without data follows what is loaded there."""
APART = ("g", "stage_total", "send")
"""These come first: V reads gains and writes sums while it writes the stage, which they keep away from its bank."""


@dataclass(frozen=True, slots=True)
class GridLinear:
    """A class of matrices on the grid. k: contraction, in whole rounds; columns: of a column group, in whole products;
    both count zeros that make them whole. wide: columns of a product; deep: elements of K of a round, and of a part of
    an operand that lies in memory."""

    name: str
    k: int
    columns: int
    wide: int
    deep: int

    @property
    def products(self) -> int:
        """Products that make all columns of a column group."""
        return self.columns // self.wide

    @property
    def rounds(self) -> int:
        """Rounds of a product."""
        return self.k // self.deep


@dataclass(frozen=True, slots=True)
class Grid:
    """See the module. base: the plan of other steps; plan: of a step's body, with rows of a slice; width: columns of a
    product and elements of K of a round, also columns of a part of a norm's operand; o and down may take twice the
    columns and half of K, so that their operand comes from memory once; format, terms: of all weights; apart_banks:
    whether attention's buffers have banks of their own."""

    base: Plan
    plan: Plan
    members: int
    groups: int
    width: int
    format: str
    terms: int
    apart_banks: bool
    qkv: GridLinear
    o: GridLinear
    gate: GridLinear
    up: GridLinear
    down: GridLinear

    @property
    def apart(self) -> int:
        """log2 of what lies between the ranks of a row group."""
        return self.members.bit_length() - 1

    @property
    def tokens(self) -> int:
        """Tokens of a chunk that a row group takes."""
        return CHUNK_TOKENS // self.members

    @property
    def chunks(self) -> int:
        """Most chunks of a step."""
        return self.plan.rows // self.tokens

    @property
    def late(self) -> int:
        """Rounds that memory takes to answer, about, and not more than there is room for."""
        return min(LATE, math.ceil(self.plan.chip.dram_latency_cycles / self.round_cycles))

    @property
    def parts(self) -> int:
        """Parts of an operand in memory that there is room for: one in use, one given back, those under way."""
        return min(2 + self.late, self.o.rounds, self.down.rounds)

    @property
    def page_part(self) -> int:
        """Tokens of a chunk of a row group that lie in one page."""
        return min(self.tokens, self.plan.page_tokens)

    @property
    def chunk_pages(self) -> int:
        """Pages that a row group's tokens of a chunk lie in."""
        return self.tokens // self.page_part

    @property
    def ahead(self) -> int:
        """Rounds ahead of the one in hand that a slice reads its weights: not beyond a layer's last product."""
        return min(SENT + 1 + self.late, self.down.rounds)

    @property
    def hidden(self) -> int:
        """Hidden dimension, with the zeros that make all column groups alike."""
        return self.groups * self.shard

    @property
    def shard(self) -> int:
        """Columns of the residual stream of a slice."""
        return self.o.columns

    @property
    def shares(self) -> int:
        """Parts of a norm's operand that a slice makes."""
        return self.shard // self.width

    @property
    def dealt(self) -> int:
        """Those of them that come from one product, the last of o or down: they go out part by part, each slice in its
        turn."""
        return self.o.wide // self.width

    @property
    def overlaid(self) -> bool:
        """Whether parts of the operand of o and down lie where the next norm's operand will have its last ones, which
        nobody sends before all have done without."""
        return self.o.products == 1 and self.parts * self.o.deep <= self.hidden - SETTLED * self.width

    @property
    def linears(self) -> tuple[GridLinear, ...]:
        """All classes."""
        return (self.qkv, self.o, self.gate, self.up, self.down)

    @property
    def rounds(self) -> int:
        """Rounds of a layer."""
        return sum(x.products * x.rounds for x in self.linears)

    @property
    def round_elements(self) -> int:
        """Weight elements of a round in the memory of a slice."""
        return self.width // self.members * self.width * self.terms

    @property
    def positions(self) -> int:
        """Positions of the context in whole chunks."""
        return padded(self.plan.options.context, CHUNK_TOKENS)

    @property
    def operand_of_o(self) -> list[tuple[str, int]]:
        """Regions of DRAM of the operand of o: name, bytes."""
        sizes = _scaled(self.plan.rows * self.o.k, self.plan.profile.activations)
        return list(zip(("grid_attention", "grid_attention_scales"), sizes, strict=True))

    @property
    def steps(self) -> int:
        """Most steps of the grid that a job may have: those of all requests at full context."""
        return self.plan.options.batch * -(-self.positions // (CHUNK_TOKENS * self.chunks))

    @property
    def bank(self) -> int:
        """Bytes that what V reads in one pass is aligned to."""
        return self.plan.chip.bank_size_bytes if self.apart_banks else ALIGN

    @property
    def partial_pitch(self) -> int:
        """Bytes from a partial of attention to the next."""
        return padded(4 * self.plan.tile_tokens * self.plan.group_queries * self.plan.dp, self.bank)

    @property
    def control(self) -> list[tuple[str, int]]:
        """Regions of DRAM that decide what the program does next: name, bytes."""
        owners = 4 * self.base.slot_groups * self.owner_words
        return [("grid_steps", 4 * self.step_words * self.steps), ("grid_owners", owners)]

    @property
    def owner_words(self) -> int:
        """Ranks that keep the chunks of a slot group: of its lanes in turn, so that any may be a step's first."""
        return self.plan.profile_lanes + MAX_CHUNKS

    @property
    def step_words(self) -> int:
        """Words of a step: its head, then for each row group the ids and the positions of its rows."""
        return HEAD_WORDS + 2 * self.members * self.plan.rows

    @property
    def round_cycles(self) -> Fraction:
        """Cycles of a round, about: its products take as long, or its weights to come."""
        chip, elements = self.plan.chip, self.width * self.width * self.terms
        served = min(Fraction(1), Fraction(self.width * self.width, chip.array_rows * chip.columns))
        peak = chip.peak_macs_per_s(f"{self.plan.profile.activations}x{self.format}") / chip.slices / chip.clock_hz
        come = sum(_scaled(elements, self.format)) / chip.ingress_bytes_per_cycle
        return max(self.plan.rows * elements / (peak * served), come)


def plan_grid(base: Plan, memory: Memory) -> Grid | str:
    """The grid of a plan with its memory map, the cheapest that fits; or, in few words, why there is none."""
    reason = _refusal(base)
    if reason:
        return reason
    chip = base.chip
    members = base.slices // base.model.kv_heads
    tokens = CHUNK_TOKENS // members
    found = []
    for width in WIDTHS:
        chunks = MAX_CHUNKS // max(1, tokens // base.page_tokens)
        most = min(base.acc_half_words // width, chunks * tokens)
        for rows in range(most // tokens * tokens, 0, -tokens):
            ways = product((1, 2), (True, False))
            found += [x for twice, apart in ways if (x := _grid(base, members, width, rows, apart, twice))]
    for grid in sorted(found, key=_order):
        if _places(grid, memory)[1] > chip.scratchpad_bytes:
            continue
        need = memory.dram_bytes + sum(padded(size, 64) for _, size in (*grid.control, *_regions(grid))) + 64
        if need <= chip.dram_bytes:
            return grid
        return f"a second copy of the weights, {need} bytes a slice in all, and dram_bytes={chip.dram_bytes}"
    if not found:
        return f"no product of 32 to 256 columns has whole heads of {base.dp} and two rounds of {base.model.name}"
    return f"scratchpad_bytes={chip.scratchpad_bytes} hold no {tokens} rows of {base.model.name}"


def _order(grid: Grid) -> tuple[Fraction, int, int, bool]:
    """What makes a grid better than others, smallest first: cycles of a row, then rows, wide products, banks."""
    return grid.rounds * grid.round_cycles / grid.plan.rows, -grid.plan.rows, -grid.dealt, not grid.apart_banks


def _refusal(base: Plan) -> str:
    """What the grid does not serve of a model, a profile, options or a chip; empty where it serves all."""
    m, o, p = base.model, base.options, base.profile
    members, left = divmod(base.slices, m.kv_heads)
    classes = (base.q, base.k, base.v, base.o, base.gate, base.up, base.down)
    formats = sorted({f"{x.format}x{x.terms}" for x in classes})
    heads, others = classes[:3], classes[3:]
    alike = len({m.bias(x.name) for x in heads}) == 1
    biased = [x.name for x in (others if alike else classes) if m.bias(x.name)]
    pages = CHUNK_TOKENS // max(1, members) // o.page_tokens
    for refused, reason in (
        (o.serve, "a program that serves gets the records of its steps by mail, one by one"),
        (o.dump or o.every_row, "rows of a prompt are to be kept, and the grid keeps none"),
        (m.experts is not None, "a mixture of experts: rows of an expert are not those of a row group"),
        (m.latent is not None, "latent attention: all heads read the same keys"),
        (m.post_norms is not None, "norms before the add"),
        (m.sinks is not None or p.sink is not None, "attention sinks"),
        (any(kind.window for kind in m.kinds) or len(set(m.kinds)) > 1, "windows or layers that differ"),
        (m.activation != "silu_mul", f"activation {m.activation}, and the grid has silu"),
        (not p.deferred_norm, "deferred_norm=false, and the grid's norms are deferred"),
        (base.turn_whole or m.head_dim != base.dp, f"head_dim={m.head_dim}, of which a half is no whole blocks"),
        (bool(biased), f"biases of {', '.join(biased)}"),
        (len(formats) > 1, f"weights of several formats: {', '.join(formats)}"),
        (any(len(x.spans) > 1 for x in classes), "spans"),
        (left > 0 or members < 2 or members & (members - 1) != 0,
         f"slices={base.slices} are not 2, 4, 8, ... for each of kv_heads={m.kv_heads}"),
        (o.context < 2 * CHUNK_TOKENS, f"context={o.context} is less than two chunks of {CHUNK_TOKENS}"),
        (pages > MAX_CHUNKS, f"page_tokens={o.page_tokens} make {pages} pages of a row group's part of a chunk"),
    ):  # fmt: skip
        if refused:
            return reason
    return ""


def _grid(base: Plan, members: int, width: int, rows: int, apart: bool, twice: int) -> Grid | None:
    """A grid of a width and rows, if heads go into it. twice : 2 where products of o and down have twice the width,
    which takes both halves of the accumulator."""
    m, g, dp, groups = base.model, base.group_queries, base.dp, base.model.kv_heads
    if width % dp or width % members:
        return None
    tile = CHUNK_TOKENS // members
    while tile > 1 and tile * g * max(CHUNK_TOKENS, dp) > base.acc_half_words:
        tile //= 2
    if tile * g * max(CHUNK_TOKENS, dp) > base.acc_half_words:
        return None
    hidden, inner = (padded(n, width * groups) for n in (m.hidden, m.inner))
    wide, deep = twice * width, width // twice
    if hidden // groups % wide or deep % BLOCK or (deep % dp and dp % deep):
        return None
    linears = [
        GridLinear("qkv", hidden, padded((g + 2) * dp, width), width, width),
        GridLinear("o", groups * padded(g * dp, deep), hidden // groups, wide, deep),
        *(GridLinear(name, hidden, inner // groups, width, width) for name in ("gate", "up")),
        GridLinear("down", inner, hidden // groups, wide, deep),
    ]
    plan = replace(base, rows=rows, tile_tokens=tile, part_tokens=CHUNK_TOKENS, group=1, slot_groups=1,
                   lanes_local=base.group * base.lanes_local)  # fmt: skip
    grid = Grid(base, plan, members, groups, width, base.o.format, base.o.terms, apart, *linears)
    return grid if grid.parts > 1 else None


def _scaled(elements: int, fmt: str) -> tuple[int, int]:
    """Bytes of the codes and of the scales of `elements`."""
    return elements * FORMATS[fmt].bits // 8, elements // BLOCK


def grid_buffers(grid: Grid) -> list[tuple[str, int, tuple[Phase, ...]]]:
    """Scratchpad buffers of the grid's body: name, bytes, phases."""
    plan, w = grid.plan, grid.width
    p, m, rows, g = plan.profile, plan.model, plan.rows, plan.group_queries
    hidden = grid.hidden
    table: list[tuple[str, int, tuple[Phase, ...]]] = []

    def ring(name: str, entries: int, elements: int, fmt: str, phases: tuple[Phase, ...]) -> None:
        codes, scales = _scaled(entries * elements, fmt)
        table.append((name, padded(codes, ALIGN), phases))
        table.append((f"{name}_scales", padded(scales, ALIGN), phases))

    ring("receive", RECEIVE, w * w * grid.terms, grid.format, ALL)
    ring("send", grid.ahead, grid.round_elements, grid.format, ALL)
    if not grid.overlaid:
        ring("operand", grid.parts, rows * grid.o.deep, p.activations, (O_, D_))
    ring("stage", 2, max(rows * w, rows * plan.dp, plan.tile_tokens * g * plan.dp), p.activations, ALL)
    table += [
        ("q", blocks(g * rows * plan.dp, p.k), (Q, A)),
        ("a", blocks(rows * hidden, p.activations), (D_, Q, Phase.START)),
        ("b", blocks(rows * hidden, p.activations), (O_, F)),
        ("grid_rows", 4 * 2 * rows, ALL),
        ("stage_total", 2 * 4 * rows, ALL),
        ("stage_vscale", 2 * padded(rows, 4), ALL),
        ("r", 4 * rows, ALL),
        ("g", 2 * 4 * grid.shard, ALL),
        ("tb_a", 4 * rows * (hidden // w), (D_, Q, Phase.START)),
        ("tb_b", 4 * rows * (hidden // w), (O_, F)),
        ("x", 2 * 4 * rows * w, (O_, D_, Phase.START)),
        ("head_tile", 4 * rows * plan.dp, (Q,)),
        ("head_turned", 4 * rows * (m.head_dim // 2), (Q,)),
        ("cos", 4 * rows * (m.turned // 2), (Q,)),
        ("sin", 4 * rows * (m.turned // 2), (Q,)),
        ("attention_area", attention_area(grid)[1], (A,)),
        ("exp_tile", 4 * rows * w, (F,)),
        *((name, 4 * words, (Q,)) for name, words in head_words(grid)),
    ]
    if m.head_norms is not None:
        table.append(("r_head", 4 * rows, (Q,)))
    return table


def head_words(grid: Grid) -> list[tuple[str, int]]:
    """What a layer's heads need of memory, where the model has it, and words of each: gains of the norms of q and k,
    biases in the order of the columns."""
    m = grid.plan.model
    found = [("g_head", 2 * m.head_dim)] if m.head_norms is not None else []
    return found + ([("grid_bias", grid.qkv.columns)] if m.bias("q") else [])


def attention_area(grid: Grid) -> tuple[dict[str, int], int]:
    """Where attention's buffers lie in their area, and its size. Where banks suffice each partial, the scores, and what
    meets them in a pass of V begin in banks of their own, the area's first one being whole."""
    plan, p, bank = grid.plan, grid.plan.profile, grid.bank
    n = plan.tile_tokens * plan.group_queries
    slots = plan.merge_levels + 2
    entry = CHUNK_TOKENS * plan.dp
    places, at = {}, 0
    for name, size, apart in (
        ("partials", slots * grid.partial_pitch, True), ("scores", 4 * n * CHUNK_TOKENS, True),
        ("p", blocks(2 * n * CHUNK_TOKENS, p.p), True), ("partial_rows", 2 * 4 * n * slots, False),
        ("inverse", 4 * n, False), ("kv_ring", _scaled(KV_ENTRIES * entry, p.k)[0], True),
        ("kv_ring_scales", KV_ENTRIES * entry // BLOCK, True), ("vscale_ring", KV_ENTRIES * CHUNK_TOKENS, False),
        ("chunk_rows", 4 * 4 * n, True),
    ):  # fmt: skip
        at = padded(at, bank if apart else ALIGN)
        places[name] = at
        at += size
    return places, at + (bank if grid.apart_banks else 0)


def lay_out_grid(grid: Grid, memory: Memory) -> Memory:
    """Addresses of the grid's body: the scratchpad beside the buffers that steps of both kinds need, and its regions of
    DRAM, which `memory`, the program's, gets. The grid is one of `plan_grid`."""
    places, used = _places(grid, memory)
    for name, size in _regions(grid):
        memory.reserve(name, size)
    found = Memory(memory.dram, memory.dram_bytes, places, record=memory.record, spad_bytes=used)
    fixed = {name: memory.spad_sizes[name] for name in HELD if name in memory.spad}
    found.spad |= {name: memory.spad[name] for name in fixed}
    area, _ = attention_area(grid)
    base = padded(found.spad["attention_area"], grid.bank)
    found.spad |= {name: base + offset for name, offset in area.items()}
    if grid.overlaid:
        found.spad |= _overlay(grid, found.spad)
    found.spad_sizes = {name: count for name, count, _ in grid_buffers(grid)} | fixed
    return found


def _places(grid: Grid, memory: Memory) -> tuple[dict[str, int], int]:
    """Scratchpad addresses of the grid's buffers, and the end of the highest."""
    held = [(memory.spad[name], memory.spad_sizes[name]) for name in HELD if name in memory.spad]
    return pack(grid_buffers(grid), grid.plan.chip.scratchpad_bytes, held, APART)


def _overlay(grid: Grid, spad: dict[str, int]) -> dict[str, int]:
    """Where the parts of the operands of o and down lie: at the end of "b" and of "a", codes and scales."""
    rows, fmt = grid.plan.rows, grid.plan.profile.activations
    codes, _ = _scaled(rows * grid.hidden, fmt)
    before_codes, before_scales = _scaled(rows * (grid.hidden - grid.parts * grid.o.deep), fmt)
    places = {}
    for which in ("a", "b"):
        places[f"operand_{which}"] = spad[which] + before_codes
        places[f"operand_{which}_scales"] = spad[which] + padded(codes, 4) + before_scales
    return places


def _regions(grid: Grid) -> list[tuple[str, int]]:
    """The grid's regions of DRAM: name, bytes."""
    plan, p, m = grid.plan, grid.plan.profile, grid.plan.model
    rows, positions = plan.rows, grid.positions
    regions = [
        ("grid_g", 4 * grid.shard * (2 * m.layers + 1)), ("grid_x", 4 * rows * grid.shard),
        ("grid_r", 4 * plan.options.batch), ("grid_vscale", m.layers * positions),
        *grid.operand_of_o,
        *([("grid_bias", 4 * m.layers * grid.qkv.columns)] if m.bias("q") else []),
    ]  # fmt: skip
    for name, elements, fmt in (
        ("grid_table", m.vocab * grid.shard, p.embed),
        ("grid_h", rows * grid.down.k, p.activations),
        ("grid_picked", plan.options.batch * padded(m.hidden), p.activations),
        ("grid_k", m.layers * positions * plan.dp, p.k),
        ("grid_v", m.layers * positions * plan.dp, p.v),
        ("grid_w", m.layers * grid.rounds * grid.round_elements, grid.format),
    ):
        codes, scales = _scaled(elements, fmt)
        regions += [(name, codes), (f"{name}_scales", scales)]
    return regions

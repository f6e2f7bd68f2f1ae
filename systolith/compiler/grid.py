"""The plan of a prefill on a grid of slices: rows of a prompt one way, columns of the matrices the other.

A decode step gives every slice its own columns and all rows; what then comes into a slice is all of the operand, and
with many rows that binds (docs/decisions/0012-grid.md). On the grid slice (c, r) = rank c * R + r takes the rows of
row group r and the columns that the R slices of column group c own together: an operand's rows travel in a row group
(ranks r, r + R, ...), weights in a column group (ranks c * R and up), each slice sending on what lies in its memory.

Column group c has KV head c with its query heads, so that rows meet all keys and values of a head in one slice. Row
group r has tokens r * t .. (r + 1) * t - 1 of every chunk of 256, t = 256 / R, so that each has an equal share of the
causal triangle. A step takes up to `chunks` whole chunks of one request; rows behind the end of the prompt are computed
and never seen. The operand of the head of its last row goes to all slices, for a step that has only logits to make.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from systolith.compiler.memory import Memory, blocks, scratchpad
from systolith.compiler.packing import ALIGN, Phase, pack
from systolith.compiler.plan import LinearPlan, Plan, padded
from systolith.numerics.formats import FORMATS
from systolith.spec.limits import BLOCK, CHUNK_TOKENS

__all__ = ["HEAD_WORDS", "MAX_CHUNKS", "Grid", "GridLinear", "lay_out_grid", "plan_grid"]

MAX_CHUNKS = 8
"""Most chunks of a step: each has a cell with its page and one with the slice that keeps it."""
SENT = 2
"""Rounds ahead of the one in hand that a slice sends its weights."""
RECEIVE = 2 * SENT + 1
"""Rounds of weights that a slice has room for: one in use, others that may be elsewhere, those that come."""
KV_ENTRIES = 8
"""Entries of the ring of keys and values: four chunks."""
SEND = 5
"""Rounds of its own weights that a slice has read ahead of sending them."""
OPERAND = 4
"""Parts of an operand in memory that are loaded ahead."""
HEAD_WORDS = 8
"""Head of a grid step: rows of a slice, chunks, first position, first page entry, first lane, number, 1 + the row that
makes the first token (0: none), its row group and request slot."""

Q, A, O_, F, D_ = Phase.QKV, Phase.ATTENTION, Phase.O, Phase.FFN, Phase.DOWN
ALL = tuple(Phase)
FIXED = ("consts", "pages", "state", "params", "stops", "flags", "owners", "sinks", "mail")
"""Buffers that hold what steps of both kinds need; also the gains, where they stay."""


@dataclass(frozen=True, slots=True)
class GridLinear:
    """A class of matrices on the grid. region: of its weights; k: contraction; nt: columns of the tile that each
    slice owns; kt: elements of K that lie together; columns: of a column group."""

    name: str
    region: str
    k: int
    nt: int
    kt: int
    columns: int


@dataclass(frozen=True, slots=True)
class Grid:
    """See the module. plan: of a step's body, with the rows of a slice; width: columns of a product, and elements of K
    of a round and of a part of an operand; apart_banks: whether attention's buffers have banks of their own."""

    plan: Plan
    members: int
    groups: int
    width: int
    format: str
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
    def piece(self) -> int:
        """Columns of a product that V hands to C at a time."""
        return max(BLOCK, self.width // 2)

    @property
    def ahead(self) -> int:
        """Rounds ahead of the one in hand that a slice reads its weights."""
        return min(SEND, *(x.k // self.width for x in self.linears))

    @property
    def shard(self) -> int:
        """Columns of the residual stream of a slice."""
        return self.o.columns

    @property
    def linears(self) -> tuple[GridLinear, ...]:
        """All classes."""
        return (self.qkv, self.o, self.gate, self.up, self.down)

    @property
    def own(self) -> int:
        """Most columns of a product that a slice sends."""
        return max(min(self.width, x.nt) for x in self.linears)

    @property
    def positions(self) -> int:
        """Positions of the context in whole chunks."""
        return padded(self.plan.options.context, CHUNK_TOKENS)

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
        owners = 4 * (self.plan.profile_lanes + MAX_CHUNKS)
        return [("grid_steps", 4 * self.step_words * self.steps), ("grid_owners", owners)]

    @property
    def step_words(self) -> int:
        """Words of a step: its head, then for each row group the ids and the positions of its rows."""
        return HEAD_WORDS + 2 * self.members * self.plan.rows


def plan_grid(base: Plan) -> Grid | None:
    """The grid of a plan, the one with most rows whose buffers fit; None where the model or the chip has none.

    Asked for are: one KV head for each column group and slices for all lanes of it; one plain feed-forward; matrices
    that slices share evenly in whole blocks, in one format, without bias or spans; deferred norms; layers of
    one kind, without a window.
    """
    m, o = base.model, base.options
    members, groups = base.group, m.kv_heads
    plain = not (
        m.experts or m.latent or m.post_norms or m.head_norms or base.dense or base.shared or m.sinks
        or base.profile.sink is not None or o.serve or o.dump or o.every_row or base.turn_whole or base.gate_apart
    )  # fmt: skip
    if not plain or members < 2 or members * groups != base.slices or CHUNK_TOKENS % members:
        return None
    classes = (base.q, base.k, base.v, base.o, base.gate, base.up, base.down)
    even = all(x.tiles == base.slices for x in (base.o, base.gate, base.up, base.down))
    one = len({x.format for x in classes}) == 1 and all(len(x.spans) == 1 and x.terms == 1 for x in classes)
    biased = any(m.bias(x.name) for x in classes)
    if not even or not one or biased or not base.profile.deferred_norm or m.kinds[0].window or len(set(m.kinds)) > 1:
        return None
    own = (base.group_queries + 2) * base.dp // members
    if own % BLOCK or m.head_dim != base.dp or o.context < 2 * CHUNK_TOKENS:
        return None
    tokens = CHUNK_TOKENS // members
    if o.page_tokens % tokens:
        return None
    for width in (256, 128, 64, 32):
        rows = min(base.acc_half_words // width, MAX_CHUNKS * tokens)
        while rows >= tokens:
            for apart in (True, False):
                grid = _grid(base, width, rows // tokens * tokens, own, apart)
                if grid is not None and lay_out_grid(grid, None):
                    return grid
            rows -= tokens
    return None


def _grid(base: Plan, width: int, rows: int, own: int, apart: bool) -> Grid | None:
    """A grid of a width and rows, if the sizes of the model divide by it."""
    m, members = base.model, base.group
    active = base.group * base.lanes_local
    hidden, g = padded(m.hidden), base.group_queries
    tokens = CHUNK_TOKENS // members

    def owned(linear: LinearPlan) -> GridLinear:
        return GridLinear(linear.name, f"w_{linear.name}", linear.k, linear.nt, linear.kt, members * linear.nt)

    qkv = GridLinear("qkv", "w_grid_qkv", hidden, own, width, members * own)
    linears = [qkv, *(owned(x) for x in (base.o, base.gate, base.up, base.down))]
    for x in linears:
        if x.columns % width or x.k % width or x.k < OPERAND * width or (x.kt % width and width % x.kt):
            return None
    if width % base.dp or g * base.dp % width:
        return None
    tile = tokens
    while tile > 1 and tile * g * max(CHUNK_TOKENS, base.dp) > base.acc_half_words:
        tile //= 2
    if tile * g * max(CHUNK_TOKENS, base.dp) > base.acc_half_words:
        return None
    plan = replace(base, rows=rows, tile_tokens=tile, part_tokens=CHUNK_TOKENS, group=1,
                   lanes_local=active)  # fmt: skip
    return Grid(plan, members, m.kv_heads, width, base.o.format, apart, *linears)


def _scaled(elements: int, fmt: str) -> tuple[int, int]:
    """Bytes of the codes and of the scales of `elements`."""
    return elements * FORMATS[fmt].bits // 8, elements // BLOCK


def grid_buffers(grid: Grid) -> list[tuple[str, int, tuple[Phase, ...]]]:
    """Scratchpad buffers of the grid's body: name, bytes, phases."""
    plan, w = grid.plan, grid.width
    p, m, rows, g = plan.profile, plan.model, plan.rows, plan.group_queries
    hidden = padded(m.hidden)
    table: list[tuple[str, int, tuple[Phase, ...]]] = []

    def ring(name: str, entries: int, elements: int, fmt: str, phases: tuple[Phase, ...]) -> None:
        codes, scales = _scaled(entries * elements, fmt)
        table.append((name, padded(codes, ALIGN), phases))
        table.append((f"{name}_scales", padded(scales, ALIGN), phases))

    ring("receive", RECEIVE, w * w, grid.format, ALL)
    ring("send", SEND, grid.own * w, grid.format, ALL)
    ring("operand", OPERAND, rows * w, p.activations, (O_, D_))
    staged = max(rows * grid.piece, rows * plan.dp, plan.tile_tokens * g * plan.dp)
    ring("stage", 2, staged, p.activations, ALL)
    ring("embedded", 1, rows * w, p.embed, (Phase.START,))
    table += [
        ("q", blocks(g * rows * plan.dp, p.k), (Q, A)),
        ("a", blocks(rows * hidden, p.activations), (D_, Q, Phase.START)),
        ("b", blocks(rows * hidden, p.activations), (O_, F)),
        ("grid_rows", 4 * 2 * rows, ALL),
        ("stage_total", 2 * 4 * rows, ALL),
        ("stage_vscale", 2 * padded(rows, 4), ALL),
        ("r", 4 * rows, ALL),
        ("g", 2 * 4 * grid.shard, ALL),
        ("tb_a", 4 * rows * (hidden // grid.piece), (D_, Phase.START)),
        ("tb_b", 4 * rows * (hidden // grid.piece), (O_,)),
        ("x", 4 * rows * w, (O_, D_, Phase.START)),
        ("head_tile", 4 * rows * plan.dp, (Q,)),
        ("head_turned", 4 * rows * (m.head_dim // 2), (Q,)),
        ("cos", 4 * rows * (m.turned // 2), (Q,)),
        ("sin", 4 * rows * (m.turned // 2), (Q,)),
        ("attention_area", attention_area(grid)[1], (A,)),
        ("exp_tile", 4 * rows * w, (F,)),
    ]
    return table


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


def lay_out_grid(grid: Grid, memory: Memory | None) -> Memory | None:
    """Addresses of the grid's body: the scratchpad beside the buffers that steps of both kinds need, and its regions of
    DRAM. memory: of the program, which gets the regions; None: only ask whether the scratchpad suffices."""
    plan = grid.plan
    sizes = {name: count for name, count, _ in scratchpad(plan)} if memory is None else memory.spad_sizes
    fixed = {name: sizes[name] for name in FIXED if name in sizes}
    if memory is None:
        keep = [(name, count, ALL) for name, count in fixed.items()]
        if plan.gains_resident:
            keep.append(("gains", sizes["g"], ALL))
        _, used = pack([*keep, *grid_buffers(grid)], plan.chip.scratchpad_bytes)
        return Memory() if used <= plan.chip.scratchpad_bytes else None
    held = {name: (memory.spad[name], count) for name, count in fixed.items()}
    if plan.gains_resident:
        held["g"] = (memory.spad["g"], memory.spad_sizes["g"])
    places, used = pack(grid_buffers(grid), plan.chip.scratchpad_bytes, tuple(held.values()))
    if used > plan.chip.scratchpad_bytes or not _regions(grid, memory):
        return None
    found = Memory(memory.dram, memory.dram_bytes, dict(places), record=memory.record, spad_bytes=used)
    found.spad |= {name: memory.spad[name] for name in fixed}
    area, _ = attention_area(grid)
    base = padded(found.spad["attention_area"], grid.bank)
    found.spad |= {name: base + offset for name, offset in area.items()}
    found.spad_sizes = {name: count for name, count, _ in grid_buffers(grid)} | fixed
    return found


def _regions(grid: Grid, memory: Memory) -> bool:
    """Reserve the grid's regions of DRAM, if there is room for all of them."""
    plan, p, m = grid.plan, grid.plan.profile, grid.plan.model
    before = memory.dram_bytes
    rows, positions = plan.rows, grid.positions
    regions = [
        ("grid_g", 4 * grid.shard * (2 * m.layers + 1)), ("grid_x", 4 * rows * grid.shard),
        ("grid_r", 4 * plan.options.batch),
    ]  # fmt: skip
    for name, elements, fmt in (
        ("grid_table", m.vocab * grid.shard, p.embed),
        ("grid_attention", rows * plan.o.k, p.activations),
        ("grid_h", rows * plan.down.k, p.activations),
        ("grid_picked", plan.options.batch * padded(m.hidden), p.activations),
        ("grid_k", m.layers * positions * plan.dp, p.k),
        ("grid_v", m.layers * positions * plan.dp, p.v),
        ("w_grid_qkv", m.layers * grid.qkv.nt * grid.qkv.k, grid.format),
    ):
        codes, scales = _scaled(elements, fmt)
        regions += [(name, codes), (f"ws_{name[2:]}" if name.startswith("w_") else f"{name}_scales", scales)]
    regions.append(("grid_vscale", m.layers * positions))
    total = before + sum(padded(size, 64) for _, size in regions) + 64
    if total > plan.chip.dram_bytes:
        return False
    for name, size in regions:
        memory.reserve(name, size)
    return True

"""Addresses: the memory map of a slice's DRAM, and the scratchpad packed by lifetime.

Both are the same on every slice. Scratchpad buffers name the phases in which they hold something (`packing`). Buffers
that the load queue fills ahead of time live in all phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from systolith.compiler.packing import ALIGN, ALL, Buffer, Phase, pack
from systolith.compiler.plan import Plan, padded
from systolith.compiler.team import deal_of_h, deal_of_x, gate_of, team_shape
from systolith.numerics.formats import FORMATS
from systolith.spec.errors import CapacityError
from systolith.spec.limits import BLOCK, CHUNK_TOKENS

__all__ = [
    "CONST_WORDS", "HEADER_WORDS", "MAIL_ENTRIES", "OWNER_CELLS", "PARAM_WORDS", "RANK_WORDS", "STATE_WORDS",
    "STOPS", "TEAM_WORDS",
    "Memory", "Record", "blocks", "kv_bytes", "lay_out", "scratchpad", "sink_layers",
    "slot_pages",
]  # fmt: skip

STATE_WORDS = 4
"""A request slot's state: token, position, live, slot."""
PARAM_WORDS = 8
"""A request slot's sampling record: k, P low, P high, seed low, seed high, log2(e)/T, limit, 0."""
STOPS = 8
"""Stop tokens of a request slot; unused entries hold -1."""
CONST_WORDS = 24
"""Words of the constant table."""
OWNER_CELLS = 8
"""Cells of a set with ranks."""
RANK_WORDS = 25
"""A slice's share of the work: cells 9 and up."""
TEAM_WORDS = 4
"""Ranks of a team behind that, where there are teams."""
HEADER_WORDS = 8
"""Head of a step record: rows, segments, output rows, decode rows; with serve also updates of request slots, decode
rows of the steps to follow, stop."""
MAIL_ENTRIES = 4
"""Messages that the mailbox holds: the host overwrites one when the device has taken a later one."""
SEGMENT_WORDS = 4
"""A segment: request slot, first row, rows, first position. Its rows lie in one chunk of 256 tokens."""

CONTROL = (
    "consts", "pages", "state", "params", "stops", "flags", "record", "mail", "owners", "chosen", "order", "entries",
    "route_numbers", "route_places",
)  # fmt: skip
"""Scratchpad buffers whose contents decide what the program does next: which rows, whose pages, what experts."""

Q, A, O_, F, D_, H, S_, P_ = Phase
LAYERS = (S_, Q, A, O_, F, D_)
"""Where L may run ahead of attention: the sequencer waits for the tokens of a step before it begins the next."""


@dataclass(frozen=True, slots=True)
class Record:
    """Layout of a step record, in words from its start."""

    ids: int
    positions: int
    segments: int
    out_rows: int
    out_slots: int
    updates: int
    words: int
    max_segments: int

    def message(self, batch: int, pages: int) -> Message:
        """Layout of a message for `batch` request slots with page lists of `pages` words."""
        starts, at = {}, 0
        for name, count in (("state", STATE_WORDS), ("params", PARAM_WORDS), ("stops", STOPS), ("pages", pages)):
            starts[name] = at
            at += count
        return Message(self.words, 2 * self.words, starts, at, 2 * self.words + batch * at)


@dataclass(frozen=True, slots=True)
class Message:
    """Layout of a message: the record of a step, at `pattern` that of the steps to follow, at `updates` a block of
    `block` words for each updated request slot: the words of the slot's tables, at `starts` of the block. words: of
    all of it."""

    pattern: int
    updates: int
    starts: dict[str, int]
    block: int
    words: int


@dataclass
class Memory:
    """Base addresses in bytes by name. `dram`, `spad`: of buffers. `*_bytes`: used."""

    dram: dict[str, int] = field(default_factory=dict)
    dram_bytes: int = 0
    spad: dict[str, int] = field(default_factory=dict)
    spad_sizes: dict[str, int] = field(default_factory=dict)
    spad_bytes: int = 0
    record: Record = Record(0, 0, 0, 0, 0, 0, 0, 0)

    @property
    def control(self) -> tuple[int, list[tuple[int, int]]]:
        """What a run without data needs: bytes of DRAM from 0 on, and (base, bytes) in the scratchpad."""
        return self.dram["cos"], [(self.spad[name], self.spad_sizes[name]) for name in CONTROL if name in self.spad]

    def reserve(self, name: str, count: int, align: int = 64) -> int:
        """Add a DRAM region of `count` bytes."""
        base = padded(self.dram_bytes, align)
        self.dram[name] = base
        self.dram_bytes = base + count
        return base


def record_layout(plan: Plan) -> Record:
    """Layout of the step records of a plan. A step has a segment for each request slot and chunk it touches."""
    segments = 2 * plan.options.batch + 2
    ids = HEADER_WORDS
    positions = ids + padded(plan.rows, 8)
    seg = positions + padded(plan.rows, 8)
    rows = seg + SEGMENT_WORDS * segments
    slots = rows + padded(plan.out_rows, 8)
    updates = slots + padded(plan.out_rows, 8)
    words = updates + (padded(plan.options.batch, 8) if plan.options.serve else 0)
    return Record(ids, positions, seg, rows, slots, updates, words, segments)


def slot_pages(plan: Plan) -> int:
    """Words of the page list of a request slot."""
    return plan.chunks * plan.pages_per_chunk


def _codes(count: int, fmt: str) -> int:
    return count * FORMATS[fmt].bits // 8


def blocks(count: int, fmt: str) -> int:
    """Bytes of codes and scales of `count` elements, the scales behind the codes."""
    return padded(_codes(count, fmt), 4) + count // BLOCK


def ring_bytes(elements: int, fmt: str) -> int:
    """Bytes of codes of one entry of a ring: whole blocks of the widest format, so that every format can step by it."""
    return padded(_codes(elements, fmt), ALIGN)


def kv_bytes(plan: Plan) -> int:
    """Bytes of codes of a part of K or V: they share a ring, as M takes them in the order in which L loads them."""
    return max(ring_bytes(plan.part_tokens * plan.kp, fmt) for fmt in (plan.profile.k, plan.profile.v))


def stage_bytes(plan: Plan) -> int:
    """Bytes of one of the two staging buffers, for all that the vector unit sends."""
    p, rows = plan.profile, plan.rows
    return padded(
        max(
            _codes(rows * max(plan.tile, plan.ffn_tile), p.activations),
            _codes(plan.tile_tokens * plan.group_queries * plan.dp, p.activations),
            _codes(rows * plan.kp, p.k),
            _codes(rows * plan.dp, p.v),
            _codes(rows * plan.v.nt, p.activations),
            rows * max((x.nt for x in (plan.q_a, plan.kv_a) if x is not None), default=0) * 4,
            plan.out_rows * plan.head.nt * 4,
            rows * plan.router.nt * 4 if plan.router is not None else 0,
            _codes(plan.pairs * plan.owned_columns(plan.gate), p.activations) if plan.gate.unit else 0,
        ),
        4 * BLOCK,
    )


def scratchpad(plan: Plan) -> list[Buffer]:
    """Buffers (name, bytes, phases). Codes and their scales are one buffer, the scales at the end: `scales_at`."""
    m, p, o = plan.model, plan.profile, plan.options
    rows, g = plan.rows, plan.group_queries
    hidden, inner, shard = padded(m.hidden), padded(m.inner), plan.shard
    tq = plan.tile_tokens * g
    side = plan.round_chunks * g
    partial = tq * (plan.dp + 2) * 4
    spans = [len(x.spans) * x.nt * rows * 4 for x in plan.linears if len(x.spans) > 1]
    rec, embed = record_layout(plan), plan.load_entries * ring_bytes(rows * plan.tile, p.embed)
    dense = blocks(rows * plan.dense.down.k, p.activations) if plan.dense is not None else 0
    # S stores K and V until V has been told: with the gains of o, or, where these stay, before down.
    stored = (Q, A, O_, F) if plan.gains_resident else (Q, A, O_)
    table: list[Buffer] = [
        ("consts", 4 * CONST_WORDS, ALL),
        ("pages", 4 * o.batch * slot_pages(plan), ALL),
        ("state", 4 * STATE_WORDS * o.batch, ALL),
        ("params", 4 * PARAM_WORDS * o.batch, ALL),
        ("stops", 4 * STOPS * o.batch, ALL),
        ("flags", 4 * 2 * o.batch, ALL),
        ("record", 4 * rec.words, ALL),
        ("cos", 4 * len(m.ropes) * rows * m.turned // 2, ALL),
        ("sin", 4 * len(m.ropes) * rows * m.turned // 2, ALL),
        ("g", 4 * shard * (len(m.layer_norms) * m.layers + 1 if plan.gains_resident else 2), ALL),
        ("vscale_ring", plan.scale_entries * CHUNK_TOKENS, LAYERS),
        ("kv_ring", plan.kv_entries * kv_bytes(plan), LAYERS),
        ("kv_ring_scales", plan.kv_entries * kv_bytes(plan) * 8 // FORMATS[p.k].bits // BLOCK, LAYERS),
        ("stage", 2 * stage_bytes(plan), ALL),
        ("stage_scales8", 2 * stage_bytes(plan) // BLOCK, ALL),
        ("stage_scales4", 2 * stage_bytes(plan) * 2 // BLOCK, ALL),
        ("stage_sums", 2 * rows * (plan.tile // BLOCK) * 4, ALL),
        ("stage_vscale", 2 * padded(rows, 4), ALL),
        ("r", 4 * rows, ALL),
        ("x", 4 * rows * (shard if plan.x_resident else plan.tile), ALL),
        ("a", blocks(rows * hidden, p.activations), (S_, D_, Q, H)),
        ("tb_a", 4 * rows * plan.d_blocks, (S_, D_, Q, H)),
        ("b", blocks(rows * hidden, p.activations), (O_, F)),
        ("tb_b", 4 * rows * plan.d_blocks, (O_, F)),
        ("q", blocks(rows * m.heads * plan.kp, p.k), (Q, A)),
        ("k", blocks(rows * m.kv_heads * plan.kp, p.k), stored),
        ("v", 0 if m.latent else padded(_codes(rows * m.kv_heads * plan.dp, p.v), 4), stored),
        ("vscale", rows * m.kv_heads, stored),
        ("attention", blocks(rows * m.heads * plan.dp, p.activations), (A, O_)),
        ("h", max(blocks(plan.pairs * inner, p.activations), dense), (F, D_)),
        ("head_tile", 4 * rows * plan.hp, (Q,)),
        ("head_turned", 4 * rows * (plan.hp if plan.turn_whole or m.latent else m.head_dim // 2), (Q,)),
        ("scores", 4 * max(tq, side) * CHUNK_TOKENS, (A,)),
        ("p", blocks(max(2 * tq, side) * CHUNK_TOKENS, p.p), (A,)),
        ("chunk_lm", 4 * 2 * 2 * tq, (A,)),
        ("partial", partial * (1 + plan.merge_levels), (A,)),
        ("inverse", 4 * tq, (A,)),
        ("exp_tile", 4 * rows * plan.ffn_tile, (F,)),
        ("embed_ring", embed, (S_,)),
        ("embed_ring_scales", embed * 8 // FORMATS[p.embed].bits // BLOCK, (S_,)),
        ("picked", blocks(plan.out_rows * hidden, p.activations), (H,)),
        ("r_picked", 4 * plan.out_rows, (H,)),
    ]
    if not o.every_row:
        # A token may come while the next step begins elsewhere.
        logits = (H, P_) if plan.logits_stay else (P_,)
        table += [("logits", 4 * padded(m.vocab), logits), ("weights", 4 * padded(m.vocab), (P_,)), ("max", 4, (P_,))]
        table.append(("tokens", 4 * plan.out_rows, (P_, S_)))
    if plan.logits_dealt:
        table.append(("owners", 4 * owner_words(plan), ALL))
    if m.sinks is not None or p.sink is not None:
        table.append(("sinks", 2 * 4 * m.heads * sink_layers(plan), ALL))
    if m.head_norms is not None:
        table += [("g_head", 4 * 2 * m.head_dim, ALL), ("r_head", 4 * rows, (Q,))]
    if o.serve:
        table.append(("mail", 2 * 4, ALL))
    if m.experts is not None:
        table += _expert_buffers(plan)
    if m.post_norms is not None:
        table += [("branch", 4 * rows * shard, (O_, D_)), ("tb_post", 4 * rows * plan.d_blocks, (O_, D_))]
    if m.latent is not None:
        table += _latent_buffers(plan)
    even = (("qkv", plan.qkv, rows, (Q,)), ("x", plan.o, rows, (O_, D_)), ("h", plan.gate, plan.pairs, (F,)))
    table += [(f"columns_{n}", 4 * k * plan.column_pitch(x), at) for n, x, k, at in even if x is not None and x.unit]
    if plan.group > 1:
        table.append(("exchange", 2 * plan.group * partial, (A,)))
    if spans:
        table.append(("spans", max(spans), ALL))
    if plan.gate_apart:
        table.append(("gate_tile", 4 * rows * plan.ffn_tile, (F,)))
    if any(m.bias(x.name) for x in plan.linears):
        table.append(("bias_ring", plan.load_entries * 4 * max(x.nt for x in plan.linears if m.bias(x.name)), ALL))
    if plan.round_chunks:
        table += [
            ("round_scales", plan.load_entries * plan.round_chunks * CHUNK_TOKENS, LAYERS),
            ("round_lm", 4 * 2 * side, (A,)),
            ("lanes_o", 4 * plan.lanes_local * g * plan.dp, (A,)),
            ("lanes_lm", 4 * 2 * plan.lanes_local * g, (A,)),
        ]
    if plan.team > 1:
        table += _team_buffers(plan)
    if o.dump:
        table.append(("dump_head", 4 * tq * plan.dp, ALL))
    return table


def _team_buffers(plan: Plan) -> list[Buffer]:
    """Rows that a member of a team brings together: of operands of norms, and of h."""
    fmt, table, deal = plan.profile.activations, list[Buffer](), deal_of_x(plan)
    if plan.team_norms and deal is not None:
        each, columns = team_shape(plan, plan.rows, deal)
        table.append(("team_x", blocks(each * columns, fmt), (S_, O_, D_)))
    for number, part in enumerate(gate_of(plan).parts):
        deal = deal_of_h(plan, part)
        if deal is not None:
            each, columns = team_shape(plan, plan.pairs if part.copies > 1 else plan.rows, deal)
            table.append((f"team_h{number}", blocks(each * columns, fmt), (F,)))
    return table


def _latent_buffers(plan: Plan) -> list[Buffer]:
    """What latent attention needs: what its first matrices give, of all slices and in FP32, the operands of the
    matrices of heads, and the operand of o."""
    m, p, rows = plan.model, plan.profile, plan.rows
    assert m.latent is not None
    table: list[Buffer] = [
        ("low", 4 * rows * (plan.q_width + plan.kp), (Q,)),
        ("q_low", blocks(rows * plan.q_width, p.activations), (Q,)),
        ("q_plain", blocks(rows * padded(m.latent.plain), p.activations), (Q,)),
        ("r_low", 4 * 2 * rows, (Q,)),
        ("g_low", 4 * low_gains(plan), ALL),
        ("attended", blocks(rows * m.heads * plan.vp, p.activations), (O_,)),
    ]
    if plan.options.dump:
        table += [("q_tile", 4 * rows * plan.kp, (Q,)), ("value_tile", 4 * rows * plan.vp, (O_,))]
    return table


def low_gains(plan: Plan) -> int:
    """Words of the gains of a layer's norms inside latent attention: of q's, then of the latent's."""
    latent = plan.model.latent
    assert latent is not None
    return (latent.q_rank or 0) + latent.rank


def _expert_buffers(plan: Plan) -> list[Buffer]:
    """What a mixture of experts needs beside h: logits of the router, choices and their weights, the order of pairs."""
    experts, rows, pairs = plan.model.experts, plan.rows, plan.pairs
    assert experts is not None
    table: list[Buffer] = [
        ("route", 4 * rows * experts.count, (F,)),
        ("chosen", 4 * pairs, ALL),
        ("route_f", 4 * pairs, (F,)),
        ("route_max", 4 * rows, (F,)),
        ("route_sum", 4 * rows, (F,)),
        ("route_w", 4 * pairs, (F, D_)),
        ("order", 4 * 2 * pairs, ALL),
        ("entries", 4 * 4 * experts.count, ALL),
        ("y", 4 * pairs * plan.down.nt, (D_,)),
    ]
    if experts.score != "softmax":
        table.append(("route_all", 4 * rows * experts.count, (F,)))
    if experts.score == "sigmoid":
        table += [("route_numbers", 4 * route_numbers(plan), ALL), ("route_places", 4 * pairs, ALL)]
    if experts.groups > 1:
        table.append(("route_groups", 4 * rows * (6 * experts.groups + 2 * experts.top_groups), (F,)))
    if experts.correction is not None:
        table.append(("correction", 4 * experts.count, ALL))
    if plan.shared is not None:
        table.append(("h_shared", blocks(rows * plan.shared.down.k, plan.profile.activations), (F, D_)))
    return table


def route_numbers(plan: Plan) -> int:
    """Words of a router's table of numbers: of each row the place of its first score, then the groups from 0 on."""
    assert plan.model.experts is not None
    return plan.rows + plan.model.experts.groups


def owner_words(plan: Plan) -> int:
    """Ranks of the slices that sample, in whole sets of cells, an even number of them."""
    return padded(min(plan.out_rows, plan.slices), 2 * OWNER_CELLS)


def sink_layers(plan: Plan) -> int:
    """Sets of sinks: one a layer where the model has them, one where the profile gives them."""
    return plan.model.layers if plan.model.sinks is not None else 1


def lay_out(plan: Plan, control: Sequence[tuple[str, int]] = (), low: Sequence[str] = ()) -> Memory:
    """Give every buffer its address. control: more regions (name, bytes) that decide what the program does next; low:
    buffers of the scratchpad that come first.

    Raises CapacityError where scratchpad, slots or DRAM are too small."""
    memory = Memory(record=record_layout(plan))
    buffers = scratchpad(plan)
    memory.spad_sizes = {name: count for name, count, _ in buffers}
    memory.spad, memory.spad_bytes = pack(buffers, plan.chip.scratchpad_bytes, low=low)
    chip, name = plan.chip, plan.model.name
    if memory.spad_bytes > chip.scratchpad_bytes:
        raise CapacityError(
            f"{chip.name}: scratchpad_bytes={chip.scratchpad_bytes} is too small for {name}, which needs "
            f"{memory.spad_bytes} with {plan.rows} row(s) a step; take a larger chip, a smaller batch or context"
        )
    if plan.slots < 2:
        raise CapacityError(
            f"{chip.name}: slots_bytes={chip.slots_bytes} must hold two weight tiles of {plan.slot_bytes} bytes for "
            f"{name}; take a larger chip"
        )
    _dram(plan, memory, control)
    if memory.dram_bytes > chip.dram_bytes:
        raise CapacityError(
            f"{chip.name}: dram_bytes={chip.dram_bytes} a slice is too small for {name}, which needs "
            f"{memory.dram_bytes} a slice at batch {plan.options.batch} and context {plan.options.context}; take a "
            "larger chip or a smaller batch or context"
        )
    return memory


def _dram(plan: Plan, memory: Memory, control: Sequence[tuple[str, int]]) -> None:
    """Lay out the memory of a slice: what the host writes, tables, weights, KV cache, results."""
    m, p, o = plan.model, plan.profile, plan.options
    reserve = memory.reserve
    reserve("ranks", 4 * 32)
    reserve("consts", 4 * CONST_WORDS)
    reserve("pages", 4 * o.batch * slot_pages(plan))
    reserve("state", 4 * STATE_WORDS * o.batch)
    reserve("params", 4 * PARAM_WORDS * o.batch)
    reserve("stops", 4 * STOPS * o.batch)
    if plan.logits_dealt:
        reserve("owners", 4 * owner_words(plan))
    if m.experts is not None and m.experts.score == "sigmoid":
        reserve("route_numbers", 4 * route_numbers(plan))
    if o.serve:
        reserve("bell", 4)
        reserve("mail", 4 * MAIL_ENTRIES * memory.record.message(o.batch, slot_pages(plan)).words)
    else:
        reserve("steps", 4 * memory.record.words * o.steps)
    for name, size in control:
        reserve(name, size)
    reserve("cos", 4 * len(m.ropes) * o.context * (m.turned // 2))
    reserve("sin", 4 * len(m.ropes) * o.context * (m.turned // 2))
    shard = plan.shard
    reserve("g", 4 * shard * (len(m.layer_norms) * m.layers + 1))
    if m.head_norms is not None:
        reserve("g_head", 4 * 2 * m.head_dim * m.layers)
    if m.latent is not None:
        reserve("g_low", 4 * low_gains(plan) * m.layers)
    if m.sinks is not None or p.sink is not None:
        reserve("sinks", 2 * 4 * m.heads * sink_layers(plan))
    if m.experts is not None and m.experts.correction is not None:
        reserve("correction", 4 * m.experts.count * len(m.layers_of("router")))
    reserve("table", _codes(m.vocab * shard, p.embed))
    reserve("table_scales", m.vocab * shard // BLOCK)
    for linear in plan.linears:
        layers = 1 if linear.name == "head" else len(m.layers_of(linear.name)) * linear.copies
        elements = layers * plan.most_tiles(linear) * linear.tile_elements
        reserve(f"w_{linear.name}", _codes(elements, linear.format))
        reserve(f"ws_{linear.name}", elements // BLOCK)
        if m.bias(linear.name):
            reserve(f"bias_{linear.name}", 4 * layers * plan.most_tiles(linear) * linear.nt)
    rows = m.layers * plan.units_local * plan.pool_pages * plan.page_tokens
    reserve("k_cache", _codes(rows * plan.kp, p.k))
    reserve("k_scales", rows * plan.kp // BLOCK)
    if m.latent is None:
        reserve("v_cache", _codes(rows * plan.dp, p.v))
    reserve("v_scales", rows)
    if not plan.x_resident:
        reserve("x", 4 * plan.rows * shard)
    reserve("logits", 4 * padded(m.vocab) * max(o.log_rows, plan.out_rows))
    if o.dump:
        tokens = max(o.log_rows, plan.rows)
        for name, width in dump_widths(plan).items():
            reserve(f"dump_{name}", 4 * tokens * width * (m.layers + 1))  # the last norm counts as one of a layer more
        reserve("dump_x0", 4 * tokens * padded(m.hidden))


def dump_widths(plan: Plan) -> dict[str, int]:
    """FP32 words of one token and layer of each dumped tensor."""
    m, dp = plan.model, plan.dp
    widths = {
        "r_attention": 1, "r_ffn": 1, "q": m.heads * dp, "k": m.kv_heads * dp, "v": m.kv_heads * dp,
        "attention": m.heads * dp, "x_attention": padded(m.hidden), "x_ffn": padded(m.hidden),
    }  # fmt: skip
    if m.latent is not None:
        del widths["v"]
        widths |= {"q": m.heads * plan.kp, "k": plan.kp, "latent": m.heads * dp, "attention": m.heads * plan.vp}
        widths |= {"r_q": 1} if plan.q_a is not None else {}
    if m.experts is None:  # else h is no value of a token
        widths["h"] = padded(m.inner)
    return widths

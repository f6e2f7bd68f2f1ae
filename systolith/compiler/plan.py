"""The plan of a program: how one model lies on one chip. Numbers only; `memory` gives them addresses.

Dimensions: D hidden, H query heads, KV key-value heads, G = H / KV, d and dp a head unpadded and padded to whole
blocks, FF the inner size of the feed-forward, V vocabulary, S slices. "Blocks" are 32 elements.

What is split over slices: every matrix by whole tiles of columns, so that a shard is whole blocks and is quantised
where it is made; attention by `units`, each one KV head and an aligned group of lanes, so that the tree over lanes is
cut at whole subtrees (docs/decisions/0005-compiler.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from systolith.compiler.model import DecoderModel
from systolith.compiler.options import Options
from systolith.models.profile import Profile
from systolith.numerics.formats import FORMATS
from systolith.spec.chip import Chip
from systolith.spec.limits import BLOCK, CHUNK_TOKENS

__all__ = ["FeedForward", "LinearPlan", "Plan", "padded", "share", "spans_of", "weight_format"]


def padded(count: int, unit: int = BLOCK) -> int:
    """Round up to a multiple of `unit`."""
    return -(-count // unit) * unit


def weight_format(profile: Profile, name: str) -> str:
    """Format of the matrices of a class, as the profile writes it ("INT8x2": two terms)."""
    if name.startswith("expert_"):
        return profile.experts
    if name == "router":
        return profile.router
    return profile.head if name == "head" else profile.weights


def spans_of(profile: Profile, name: str) -> int:
    """Spans of the matrices of a class; an expert that all rows share has those of a feed-forward."""
    return profile.spans[{"q_a": "q", "kv_a": "k", "qkv": "q"}.get(name, name.removeprefix("shared_"))]


def share(items: int, slices: int, rank: int) -> tuple[int, int]:
    """First item and number of items of a rank; `items` are dealt out in runs whose lengths differ by one at most."""
    first = rank * items // slices
    return first, (rank + 1) * items // slices - first


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """How one class of matrices is cut.

    name: class of the profile; n, k: padded columns and contraction, elements; nt: columns of a tile; kt: elements of K
    in one weight slot; spans: (first element, elements) of each span that holds any; terms: 1 or 2; format: of the
    weights; tiles: over all slices; copies: matrices of this class in a layer (experts). unit: 0 where a slice keeps
    the tiles that it makes; else every slice makes as many columns as any other, and whole units of so many, a head or
    a block, belong to the slice that makes their last column (docs/decisions/0005-compiler.md, "Even columns"); n then
    counts columns of zeros that make it even. cuts: columns of the parts that a tile is made in, one after the other,
    where it is not made at once.
    """

    name: str
    n: int
    k: int
    nt: int
    kt: int
    spans: tuple[tuple[int, int], ...]
    terms: int
    format: str
    tiles: int
    copies: int = 1
    unit: int = 0
    cuts: tuple[int, ...] = ()

    @property
    def parts(self) -> tuple[LinearPlan, ...]:
        """The same for each part of a tile, as if that were a tile."""
        return tuple(replace(self, nt=columns, cuts=()) for columns in self.cuts) or (self,)

    @property
    def slot_elements(self) -> int:
        """Weight elements of one slot, of the widest part."""
        return max(self.cuts, default=self.nt) * self.kt * self.terms

    @property
    def tile_elements(self) -> int:
        """Weight elements of a tile, over all of K."""
        return self.nt * self.kt * self.terms * self.slots_per_part

    @property
    def slots_per_part(self) -> int:
        """Weight slots that one part of a tile takes, over all of K."""
        return sum(length for _, length in self.spans) // self.kt


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The matrices of a gated feed-forward."""

    gate: LinearPlan
    up: LinearPlan
    down: LinearPlan


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module. rows: rows of a step; x_resident, gains_resident: the residual shard and the gains
    of all norms stay in the scratchpad; tile_tokens, part_tokens: tokens of queries and of keys that attention takes at
    a time; kv_entries: parts of K and V that L may have loaded ahead; group: slices that share the lanes of a head;
    slot_groups: such groups of a head, to which request slots are dealt out in turn; lanes_local: lanes of a unit;
    round_chunks: chunks of a decode row that are attended side by side (0: one at a time, as rows of prompts); units:
    over all slices. gate, up, down: of the experts where there are any, and then dense: of the layers without; shared:
    of the expert that all rows share. qkv: q, k and v as one matrix whose columns are dealt out evenly, where whole
    heads would not be; q, k, v then tell of heads only. team: neighbouring slices that bring rows of h together before
    they send them (`compiler.team`); team_norms: and those of the operands of norms."""

    model: DecoderModel
    profile: Profile
    chip: Chip
    options: Options
    rows: int
    x_resident: bool
    gains_resident: bool
    tile_tokens: int
    part_tokens: int
    kv_entries: int
    dp: int
    lanes: int
    group: int
    slot_groups: int
    lanes_local: int
    round_chunks: int
    q: LinearPlan
    k: LinearPlan
    v: LinearPlan
    o: LinearPlan
    gate: LinearPlan
    up: LinearPlan
    down: LinearPlan
    head: LinearPlan
    router: LinearPlan | None
    dense: FeedForward | None
    shared: FeedForward | None
    q_a: LinearPlan | None = None
    kv_a: LinearPlan | None = None
    qkv: LinearPlan | None = None
    team: int = 1
    team_norms: bool = False

    # Sizes that many kernels need.
    @property
    def slices(self) -> int:
        """Slices of the chip."""
        return self.chip.slices

    @property
    def group_queries(self) -> int:
        """Query heads of a KV head."""
        return self.model.heads // self.model.kv_heads

    @property
    def units(self) -> int:
        """Attention units over all slices."""
        return self.model.kv_heads * self.head_units

    @property
    def head_units(self) -> int:
        """Attention units of a KV head."""
        return self.slot_groups * self.group

    @property
    def units_local(self) -> int:
        """Most units of a slice."""
        return -(-self.units // self.slices)

    def unit_share(self, rank: int) -> tuple[int, int]:
        """First unit and number of units of a rank. Where there are slices enough, unit u is rank u, so that a head's
        group is a run of ranks."""
        if self.units <= self.slices:
            return (rank, 1) if rank < self.units else (0, 0)
        return share(self.units, self.slices, rank)

    def head_shares(self, rank: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """First and number of the heads of q, k and v that a rank makes: one run over all heads in that order. With
        latent attention: heads of q, tiles of q_a, tiles of kv_a."""
        h, kv = self.model.heads, self.model.kv_heads
        if self.kv_a is not None:
            q_tiles = self.q_a.tiles if self.q_a is not None else 0
            kv_share = share(self.kv_a.tiles, self.slices, rank)
            return share(h, self.slices, rank), share(q_tiles, self.slices, rank), kv_share
        first, count = share(h + 2 * kv, self.slices, rank) if self.qkv is None else self.owned(self.qkv, rank)
        shares = []
        for start, heads in ((0, h), (h, kv), (h + kv, kv)):
            low, high = max(first, start), min(first + count, start + heads)
            shares.append((low - start, high - low) if high > low else (0, 0))
        return shares[0], shares[1], shares[2]

    @property
    def dealt_evenly(self) -> bool:
        """Whether columns of any class are."""
        return any(linear.unit for linear in self.linears)

    def made(self, linear: LinearPlan) -> int:
        """Columns that each slice makes of a class that is dealt out evenly."""
        return linear.n // self.slices

    def owned(self, linear: LinearPlan, rank: int) -> tuple[int, int]:
        """First and number of a rank's units of a class that is dealt out evenly: those whose last column it makes."""
        made, units = self.made(linear), self._columns(linear) // linear.unit
        first = min(rank * made // linear.unit, units)
        return first, min((rank + 1) * made // linear.unit, units) - first

    def column_pitch(self, linear: LinearPlan) -> int:
        """Words of a row in the buffer of such a class: columns of the slice before, fewer than a unit, and its own."""
        return padded(linear.unit + self.made(linear), 4)

    def owned_columns(self, linear: LinearPlan) -> int:
        """Columns that belong to the slice that has most of such a class."""
        return linear.unit * max(self.owned(linear, rank)[1] for rank in range(self.slices))

    def _columns(self, linear: LinearPlan) -> int:
        """Columns of a class that is dealt out evenly, without those of zeros, in whole units."""
        if linear.name == "qkv":
            return (self.model.heads + 2 * self.model.kv_heads) * self.dp
        return padded(self.model.inner if linear.name in (self.gate.name, self.up.name) else self.model.hidden)

    @property
    def tile(self) -> int:
        """Most columns of a tile of the residual stream: where columns are dealt out evenly, a slice has one tile."""
        return self.most_residual_parts * self.o.unit or self.o.nt

    @property
    def residual_part(self) -> int:
        """Columns by which the residual stream is dealt out: a block of a slice's only tile, or a tile."""
        return self.o.unit or self.o.nt

    def residual_share(self, rank: int) -> tuple[int, int]:
        """First and number of a rank's parts of the residual stream."""
        return self.owned(self.o, rank) if self.o.unit else share(self.o.tiles, self.slices, rank)

    @property
    def most_residual_parts(self) -> int:
        """Residual parts of the slice that has most."""
        return max(self.residual_share(rank)[1] for rank in range(self.slices))

    @property
    def one_residual_tile(self) -> bool:
        """Whether every slice has a single tile of the residual stream: what it sends of it is all it has to send."""
        return self.o.unit > 0 or all(self.residual_share(rank)[1] == 1 for rank in range(self.slices))

    def receivers(self, name: str, rank: int) -> tuple[int, int]:
        """First rank and number (for all alike) of the ranks that need the heads of "q", "k" or "v" that a rank makes:
        those with units of their KV heads, all where a rank has several units or columns are dealt out evenly."""
        if self.units > self.slices or self.model.latent is not None or self.dealt_evenly:
            return 0, self.slices
        each = self.group_queries if name == "q" else 1

        def first_last(r: int) -> tuple[int, int]:
            first, count = self.head_shares(r)["qkv".index(name)]
            return first // each, max(first, first + count - 1) // each

        count = self.head_units * max(1 + last - first for first, last in map(first_last, range(self.slices)))
        return min(first_last(rank)[0] * self.head_units, self.slices - count), count

    def tile_share(self, linear: LinearPlan, rank: int) -> tuple[int, int]:
        """First tile and number of tiles of a rank; whole heads of q, k and v."""
        if linear.name in ("q", "k", "v") and self.model.latent is not None:
            tiles = linear.tiles // self.model.heads
            first, count = share(self.model.heads, self.slices, rank)
            return first * tiles, count * tiles
        if linear.name in ("q", "k", "v"):
            first, count = self.head_shares(rank)["qkv".index(linear.name)]
            tiles = self.dp // linear.nt
            return first * tiles, count * tiles
        return share(linear.tiles, self.slices, rank)

    def most_tiles(self, linear: LinearPlan) -> int:
        """Tiles of the slice that has most."""
        return max(self.tile_share(linear, rank)[1] for rank in range(self.slices))

    def one_tile(self, linear: LinearPlan) -> bool:
        """Whether every slice has a single tile of a class: what it sends of it is then all it has to send."""
        return all(self.tile_share(linear, rank)[1] == 1 for rank in range(self.slices))

    @property
    def shard(self) -> int:
        """Columns of the residual stream of the slice that has most."""
        return self.most_residual_parts * self.residual_part

    @property
    def kp(self) -> int:
        """Elements of a key, padded: a latent one is the latent and the turned row."""
        return self.dp if self.model.latent is None else self.dp + padded(self.model.latent.turned)

    @property
    def vp(self) -> int:
        """Elements of a head of what o takes, padded."""
        return padded(self.model.value_dim)

    @property
    def hp(self) -> int:
        """Columns of a head of q as its matrix gives them, padded."""
        latent = self.model.latent
        return self.dp if latent is None else padded(latent.plain) + padded(latent.turned)

    @property
    def q_width(self) -> int:
        """Columns between the two matrices of q, padded; 0 where it has one."""
        return 0 if self.q_a is None else self.q_a.n

    @property
    def chunks(self) -> int:
        """Chunks of a sequence of the full context."""
        return -(-self.options.context // CHUNK_TOKENS)

    @property
    def page_tokens(self) -> int:
        """Tokens of a page of the KV cache."""
        return self.options.page_tokens

    @property
    def pages_per_chunk(self) -> int:
        """Pages of a chunk of attention."""
        return CHUNK_TOKENS // self.options.page_tokens

    @property
    def pool_pages(self) -> int:
        """Pages of one layer and unit: those asked for, or all slots of a group at full context, for the lane group
        that gets most chunks."""
        if self.options.pages is not None:
            return self.options.pages
        group_of = [c % self.profile_lanes // self.lanes_local for c in range(self.chunks)]
        most = max(group_of.count(j) for j in range(self.group))
        return max(1, most) * self.pages_per_chunk * -(-self.options.batch // self.slot_groups)

    @property
    def profile_lanes(self) -> int:
        """R of the numerics."""
        assert self.profile.lanes is not None
        return self.profile.lanes

    @property
    def merge_levels(self) -> int:
        """Partials that wait while a unit's lanes are merged."""
        return self.lanes_local.bit_length() - 1

    @property
    def d_blocks(self) -> int:
        """Blocks of the hidden dimension."""
        return padded(self.model.hidden) // BLOCK

    @property
    def acc_half_words(self) -> int:
        """FP32 sums of half the accumulator."""
        return self.chip.accumulator_words // 2

    @property
    def decode_steps(self) -> int:
        """Steps that make a token for every request slot: a step has so many rows at most."""
        return -(-self.options.batch // self.rows)

    @property
    def out_rows(self) -> int:
        """Most rows of a step that need logits."""
        return self.rows if self.options.every_row else min(self.rows, self.options.batch)

    @property
    def logits_stay(self) -> bool:
        """Whether logits go straight into the scratchpad of the slice that samples: one row, nothing kept."""
        o = self.options
        return self.out_rows == 1 and not (o.log_rows or o.every_row or o.serve)

    @property
    def logits_dealt(self) -> bool:
        """Whether rows of logits are dealt out to the slices, each to the one that samples it."""
        return self.out_rows > 1 and not (self.options.log_rows or self.options.every_row)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What will run, but not well: one sentence each.

        The longest stall of a decode step lies between the weights of q, k, v and those of o: two dependencies as
        between linear layers, and the first byte of the cache. Full slots should feed the memory that long.
        """
        chip = self.chip
        stall = 2 * chip.stall_cycles + chip.dram_latency_cycles
        full = min(p.slot_elements * (FORMATS[p.format].bits / 8 + 1 / BLOCK) for p in self.linears)
        cover = int(self.slots * full / chip.dram_bytes_per_cycle)
        if cover >= stall:
            return ()
        return (
            f"{chip.name}: {self.slots} weight slots of {self.model.name} hold {cover} cycles of memory traffic, and a "
            f"decode step stalls for about {stall} around attention, so memory will wait; a larger slots_bytes helps",
        )

    @property
    def load_entries(self) -> int:
        """Entries of the ring of what L brings for V: more where a load takes long."""
        return 2 + min(14, self.chip.dram_latency_cycles // 64)

    @property
    def whole_chunks(self) -> bool:
        """Whether K and V come a chunk at a time, all loads of a chunk together: two chunks are in the ring then."""
        return self.part_tokens == CHUNK_TOKENS and (self.kv_entries >= 4 or self.model.latent is not None)

    @property
    def keys_stay(self) -> bool:
        """Whether a chunk of K comes whole and stays until it has been V, too: of a latent."""
        return self.model.latent is not None and self.whole_chunks

    @property
    def scale_entries(self) -> int:
        """Entries of the ring of V's scales: those of the ring of K where that is V, too."""
        return self.kv_entries if self.keys_stay else self.load_entries

    @property
    def row_ahead(self) -> bool:
        """Whether L loads the first chunks of a layer's first decode row while the layer before is still at its
        feed-forward: memory has time then. Not where L brings what the sequencer waits for meanwhile, or where layers
        see other chunks."""
        m = self.model
        return bool(self.round_chunks) and m.experts is None and all(kind.window is None for kind in m.kinds)

    @property
    def turn_whole(self) -> bool:
        """Whether rotary collects whole heads in FP32: where a half is no whole blocks, or is to be stored."""
        return self.options.dump or self.model.head_dim // 2 % BLOCK != 0

    @property
    def gate_apart(self) -> bool:
        """Whether the gate's sums are kept in FP32; else they are read from the accumulator twice."""
        if self.options.dump or self.model.experts is not None or self.model.activation != "silu_mul":
            return True
        if len(self.gate.spans) > 1:
            return True
        return self.model.bias(self.gate.name) or self.model.bias(self.up.name)

    @property
    def linears(self) -> tuple[LinearPlan, ...]:
        """All classes of matrices, in the order of their use."""
        router = (self.router,) if self.router is not None else ()
        parts = [x for part in self.feed_forwards for x in (part.gate, part.up, part.down)]
        low = [x for x in (self.q_a, self.kv_a) if x is not None]
        heads = (self.q, self.k, self.v) if self.qkv is None else (self.qkv,)
        return (*low, *heads, self.o, *router, *parts, self.head)

    @property
    def feed_forwards(self) -> tuple[FeedForward, ...]:
        """All that there are, that of the experts first."""
        others = (part for part in (self.dense, self.shared) if part is not None)
        return (FeedForward(self.gate, self.up, self.down), *others)

    @property
    def ffn_tile(self) -> int:
        """Most columns of a tile of gate and up, or of a part that is made at once."""
        return max(piece.nt for part in self.feed_forwards for piece in part.gate.parts)

    @property
    def pairs(self) -> int:
        """Most pairs of a row and one of its experts in a step; rows of h. One a row where there are no experts."""
        return self.rows * (self.model.experts.top_k if self.model.experts is not None else 1)

    @property
    def ahead(self) -> dict[str, int]:
        """Slots of each tile of a class (of its first part) that are asked for before attention: of o, and then of what
        follows it, as many as there are slots, which nobody frees meanwhile. Tiles of gate take turns with those of up:
        one at most."""
        counts: dict[str, int] = {}
        for experts in (False, True):
            room = self.slots
            for linear in self.after_attention(experts):
                tiles = self.most_tiles(linear)
                if tiles > 1 and (linear.name in ("gate", "up") or tiles * linear.slots_per_part > room):
                    break
                counts[linear.name] = min(room, linear.slots_per_part)
                room -= tiles * counts[linear.name]
        return {name: count for name, count in counts.items() if count}

    def after_attention(self, experts: bool) -> tuple[LinearPlan, ...]:
        """The classes whose weights are the first that a layer, with or without experts, needs after attention; none
        where matrices of heads come between."""
        if self.model.latent is not None:
            return ()
        if experts:
            return (self.o,) if self.router is None else (self.o, self.router)
        part = self if self.router is None else self.dense
        return (self.o,) if part is None else (self.o, part.gate, part.up)

    @property
    def slot_bytes(self) -> int:
        """Bytes of codes of a weight slot, the same for every class."""
        return padded(max(p.slot_elements * FORMATS[p.format].bits // 8 for p in self.linears), 64)

    @property
    def slots(self) -> int:
        """Weight slots; a semaphore counts them. Scales lie apart, for 8-bit and 4-bit codes each."""
        widths = {FORMATS[p.format].bits for p in self.linears}
        each = self.slot_bytes + sum(self.slot_bytes * 8 // bits // BLOCK for bits in widths)
        return min(self.chip.slots_bytes // each, 128)

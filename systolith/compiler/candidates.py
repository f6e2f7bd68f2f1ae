"""Plans to try, the one with most rows a step first: how matrices are cut, how much attention takes at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from systolith.compiler.model import DecoderModel
from systolith.compiler.options import Options
from systolith.compiler.plan import FeedForward, LinearPlan, Plan, padded, spans_of, weight_format
from systolith.compiler.team import MOST_MEMBERS, teams_of
from systolith.models.profile import TWO_TERMS, Profile
from systolith.numerics.formats import FORMATS
from systolith.spec.chip import Chip
from systolith.spec.errors import CapacityError
from systolith.spec.limits import BLOCK, CHUNK_TOKENS

__all__ = ["candidates"]

MAX_ROWS = 256
"""Most rows of a step: one chunk of attention. More rows reuse weights better only where arithmetic does not bind."""
DEAL_BATCH = 4
"""Least batch whose request slots are dealt out, and whose rows are attended by rounds; fewer requests share lanes, and
have their prompts on the grid."""
CUT_BATCH = 8
"""Least batch whose tiles of gate and up are made in two parts."""
MAX_SIDE = 8
"""Most chunks of a decode row side by side: what a pass of V costs beside its beats is small by then."""


def _divisor(count: int, most: int) -> int:
    """Largest divisor of `count` that is at most `most`, at least 1."""
    return max(i for i in range(1, max(1, min(count, most)) + 1) if count % i == 0)


def _linear(
    chip: Chip, profile: Profile, name: str, n: int, k: int, rows: int, unit: int = 0, copies: int = 1, *,
    level: bool = False,
) -> LinearPlan:  # fmt: skip
    """Cut one class. n: columns, in whole blocks but for the router's, whose sums travel in FP32; unit: columns that
    tiles must divide (a head), or 0; level: whether slices should have alike many columns, even if tiles are narrower.
    """
    chosen = weight_format(profile, name)
    terms = 2 if chosen == TWO_TERMS else 1
    fmt = FORMATS["INT8" if chosen == TWO_TERMS else chosen]
    spans = spans_of(profile, name)
    blocks = k // BLOCK
    run = -(-blocks // spans)
    lengths = [min(run, blocks - i * run) for i in range(spans) if i * run < blocks]
    # Widest tile that the accumulator, the arrays and an even share allow; where slots are large, one of which a
    # fifteenth of the slots holds eight blocks of K, so that what a slot gives back is soon under way again.
    most = chip.accumulator_words // 2 // (rows * len(lengths)) // BLOCK
    block_bytes = terms * (BLOCK * fmt.bits // 8 + 1)
    narrow = chip.slots_bytes // 15 // (8 * block_bytes) // BLOCK
    if unit:
        nt = BLOCK * _divisor(unit // BLOCK, min(most, max(1, chip.columns // BLOCK), narrow or 16))
    elif name == "router":
        nt = _divisor(n, min(BLOCK * most, max(1, n // chip.slices), 256))
    else:
        even = max(1, n // BLOCK // chip.slices)
        wide = min(most, even, max(1, chip.columns // BLOCK), narrow or 16)
        nt = BLOCK * (_even_divisor(n // BLOCK, wide, chip.slices) if level else _divisor(n // BLOCK, wide))
    kt = _slot_length(chip, nt, block_bytes, lengths)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    cuts = tuple((BLOCK * s, BLOCK * length) for s, length in zip(starts, lengths, strict=True))
    return LinearPlan(name, n, k, nt, kt, cuts, terms, fmt.name, n // nt, copies)


def _even_divisor(count: int, most: int, slices: int) -> int:
    """Largest divisor of `count` that is at most `most`, of those that leave the slice with most items hardly more than
    it need have."""
    shares = {i: -(-(count // i) // slices) * i for i in range(1, most + 1) if count % i == 0}
    least = min(shares.values())
    return max(i for i, share in shares.items() if share <= least + least // 64)


def _slot_length(chip: Chip, nt: int, block_bytes: int, lengths: list[int]) -> int:
    """Elements of K in a slot of a tile of `nt` columns; lengths: blocks of each span.

    A slot holds whole blocks of K. Four slots or more let weights run ahead; three larger ones serve a small chip
    better than seven that hold a single block each.
    """
    fits = [chip.slots_bytes // count // (nt * block_bytes) for count in (15, 4, 3)]
    fit = next((f for f, least in zip(fits, (8, 2, 1), strict=True) if f >= least), 1)
    return _divisor(math.gcd(*lengths), fit) * BLOCK


def _evenly(chip: Chip, linear: LinearPlan, unit: int, rows: int, most: int) -> LinearPlan:
    """The same class with its columns dealt out evenly, where the slice that has most then has fewer: else as it is.

    unit: columns that belong to one slice; most: columns of the slice that has most as it is.
    """
    slices = chip.slices
    spans = len(linear.spans)
    room = chip.accumulator_words // 2 // (rows * spans)
    bits = FORMATS[linear.format].bits
    block_bytes = linear.terms * (BLOCK * bits // 8 + 1)
    wide = min(room, max(BLOCK, chip.columns), max(BLOCK, chip.slots_bytes // 15 // (8 * block_bytes)))
    made = -(-linear.n // slices)
    tiles = -(-made // wide)
    nt = -(-made // tiles)
    made = nt * tiles
    carried = [rank * made % unit for rank in range(slices)]  # columns from the slice before
    if made >= most or unit & (unit - 1) or any(tail > made for tail in carried):
        return linear
    lengths = [length // BLOCK for _, length in linear.spans]
    kt = _slot_length(chip, nt, block_bytes, lengths)
    return replace(linear, n=slices * made, nt=nt, kt=kt, tiles=slices * tiles, unit=unit)


def _even_plan(base: Plan, rows: int) -> Plan:
    """The plan with columns dealt out evenly where that helps: q, k and v; o and down; gate and up of experts. Whole
    heads of a batch go to the slices that have their units and to no others (`Plan.receivers`): these stay whole."""
    chip, m = base.chip, base.model
    if chip.slices == 1 or m.latent is not None or m.post_norms is not None or base.shared is not None:
        return base

    def most(linear: LinearPlan) -> int:
        return base.most_tiles(linear) * linear.nt

    alike = len({(x.spans, m.bias(x.name)) for x in (base.q, base.k, base.v)}) == 1
    heads = max(sum(n for _, n in base.head_shares(rank)) for rank in range(chip.slices))
    found = base
    if alike and base.slot_groups == 1:
        whole = replace(base.q, name="qkv", n=base.q.n + base.k.n + base.v.n)
        even = _evenly(chip, whole, base.dp, rows, heads * base.dp)
        if even.unit:
            found = replace(found, qkv=even)
    o, down = (_evenly(chip, x, BLOCK, rows, most(x)) for x in (base.o, base.down))
    if o.unit and down.unit and base.dense is None:
        found = replace(found, o=o, down=down)
    gate, up = (_evenly(chip, x, BLOCK, rows, most(x)) for x in (base.gate, base.up))
    if m.experts is not None and gate.unit and up.unit:
        found = replace(found, gate=gate, up=up)
    return found


def _cut(chip: Chip, linear: LinearPlan) -> LinearPlan:
    """The same with tiles made in two parts, the first of whole arrays."""
    half = padded(-(-linear.nt // 2), padded(chip.array_cols))
    block_bytes = linear.terms * (BLOCK * FORMATS[linear.format].bits // 8 + 1)
    kt = _slot_length(chip, half, block_bytes, [length // BLOCK for _, length in linear.spans])
    return replace(linear, cuts=(half, linear.nt - half), kt=kt) if half < linear.nt else linear


def kv_entries(chip: Chip, profile: Profile, dp: int) -> int:
    """Chunks of K or V that the ring should hold: one in use and one being given back, and half as much again as what
    the memory delivers within its latency, or three of each: K and V of old positions come while q is being made."""
    chunk = CHUNK_TOKENS * dp * FORMATS[profile.k].bits // 8
    under_way = chip.dram_latency_cycles * chip.dram_bytes_per_cycle * 3 / 2
    return 2 + min(14, max(6, int(under_way / chunk)))


def candidates(
    model: DecoderModel, profile: Profile, chip: Chip, options: Options, *, rounds: bool = True,
    team: int = MOST_MEMBERS, norms: bool = True,
) -> Iterator[Plan]:  # fmt: skip
    """Plans from the one with most rows a step downwards; the first that fits in memory is taken. rounds: whether
    decode rows of a batch may be attended several chunks at once; team, norms: as in `teams_of`.

    Raises CapacityError where not even the accumulator holds one row.
    """
    dp = padded(model.head_dim)
    half = chip.accumulator_words // 2
    spans = max(profile.spans.values())
    group_queries = model.heads // model.kv_heads
    lanes = profile.lanes
    assert lanes is not None
    active = 1 << (min(lanes, -(-options.context // CHUNK_TOKENS)) - 1).bit_length()
    share_slices = 1 << (max(1, chip.slices // model.kv_heads).bit_length() - 1)
    # A batch deals its request slots out over the slices of a head: what a slice then has of a request it merges alone.
    # Where requests come and go they may share pages of a prefix, which lie in every slot's reach.
    few = options.serve or model.latent is not None or options.batch < DEAL_BATCH
    slots = 1 if few else min(share_slices, 1 << options.batch.bit_length() - 1)
    group = min(active, share_slices // slots)
    top = min(MAX_ROWS, half // (BLOCK * spans), options.rows or MAX_ROWS)
    if top < 1 or half < max(dp, BLOCK) * group_queries:
        raise CapacityError(
            f"{chip.name}: accumulator_bytes={chip.accumulator_bytes} is too small for {model.name}: two halves must "
            f"each hold {max(dp, BLOCK) * group_queries} sums ({group_queries} query heads of {dp}); take a larger chip"
        )
    sizes = {top >> i for i in range(top.bit_length())} | {top}
    experts, prefix = model.experts, "expert_" if model.experts is not None else ""
    copies = experts.count if experts is not None else 1
    # Attention: 32 query rows at a time use the arrays well; chunks that come whole can be loaded ahead, as many as the
    # memory needs to have under way.
    tokens_at_a_time = [t for t in (32, 16, 8, 4, 2, 1) if t == 1 or t * group_queries <= 32]
    latent = model.latent
    ahead = kv_entries(chip, profile, dp if latent is None else dp + padded(latent.turned))
    # Chunks of a decode row side by side: one pass of V over several takes little longer than over one.
    side = min(active // group, MAX_SIDE, half // (max(CHUNK_TOKENS, dp) * group_queries))
    batched = rounds and options.batch >= DEAL_BATCH and group == 1 and latent is None and side > 0
    sides = (1 << side.bit_length() - 1, 0) if batched else (0,)
    # A batch takes what room there is: while slices wait for each other memory is idle, unless it has where to load to.
    depths = {ahead, 2 + ahead // 2, 2} | (set(range(ahead, ahead + 2 * side + 1, 2)) if batched else set())
    shapes = [
        (tokens, part, entries, together)
        for tokens in tokens_at_a_time
        for part in (256, 128, 64, 32)
        for entries in (sorted(depths, reverse=True) if part == CHUNK_TOKENS else (2,))
        for together in (sides if part == CHUNK_TOKENS else (0,))
    ]
    shapes.sort(key=lambda shape: -shape[3])  # of a batch first those that attend its rows by rounds
    # Rounds are worth half the rows of a step, which prompts would make use of.
    passes = [(rows, [s for s in shapes if s[3]]) for rows in sizes if batched and 2 * rows >= top]
    passes.sort(key=lambda each: -each[0])
    passes += [(rows, shapes) for rows in sorted(sizes, reverse=True)]
    for rows, tried in passes:
        base = Plan(
            model, profile, chip, options, rows, True, True, 1, BLOCK, 2, dp, lanes, group, slots, active // group, 0,
            **_attention(model, chip, profile, rows, dp), team=1, team_norms=False,
            o=_linear(chip, profile, "o", padded(model.hidden), model.heads * padded(model.value_dim), rows),
            gate=_linear(chip, profile, prefix + "gate", padded(model.inner), padded(model.hidden), rows, 0, copies),
            up=_linear(chip, profile, prefix + "up", padded(model.inner), padded(model.hidden), rows, 0, copies),
            down=_linear(chip, profile, prefix + "down", padded(model.hidden), padded(model.inner), rows, 0, copies),
            head=_linear(chip, profile, "head", padded(model.vocab), padded(model.hidden), rows, level=slots == 1),
            router=None if experts is None else _linear(chip, profile, "router", copies, padded(model.hidden), rows),
            dense=_feed_forward(model, chip, profile, "", rows) if prefix else None,
            shared=_feed_forward(model, chip, profile, "shared_", rows),
        )  # fmt: skip
        # One tile of columns of the hidden dimension serves o and down (the residual shard), one of FF gate and up.
        o_nt = min(base.o.nt, *(part.down.nt for part in base.feed_forwards))
        main, *others = (_narrow_part(part, o_nt) for part in base.feed_forwards)
        dense = others.pop(0) if base.dense is not None else None
        base = replace(
            base, o=_narrow(base.o, o_nt), down=main.down, gate=main.gate, up=main.up, dense=dense,
            shared=others.pop() if others else None,
        )  # fmt: skip
        # What a batch sends of h takes long: the first half of a tile is on its way while the second is made.
        if options.batch >= CUT_BATCH and base.dense is None and experts is None and not options.dump:
            gate, up = _cut(chip, base.gate), _cut(chip, base.up)
            if not (model.bias("gate") or model.bias("up")):
                base = replace(base, gate=gate, up=up)
        # Even columns take some room: rather as many rows without.
        even = _even_plan(base, rows)
        ways = [(even, True)] * (even is not base) + [(base, True), (base, False)]
        # All heads read a latent, and their partials travel: where there is no room for those of many slices, fewer.
        groups = [group] if latent is None else [group >> i for i in range(group.bit_length())]
        for way, resident in ways:
            members, with_norms = teams_of(way, team, norms=norms)
            for shared in groups:
                for tokens, part, entries, together in tried:
                    if tokens <= rows and tokens * group_queries * max(part, dp) <= half:
                        for gains in (True, False) if model.post_norms is None else (True,):
                            yield replace(way, x_resident=resident, gains_resident=gains, tile_tokens=tokens,
                                          part_tokens=part, kv_entries=entries, group=shared, round_chunks=together,
                                          lanes_local=active // shared, team=members,
                                          team_norms=with_norms)  # fmt: skip


def _attention(model: DecoderModel, chip: Chip, profile: Profile, rows: int, dp: int) -> dict[str, LinearPlan]:
    """The classes up to attention."""
    hidden, heads, latent = padded(model.hidden), model.heads, model.latent

    def linear(name: str, n: int, k: int, unit: int = 0) -> LinearPlan:
        return _linear(chip, profile, name, n, k, rows, unit)

    if latent is None:
        sizes = {"q": heads * dp, "k": model.kv_heads * dp, "v": model.kv_heads * dp}
        return {name: linear(name, n, hidden, dp) for name, n in sizes.items()}
    plain, turned, value = padded(latent.plain), padded(latent.turned), padded(latent.value)
    q_rank = padded(latent.q_rank or 0)
    plans = {
        "q": linear("q", heads * (plain + turned), q_rank or hidden, plain + turned),
        "k": linear("k", heads * dp, plain, dp),
        "v": linear("v", heads * value, dp, value),
        "kv_a": linear("kv_a", dp + turned, hidden),
    }
    return plans | ({"q_a": linear("q_a", q_rank, hidden)} if q_rank else {})


def _feed_forward(model: DecoderModel, chip: Chip, profile: Profile, prefix: str, rows: int) -> FeedForward | None:
    """The classes gate, up and down with a prefix, where the model has them."""
    if prefix + "gate" not in model.matrices:
        return None
    inner, hidden = padded(model.inner_of(prefix + "gate")), padded(model.hidden)
    return FeedForward(
        _linear(chip, profile, prefix + "gate", inner, hidden, rows),
        _linear(chip, profile, prefix + "up", inner, hidden, rows),
        _linear(chip, profile, prefix + "down", hidden, inner, rows),
    )


def _narrow_part(part: FeedForward, o_nt: int) -> FeedForward:
    """The same with one width of tiles for gate and up, and a given one for down."""
    nt = min(part.gate.nt, part.up.nt)
    return FeedForward(_narrow(part.gate, nt), _narrow(part.up, nt), _narrow(part.down, o_nt))


def _narrow(linear: LinearPlan, nt: int) -> LinearPlan:
    """The same with tiles of `nt` columns."""
    return replace(linear, nt=nt, tiles=linear.n // nt)

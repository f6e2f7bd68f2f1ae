"""Weights and tables as they lie in DRAM: quantised, cut into slots in the order in which the program takes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.context import Cell, Constant
from systolith.compiler.grid import Grid, GridLinear
from systolith.compiler.memory import CONST_WORDS, TEAM_WORDS, Memory, owner_words
from systolith.compiler.plan import LinearPlan, Plan, padded, share
from systolith.isa.program import Image
from systolith.models.checkpoint import Checkpoint
from systolith.models.rope import tables
from systolith.numerics import constants, fp32, functions
from systolith.numerics.formats import FORMATS, Format
from systolith.numerics.vector import pack_e2m1, quantise, quantise_two_term
from systolith.spec.limits import BLOCK

__all__ = ["control_images", "images", "rank_table"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def rank_table(plan: Plan, rank: int) -> list[int]:
    """Words for cells 9 and up: first and number of tiles, heads and units of a rank; the 16th is the host's."""
    words: list[int] = []
    words += plan.residual_share(rank)
    for heads in plan.head_shares(rank):
        words += heads
    words += plan.owned(plan.gate, rank) if plan.gate.unit else share(plan.gate.tiles, plan.slices, rank)
    words += share(plan.head.tiles, plan.slices, rank)
    first, count = plan.unit_share(rank)
    words += (first, count)
    words.append(first // plan.group * plan.group if plan.group > 1 else 0)
    words.append(0)  # the host's: steps
    gates = [None if part is None else part.gate for part in (plan.dense, plan.shared)]
    for linear in (plan.router, *gates):
        words += (0, 0) if linear is None else share(linear.tiles, plan.slices, rank)
    # No class that is dealt out evenly goes to a few slices only: the first of these cells has either.
    receivers = [plan.receivers(name, rank)[0] for name in "qkv"]
    words += [(rank + 1) % plan.slices, 0, 0] if plan.dealt_evenly else receivers
    if plan.team > 1:
        behind = [rank // plan.team * plan.team + (rank + i) % plan.team for i in range(plan.team)]
        words += behind[:TEAM_WORDS]
        more = Cell.TEAM_MORE - Cell.O_FIRST
        words[more : more + len(behind[TEAM_WORDS:])] = behind[TEAM_WORDS:]
    return words


def images(plan: Plan, memory: Memory, checkpoint: Checkpoint, grid: Grid | None = None) -> Iterator[Image]:
    """All initial contents of DRAM, a region and slice at a time."""
    yield from control_images(plan, memory, grid)
    if grid is not None:
        yield from _grid_images(grid, memory, checkpoint)
    yield from _rotary(plan, memory)
    model = plan.model
    yield from _gains(plan, memory, checkpoint)
    yield from _embedding(plan, memory, checkpoint)
    yield from _sinks(plan, memory, checkpoint)
    if model.experts is not None and model.experts.correction is not None:
        ref = model.experts.correction
        table = np.stack([checkpoint.tensor(ref.at(layer)) for layer in model.layers_of("router")])
        yield Image(-1, memory.dram["correction"], np.ascontiguousarray(table, np.float32).tobytes())
    for linear in plan.linears:
        yield from _matrices(plan, memory, checkpoint, linear)
        if model.bias(linear.name):
            yield from _biases(plan, memory, checkpoint, linear)


def control_images(plan: Plan, memory: Memory, grid: Grid | None = None) -> Iterator[Image]:
    """What the program's control reads: constants, the same on every slice, and each slice's share of the work."""
    m = plan.model
    words = np.zeros(CONST_WORDS, np.uint32)
    words[Constant.ONE] = fp32.to_bits(1.0)
    words[Constant.EMPTY] = 1 << 31
    words[Constant.SCORE_SCALE] = fp32.to_bits(constants.score_scale(m.head_dim, m.scale))
    words[Constant.MEAN] = fp32.to_bits(constants.mean_scale(m.hidden))
    words[Constant.EPS] = fp32.to_bits(constants.eps_constant(m.eps))
    words[Constant.MINUS_LOG2E] = fp32.to_bits(-constants.LOG2E)
    words[Constant.INT_ONE] = 1
    words[Constant.EMBED_SCALE] = fp32.to_bits(fp32.round_f32(m.embed_scale))
    words[Constant.GELU_0] = fp32.to_bits(constants.GELU_LINEAR)
    words[Constant.GELU_1] = fp32.to_bits(constants.GELU_CUBIC)
    words[Constant.ROUTE_TINY] = fp32.to_bits(fp32.round_f32(1e-20))
    words[Constant.MOST] = (1 << 31) - 1
    words[Constant.MINUS_INFINITY] = fp32.to_bits(-math.inf)
    if m.latent is not None:
        words[Constant.MEAN_Q] = fp32.to_bits(constants.mean_scale(m.latent.q_rank or 1))
        words[Constant.MEAN_LATENT] = fp32.to_bits(constants.mean_scale(m.latent.rank))
        words[Constant.EPS_LOW] = fp32.to_bits(constants.eps_constant(m.latent.eps))
    if m.head_norms is not None:
        words[Constant.MEAN_HEAD] = fp32.to_bits(constants.mean_scale(m.head_dim))
    if m.experts is not None:
        words[Constant.LOG2E] = fp32.to_bits(constants.LOG2E)
        for place, value in (
            (Constant.ALPHA, m.experts.alpha), (Constant.LIMIT, m.experts.limit),
            (Constant.MINUS_LIMIT, -m.experts.limit), (Constant.ROUTE_SCALE, m.experts.scale),
        ):  # fmt: skip
            words[place] = fp32.to_bits(fp32.round_f32(value))
    yield Image(-1, memory.dram["consts"], words.tobytes())
    if plan.logits_dealt:
        yield Image(-1, memory.dram["owners"], np.arange(owner_words(plan), dtype=np.uint32).tobytes())
    if m.experts is not None and m.experts.score == "sigmoid":
        numbers = [*range(0, plan.rows * m.experts.count, m.experts.count), *range(m.experts.groups)]
        yield Image(-1, memory.dram["route_numbers"], np.array(numbers, np.uint32).tobytes())
    for rank in range(plan.slices):
        words = np.zeros(32, np.uint32)
        table = rank_table(plan, rank)
        words[: len(table)] = table
        if grid is not None:
            words[29], words[31] = rank // grid.members * grid.members, rank % grid.members
            lanes = np.arange(grid.owner_words) % plan.profile_lanes // plan.lanes_local % plan.group
            slots = np.arange(plan.slot_groups)[:, None] * plan.group
            owners = rank // grid.members * plan.head_units + slots + lanes
            yield Image(rank, memory.dram["grid_owners"], owners.astype(np.uint32).tobytes())
            if grid.o.k > plan.o.k:  # nobody sends the zeros behind the heads of a group
                for name, size in grid.operand_of_o:
                    yield Image(rank, memory.dram[name], bytes(size))
        yield Image(rank, memory.dram["ranks"], words.tobytes())


def _rotary(plan: Plan, memory: Memory) -> Iterator[Image]:
    """Rotary tables, the same on every slice."""
    m = plan.model
    for number, (theta, scaling) in enumerate(m.ropes):
        for name, table in zip(("cos", "sin"), tables(m.turned, theta, scaling, plan.options.context), strict=True):
            data = np.ascontiguousarray(table, np.float32).tobytes()
            yield Image(-1, memory.dram[name] + number * len(data), data)


def _padded_to(values: Floats, shape: tuple[int, ...]) -> Floats:
    if values.shape == shape:
        return values
    out = np.zeros(shape, np.float32)
    out[tuple(slice(0, n) for n in values.shape)] = values
    return out


def _gains(plan: Plan, memory: Memory, checkpoint: Checkpoint) -> Iterator[Image]:
    """Gains of the norms in the order of their use, each slice's shard: those of each layer, and the final one."""
    m = plan.model
    rows = []
    for layer in range(m.layers):
        rows += [checkpoint.tensor(ref.at(layer)) for ref in m.layer_norms]
    rows.append(checkpoint.tensor(m.final_norm.at(None)))
    table = _padded_to(np.stack(rows), (len(rows), padded(m.hidden)))
    shard = plan.shard
    for rank in range(plan.slices):
        first, count = plan.residual_share(rank)
        part = table[:, first * plan.residual_part : (first + count) * plan.residual_part]
        yield Image(rank, memory.dram["g"], _padded_to(part, (len(rows), shard)).tobytes())
    if m.head_norms is not None:
        heads = [checkpoint.tensor(ref.at(layer)) for layer in range(m.layers) for ref in m.head_norms]
        yield Image(-1, memory.dram["g_head"], np.concatenate(heads).tobytes())
    if m.latent is not None:
        refs = [ref for ref in (m.latent.q_norm, m.latent.norm) if ref is not None]
        low = [checkpoint.tensor(ref.at(layer)) for layer in range(m.layers) for ref in refs]
        yield Image(-1, memory.dram["g_low"], np.concatenate(low).astype(np.float32).tobytes())


def _bytes(codes: Bytes, fmt: Format) -> Bytes:
    """Codes as they are stored."""
    return pack_e2m1(codes) if fmt.bits == 4 else codes


def _embedding(plan: Plan, memory: Memory, checkpoint: Checkpoint) -> Iterator[Image]:
    """The table's rows, each slice's columns of the residual stream."""
    m, fmt = plan.model, FORMATS[plan.profile.embed]
    codes, scales = quantise(checkpoint.tensor(m.table.at(None)), fmt, pad=True)
    nt = plan.residual_part
    shard = plan.shard
    for rank in range(plan.slices):
        first, count = plan.residual_share(rank)
        if not count:
            continue
        part = np.zeros((m.vocab, shard), np.uint8)
        part[:, : count * nt] = codes[:, first * nt : (first + count) * nt]
        scale = np.zeros((m.vocab, shard // BLOCK), np.uint8)
        scale[:, : count * nt // BLOCK] = scales[:, first * nt // BLOCK : (first + count) * nt // BLOCK]
        yield Image(rank, memory.dram["table"], _bytes(part, fmt).tobytes())
        yield Image(rank, memory.dram["table_scales"], scale.tobytes())


def _grid_images(grid: Grid, memory: Memory, checkpoint: Checkpoint) -> Iterator[Image]:
    """What only a prefill on the grid reads: gains and table rows of a column group's columns, and the matrices, as
    many columns of each product a slice."""
    plan, m = grid.plan, grid.plan.model
    gains = [checkpoint.tensor(ref.at(layer)) for layer in range(m.layers) for ref in m.layer_norms]
    gains.append(checkpoint.tensor(m.final_norm.at(None)))
    table = _padded_to(np.stack(gains), (len(gains), grid.hidden))
    fmt = FORMATS[plan.profile.embed]
    codes, scales = quantise(checkpoint.tensor(m.table.at(None)), fmt, pad=True)
    codes, scales = (_padded_codes(x, (m.vocab, grid.hidden // unit)) for x, unit in ((codes, 1), (scales, BLOCK)))
    for rank in range(plan.slices):
        first = rank // grid.members * grid.shard
        cut = slice(first, first + grid.shard)
        yield Image(rank, memory.dram["grid_g"], np.ascontiguousarray(table[:, cut], np.float32).tobytes())
        yield Image(rank, memory.dram["grid_table"], _bytes(np.ascontiguousarray(codes[:, cut]), fmt).tobytes())
        blocks = slice(first // BLOCK, (first + grid.shard) // BLOCK)
        yield Image(rank, memory.dram["grid_table_scales"], np.ascontiguousarray(scales[:, blocks]).tobytes())
    for layer in range(m.layers):
        if m.bias("q"):
            parts = [_bias(plan, x, checkpoint, layer, None).reshape(grid.groups, -1) for x in (plan.v, plan.k, plan.q)]
            joined = _padded_to(np.concatenate(parts, 1), (grid.groups, grid.qkv.columns))
            for rank in range(plan.slices):
                data = joined[rank // grid.members].tobytes()
                yield Image(rank, memory.dram["grid_bias"] + layer * len(data), data)
        weights = _grid_weights(grid, checkpoint, layer)
        for name, part in zip(("grid_w", "grid_w_scales"), weights, strict=True):
            for rank in range(plan.slices):
                data = np.ascontiguousarray(part[rank]).tobytes()
                yield Image(rank, memory.dram[name] + layer * len(data), data)


def _grid_weights(grid: Grid, checkpoint: Checkpoint, layer: int) -> tuple[Bytes, Bytes]:
    """A layer's weights for the grid: codes and scales [slices, bytes], round by round in the order of use."""
    plan, m = grid.plan, grid.plan.model
    hidden, inner = padded(m.hidden), padded(m.inner)

    def matrix(linear: LinearPlan, n: int = 0) -> tuple[Bytes, Bytes]:
        return _quantised(plan, replace(linear, n=n or linear.n), checkpoint, layer, None)

    heads = [matrix(x) for x in (plan.v, plan.k, plan.q)]
    others = [matrix(plan.o, hidden), matrix(plan.gate, inner), matrix(plan.up, inner), matrix(plan.down, hidden)]
    found = []
    for which, unit in ((0, 1), (1, BLOCK)):
        # Column group by column group: its value head, its key head, its query heads.
        qkv = np.concatenate([x[which].reshape(grid.groups, -1, x[which].shape[1]) for x in heads], 1)
        tables = [_with_rows(qkv, grid.qkv.columns), *(x[which] for x in others)]
        # Zeros behind the heads of each group, too, where they fill no whole parts.
        o = tables[1].reshape(hidden * grid.groups, -1)
        tables[1] = _padded_codes(o, (len(o), grid.o.k // grid.groups * grid.terms // unit)).reshape(hidden, -1)
        rounds = [_rounds(grid, x, table, unit) for x, table in zip(grid.linears, tables, strict=True)]
        # Products of gate and up take turns.
        rounds[2:4] = [np.stack(rounds[2:4], 2)]
        found.append(np.concatenate([x.reshape(plan.slices, -1) for x in rounds], 1))
    return _bytes(found[0], FORMATS[grid.format]), found[1]


def _rounds(grid: Grid, linear: GridLinear, table: Bytes, unit: int) -> Bytes:
    """Codes or scales [.., n, k] of a class, dealt out: [slices, products, rounds of a product, a slice's of one]."""
    k, own = linear.k * grid.terms // unit, linear.wide // grid.members
    whole = _padded_codes(table.reshape(-1, table.shape[-1]), (grid.groups * linear.columns, k))
    cut = whole.reshape(grid.groups, linear.products, grid.members, own, linear.rounds, -1)
    return cut.transpose(0, 2, 1, 4, 3, 5).reshape(grid.groups * grid.members, linear.products, linear.rounds, -1)


def _sinks(plan: Plan, memory: Memory, checkpoint: Checkpoint) -> Iterator[Image]:
    """M_s and l_s of each query head's sink."""
    m = plan.model
    if "sinks" not in memory.dram:
        return
    if m.sinks is not None:
        values = [float(v) for layer in range(m.layers) for v in checkpoint.tensor(m.sinks.at(layer))]
    else:
        override = plan.profile.sinks(m.heads)
        assert override is not None
        values = [fp32.round_f32(v) for v in override]
    words: list[int] = []
    for start in range(0, len(values), m.heads):
        fixed = [functions.fix(fp32.mul(v, constants.LOG2E)) for v in values[start : start + m.heads]]
        tops = [functions.ceil_fx(F) for F in fixed]
        words += [t & 0xFFFFFFFF for t in tops]
        words += [fp32.to_bits(functions.exp2fx(F, t)) for F, t in zip(fixed, tops, strict=True)]
    yield Image(-1, memory.dram["sinks"], np.array(words, np.uint32).tobytes())


def _rows_of(plan: Plan, linear: LinearPlan) -> int:
    """Rows of a head in the matrix, or 0 where columns are not heads."""
    return plan.model.head_dim if linear.name in ("q", "k", "v") else 0


def _shape_weight(plan: Plan, linear: LinearPlan, weight: Floats) -> Floats:
    """Pad a matrix [N, K] to [n, k]; heads one by one, along N for q, k, v, along K for o."""
    m, dp, d = plan.model, plan.dp, plan.model.head_dim
    if m.latent is not None:
        weight = _latent_rows(plan, linear.name, weight)
        if linear.name == "o":
            heads = weight.reshape(-1, m.heads, m.value_dim)
            weight = _padded_to(heads, (weight.shape[0], m.heads, plan.vp)).reshape(weight.shape[0], -1)
        return _padded_to(weight, (linear.n, linear.k))
    if _rows_of(plan, linear) and dp != d:
        heads = weight.shape[0] // d
        weight = _padded_to(weight.reshape(heads, d, -1), (heads, dp, weight.shape[1])).reshape(heads * dp, -1)
    if linear.name == "o" and dp != d:
        weight = _padded_to(weight.reshape(-1, m.heads, d), (weight.shape[0], m.heads, dp)).reshape(weight.shape[0], -1)
    return _padded_to(weight, (linear.n, linear.k))


def _latent_rows(plan: Plan, name: str, rows: Floats) -> Floats:
    """Rows of a matrix (or entries of a bias) of latent attention in the order of its columns on the chip: plain or
    latent ones, turned ones, each padded; pairs that lie side by side become two halves (docs/numerics.md, "MLA")."""
    latent, heads = plan.model.latent, plan.model.heads
    assert latent is not None
    if name in ("k", "v"):  # a stack, a matrix for each head
        each, wide = (latent.rank, plan.dp) if name == "k" else (latent.value, plan.vp)
        shape = (heads, wide, rows.shape[-1])
        return _padded_to(rows.reshape(heads, each, -1), shape).reshape(heads * wide, -1)
    if name not in ("q", "kv_a"):
        return rows
    count, first = (heads, latent.plain) if name == "q" else (1, latent.rank)
    parts = rows.reshape(count, first + latent.turned, *rows.shape[1:])
    turned = parts[:, first:]
    if latent.interleaved:
        turned = np.concatenate([turned[:, 0::2], turned[:, 1::2]], 1)
    whole = np.zeros((count, padded(first) + padded(latent.turned), *rows.shape[1:]), np.float32)
    whole[:, :first] = parts[:, :first]
    whole[:, padded(first) : padded(first) + latent.turned] = turned
    return whole.reshape(-1, *rows.shape[1:])


def _matrices(plan: Plan, memory: Memory, checkpoint: Checkpoint, linear: LinearPlan) -> Iterator[Image]:
    """One class: for each layer and tile the slots of K, each [nt, kt] codes; scales in a region of their own.

    Experts begin at multiples of what the slice with most tiles has, so that a number finds each.
    """
    offsets = dict.fromkeys(range(plan.slices), (memory.dram[f"w_{linear.name}"], memory.dram[f"ws_{linear.name}"]))
    for layer, expert in _instances(plan, linear):
        codes, scales = _slots(linear, *_quantised(plan, linear, checkpoint, layer, expert))
        most = plan.most_tiles(linear) if linear.copies > 1 else 0
        for rank in range(plan.slices):
            first, count = plan.tile_share(linear, rank)
            c, s = codes[first : first + count], scales[first : first + count]
            at, scale_at = offsets[rank]
            if count:
                yield Image(rank, at, c.tobytes())
                yield Image(rank, scale_at, s.tobytes())
            pitch = max(most, count)
            offsets[rank] = (at + pitch * codes[0].nbytes, scale_at + pitch * scales[0].nbytes)


def _instances(plan: Plan, linear: LinearPlan) -> Iterator[tuple[int | None, int | None]]:
    """Layer and expert of each matrix (or bias) of a class, in the order in which they lie."""
    for layer in (0,) if linear.name == "head" else plan.model.layers_of(linear.name):
        for expert in range(linear.copies):
            yield None if linear.name == "head" else layer, expert if linear.copies > 1 else None


def _quantised(
    plan: Plan, linear: LinearPlan, checkpoint: Checkpoint, layer: int | None, expert: int | None
) -> tuple[Bytes, Bytes]:
    """Codes and scales of a matrix, padded; as they lie in the checkpoint where that has them in this format."""
    if linear.name == "qkv":
        parts = [
            _quantised(plan, replace(linear, name=part.name, n=part.n), checkpoint, layer, expert)
            for part in (plan.q, plan.k, plan.v)
        ]
        codes, scales = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        return _padded_codes(codes, (linear.n, codes.shape[1])), _padded_codes(scales, (linear.n, scales.shape[1]))
    ref, fmt = plan.model.matrices[linear.name].weight, FORMATS[linear.format]
    of_heads = ref.experts > 0 and expert is None
    stored = checkpoint.blocks(ref, layer, expert) if linear.format == "E2M1" and not of_heads else None
    if stored is not None:
        codes, scales = stored
        return _padded_codes(codes, (linear.n, linear.k)), _padded_codes(scales, (linear.n, linear.k // BLOCK))
    if of_heads:  # one below the other
        weight = np.concatenate([checkpoint.weight(ref, layer, head) for head in range(ref.experts)])
    else:
        weight = checkpoint.weight(ref, layer, expert)
    weight = _shape_weight(plan, linear, weight)
    if linear.terms == 2:
        c1, s1, c2, s2 = quantise_two_term(weight, fmt)
        n = weight.shape[0]
        codes = np.stack([c1.reshape(n, -1, BLOCK), c2.reshape(n, -1, BLOCK)], axis=2).reshape(n, -1)
        return codes, np.stack([s1, s2], axis=2).reshape(n, -1)
    return quantise(weight, fmt)


def _padded_codes(codes: Bytes, shape: tuple[int, int]) -> Bytes:
    out = np.zeros(shape, np.uint8)
    out[: codes.shape[0], : codes.shape[1]] = codes
    return out


def _with_rows(groups: Bytes, rows: int) -> Bytes:
    """[groups, n, k] with zeros behind the rows of each group."""
    out = np.zeros((groups.shape[0], rows, groups.shape[2]), np.uint8)
    out[:, : groups.shape[1]] = groups
    return out


def _slots(linear: LinearPlan, codes: Bytes, scales: Bytes) -> tuple[Bytes, Bytes]:
    """Cut codes [n, k * terms]: codes [tiles, bytes], scales [tiles, bytes]: part by part of a tile, slot by slot.
    The first parts of all tiles are the first columns."""
    width, tiles = linear.kt * linear.terms, linear.tiles

    def cut(table: Bytes, unit: int) -> Bytes:
        """[n, k * terms / unit] to [tiles, bytes]."""
        whole, start, pieces = table.reshape(tiles * linear.nt, -1), 0, []
        for part in linear.parts:
            columns = whole[tiles * start : tiles * (start + part.nt)].reshape(tiles, part.nt, -1, width // unit)
            pieces.append(columns.transpose(0, 2, 1, 3).reshape(tiles, -1))
            start += part.nt
        return np.ascontiguousarray(np.concatenate(pieces, 1))

    return _bytes(cut(codes, 1), FORMATS[linear.format]), cut(scales, BLOCK)


def _biases(plan: Plan, memory: Memory, checkpoint: Checkpoint, linear: LinearPlan) -> Iterator[Image]:
    """Biases of one class in the order of the tiles."""
    offsets = dict.fromkeys(range(plan.slices), memory.dram[f"bias_{linear.name}"])
    most = plan.most_tiles(linear) if linear.copies > 1 else 0
    for layer, expert in _instances(plan, linear):
        bias = _bias(plan, linear, checkpoint, layer, expert)
        for rank in range(plan.slices):
            first, count = plan.tile_share(linear, rank)
            if count:
                yield Image(rank, offsets[rank], bias[first * linear.nt : (first + count) * linear.nt].tobytes())
            offsets[rank] += 4 * max(most, count) * linear.nt


def _bias(plan: Plan, linear: LinearPlan, checkpoint: Checkpoint, layer: int | None, expert: int | None) -> Floats:
    """A bias, padded; those of q, k and v one behind the other where they are one matrix."""
    if linear.name == "qkv":
        parts = [
            _bias(plan, replace(linear, name=part.name, n=part.n), checkpoint, layer, expert)
            for part in (plan.q, plan.k, plan.v)
        ]
        return _padded_to(np.concatenate(parts), (linear.n,))
    ref = plan.model.matrices[linear.name].bias
    assert ref is not None
    return _shape_weight_bias(plan, linear, checkpoint.weight(ref, layer, expert))


def _shape_weight_bias(plan: Plan, linear: LinearPlan, bias: Floats) -> Floats:
    """Pad a bias as the rows of its matrix."""
    if plan.model.latent is not None:
        return _padded_to(_latent_rows(plan, linear.name, bias), (linear.n,))
    d, dp = plan.model.head_dim, plan.dp
    if _rows_of(plan, linear) and dp != d:
        bias = _padded_to(bias.reshape(-1, d), (bias.shape[0] // d, dp)).reshape(-1)
    return _padded_to(bias, (linear.n,))

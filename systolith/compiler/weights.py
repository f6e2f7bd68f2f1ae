"""Weights and tables as they lie in DRAM: quantised, cut into slots in the order in which the program takes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.context import Constant
from systolith.compiler.memory import Memory
from systolith.compiler.model import DecoderModel
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
    """Words for cells 9 and up: first and number of tiles, heads and units of a rank; the last is the host's."""
    words: list[int] = []
    words += share(plan.o.tiles, plan.slices, rank)
    for heads in plan.head_shares(rank):
        words += heads
    words += share(plan.gate.tiles, plan.slices, rank)
    words += share(plan.head.tiles, plan.slices, rank)
    first, count = plan.unit_share(rank)
    words += (first, count)
    words.append(first // plan.group * plan.group if plan.group > 1 else 0)
    return words


def images(plan: Plan, memory: Memory, checkpoint: Checkpoint) -> Iterator[Image]:
    """All initial contents of DRAM, a region and slice at a time."""
    yield from control_images(plan, memory)
    yield from _rotary(plan, memory)
    model = plan.model
    yield from _gains(plan, memory, checkpoint)
    yield from _embedding(plan, memory, checkpoint)
    yield from _sinks(plan, memory, checkpoint)
    for linear in plan.linears:
        yield from _matrices(plan, memory, checkpoint, linear)
        if model.bias(linear.name):
            yield from _biases(plan, memory, checkpoint, linear)


def control_images(plan: Plan, memory: Memory) -> Iterator[Image]:
    """What the program's control reads: constants, the same on every slice, and each slice's share of the work."""
    m = plan.model
    words = np.zeros(16, np.uint32)
    words[Constant.ONE] = fp32.to_bits(1.0)
    words[Constant.EMPTY] = 1 << 31
    words[Constant.SCORE_SCALE] = fp32.to_bits(constants.score_scale(m.head_dim, m.scale))
    words[Constant.MEAN] = fp32.to_bits(constants.mean_scale(m.hidden))
    words[Constant.EPS] = fp32.to_bits(constants.eps_constant(m.eps))
    words[Constant.MINUS_LOG2E] = fp32.to_bits(-constants.LOG2E)
    words[Constant.INT_ONE] = 1
    if m.head_norms is not None:
        words[Constant.MEAN_HEAD] = fp32.to_bits(constants.mean_scale(m.head_dim))
    yield Image(-1, memory.dram["consts"], words.tobytes())
    for rank in range(plan.slices):
        words = np.zeros(32, np.uint32)
        table = rank_table(plan, rank)
        words[: len(table)] = table
        yield Image(rank, memory.dram["ranks"], words.tobytes())


def _rotary(plan: Plan, memory: Memory) -> Iterator[Image]:
    """Rotary tables, the same on every slice."""
    m = plan.model
    cos, sin = tables(m.head_dim, m.theta, m.scaling, plan.options.context)
    yield Image(-1, memory.dram["cos"], np.ascontiguousarray(cos, np.float32).tobytes())
    yield Image(-1, memory.dram["sin"], np.ascontiguousarray(sin, np.float32).tobytes())


def _padded_to(values: Floats, shape: tuple[int, ...]) -> Floats:
    if values.shape == shape:
        return values
    out = np.zeros(shape, np.float32)
    out[tuple(slice(0, n) for n in values.shape)] = values
    return out


def _gains(plan: Plan, memory: Memory, checkpoint: Checkpoint) -> Iterator[Image]:
    """Gains of the norms in the order of their use, each slice's shard: attention, feed-forward, ..., final."""
    m = plan.model
    rows = []
    for layer in range(m.layers):
        rows += [checkpoint.tensor(m.attention_norm.at(layer)), checkpoint.tensor(m.ffn_norm.at(layer))]
    rows.append(checkpoint.tensor(m.final_norm.at(None)))
    table = _padded_to(np.stack(rows), (len(rows), padded(m.hidden)))
    shard = plan.shard
    for rank in range(plan.slices):
        first, count = share(plan.o.tiles, plan.slices, rank)
        part = table[:, first * plan.o.nt : (first + count) * plan.o.nt]
        yield Image(rank, memory.dram["g"], _padded_to(part, (len(rows), shard)).tobytes())
    if m.head_norms is not None:
        heads = [checkpoint.tensor(ref.at(layer)) for layer in range(m.layers) for ref in m.head_norms]
        yield Image(-1, memory.dram["g_head"], np.concatenate(heads).tobytes())


def _bytes(codes: Bytes, fmt: Format) -> Bytes:
    """Codes as they are stored."""
    return pack_e2m1(codes) if fmt.bits == 4 else codes


def _embedding(plan: Plan, memory: Memory, checkpoint: Checkpoint) -> Iterator[Image]:
    """The table's rows, each slice's columns of the residual stream."""
    m, fmt = plan.model, FORMATS[plan.profile.embed]
    codes, scales = quantise(checkpoint.tensor(m.table.at(None)), fmt, pad=True)
    nt = plan.o.nt
    shard = plan.shard
    for rank in range(plan.slices):
        first, count = share(plan.o.tiles, plan.slices, rank)
        if not count:
            continue
        part = np.zeros((m.vocab, shard), np.uint8)
        part[:, : count * nt] = codes[:, first * nt : (first + count) * nt]
        scale = np.zeros((m.vocab, shard // BLOCK), np.uint8)
        scale[:, : count * nt // BLOCK] = scales[:, first * nt // BLOCK : (first + count) * nt // BLOCK]
        yield Image(rank, memory.dram["table"], _bytes(part, fmt).tobytes())
        yield Image(rank, memory.dram["table_scales"], scale.tobytes())


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
    if _rows_of(plan, linear) and dp != d:
        heads = weight.shape[0] // d
        weight = _padded_to(weight.reshape(heads, d, -1), (heads, dp, weight.shape[1])).reshape(heads * dp, -1)
    if linear.name == "o" and dp != d:
        weight = _padded_to(weight.reshape(-1, m.heads, d), (weight.shape[0], m.heads, dp)).reshape(weight.shape[0], -1)
    return _padded_to(weight, (linear.n, linear.k))


def _matrices(plan: Plan, memory: Memory, checkpoint: Checkpoint, linear: LinearPlan) -> Iterator[Image]:
    """One class: for each layer and tile the slots of K, each [nt, kt] codes; scales in a region of their own."""
    m: DecoderModel = plan.model
    layers = [None] if linear.name == "head" else list(range(m.layers))
    ref = m.matrices[linear.name].weight
    fmt = FORMATS[linear.format]
    offsets = dict.fromkeys(range(plan.slices), (memory.dram[f"w_{linear.name}"], memory.dram[f"ws_{linear.name}"]))
    for layer in layers:
        weight = _shape_weight(plan, linear, checkpoint.tensor(ref.at(layer)))
        codes, scales = _slots(linear, weight, fmt)
        for rank in range(plan.slices):
            first, count = plan.tile_share(linear, rank)
            if not count:
                continue
            c, s = codes[first : first + count].tobytes(), scales[first : first + count].tobytes()
            at, scale_at = offsets[rank]
            yield Image(rank, at, c)
            yield Image(rank, scale_at, s)
            offsets[rank] = (at + len(c), scale_at + len(s))


def _slots(linear: LinearPlan, weight: Floats, fmt: Format) -> tuple[Bytes, Bytes]:
    """Quantise [n, k] and cut it: codes [tiles, slots, bytes], scales [tiles, slots, nt * kt * terms / 32]."""
    if linear.terms == 2:
        c1, s1, c2, s2 = quantise_two_term(weight, fmt)
        n = weight.shape[0]
        codes = np.stack([c1.reshape(n, -1, BLOCK), c2.reshape(n, -1, BLOCK)], axis=2).reshape(n, -1)
        scales = np.stack([s1, s2], axis=2).reshape(n, -1)
    else:
        codes, scales = quantise(weight, fmt)
    width = linear.kt * linear.terms
    tiles, nt = linear.tiles, linear.nt
    cut = codes.reshape(tiles, nt, -1, width).transpose(0, 2, 1, 3).reshape(tiles, -1, nt * width)
    blocks = scales.reshape(tiles, nt, -1, width // BLOCK).transpose(0, 2, 1, 3).reshape(tiles, -1, nt * width // BLOCK)
    return np.ascontiguousarray(_bytes(cut, fmt)), np.ascontiguousarray(blocks)


def _biases(plan: Plan, memory: Memory, checkpoint: Checkpoint, linear: LinearPlan) -> Iterator[Image]:
    """Biases of one class in the order of the tiles."""
    m = plan.model
    ref = m.matrices[linear.name].bias
    assert ref is not None
    offsets = dict.fromkeys(range(plan.slices), memory.dram[f"bias_{linear.name}"])
    for layer in range(m.layers):
        bias = _shape_weight_bias(plan, linear, checkpoint.tensor(ref.at(layer)))
        for rank in range(plan.slices):
            first, count = plan.tile_share(linear, rank)
            if count:
                data = bias[first * linear.nt : (first + count) * linear.nt].tobytes()
                yield Image(rank, offsets[rank], data)
                offsets[rank] += len(data)


def _shape_weight_bias(plan: Plan, linear: LinearPlan, bias: Floats) -> Floats:
    """Pad a bias as the rows of its matrix."""
    d, dp = plan.model.head_dim, plan.dp
    if _rows_of(plan, linear) and dp != d:
        bias = _padded_to(bias.reshape(-1, d), (bias.shape[0] // d, dp)).reshape(-1)
    return _padded_to(bias, (linear.n,))

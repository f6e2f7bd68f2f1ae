"""The device model over arrays of points: what `model` computes one step at a time, many at once.

A variant is a model in a format. The points of one variant are taken together, in pieces that stay in the processor's
cache; what a model's operators need of a point is a handful of arrays that all of them share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from systolith.peers.formats import Precision
from systolith.peers.model import COLLECTIVE, EXP_COST, MOVE_COST, TILE, WIDEN_COST, kernels_of
from systolith.peers.work import Work

__all__ = ["Points", "seconds", "variant_seconds"]

Array = npt.NDArray[np.float64]
PIECE = 8192
"""Points of a piece."""


@dataclass
class Points:
    """Steps, one an entry; all arrays are float64 [points] (`first` is bool).

    linear_rate, expert_rate, head_rate, rate : operations a second of the device in the formats of the variant's
    matrices, experts and head, and in bf16.      bandwidth, link : bytes a second.
    tensor, data, pipeline : of the layout.      sequences ... hosted : of the step.
    compute ... row_s : the scalars of the device.
    """

    linear_rate: Array
    expert_rate: Array
    head_rate: Array
    rate: Array
    bandwidth: Array
    link: Array
    tensor: Array
    data: Array
    pipeline: Array
    sequences: Array
    rows: Array
    context: Array
    first: npt.NDArray[np.bool_]
    shared: Array
    launched: Array
    hosted: Array
    compute: Array
    memory: Array
    vector: Array
    kernel_s: Array
    launch_s: Array
    row_s: Array

    def take(self, index: Any) -> Points:
        """Some of the points."""
        return Points(*(getattr(self, field.name)[index] for field in fields(self)))


def seconds(variants: Sequence[tuple[Work, Precision]], variant: npt.NDArray[np.integer[Any]], points: Points) -> Array:
    """Time of each point's step. variant : for each point its model and format, an index into `variants`."""
    result = np.empty(len(variant))
    order = np.argsort(variant, kind="stable")
    bounds = np.searchsorted(variant[order], np.arange(len(variants) + 1))
    for number, (work, precision) in enumerate(variants):
        for start in range(bounds[number], bounds[number + 1], PIECE):
            index = order[start : min(start + PIECE, bounds[number + 1])]
            result[index] = variant_seconds(work, precision, points.take(index))
    return result


def variant_seconds(work: Work, precision: Precision, p: Points) -> Array:
    """Time of each point's step, all of one model and format."""
    moving = 1 / (p.memory * p.bandwidth)
    per_rate = {
        "linear": 1 / (p.compute * p.linear_rate), "expert": 1 / (p.compute * p.expert_rate),
        "head": 1 / (p.compute * p.head_rate), "router": 1 / (p.compute * p.rate),
    }  # fmt: skip
    part = 1 / p.tensor
    shares = p.tensor * p.data
    rows = p.sequences * p.rows
    rows_part = rows * part
    total = _products(work, precision, p, rows, rows_part, part, shares, moving, per_rate)
    total += _attention(work, precision, p, per_rate["router"])
    total += (rows * (MOVE_COST * work.whole) + rows_part * (MOVE_COST * work.split)) / (p.vector * p.rate)
    total += kernels_of(work, precision) * (p.kernel_s + p.launched * p.launch_s)
    reduce_s = COLLECTIVE * p.kernel_s
    total += p.sequences * p.hosted * p.row_s
    sending = 1 / (p.memory * p.link)
    bytes_one = rows * sending * (2 * work.hidden)
    total += work.reductions * ((p.tensor > 1) * reduce_s + 2 * (1 - part) * bytes_one)
    if work.exchanges:
        away = (1 - 1 / shares) * rows * sending * (work.top_k * work.hidden * (precision.activation_bytes + 2))
        total += (p.data > 1) * work.exchanges * (2 * reduce_s + away)
    total += (p.pipeline - 1) * (reduce_s + bytes_one)
    return total


def _products(
    work: Work, precision: Precision, p: Points, rows: Array, rows_part: Array, part: Array, shares: Array,
    moving: Array, per_rate: dict[str, Array],
) -> Array:  # fmt: skip
    total = np.zeros(len(rows))
    met: dict[tuple[int, int], Array] = {}
    group, dealt = rows * p.data, 1 / shares
    padded = rows + np.minimum(rows / 2, TILE)
    padded_part = padded * part
    for one in work.products:
        bits, _ = precision.of(one.tensor)
        inward, outward = one.io
        ins, outs, twice = inward * precision.activation_bytes, outward * 2.0, 2.0 * one.products
        elements: Array | float = one.elements
        if one.split == "expert":
            key = (one.copies, one.top_k)
            if key not in met:
                met[key] = _touched(*key, group)
            size = one.n * one.k
            routed = group * one.top_k
            compute = (routed + np.minimum(routed / 2, met[key] * TILE)) * dealt * (2.0 * size)
            elements = met[key] * dealt * size
            memory = elements * (bits / 8) + group * dealt * (ins + outs)
        elif one.split == "whole":
            compute = padded * twice
            memory = rows * (ins + outs) + one.elements * bits / 8
        elif one.tensor == "head":
            compute = (p.sequences + np.minimum(p.sequences / 2, TILE)) * part * twice
            elements = part * one.elements
            memory = elements * (bits / 8) + p.sequences * part * outs + p.sequences * ins
        else:
            compute = padded_part * twice
            cut, uncut = (ins, outs) if one.split == "row" else (outs, ins)
            elements = part * one.elements
            memory = elements * (bits / 8) + rows_part * cut + rows * uncut
        compute *= per_rate[one.tensor]
        memory *= moving
        compute *= compute
        memory *= memory
        compute += memory
        np.sqrt(compute, out=compute)
        if precision.widened and one.tensor != "router":
            compute += elements * (WIDEN_COST * per_rate[one.tensor])
        compute *= one.layers
        total += compute
    return total


def _touched(experts: int, top_k: int, rows: Array) -> Array:
    """Experts that rows meet."""
    if top_k >= experts:
        return np.full(len(rows), float(experts))
    return np.asarray(-experts * np.expm1(rows * np.log1p(-top_k / experts)))


def _attention(work: Work, precision: Precision, p: Points, per_rate: Array) -> Array:
    total = np.zeros(len(p.rows))
    reading = 1 / (p.memory * p.bandwidth)
    computing = per_rate / p.tensor
    some_first, some_later = bool(p.first.any()), not bool(p.first.all())
    alone = not bool(p.shared.all())
    for a in work.attends:
        later: Array | float = 0.0
        prompt: Array | float = 0.0
        if some_later:
            seen = p.sequences * p.rows * (p.context if a.window is None else np.minimum(p.context, a.window))
            cached = seen * (a.kv * precision.kv_bits / 8)
            taken = cached / np.minimum(p.tensor, a.kv_heads) * reading
            if alone:
                cache = p.memory * np.maximum(p.bandwidth, p.rate * (2 / MOVE_COST))
                each = np.maximum(taken, cached * (a.heads / a.kv_heads) / p.tensor / cache)
                taken = np.where(p.shared > 0, taken, each)
            later = np.maximum(taken, seen * computing * (2.0 * a.products))
        if some_first:
            window = p.rows if a.window is None else np.minimum(p.rows, a.window)
            pairs = p.sequences * (window * (window + 1) / 2 + (p.rows - window) * window)
            prompt = pairs * computing * (2.0 * a.first + EXP_COST * a.heads)
        total += a.layers * (np.where(p.first, prompt, later) if some_first and some_later else prompt + later)
    return total

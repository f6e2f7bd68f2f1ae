"""The time of a step on a device, operator by operator, from the catalogue and six fitted scalars.

A step is a batch of sequences of which each brings `rows` rows. Its time is the sum of

* products: the longer of arithmetic, 2 x multiply-adds / (compute x rate), and bytes / (memory x bandwidth); bytes are
  weights, of experts those of the experts that the rows of the group meet, and the rows that go in and come out;
* attention: the longer of the cached bytes that are seen / (memory x bandwidth) and of arithmetic; a prompt's own
  pairs also cost an exponential each;
* vector work: the rows that norms, activations, rotary and experts' sums move / (memory x bandwidth);
* kernels: their number x `kernel_s`, and x `launch_s` where the host launches them one by one;
* collectives: for each COLLECTIVE kernels, and bytes / (memory x link);
* sequences: the host's and the sampler's work for each, `row_s`.

`vector` is the same over arrays of points; the two are held together by a test.

Source of the cost of exponentials: FlashAttention-3, arXiv:2407.08608, section 3.1: an H100 makes 3.9e12 a second
beside 989e12 operations in products of 16 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from systolith.peers.catalogue import Device
from systolith.peers.formats import Precision
from systolith.peers.work import Attend, Product, Work
from systolith.spec.errors import CapacityError, ConfigError

__all__ = [
    "COLLECTIVE",
    "EXP_COST",
    "MOVE_COST",
    "TILE",
    "WIDEN_COST",
    "Layout",
    "Scalars",
    "Step",
    "bytes_of",
    "capacity",
    "kernels_of",
    "step_parts",
    "step_seconds",
]

EXP_COST = 256.0
"""Operations of 16-bit products that take as long as one exponential."""
MOVE_COST = 360.0
"""Operations of 16-bit products that take as long as one element of 16 bits to or from the last cache: an H100's gives
5.5e12 bytes a second beside 989e12 operations. What a step makes and reads again stays in caches, not in memory."""
WIDEN_COST = 32.0
"""Operations of 16-bit products that take as long as widening one weight on the vector lanes: an A100 makes 312e12 of
the ones beside 9.75e12 of the others (data sheet: 19.5e12 in FP32, two for each multiply-add)."""
COLLECTIVE = 2.0
"""Kernels that a collective of no bytes takes as long as: one, and a barrier with all others."""
TILE = 64.0
"""Most rows of a product, and of each expert's, that are padding: half of a tile of 128, on average. Fewer rows take a
smaller tile, so that padding is at most half of them."""
RESERVED = 2e9
"""Bytes of a device that hold neither weights nor KV cache: the engine, its work buffers."""


@dataclass(frozen=True)
class Scalars:
    """What is fitted, shared by all models on the devices of a generation.

    compute, memory, vector : shares of the device's rate, of its bandwidth in reading weights and KV cache, and of its
    bandwidth in vector work.
    kernel_s, launch_s, row_s : seconds of a kernel, of launching it by itself, and for each sequence of a step.
    """

    compute: float
    memory: float
    vector: float
    kernel_s: float
    launch_s: float
    row_s: float

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(field.name for field in fields(cls))


@dataclass(frozen=True)
class Layout:
    """How a model lies on devices.

    tensor : devices that share every product.      data : groups of them with sequences of their own and the experts in
    common.      pipeline : stages.      replicas : copies of all this.
    """

    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    replicas: int = 1

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.tensor * self.data * self.pipeline * self.replicas

    @property
    def shares(self) -> int:
        """Devices that the experts of a layer are dealt over."""
        return self.tensor * self.data

    def check(self, work: Work) -> None:
        """Raise ConfigError where the layout does not divide the model."""
        if self.pipeline > work.layers:
            raise ConfigError(f"{self.pipeline} stages are more than the {work.layers} layers of {work.name}")
        heads = max(a.heads for a in work.attends)
        if self.tensor > heads:
            raise ConfigError(
                f"tensor parallelism over {self.tensor} devices needs as many heads, {work.name} has {heads}"
            )


@dataclass(frozen=True)
class Step:
    """sequences : of one of the groups that `data` counts.      rows : of each sequence; 1 in decoding.

    context : positions that each row sees, in decoding; a prompt sees its own.      first : whether it is a prompt.
    launched : share of such steps whose kernels the host launches one by one; others are captured and replayed.
    hosted : 0 where an engine runs one fixed batch and its host does nothing for a sequence.
    shared : whether decode attention reads the keys and values of a group of heads once, and not once a head.
    """

    sequences: float
    rows: float
    context: float
    first: bool
    shared: bool = True
    launched: float = 0.0
    hosted: float = 1.0


def step_seconds(work: Work, precision: Precision, device: Device, layout: Layout, step: Step, s: Scalars) -> float:
    """Time of a step. Raises ConfigError where the catalogue lacks a figure."""
    return sum(step_parts(work, precision, device, layout, step, s).values())


def step_parts(
    work: Work, precision: Precision, device: Device, layout: Layout, step: Step, s: Scalars
) -> dict[str, float]:
    """Seconds of each part; they sum to the time of the step."""
    bandwidth = _need(device, "bytes_per_s", "bandwidth")
    link = _need(device, "link_bytes_per_s", "link") if layout.devices // layout.replicas > 1 else 1.0
    rows = step.sequences * step.rows
    parts = dict.fromkeys(("products", "attention", "vector", "kernels", "collectives", "sequences"), 0.0)
    for p in work.products:
        count = step.sequences if p.tensor == "head" else rows
        parts["products"] += p.layers * product_seconds(p, count, precision, device, bandwidth, layout, s)
    for a in work.attends:
        parts["attention"] += a.layers * attend_seconds(a, step, precision, device, bandwidth, layout, s)
    moved = rows * (work.whole + work.split / layout.tensor)
    parts["vector"] = moved * MOVE_COST / (s.vector * float(device.rate("bf16") or 0.0))
    parts["kernels"] = kernels_of(work, precision) * (s.kernel_s + step.launched * s.launch_s)
    parts["collectives"] = collective_seconds(work, rows, precision, link, layout, s)
    parts["sequences"] = step.sequences * step.hosted * s.row_s
    return parts


def kernels_of(work: Work, precision: Precision) -> int:
    """Kernels of a step: those of the model's operators, and one for each product whose rows are narrowed before it."""
    return work.kernels + (work.quantised if precision.activation_bytes < 2 else 0)


def product_seconds(
    p: Product, rows: float, precision: Precision, device: Device, bandwidth: float, layout: Layout, s: Scalars
) -> float:
    """Time of a product in one layer, without its kernel."""
    bits, kind = precision.of(p.tensor)
    rate = s.compute * float(device.rate(kind) or 0.0)
    inward, outward = p.io
    if p.split == "expert":
        share = layout.shares
        met = touched(p.copies, p.top_k, rows * layout.data)
        elements = met * p.n * p.k / share
        routed = rows * layout.data * p.top_k
        work = 2 * (routed + min(routed / 2, met * TILE)) * p.n * p.k / share
        moved = rows * layout.data / share * (inward * precision.activation_bytes + outward * 2)
    else:
        share = 1 if p.split == "whole" else layout.tensor
        elements = p.elements / share
        work = 2 * (rows + min(rows / 2, TILE)) * p.products / share
        cut_in, cut_out = (share, 1) if p.split == "row" else (1, share)
        moved = rows * (inward / cut_in * precision.activation_bytes + outward / cut_out * 2)
    widening = elements * WIDEN_COST / rate if precision.widened and p.tensor != "router" else 0.0
    return math.hypot(work / rate, (elements * bits / 8 + moved) / (s.memory * bandwidth)) + widening


def touched(experts: int, top_k: int, rows: float) -> float:
    """Experts that rows meet, each row choosing `top_k` of them evenly and by itself."""
    return float(experts * (1.0 - (1.0 - top_k / experts) ** rows))


def attend_seconds(
    a: Attend, step: Step, precision: Precision, device: Device, bandwidth: float, layout: Layout, s: Scalars
) -> float:
    """Time of attention in one layer, without its kernels."""
    rate = s.compute * float(device.rate("bf16") or 0.0)
    if step.first:
        length, window = step.rows, step.rows if a.window is None else min(a.window, step.rows)
        pairs = step.sequences * (window * (window + 1) / 2 + (length - window) * window)
        return pairs * (2 * a.first + EXP_COST * a.heads) / layout.tensor / rate
    seen = step.sequences * step.rows * (step.context if a.window is None else min(a.window, step.context))
    cached = seen * a.kv * precision.kv_bits / 8
    reading = cached / min(layout.tensor, a.kv_heads) / (s.memory * bandwidth)
    if not step.shared:  # the heads of a group find in the last cache what the first of them has read
        cache = max(bandwidth, 2 * float(device.rate("bf16") or 0.0) / MOVE_COST)
        reading = max(reading, cached * a.heads / a.kv_heads / layout.tensor / (s.memory * cache))
    return max(reading, 2 * seen * a.products / layout.tensor / rate)


def collective_seconds(work: Work, rows: float, precision: Precision, link: float, layout: Layout, s: Scalars) -> float:
    """All-reduces of tensor parallelism, exchanges with experts of other groups, hand-overs between stages."""
    total = 0.0
    if layout.tensor > 1:
        moved = 2 * (layout.tensor - 1) / layout.tensor * rows * work.hidden * 2
        total += work.reductions * (COLLECTIVE * s.kernel_s + moved / (s.memory * link))
    if layout.data > 1:
        away = (layout.shares - 1) / layout.shares * rows * work.top_k * work.hidden
        total += work.exchanges * (
            2 * COLLECTIVE * s.kernel_s + away * (precision.activation_bytes + 2) / (s.memory * link)
        )
    if layout.pipeline > 1:
        total += (layout.pipeline - 1) * (COLLECTIVE * s.kernel_s + rows * work.hidden * 2 / (s.memory * link))
    return total


def bytes_of(work: Work, precision: Precision, layout: Layout) -> float:
    """Bytes of weights on one device."""
    total = work.embed * 2.0 / layout.tensor
    for p in work.products:
        share = layout.shares if p.split == "expert" else 1 if p.split == "whole" else layout.tensor
        total += p.elements * p.layers * precision.of(p.tensor)[0] / 8 / share
    return total / layout.pipeline


def kv_bytes(work: Work, precision: Precision, layout: Layout, context: int) -> float:
    """Bytes that a sequence keeps on each of its devices."""
    heads = min(a.kv_heads for a in work.attends)
    return work.kv_elements(context) * precision.kv_bits / 8 / min(layout.tensor, heads) / layout.pipeline


def capacity(
    work: Work,
    precision: Precision,
    device: Device,
    layout: Layout,
    context: int,
    share: float = 1.0,
    reserved: float = RESERVED,
) -> int:
    """Sequences of `context` tokens that one group holds. Raises CapacityError where none fits.

    share : of the memory beside the weights that the engine takes for its KV cache.      reserved : bytes of its own.
    """
    size = _need(device, "memory_bytes", "memory")
    weights = bytes_of(work, precision, layout)
    one = kv_bytes(work, precision, layout, context)
    most = int((size - weights - (0 if device.on_chip else reserved)) * share / one)
    if most < 1:
        raise CapacityError(
            f"{work.name} does not fit on {device.key}: {weights / 1e9:.1f} GB of weights and {one / 1e9:.2f} GB for a "
            f"sequence of {context} tokens are more than the {size / 1e9:.1f} GB of a device"
        )
    return most


def _need(device: Device, what: str, field: str) -> float:
    found: Any = getattr(device, what)
    if found is None:
        raise ConfigError(f"{device.key} has no figure for its {field}")
    return float(found)

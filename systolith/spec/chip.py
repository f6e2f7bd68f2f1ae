"""`Chip`: checked and derived, what every layer takes. Built by `load`, or by `derive` from a `ChipConfig`.

Each number is computed once, here. Bytes per cycle are exact rationals; latencies are whole cycles, rounded up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from math import ceil, isqrt
from typing import Any, Final

from . import checks
from .config import ChipConfig, PairRates, QueueDepths, iter_fields, try_config
from .errors import ConfigError
from .limits import BLOCK, CELLS
from .units import PAIR_BITS, PAIRS, QUEUES

__all__ = ["Chip", "derive"]

_TREE_RADIX: Final = 8


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip. Per slice and in cycles unless a name says otherwise; a Fraction where it may be no integer."""

    config: ChipConfig
    """The record this chip was derived from."""
    name: str
    slices: int
    clock_hz: int
    """Clock of every unit; seconds are cycles / clock_hz."""

    arrays: int
    """Matrix arrays of a slice, side by side along N."""
    array_rows: int
    """Elements of K that one pass takes."""
    array_cols: int
    """Columns of N in one array."""
    pe_dot: int
    """Elements of K in one PE."""
    array_stack: int
    """Most arrays that stand on each other along K where a product has too few columns for all of them; 1 where an
    array is shorter than a block."""
    pe_rows: int
    """PEs in a column of an array: array_rows / pe_dot."""
    columns: int
    """Columns of N over all arrays of a slice."""
    macs_per_cycle: int
    """Multiply-adds per cycle of a slice for a pair of rate 1."""
    rates: PairRates
    """Share of `macs_per_cycle` each pair runs at; `Chip.rate` looks one up by name."""
    weight_load_bytes: int
    """Weight code bytes per cycle into all arrays of a slice together (a power of two)."""
    passes_per_block: int
    """Passes that carry one wide block sum: 32 / array_rows where the array is shorter than a block, else 1."""
    blocks_per_pass: int
    """Block sums that one pass closes in a column: array_rows / 32, at least 1 (every passes_per_block-th pass)."""
    array_skew_cycles: int
    """First activation in at the top to last column's sum out at the foot: pe_rows + array_cols."""
    accumulator_interval_cycles: int
    """Cycles between two adds to one accumulator address: the adder's latency, its result forwarded."""
    accumulator_chains: int
    """Sums that must be in flight (columns x spans x rows) for MXFP4 weights to stream at memory bandwidth."""

    dram_bytes_per_cycle: Fraction
    """Of the pins: `dram_bytes_per_s` a cycle of the clock."""
    dram_efficiency: Fraction
    """Share of that which refresh and rows leave; timing alone reads it, through `dram_sustained_bytes_per_cycle`."""
    dram_latency_cycles: int
    """Request accepted to first byte, at least 1."""
    dram_burst_bytes: int
    """Smallest transfer; requests are cut at its multiples and a part of a burst costs a whole one."""
    dram_outstanding: int
    """Bursts in flight for each of the queues W, L and S."""
    dram_bytes: int
    """Capacity."""

    scratchpad_bytes: int
    banks: int
    """Banks; bank i holds bytes i * bank_size_bytes and up. Need be no power of two."""
    bank_bytes: int
    """One row of a bank: what one client reads or writes in a cycle."""
    bank_size_bytes: int
    bank_rows: int
    slots_bytes: int
    accumulator_bytes: int
    accumulator_words: int
    """FP32 sums the accumulator holds."""
    lanes: int
    log2_lanes: int
    """Levels of the vector unit's tree."""

    ingress_bytes_per_cycle: Fraction
    """Network into a slice; a slice sends at this rate too."""
    hop_cycles: int
    topology: str
    network_hops: int
    """Hops of every PUT: the longest way, so that no latency depends on the rank. Tree: up and down levels of 8;
    ring: half way round; mesh: corner to corner of the smallest square that holds them. 0 with one slice."""
    network_latency_cycles: int
    """Last byte sent to last byte written in every member, without the serialisation: network_hops * hop_cycles."""

    queue_depths: QueueDepths
    """Instructions each queue holds; `Chip.queue_depth` looks one up by letter."""
    program_bytes: int
    """Program memory of the sequencer: words and descriptor constants together."""
    issue_cycles: int
    """Sequencer, from one instruction to the next."""
    branch_cycles: int
    """Cycles a taken branch or the end of a loop adds."""
    semaphore_cycles: int
    """A post in one queue to the earliest start of a waiter in another."""
    bank_cycles: int
    """Address to data of a scratchpad bank, slots and accumulator alike."""
    dma_cycles: int
    """Head of queue to the first memory request."""
    normalise_cycles: int
    """Exact block sum to FP32."""
    fp32_add_cycles: int
    fp32_multiply_cycles: int
    function_cycles: int
    """exp2fx, rcp, rsqrt and fix of the vector unit."""
    convert_cycles: int
    """FP32 to an MX block, after the block's largest is known."""

    stall_cycles: int
    """Shortest dependency stall between two linear layers: drain, one reduction, network, fill and four semaphores."""
    slots_cover_cycles: int
    """Longest stall that full slots bridge at memory bandwidth, after the memory's own latency."""

    power_w: Fraction | None
    process: str | None
    warnings: tuple[str, ...]
    """What will run, but not well: one sentence each."""

    def __hash__(self) -> int:
        return hash(self.config)

    def rate(self, pair: str) -> Fraction:
        """Share of the PEs' peak that `pair` (a name of `PAIRS`) runs at."""
        return Fraction(getattr(self.rates, pair))

    def queue_depth(self, queue: str) -> int:
        """Instructions that `queue` (a letter of `QUEUES`) holds."""
        return int(getattr(self.queue_depths, queue))

    def space_bytes(self, space: str) -> int:
        """Size of an address space of a slice (a name of `SPACES`)."""
        return 4 * CELLS if space == "cells" else int(getattr(self, f"{space}_bytes"))

    def peak_macs_per_s(self, pair: str) -> Fraction:
        """Multiply-adds per second of the whole chip for `pair`."""
        return self.slices * self.macs_per_cycle * self.rate(pair) * self.clock_hz

    def peak_flops(self, pair: str) -> Fraction:
        """FLOP/s of the whole chip for `pair`: a multiply-add counts as two."""
        return 2 * self.peak_macs_per_s(pair)

    def memory_weights_per_cycle(self, pair: str) -> Fraction:
        """Weights of `pair`, with the E8M0 scale of each block, that a slice's memory brings per cycle."""
        return self.dram_bytes_per_cycle * BLOCK / Fraction(BLOCK * PAIR_BITS[pair][1] + 8, 8)

    def array_weights_per_cycle(self, pair: str) -> Fraction:
        """Weights of `pair` that the arrays of a slice use per cycle at one row: by rate and by load port."""
        return min(self.macs_per_cycle * self.rate(pair), Fraction(8 * self.weight_load_bytes, PAIR_BITS[pair][1]))

    def binds_at_one_row(self, pair: str) -> str:
        """What a single row (batch 1) waits for with `pair`: "memory" or "array"."""
        return "array" if self.array_weights_per_cycle(pair) < self.memory_weights_per_cycle(pair) else "memory"

    @property
    def chip_dram_bytes_per_s(self) -> Fraction:
        """Memory bandwidth of the whole chip."""
        return self.slices * self.config.dram_bytes_per_s

    @property
    def dram_sustained_bytes_per_cycle(self) -> Fraction:
        """What the memory of a slice gives for long: bytes per cycle of its pins times `dram_efficiency`."""
        return self.dram_bytes_per_cycle * self.dram_efficiency

    @property
    def chip_dram_bytes(self) -> int:
        """Memory capacity of the whole chip."""
        return self.slices * self.dram_bytes

    @property
    def chip_sram_bytes(self) -> int:
        """Scratchpads, slots and accumulators of the whole chip."""
        return self.slices * (self.scratchpad_bytes + self.slots_bytes + self.accumulator_bytes)

    def balance(self, pair: str) -> Fraction:
        """FLOP per byte of memory traffic at which `pair` is bound by arithmetic and memory alike."""
        return self.peak_flops(pair) / self.chip_dram_bytes_per_s

    def seconds(self, cycles: int) -> Fraction:
        """Time that `cycles` take."""
        return Fraction(cycles, self.clock_hz)

    @cached_property
    def sha256(self) -> str:
        """Hash of every field that can change bits or cycles: the config less name and process, in canonical JSON."""
        facts = {key: _plain(value) for key, value in iter_fields(self.config) if key not in ("name", "process")}
        facts |= {key: getattr(self, key) for key in ("weight_load_bytes", "bank_bytes", "dram_outstanding")}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def vary(self, **changes: object) -> Chip:
        """Derive a chip that differs in the named fields of `ChipConfig`; values as in a chip file.

        Raises ConfigError as `load` does.
        """
        return build(changes, str(changes.get("name", self.name)), self.config)


def build(raw: Mapping[str, object], where: str, base: ChipConfig | None = None) -> Chip:
    """Read, check and derive; raise ConfigError with all faults of fields, else with all faults of bounds."""
    config, faults = try_config(raw, where, base)
    if config is None:
        raise ConfigError(faults)
    return derive(config, where)


def derive(config: ChipConfig, where: str | None = None) -> Chip:
    """Derive a chip from a config whose fields are each in range; check the bounds between them.

    where : what each sentence begins with; the name of the chip if left out.
    Raises ConfigError with every bound that cannot hold; the others stand in `Chip.warnings`.
    """
    c = config
    per_cycle = Fraction(c.dram_bytes_per_s, c.clock_hz)
    latency = max(1, _cycles(c.dram_latency_ns, c.clock_hz))
    macs = c.arrays * c.array_rows * c.array_cols
    hop = _cycles(c.hop_ns, c.clock_hz)
    hops = network_hops(c.topology, c.slices)
    log2_lanes = c.lanes.bit_length() - 1
    bank_bytes = c.bank_bytes or max(16, 4 * c.lanes)
    skew = c.array_rows // c.pe_dot + c.array_cols
    # One matmul's last row to the next one's first sum: both pipelines, the norm's tree and function, and the gather.
    stall = (
        2 * (c.bank_cycles + skew + c.normalise_cycles + c.fp32_add_cycles)
        + 2 * (2 * c.bank_cycles + c.fp32_add_cycles + c.fp32_multiply_cycles)
        + log2_lanes * c.fp32_add_cycles
        + c.function_cycles
        + c.convert_cycles
        + hops * hop
        + 4 * c.semaphore_cycles
    )
    values: dict[str, Any] = {key: value for key, value in iter_fields(c) if key in _CHIP_FIELDS}
    values |= {
        "config": c,
        "array_stack": min(c.array_stack, c.arrays) if c.array_rows >= BLOCK else 1,
        "pe_rows": c.array_rows // c.pe_dot,
        "columns": c.arrays * c.array_cols,
        "macs_per_cycle": macs,
        "weight_load_bytes": c.weight_load_bytes or max(c.arrays, min(macs, _power_above(2 * per_cycle))),
        "passes_per_block": max(1, BLOCK // c.array_rows),
        "blocks_per_pass": max(1, c.array_rows // BLOCK),
        "array_skew_cycles": skew,
        "accumulator_interval_cycles": c.fp32_add_cycles,
        # A block of MXFP4 weights is 16 bytes of codes and one of scale.
        "accumulator_chains": ceil(c.fp32_add_cycles * per_cycle / (BLOCK // 2 + 1)),
        "dram_bytes_per_cycle": per_cycle,
        "dram_latency_cycles": latency,
        "dram_outstanding": c.dram_outstanding or max(4, _power_above(per_cycle * latency / c.dram_burst_bytes)),
        "bank_bytes": bank_bytes,
        "bank_size_bytes": c.scratchpad_bytes // c.banks,
        "bank_rows": c.scratchpad_bytes // (c.banks * bank_bytes),
        "accumulator_words": c.accumulator_bytes // 4,
        "log2_lanes": log2_lanes,
        "ingress_bytes_per_cycle": Fraction(c.ingress_bytes_per_s, c.clock_hz),
        "hop_cycles": hop,
        "network_hops": hops,
        "network_latency_cycles": hops * hop,
        "stall_cycles": stall,
        "slots_cover_cycles": max(0, int(c.slots_bytes / per_cycle) - latency),
        "warnings": (),
    }
    chip = Chip(**values)
    where = where or c.name
    errors = tuple(f"{where}: {sentence}" for sentence in checks.errors(chip))
    if errors:
        raise ConfigError(errors)
    return replace(chip, warnings=tuple(f"{where}: {sentence}" for sentence in checks.warnings(chip)))


_CHIP_FIELDS: Final = frozenset(field.name for field in fields(Chip))


def network_hops(topology: str, slices: int) -> int:
    """Hops from a slice to the furthest one; 0 for one slice."""
    if slices == 1:
        return 0
    if topology == "ring":
        return slices // 2
    if topology == "mesh":
        side = isqrt(slices - 1) + 1
        return side - 1 + ceil(Fraction(slices, side)) - 1
    levels = 1
    while _TREE_RADIX**levels < slices:
        levels += 1
    return 2 * levels


def _cycles(ns: Fraction, clock_hz: int) -> int:
    """Cycles that cover a time, rounded up."""
    return ceil(ns * clock_hz / 10**9)


def _power_above(value: Fraction) -> int:
    """Smallest power of two that is at least `value`."""
    return int(1 << max(0, ceil(value) - 1).bit_length())


def _plain(value: object) -> object:
    """Turn a field's value into what JSON holds without loss."""
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


assert set(PairRates._fields) == set(PAIRS) == set(PAIR_BITS)
assert set(QueueDepths._fields) == set(QUEUES)

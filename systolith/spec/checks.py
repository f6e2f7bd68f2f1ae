"""Bounds between the fields of a chip: what cannot work is refused, what works badly is warned of.

Each sentence names field, value, what is allowed and what to do; `chip.derive` puts the chip's name in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Final

from .limits import BLOCK, CHUNK_TOKENS
from .quantity import format_quantity
from .units import QUEUES

if TYPE_CHECKING:
    from .chip import Chip

__all__ = ["MIN_ACCUMULATOR_BYTES", "MIN_SCRATCHPAD_BYTES", "errors", "warnings"]

_HEAD: Final = 128
"""Head size that the smallest attention tiles are sized for: the largest of the common model families."""

MIN_SCRATCHPAD_BYTES: Final = 4 * BLOCK * (_HEAD + _HEAD // BLOCK)
"""K and V of one block of 32 tokens, head size 128, one byte an element and its scales, both twice (fill and use)."""

MIN_ACCUMULATOR_BYTES: Final = 4 * CHUNK_TOKENS * 4
"""One row of a chunk's scores and one of outputs in FP32, both twice (fill and drain)."""


def errors(chip: Chip) -> Iterator[str]:
    """Yield what makes the chip impossible."""
    c = chip
    if c.array_rows < c.pe_dot:
        yield (
            f"array_rows={c.array_rows} must be at least pe_dot={c.pe_dot}; "
            f"raise array_rows to {c.pe_dot} or write pe_dot = 4."
        )
    row = c.banks * c.bank_bytes
    if c.scratchpad_bytes % row:
        low = c.scratchpad_bytes // row * row
        near = f"{low} or {low + row}" if low else f"{low + row}"
        yield (
            f"scratchpad_bytes={c.scratchpad_bytes} must be a multiple of banks x bank_bytes = "
            f"{c.banks} x {c.bank_bytes} = {row}, for example {near}."
        )
    if c.scratchpad_bytes < MIN_SCRATCHPAD_BYTES:
        yield (
            f"scratchpad_bytes={c.scratchpad_bytes} must be at least {MIN_SCRATCHPAD_BYTES}: "
            "K and V tiles of 32 tokens of head size 128, each twice; raise scratchpad_bytes."
        )
    if c.bank_bytes < 4 * c.lanes:
        yield (
            f"bank_bytes={c.bank_bytes} must be at least 4 x lanes = {4 * c.lanes}, "
            "one FP32 value a lane in a cycle; raise bank_bytes or lower lanes."
        )
    if c.bank_bytes < c.array_rows:
        yield (
            f"bank_bytes={c.bank_bytes} must be at least array_rows={c.array_rows}, "
            "one activation a row in a cycle; raise bank_bytes or lower array_rows."
        )
    if not c.arrays <= c.weight_load_bytes <= c.macs_per_cycle:
        yield (
            f"weight_load_bytes={c.weight_load_bytes} must be in {c.arrays}..{c.macs_per_cycle}: "
            "a byte for each array, up to every weight of the arrays in one cycle; leave it out to have it derived."
        )
    tile = 2 * c.columns * max(c.array_rows, BLOCK) * (BLOCK + 1) // BLOCK
    if c.slots_bytes < tile:
        yield (
            f"slots_bytes={c.slots_bytes} must be at least {tile}: two tiles of 8-bit weights with their scales "
            f"for {c.columns} columns; raise slots_bytes, or lower arrays or array_cols."
        )
    least = max(MIN_ACCUMULATOR_BYTES, 2 * 4 * c.columns)
    if c.accumulator_bytes % (4 * c.lanes) or c.accumulator_bytes < least:
        yield (
            f"accumulator_bytes={c.accumulator_bytes} must be at least {least} and a multiple of 4 x lanes = "
            f"{4 * c.lanes}: two rows of scores and of outputs, and two sums for each of {c.columns} columns."
        )
    if c.dram_bytes % c.dram_burst_bytes:
        yield (
            f"dram_bytes={c.dram_bytes} must be a multiple of dram_burst_bytes={c.dram_burst_bytes}, "
            f"for example {c.dram_bytes // c.dram_burst_bytes * c.dram_burst_bytes}."
        )


def warnings(chip: Chip) -> Iterator[str]:
    """Yield what makes the chip slower than its own numbers say."""
    c = chip
    bandwidth = c.dram_bytes_per_cycle
    port = min(c.macs_per_cycle, ceil(2 * bandwidth))
    if c.weight_load_bytes < port:
        yield (
            f"weight_load_bytes={c.weight_load_bytes} is less than {port}, twice the memory's bytes per cycle or all "
            "weights of the arrays: what piles up during a stall does not drain; raise it or leave it out."
        )
    needed = ceil(bandwidth * (c.dram_latency_cycles + c.stall_cycles))
    if c.slots_bytes < needed:
        yield (
            f"slots_bytes={c.slots_bytes} is less than {needed}, memory bytes per cycle x (latency "
            f"{c.dram_latency_cycles} + shortest dependency stall {c.stall_cycles} cycles): weights cannot stream "
            f"across layers; raise slots_bytes to {format_quantity(_round_up(needed, 1024), 'bytes')} or more."
        )
    flight = c.dram_outstanding * c.dram_burst_bytes
    if flight < bandwidth * c.dram_latency_cycles:
        reached = format_quantity(Fraction(flight * c.clock_hz, c.dram_latency_cycles), "bytes/s")
        yield (
            f"dram_outstanding={c.dram_outstanding} bursts of {c.dram_burst_bytes} bytes in flight reach {reached} of "
            f"{format_quantity(c.config.dram_bytes_per_s, 'bytes/s')} at this latency; raise it or leave it out."
        )
    if c.accumulator_chains > c.accumulator_words // 2:
        yield (
            f"accumulator_bytes={c.accumulator_bytes} holds {c.accumulator_words // 2} sums in each half, fewer than "
            f"the {c.accumulator_chains} in flight that memory bandwidth asks for; raise accumulator_bytes."
        )
    if c.bank_bytes < bandwidth:
        yield (
            f"bank_bytes={c.bank_bytes} is less than the memory's {float(bandwidth):.1f} bytes per cycle: a copy into "
            "one bank runs at the bank's width; raise bank_bytes."
        )
    if c.bank_bytes < c.ingress_bytes_per_cycle:
        yield (
            f"bank_bytes={c.bank_bytes} is less than the network's {float(c.ingress_bytes_per_cycle):.1f} bytes per "
            "cycle: arrivals run at the bank's width; raise bank_bytes."
        )
    shallow = [q for q in QUEUES if c.queue_depth(q) * c.issue_cycles < c.semaphore_cycles]
    if shallow:
        yield (
            f"queue_depths of {', '.join(shallow)} times issue_cycles={c.issue_cycles} are less than "
            f"semaphore_cycles={c.semaphore_cycles}: a queue runs dry at each wait; raise them."
        )


def _round_up(value: int, step: int) -> int:
    """Round up to a multiple of `step`."""
    return -(-value // step) * step

"""A chip as rows of (field, value, unit, note), for the command line, the manual and reports."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from .chip import Chip
from .config import iter_fields, rules
from .quantity import format_quantity
from .units import PAIRS, SPACES

__all__ = ["Row", "describe"]


class Row(NamedTuple):
    """One line about a chip. `text` is the value as people read it; `value` is exact, for JSON as number or text."""

    field: str
    value: int | float | str
    unit: str
    text: str
    note: str
    derived: bool


def describe(chip: Chip) -> list[Row]:
    """List the record of a chip, then what is derived from it."""
    return [*_record(chip), *_derived(chip)]


def _record(chip: Chip) -> Iterator[Row]:
    """Yield the fields a person writes, with what the chip made of those left out."""
    notes = rules()
    for field, value in iter_fields(chip.config):
        rule = notes[field]
        if value is None:
            value = getattr(chip, field)
        if value is None:
            continue
        if isinstance(value, tuple):
            for key, item in value._asdict().items():  # type: ignore[attr-defined]  # the two NamedTuples
                yield Row(f"{field}.{key}", _number(item), "", str(item), rule.note, False)
            continue
        if isinstance(value, str):
            yield Row(field, value, "", value, rule.note, False)
            continue
        assert isinstance(value, int | Fraction)
        unit = {"count": "", "share": "", "cycles": "cycles"}.get(rule.kind, rule.kind)
        text = (
            f"{value} {'cycle' if value == 1 else 'cycles'}"
            if rule.kind == "cycles"
            else format_quantity(value, rule.kind)
        )
        yield Row(field, _number(value), unit, text, rule.note, False)


def _derived(chip: Chip) -> Iterator[Row]:
    """Yield the derived numbers: peaks, bandwidths, balance, latencies, memories."""

    def row(field: str, value: int | Fraction, unit: str, note: str, text: str | None = None) -> Row:
        written = text or f"{format_quantity(value, 'count')} {unit}".strip()
        return Row(field, _number(value), unit, written, note, True)

    for pair in PAIRS:
        macs = chip.slices * chip.macs_per_cycle * chip.rate(pair)
        yield row(f"peak_macs_per_cycle.{pair}", macs, "MAC/cycle", "whole chip, activations x weights")
    for pair in PAIRS:
        peak = chip.peak_flops(pair)
        yield row(f"peak_flops.{pair}", peak, "FLOP/s", "whole chip, a multiply-add is two", _flops(peak))
    for pair in PAIRS:
        yield row(f"balance.{pair}", chip.balance(pair), "FLOP/byte", "peak over memory bandwidth")
    for pair in PAIRS:
        note = (
            f"at one row: memory brings {format_quantity(chip.memory_weights_per_cycle(pair), 'count')} weights per "
            f"cycle, the arrays use {format_quantity(chip.array_weights_per_cycle(pair), 'count')}"
        )
        yield Row(f"binds_at_one_row.{pair}", chip.binds_at_one_row(pair), "", chip.binds_at_one_row(pair), note, True)
    bandwidth = chip.chip_dram_bytes_per_s
    rate = format_quantity(bandwidth, "bytes/s")
    yield row("chip_dram_bytes_per_s", bandwidth, "bytes/s", "whole chip, all slices", rate)
    size = chip.chip_dram_bytes
    yield row("chip_dram_bytes", size, "bytes", "whole chip, all slices", format_quantity(size, "bytes"))
    size = chip.chip_sram_bytes
    yield row("chip_sram_bytes", size, "bytes", "scratchpads, slots, accumulators", format_quantity(size, "bytes"))
    for space in SPACES:
        size = chip.space_bytes(space)
        yield row(f"space.{space}", size, "bytes", "a slice's address space, from 0", format_quantity(size, "bytes"))
    yield row("dram_bytes_per_cycle", chip.dram_bytes_per_cycle, "bytes/cycle", "of a slice")
    yield row("dram_sustained_bytes_per_cycle", chip.dram_sustained_bytes_per_cycle, "bytes/cycle", "after refresh")
    yield row("dram_latency_cycles", chip.dram_latency_cycles, "cycles", "request to first byte")
    yield row("ingress_bytes_per_cycle", chip.ingress_bytes_per_cycle, "bytes/cycle", "network into a slice")
    yield row("hop_cycles", chip.hop_cycles, "cycles", "one hop")
    yield row("network_hops", chip.network_hops, "hops", "of every PUT: the longest way")
    yield row("network_latency_cycles", chip.network_latency_cycles, "cycles", "of every PUT, without its bytes")
    yield row("columns", chip.columns, "", "of N, over the arrays of a slice")
    yield row("array_skew_cycles", chip.array_skew_cycles, "cycles", "first activation in to last column out")
    yield row("bank_rows", chip.bank_rows, "", "rows of bank_bytes in each bank")
    yield row("accumulator_interval_cycles", chip.accumulator_interval_cycles, "cycles", "between adds to one address")
    yield row("accumulator_chains", chip.accumulator_chains, "", "sums in flight to stream MXFP4 weights")
    yield row("stall_cycles", chip.stall_cycles, "cycles", "shortest dependency stall between two layers")
    yield row("slots_cover_cycles", chip.slots_cover_cycles, "cycles", "longest stall that full slots bridge")
    yield Row("sha256", chip.sha256, "", chip.sha256, "of every field that changes bits or cycles", True)


def _number(value: int | Fraction) -> int | float:
    """Give JSON a whole number where it is one, else the nearest float."""
    return int(value) if Fraction(value).denominator == 1 else float(value)


def _flops(value: Fraction) -> str:
    """Write FLOP/s with a decimal prefix."""
    return format_quantity(value, "Hz").removesuffix("Hz") + "FLOP/s"

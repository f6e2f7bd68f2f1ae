"""The units of a slice and the queues that feed them. A unit's name is its file name in every layer."""

from __future__ import annotations

from typing import Final

UNITS: Final = ("sequencer", "dma", "matrix", "vector", "collective", "host")
"""Units with a file of that name in isa, sim, timing, rtl, docs/units and tests/units."""

QUEUES: Final = ("W", "L", "M", "V", "S", "C")
"""In-order instruction queues: weights, load, matrix, vector, store, collective."""

QUEUE_UNITS: Final = {"W": "dma", "L": "dma", "S": "dma", "M": "matrix", "V": "vector", "C": "collective"}
"""The unit that serves each queue. The host's words (RING) travel on queue S."""

UNIT_QUEUES: Final = {
    "sequencer": (),
    "dma": ("W", "L", "S"),
    "matrix": ("M",),
    "vector": ("V",),
    "collective": ("C",),
    "host": ("S",),
}
"""The queues each unit serves. The sequencer runs its own instructions and has none."""

SPACES: Final = ("dram", "scratchpad", "slots", "accumulator", "cells")
"""Address spaces of a slice, in the order of their codes; each starts at byte 0. `Chip.space_bytes` has their sizes."""

PAIRS: Final = ("E2M1xE2M1", "E4M3xE2M1", "INT8xE2M1", "E4M3xE4M3", "INT8xINT8")
"""Operand pairs of the matrix unit, activations x weights. Elements: OCP Microscaling Formats v1.0, section 5.3."""

PAIR_BITS: Final = {
    "E2M1xE2M1": (4, 4),
    "E4M3xE2M1": (8, 4),
    "INT8xE2M1": (8, 4),
    "E4M3xE4M3": (8, 8),
    "INT8xINT8": (8, 8),
}
"""Bits of one activation and one weight of each pair."""

TOPOLOGIES: Final = ("tree", "ring", "mesh")
"""Shapes of the collective network; `Chip.network_hops` says how each counts."""

"""Area of a chip, block by block: what its record asks for, counted, times what a unit takes.

Counts follow from `Chip` alone. Area of logic: transistors over density; of SRAM: bits over a macro's density; what no
record counts (interfaces, wires) are facts of their own.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from systolith.silicon.ranges import Array, Draws, find, total
from systolith.spec.chip import Chip
from systolith.spec.errors import ConfigError

__all__ = ["Area", "Stacks", "area_of", "node_of", "sram_only", "stacks_of"]

MIB_BITS = float(1 << 20)
SRAM_ONLY_BYTES_PER_S = 60e12
"""More than stacks beside a die give (16 of 3.3 TB/s): a chip whose memory is faster has it as SRAM of its own."""


def node_of(chip: Chip) -> str:
    """The node in nm that a chip's `process` names ("TSMC N3P": 3). Raises ConfigError."""
    found = re.search(r"\bN(\d+)", chip.process or "")
    if found is None:
        raise ConfigError(
            f'{chip.name}: process={chip.process!r} names no node; write one such as "TSMC N3P" into the chip file'
        )
    find("wafer_price", found[1])
    return found[1]


@dataclass(frozen=True)
class Stacks:
    """Stacks of memory outside the chip. source : who says so, or what it was worked out from."""

    count: int
    gigabytes: float
    source: str


def stacks_of(chip: Chip) -> Stacks:
    """Stacks of a chip: as its source says, or as many as its bandwidth and capacity need. None with memory on chip."""
    gigabytes = float(chip.slices * chip.dram_bytes) / 1e9
    if sram_only(chip):
        return Stacks(0, 0.0, "all memory is SRAM on the chip")
    if chip.name == "server":
        fact = find("stack_count", "server")
        return Stacks(int(fact.mid), gigabytes, fact.source)
    speed, room = find("stack_bandwidth", "HBM4"), find("stack_capacity", "HBM4")
    need = max(float(chip.chip_dram_bytes_per_s) / 1e9 / speed.high, gigabytes / room.mid)
    return Stacks(max(1, math.ceil(need)), gigabytes, f"HBM4 of {speed.high:g} GB/s and {room.mid:g} GB at most")


def sram_only(chip: Chip) -> bool:
    """Whether what the record calls DRAM lies on the chip."""
    return float(chip.chip_dram_bytes_per_s) > SRAM_ONLY_BYTES_PER_S


@dataclass(frozen=True)
class Area:
    """Areas in mm2, draws [n] each. slice_blocks : of one slice; shared : outside the slices; wires included."""

    slice_blocks: dict[str, Array]
    shared: dict[str, Array]
    slices: int

    @property
    def slice(self) -> Array:
        """One slice."""
        return total(self.slice_blocks.values())

    @property
    def uncore(self) -> Array:
        """All that is outside the slices."""
        return total(self.shared.values())

    def die(self, spares: int = 0) -> Array:
        """The whole, with spare slices."""
        return self.uncore + (self.slices + spares) * self.slice

    def blocks(self, spares: int = 0) -> dict[str, Array]:
        """All blocks of the die."""
        built = self.slices + spares
        return {name: built * x for name, x in self.slice_blocks.items()} | self.shared


def area_of(chip: Chip, draw: Draws) -> Area:
    """Area of a chip. Raises ConfigError where its node is not known."""
    dense = draw("logic_density") * draw("logic_use") * 1e6
    wires = draw("wiring")
    macs = chip.macs_per_cycle
    feet = chip.arrays * chip.array_cols * chip.blocks_per_pass
    sram = {
        "scratchpad": chip.scratchpad_bytes, "weight slots": chip.slots_bytes, "accumulator": chip.accumulator_bytes,
        "program": chip.program_bytes,
    }  # fmt: skip
    if sram_only(chip):
        sram["resident memory"] = chip.dram_bytes
    per_mm2 = draw("sram_density") * MIB_BITS / draw("sram_overhead") / 8
    slice_blocks = {
        "arrays": macs * draw("pe_transistors") / dense,
        "normalisers, adders": feet * draw("foot_transistors") / dense,
        "vector unit": chip.lanes * draw("lane_transistors") / dense,
        "control, DMA": draw("control_transistors") / dense,
    } | {name: size / per_mm2 for name, size in sram.items()}
    shared = {"links, host": draw("io_area")}
    stacks = stacks_of(chip).count
    if stacks:
        shared["HBM interfaces"] = stacks * draw("hbm_phy_area")
    return Area(
        {name: x * wires for name, x in slice_blocks.items()}, {name: x * wires for name, x in shared.items()},
        chip.slices,
    )  # fmt: skip

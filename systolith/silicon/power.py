"""Power of a chip at a load, part by part, and energy per token.

Dynamic energy is events times energy: cycles of PEs and lanes, bits of SRAM, of the network and of HBM. Static power is
per area. What exceeds the chip's limit slows the load down in proportion to its dynamic part (`Power.rate`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from systolith.silicon.area import Area, stacks_of
from systolith.silicon.ranges import Array, Draws, total
from systolith.spec.chip import Chip

__all__ = ["Load", "Power", "power_of"]


@dataclass(frozen=True)
class Load:
    """What a chip does in a step. seconds: the step; tokens: made; macs: multiply-adds by pair; dram_bytes: moved;
    network_bytes: that all receivers take in; vector_elements: that lanes work on."""

    seconds: float
    tokens: float
    macs: dict[str, float]
    dram_bytes: float
    network_bytes: float
    vector_elements: float


@dataclass(frozen=True)
class Power:
    """Watts, draws [n] each. static : at no load too; dynamic : at the load's own speed; limit : of the chip."""

    static: dict[str, Array]
    dynamic: dict[str, Array]
    limit: float | None
    step_tokens_per_s: float

    @property
    def idle(self) -> Array:
        """All static parts."""
        return total(self.static.values())

    @property
    def wanted(self) -> Array:
        """What the load would take unthrottled."""
        return self.idle + total(self.dynamic.values())

    @property
    def rate(self) -> Array:
        """Share of its own speed that the load has under the limit."""
        if self.limit is None:
            return np.ones_like(self.idle)
        dynamic = self.wanted - self.idle
        return np.clip((self.limit - self.idle) / np.maximum(dynamic, 1e-9), 0.01, 1.0)

    @property
    def drawn(self) -> Array:
        """Under the limit."""
        return self.idle + self.rate * (self.wanted - self.idle)

    @property
    def tokens_per_s(self) -> Array:
        """Under the limit."""
        return self.step_tokens_per_s * self.rate

    @property
    def joules_per_token(self) -> Array:
        """Of the chip alone."""
        return self.drawn / self.tokens_per_s


def power_of(chip: Chip, area: Area, load: Load, draw: Draws) -> Power:
    """Power of a chip at a load. Spare slices are switched off and neither leak nor work."""
    hz, stacks = chip.clock_hz, stacks_of(chip).count
    pico = 1e-12 / load.seconds
    cycles = sum(n / float(chip.rate(pair)) for pair, n in load.macs.items())
    # A byte from memory is written to SRAM and read once; a code of an operand feeds all columns side by side.
    columns = chip.arrays * chip.array_cols
    sram_bits = 8 * (2 * load.dram_bytes + 2 * load.network_bytes + sum(load.macs.values()) / columns)
    sram_bits += 64 * load.vector_elements
    dynamic = {
        "arrays": pico * cycles * draw("pe_energy"),
        "vector unit": pico * load.vector_elements * draw("lane_energy"),
        "SRAM": pico * sram_bits * draw("sram_energy"),
        "network": pico * 8 * load.network_bytes * draw("network_energy"),
    }
    static = {"static": area.die(0) * draw("static_power") * min(1.0, hz / 1e9)}
    if stacks:
        dynamic["HBM"] = pico * 8 * load.dram_bytes * draw("hbm_energy")
        static["HBM idle"] = stacks * draw("hbm_idle")
    limit = None if chip.power_w is None else float(chip.power_w)
    return Power(static, dynamic, limit, load.tokens / load.seconds)

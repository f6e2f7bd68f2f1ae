"""The host's side of a slice: program and semaphores before the start, memories read for a check, words that RING
sends."""

from __future__ import annotations

from typing import Any, Final

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.isa.descriptor import Space
from systolith.spec import Chip

from .ports import Port, port_members

__all__ = ["LOOK", "HostPort"]

LOOK: Final = (Space.SPAD, Space.SLOT, Space.ACC, Space.CELL)
"""Memories that the host can look into while the slice stands."""


class HostPort(wiring.Component):
    """Members: look_space, look_addr in, look_data out `bank_cycles` later, a bank's width; and a port to each
    memory."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.ports = [Port(f"look_{space.name.lower()}", space, chip.bank_bytes) for space in LOOK]
        super().__init__(
            {"look_space": In(3), "look_addr": In(32), "look_data": Out(8 * chip.bank_bytes), "look": In(1)}
            | port_members(self.ports)
        )

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        space: Any = self.look_space
        for i in range(self.chip.bank_cycles):
            late = Signal(3, name=f"space_{i}")
            m.d.sync += late.eq(space)
            space = late
        found: Any = getattr(self, f"{self.ports[0].name}_data")
        for port in self.ports:
            m.d.comb += [
                getattr(self, f"{port.name}_en").eq(self.look & (self.look_space == port.space)),
                getattr(self, f"{port.name}_addr").eq(self.look_addr),
            ]
            found = Mux(space == port.space, getattr(self, f"{port.name}_data"), found)
        m.d.comb += self.look_data.eq(found)
        return m

"""The architected memory channel: one burst at a time, round robin over the ports whose latency has passed.

Time is whole in units of 1/UNITS_PER_CYCLE of a cycle. At most one burst begins in a cycle.
"""

from __future__ import annotations

from typing import Any, Final

from amaranth.hdl import Array, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.isa import facts as F
from systolith.spec import Chip, ConfigError

from .dma import UNIT_BITS
from .queue import TIME_BITS

__all__ = ["PORTS", "Channel"]

PORTS: Final = ("W", "L", "S", "N")
"""Ports in the order of their turns; N is the network."""


class Channel(wiring.Component):
    """Members: for each port valid_P, eligible_P in, grant_P out; begun out; now in.

    hold : in, no burst begins in this cycle (back-pressure of a test; time goes on). busy : out, a burst begins.
    """

    def __init__(self, chip: Chip) -> None:
        self.f = F.facts(chip)
        if self.f[F.BURST_UNITS] < self.f[F.UNITS_PER_CYCLE]:
            raise ConfigError(
                f"{chip.name}: dram_burst_bytes={chip.dram_burst_bytes} takes less than a cycle; the RTL begins one "
                "burst a cycle, so make bursts at least as long as the bytes of a cycle."
            )
        members: dict[str, Any] = {"now": In(TIME_BITS), "hold": In(1), "begun": Out(UNIT_BITS), "busy": Out(1)}
        for p in PORTS:
            members |= {f"valid_{p}": In(1), f"eligible_{p}": In(UNIT_BITS), f"grant_{p}": Out(1)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        units, burst = int(self.f[F.UNITS_PER_CYCLE]), int(self.f[F.BURST_UNITS])
        free, last = Signal(UNIT_BITS), Signal(2, init=3)
        now = Signal(UNIT_BITS)
        m.d.comb += now.eq(self.now * units)
        earliest: Any = Const(2**UNIT_BITS - 1, UNIT_BITS)
        for p in PORTS:
            valid, at = getattr(self, f"valid_{p}"), getattr(self, f"eligible_{p}")
            earliest = Mux(valid & (at < earliest), at, earliest)
            named = Signal(UNIT_BITS, name=f"earliest_{p}")
            m.d.comb += named.eq(earliest)
            earliest = named
        due = Signal(UNIT_BITS)
        after = Mux(earliest < free, free, earliest)
        m.d.comb += due.eq(Mux(after < now, now, after))
        wants = Signal(4)
        for i, p in enumerate(PORTS):
            m.d.comb += wants[i].eq(getattr(self, f"valid_{p}") & (getattr(self, f"eligible_{p}") <= due))
        chosen = Signal(2)
        turns = Array(wants[i] for i in range(4))
        for k in reversed(range(4)):
            turn = Signal(2, name=f"turn{k}")
            m.d.comb += turn.eq(last + 1 + k)
            with m.If(turns[turn]):
                m.d.comb += chosen.eq(turn)
        go = Signal()
        m.d.comb += [go.eq((wants != 0) & (due < now + units) & ~self.hold), self.begun.eq(due), self.busy.eq(go)]
        for i, p in enumerate(PORTS):
            m.d.comb += getattr(self, f"grant_{p}").eq(go & (chosen == i))
        with m.If(go):
            m.d.sync += [free.eq(due + burst), last.eq(chosen)]
        return m

"""24 semaphores: tokens are there `semaphore_cycles` after the end of what gives them."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.spec import QUEUES, SEMAPHORE_MAX, SEMAPHORES, Chip

from .queue import RIDERS

__all__ = ["Semaphores"]

TAKERS = (*QUEUES, "SEQ")


class Semaphores(wiring.Component):
    """Counts of 8 bits.

    tokens : which have a token. take_Q : masks taken in this cycle. post_Q_i : masks given in this cycle.
    arrive, arrive_sem : the network gives one. load, load_sem, load_count : the host sets a count before the start.
    fault : a count left 0..255.
    """

    def __init__(self, chip: Chip) -> None:
        self.delay = chip.semaphore_cycles - 1
        members = {f"take_{q}": In(SEMAPHORES) for q in TAKERS}
        members |= {f"post_{q}_{i}": In(SEMAPHORES) for q in QUEUES for i in range(RIDERS)}
        super().__init__(
            members
            | {
                "tokens": Out(SEMAPHORES),
                "arrive": In(SEMAPHORES),
                "load": In(1),
                "load_sem": In(5),
                "load_count": In(8),
                "fault": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        counts = [Signal(range(SEMAPHORE_MAX + 1), name=f"count{i}") for i in range(SEMAPHORES)]
        m.d.comb += self.tokens.eq(Cat(count != 0 for count in counts))
        takes = Signal(SEMAPHORES)
        m.d.comb += takes.eq(_any([getattr(self, f"take_{q}") for q in TAKERS]))
        # A semaphore has one posting queue (or the network): masks of one rank may be joined.
        given = [Signal(SEMAPHORES, name=f"given{i}") for i in range(RIDERS + 1)]
        for i in range(RIDERS):
            m.d.comb += given[i].eq(_any([getattr(self, f"post_{q}_{i}") for q in QUEUES]))
        m.d.comb += given[RIDERS].eq(self.arrive)
        for stage in range(self.delay):
            later = [Signal(SEMAPHORES, name=f"late{stage}_{i}") for i in range(RIDERS + 1)]
            m.d.sync += [new.eq(old) for new, old in zip(later, given, strict=True)]
            given = later
        for n, count in enumerate(counts):
            total = Signal(range(RIDERS + 2), name=f"total{n}")
            m.d.comb += total.eq(sum((mask[n] for mask in given), Const(0)))
            after = Signal(10, name=f"after{n}")
            m.d.comb += after.eq(count + total - takes[n])
            with m.If(after[8:] != 0):
                m.d.sync += self.fault.eq(1)
            with m.If(self.load & (self.load_sem == n)):
                m.d.sync += count.eq(self.load_count)
            with m.Else():
                m.d.sync += count.eq(after)
        return m


def _any(masks: list[Signal]) -> Signal:
    joined = masks[0]
    for mask in masks[1:]:
        joined = joined | mask
    return joined

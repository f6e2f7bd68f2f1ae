"""TOPK: the best of a row again and again, each time below the one before (docs/numerics.md rule 8)."""

from __future__ import annotations

from typing import Final

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith.spec import Chip

from .lane import is_nan
from .pick import order_key
from .rounding import NAN

__all__ = ["MEMBERS", "TopkEngine", "best_of"]

MEMBERS: Final = 64
"""Most rows in hand at a time: fewer than twice the sweeps that a row waits for its last choice."""


def best_of(m: Module, entries: list[tuple[Value, Value, Value]], name: str) -> tuple[Value, Value, Value]:
    """The largest key of (key, what it brings, whether it counts), the first of equal ones."""
    level, number = entries, 0
    while len(level) > 1:
        above: list[tuple[Value, Value, Value]] = []
        for i in range(0, len(level) - 1, 2):
            (key0, with0, live0), (key1, with1, live1) = level[i], level[i + 1]
            second = Signal(name=f"{name}_second{number}")
            key = Signal(len(key0), name=f"{name}_key{number}")
            brings = Signal(len(with0), name=f"{name}_with{number}")
            m.d.comb += [
                second.eq(live1 & (~live0 | (key1 > key0))),
                key.eq(Mux(second, key1, key0)),
                brings.eq(Mux(second, with1, with0)),
            ]
            number += 1
            above.append((key, brings, live0 | live1))
        level = above + level[len(level) // 2 * 2 :]
    return level[0]


class TopkEngine(wiring.Component):
    """Beats of a row: x0.., count (0: none), element (number of x0), ends; member: the row's place among those in hand;
    again: not the row's first choice.

    The cycle after a row ends: write, index, value.
    """

    def __init__(self, chip: Chip) -> None:
        self.lanes = chip.lanes
        super().__init__(
            {f"x{i}": In(32) for i in range(self.lanes)}
            | {
                "count": In(range(self.lanes + 1)), "element": In(20), "ends": In(1), "member": In(6), "again": In(1),
                "write": Out(1), "index": Out(32), "value": Out(32),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        m.submodules.choices = memory = Memory(shape=52, depth=MEMBERS, init=[])
        read, write = memory.read_port(domain="comb"), memory.write_port()
        last_key, last_index = read.data[:32], read.data[32:]
        m.d.comb += read.addr.eq(self.member)
        best_key, best_with, best_live = Signal(32, reset_less=True), Signal(52, reset_less=True), Signal()
        entries: list[tuple[Value, Value, Value]] = [(best_key, best_with, best_live)]
        for i in range(self.lanes):
            x = getattr(self, f"x{i}")
            key, index, live = Signal(32, name=f"key{i}"), Signal(20, name=f"index{i}"), Signal(name=f"live{i}")
            below = (key < last_key) | ((key == last_key) & (index > last_index))
            m.d.comb += [
                key.eq(order_key(x)),
                index.eq(self.element + i),
                live.eq((self.count > i) & (~self.again | below)),
            ]
            entries.append((key, Cat(index, x), live))
        key, brings, live = best_of(m, entries, "best")
        closes = Signal()
        m.d.comb += [
            closes.eq((self.count != 0) & self.ends),
            write.addr.eq(self.member),
            write.data.eq(Cat(key, brings[:20])),
            write.en.eq(closes),
        ]
        with m.If(self.count != 0):
            m.d.sync += [best_key.eq(key), best_with.eq(brings), best_live.eq(live & ~self.ends)]
        value = Signal(32, reset_less=True)
        index = Signal(20, reset_less=True)
        m.d.sync += [
            self.write.eq(closes),
            index.eq(brings[:20]),
            value.eq(Mux(is_nan(brings[20:]), NAN, brings[20:])),
        ]
        m.d.comb += [self.index.eq(index), self.value.eq(value)]
        return m

"""The balanced binary tree over a row that streams through the lanes: a tree across them, then a chain of pending sums.

docs/numerics.md rule 5: level by level, element 2i with 2i + 1, an odd last one passes up unchanged. Beat i brings the
elements i * lanes and up, so the tree across lanes makes node i of level log2(lanes); the chain goes on from there:
stage k keeps a node of level k until its partner arrives, as a binary counter keeps its carries.
"""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.spec import Chip

from .fp32 import Fp32Add
from .lane import Line, chosen, order
from .leaf import leaf

__all__ = ["Reduce", "SumTree"]

EXTENT_BITS = 20


class SumTree(wiring.Component):
    """x0..x{lanes-1}, count, last -> value with done = 1 for one cycle.

    count : elements of this beat, x0 first; 0: no beat    last : it ends the row
    clear : for one cycle before an instruction: what an earlier one left on levels that it did not need is forgotten
    lane_levels, beat_levels : levels across lanes and over beats that the row needs; they stand still.
    The result comes (lane_levels + beat_levels) adders' cycles after the last beat.
    """

    def __init__(self, chip: Chip) -> None:
        self.add, self.lanes, self.log2 = chip.fp32_add_cycles, chip.lanes, chip.log2_lanes
        self.stages = EXTENT_BITS  # a row of one element a beat has 2^20 beats at most
        super().__init__(
            {f"x{i}": In(32) for i in range(self.lanes)}
            | {
                "count": In(range(self.lanes + 1)),
                "last": In(1),
                "clear": In(1),
                "lane_levels": In(range(self.log2 + 1)),
                "beat_levels": In(range(EXTENT_BITS + 1)),
                "value": Out(32),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        add = self.add
        nodes: list[Value] = [getattr(self, f"x{i}") for i in range(self.lanes)]
        live: list[Value] = [self.count > i for i in range(self.lanes)]
        last: Value = self.last & live[0]
        feet, feet_live, feet_last = {0: nodes[0]}, {0: live[0]}, {0: last}
        for level in range(self.log2):
            above, above_live = [], []
            for i in range(0, len(nodes), 2):
                name = f"level{level}_node{i // 2}"
                both_sum = self._adder(m, name, nodes[i], nodes[i + 1])
                alone = Line(m, nodes[i], f"{name}_alone")[add]
                both = Line(m, live[i + 1], f"{name}_both")[add]
                node = Signal(32, name=f"{name}_sum")
                m.d.comb += node.eq(Mux(both, both_sum, alone))
                above.append(node)
                above_live.append(self._flag(m, live[i], f"{name}_live"))
            nodes, live, last = above, above_live, self._flag(m, last, f"level{level}_last")
            feet[level + 1], feet_live[level + 1], feet_last[level + 1] = nodes[0], live[0], last
        value: Value = chosen(m, self.lane_levels, feet, 32, "foot")
        arrives: Value = chosen(m, self.lane_levels, feet_live, 1, "foot_live")
        ends: Value = chosen(m, self.lane_levels, feet_last, 1, "foot_last")
        values, dones = {0: value}, {0: arrives & ends}
        for stage in range(self.stages):
            pending = Signal(32, name=f"stage{stage}_pending", reset_less=True)
            waits = Signal(name=f"stage{stage}_waits")
            both_sum = self._adder(m, f"stage{stage}", pending, value)
            pairs, passes = Signal(name=f"stage{stage}_pairs"), Signal(name=f"stage{stage}_passes")
            m.d.comb += [pairs.eq(arrives & waits), passes.eq(arrives & ~waits & ends)]
            with m.If(arrives):
                m.d.sync += waits.eq(~waits & ~ends)
                with m.If(~waits):
                    m.d.sync += pending.eq(value)
            alone = Line(m, value, f"stage{stage}_alone")[add]
            both = Line(m, pairs, f"stage{stage}_both")[add]
            out = Signal(32, name=f"stage{stage}_sum")
            m.d.comb += out.eq(Mux(both, both_sum, alone))
            arrives = self._flag(m, pairs | passes, f"stage{stage}_live")
            ends = self._flag(m, ends & arrives_of(pairs, passes), f"stage{stage}_last")
            value = out
            values[stage + 1], dones[stage + 1] = value, arrives & ends
        m.d.comb += [
            self.value.eq(chosen(m, self.beat_levels, values, 32, "result")),
            self.done.eq(chosen(m, self.beat_levels, dones, 1, "finished")),
        ]
        return m

    def _adder(self, m: Module, name: str, x: Value, y: Value) -> Signal:
        """Sum of two nodes, an adder later."""
        out = Signal(32, name=f"{name}_both_sum")
        m.submodules[name] = leaf(
            f"fp32_add_{self.add}", lambda: Fp32Add(self.add), i_clk=ClockSignal(), i_x=x, i_y=y, o_value=out
        )
        return out

    def _flag(self, m: Module, value: Value, name: str) -> Value:
        """The same, an adder later; control, so it is reset."""
        for i in range(self.add):
            stage = Signal(name=f"{name}_{i}")
            m.d.sync += stage.eq(value & ~self.clear)
            value = stage
        return value


def arrives_of(pairs: Value, passes: Value) -> Value:
    """Whether a stage lets a node up."""
    return pairs | passes


class Reduce(wiring.Component):
    """x0..x{lanes-1}, count, last -> value, good in the row's last beat: signed maximum or sum modulo 2^32.

    total : sum, else maximum    floats : FP32 bits in the order of max (NaN on top, -0 below +0)
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(
            {f"x{i}": In(32) for i in range(lanes)}
            | {"count": In(range(lanes + 1)), "last": In(1), "total": In(1), "floats": In(1), "value": Out(32)}
        )

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        kept, keeps = Signal(32, reset_less=True), Signal()
        level: list[tuple[Value, Value]] = []
        for i in range(self.lanes):
            x = Signal(32, name=f"key{i}")
            raw = getattr(self, f"x{i}")
            m.d.comb += x.eq(Mux(self.floats, order(raw).as_unsigned(), raw))
            level.append((x, self.count > i))
        level.append((kept, keeps))
        number = 0
        while len(level) > 1:
            above = []
            for i in range(0, len(level) - 1, 2):
                (x, x_live), (y, y_live) = level[i], level[i + 1]
                node = Signal(32, name=f"node{number}")
                number += 1
                best = Mux(self.total, x + y, Mux(x.as_signed() > y.as_signed(), x, y))
                m.d.comb += node.eq(Mux(x_live & y_live, best, Mux(y_live, y, x)))
                above.append((node, x_live | y_live))
            if len(level) % 2:
                above.append(level[-1])
            level = above
        found = level[0][0]
        m.d.comb += self.value.eq(Mux(self.floats, order(found).as_unsigned(), found))  # `order` undoes itself
        with m.If(self.count != 0):
            m.d.sync += [kept.eq(found), keeps.eq(~self.last)]
        return m

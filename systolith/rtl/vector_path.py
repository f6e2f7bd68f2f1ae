"""The way of values through the vector unit: addresses, reads, lanes, reductions, quantiser."""

from __future__ import annotations

from amaranth.hdl import Cat, ClockSignal, Const, Mux, ResetSignal, Signal, Value
from amaranth.lib.memory import Memory

from systolith.isa.descriptor import Format
from systolith.isa.vector import Red
from systolith.spec import BLOCK

from .convert import scale_code
from .lane import LANE_PORTS, Lane, Line, op1_cycles, op2_cycles
from .leaf import leaf
from .pick import PickEngine
from .ports import ADDRESS_BITS
from .quantise import Quantise
from .topk import TopkEngine
from .tree import Reduce, SumTree
from .vector_rule import READS, SPACES, VectorRule
from .walk import Address, Place

__all__ = ["VectorPath"]


class VectorPath(VectorRule):
    """From the walk's beats to results and the addresses that wait for them. `rtl.vector` has the whole."""

    pick: PickEngine
    topk: TopkEngine

    def _addresses(self) -> None:
        """Where each operand's beat lies, in the cycle of the access."""
        m = self.m
        self.places: dict[str, Place] = {}
        self.list_asks = {x: (Signal(name=f"{x}_asks"), Signal(32, name=f"{x}_asked")) for x in "abcfde"}
        self.group_asks = {x: (Signal(name=f"{x}_group_asks"), Signal(32, name=f"{x}_group_asked")) for x in "de"}
        for x in "abcfde":
            self.places[x] = Address(
                m, x, self.chip, self.walk, self.operands[x], self.lists,
                still=~self.is_vec if x in "cdf" else Const(x == "e", 1),
                by_sweep=self.is_pick if x == "c" else Const(0, 1), by_round=self.is_topk if x in "de" else Const(0, 1),
                list_enable=self.list_asks[x][0], list_address=self.list_asks[x][1],
                list_data=getattr(self, f"{x}_list_data"),
            ).place  # fmt: skip
            en, addr = getattr(self, f"{x}_list_en"), getattr(self, f"{x}_list_addr")
            m.d.comb += [en.eq(self.list_asks[x][0]), addr.eq(self.list_asks[x][1])]
            if x in "de":  # GROUP asks for rows of its own
                with m.If(self.group_asks[x][0]):
                    m.d.comb += [en.eq(1), addr.eq(self.group_asks[x][1])]
        walk, bank = self.walk, self.chip.bank_cycles
        head = self._signal("walked", Cat(walk.count, walk.last, walk.sweep))
        more = self._signal("walked_more", Cat(walk.element, walk.member, walk.round != 0))
        self.beat_more = self._signal("accessed_more", Mux(self.lists, self._late(more, bank, "walked_more"), more))
        late = self._late(head, bank, "walked")
        self.beat = self._signal("accessed", Mux(self.lists, late, head))
        n = len(walk.count)
        self.count, self.ends, self.sweep = self.beat[:n], self.beat[n], self.beat[n + 1 :]

    def _late(self, value: Value, cycles: int, name: str) -> Value:
        """Delay what controls: with reset."""
        for i in range(cycles):
            stage = Signal(len(value), name=f"{name}_{i + 1}")
            self.m.d.sync += stage.eq(value)
            value = stage
        return value

    def _read(self) -> None:
        """Drive the read ports; take apart what comes back, a bank's latency later."""
        m, chip = self.m, self.chip
        live = self._signal("live", self.count != 0)
        self.raw: dict[str, list[Value]] = {}
        self.scales: dict[str, list[Value]] = {}
        for x in READS:
            operand, place = self.operands[x], self.places[x]
            here: Value = Const(0, 32 * chip.lanes)
            for name, space in SPACES.items():
                mine = operand.present & (operand.space == space)
                if x == "b":  # of GROUP is written
                    mine = mine & ~self.is_group
                m.d.comb += [
                    getattr(self, f"{x}_{name}_en").eq(live & mine),
                    getattr(self, f"{x}_{name}_addr").eq(place.address),
                ]
                here = Mux(operand.space == space, getattr(self, f"{x}_{name}_data"), here)
            beat = self._signal(f"{x}_beat", here)
            odd = Line(m, place.elements[0], f"{x}_odd")[chip.bank_cycles]
            single = self._signal(f"{x}_single", (operand.stride2 == 0) | self.narrow)
            lanes = []
            for i in range(chip.lanes):
                lane = Signal(32, name=f"{x}_raw{i}")
                with m.Switch(operand.format):
                    with m.Case(Format.FP32, Format.INT32):
                        m.d.comb += lane.eq(Mux(single, beat[:32], beat[32 * i : 32 * i + 32]))
                    with m.Case(Format.E2M1):
                        nibble = Mux(odd, beat[4:8], beat[:4])
                        m.d.comb += lane.eq(Mux(single, nibble, beat[4 * i : 4 * i + 4]))
                    with m.Default():
                        m.d.comb += lane.eq(Mux(single, beat[:8], beat[8 * i : 8 * i + 8]))
                lanes.append(lane)
            self.raw[x] = lanes
            if x == "f":
                continue
            en, addr = getattr(self, f"{x}_scale_en"), getattr(self, f"{x}_scale_addr")
            m.d.comb += [en.eq(live & operand.scale), addr.eq(place.scale)]
            data = getattr(self, f"{x}_scale_data")
            blocks = len(data) // 8
            self.scales[x] = [
                self._signal(
                    f"{x}_scale{i}",
                    Mux(operand.scale, Mux(single, data[:8], data.word_select(i * blocks // chip.lanes, 8)), 127),
                )
                for i in range(chip.lanes)
            ]

    def _at(self, place: Value, name: str) -> Value:
        """Count, end and sweep of the beat that is `place` cycles after its access."""
        if not hasattr(self, "_history"):
            depth = self.chip.bank_cycles + self.chip.fp32_multiply_cycles + self.chip.function_cycles
            depth += max(op1_cycles(self.chip).values()) + max(op2_cycles(self.chip).values())
            beat: Value = Mux(self.is_vec, self.beat, 0)
            self._history = [self._signal("beat_0", beat)]
            for i in range(depth):
                self._history.append(Signal(len(self.beat), name=f"beat_{i + 1}"))
                # What an earlier instruction left in the stages behind its own last one is forgotten.
                self.m.d.sync += self._history[-1].eq(Mux(self.start, 0, self._history[-2]))
        out = Signal(len(self.beat), name=name)
        with self.m.Switch(place):
            for i, value in enumerate(self._history):
                with self.m.Case(i):
                    self.m.d.comb += out.eq(value)
        return out

    def _split(self, beat: Value) -> tuple[Value, Value, Value]:
        n = len(self.walk.count)
        return beat[:n], beat[n], beat[n + 1 :]

    def _lanes(self) -> None:
        """The lanes, and the mask at their end."""
        m, chip = self.m, self.chip
        op = self.operands
        self.out = self._at(self.last, "beat_out")
        self.out_count, self.out_ends, self.out_sweep = self._split(self.out)
        # The row of the mask and its column are counted again where the values leave.
        mask, group = self._field("mask"), self._field("group")
        column, inside, token = Signal(32), Signal(8), Signal(32)
        live = self._signal("out_live", self.out_count != 0)
        with m.If(self.start):
            m.d.sync += [column.eq(0), inside.eq(0), token.eq(0)]
        with m.Elif(live):
            m.d.sync += column.eq(column + self.out_count)
            with m.If(self.out_ends):
                m.d.sync += [column.eq(0), inside.eq(inside + 1)]
                with m.If(inside == group - 1):
                    m.d.sync += [inside.eq(0), token.eq(token + 1)]
        high = self._signal("high", self.command_now.r_hi + Mux(group == 0, 0, token))
        low = self._signal("low", high - self.command_now.r_w)
        windowed = self._field("rw") != 0
        self.after, self.square, self.value = [], [], []
        for i in range(chip.lanes):
            j = self._signal(f"column{i}", self.command_now.r_j + column + i)
            hide = self._signal(f"hide{i}", mask & ((j >= high) | (windowed & (j < low))))
            values: dict[str, Value] = {f"{x}_raw": self.raw[x][i] for x in READS}
            values |= {f"{x}_scale": self.scales[x][i] for x in "abc"} | {f"{x}_form": op[x].format for x in "abc"}
            values |= {
                "dequantised": self.dequantised, "op1": self.op1, "op2": self.op2, "func": self.func,
                "squared": self.red == Red.SUMSQ, "hide": hide & self.is_vec,
            }  # fmt: skip
            after, square, value = (Signal(32, name=f"{x}{i}") for x in ("after", "square", "value"))
            m.submodules[f"lane{i}"] = leaf(
                "vector_lane", lambda: Lane(chip), i_clk=ClockSignal(), i_rst=ResetSignal(), o_after=after,
                o_square=square, o_value=value, **{f"i_{x}": values[x] for x in LANE_PORTS},
            )  # fmt: skip
            self.after.append(after)
            self.square.append(square)
            self.value.append(value)

    def _sums(self) -> None:
        """Reductions: the tree of sums, and what takes a cycle a level."""
        m, chip = self.m, self.chip
        multiply = chip.fp32_multiply_cycles
        squares = self._signal("squares", self.red == Red.SUMSQ)
        summed = self._signal("summed", self.is_vec & (squares | (self.red == Red.SUM)))
        place = self._signal("sum_place", Mux(squares, self.read_cycles + multiply, self.first))
        count, ends, _ = self._split(self._at(place, "beat_sum"))
        self.sum_value, self.sum_done = Signal(32), Signal()
        inputs = {
            f"i_x{i}": self._signal(f"sum_x{i}", Mux(squares, self.square[i], self.after[i])) for i in range(chip.lanes)
        }
        m.submodules.sums = leaf(
            "vector_sum", lambda: SumTree(chip), i_clk=ClockSignal(), i_rst=ResetSignal(),
            i_count=Mux(summed, count, 0), i_last=ends, i_clear=self.start,
            i_lane_levels=self.lane_levels, i_beat_levels=self.beat_levels,
            o_value=self.sum_value, o_done=self.sum_done, **inputs,
        )  # fmt: skip
        self.summed = summed
        m.submodules.reduce = reduce = Reduce(chip.lanes)
        m.d.comb += [
            *(getattr(reduce, f"x{i}").eq(v) for i, v in enumerate(self.value)),
            reduce.count.eq(self.out_count), reduce.last.eq(self.out_ends),
            reduce.total.eq(self.red == Red.ISUM), reduce.floats.eq(self.red == Red.FMAX),
        ]  # fmt: skip
        largest = reduce.value
        ceiling = (largest.as_signed() + 0xFFFF) >> 16
        above = (self.red == Red.CEILMAX) & (largest != 0x80000000)
        self.reduced = self._signal("reduced", Mux(above, ceiling[:32], largest)[:32])

    def _queues(self) -> None:
        """Addresses of results wait for the results."""
        m = self.m
        first_sweep = self.rowscale & (self.sweep == 0)
        place = self.places["d"]
        live = self._signal("accessed_live", self.count != 0)
        ends = self._signal("accessed_ends", live & self.ends)
        chosen = (self.is_topk & ends) | (self.is_pick & ends & (self.sweep == 0))
        present = self.operands["d"].present
        into = self._signal("d_into", Mux(self.is_vec, live & present & ~first_sweep, chosen))
        self.d_live = self._signal("d_live", (self.out_count != 0) & present & ~(self.rowscale & (self.out_sweep == 0)))
        taken = self._signal("d_taken", self.d_live | self.pick.write | self.topk.write)
        depth = len(self._history) + 2
        address = self._queue("d", depth, into, Cat(place.address, place.scale), taken)
        self.d_address, self.d_scale = address[:ADDRESS_BITS], address[ADDRESS_BITS:]
        levels = 20 * self.chip.fp32_add_cycles
        row_ends = self._signal("e_into", ends & Mux(self.is_vec, ~first_sweep & (self.red != Red.NONE), self.is_topk))
        self.e_taken = Signal()
        self.e_address = self._queue("e", depth + levels, row_ends, self.places["e"].address, self.e_taken)
        code = self._row_scale()
        ended = self._signal(
            "e_ended", self.is_vec & (self.out_count != 0) & self.out_ends & (self.red != Red.NONE) & ~self.summed
        )
        ready = Mux(self.rowscale, ended & (self.out_sweep == 1), ended)
        m.d.comb += self.e_taken.eq(Mux(self.is_topk, self.topk.write, Mux(self.summed, self.sum_done, ready)))
        reduced = Mux(self.rowscale, code, Mux(self.summed, self.sum_value, self.reduced))
        self.e_value = self._signal("e_value", Mux(self.is_topk, self.topk.value, reduced))

    def _queue(self, name: str, depth: int, put: Value, data: Value, get: Value) -> Value:
        """A queue whose head is read in the cycle it is taken."""
        m = self.m
        size = 1 << (depth - 1).bit_length()
        memory = Memory(shape=len(data), depth=size, init=[])
        m.submodules[f"{name}_addresses"] = memory
        write, read = memory.write_port(), memory.read_port(domain="comb")
        at, to = Signal(range(size), name=f"{name}_put"), Signal(range(size), name=f"{name}_get")
        m.d.comb += [write.addr.eq(at), write.data.eq(data), write.en.eq(put), read.addr.eq(to)]
        m.d.sync += [at.eq(at + put), to.eq(to + get)]
        with m.If(self.start):
            m.d.sync += [at.eq(0), to.eq(0)]
        return read.data

    def _row_scale(self) -> Value:
        """Scale of ROWSCALE: the largest magnitude of a row's first sweep."""
        m = self.m
        largest = Signal(31, name="row_largest")
        level: list[Value] = [Mux(self.out_count > i, v[:31], 0) for i, v in enumerate(self.value)]
        level.append(largest)
        number = 0
        while len(level) > 1:
            above: list[Value] = []
            for i in range(0, len(level) - 1, 2):
                above.append(self._signal(f"row_{number}", Mux(level[i] > level[i + 1], level[i], level[i + 1])))
                number += 1
            level = above + level[len(level) // 2 * 2 :]
        scale = Signal(8, name="row_scale", reset_less=True)
        with m.If(self.rowscale & (self.out_count != 0)):
            m.d.sync += largest.eq(Mux(self.out_ends, 0, level[0]))
            with m.If(self.out_ends & (self.out_sweep == 0)):
                m.d.sync += scale.eq(scale_code(level[0], self.operands["d"].format))
        with m.If(self.start):
            m.d.sync += largest.eq(0)
        self.row_scale = scale
        return scale

    def _quantise(self) -> None:
        """Beats for the converter: narrow ones are packed first, where the codes stand side by side."""
        m, chip = self.m, self.chip
        lanes = chip.lanes
        d = self.operands["d"]
        codes = self._signal("to_codes", self.d_live & (self.quantised | self.rowscale))
        pack = self._signal("packs", self.narrow & (d.stride2 == 1))
        place = Signal(range(lanes + 1), name="pack_place")
        kept = [Signal(32, name=f"pack{i}", reset_less=True) for i in range(lanes)]
        kept_address, kept_scale = Signal(32, reset_less=True), Signal(32, reset_less=True)
        full = self._signal("pack_full", self.out_ends | (place == lanes - 1))
        with m.If(codes & pack):
            m.d.sync += place.eq(Mux(full, 0, place + 1))
            for i in range(lanes):
                with m.If(place == i):
                    m.d.sync += kept[i].eq(self.value[0])
            with m.If(place == 0):
                m.d.sync += [kept_address.eq(self.d_address), kept_scale.eq(self.d_scale)]
        fresh = place == 0
        inputs: dict[str, Value] = {}
        # A row of codes at one address (stride 0) keeps its last one, as writing them in turn would.
        only_last = self._signal("only_last", self.rowscale & (d.stride2 == 0) & (self.n > 1) & ~self.narrow)
        chosen = self.value[0]
        for i in range(1, lanes):
            chosen = Mux(self.out_count == i + 1, self.value[i], chosen)
        chosen = self._signal("last_value", chosen)
        self.last_value = chosen
        for i in range(lanes):
            packed = Mux(place == i, self.value[0], kept[i])
            plain = Mux(only_last, chosen, self.value[i]) if i == 0 else self.value[i]
            inputs[f"i_x{i}"] = self._signal(f"quantise_x{i}", Mux(pack, packed, plain))
        count = Mux(pack, Mux(full, place + 1, 0), Mux(only_last, 1, self.out_count))
        width, blocks = max(BLOCK, lanes), max(1, lanes // BLOCK)
        outs = {
            "write": 1, "write_address": 32, "data": 8 * width, "bytes": len(Signal(range(width + 1))),
            "scale_write": 1, "scale_to": 32, "scale_data": 8 * blocks, "scales": len(Signal(range(blocks + 1))),
        }  # fmt: skip
        self.quantiser = {name: Signal(bits, name=f"quantise_{name}") for name, bits in outs.items()}
        m.submodules.quantise = leaf(
            "vector_quantise", lambda: Quantise(chip), i_clk=ClockSignal(), i_rst=ResetSignal(),
            i_count=self._signal("quantise_count", Mux(codes, count, 0)), i_last=self.out_ends,
            i_address=Mux(pack & ~fresh, kept_address, self.d_address),
            i_scale_address=Mux(pack & ~fresh, kept_scale, self.d_scale), i_form=d.format, i_whole=self.rowscale,
            i_scale=self.row_scale, **inputs, **{f"o_{name}": signal for name, signal in self.quantiser.items()},
        )  # fmt: skip

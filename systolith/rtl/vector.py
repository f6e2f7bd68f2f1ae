"""The vector unit: one instruction at a time, in the cycles of `isa.cycles.vector`, from first read to last write.

`walk` goes through rows and beats, `lane` holds the arithmetic, `tree` the reductions, `quantise` the conversion on
write, `pick`, `topk`, `group` the choices. Here they are joined, and the rule's `hold` and `tail` are counted: hold by
the walk itself, tail by a counter, while the pipeline, which has that depth or less, empties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from amaranth.hdl import Cat, ClockSignal, Const, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory

from systolith.isa import facts as fact_names
from systolith.isa.choice import Group, Topk
from systolith.isa.descriptor import Format, Space
from systolith.isa.facts import facts
from systolith.isa.vector import Func, Pick, Red, Vec
from systolith.spec import BLOCK, Chip

from .convert import scale_code
from .group import GroupEngine
from .lane import LANE_PORTS, Lane, Line, op1_cycles, op2_cycles
from .leaf import leaf
from .pick import PICK_SWEEPS, PickEngine
from .ports import ADDRESS_BITS, Port, command_layout, handshake, port_members
from .quantise import Quantise
from .topk import TopkEngine
from .tree import EXTENT_BITS, Reduce, SumTree
from .walk import CYCLE_BITS, Address, Place, Walk, log2_up

__all__ = ["VectorUnit", "vector_ports"]

READS: Final = "abcf"
SPACES: Final = {"spad": Space.SPAD, "acc": Space.ACC, "cell": Space.CELL}


def vector_ports(chip: Chip) -> list[Port]:
    """Ports of the unit: a beat of each operand, its scales, its list."""
    wide, scales = 4 * chip.lanes, max(1, chip.lanes // BLOCK)
    ports = [Port(f"{x}_{space}", where, wide) for x in READS for space, where in SPACES.items()]
    ports += [Port(f"{x}_scale", Space.SPAD, scales) for x in "abc"]
    ports += [Port(f"{x}_list", Space.SPAD, 4) for x in "abcfde"]
    ports += [
        Port("d_spad", Space.SPAD, max(wide, BLOCK), write=True),
        Port("d_cell", Space.CELL, wide, write=True),
        Port("d_scales", Space.SPAD, scales, write=True),
    ]
    # GROUP writes six words a cycle: two lists, a row of four; and one more, the number of keys.
    ports += [
        Port(f"{x}_{name}", space, 4, write=True)
        for x in ("e", "e1", "e2", "e3", "d2", "n")
        for name, space in (("spad", Space.SPAD), ("cell", Space.CELL))
    ]
    return ports


@dataclass
class Grouped:
    """What GROUP writes in a cycle: a word of each list, a row of four words, the number of keys."""

    engine: GroupEngine
    first_to: Value
    second_to: Value
    count_to: Value
    rows_write: Value
    row_words: list[Value]
    row_to: list[Value]


class VectorUnit(wiring.Component):
    """Handshake of queue V and `vector_ports`; docs/decisions/0010-rtl.md has the cycles."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.ports = vector_ports(chip)
        super().__init__(handshake("V") | port_members(self.ports))

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        self.m = m
        chip = self.chip
        self.command_now = command = Signal(command_layout("V"), name="held", reset_less=True)
        self.operands: dict[str, Any] = {x: command[x] for x in "abcfde"}
        with m.If(self.start):
            m.d.sync += command.eq(self.command)
        m.submodules.walk = self.walk = Walk(chip.lanes)
        self._static()
        self._cycles()
        self._addresses()
        self._read()
        self._lanes()
        self._sums()
        self._choose()
        self._queues()
        self._quantise()
        self._write()
        return m

    # --- what stands still while an instruction runs ---

    def _field(self, name: str) -> Value:
        bits = next(bits for bits in Vec.LAYOUT if bits.name == name)
        return self.command_now.fields[bits.low : bits.low + bits.width]

    def _signal(self, name: str, value: Value) -> Signal:
        """Name a value."""
        out = Signal(Value.cast(value).shape(), name=name)
        self.m.d.comb += out.eq(value)
        return out

    def _static(self) -> None:
        """Fields, extents, and which operands need what."""
        m, op = self.m, self.operands
        self.op1, self.op2, self.func, self.red = (self._field(x) for x in ("op1", "op2", "func", "red"))
        self.is_vec = self._signal("is_vec", self.command_now.op == Vec.OPCODE)
        self.is_pick = self._signal("is_pick", self.command_now.op == Pick.OPCODE)
        self.is_topk = self._signal("is_topk", self.command_now.op == Topk.OPCODE)
        self.is_group = self._signal("is_group", self.command_now.op == Group.OPCODE)
        self.n = op["a"].ext2
        self.rowscale = self._signal("rowscale", self.is_vec & (self.red == Red.ROWSCALE))
        strides = [op[x].present & (op[x].stride2 != 0) & (op[x].stride2 != 1) for x in "abcfd"]
        watched = Mux(self.is_vec, Cat(*strides), Mux(self.is_pick, Cat(*strides[:2]), strides[0]))
        self.narrow = self._signal("narrow", watched.any() & (self.n > 1))
        self.lists = self._signal("lists", Cat(*(x.via for x in op.values())).any())
        codes = [op[x].present & (op[x].format <= Format.INT8) for x in "abc"]
        self.dequantised = self._signal("dequantised", Cat(*codes).any() & self.is_vec)
        self.quantised = self._signal("quantised", self.is_vec & op["d"].present & op["d"].scale)
        log = self.chip.log2_lanes
        self.beats = self._signal("beats", (self.n + (self.chip.lanes - 1)) >> log)
        self.steps = self._signal("steps", Mux(self.narrow, self.n, self.beats)[:20])
        self.levels = log2_up(m, self.n, "levels")
        self.lane_levels = self._signal("lane_levels", Mux(self.narrow, 0, Mux(self.levels > log, log, self.levels)))
        self.beat_levels = self._signal("beat_levels", (self.levels - self.lane_levels)[: len(self.levels)])

    # --- cycles ---

    def _bank_of(self, x: str) -> Signal:
        """Port of an operand as the rule names it: 0 none, 1 the accumulator's, 2 and up the banks."""
        operand, m = self.operands[x], self.m
        size = self.chip.bank_size_bytes
        out = Signal(range(self.chip.banks + 2), name=f"{x}_port")
        with m.If(operand.present & (operand.space == Space.ACC)):
            m.d.comb += out.eq(1)
        with m.Elif(operand.present & (operand.space == Space.SPAD)):
            m.d.comb += out.eq(2)
            for i in range(1, self.chip.banks):
                with m.If(operand.base >= i * size):
                    m.d.comb += out.eq(2 + i)
        return out

    def _cycles(self) -> None:
        """The rule: period of a row, gap of ROWSCALE, tail."""
        m, chip, op = self.m, self.chip, self.operands
        port = {x: self._bank_of(x) for x in "dabcef"}
        accesses = {}
        for x in "dabcf":
            operand = op[x]
            broadcast = (operand.stride2 == 0) & (self.n > 1)
            moves = (operand.stride0 != 0) | (operand.stride1 != 0)
            count = Mux(broadcast, moves, Mux(operand.stride2 == 1, self.beats, self.n) + operand.scale)
            accesses[x] = self._signal(f"{x}_accesses", Mux(port[x] == 0, 0, count))
        accesses["e"] = self._signal("e_accesses", port["e"] != 0)
        lists = sum((x.via for x in op.values()), Const(0, 3))
        most: Value = Mux(lists > self.beats, lists, self.beats)
        strided = self.narrow & self.is_vec  # cells too give one element a cycle
        most = Mux(strided & (self.n > most), self.n, most)
        for x in "dabcef":
            total: Value = Const(0, 1)
            for y in "dabcef":
                total = total + Mux(port[y] == port[x], accesses[y], 0)
            asked = self._signal(f"{x}_port_asked", Mux(port[x] == 0, 0, total))
            most = self._signal(f"most_{x}", Mux(asked > most, asked, most))
        row = self._signal("row_cycles", most[:CYCLE_BITS])
        f = facts(chip)
        add, multiply, bank = (int(f[getattr(fact_names, n)]) for n in ("ADD", "MULTIPLY", "BANK"))
        self.read_cycles = self._signal("read_cycles", bank + Mux(self.dequantised, multiply, 0))  # after the access
        first = self._table("op1_cycles", self.op1, op1_cycles(chip)) + self.read_cycles
        self.first = self._signal("first_cycles", first)
        last = self.first + self._table("op2_cycles", self.op2, op2_cycles(chip))
        last += Mux(self.func != Func.NONE, chip.function_cycles, 0)
        self.last = self._signal("last_cycles", last)
        more = self._signal("list_cycles", Mux(self.lists, bank, 0))
        sums = self._signal(
            "sum_cycles", Mux(self.red == Red.SUM, self.first, self.read_cycles + multiply) + self.levels * add
        )
        is_sum = (self.red == Red.SUM) | (self.red == Red.SUMSQ)
        reduced = Mux(self.red == Red.NONE, 0, Mux(is_sum, sums, self.last + self.levels))
        block = self.last + (-(-BLOCK // chip.lanes) - 1 + chip.convert_cycles)
        end = self._signal("end_reduced", Mux(reduced > self.last, reduced, self.last))
        end = self._signal("end_block", Mux(self.quantised & (block > end), block, end))
        vec_tail = Mux(self.rowscale, self.last + chip.convert_cycles, end) + more + bank
        drain = self._signal("drain", self.levels + (bank + 1))
        # TOPK: a row waits `waits` cycles for its last choice; so many rows as that takes go through in turn.
        rows = self._signal("rows", op["a"].ext0 * op["a"].ext1)
        waits = self._signal("topk_waits", self.levels + 1)
        crowd = Signal(6)
        m.d.comb += crowd.eq(2)
        for more_rows in range(2, EXTENT_BITS + 2):
            with m.If(self.steps * (more_rows - 1) < waits):
                m.d.comb += crowd.eq(more_rows + 1)
        taken = self._signal("topk_taken", rows[:6] * self.steps)
        pads = (rows < crowd) & (taken < self.steps + waits)
        self.m.d.comb += [
            self.walk.go.eq(self.start),
            self.walk.rows0.eq(op["a"].ext0),
            self.walk.rows1.eq(op["a"].ext1),
            self.walk.elements.eq(self.n),
            self.walk.narrow.eq(self.narrow),
            self.walk.steps.eq(self.steps),
            self.walk.period.eq(Mux(self.is_pick, self.steps + drain, Mux(self.is_vec, row, self.steps))),
            self.walk.rounds.eq(Mux(self.is_topk, op["d"].ext2[:7], 1)),
            self.walk.crowd.eq(crowd),
            self.walk.pad.eq(Mux(pads, self.steps + waits - taken, 0)),
            self.walk.sweeps.eq(Mux(self.is_pick, PICK_SWEEPS, Mux(self.rowscale, 2, 1))),
            self.walk.gap.eq(Mux(self.rowscale, self.last + more + self.levels, 0)),
        ]
        pairs = self.pairs = self._signal("pairs", (rows * self.n)[:13])
        group_tail = log2_up(m, pairs, "group_levels") + (2 * bank + 1) + more
        topk_tail = 2 * bank + more + waits
        chosen = Mux(self.is_pick, more + bank, Mux(self.is_topk, topk_tail, group_tail))
        tail = self._signal("tail", Mux(self.is_vec, vec_tail, chosen))
        left = Signal(range(1 << 12), name="tail_left")
        ending = Signal()
        busy = Signal()
        # GROUP: every pair meets all others, `lanes` a cycle, and is written. The walk only reads the keys.
        meets = self._signal("group_cycles", pairs * ((pairs + (chip.lanes - 1)) >> chip.log2_lanes) + pairs)
        spent = Signal(24)
        m.d.sync += spent.eq(Mux(self.start, 0, spent + 1))
        over = Mux(self.is_group, busy & ~ending & (spent == meets - 1), self.walk.final)
        with m.If(over):
            m.d.sync += [left.eq(tail), ending.eq(1)]
        with m.Elif(ending):
            m.d.sync += left.eq(left - 1)
        m.d.comb += [self.done.eq(ending & (left == 1)), self.ready.eq(~busy | self.done)]
        with m.If(self.done):
            m.d.sync += [ending.eq(0), busy.eq(0)]
        with m.If(self.start):
            m.d.sync += busy.eq(1)
        self.busy = busy

    def _table(self, name: str, code: Value, cycles: Any) -> Signal:
        """Look up the cycles of an operation."""
        out = Signal(range(max(cycles.values()) + 1), name=name)
        with self.m.Switch(code):
            for key, value in cycles.items():
                with self.m.Case(int(key)):
                    self.m.d.comb += out.eq(value)
        return out

    # --- reading ---

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

    # --- arithmetic ---

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

    # --- writing ---

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

    def _choose(self) -> None:
        """PICK and TOPK."""
        m, chip = self.m, self.chip
        m.submodules.pick = engine = PickEngine(chip)
        beat: Value = Mux(self.is_pick, self.beat, 0)
        count, ends, sweep = self._split(self._late(beat, chip.bank_cycles, "pick_beat"))
        cells = [self.raw[x][0] for x in "cf"]
        m.d.comb += [
            engine.go.eq(self.start & (self.command.op == Pick.OPCODE)),
            *(getattr(engine, f"x{i}").eq(self.raw["a"][i]) for i in range(chip.lanes)),
            *(getattr(engine, f"w{i}").eq(self.raw["b"][i]) for i in range(chip.lanes)),
            engine.count.eq(count), engine.ends.eq(ends), engine.sweep.eq(sweep), engine.elements.eq(self.n),
            engine.record.eq(cells[0]), engine.position.eq(cells[1]),
        ]  # fmt: skip
        self.pick = engine
        m.submodules.topk = topk = TopkEngine(chip)
        beat = self._late(Mux(self.is_topk, Cat(self.beat, self.beat_more), 0), chip.bank_cycles, "topk_beat")
        count, ends, _ = self._split(beat)
        more = beat[len(self.beat) :]
        m.d.comb += [
            *(getattr(topk, f"x{i}").eq(self.raw["a"][i]) for i in range(chip.lanes)),
            topk.count.eq(count), topk.ends.eq(ends), Cat(topk.element, topk.member, topk.again).eq(more),
        ]  # fmt: skip
        self.topk = topk
        self._group()

    def _group(self) -> None:
        """GROUP: its engine, and where the two lists, the rows of keys and their number go."""
        m, chip = self.m, self.chip
        d, e, bank = self.operands["d"], self.operands["e"], chip.bank_cycles
        m.submodules.group = engine = GroupEngine(chip)
        count, _, _ = self._split(self._late(Mux(self.is_group, self.beat, 0), bank, "group_beat"))
        m.d.comb += [
            *(getattr(engine, f"x{i}").eq(self.raw["a"][i]) for i in range(chip.lanes)),
            engine.go.eq(self.start & (self.command.op == Group.OPCODE)),
            engine.count.eq(count), engine.pairs.eq(self.pairs), engine.inner.eq(self.n),
        ]  # fmt: skip
        fresh = Signal(name="group_fresh")  # until the first access, whose addresses are those of row 0
        first_to, second, row0, count_to = (Signal(32, name=f"group_{x}", reset_less=True) for x in "dxeb")
        begun = Signal(2, name="group_begun")  # cycles since the start: list entries of D's rows 0 and 1
        m.d.sync += begun.eq(Mux(self.start, 0, Mux(begun == 3, 3, begun + 1)))
        with m.If(self.start):
            m.d.sync += fresh.eq(1)
        with m.Elif(fresh & (self.count != 0)):
            m.d.sync += [
                fresh.eq(0), first_to.eq(self.places["d"].elements), row0.eq(self.places["e"].elements),
                count_to.eq(self.places["b"].address), second.eq(self.places["d"].elements + d.stride0),
            ]  # fmt: skip
        asks_d, asks_e = self.group_asks["d"], self.group_asks["e"]
        next_row = d.row + 1
        m.d.comb += [
            asks_d[0].eq(self.is_group & d.via & (begun == 1)),
            asks_d[1].eq(d.list + ((next_row >> d.unit) << 2)),
        ]

        def through(operand: Any, entry: Value, row: Value, name: str) -> Signal:
            """Offset in elements of a row that an index list gives."""
            low = self._signal(f"{name}_low", ((Const(1, 17) << operand.unit) - 1)[:16])
            index = self._signal(f"{name}_index", ((entry << operand.unit) | (row & low))[:32])
            return self._signal(f"{name}_offset", (index * operand.stride0.as_unsigned())[:32])

        answered = self._late(asks_d[0], bank, "group_d")
        with m.If(answered):
            m.d.sync += second.eq(through(d, self.d_list_data, next_row[:32], "group_d1"))
        along = self._signal("group_along", (engine.place * d.stride2.as_unsigned())[:32])
        first = self._signal("group_first_to", d.base + ((first_to + along) << 2))
        other = self._signal("group_second_to", d.base + ((second + along) << 2))
        # A row of keys: at once, or when the list has answered; the row 0 of a single pair is known from the start.
        single = self._signal("group_single", self.pairs == 1)
        waits = self._signal("group_waits", e.via & ~single)
        row = self._signal("group_row", engine.rank + e.row)
        m.d.comb += [
            asks_e[0].eq(engine.write & engine.leads & waits),
            asks_e[1].eq(e.list + ((row >> e.unit) << 2)),
        ]
        leads = self._signal("group_leads", engine.write & engine.leads)
        words = self._signal("group_words", Cat(engine.key, engine.place, engine.members, row, leads))
        late = Mux(waits, self._late(words, bank, "group_words"), words)
        parts = [
            self._signal(f"group_word{i}", late[at : at + n])
            for i, (at, n) in enumerate(((0, 20), (20, 13), (33, 13), (46, len(row)), (46 + len(row), 1)))
        ]
        plain = self._signal("group_plain", (engine.rank * e.stride0.as_unsigned())[:32])
        to = Mux(waits, through(e, self.e_list_data, parts[3], "group_e"), Mux(single, row0, plain))
        to = self._signal("group_row_to", to)
        stride = e.stride2.as_unsigned()
        row_to = [self._signal(f"group_row_to{i}", e.base + ((to + (stride * i)[:32])[:32] << 2)) for i in range(4)]
        self.group = Grouped(engine, first, other, count_to, parts[4], [*parts[:3], Const(0, 32)], row_to)

    def _write(self) -> None:
        """Drive the write ports."""
        m, chip = self.m, self.chip
        d, e, q = self.operands["d"], self.operands["e"], self.quantiser
        lanes = chip.lanes
        words = self._signal("to_words", self.d_live & self.is_vec & ~self.quantised & ~self.rowscale)
        scatter = self._signal("to_one", (d.stride2 == 0) & (self.n > 1) & ~self.narrow)
        row = self._signal("word_data", Cat(Mux(scatter, self.last_value, self.value[0])[:32], *self.value[1:]))
        live = Cat(*((Mux(scatter, 1, self.out_count) > i).replicate(4) for i in range(lanes)))
        mask = self._signal("word_mask", live)
        codes_mask = self._signal(
            "code_mask", ((Const(1, len(self.d_spad_mask) + 1) << q["bytes"]) - 1)[: len(self.d_spad_mask)]
        )
        codes = q["write"]
        grouped = self.group.engine.write
        # Both lists at one address (an index list may say so): the second one stays.
        first = grouped & (self.group.first_to != self.group.second_to)
        one = self._signal("writes_one", self.pick.write | self.topk.write | first)
        chosen = Mux(self.is_group, self.group.engine.number, self.topk.index)
        index = self._signal("one_index", Mux(self.is_pick, self.pick.index, chosen))
        to = self._signal("word_address", Mux(grouped, self.group.first_to, self.d_address))
        codes_here = codes & (d.space == Space.SPAD)
        m.d.comb += [
            self.d_spad_en.eq(((words | one) & (d.space == Space.SPAD)) | codes_here),
            self.d_spad_addr.eq(Mux(codes, q["write_address"], to)),
            self.d_spad_data.eq(Mux(codes, q["data"], Mux(one, index, row))),
            self.d_spad_mask.eq(Mux(codes, codes_mask, Mux(one, 15, mask))),
            self.d_cell_en.eq((words | one) & (d.space == Space.CELL)),
            self.d_cell_addr.eq(to),
            self.d_cell_data.eq(Mux(one, index, row)),
            self.d_cell_mask.eq(Mux(one, 15, mask)),
            self.d_scales_en.eq(q["scale_write"] & (d.space == Space.SPAD)),
            self.d_scales_addr.eq(q["scale_to"]),
            self.d_scales_data.eq(q["scale_data"]),
            self.d_scales_mask.eq(((Const(1, 9) << q["scales"]) - 1)[: len(self.d_scales_mask)]),
        ]
        group = self.group
        for x, (address, word, to, enable) in {
            "e": (
                Mux(group.rows_write, group.row_to[0], self.e_address),
                Mux(group.rows_write, group.row_words[0], self.e_value),
                e, self.e_taken | group.rows_write,
            ),
            **{f"e{i}": (group.row_to[i], group.row_words[i], e, group.rows_write) for i in (1, 2, 3)},
            "d2": (group.second_to, group.engine.row, d, group.engine.write),
            "n": (group.count_to, group.engine.distinct, self.operands["b"], group.engine.counted),
        }.items():  # fmt: skip
            for name, space in (("spad", Space.SPAD), ("cell", Space.CELL)):
                m.d.comb += [
                    getattr(self, f"{x}_{name}_en").eq(enable & (to.space == space)),
                    getattr(self, f"{x}_{name}_addr").eq(address),
                    getattr(self, f"{x}_{name}_data").eq(word),
                    getattr(self, f"{x}_{name}_mask").eq(Mux(self.rowscale, 1, 15)),
                ]

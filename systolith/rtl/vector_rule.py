"""What stands still while the vector unit runs an instruction, and its cycles as `isa.cycles.vector` counts them."""

from __future__ import annotations

from typing import Any, Final

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from systolith.isa import facts as fact_names
from systolith.isa.choice import Group, Topk
from systolith.isa.descriptor import Format, Space
from systolith.isa.facts import facts
from systolith.isa.vector import Func, Pick, Red, Vec
from systolith.spec import BLOCK, Chip

from .lane import op1_cycles, op2_cycles
from .pick import PICK_SWEEPS
from .ports import Port, handshake, port_members
from .tree import EXTENT_BITS
from .walk import CYCLE_BITS, Walk, log2_up

__all__ = ["READS", "SPACES", "VectorRule", "vector_ports"]

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


class VectorRule(wiring.Component):
    """The unit's signals, the fields of its instruction, its hold and tail. `rtl.vector` has the whole."""

    m: Module
    command_now: Any
    operands: dict[str, Any]
    walk: Walk

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.ports = vector_ports(chip)
        super().__init__(handshake("V") | port_members(self.ports) | {"fault": Out(1)})

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
        self.rows, self.all_pairs = rows, self._signal("all_pairs", rows * self.n)
        pairs = self.pairs = self._signal("pairs", self.all_pairs[:13])
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

"""The vector unit: one instruction at a time, in the cycles of `isa.cycles.vector`, from first read to last write.

`walk` goes through rows and beats, `lane` holds the arithmetic, `tree` the reductions, `quantise` the conversion on
write, `pick`, `topk`, `group` the choices. Here they are joined, and the rule's `hold` and `tail` are counted: hold by
the walk itself, tail by a counter, while the pipeline, which has that depth or less, empties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from systolith.isa.choice import Group
from systolith.isa.descriptor import Format, Space
from systolith.isa.vector import Pick
from systolith.spec import BLOCK, CELLS

from .group import GroupEngine
from .legal import bad_choice, bad_operands, bad_values, outside
from .pick import PickEngine
from .ports import command_layout
from .topk import TopkEngine
from .vector_path import VectorPath
from .vector_rule import READS, vector_ports
from .walk import Walk

__all__ = ["VectorUnit", "vector_ports"]


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


class VectorUnit(VectorPath):
    """Handshake of queue V, `vector_ports`, and fault: from then on 1, an instruction was not legal or left its space.

    docs/decisions/0010-rtl.md has the cycles.
    """

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
        self._judge()
        self._write()
        self._bounds()
        return m

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

    def _judge(self) -> None:
        """Whether the instruction is one that `isa` traps as a whole: it then writes nothing."""
        m, op = self.m, self.operands
        written = self._signal("written", Cat(Const(0, 1), self.is_group, Const(0, 2), Const(3, 2)))
        codes = {"op1": self.op1, "op2": self.op2, "func": self.func, "red": self.red}
        kinds = {"pick": self.is_pick, "topk": self.is_topk, "group": self.is_group}
        values = self.is_vec & bad_values(m, op, codes)
        choice = bad_choice(m, op, kinds, self.rows, self.all_pairs)
        self.illegal = self._signal("illegal", bad_operands(m, op, written) | values | choice)

    def _bounds(self) -> None:
        """Raise `fault`, for good, where an instruction is illegal or an access leaves its space."""
        m, chip = self.m, self.chip
        limits = {"spad": chip.scratchpad_bytes, "acc": chip.accumulator_bytes, "cell": 4 * CELLS}
        found: list[Value] = []
        for x in READS:
            operand = self.operands[x]
            word = (operand.format == Format.FP32) | (operand.format == Format.INT32)
            single = (operand.stride2 == 0) | self.narrow | (~self.is_vec if x in "cf" else 0)
            n = Mux(single, 1, self.count)
            size = self._signal(f"{x}_size", Mux(word, n << 2, Mux(operand.format == Format.E2M1, (n + 1) >> 1, n)))
            found += [
                outside(getattr(self, f"{x}_{name}_en"), getattr(self, f"{x}_{name}_addr"), size, limit)
                for name, limit in limits.items()
            ]
        blocks = self._signal("scale_size", (self.count + (BLOCK - 1)) >> 5)
        word_bytes = self._signal("word_bytes", Mux(self.rowscale, 1, 4))
        row_bytes = self._signal("row_bytes", Mux(self.d_live & ~self.one_word, self.out_count << 2, 4))
        codes = self.quantiser["bytes"]
        sizes = {
            "d_spad": self._signal("d_bytes", Mux(self.quantiser["write"], codes, row_bytes)),
            "d_cell": row_bytes,
            "d_scales": self.quantiser["scales"],
        }
        for port in self.ports:
            en, addr = getattr(self, f"{port.name}_en"), getattr(self, f"{port.name}_addr")
            if port.write:
                size = sizes.get(port.name, word_bytes)
                found.append(outside(en, addr, size, limits[port.space.name.lower()]))
            elif port.name.endswith("list"):
                found.append(outside(en, addr, 4, limits["spad"]))
            elif port.name.endswith("scale"):
                found.append(outside(en, addr, blocks, limits["spad"]))
        engine, e = self.group.engine, self.operands["e"]
        for i in range(chip.lanes):
            found.append((engine.count > i) & (getattr(engine, f"x{i}") >= e.ext0))
        with m.If((self.busy & self.illegal) | Cat(*found).any()):
            m.d.sync += self.fault.eq(1)

    def _write(self) -> None:
        """Drive the write ports."""
        m, chip = self.m, self.chip
        d, e, q = self.operands["d"], self.operands["e"], self.quantiser
        lanes = chip.lanes
        words = self._signal("to_words", self.d_live & self.is_vec & ~self.quantised & ~self.rowscale)
        scatter = self._signal("to_one", (d.stride2 == 0) & (self.n > 1) & ~self.narrow)
        self.one_word = scatter
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
        legal = ~self.illegal
        m.d.comb += [
            self.d_spad_en.eq((((words | one) & (d.space == Space.SPAD)) | codes_here) & legal),
            self.d_spad_addr.eq(Mux(codes, q["write_address"], to)),
            self.d_spad_data.eq(Mux(codes, q["data"], Mux(one, index, row))),
            self.d_spad_mask.eq(Mux(codes, codes_mask, Mux(one, 15, mask))),
            self.d_cell_en.eq((words | one) & (d.space == Space.CELL) & legal),
            self.d_cell_addr.eq(to),
            self.d_cell_data.eq(Mux(one, index, row)),
            self.d_cell_mask.eq(Mux(one, 15, mask)),
            self.d_scales_en.eq(q["scale_write"] & (d.space == Space.SPAD) & legal),
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
                    getattr(self, f"{x}_{name}_en").eq(enable & (to.space == space) & legal),
                    getattr(self, f"{x}_{name}_addr").eq(address),
                    getattr(self, f"{x}_{name}_data").eq(word),
                    getattr(self, f"{x}_{name}_mask").eq(Mux(self.rowscale, 1, 15)),
                ]

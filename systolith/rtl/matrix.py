"""The matrix unit: MATMUL in the cycles of `isa.cycles.matmul`.

Control keeps the time of the rule: the pass of a tile fires when the pass before it is over and its weights are loaded,
and the next tile's load begins as it fires. What a pass does follows at a fixed distance: rows of A are looked up in
their index list (bank_cycles, needed or not), read (bank_cycles), decoded, multiplied, summed, rounded, and added to
what the accumulator holds. The rule's way across the columns of an array (`array_skew_cycles`) is longer than that.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from amaranth.hdl import Cat, ClockSignal, Const, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from systolith.isa.cycles import CARRY_ROWS
from systolith.isa.descriptor import Format, Space
from systolith.isa.matrix import Matmul
from systolith.numerics.formats import PAIRS, SCALE_NAN
from systolith.spec import BLOCK, Chip, ConfigError

from .array import ArrayColumn, decode, foot_cycles, unit_exponent
from .functions import delayed
from .leaf import leaf
from .legal import outside
from .ports import ADDRESS_BITS, Port, command_layout, handshake, port_members
from .sums import Sums, by_level, by_mode
from .walk import byte_offset
from .weights import Place, Reach, Tile, Weights, later, weight_ports

__all__ = ["MatrixUnit", "check"]

TIME = 28
_SPACES = {Space.SPAD: "scratchpad", Space.SLOT: "slots", Space.ACC: "accumulator"}
"""Bits of the cycles of a pass."""


def check(chip: Chip) -> None:
    """Raise ConfigError for a chip whose arrays are not built."""
    need = chip.bank_cycles + 2 + foot_cycles(chip) + (chip.passes_per_block == 1)
    if need > chip.array_skew_cycles:
        raise ConfigError(
            f"{chip.name}: bank_cycles={chip.bank_cycles} is too many for array_cols={chip.array_cols}; the RTL looks "
            "up index lists while the rule counts the way across the columns: lower bank_cycles."
        )
    if chip.array_stack * chip.array_rows > chip.bank_bytes:
        raise ConfigError(
            f"{chip.name}: bank_bytes={chip.bank_bytes} is less than array_stack x array_rows = "
            f"{chip.array_stack * chip.array_rows}; the RTL reads a row for all arrays of a stack in one cycle: raise "
            "bank_bytes or lower array_stack."
        )


class MatrixUnit(wiring.Component):
    """Members: `ports.handshake("M")`, `ports.port_members(ports)`, and fault: from then on 1, an instruction was not
    legal or left its space. What is illegal by its formats, spaces or extents writes nothing.

    Raises ConfigError for a chip whose arrays it does not build.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        check(chip)
        self.foot = foot_cycles(chip)
        columns = chip.columns
        self.modes = range(chip.array_stack.bit_length())
        """log2 of the arrays that stand on each other."""
        self.slots = chip.array_stack * chip.blocks_per_pass
        """Blocks of a row that a pass takes at most."""
        self.ports = [
            Port("a", Space.SPAD, chip.array_stack * chip.array_rows),
            Port("a_scale", Space.SPAD, self.slots),
            Port("a_list", Space.SPAD, 4),
            Port("d_list", Space.SPAD, 4),
            Port("old", Space.ACC, 4 * columns),
            Port("new", Space.ACC, 4 * columns, write=True),
            *weight_ports(chip),
        ]
        super().__init__(handshake("M") | port_members(self.ports) | {"fault": Out(1)})

    def elaborate(self, platform: object) -> Module:  # noqa: D102
        m = Module()
        self.m = m
        self.loader = Signal(command_layout("M"), name="loader", reset_less=True)
        with m.If(self.start):
            m.d.sync += self.loader.eq(self.command)
        self._shape()
        self._tiles()
        self._passes()
        self._weights()
        self._rows()
        self.sums = Sums(m, self, chip=self.chip, late=1 + self.foot + self.chip.normalise_cycles)
        self._array()
        self.sums.join(self.values, self.old_sums)
        self._faults()
        return m

    def _signal(self, name: str, value: Any, bits: int | None = None) -> Signal:
        """Name a value."""
        value = Value.cast(value)
        out = Signal(bits if bits is not None else value.shape(), name=name)
        self.m.d.comb += out.eq(value)
        return out

    def _field(self, name: str) -> Value:
        bits = next(bits for bits in Matmul.LAYOUT if bits.name == name)
        return self.loader.fields[bits.low : bits.low + bits.width]

    def _shape(self) -> None:
        """What the loader's instruction asks of all its tiles."""
        chip, a, b = self.chip, self.loader.a, self.loader.b
        self.by_rows, self.terms = self._field("by_rows"), self._field("terms")
        self.rows = self._signal("rows", a.ext0 * a.ext1, 24)
        self.columns = self._signal("columns", Mux(self.by_rows, b.ext2, b.ext0 * b.ext1), 20)
        self.depth = self._signal("depth", Mux(self.terms, a.ext2 << 1, a.ext2), 21)  # K of the weights
        slowest = {name: int(1 / chip.rate(f"{name[0]}x{name[1]}")) for name in PAIRS}
        per_row: Value = Const(1, 4)
        for (x, w), cycles in slowest.items():
            per_row = Mux((a.format == Format[x]) & (b.format == Format[w]), cycles, per_row)
        self.per_row = self._signal("per_row", per_row, 4)
        self.lists = self._signal("lists", a.via | b.via | self.loader.d.via)
        self.illegal = self._illegal()
        self.mode = self._stacked()

    def _stacked(self) -> Signal:
        """How many arrays stand on each other, log2: `isa.cycles.stacked`."""
        chip, bits = self.chip, Mux(self.loader.a.format == Format.E2M1, 4, 8)
        grows: list[Value] = []
        high, row_cycles = 1, self._signal("row_cycles", self.rows * self.per_row, TIME)
        while 2 * high <= chip.array_stack:
            found = (
                (self.columns <= chip.arrays // (2 * high) * chip.array_cols)
                & (self.depth > high * chip.array_rows)
                & (2 * high * chip.array_rows * bits <= 8 * chip.bank_bytes * self.per_row)
                & (row_cycles > high * chip.blocks_per_pass * chip.accumulator_interval_cycles)
            )
            grows.append(found & grows[-1] if grows else found)
            high *= 2
        return self._signal("mode", sum(grows, Const(0, 1)), max(1, len(self.modes).bit_length()))

    def _illegal(self) -> Signal:
        """What `isa` traps before anything is written: spaces, formats, extents, strides."""
        a, b, d = (self.loader[x] for x in "abd")
        pairs = Cat(*((a.format == Format[x]) & (b.format == Format[w]) for x, w in PAIRS))
        found = [
            (a.space != Space.SPAD) | ((b.space != Space.SLOT) & (b.space != Space.SPAD)) | (d.space != Space.ACC),
            (d.format != Format.FP32) | ~pairs.any() | ~a.scale | (b.scale == self.by_rows),
            (a.ext2[:5] != 0) | (Mux(self.by_rows, b.ext0, b.ext2) != self.depth) | (self.by_rows & (b.ext1 != 1)),
            (d.ext0 < a.ext0) | (d.ext1 < a.ext1) | (d.ext2 < self.columns),
            *((x.ext2 > 1) & (x.stride2 != 1) for x in (a, b, d)),
            *(x.base[ADDRESS_BITS:].any() | (x.scale & x.sbase[ADDRESS_BITS:].any()) for x in (a, b, d)),
            *(x.via & x.list[ADDRESS_BITS:].any() for x in (a, b, d)),
        ]
        return self._signal("illegal", Cat(*found).any())

    def _faults(self) -> None:
        """Raise `fault`, for good, where an instruction is illegal or an access leaves its space."""
        m, chip = self.m, self.chip
        size = {space: chip.space_bytes(name) for space, name in _SPACES.items()}
        found = [self.fire & self.illegal]
        for port in self.ports:
            used: Value | int = port.bytes
            if port.space == Space.ACC:
                if not port.write:
                    continue
                used = Cat(Const(0, 2), self.sums.count)
            elif port.name == "a":
                used = Mux(self.four_a, self.a_used >> 1, self.a_used)
            elif port.name == "a_scale":
                used = (self.a_used + (BLOCK - 1)) >> 5
            elif port.name in self.weights.used:
                used = self.weights.used[port.name]
            found.append(
                outside(getattr(self, f"{port.name}_en"), getattr(self, f"{port.name}_addr"), used, size[port.space])
            )
        with m.If(self._signal("faults", Cat(*found)).any()):
            m.d.sync += self.fault.eq(1)

    def _tiles(self) -> None:
        """The tile that loads or is loaded, and the next one: groups of rows, columns, K."""
        m, chip = self.m, self.chip
        col, k, done = Signal(20, name="col"), Signal(21, name="k"), Signal(24, name="rows_done")
        self.col, self.k = col, k
        self.first_tile = Signal()
        left = self._signal("rows_left", self.rows - done, 24)
        short = chip.passes_per_block > 1
        self.group = self._signal("group", Mux(left > CARRY_ROWS, CARRY_ROWS, left) if short else left, 24)
        height = self._signal("height", chip.array_rows << self.mode, 21)
        width = self._signal("width", chip.columns >> self.mode, 20)
        rest_k = self._signal("rest_k", self.depth - k, 21)
        last_k = self._signal("last_k", rest_k <= height)
        rest = self._signal("columns_left", self.columns - col, 20)
        last_col = self._signal("last_col", rest <= width)
        last_group = self._signal("last_group", left <= CARRY_ROWS if short else Const(1))
        most = chip.array_stack * chip.array_rows
        self.count = self._signal("count", Mux(last_col, rest, width), chip.columns.bit_length())
        self.tile_rows = self._signal("tile_rows", Mux(last_k, rest_k, height), most.bit_length())
        self.last_tile = self._signal("last_tile", last_k & last_col & last_group)
        added = chip.blocks_per_pass * chip.fp32_add_cycles  # by one array
        waits = self._signal("waits", added << self.mode, 20)
        least = waits if chip.passes_per_block == 1 else Const(-(-added // chip.passes_per_block), 20)
        rows = self._signal("stream_rows", self.group * self.per_row, TIME)
        self.stream = self._signal("stream", Mux(rows > least, rows, least), TIME)
        # The last pass of an instruction keeps others' rows from the sums of its own.
        through = self._signal(
            "through", rows - self.per_row + waits - (chip.passes_per_block - 1) * least, TIME + 1
        ).as_signed()
        self.last = self._signal("last", Mux(through > self.stream.as_signed(), through, self.stream), TIME)
        self.fire, self.load = Signal(), Signal(20, name="load")
        self.new_group = self._signal("new_group", (k == 0) & (col == 0))
        self.to_start = self._signal(
            "to_start", self.start | (self.fire & Mux(self.by_rows, last_k, last_k & last_col))
        )
        self.to_next = self._signal("to_next", self.fire & Mux(self.by_rows, ~last_k, last_k & ~last_col))
        with m.If(self.start):
            m.d.sync += [col.eq(0), k.eq(0), done.eq(0), self.first_tile.eq(1)]
        with m.Elif(self.fire):
            m.d.sync += [self.first_tile.eq(0), k.eq(Mux(last_k, 0, k + height))]
            with m.If(last_k):
                m.d.sync += col.eq(Mux(last_col, 0, col + width))
                with m.If(last_col):
                    m.d.sync += done.eq(done + CARRY_ROWS)

    def _passes(self) -> None:
        """When passes fire and instructions end: the rule."""
        m, chip = self.m, self.chip
        bank = chip.bank_cycles
        waiting = Signal()  # the loader has a tile that has not gone into the array
        age, since = Signal(20), Signal(TIME, init=(1 << TIME) - 1)  # cycles from the start, and from the last pass
        before, leaves = Signal(TIME), Signal(TIME)  # cycles of the last pass; until its rows have left the array
        before_ends = Signal()  # it was the last of its instruction
        reach = self._signal("reach", bank + Mux(self.lists, bank, 0), 8)
        load = self.load
        loaded = Mux(self.first_tile, age >= reach + load, since >= load)
        m.d.comb += [
            self.fire.eq(waiting & loaded & (since >= before)),
            self.ready.eq(~waiting | (self.fire & self.last_tile)),
        ]
        self.begin = self._signal(
            "begin_load", (waiting & self.first_tile & (age == reach)) | (self.fire & ~self.last_tile)
        )
        with m.If(self.start):
            m.d.sync += [waiting.eq(1), age.eq(1)]
        with m.Else():
            with m.If(self.fire & self.last_tile):
                m.d.sync += waiting.eq(0)
            with m.If(~age.all()):
                m.d.sync += age.eq(age + 1)
        with m.If(self.fire):
            m.d.sync += [
                since.eq(1), before.eq(Mux(self.last_tile, self.last, self.stream)), before_ends.eq(self.last_tile),
                leaves.eq(self.last if chip.passes_per_block == 1 else self.stream),
            ]  # fmt: skip
        with m.Elif(~since.all()):
            m.d.sync += since.eq(since + 1)
        over = self._signal("over", before_ends & (since == leaves))
        tail = chip.array_skew_cycles + chip.normalise_cycles + bank
        if chip.passes_per_block > 1:
            tail += chip.fp32_add_cycles
        m.d.comb += self.done.eq(later(m, over, tail, "ending"))

    def _weights(self) -> None:
        """The loader's data path, and the swap that a pass brings."""
        m, late = self.m, 2 * self.chip.bank_cycles + 1
        self.swap = later(m, self.fire, late, "swap")
        self.swap_by_rows = delayed(m, self.by_rows, late, "swap_by_rows")
        self.swap_form = delayed(m, self.loader.b.format, late, "swap_form")
        self.weights = Weights(
            m, self, self.chip, self.loader.b,
            Tile(self.by_rows, self.k, self.tile_rows, self.col, self.count, self.mode),
            begin=self.begin, fire=self.fire, to_start=self.to_start, to_next=self.to_next,
        )  # fmt: skip
        m.d.comb += self.load.eq(self.weights.load)

    def _rows(self) -> None:
        """Rows of the pass under way: their addresses in A and D. Cycle 0 of the data path is that of a row's issue."""
        m, chip = self.m, self.chip
        bank = chip.bank_cycles
        now = Signal(command_layout("M"), name="now", reset_less=True)
        k, col = Signal(21, name="pass_k", reset_less=True), Signal(20, name="pass_col", reset_less=True)
        count = Signal.like(self.count, name="pass_count", reset_less=True)
        height = Signal.like(self.tile_rows, name="pass_rows", reset_less=True)
        mode = Signal.like(self.mode, name="pass_mode", reset_less=True)
        terms = Signal(name="pass_terms", reset_less=True)
        start_block, end_block, from_zero = (
            Signal(name=f"pass_{x}", reset_less=True) for x in ("opens", "closes", "zero")
        )
        left, gap, per_row = Signal(24, name="issue_left"), Signal(4, name="issue_gap"), Signal(4, name="issue_per_row")
        number = Signal(range(CARRY_ROWS), name="issue_number")
        issue = self._signal("issue", (left != 0) & (gap == 0))
        with m.If(self.fire):
            with m.If(self.first_tile):
                m.d.sync += now.eq(self.loader)
            block = Mux(self.terms, self.k[6:], self.k[5:])
            m.d.sync += [
                k.eq(Cat(self.k[:5], block)),
                col.eq(self.col),
                count.eq(self.count),
                height.eq(self.tile_rows),
                mode.eq(self.mode),
                terms.eq(self.terms),
                start_block.eq(self.k[:5] == 0),
                end_block.eq((((self.k[:5] + chip.array_rows) == BLOCK) | (chip.array_rows > BLOCK)) & ~self.illegal),
                from_zero.eq((self.k < BLOCK) & self.loader.zero),
                left.eq(self.group),
                gap.eq(0),
                per_row.eq(self.per_row),
                number.eq(0),
            ]
        with m.Elif(issue):
            m.d.sync += [left.eq(left - 1), gap.eq(per_row - 1), number.eq(number + 1)]
        with m.Elif(gap != 0):
            m.d.sync += gap.eq(gap - 1)
        # A and D count their rows alike.
        row = {x: Place.registers(f"{x}_row") for x in "ad"}
        group = {x: Place.registers(f"{x}_group") for x in "ad"}
        for x in "ad":
            operand = now[x]
            after = row[x].after(
                m, f"{x}_after", now.a.ext1, operand.stride0.as_unsigned(), operand.stride1.as_unsigned()
            )
            then = Place(*(Mux(issue, y, z) for y, z in zip(after.values(), row[x].values(), strict=True)))
            with m.If(self.fire & self.first_tile):
                m.d.sync += [*row[x].set(None), *group[x].set(None)]
            with m.Elif(self.fire & self.new_group):
                m.d.sync += [*row[x].set(then), *group[x].set(then)]
            with m.Elif(self.fire):
                m.d.sync += row[x].set(group[x])
            with m.Else():
                m.d.sync += row[x].set(then)
        late = delayed(m, now, bank, "now_late")
        a = Reach(m, self, "a_list", chip, row["a"], now.a, late.a, k, issue)
        d = Reach(m, self, "d_list", chip, row["d"], now.d, late.d, col, issue & end_block)
        go = later(m, issue, bank, "issue")
        m.d.comb += [
            self.a_en.eq(go),
            self.a_addr.eq(late.a.base + byte_offset(late.a.format, a.elements)),
            self.a_scale_en.eq(go),
            self.a_scale_addr.eq(late.a.sbase + (a.elements.as_signed() >> 5)),
        ]
        self.four_a = self._signal("four_a", late.a.format == Format.E2M1)
        blocks = self._signal("pass_blocks", height >> 5)  # of the weights; two meet one of A where they have two terms
        a_used: Value = height
        if self.slots > 1:
            a_used = Cat(Const(0, 5), Mux(terms, (blocks + 1) >> 1, blocks))
        self.a_used = delayed(m, self._signal("pass_used", a_used), bank, "a_used")
        # The data path from here on, by cycles after the issue.
        self.at_data = 2 * bank
        self.go = later(m, go, bank, "go")
        self.form_a = delayed(m, now.a.format, 2 * bank, "form_a")
        self.unit = delayed(m, self._signal("unit", unit_exponent(now.a.format, now.b.format)), 2 * bank, "unit")
        wait = 2 * bank + 1 + self.foot
        self.foot_valid = later(m, issue, wait, "foot_valid")
        self.foot_first = delayed(m, start_block, wait, "foot_first")
        self.foot_place = delayed(m, number, wait, "foot_place")
        close = later(m, self._signal("closing", issue & end_block), bank, "close")
        self.d_valid, self.d_count = close, delayed(m, count, bank, "d_count")
        self.d_mode = delayed(m, mode, bank, "d_mode")
        self.x_mode, self.x_terms = delayed(m, mode, 2 * bank, "x_mode"), delayed(m, terms, 2 * bank, "x_terms")
        absent = self._signal("absent", Cat(*((s >= blocks) & (s > 0) for s in range(self.slots))))
        self.absent = delayed(m, absent, 2 * bank, "absent_x")
        self.d_zero = delayed(m, from_zero, bank, "d_zero")
        self.d_addr = self._signal("d_addr", late.d.base + byte_offset(late.d.format, d.elements), ADDRESS_BITS)

    def _elements(self) -> list[Value]:
        """Decoded activations of a row, for the arrays of a stack."""
        m, chip, four = self.m, self.chip, self.form_a == Format.E2M1

        def code(r: int) -> Value:
            return Mux(four, self.a_data[4 * r : 4 * r + 4], self.a_data[8 * r : 8 * r + 8])

        found = []
        for r in range(chip.array_stack * chip.array_rows):
            # With two terms, blocks 2i and 2i + 1 of the weights meet block i.
            half = r % BLOCK + r // BLOCK // 2 * BLOCK
            value = Mux(self.x_terms, code(half), code(r)) if half != r else code(r)
            found.append(decode(m, self._signal(f"x{r}_code", value, 8), self.form_a, f"x{r}").packed)
        return found

    def _exponents(self) -> tuple[list[Value], list[Value]]:
        """Exponents of the blocks of a row, and whether their scales are NaN."""
        exponents: list[Value] = []
        spoilt: list[Value] = []
        for s in range(self.slots):
            scale, half = (self.a_scale_data[8 * i : 8 * i + 8] for i in (s, s // 2))
            value = self._signal(f"a_scale{s}", Mux(self.x_terms, half, scale) if s else scale)
            exponents.append(self._signal(f"exponent{s}", value + self.unit))
            spoilt.append(self._signal(f"spoilt{s}", value == SCALE_NAN))
        return exponents, spoilt

    def _shared(self) -> list[dict[str, Any]]:
        """What all columns of an array get, by its number in a stack."""
        m, chip = self.m, self.chip
        rows, dot, blocks, levels = chip.array_rows, chip.pe_dot, chip.blocks_per_pass, range(chip.array_stack)
        elements, wait = self._elements(), 1 + self.foot
        per_block = {"absent": [self.absent[s] for s in range(self.slots)]}
        per_block["exponent"], per_block["spoilt"] = self._exponents()
        granules = rows // self.weights.shape.granule
        we = [self.weights.we[n * granules : (n + 1) * granules] for n in levels]
        deep = [Const(n, max(1, len(self.modes) - 1)) for n in levels]
        found: list[dict[str, Any]] = []
        for level in levels:
            mine: dict[str, Any] = {
                "i_we": self._signal(f"we{level}", by_level(self.weights.mode, level, we)),
                "i_deep": self._signal(f"deep{level}", by_level(self.sums.mode, level, deep)),
            }
            for j in range(chip.pe_rows):
                xs = [Cat(*elements[n * rows + j * dot : n * rows + (j + 1) * dot]) for n in levels]
                x = self._signal(f"x{level}_{j}", by_level(self.x_mode, level, xs))
                mine[f"i_x{j}"] = delayed(m, x, 1, f"x{level}_{j}")
            for name, values in per_block.items():
                for b in range(blocks):
                    value = by_level(self.x_mode, level, values[b::blocks])
                    label = f"{name}{level}_{b}"
                    mine[f"i_{name}{b}"] = delayed(m, self._signal(label, value), wait, label)
            found.append(mine)
        return found

    def _array(self) -> None:
        """Columns: what each one gets."""
        m, chip = self.m, self.chip
        shared = self._shared()
        every = {
            "i_clk": ClockSignal(), "i_rst": ResetSignal(), "i_go": later(m, self.go, 1, "go_array"),
            "i_swap": self.swap, "i_swap_by_rows": self.swap_by_rows, "i_form": self.swap_form,
            "i_by_rows": self.weights.by_rows, "i_valid": self.foot_valid, "i_first": self.foot_first,
            "i_place": self.foot_place, "i_now": self.sums.valid,
        }  # fmt: skip
        self.old_sums = [[Signal(32, name=f"old{a}_{n}") for n in range(chip.array_cols)] for a in range(chip.arrays)]
        self.values = [[Signal(32, name=f"sum{a}_{n}") for n in range(chip.array_cols)] for a in range(chip.arrays)]
        for a in range(chip.arrays):
            level = a % chip.array_stack
            for c in range(chip.array_cols):
                seen = [self.weights.column_of((a >> i) * chip.array_cols + c) for i in self.modes]
                col, row, scale, take = (by_mode(self.weights.mode, parts) for parts in zip(*seen, strict=True))
                m.submodules[f"column{a}_{c}"] = leaf(
                    f"systolith_column{level}" if level else "systolith_column",
                    partial(ArrayColumn, chip, self.weights.shape, level),
                    **every, **shared[level], i_take=take, i_col=col, i_row=row, i_scale=scale,
                    i_old=self.old_sums[a][c], o_value=self.values[a][c],
                )  # fmt: skip

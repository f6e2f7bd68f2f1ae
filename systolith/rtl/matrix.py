"""The matrix unit: MATMUL in the cycles of `isa.cycles.matmul`.

Control keeps the time of the rule: the pass of a tile fires when the pass before it is over and its weights are loaded,
and the next tile's load begins as it fires. What a pass does follows at a fixed distance: rows of A are looked up in
their index list (bank_cycles, needed or not), read (bank_cycles), decoded, multiplied, summed, rounded, and added to
what the accumulator holds. The rule's way across the columns of an array (`array_skew_cycles`) is longer than that.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, ClockSignal, Const, Module, Mux, ResetSignal, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from systolith.isa.cycles import CARRY_ROWS
from systolith.isa.descriptor import Format, Space
from systolith.isa.matrix import Matmul
from systolith.numerics.formats import PAIRS, SCALE_NAN
from systolith.spec import BLOCK, Chip, ConfigError

from .array import ColumnFoot, PeRow, decode, dot_bits, unit_exponent
from .functions import delayed
from .leaf import leaf
from .legal import outside
from .ports import ADDRESS_BITS, Port, command_layout, handshake, port_members
from .walk import byte_offset
from .weights import Place, Reach, Weights, load_table, weight_ports

__all__ = ["MatrixUnit", "check"]

TIME = 28
_SPACES = {Space.SPAD: "scratchpad", Space.SLOT: "slots", Space.ACC: "accumulator"}
"""Bits of the cycles of a pass."""


def held(m: Module, value: Value, cycles: int, name: str) -> Value:
    """The same some cycles later; control, so it is reset."""
    for i in range(cycles):
        stage = Signal(len(value), name=f"{name}_{i + 1}")
        m.d.sync += stage.eq(value)
        value = stage
    return value


def foot_cycles(chip: Chip) -> int:
    """Cycles from the activations at the PEs to the sum at the foot of a column."""
    return 1 if chip.pe_rows == 1 else 2


def check(chip: Chip) -> None:
    """Raise ConfigError for a chip whose arrays are not built."""
    if chip.blocks_per_pass > 1 or chip.array_stack > 1:
        raise ConfigError(
            f"{chip.name}: array_rows={chip.array_rows} and array_stack={chip.array_stack}; the RTL has arrays of "
            f"at most {BLOCK} rows that do not stand on each other, so write array_rows={BLOCK} and array_stack=1."
        )
    if chip.bank_cycles + 2 + foot_cycles(chip) > chip.array_skew_cycles:
        raise ConfigError(
            f"{chip.name}: bank_cycles={chip.bank_cycles} is too many for array_cols={chip.array_cols}; the RTL looks "
            "up index lists while the rule counts the way across the columns: lower bank_cycles."
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
        self.ports = [
            Port("a", Space.SPAD, chip.array_rows),
            Port("a_scale", Space.SPAD, 1),
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
        self._array()
        self._sums()
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
        self.four, self.slot = b.format == Format.E2M1, b.space == Space.SLOT

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
                used = Cat(Const(0, 2), self.write_count)
            elif port.name == "a":
                used = Mux(self.four_a, port.bytes // 2, port.bytes)
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
        last_k = self._signal("last_k", k + chip.array_rows >= self.depth)
        rest = self._signal("columns_left", self.columns - col, 20)
        last_col = self._signal("last_col", rest <= chip.columns)
        last_group = self._signal("last_group", left <= CARRY_ROWS if short else Const(1))
        self.count = self._signal("count", Mux(last_col, rest, chip.columns), range(chip.columns + 1).stop.bit_length())
        self.last_tile = self._signal("last_tile", last_k & last_col & last_group)
        tables = {(f, s): load_table(chip, bool(f), bool(s)) for f in (0, 1) for s in (0, 1)}
        load: Value = Const(0, 1)
        elements: Value = Const(0, 1)
        for (f, s), (each, table) in tables.items():
            mine = (self.four == f) & (self.slot == s)
            load = load | Mux(mine, Array([Const(x, 20) for x in table])[self.count], 0)
            elements = elements | Mux(mine, each, 0)
        self.load = self._signal("load", load, 20)
        self.elements = self._signal("elements", elements, 20)
        least = -(-chip.blocks_per_pass * chip.accumulator_interval_cycles // chip.passes_per_block)
        stream = self._signal("stream_rows", self.group * self.per_row, TIME)
        self.stream = self._signal("stream", Mux(stream > least, stream, least), TIME)
        self.fire = Signal()
        self.new_group = self._signal("new_group", (k == 0) & (col == 0))
        self.to_start = self._signal(
            "to_start", self.start | (self.fire & Mux(self.by_rows, last_k, last_k & last_col))
        )
        self.to_next = self._signal("to_next", self.fire & Mux(self.by_rows, ~last_k, last_k & ~last_col))
        with m.If(self.start):
            m.d.sync += [col.eq(0), k.eq(0), done.eq(0), self.first_tile.eq(1)]
        with m.Elif(self.fire):
            m.d.sync += [self.first_tile.eq(0), k.eq(Mux(last_k, 0, k + chip.array_rows))]
            with m.If(last_k):
                m.d.sync += col.eq(Mux(last_col, 0, col + chip.columns))
                with m.If(last_col):
                    m.d.sync += done.eq(done + CARRY_ROWS)

    def _passes(self) -> None:
        """When passes fire and instructions end: the rule."""
        m, chip = self.m, self.chip
        bank = chip.bank_cycles
        waiting = Signal()  # the loader has a tile that has not gone into the array
        age, since = Signal(20), Signal(TIME, init=(1 << TIME) - 1)  # cycles from the start, and from the last pass
        before = Signal(TIME)  # cycles of the last pass
        before_ends = Signal()  # it was the last of its instruction
        reach = self._signal("reach", bank + Mux(self.lists, bank, 0), 8)
        loaded = Mux(self.first_tile, age >= reach + self.load, since >= self.load)
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
            m.d.sync += [since.eq(1), before.eq(self.stream), before_ends.eq(self.last_tile)]
        with m.Elif(~since.all()):
            m.d.sync += since.eq(since + 1)
        over = self._signal("over", before_ends & (since == before))
        tail = chip.array_skew_cycles + chip.normalise_cycles + chip.fp32_add_cycles + bank
        m.d.comb += self.done.eq(held(m, over, tail, "ending"))

    def _weights(self) -> None:
        """The loader's data path, and the swap that a pass brings."""
        m, bank = self.m, self.chip.bank_cycles
        form = self.loader.b.format
        late = 2 * bank + 1
        self.swap = held(m, self.fire, late, "swap")
        swap_by_rows = delayed(m, self.by_rows, late, "swap_by_rows")
        self.swap_form = delayed(m, form, late, "swap_form")
        self.weights = Weights(
            m, self, self.chip, self.loader.b, by_rows=self.by_rows, col=self.col, k=self.k, count=self.count,
            begin=self.begin, to_start=self.to_start, to_next=self.to_next, elements=self.elements, swap=self.swap,
            swap_by_rows=swap_by_rows,
        )  # fmt: skip

    def _rows(self) -> None:
        """Rows of the pass under way: their addresses in A and D. Cycle 0 of the data path is that of a row's issue."""
        m, chip = self.m, self.chip
        bank = chip.bank_cycles
        now = Signal(command_layout("M"), name="now", reset_less=True)
        k, col = Signal(21, name="pass_k", reset_less=True), Signal(20, name="pass_col", reset_less=True)
        count = Signal.like(self.count, name="pass_count", reset_less=True)
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
                start_block.eq(self.k[:5] == 0),
                end_block.eq(((self.k[:5] + chip.array_rows) == BLOCK) & ~self.illegal),
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
        go = held(m, issue, bank, "issue")
        m.d.comb += [
            self.a_en.eq(go),
            self.a_addr.eq(late.a.base + byte_offset(late.a.format, a.elements)),
            self.a_scale_en.eq(go),
            self.a_scale_addr.eq(late.a.sbase + (a.elements.as_signed() >> 5)),
        ]
        self.four_a = self._signal("four_a", late.a.format == Format.E2M1)
        # The data path from here on, by cycles after the issue.
        self.at_data = 2 * bank
        self.go = held(m, go, bank, "go")
        self.form_a = delayed(m, now.a.format, 2 * bank, "form_a")
        self.unit = delayed(m, self._signal("unit", unit_exponent(now.a.format, now.b.format)), 2 * bank, "unit")
        wait = 2 * bank + 1 + self.foot
        self.foot_valid = held(m, issue, wait, "foot_valid")
        self.foot_first = delayed(m, start_block, wait, "foot_first")
        self.foot_place = delayed(m, number, wait, "foot_place")
        close = held(m, self._signal("closing", issue & end_block), bank, "close")
        self.d_valid, self.d_count = close, delayed(m, count, bank, "d_count")
        self.d_zero = delayed(m, from_zero, bank, "d_zero")
        self.d_addr = self._signal("d_addr", late.d.base + byte_offset(late.d.format, d.elements), ADDRESS_BITS)

    def _array(self) -> None:
        """Rows of PEs."""
        m, chip = self.m, self.chip
        four = self.form_a == Format.E2M1
        xs = []
        for r in range(chip.array_rows):
            code = self._signal(f"x{r}_code", Mux(four, self.a_data[4 * r : 4 * r + 4], self.a_data[8 * r : 8 * r + 8]))
            xs.append(delayed(m, decode(m, code, self.form_a, f"x{r}").packed, 1, f"x{r}"))
        go = held(m, self.go, 1, "go_array")
        self.dots: list[list[tuple[Signal, Signal]]] = []
        for j in range(chip.pe_rows):
            mine = range(j * chip.pe_dot, (j + 1) * chip.pe_dot)
            signals: dict[str, Any] = {
                "i_clk": ClockSignal(), "i_rst": ResetSignal(), "i_x": Cat(*(xs[r] for r in mine)), "i_go": go,
                "i_swap": self.swap, "i_form": self.swap_form,
            }  # fmt: skip
            row = []
            for n in range(chip.columns):
                dot = Signal(signed(dot_bits(chip.pe_dot)), name=f"dot_{j}_{n}")
                nan = Signal(name=f"nan_{j}_{n}")
                signals |= {
                    f"i_code{n}": Cat(*(Value.cast(self.weights.codes[r][n])[:8] for r in mine)),
                    f"i_we{n}": Cat(*(self.weights.enables[r][n] for r in mine)),
                    f"o_dot{n}": dot,
                    f"o_nan{n}": nan,
                }
                row.append((dot, nan))
            self.dots.append(row)
            m.submodules[f"pe_row{j}"] = leaf("systolith_pe_row", lambda: PeRow(chip), **signals)

    def _sums(self) -> None:
        """Feet of the columns, and the accumulator."""
        m, chip = self.m, self.chip
        bank, add, normalise = chip.bank_cycles, chip.fp32_add_cycles, chip.normalise_cycles
        columns = chip.columns
        # From D's address to its read, to the adder, to the write.
        read = 1 + self.foot + normalise
        valid = held(m, self.d_valid, read, "d_valid")
        addr = delayed(m, self.d_addr, read, "d_addr")
        m.d.comb += [self.old_en.eq(valid), self.old_addr.eq(addr)]
        line = [(held(m, valid, bank, "acc_valid"), delayed(m, addr, bank, "acc_addr"))]
        counts = [delayed(m, self.d_count, read + bank, "acc_count")]
        zero = delayed(m, self.d_zero, read + bank, "acc_zero")
        for i in range(add + bank):
            line.append((held(m, line[-1][0], 1, f"acc_valid_{i}"), delayed(m, line[-1][1], 1, f"acc_addr_{i}")))
            counts.append(delayed(m, counts[-1], 1, f"acc_count_{i}"))
        self.write_count = counts[add]
        m.d.comb += [
            self.new_en.eq(line[add][0]),
            self.new_addr.eq(line[add][1]),
            self.new_mask.eq(Cat(*((counts[add] > n).replicate(4) for n in range(columns)))),
        ]
        old = Signal(32 * columns, name="old_sums")
        values: list[Signal] = []
        spoilt_a = self.a_scale_data == SCALE_NAN
        exponent = delayed(m, self._signal("exponent", self.a_scale_data + self.unit), 1 + self.foot, "exponent")
        spoilt_a = delayed(m, self._signal("spoilt_a", spoilt_a), 1 + self.foot, "spoilt_a")
        for n in range(columns):
            scale = delayed(m, self.weights.scales[n], self.foot, f"foot_scale{n}")
            value = Signal(32, name=f"sum{n}")
            values.append(value)
            signals: dict[str, Any] = {
                "i_clk": ClockSignal(), "i_rst": ResetSignal(), "i_valid": self.foot_valid, "i_first": self.foot_first,
                "i_place": self.foot_place, "i_exponent": exponent, "i_scale": scale,
                "i_spoilt": spoilt_a | (scale == SCALE_NAN), "i_zero": zero,
                "i_old": old[32 * n : 32 * n + 32], "o_value": value,
            }  # fmt: skip
            for j in range(chip.pe_rows):
                signals[f"i_dot{j}"], signals[f"i_nan{j}"] = self.dots[j][n]
            m.submodules[f"foot{n}"] = leaf("systolith_foot", lambda: ColumnFoot(chip), **signals)
        m.d.comb += self.new_data.eq(Cat(*values))
        # What the read is too early to see: sums that come out of the adders as this one's addition begins, or came out
        # up to bank_cycles ago. They may stand at other columns, where tiles of D overlap.
        newest: Value = self.old_data
        data: Value = self.new_data
        ages: list[tuple[Value, Value]] = []
        for k in range(bank + 1):
            (live, at), count = line[add + k], counts[add + k]
            words = self._signal(f"apart{k}", (line[0][1] - at)[2:ADDRESS_BITS].as_signed())
            near = live & line[0][0] & (words < columns) & (words > -columns)
            by = self._signal(f"shift{k}", (words + columns)[: columns.bit_length()])
            mask = self._signal(
                f"newer{k}",
                Mux(near, Cat(Const(0, columns), ((Const(1, columns + 1) << count) - 1)[:columns]) >> by, 0),
                columns,
            )
            moved = self._signal(f"moved{k}", Cat(Const(0, 32 * columns), data) >> Cat(Const(0, 5), by), 32 * columns)
            ages.append((mask, moved))
            data = delayed(m, data, 1, f"sums_{k}")
        for mask, moved in reversed(ages):
            newest = Cat(
                *(Mux(mask[n], moved[32 * n : 32 * n + 32], newest[32 * n : 32 * n + 32]) for n in range(columns))
            )
        m.d.comb += old.eq(newest)

"""The loader of the matrix unit: where the weights of a tile lie, and their way into the next weights of the PEs.

A tile is `array_rows` of K by `columns`, or more rows of fewer columns where arrays stand on each other. A cycle takes
a piece of each of the next lines, columns or rows as the weights lie (`load_shape`); port j reads the piece of line j
of them. So a column gets its codes from one port, or one code from each of a few, whatever the tile's raggedness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from systolith.isa.descriptor import Format, Space
from systolith.spec import Chip

from .functions import delayed
from .load_shape import LoadShape, Way, select
from .ports import ADDRESS_BITS, Port
from .walk import byte_offset

__all__ = ["Place", "Reach", "Tile", "Weights", "later", "weight_ports"]


def weight_ports(chip: Chip) -> list[Port]:
    """Ports of the loader: a piece each, with its index list and its scale."""
    shape, found = LoadShape(chip), []
    for j in range(shape.lines):
        for name, space, slot in (("slot", Space.SLOT, 1), ("spad", Space.SPAD, 0)):
            if shape.bytes(j, slot):
                found.append(Port(f"w{j}_{name}", space, shape.bytes(j, slot)))
        found.append(Port(f"w{j}_list", Space.SPAD, 4))
    for j in range(shape.scales):
        found += [Port(f"s{j}_slot", Space.SLOT, 1), Port(f"s{j}_spad", Space.SPAD, 1)]
    return found


@dataclass
class Place:
    """A row of an operand: indices of dimensions 0 and 1, and their parts of the offset in elements."""

    i0: Value
    i1: Value
    part0: Value
    part1: Value

    @classmethod
    def registers(cls, name: str) -> Place:
        """Make registers that hold a place."""
        return cls(
            *(Signal(20, name=f"{name}_{x}", reset_less=True) for x in ("i0", "i1")),
            *(Signal(32, name=f"{name}_{x}", reset_less=True) for x in ("part0", "part1")),
        )

    def values(self) -> tuple[Value, Value, Value, Value]:
        """All four."""
        return self.i0, self.i1, self.part0, self.part1

    def set(self, other: Place | None) -> list[Any]:
        """Assign another place, or the first row."""
        values = other.values() if other is not None else (0, 0, 0, 0)
        return [mine.eq(theirs) for mine, theirs in zip(self.values(), values, strict=True)]

    def after(self, m: Module, name: str, extent1: Value, stride0: Value, stride1: Value) -> Place:
        """Give the row after this one."""
        wraps = Signal(name=f"{name}_wraps")
        m.d.comb += wraps.eq(self.i1 + 1 == extent1)
        new = Place(*(Signal(len(v), name=f"{name}_{i}") for i, v in enumerate(self.values())))
        m.d.comb += [
            new.i0.eq(self.i0 + wraps),
            new.i1.eq(Mux(wraps, 0, self.i1 + 1)),
            new.part0.eq(Mux(wraps, self.part0 + stride0, self.part0)),
            new.part1.eq(Mux(wraps, 0, self.part1 + stride1)),
        ]
        return new


class Reach:
    """A row's offset: at once, or `bank_cycles` later through its index list. Built once for each port.

    place, operand : in the cycle of the list's access, `en` = 1. inner : offset inside the row.
    elements : offset in elements, bank_cycles later, when `late`, the operand as it was, belongs to it.
    """

    def __init__(
        self,
        m: Module,
        unit: Any,
        port: str,
        chip: Chip,
        place: Place,
        operand: Any,
        late: Any,
        inner: Value,
        en: Value,
    ) -> None:
        bank, name = chip.bank_cycles, port
        row = Signal(32, name=f"{name}_row")
        low = Signal(16, name=f"{name}_low")
        m.d.comb += [
            row.eq(place.i0 + operand.row),
            low.eq(row & ((Const(1, 17) << operand.unit) - 1)),
            getattr(unit, f"{port}_en").eq(en & operand.via),
            getattr(unit, f"{port}_addr").eq(operand.list + ((row >> operand.unit) << 2)),
        ]
        known = Signal(32, name=f"{name}_known")
        m.d.comb += known.eq(Mux(operand.via, 0, place.part0) + place.part1 + inner)
        known_late, low_late = delayed(m, known, bank, f"{name}_known"), delayed(m, low, bank, f"{name}_low")
        index = Signal(32, name=f"{name}_index")
        self.elements = Signal(32, name=f"{name}_elements")
        m.d.comb += [
            index.eq((getattr(unit, f"{port}_data") << late.unit) | low_late),
            self.elements.eq(known_late + Mux(late.via, (index * late.stride0.as_unsigned())[:32], 0)),
        ]


@dataclass
class Tile:
    """The tile that loads, `rows` of K by `columns`: behind k and column, with `mode` (log2) arrays on each other."""

    by_rows: Value
    k: Value
    rows: Value
    column: Value
    columns: Value
    mode: Value


class Weights:
    """The loader's data path; `MatrixUnit` says which tile, and when its load begins.

    b : the operand. Its load begins in the cycle after `begin`. fire : a pass takes the tile; to_start, to_next : the
    next one begins at the first row or column again, or after this one's.
    Out, for columns of arrays: take, we, by_rows, col, row and scale of `ArrayColumn`, by the column's number in the
    tile (`take`, `column_of`), by rows of the tile in granules (`we`). load : cycles of the tile's load.
    """

    def __init__(
        self, m: Module, unit: Any, chip: Chip, b: Any, tile: Tile, *, begin: Value, fire: Value, to_start: Value,
        to_next: Value,
    ) -> None:  # fmt: skip
        self.m, self.unit, self.chip, self.tile = m, unit, chip, tile
        self.shape = LoadShape(chip)
        self.used: dict[str, Value] = {}
        """Bytes that a port's access needs."""
        self.kind = (tile.by_rows, b.format == Format.E2M1, b.space == Space.SLOT)
        ways = self.shape.ways
        self.lines = Signal(range(self.shape.lines + 1), name="w_lines")  # a cycle
        self.piece = Signal(range(max(w.piece for w in ways.values()) + 1), name="w_piece")
        self._walk(b, begin=begin, fire=fire, to_start=to_start, to_next=to_next)
        self._read(b)
        self._masks()
        self._codes()

    def _walk(self, b: Any, *, begin: Value, fire: Value, to_start: Value, to_next: Value) -> None:
        """Lines and pieces of the tile, a group of lines after the other, each piece by piece."""
        m, tile, shape, chip = self.m, self.tile, self.shape, self.chip
        ways = shape.ways
        count, length = Signal(21, name="w_count"), Signal(21, name="w_length")
        self.count = count
        groups, parts = Signal(21, name="w_groups"), Signal(21, name="w_parts")
        self.load = Signal(20, name="w_load")
        self.loading, self.base, self.inside = Signal(), Signal(21, name="w_base"), Signal(21, name="w_inside")
        m.d.comb += [
            self.lines.eq(select(self.kind, ways, lambda w: Const(w.lines, len(self.lines)))),
            self.piece.eq(select(self.kind, ways, lambda w: Const(w.piece, len(self.piece)))),
            count.eq(Mux(tile.by_rows, tile.rows, tile.columns)),
            length.eq(Mux(tile.by_rows, tile.columns, tile.rows)),
            groups.eq(select(self.kind, ways, lambda w: (count + (w.lines - 1)) >> w.lines.bit_length() - 1)),
            parts.eq(select(self.kind, ways, lambda w: (length + (w.piece - 1)) >> w.piece.bit_length() - 1)),
            self.load.eq(groups[:10] * parts[:10]),
        ]
        # Places of the lines; a tile that is whole may have fewer than a cycle takes.
        first, start = Place.registers("w_first"), Place.registers("w_start")
        self.places = [first]
        extent1 = Signal(20, name="w_extent1")
        m.d.comb += extent1.eq(Mux(tile.by_rows, 1, b.ext1))
        for j in range(shape.lines):
            self.places.append(
                self.places[-1].after(m, f"w{j}_after", extent1, b.stride0.as_unsigned(), b.stride1.as_unsigned())
            )
        whole, step = Signal(21, name="w_whole"), Signal(21, name="w_step")
        m.d.comb += [
            whole.eq(Mux(tile.by_rows, chip.array_rows << tile.mode, chip.columns >> tile.mode)),
            step.eq(Mux(whole < self.lines, whole, self.lines)),
        ]
        behind = self.places[-1]
        for power in range(shape.lines.bit_length() - 1):
            here = self.places[1 << power]
            behind = Place(*(Mux(step[power], x, y) for x, y in zip(here.values(), behind.values(), strict=True)))
        last_part = Signal(name="w_last_part")
        m.d.comb += last_part.eq(self.inside + self.piece >= length)
        with m.If(begin):
            m.d.sync += [self.loading.eq(1), self.base.eq(0), self.inside.eq(0)]
        with m.Elif(self.loading):
            m.d.sync += self.inside.eq(Mux(last_part, 0, self.inside + self.piece))
            with m.If(last_part):
                m.d.sync += [self.base.eq(self.base + self.lines), *first.set(behind)]
                with m.If(self.base + self.lines >= count):
                    m.d.sync += self.loading.eq(0)
        end = Place(*(Mux(self.loading, x, y) for x, y in zip(behind.values(), first.values(), strict=True)))
        with m.If(to_start):
            m.d.sync += [*first.set(None), *start.set(None)]
        with m.Elif(to_next):
            m.d.sync += [*first.set(end), *start.set(end)]
        with m.Elif(fire):
            m.d.sync += first.set(start)

    def _read(self, b: Any) -> None:
        """Addresses of the pieces and of their scales; `data`, codes of each line as they come from memory."""
        m, unit, tile, shape, bank = self.m, self.unit, self.tile, self.shape, self.chip.bank_cycles
        late = delayed(m, b, bank, "b_late")
        inner, left = Signal(32, name="w_inner"), Signal(21, name="w_left")
        taken = Signal(range(max(w.piece for w in shape.ways.values()) + 1), name="w_taken")
        in_slot, slot_data = Signal(name="w_in_slot"), Signal(name="w_slot_data")
        m.d.comb += [
            inner.eq(Mux(tile.by_rows, tile.column, tile.k) + self.inside),
            left.eq(tile.columns - self.inside),
            taken.eq(Mux(tile.by_rows & (left < self.piece), left, self.piece)),
            in_slot.eq(late.space == Space.SLOT),
            slot_data.eq(delayed(m, in_slot, bank, "w_slot")),
        ]
        four = b.format == Format.E2M1
        used = delayed(m, Mux(four, (taken + 1) >> 1, taken), bank, "w_used")
        self.data: list[Signal] = []
        self.scale_data: list[Signal] = []
        for j in range(shape.lines):
            live = Signal(name=f"w{j}_live")
            m.d.comb += live.eq(
                self.loading
                & (self.base + j < self.count)
                & select(self.kind, {key: j < w.lines for key, w in shape.ways.items()}, lambda x: Const(x, 1))
            )
            reach = Reach(m, unit, f"w{j}_list", self.chip, self.places[j], b, late, inner, live)
            go = later(m, live, bank, f"w{j}_go")
            address = Signal(ADDRESS_BITS, name=f"w{j}_address")
            m.d.comb += address.eq(late.base + byte_offset(late.format, reach.elements))
            wide = max(shape.bytes(j, 0), shape.bytes(j, 1))
            data = Signal(8 * wide, name=f"w{j}_codes")
            found: dict[str, Value] = {"slot": Const(0), "spad": Const(0)}
            for name, mine in (("slot", in_slot), ("spad", ~in_slot)):
                if shape.bytes(j, name == "slot"):
                    self.used[f"w{j}_{name}"] = used
                    m.d.comb += [
                        getattr(unit, f"w{j}_{name}_en").eq(go & mine),
                        getattr(unit, f"w{j}_{name}_addr").eq(address),
                    ]
                    found[name] = getattr(unit, f"w{j}_{name}_data")
            m.d.comb += data.eq(Mux(slot_data, found["slot"], found["spad"]))
            self.data.append(data)
            if j < shape.scales:
                scale_at = Signal(ADDRESS_BITS, name=f"s{j}_address")
                scale = Signal(8, name=f"s{j}_scale")
                m.d.comb += [
                    scale_at.eq(late.sbase + (reach.elements.as_signed() >> 5)),
                    scale.eq(Mux(slot_data, getattr(unit, f"s{j}_slot_data"), getattr(unit, f"s{j}_spad_data"))),
                ]
                for name, mine in (("slot", in_slot), ("spad", ~in_slot)):
                    m.d.comb += [
                        getattr(unit, f"s{j}_{name}_en").eq(go & mine & late.scale),
                        getattr(unit, f"s{j}_{name}_addr").eq(scale_at),
                    ]
                self.scale_data.append(scale)

    def _masks(self) -> None:
        """Which columns of the tile and which granules of its rows a cycle's pieces are of."""
        m, tile, shape, chip = self.m, self.tile, self.shape, self.chip
        granules = chip.array_stack * chip.array_rows // shape.granule
        by = shape.granule.bit_length() - 1
        lines, inside = Signal(21, name="w_lines_end"), Signal(21, name="w_inside_end")
        m.d.comb += [
            lines.eq(Mux(self.base + self.lines < self.count, self.base + self.lines, self.count)),
            inside.eq(self.inside + self.piece),
        ]

        def mask(name: str, low: Value, high: Value, bits: int) -> Signal:
            out = Signal(bits, name=name)
            top, bottom = Signal(range(bits + 1), name=f"{name}_to"), Signal(range(bits + 1), name=f"{name}_from")
            ones = Const((1 << bits) - 1, bits)
            m.d.comb += [
                top.eq(Mux(high > bits, bits, high)),
                bottom.eq(Mux(low > bits, bits, low)),
                out.eq(Mux(self.loading, ~(ones << top)[:bits] & (ones << bottom)[:bits], 0)),
            ]
            return out

        columns = mask(
            "w_columns", Mux(tile.by_rows, self.inside, self.base), Mux(tile.by_rows, inside, lines), chip.columns
        )
        rows = mask(
            "w_rows", Mux(tile.by_rows, self.base, self.inside) >> by, Mux(tile.by_rows, lines, inside) >> by, granules
        )
        self.take = later(m, columns, 2 * chip.bank_cycles, "w_take")
        self.we = later(m, rows, 2 * chip.bank_cycles, "w_we")

    def _codes(self) -> None:
        """Sort the pieces: what stands at a column, or at each of the columns of a row."""
        m, shape, bank = self.m, self.shape, self.chip.bank_cycles
        names = ("w_by_rows", "w_four", "w_slot_is")
        kind = tuple(delayed(m, x, 2 * bank, name) for x, name in zip(self.kind, names, strict=True))
        self.by_rows, self.mode = kind[0], delayed(m, self.tile.mode, 2 * bank, "w_mode")
        by_columns, by_rows = ({key[1:]: w for key, w in shape.ways.items() if key[0] == i} for i in (0, 1))

        def code(line: int, element: int, w: Way) -> Value:
            data, size = self.data[line % w.lines], 4 if w.four else 8
            return Cat(data[size * element : size * (element + 1)], Const(0, 8 - size))

        def column(w: Way, n: int) -> Value:
            return Cat(*(code(n, i % w.piece, w) for i in range(shape.column_codes)))

        def row(w: Way, e: int) -> Value:
            return Cat(*(code(i, e % w.piece, w) for i in range(shape.row_codes)))

        def scale(w: Way, n: int) -> Value:
            return self.scale_data[n % w.lines]

        def named(name: str, ways: dict[tuple[int, ...], Way], make: Callable[[Way, int], Value], n: int) -> Signal:
            value = select(kind[1:], ways, lambda w: make(w, n))
            out = Signal(len(value), name=f"{name}{n}")
            m.d.comb += out.eq(value)
            return out

        self._cols = [named("col", by_columns, column, n) for n in range(shape.scales)]
        self._scales = [named("col_scale", by_columns, scale, n) for n in range(shape.scales)]
        self._rows = [named("row", by_rows, row, e) for e in range(shape.row_piece)]

    def column_of(self, n: int) -> tuple[Value, Value, Value, Value]:
        """Give col, row, scale and take of column n of the tile."""
        return (
            self._cols[n % len(self._cols)], self._rows[n % len(self._rows)], self._scales[n % len(self._scales)],
            self.take[n],
        )  # fmt: skip


def later(m: Module, value: Value, cycles: int, name: str) -> Value:
    """The same some cycles later; control, so it is reset."""
    for i in range(cycles):
        stage = Signal(len(value), name=f"{name}_{i + 1}")
        m.d.sync += stage.eq(value)
        value = stage
    return value

"""The loader of the matrix unit: where the weights of a tile lie, and their way into the next weights of the PEs.

A tile is `array_rows` of K by `columns`. Its elements stand in the order of memory: column after column where weights
lie by columns, row after row where they lie by rows; a cycle takes the next `weight_load_bytes` of them (no more than
`bank_bytes` from the scratchpad). Port i reads column i or row i of the tile, the part of it that the cycle takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Const, Module, Mux, Signal, Value, signed

from systolith.isa.descriptor import Format, Space
from systolith.numerics.formats import SCALE_BIAS
from systolith.spec import Chip

from .functions import delayed
from .ports import ADDRESS_BITS, Port
from .walk import byte_offset

__all__ = ["Place", "Weights", "load_table", "weight_ports"]


def weight_ports(chip: Chip) -> list[Port]:
    """Ports of the loader."""
    n = max(chip.array_rows, chip.columns)
    found = []
    for i in range(n):
        found += [
            Port(f"w{i}_slot", Space.SLOT, n), Port(f"w{i}_spad", Space.SPAD, n), Port(f"w{i}_list", Space.SPAD, 4),
        ]  # fmt: skip
    for i in range(chip.columns):
        found += [Port(f"s{i}_slot", Space.SLOT, 1), Port(f"s{i}_spad", Space.SPAD, 1)]
    return found


def load_table(chip: Chip, four: bool, slot: bool) -> tuple[int, list[int]]:
    """Elements a cycle, and the cycles of a tile by its columns (0 .. columns)."""
    width = chip.weight_load_bytes if slot else min(chip.weight_load_bytes, chip.bank_bytes)
    elements = 8 * width // (4 if four else 8)
    return elements, [-(-chip.array_rows * c // elements) for c in range(chip.columns + 1)]


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


class Weights:
    """The loader's data path; `MatrixUnit` says which tile, and when its load begins.

    b : the operand. by_rows, col, k, count : the tile that loads (columns before it, rows of K before it, its columns);
    its load of `elements` a cycle begins in the cycle after `begin`. to_start, to_next : the next tile begins at the
    first row or column again, or after this one's. swap : the next weights become those in use.
    """

    def __init__(
        self, m: Module, unit: Any, chip: Chip, b: Any, *, by_rows: Value, col: Value, k: Value, count: Value,
        begin: Value, to_start: Value, to_next: Value, elements: Value, swap: Value, swap_by_rows: Value,
    ) -> None:  # fmt: skip
        rows, columns, bank = chip.array_rows, chip.columns, chip.bank_cycles
        ports = max(rows, columns)
        late = delayed(m, b, bank, "b_late")
        # Which elements this cycle takes.
        loading = Signal()
        at = Signal(20)
        length = Signal(range(ports + 1))
        total = Signal(20)
        m.d.comb += [length.eq(Mux(by_rows, count, rows)), total.eq(count * rows)]
        with m.If(begin):
            m.d.sync += [loading.eq(1), at.eq(0)]
        with m.Elif(loading):
            m.d.sync += at.eq(at + elements)
            with m.If(at + elements >= total):
                m.d.sync += loading.eq(0)
        # Rows or columns of the tile, one place after the other.
        first = Place.registers("w_first")
        places = [first]
        extent1 = Signal(20, name="w_extent1")
        m.d.comb += extent1.eq(Mux(by_rows, 1, b.ext1))
        for i in range(ports):
            places.append(places[-1].after(m, f"w{i}_after", extent1, b.stride0.as_unsigned(), b.stride1.as_unsigned()))
        ends = [Mux(by_rows, x, y) for x, y in zip(places[rows].values(), places[columns].values(), strict=True)]
        with m.If(to_start):
            m.d.sync += first.set(None)
        with m.Elif(to_next):
            m.d.sync += first.set(Place(*ends))
        inner = Signal(32, name="w_inner")
        m.d.comb += inner.eq(Mux(by_rows, col, k))
        four, in_slot = Signal(name="w_four"), Signal(name="w_in_slot")
        slot_data = Signal(name="w_slot_data")
        by_rows_late = Signal(name="w_by_rows_late")
        m.d.comb += [
            four.eq(delayed(m, b.format == Format.E2M1, 2 * bank, "w_four")),
            in_slot.eq(late.space == Space.SLOT),
            slot_data.eq(delayed(m, in_slot, bank, "w_slot")),
            by_rows_late.eq(delayed(m, by_rows, 2 * bank, "w_by_rows")),
        ]
        codes, masks = [], []
        used = Signal(range(ports + 1), name="w_used")
        # A row or column is there whole, or the part that is used of it.
        m.d.comb += used.eq(delayed(m, (Mux(b.format == Format.E2M1, (length + 1) >> 1, length)), bank, "w_used"))
        self.used: dict[str, Value] = {}
        """Bytes that a port's access needs."""
        for i in range(ports):
            low = Signal(signed(21), name=f"w{i}_from")
            take = Signal(ports, name=f"w{i}_take")
            live = Signal(name=f"w{i}_live")
            begin_at, end_at = Signal(range(ports + 1), name=f"w{i}_begin"), Signal(range(ports + 1), name=f"w{i}_end")
            m.d.comb += [
                low.eq(at - i * length),
                live.eq(
                    loading & (low < length) & (low + elements > 0) & Mux(by_rows, int(i < rows), i < count)
                ),
                begin_at.eq(Mux(low < 0, 0, low)),
                end_at.eq(Mux(low + elements > length, length, low + elements)),
                take.eq(Mux(live, ((Const(1, ports + 1) << end_at) - 1) & ~((Const(1, ports + 1) << begin_at) - 1), 0)),
            ]  # fmt: skip
            reach = Reach(m, unit, f"w{i}_list", chip, places[i], b, late, inner, live)
            go = self._later(m, live, bank, f"w{i}_go")
            address = Signal(ADDRESS_BITS, name=f"w{i}_address")
            m.d.comb += address.eq(late.base + byte_offset(late.format, reach.elements))
            for name, mine in (("slot", in_slot), ("spad", ~in_slot)):
                self.used[f"w{i}_{name}"] = used
                m.d.comb += [
                    getattr(unit, f"w{i}_{name}_en").eq(go & mine),
                    getattr(unit, f"w{i}_{name}_addr").eq(address),
                ]
            if i < columns:
                scale_at = Signal(ADDRESS_BITS, name=f"s{i}_address")
                m.d.comb += scale_at.eq(late.sbase + (reach.elements.as_signed() >> 5))
                for name, mine in (("slot", in_slot), ("spad", ~in_slot)):
                    m.d.comb += [
                        getattr(unit, f"s{i}_{name}_en").eq(go & mine & late.scale),
                        getattr(unit, f"s{i}_{name}_addr").eq(scale_at),
                    ]
            data = Signal(8 * ports, name=f"w{i}_codes")
            m.d.comb += data.eq(Mux(slot_data, getattr(unit, f"w{i}_slot_data"), getattr(unit, f"w{i}_spad_data")))
            codes.append([Mux(four, data[4 * y : 4 * y + 4], data[8 * y : 8 * y + 8]) for y in range(ports)])
            masks.append(self._later(m, take, 2 * bank, f"w{i}_mask"))
        # Next weights: column n, row r. Scales of the columns go with them.
        self.codes: list[list[Value]] = []
        self.enables: list[list[Value]] = []
        for r in range(rows):
            self.codes.append([Mux(by_rows_late, codes[r][n], codes[n][r]) for n in range(columns)])
            self.enables.append([Mux(by_rows_late, masks[r][n], masks[n][r]) for n in range(columns)])
        self.scales: list[Signal] = []
        """Scales of the weights in use, as swapped at the PEs."""
        for n in range(columns):
            following, in_use = (Signal(8, name=f"scale{n}_{x}", reset_less=True) for x in ("next", "now"))
            with m.If(masks[n].any()):
                m.d.sync += following.eq(
                    Mux(slot_data, getattr(unit, f"s{n}_slot_data"), getattr(unit, f"s{n}_spad_data"))
                )
            with m.If(swap):
                m.d.sync += in_use.eq(Mux(swap_by_rows, SCALE_BIAS, following))
            self.scales.append(in_use)

    @staticmethod
    def _later(m: Module, value: Value, cycles: int, name: str) -> Value:
        """The same some cycles later; control, so it is reset."""
        for i in range(cycles):
            stage = Signal(len(value), name=f"{name}_{i + 1}")
            m.d.sync += stage.eq(value)
            value = stage
        return value

"""Rows at the feet of the arrays: the read of the accumulator, the additions of a stack, the write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from systolith.spec import Chip

from .functions import delayed
from .ports import ADDRESS_BITS
from .weights import later

__all__ = ["Sums", "by_level", "by_mode"]


def by_mode(mode: Value, values: Sequence[Value]) -> Value:
    """Choose among the values for each way of stacking: log2 of the arrays on each other."""
    chosen = values[0]
    if any(x is not chosen for x in values):
        for i, value in enumerate(values[1:], 1):
            chosen = Mux(mode == i, value, chosen)
    return chosen


def by_level(mode: Value, level: int, values: Sequence[Value]) -> Value:
    """What an array sees of the values for each array of the highest stack, of which it is number `level`."""
    return by_mode(mode, [values[level % (1 << i)] for i in range(len(values).bit_length())])


class Sums:
    """Rows of D on their way: `unit` says where a row lies (`d_valid`, `d_addr`, `d_count`, `d_mode`, `d_zero`), `late`
    cycles later the accumulator is read, `bank_cycles` after that its first block is added.

    Out, in that cycle: valid, zero, mode. count : columns of the row that is written.
    """

    def __init__(self, m: Module, unit: Any, chip: Chip, late: int) -> None:
        self.m, self.unit, self.chip = m, unit, chip
        self.modes = range(chip.array_stack.bit_length())
        bank = chip.bank_cycles
        valid = later(m, unit.d_valid, late, "d_valid")
        addr = delayed(m, unit.d_addr, late, "d_addr")
        m.d.comb += [unit.old_en.eq(valid), unit.old_addr.eq(addr)]
        self.valid = later(m, valid, bank, "acc_valid")
        self.addr = delayed(m, addr, bank, "acc_addr")
        self.columns = delayed(m, unit.d_count, late + bank, "acc_columns")
        self.mode = delayed(m, unit.d_mode, late + bank, "acc_mode")
        self.zero = delayed(m, unit.d_zero, late + bank, "acc_zero")
        self.count = Signal.like(unit.d_count, name="new_count")

    def _signal(self, name: str, value: Value, bits: int | None = None) -> Signal:
        out = Signal(bits if bits is not None else value.shape(), name=name)
        self.m.d.comb += out.eq(value)
        return out

    def join(self, values: list[list[Signal]], old_sums: list[list[Signal]]) -> None:
        """Join the columns of the arrays: what each adds to, and its sum, [array][column]."""
        m, chip, unit = self.m, self.chip, self.unit
        columns, width = chip.columns, chip.array_cols
        wait = chip.blocks_per_pass * chip.fp32_add_cycles
        # A row is written when the last array of its stack has added.
        now, rest, at = self.valid, [self.addr, self.columns, self.mode], 0
        live: Value = Const(0, 1)
        to, count, mode = rest
        for i in self.modes:
            cycles = (wait << i) - at
            now = later(m, now, cycles, f"adds{i}_valid")
            rest = [delayed(m, x, cycles, f"adds{i}_{k}") for k, x in enumerate(rest)]
            at += cycles
            mine = self._signal(f"adds{i}", now & (rest[2] == i))
            live = live | mine
            to, count, mode = (Mux(mine, x, y) if i else x for x, y in zip(rest, (to, count, mode), strict=True))
        live, to = self._signal("new_valid", live), self._signal("new_to", to, ADDRESS_BITS)
        mode = self._signal("new_mode", mode, len(self.mode))
        m.d.comb += self.count.eq(count)
        sums = []
        for n in range(columns):
            group, c = divmod(n, width)
            ends = [i for i in self.modes if (group + 1) << i <= chip.arrays]
            value: Value = values[group][c]
            for i in ends[1:]:
                value = Mux(mode == i, values[((group + 1) << i) - 1][c], value)
            sums.append(value)
        m.d.comb += [
            unit.new_en.eq(live),
            unit.new_addr.eq(to),
            unit.new_data.eq(Cat(*sums)),
            unit.new_mask.eq(Cat(*((self.count > n).replicate(4) for n in range(columns)))),
        ]
        newest = self._newest(live, to)
        first_of_stack = [Const(n == 0, 1) for n in range(chip.array_stack)]
        for a in range(chip.arrays):
            for c in range(width):
                first = by_mode(self.mode, [newest[(a >> i) * width + c] for i in self.modes])
                old: Value = Mux(self.zero, 0, first)
                level = a % chip.array_stack
                if level:
                    opens = by_level(self.mode, level, first_of_stack)
                    old = Mux(self.valid & opens, old, values[a - 1][c])
                m.d.comb += old_sums[a][c].eq(old)

    def _newest(self, live: Value, to: Value) -> list[Value]:
        """What the accumulator holds in the cycle of the first addition.

        What the read is too early to see: sums that come out of the adders as this one's addition begins, or came out
        up to bank_cycles ago. They may stand at other columns, where tiles of D overlap.
        """
        m, chip, columns = self.m, self.chip, self.chip.columns
        newest: list[Value] = [self.unit.old_data[32 * n : 32 * n + 32] for n in range(columns)]
        data: Value = self.unit.new_data
        count: Value = self.count
        ages: list[tuple[Value, Value]] = []
        for k in range(chip.bank_cycles + 1):
            words = self._signal(f"apart{k}", (self.addr - to)[2:ADDRESS_BITS].as_signed())
            near = live & self.valid & (words < columns) & (words > -columns)
            by = self._signal(f"shift{k}", (words + columns)[: columns.bit_length()])
            mask = self._signal(
                f"newer{k}",
                Mux(near, Cat(Const(0, columns), ((Const(1, columns + 1) << count) - 1)[:columns]) >> by, 0),
                columns,
            )
            moved = self._signal(f"moved{k}", Cat(Const(0, 32 * columns), data) >> Cat(Const(0, 5), by), 32 * columns)
            ages.append((mask, moved))
            data = delayed(m, data, 1, f"sums_{k}")
            live, to, count = (
                later(m, live, 1, f"wrote{k}"), delayed(m, to, 1, f"wrote{k}_to"),
                delayed(m, count, 1, f"wrote{k}_count"),
            )  # fmt: skip
        for mask, moved in reversed(ages):
            newest = [Mux(mask[n], moved[32 * n : 32 * n + 32], x) for n, x in enumerate(newest)]
        return [self._signal(f"newest{n}", x, 32) for n, x in enumerate(newest)]

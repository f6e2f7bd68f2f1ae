"""How weights load: pieces of columns or rows a cycle, as `isa.cycles.load_cycles` counts them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from amaranth.hdl import Mux, Value

from systolith.spec import BLOCK, Chip

__all__ = ["LoadShape", "Way", "select"]

T = TypeVar("T", bound=Hashable)


def select(bits: Sequence[Value], table: Mapping[tuple[int, ...], T], make: Callable[[T], Value]) -> Value:
    """Make the value of the entry that `bits` name, with a choice only where entries differ."""
    if len(set(table.values())) == 1:
        return make(next(iter(table.values())))
    low, high = ({key[1:]: entry for key, entry in table.items() if key[0] == i} for i in (0, 1))
    if low == high:
        return select(bits[1:], low, make)
    return Mux(bits[0], select(bits[1:], high, make), select(bits[1:], low, make))


@dataclass(frozen=True)
class Way:
    """One kind of weights: `lines` columns or rows a cycle, `piece` elements of each; powers of two."""

    lines: int
    piece: int
    four: int

    @property
    def bytes(self) -> int:
        """Of a piece."""
        return self.piece // 2 if self.four else self.piece


class LoadShape:
    """The ways of a chip, and what they make of its loader."""

    def __init__(self, chip: Chip) -> None:
        self.ways: dict[tuple[int, ...], Way] = {}
        """By by_rows, four bits an element, from the slots."""
        rows, columns = chip.array_rows, chip.columns
        for four in (0, 1):
            for slot in (0, 1):
                width = chip.weight_load_bytes if slot else min(chip.weight_load_bytes, chip.bank_bytes)
                each = 2 * width if four else width
                piece = min(each, rows, BLOCK)
                self.ways[0, four, slot] = Way(min(columns, each // piece), piece, four)
                piece = min(each, columns, max(BLOCK, each // rows))
                self.ways[1, four, slot] = Way(min(rows, each // piece), piece, four)
        by_columns, by_rows = ([w for key, w in self.ways.items() if key[0] == i] for i in (0, 1))
        self.lines = max(w.lines for w in self.ways.values())
        self.scales = max(w.lines for w in by_columns)
        """Columns a cycle at most: each piece has a scale."""
        self.column_codes = max(w.piece for w in by_columns)
        """Codes of a column that stand at it in a cycle."""
        self.row_codes = max(w.lines for w in by_rows)
        """Codes of a column that stand at it in a cycle where weights lie by rows: one of each row."""
        self.row_piece = max(w.piece for w in by_rows)
        self.granule = min(*(w.piece for w in by_columns), *(w.lines for w in by_rows))
        """Rows that are written together."""

    def bytes(self, line: int, slot: int) -> int:
        """Width of the port of a line; 0 where no kind of weights uses it."""
        return max(w.bytes if line < w.lines else 0 for key, w in self.ways.items() if key[2] == slot)

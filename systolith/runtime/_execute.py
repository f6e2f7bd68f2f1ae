"""`isa.execute.Machine` with the methods that a run with times and the engine need more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from systolith.isa.execute import Machine, Row
from systolith.isa.program import Program
from systolith.isa.resolved import SLICE
from systolith.spec.chip import Chip

__all__ = ["ResolvedMachine"]


LastRecord = Callable[[tuple[int, ...]], bool]
Rows = NDArray[np.int64]


class ResolvedMachine(Machine):
    """The definition, giving its resolved rows in pieces."""

    def __init__(self, chip: Chip, program: Program) -> None:
        super().__init__(chip, program)
        self._stream = self.resolved()
        self._settling = False

    def run_resolved(self, buffer: NDArray[np.int64]) -> NDArray[np.int64]:
        """Fill rows [slices, rows, COLS] until those of one slice are full or all have halted; give the counts."""
        counts = np.zeros(len(self.slices), np.int64)
        for row in self._stream:
            _place(row, buffer, counts)
            if counts.max() == buffer.shape[1]:
                break
        return counts

    def run_to_record(self, last: LastRecord, buffer: Rows | None = None) -> tuple[Rows, bool]:
        """Run until slice 0 has sent a record that is `last`, then the others until they wait; see `sim`."""
        counts = np.zeros(len(self.slices), np.int64)
        moved = True
        while moved:
            moved = False
            for s in self.slices:
                while not (s.rank == 0 and self._settling) and self._ready(s):
                    row = None
                    if buffer is not None:
                        if counts[s.rank] == buffer.shape[1]:
                            return counts, False
                        row = buffer[s.rank, counts[s.rank]]
                        row[:] = 0
                    before = len(s.records)
                    self._execute(s, row)
                    counts[s.rank] += buffer is not None
                    moved = True
                    if s.rank == 0 and any(last(record) for record in s.records[before:]):
                        self._settling = True
            if not moved and not self._settling:
                raise self._deadlock()
        self._settling = False
        return counts, True

    def take_records(self) -> list[tuple[int, ...]]:
        """Give what slice 0 has sent since the last call; forget all records."""
        taken = list(self.slices[0].records)
        for s in self.slices:
            s.records.clear()
        return taken


def _place(row: Row, buffer: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    rank = int(row[SLICE])
    buffer[rank, counts[rank]] = row
    counts[rank] += 1

"""`isa.execute.Machine` with the one method that a run with times needs more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from systolith.isa.execute import Machine, Row
from systolith.isa.program import Program
from systolith.isa.resolved import SLICE
from systolith.spec.chip import Chip

__all__ = ["ResolvedMachine"]


class ResolvedMachine(Machine):
    """The definition, giving its resolved rows in pieces."""

    def __init__(self, chip: Chip, program: Program) -> None:
        super().__init__(chip, program)
        self._stream = self.resolved()

    def run_resolved(self, buffer: NDArray[np.int64]) -> NDArray[np.int64]:
        """Fill rows [slices, rows, COLS] until those of one slice are full or all have halted; give the counts."""
        counts = np.zeros(len(self.slices), np.int64)
        for row in self._stream:
            _place(row, buffer, counts)
            if counts.max() == buffer.shape[1]:
                break
        return counts


def _place(row: Row, buffer: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    rank = int(row[SLICE])
    buffer[rank, counts[rank]] = row
    counts[rank] += 1

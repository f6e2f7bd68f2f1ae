"""What an instruction takes that finds every unit idle: its latency, and how soon the next of its kind may start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from systolith.spec import Chip

from .cycles import (
    BURSTS,
    FLAGS,
    HOLD,
    KIND,
    LAST,
    LEAD,
    MATRIX,
    NOTHING,
    OWN,
    READ,
    SEND,
    SEQUENCER,
    TAIL,
    TO_DRAM,
    WORK_COLS,
    WRITE,
    work,
)
from .facts import BANK, BRANCH, BURST_UNITS, DRAM_LATENCY, ISSUE, NET_LATENCY, UNITS_PER_CYCLE, facts
from .resolved import COUNT, FIRST, OP, SLICE, TAKEN
from .runs import ceil_div

__all__ = ["alone", "interval", "work_of"]

_LOOP, _BR, _READX = 5, 6, 7


def work_of(chip: Chip, row: Sequence[int]) -> list[int]:
    """Give the work of a resolved row as a list; `WORK` names its entries."""
    out = np.zeros((1, WORK_COLS), np.int64)
    work(facts(chip), np.asarray(row, np.int64).reshape(1, -1), out)
    return [int(v) for v in out[0]]


def alone(chip: Chip, row: Sequence[int]) -> int:
    """Cycles from start to all writes visible of an instruction that finds every unit idle."""
    f, w = facts(chip), work_of(chip, row)
    kind = w[KIND]
    if kind == SEQUENCER:
        jumps = (row[OP] == _BR and row[TAKEN]) or (row[OP] == _LOOP and not row[TAKEN])
        return int(f[ISSUE] + (f[BRANCH] if jumps else f[BANK] if row[OP] == _READX else 0))
    if kind == NOTHING:
        return 1
    if kind in (READ, WRITE):
        time = ceil_div((w[BURSTS] - 1) * w[OWN] + f[BURST_UNITS], f[UNITS_PER_CYCLE])
        return int(w[LEAD] + time + w[TAIL] + (f[DRAM_LATENCY] if kind == READ else 0))
    total = w[LEAD] + w[HOLD] + w[TAIL]
    if kind == SEND:
        first, count, rank = row[FIRST], row[COUNT], row[SLICE]
        if count > 1 or first != rank:
            total += f[NET_LATENCY]
        if w[FLAGS] & TO_DRAM:
            total += f[DRAM_LATENCY] - f[BANK]
    return int(total)


def interval(chip: Chip, row: Sequence[int]) -> int:
    """Cycles from the start of an instruction to the earliest start of another of its queue and shape."""
    f, w = facts(chip), work_of(chip, row)
    kind = w[KIND]
    if kind == MATRIX:
        return int(max(1, w[HOLD] if w[HOLD] > w[LEAD] else w[LEAD] + w[HOLD] - w[LAST]))
    if kind in (READ, WRITE):
        return int(max(1, w[HOLD], ceil_div(w[BURSTS] * w[OWN], f[UNITS_PER_CYCLE])))
    if kind == SEND:
        return int(w[LEAD] + w[HOLD])
    return max(1, alone(chip, row))

"""Time by kernel: what the RTL's events and the timing model's records say of each kernel of a program.

Both sides are read in the same way. A slice's time is cut at the ends of its instructions, in the order of their ends:
what an instruction adds to the latest end so far is its kernel's. So a program's kernels sum to its last end, and two
sides that agree in every instruction agree in every kernel.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from systolith.isa.program import Program
from systolith.spec import QUEUES
from systolith.timing import state as at

__all__ = ["FIELDS", "Kernel", "Side", "by_kernel", "kernel_of", "occupied", "of_model"]

Ints = npt.NDArray[np.int64]

FIELDS = ("slice", "queue", "pc", "start", "end", "waited", "lacked")
"""Columns of an instruction on either side, those of `RtlMachine.events`: `waited` cycles at the head of its queue,
`lacked`: for a token at last."""
_S, _Q, _PC, _START, _END, _WAITED, _LACKED = range(len(FIELDS))


@dataclass
class Side:
    """A kernel on one side."""

    cycles: int = 0
    """By which its instructions moved the latest end of their slice."""
    busy: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QUEUES, 0))
    """Cycles from start to end of its instructions, by queue."""
    semaphore: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QUEUES, 0))
    """Cycles that they waited at the head of their queue and started when a token had come."""
    unit: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QUEUES, 0))
    """Cycles that they waited there and started when their unit took them."""


@dataclass
class Kernel:
    """A kernel on both sides."""

    rtl: Side = field(default_factory=Side)
    model: Side = field(default_factory=Side)
    instructions: int = 0
    other: int = 0
    """Instructions whose duration differs."""


def kernel_of(line: str) -> str:
    """The kernel that wrote a word, by its source line: `kernels/norm.py:12 g` is of `norm`."""
    return Path(line.split(":")[0]).stem or "program"


def of_model(records: Ints) -> Ints:
    """Instructions of the timing model, [n, FIELDS], from all its records."""
    rows = records[records[:, at.R_QUEUE] < len(QUEUES)]
    out = np.zeros((len(rows), len(FIELDS)), np.int64)
    for to, column in enumerate((at.R_SLICE, at.R_QUEUE, at.R_PC, at.R_START, at.R_END)):
        out[:, to] = rows[:, column]
    for rank in np.unique(out[:, _S]):
        for queue in range(len(QUEUES)):
            mine = np.flatnonzero((out[:, _S] == rank) & (out[:, _Q] == queue))
            before = np.concatenate([[-1], out[mine, _START][:-1]]) + 1
            out[mine, _WAITED] = out[mine, _START] - np.maximum(before, rows[mine, at.R_DISPATCH])
    out[:, _LACKED] = rows[:, at.R_CAUSE] == at.SEMAPHORE
    return out


def occupied(side: Ints, cycles: int) -> dict[str, float]:
    """Share of the run in which a queue had an instruction between start and end, by queue, mean of the slices."""
    shares = {}
    slices = max(1, len(np.unique(side[:, _S])))
    for number, queue in enumerate(QUEUES):
        total = 0
        for rank in np.unique(side[:, _S]):
            mine = side[(side[:, _S] == rank) & (side[:, _Q] == number)]
            mine = mine[np.argsort(mine[:, _START], kind="stable")]
            latest = np.concatenate([[0], np.maximum.accumulate(mine[:, _END])[:-1]]) if len(mine) else mine[:, _END]
            total += int(np.maximum(mine[:, _END] - np.maximum(mine[:, _START], latest), 0).sum())
        shares[queue] = total / max(1, cycles * slices)
    return shares


def by_kernel(program: Program, rtl: Ints, model: Ints) -> dict[str, Kernel]:
    """Sum both sides up by kernel."""
    names = [kernel_of(program.line(pc)) for pc in range(len(program.words))]
    found: defaultdict[str, Kernel] = defaultdict(Kernel)
    for rows, pick in ((rtl, "rtl"), (model, "model")):
        for rank in np.unique(rows[:, _S]):
            mine = rows[rows[:, _S] == rank]
            mine = mine[np.argsort(mine[:, _END], kind="stable")]
            moved = np.diff(mine[:, _END], prepend=0)
            for row, by in zip(mine.tolist(), moved.tolist(), strict=True):
                side: Side = getattr(found[names[row[_PC]]], pick)
                side.cycles += by
                queue = QUEUES[row[_Q]]
                side.busy[queue] += row[_END] - row[_START]
                (side.semaphore if row[_LACKED] else side.unit)[queue] += row[_WAITED]
    if len(rtl) == len(model):
        keys = [np.lexsort((r[:, _START], r[:, _Q], r[:, _S])) for r in (rtl, model)]
        ours, theirs = rtl[keys[0]], model[keys[1]]
        differs = (ours[:, _END] - ours[:, _START]) != (theirs[:, _END] - theirs[:, _START])
        for pc, other in zip(theirs[:, _PC].tolist(), differs.tolist(), strict=True):
            found[names[pc]].instructions += 1
            found[names[pc]].other += other
    return dict(found)

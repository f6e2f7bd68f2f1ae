"""`Skeleton`: a program's control without its arithmetic, for times where there are no weights.

It gives the resolved stream that `FastMachine` gives, and holds no more of the DRAM than the tables that control reads:
a model of 70 billion parameters on 64 slices takes some ten megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from systolith.isa.program import Program
from systolith.spec import Chip

from . import _skeleton as loop
from .machine import FastMachine, Ints

__all__ = ["Skeleton"]


class Skeleton(FastMachine):
    """Slices that run a program for its control only. Same surface as `FastMachine`, apart from `step`.

    dram_bytes : bytes of DRAM, from 0 on, that hold what control reads; nothing beyond is there.
    tables : (base, bytes) of scratchpad buffers that control lives in: integer tables, step records, request state.
    seed : of the choices that TOPK makes in place of a router: uniform, without repetition in a row.

    Every token it picks is 0. What control computes from data (a router's choice, a sampled token) is a scenario's, not
    the model's. Raises as FastMachine, but data is not checked: a trap of arithmetic goes unseen.
    """

    def __init__(
        self, chip: Chip, program: Program, dram_bytes: int, tables: Iterable[tuple[int, int]], seed: int = 0
    ) -> None:
        marks = np.zeros((chip.scratchpad_bytes >> loop._GRAIN) + 1, np.uint8)
        for base, count in tables:
            marks[base >> loop._GRAIN : (base + count + (1 << loop._GRAIN) - 1) >> loop._GRAIN] = 1
        self._dram_bytes = min(dram_bytes, program.requires.dram_bytes)
        super().__init__(chip, program)
        self._scenario = (marks, np.zeros(program.requires.slices, np.int64), seed)

    def _call(self, only: int, limit: int, rows: Ints) -> int:
        assert not only, "a skeleton runs whole slices"
        memory, words, _, *rest = self._tail
        why = int(
            loop.run(limit, *self._head, self._records, rows, self._fill, *self._scenario, memory, words, *rest[:14])
        )
        return self._after(why)

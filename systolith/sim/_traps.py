"""Codes that kernels return for a trap; `machine` turns a code into the sentence of `isa`."""

from __future__ import annotations

from typing import Final

T_BOUNDS: Final = 1
T_SCALE_BOUNDS: Final = 2
T_LIST_BOUNDS: Final = 3
T_LIST: Final = 4
T_EXTENT: Final = 5
T_POST: Final = 7
T_LOOPS: Final = 8
T_DIVIDE: Final = 9
T_ADV: Final = 10
T_END: Final = 11
T_SHAPE: Final = 12
T_FORMAT: Final = 13
T_SPACE: Final = 14
T_PAIR: Final = 15
T_KEY: Final = 16
T_FULL: Final = 18
"""No trap: the record buffer is full, and the host has to empty it first."""

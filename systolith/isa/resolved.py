"""The resolved stream: one row of int64 for every executed word, the only thing that `timing` reads of a program.

A row holds what is known when the instruction starts: the word, cells and loops resolved, and each operand's tensor.
Column = `operand column + field column` for operands: `row[A + EXT0]`; an operand that is not there has SPACE -1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .instruction import Instruction
    from .state import Slice

__all__ = [
    "BASE",
    "COLS",
    "COUNT",
    "EXT0",
    "EXT1",
    "EXT2",
    "FIELDS",
    "FIRST",
    "FORMAT",
    "OP",
    "OPERANDS",
    "OPERAND_COLS",
    "PC",
    "POST",
    "QUEUE",
    "SBASE",
    "SCALE",
    "SLICE",
    "SPACE",
    "STRIDE0",
    "STRIDE1",
    "STRIDE2",
    "TAKEN",
    "VIA",
    "WAIT",
    "ZERO",
    "A",
    "B",
    "C",
    "D",
    "E",
    "F",
    "fill_row",
]  # fmt: skip

SLICE: Final = 0
PC: Final = 1
OP: Final = 2
QUEUE: Final = 3
"""`instruction.Queue`; 6 is the sequencer."""
WAIT: Final = 4
POST: Final = 5
FIELDS: Final = 6
"""Bits [49:0] of the word."""
ZERO: Final = 7
"""MATMUL: 1 if the accumulator starts from +0."""
TAKEN: Final = 8
"""BR: 1 if it jumps; LOOP: the count."""
FIRST: Final = 9
"""PUT: lowest rank that gets the data."""
COUNT: Final = 10
"""PUT: ranks that get it and exist."""

_HEAD: Final = 11
OPERAND_COLS: Final = 12
SPACE: Final = 0
"""`descriptor.Space`, -1: no such operand."""
FORMAT: Final = 1
SCALE: Final = 2
BASE: Final = 3
"""Byte address of element 0 after xb; with `via` the descriptor's own base."""
SBASE: Final = 4
"""Byte address of its scale, likewise."""
EXT0: Final = 5
"""After xe."""
EXT1: Final = 6
EXT2: Final = 7
STRIDE0: Final = 8
STRIDE1: Final = 9
STRIDE2: Final = 10
VIA: Final = 11
"""Of an index list: unit + 1, and from bit 8 on the row of its entry at which the operand begins; 0: none."""

D: Final = _HEAD
A: Final = _HEAD + OPERAND_COLS
B: Final = _HEAD + 2 * OPERAND_COLS
C: Final = _HEAD + 3 * OPERAND_COLS
E: Final = _HEAD + 4 * OPERAND_COLS
"""D[d+1]: the result of a reduction, the values of TOPK, the keys of GROUP."""
F: Final = _HEAD + 5 * OPERAND_COLS
"""D[c+1], the second exponent of shiftadd, the position of PICK."""

OPERANDS: Final = {"D": D, "A": A, "B": B, "C": C, "E": E, "F": F}
COLS: Final = _HEAD + 6 * OPERAND_COLS
"""Length of a row."""


def fill_row(row: npt.NDArray[np.int64], s: Slice, instruction: Instruction, word: int) -> None:
    """Fill a row [COLS] from a slice that is about to execute `instruction` (waits can be taken, nothing done yet)."""
    row[:] = 0
    row[SLICE], row[PC], row[OP], row[QUEUE] = s.rank, s.pc, instruction.OPCODE, instruction.queue
    row[WAIT], row[POST], row[FIELDS] = instruction.waits, instruction.posts, word & (1 << 50) - 1
    for name, value in instruction.late(s).items():
        row[_LATE[name]] = value
    used = instruction.operands()
    for letter, column in OPERANDS.items():
        if letter not in used:
            row[column + SPACE] = -1
            continue
        v = s.view(used[letter])
        d = v.descriptor
        row[column : column + OPERAND_COLS] = (
            d.space, d.format, d.scale, v.base, v.sbase, *v.ext, *d.stride,
            d.unit + 1 | (v.rows & (1 << d.unit) - 1) << 8 if d.via else 0,
        )  # fmt: skip


_LATE: Final = {"zero": ZERO, "taken": TAKEN, "first": FIRST, "count": COUNT}

"""Words and descriptor constants as integer tables, made once a program from the instruction records of `isa`."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from systolith.isa.descriptor import Descriptor
from systolith.isa.instruction import Instruction
from systolith.isa.program import Program
from systolith.numerics.formats import E2M1, E4M3
from systolith.numerics.functions import exp2_table

from . import _state as S
from .matrix import NAN_UNITS

Ints = npt.NDArray[np.int64]

_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "SET": ("imm",),
    "ALU": ("fn", "use_imm", "imm"),
    "DESC": ("k",),
    "ADV": ("dim", "kind", "use_reg", "r", "imm"),
    "LOOP": ("use_reg", "r", "count", "len"),
    "BR": ("cond", "use_imm", "imm", "target"),
    "READX": ("x",),
    "HALT": ("cause",),
    "COPY": (),
    "MATMUL": ("zero", "by_rows", "terms"),
    "VEC": ("op1", "op2", "func", "red", "mask", "rj", "rw", "group"),
    "PICK": (),
    "PUT": ("count", "sem", "counter", "expect", "arrive", "apart"),
    "SYNC": (),
    "RING": (),
    "TOPK": (),
    "GROUP": (),
}
"""Fields of each instruction in the order of the columns from W_F on."""

_REGISTERS: Final = {"r": S.W_D, "ra": S.W_A, "rb": S.W_B, "d": S.W_D, "a": S.W_A, "b": S.W_B, "c": S.W_C}


def word_table(program: Program) -> Ints:
    """Give the decoded words, int64 [words, WORD_COLUMNS]."""
    table = np.zeros((len(program.words), S.WORD_COLUMNS), np.int64)
    for row, word, instruction in zip(table, program.words, program.code, strict=True):
        fields = _FIELDS[instruction.NAME]
        row[S.W_OP], row[S.W_QUEUE] = instruction.OPCODE, instruction.queue
        row[S.W_WAIT], row[S.W_POST] = instruction.waits, instruction.posts
        row[S.W_FIELDS] = word & (1 << 50) - 1
        for name, column in _REGISTERS.items():
            if hasattr(instruction, name) and name not in fields:
                row[column] = getattr(instruction, name)
        for i, name in enumerate(fields):
            row[S.W_F + i] = getattr(instruction, name)
        used = instruction.operands()
        for i, letter in enumerate("DABCEF"):
            row[S.W_OPERANDS + i] = used.get(letter, -1)
    return table


def constant_table(constants: tuple[Descriptor, ...]) -> Ints:
    """Give descriptor constants, int64 [constants, CONSTANT_FIELDS]."""
    rows = [
        (d.space, d.format, d.scale, d.base, d.sbase, *d.ext, *d.stride, d.step, d.xb, d.xe, d.via, d.unit, d.wrap)
        for d in constants
    ]
    return np.array(rows, np.int64).reshape(len(rows), S.CONSTANT_FIELDS)


@cache
def format_tables() -> tuple[Any, Any, Any, Any]:
    """Give the tables that kernels share with `numerics`.

    Units of E2M1 codes, int16 [16]; of E4M3 codes, int32 [256], NaN as NAN_UNITS; 2^(code-127), float64 [256], 255 as
    NaN; T of exp2fx, float64 [65536].
    """
    units = np.array(E2M1.values, np.int16)
    e4m3 = np.array([NAN_UNITS if value is None else value for value in E4M3.values], np.int32)
    powers = np.ldexp(1.0, np.arange(256) - 127)
    powers[255] = np.nan
    return units, e4m3, powers, exp2_table().astype(np.float64)


def mnemonics(code: tuple[Instruction, ...]) -> list[str]:
    """Class of each word, for counts."""
    return [instruction.mnemonic for instruction in code]

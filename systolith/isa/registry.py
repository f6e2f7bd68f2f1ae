"""All instructions, by opcode and by name, and `decode`."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from systolith.spec import ProgramError

from .choice import Group, Topk
from .collective import Put
from .dma import Copy
from .host import Ring
from .instruction import OP_LOW, WORD_BITS, Instruction
from .matrix import Matmul
from .sequencer import Adv, Alu, Br, Desc, Halt, Loop, Readx, Set, Sync
from .vector import Pick, Vec

__all__ = ["BY_NAME", "INSTRUCTIONS", "decode", "layout_of"]

_ALL: Final[tuple[type[Instruction], ...]] = (
    Set, Alu, Desc, Adv, Loop, Br, Readx, Halt, Copy, Matmul, Vec, Pick, Put, Sync, Ring, Topk, Group,
)  # fmt: skip
INSTRUCTIONS: Final[dict[int, type[Instruction]]] = {cls.OPCODE: cls for cls in _ALL}
"""Instruction records by opcode."""

BY_NAME: Final[dict[str, type[Instruction]]] = {cls.NAME: cls for cls in INSTRUCTIONS.values()}
"""Instruction records by name, as the assembler writes it without the queue."""


@lru_cache(maxsize=65536)
def decode(word: int) -> Instruction:
    """Make the record of a word; raises ProgramError for an unknown opcode, reserved bits and illegal fields."""
    if not 0 <= word < 1 << WORD_BITS:
        raise ProgramError(f"word={word:#x} does not fit in {WORD_BITS} bits.")
    cls = INSTRUCTIONS.get(word >> OP_LOW)
    if cls is None:
        raise ProgramError(f"opcode={word >> OP_LOW} is unknown; known are 1..{max(INSTRUCTIONS)}.")
    return cls.decode(word)


def layout_of(name: str, field: str) -> int:
    """Give the lowest bit of a field of an instruction's word; raises KeyError for a name that is not there."""
    return {bits.name: bits.low for bits in BY_NAME[name].LAYOUT}[field]

"""RING, the instruction that tells the host something; it travels on queue S."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .descriptor import Format, Space
from .instruction import POST, WAIT, Instruction, Kind, Queue, operand
from .sequencer import signed

if TYPE_CHECKING:
    from .state import Slice

__all__ = ["Ring"]


@dataclass(frozen=True, kw_only=True)
class Ring(Instruction):
    """Send the INT32 words of A, in order of its indices, to the host's done-ring as one record.

    Every slice pushes its own records; the host reads slice 0's. An empty A sends nothing.
    """

    OPCODE = 15
    NAME = "RING"
    SUMMARY = "send a record to the host"
    ERRORS = ("A not INT32 in SPAD or CELL.",)
    LAYOUT = (WAIT, POST, operand("a", "a", Kind.DESC, "the record"))

    a: int
    wait: int = 0
    post: int = 0

    def fault(self) -> str | None:
        """Refuse a missing operand."""
        return "a=0 means none; name a descriptor." if self.a == 0 else None

    @property
    def queue(self) -> Queue:
        """S."""
        return Queue.S

    def operands(self) -> dict[str, int]:
        """A."""
        return {"A": self.a}

    def execute(self, s: Slice) -> None:
        """Define RING."""
        a = s.view(self.a)
        if a.format is not Format.INT32 or a.space not in (Space.SPAD, Space.CELL):
            raise s.trap(f"RING sends INT32 from SPAD or CELL, not {a.format.name} from {a.space.name}")
        e0, e1, e2 = a.ext
        if e0 * e1 * e2:
            s.records.append(tuple(signed(w) for i0 in range(e0) for i1 in range(e1) for w in a.codes(i0, i1, e2)))

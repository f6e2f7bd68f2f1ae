"""PUT, the instruction of the collective queue: one multicast write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from systolith.spec import SEMAPHORES

from .descriptor import Space
from .dma import copy_rows
from .instruction import POST, WAIT, Bits, Instruction, Kind, Queue, operand

if TYPE_CHECKING:
    from .state import Slice

__all__ = ["Put"]


@dataclass(frozen=True, kw_only=True)
class Put(Instruction):
    """Write a tensor into the same place of several slices, and count the arrival there.

    Codes and scales of A go, unchanged and with COPY's zero-fill, to the address of the sender's own D (with the
    sender's cells and index list) in each of the ranks first, first + 2^apart, ..., count of them; first = X[b], 0
    where b is 0; count 0 means all slices, whatever first. Ranks that do not exist are left out; the sender may be one.
    With arrive = 1, after the data, arrival counter `counter` of each member counts one; when it reaches `expect` (0:
    number of slices) it goes back by that and semaphore `sem` of the member gets a token. From one sender to one
    receiver order is kept. The post mask is the sender's own: its source may be overwritten.
    An extent of 0 moves nothing, and still arrives.
    """

    OPCODE = 13
    NAME = "PUT"
    SUMMARY = "multicast a tensor to slices"
    ERRORS = (
        "Formats or scale bits of D and A that differ, or an ext[2] as in COPY.",
        "A not in SPAD or CELL, D not in SPAD or DRAM.",
    )
    LAYOUT = (
        WAIT,
        POST,
        operand("d", "d", Kind.DESC, "destination, in each member"),
        operand("a", "a", Kind.DESC, "source"),
        operand("b", "b", Kind.CELL, "cell of the first rank"),
        Bits("count", 0, 11, text="ranks; 0: all slices"),
        Bits("sem", 11, 5, Kind.SEMAPHORE, "semaphore of the member"),
        Bits("counter", 16, 4, text="arrival counter of the member"),
        Bits("expect", 20, 11, text="arrivals to a token; 0: number of slices"),
        Bits("arrive", 31, 1, text="1: count the arrival"),
        Bits("apart", 32, 4, text="log2 of what lies between two ranks"),
    )

    d: int
    a: int
    b: int = 0
    count: int = 0
    sem: int = 0
    counter: int = 0
    expect: int = 0
    arrive: int = 0
    apart: int = 0
    wait: int = 0
    post: int = 0

    def fault(self) -> str | None:
        """Refuse missing operands and a semaphore that does not exist."""
        if 0 in (self.d, self.a):
            return "d=0 and a=0 mean none; name two descriptors."
        if self.sem >= SEMAPHORES:
            return f"sem={self.sem} must be in 0..{SEMAPHORES - 1}."
        if not self.arrive and (self.sem or self.counter or self.expect):
            return "sem, counter and expect must be 0 without arrive=1."
        if self.apart and not self.count:
            return f"apart={self.apart} must be 0 with count=0, which means all slices."
        return None

    @property
    def queue(self) -> Queue:
        """C."""
        return Queue.C

    def operands(self) -> dict[str, int]:
        """D and A."""
        return {"D": self.d, "A": self.a}

    def _members(self, s: Slice) -> range:
        if self.count == 0:
            return range(len(s.slices))
        first = s.cell(self.b) if self.b else 0
        slices = len(s.slices)
        return range(min(first, slices), min(first + (self.count << self.apart), slices), 1 << self.apart)

    def late(self, s: Slice) -> dict[str, int]:
        """Give the ranks that get the data."""
        members = self._members(s)
        return {"first": members.start, "count": len(members)}

    def execute(self, s: Slice) -> None:
        """Define PUT."""
        d, a = s.view(self.d), s.view(self.a)
        if a.space not in (Space.SPAD, Space.CELL) or d.space not in (Space.SPAD, Space.DRAM):
            raise s.trap(f"PUT sends from SPAD or CELL to SPAD or DRAM, not from {a.space.name} to {d.space.name}")
        for rank in self._members(s):
            member = s.slices[rank]
            copy_rows(s, d.within(member), a)
            if self.arrive:
                member.arrivals[self.counter] += 1
                expect = self.expect or len(s.slices)
                if member.arrivals[self.counter] >= expect:
                    member.arrivals[self.counter] -= expect
                    s.give(1 << self.sem, member)

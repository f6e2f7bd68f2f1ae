"""COPY, the instruction of the DMA queues W (weights), L (load) and S (store)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from systolith.spec import BLOCK

from .descriptor import Space
from .instruction import POST, WAIT, Bits, Instruction, Kind, Queue, operand

if TYPE_CHECKING:
    from .state import Slice, View

__all__ = ["COPY_WAYS", "Copy", "copy_rows"]

COPY_WAYS: Final[dict[Queue, tuple[tuple[Space, ...], tuple[Space, ...]]]] = {
    Queue.W: ((Space.DRAM,), (Space.SLOT,)),
    Queue.L: ((Space.DRAM, Space.SPAD), (Space.SPAD, Space.CELL)),
    Queue.S: ((Space.SPAD, Space.CELL), (Space.DRAM,)),
}
"""Spaces each queue copies from, and to."""


def copy_rows(s: Slice, d: View, a: View) -> None:
    """Move codes and scales, unchanged: for each index of d the element of a, zero where a has none."""
    if (d.format, d.scale) != (a.format, a.scale):
        raise s.trap(
            f"D is {d.format.name} with scale={d.scale}, A is {a.format.name} with scale={a.scale}: they must be equal"
        )
    e0, e1, e2 = d.ext
    if d.scale and e2 % BLOCK:
        raise s.trap(f"D has ext[2]={e2}, which must be a multiple of {BLOCK} with scale=1")
    common = min(e2, a.ext[2])
    blocks = -(-common // BLOCK)
    for i0 in range(e0):
        for i1 in range(e1):
            n = common if i0 < a.ext[0] and i1 < a.ext[1] else 0
            codes = a.codes(i0, i1, n) if n else []
            if e2:
                d.store_codes(i0, i1, codes + [0] * (e2 - n))
            if d.scale and e2:
                scales = a.scales(i0, i1, blocks) if n else []
                d.store_scales(i0, i1, scales + [0] * (e2 // BLOCK - len(scales)))


@dataclass(frozen=True, kw_only=True)
class Copy(Instruction):
    """Move a tensor between memories, unchanged, with zero-fill.

    For every index of D's extents: the element of A where the index lies inside A's extents, else code 0; extents of A
    beyond D's are ignored. With scale = 1, D's ext[2] is a multiple of 32 and a block of D that starts inside A's
    ext[2] has A's scale, others scale code 0. Formats and scale bits are equal: nothing is converted.
    Queue W copies DRAM to slots, L DRAM or scratchpad to scratchpad or cells, S scratchpad or cells to DRAM.

    Copies of L overlap in time. One that reads the scratchpad waits for those before it, and one that writes cells
    makes the next one wait, so that L may read what it has written. With free = 1 it neither waits nor makes wait: it
    must read nothing that a copy under way writes, write nothing that one reads or writes, and its cells must not shift
    the next one. Ends keep their order. An index list is read at the start and never waited for.
    """

    OPCODE = 9
    NAME = "COPY"
    SUMMARY = "move a tensor between memories"
    ERRORS = (
        "Formats or scale bits of D and A that differ.",
        "Spaces that the queue does not serve.",
        "scale = 1 and an ext[2] of D that is no multiple of 32.",
    )
    LAYOUT = (
        WAIT,
        POST,
        operand("d", "d", Kind.DESC, "destination"),
        operand("a", "a", Kind.DESC, "source"),
        Bits("on", 0, 3, text="queue: 0 W, 1 L, 4 S", choices=Queue),
        Bits("free", 3, 1, text="1: queue L orders nothing for it"),
    )

    on: Queue
    d: int
    a: int
    free: int = 0
    wait: int = 0
    post: int = 0

    def fault(self) -> str | None:
        """Only the DMA queues copy."""
        if self.on not in COPY_WAYS:
            return f"on={self.on.value} must be 0 (W), 1 (L) or 4 (S)."
        if self.free and self.on is not Queue.L:
            return f"free={self.free} must be 0 on queue {self.on.name}: only L orders copies of its own."
        return "d=0 and a=0 mean none; name two descriptors." if 0 in (self.d, self.a) else None

    @property
    def queue(self) -> Queue:
        """The queue of field `on`."""
        return self.on

    @property
    def mnemonic(self) -> str:
        """COPY.W, COPY.L or COPY.S."""
        return f"{self.NAME}.{self.on.name}"

    def operands(self) -> dict[str, int]:
        """D and A."""
        return {"D": self.d, "A": self.a}

    def execute(self, s: Slice) -> None:
        """Define COPY."""
        d, a = s.view(self.d), s.view(self.a)
        sources, targets = COPY_WAYS[self.on]
        if a.space not in sources or d.space not in targets:
            raise s.trap(
                f"{self.mnemonic} copies from {_names(sources)} to {_names(targets)}, "
                f"not from {a.space.name} to {d.space.name}"
            )
        copy_rows(s, d, a)


def _names(spaces: Sequence[Space]) -> str:
    return " or ".join(space.name for space in spaces)

"""TOPK and GROUP: which experts a row takes, and which rows an expert has. They choose and sort, no value changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from systolith.numerics import choose

from .descriptor import Format, Space
from .instruction import POST, WAIT, Instruction, Kind, Queue, operand

if TYPE_CHECKING:
    from .state import Slice, View

__all__ = ["GROUP_MAX", "TOPK_MAX", "Group", "Topk"]

TOPK_MAX: Final = 64
"""Most values that TOPK keeps of a row."""
GROUP_MAX: Final = 4096
"""Most pairs that GROUP sorts."""


def check_operands(s: Slice, name: str, view: dict[str, View], formats: dict[str, Format], written: str) -> None:
    """Trap unless each operand has its format, those written lie in SPAD or CELL, the others there or in ACC."""
    for letter, v in view.items():
        spaces = (Space.SPAD, Space.CELL) if letter in written else (Space.SPAD, Space.ACC, Space.CELL)
        if v.format is not formats[letter] or v.space not in spaces:
            raise s.trap(f"operand {letter} of {name} is {v.format.name} in {v.space.name}, which it does not take")


@dataclass(frozen=True, kw_only=True)
class Topk(Instruction):
    """Give the k best of each row, best first, by (value, lowest index).

    A: FP32 [e0, e1, n]. D: INT32, gets the indices at (i0, i1, 0 .. k-1). E = D[d+1]: FP32, gets the values there.
    k is D's ext[2]; the other extents of D, and E's, do not count. NaN is below everything, the lowest index first
    among NaN; -0 equals +0 and stays -0 in E. A choice is written when it is made, before the next one is looked for: D
    and E must not overlap A. An extent of 0 in A is a no-op.
    """

    OPCODE = 16
    NAME = "TOPK"
    SUMMARY = "the k best of each row"
    ERRORS = (
        "Operands in other formats; A not in SPAD, ACC or CELL; D, E not in SPAD or CELL.",
        f"k, D's ext[2], that is 0, or more than {TOPK_MAX} or than the elements of a row.",
    )
    LAYOUT = (
        WAIT,
        POST,
        operand("d", "d", Kind.DESC, "indices; D[d+1] takes the values"),
        operand("a", "a", Kind.DESC, "rows"),
    )

    d: int
    a: int
    wait: int = 0
    post: int = 0

    def fault(self) -> str | None:
        """Refuse missing operands."""
        if 0 in (self.d, self.a) or self.d == 63:
            return "d and a must be descriptors 1..63, d at most 62: D[d+1] takes the values."
        return None

    @property
    def queue(self) -> Queue:
        """V."""
        return Queue.V

    def operands(self) -> dict[str, int]:
        """Rows, indices and values."""
        return {"D": self.d, "A": self.a, "E": self.d + 1}

    def execute(self, s: Slice) -> None:
        """Define TOPK."""
        view = {letter: s.view(n) for letter, n in self.operands().items()}
        check_operands(s, "TOPK", view, {"A": Format.FP32, "D": Format.INT32, "E": Format.FP32}, "DE")
        e0, e1, n = view["A"].ext
        if e0 * e1 * n == 0:
            return
        k = view["D"].ext[2]
        if not 1 <= k <= min(n, TOPK_MAX):
            raise s.trap(f"TOPK keeps 1..{min(n, TOPK_MAX)} of {n} values, not k={k}, the ext[2] of D")
        for i0 in range(e0):
            for i1 in range(e1):
                row = view["A"].numbers(i0, i1, n)
                best = choose.top_k(row, k)
                view["D"].store_codes(i0, i1, best)
                view["E"].store_numbers(i0, i1, [row[i] for i in best])


@dataclass(frozen=True, kw_only=True)
class Group(Instruction):
    """Sort pairs (key, number) by key, so that those of one key stand together.

    A: INT32 [e0, e1, e2] keys, n = e0 * e1 * e2 pairs numbered in row order. D: INT32 [2, 1, n or more], the order:
    (0, 0, i) gets the number of the pair that comes i-th by (key, number), (1, 0, i) its row i0 * e1 + i1 in A.
    E = D[d+1]: INT32 [m, 1, 4]: row j gets {key, place of its first pair in the order, its pairs, 0} of the j-th
    distinct key, ascending; rows beyond the distinct keys are not written. B: INT32 (0, 0, 0) gets the number of
    distinct keys. All of A is read before anything is written. An extent of 0 in A is a no-op: B too is not written.
    """

    OPCODE = 17
    NAME = "GROUP"
    SUMMARY = "sort pairs by key, list the keys"
    WRITES: ClassVar[str] = "DEB"
    ERRORS = (
        "Operands in other formats; A not in SPAD, ACC or CELL; B, D, E not in SPAD or CELL.",
        f"More than {GROUP_MAX} pairs.",
        "D with extents less than [2, 1, n], or E with extents less than [1, 1, 4].",
        "A key, signed, that is negative or not below m, E's ext[0].",
    )
    LAYOUT = (
        WAIT,
        POST,
        operand("d", "d", Kind.DESC, "order; D[d+1] takes the keys"),
        operand("a", "a", Kind.DESC, "keys of the pairs"),
        operand("b", "b", Kind.DESC, "takes the number of distinct keys"),
    )

    d: int
    a: int
    b: int
    wait: int = 0
    post: int = 0

    def fault(self) -> str | None:
        """Refuse missing operands."""
        if 0 in (self.d, self.a, self.b) or self.d == 63:
            return "d, a and b must be descriptors 1..63, d at most 62: D[d+1] takes the keys."
        return None

    @property
    def queue(self) -> Queue:
        """V."""
        return Queue.V

    def operands(self) -> dict[str, int]:
        """Keys of the pairs, order, list of keys, their number."""
        return {"D": self.d, "A": self.a, "B": self.b, "E": self.d + 1}

    def execute(self, s: Slice) -> None:
        """Define GROUP."""
        view = {letter: s.view(n) for letter, n in self.operands().items()}
        check_operands(s, "GROUP", view, dict.fromkeys("ABDE", Format.INT32), self.WRITES)
        e0, e1, e2 = view["A"].ext
        n = e0 * e1 * e2
        if n == 0:
            return
        if n > GROUP_MAX:
            raise s.trap(f"GROUP sorts up to {GROUP_MAX} pairs, not {n}, the elements of A")
        for letter, least in (("D", (2, 1, n)), ("E", (1, 1, 4))):
            extents = view[letter].ext
            if any(have < need for have, need in zip(extents, least, strict=True)):
                raise s.trap(f"operand {letter} of GROUP has extents {extents}, too small for {least}")
        keys = [int(key) for i0 in range(e0) for i1 in range(e1) for key in view["A"].numbers(i0, i1, e2)]
        m = view["E"].ext[0]
        for number, key in enumerate(keys):
            if not 0 <= key < m:
                raise s.trap(f"the key of pair {number} is {key}; it must be in 0..{m - 1}, E has ext[0]={m}")
        order = sorted(range(n), key=keys.__getitem__)  # stable: equal keys stay in the order of their numbers
        view["D"].store_codes(0, 0, order)
        view["D"].store_codes(1, 0, [number // e2 for number in order])
        first = 0
        counts = sorted(Counter(keys).items())
        for j, (key, count) in enumerate(counts):
            view["E"].store_codes(j, 0, (key, first, count, 0))
            first += count
        view["B"].store_codes(0, 0, [len(counts)])

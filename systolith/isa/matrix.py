"""MATMUL, the instruction of the matrix queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import ldexp, nan
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

from systolith.numerics.formats import PAIRS, SCALE_BIAS, SCALE_NAN
from systolith.numerics.formats import Format as Element
from systolith.numerics.fp32 import round_f32
from systolith.spec import BLOCK

from .descriptor import Format, Space
from .instruction import POST, WAIT, Bits, Instruction, Kind, Queue, operand

if TYPE_CHECKING:
    from .state import Slice, View

__all__ = ["Matmul", "Zero", "block_sum"]


class Zero(IntEnum):
    """When the accumulator starts from +0 instead of what it holds."""

    NO = 0
    YES = 1
    FIRST = 2
    """In the first iteration of the innermost running LOOP; outside every loop always."""


class Block(NamedTuple):
    """32 elements along K."""

    values: list[int]
    """In units of the format; NaN is absent here."""
    scale: int
    """E8M0 code."""
    nans: tuple[int, ...]
    """Places of E4M3 NaN codes."""


def block_sum(x: Block, y: Block, unit_exp: int) -> float:
    """Multiply and add a block exactly, scale it exactly, round once (numerics rules 1 and 2).

    The integer has 42 bits or fewer and the scale moves it by a power of two: exact in binary64, then rounded to FP32.
    """
    if x.scale == SCALE_NAN or y.scale == SCALE_NAN:
        return nan
    for mine, other in ((x, y), (y, x)):
        if any(other.values[i] or i in other.nans for i in mine.nans):  # NaN meets a code that is not zero
            return nan
    total = sum(map(mul, x.values, y.values))
    return round_f32(ldexp(total, unit_exp + x.scale + y.scale - 2 * SCALE_BIAS)) if total else 0.0


def blocks_of(codes: Sequence[int], scales: Sequence[int], element: Element) -> list[Block]:
    """Cut one row of codes into blocks."""
    table = element.values
    result = []
    for index, scale in enumerate(scales):
        values = [table[code] for code in codes[BLOCK * index : BLOCK * (index + 1)]]
        nans = tuple(i for i, value in enumerate(values) if value is None) if None in values else ()
        result.append(Block([value or 0 for value in values] if nans else values, scale, nans))  # type: ignore[arg-type]
    return result


@dataclass(frozen=True, kw_only=True)
class Matmul(Instruction):
    """Add the product of rows A and weights B to the accumulator.

    A: [e0, e1, K], rows = e0 * e1, with scales, in SPAD. K is a multiple of 32. Weights by columns (by_rows = 0):
    [n0, n1, K * (1 + terms)] with scales, in SLOT or SPAD, one column for each (n0, n1). By rows (by_rows = 1):
    [K, 1, N] without scales (2^0), in SLOT or SPAD, terms = 0. D: FP32 in ACC, at (i0, i1, column).
    For each row and column, blocks ascending: acc = RNE(acc + block sum). With zero the sum starts from +0, else from
    what D holds. terms = 1: block i of A meets blocks 2i and 2i+1 of the weights in turn (two-term weights).
    Elements of dimension 2 lie side by side (stride 1) in all three. An extent of 0 in A or B is a no-op. D's extents
    only bound: they are at least rows and columns.
    """

    OPCODE = 10
    NAME = "MATMUL"
    SUMMARY = "multiply and accumulate"
    ERRORS = (
        "Formats of A and B that are no pair of numerics rule 1, A first.",
        "Operands in other spaces, or scales where there must be none, or none where there must be.",
        "K that is no multiple of 32, or that differs between A and B.",
        "An inner stride that is not 1, where dimension 2 has more than one element.",
        "D smaller than rows and columns.",
    )
    LAYOUT = (
        WAIT,
        POST,
        operand("d", "d", Kind.DESC, "accumulator"),
        operand("a", "a", Kind.DESC, "rows"),
        operand("b", "b", Kind.DESC, "weights"),
        Bits("zero", 0, 2, text="start from +0", choices=Zero),
        Bits("by_rows", 2, 1, text="1: weights by rows"),
        Bits("terms", 3, 1, text="1: two-term weights"),
    )

    d: int
    a: int
    b: int
    zero: Zero = Zero.NO
    by_rows: int = 0
    terms: int = 0
    wait: int = 0
    post: int = 0

    def fault(self) -> str | None:
        """Refuse missing operands and two terms by rows."""
        if 0 in (self.d, self.a, self.b):
            return "d=0, a=0 and b=0 mean none; name three descriptors."
        return "terms=1 needs weights by columns; write by_rows=0." if self.by_rows and self.terms else None

    @property
    def queue(self) -> Queue:
        """M."""
        return Queue.M

    def operands(self) -> dict[str, int]:
        """D, A and B."""
        return {"D": self.d, "A": self.a, "B": self.b}

    def late(self, s: Slice) -> dict[str, int]:
        """Resolve zero."""
        return {"zero": int(self.zero is Zero.YES or (self.zero is Zero.FIRST and s.first_iteration))}

    def execute(self, s: Slice) -> None:
        """Define MATMUL."""
        d, a, b = s.view(self.d), s.view(self.a), s.view(self.b)
        e0, e1, K = a.ext
        if e0 * e1 * K * b.ext[0] * b.ext[1] * b.ext[2] == 0:
            return
        pair = self._pair(s, d, a, b)
        columns = self._by_rows(b) if self.by_rows else self._by_columns(b)
        if d.ext[0] < e0 or d.ext[1] < e1 or d.ext[2] < len(columns):
            raise s.trap(f"D has extents {d.ext}, too small for rows {(e0, e1)} and {len(columns)} columns")
        zero = self.late(s)["zero"]
        for i0 in range(e0):
            for i1 in range(e1):
                row = blocks_of(a.codes(i0, i1, K), a.scales(i0, i1, K // BLOCK), a.format.numeric)
                sums = [0.0] * len(columns) if zero else list(d.numbers(i0, i1, len(columns)))
                for n, column in enumerate(columns):
                    acc = sums[n]
                    for i, block in enumerate(row):
                        for weights in column[i << self.terms : (i + 1) << self.terms]:
                            acc = round_f32(acc + block_sum(block, weights, pair))
                    sums[n] = acc
                d.store_numbers(i0, i1, sums)

    def _pair(self, s: Slice, d: View, a: View, b: View) -> int:
        """Check spaces, formats and K; give the exponent of the unit of a block sum."""
        if a.space is not Space.SPAD or b.space not in (Space.SLOT, Space.SPAD) or d.space is not Space.ACC:
            raise s.trap(
                f"MATMUL takes A from SPAD, B from SLOT or SPAD and adds to ACC, not {a.space.name}, {b.space.name} "
                f"and {d.space.name}"
            )
        if d.format is not Format.FP32:
            raise s.trap(f"MATMUL adds to FP32, not {d.format.name}")
        pair = PAIRS.get((a.format.name, b.format.name))
        if pair is None:
            raise s.trap(
                f"{a.format.name} x {b.format.name} cannot be multiplied; the pairs are "
                f"{', '.join(p.name for p in PAIRS.values())}"
            )
        if not a.scale or b.scale == self.by_rows:
            raise s.trap("A has scales, weights by columns have scales, weights by rows have none")
        K = a.ext[2]
        found = b.ext[0] if self.by_rows else b.ext[2]
        if K % BLOCK or found != K << self.terms or (self.by_rows and b.ext[1] != 1):
            raise s.trap(
                f"K={K} of A must be a multiple of {BLOCK}, and B, of extents {b.ext}, must have K={K << self.terms} "
                f"as {'ext[0], ext[1]=1' if self.by_rows else 'ext[2]'}"
            )
        for name, view in (("D", d), ("A", a), ("B", b)):
            stride = view.descriptor.stride[2]
            if view.ext[2] > 1 and stride != 1:
                raise s.trap(f"MATMUL reads and adds whole rows: {name} has the inner stride {stride}, not 1")
        return pair.unit_exp

    def _by_columns(self, b: View) -> list[list[Block]]:
        n0, n1, K = b.ext
        return [
            blocks_of(b.codes(i0, i1, K), b.scales(i0, i1, K // BLOCK), b.format.numeric)
            for i0 in range(n0)
            for i1 in range(n1)
        ]

    def _by_rows(self, b: View) -> list[list[Block]]:
        K, _, N = b.ext
        scales = [SCALE_BIAS] * (K // BLOCK)
        return [
            blocks_of(column, scales, b.format.numeric)
            for column in zip(*(b.codes(k, 0, N) for k in range(K)), strict=True)
        ]

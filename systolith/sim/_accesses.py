"""What each instruction reads and writes of its operands: the sanitizer's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from systolith.isa.resolved import ZERO as ROW_ZERO

from . import _state as S

__all__ = ["ACCESSES", "Accesses"]

Row: TypeAlias = npt.NDArray[np.int64]
Accesses = list[tuple[int, tuple[int, int, int], int]]


def _ext(o: Row, k: int) -> tuple[int, int, int]:
    return int(o[k, S.O_EXT]), int(o[k, S.O_EXT + 1]), int(o[k, S.O_EXT + 2])


def _copy(o: Row, instruction: Any, row: Row) -> Accesses:
    d, a = _ext(o, S.OD), _ext(o, S.OA)
    common = (min(d[0], a[0]), min(d[1], a[1]), min(d[2], a[2]))
    reads: Accesses = [(S.OA, common, 0)]
    return reads if instruction.NAME == "PUT" else [*reads, (S.OD, d, 1)]


def _matmul(o: Row, instruction: Any, row: Row) -> Accesses:
    a, b = _ext(o, S.OA), _ext(o, S.OB)
    if 0 in (*a, *b):
        return []
    d = (a[0], a[1], b[2] if instruction.by_rows else b[0] * b[1])
    reads: Accesses = [(S.OA, a, 0), (S.OB, b, 0)]
    return [*reads, *([] if row[ROW_ZERO] else [(S.OD, d, 0)]), (S.OD, d, 1)]


def _vec(o: Row, instruction: Any, row: Row) -> Accesses:
    a = _ext(o, S.OA)
    if 0 in a:
        return []
    result: Accesses = [(k, a, 0) for k in (S.OA, S.OB, S.OC, S.OX) if o[k, S.O_SPACE] >= 0]
    if o[S.OD, S.O_SPACE] >= 0:
        result.append((S.OD, (a[0], a[1], a[2] + (-a[2] % 32 if o[S.OD, S.O_SCALE] else 0)), 1))
    if o[S.OE, S.O_SPACE] >= 0:
        result.append((S.OE, (a[0], a[1], 1), 1))
    return result


def _pick(o: Row, instruction: Any, row: Row) -> Accesses:
    a = _ext(o, S.OA)
    if 0 in a:
        return []
    return [(S.OA, a, 0), (S.OB, a, 0), (S.OC, (1, 1, 5), 0), (S.OX, (1, 1, 1), 0), (S.OD, (1, 1, 1), 1)]


def _topk(o: Row, instruction: Any, row: Row) -> Accesses:
    a, k = _ext(o, S.OA), int(o[S.OD, S.O_EXT + 2])
    return [] if 0 in a else [(S.OA, a, 0), (S.OD, (a[0], a[1], k), 1), (S.OE, (a[0], a[1], k), 1)]


def _group(o: Row, instruction: Any, row: Row) -> Accesses:
    a, keys = _ext(o, S.OA), int(o[S.OE, S.O_EXT])  # the kernel leaves the keys it has written there
    if 0 in a:
        return []
    order = (2, 1, a[0] * a[1] * a[2])
    return [(S.OA, a, 0), (S.OD, order, 1), (S.OE, (keys, 1, 4), 1), (S.OB, (1, 1, 1), 1)]


def _ring(o: Row, instruction: Any, row: Row) -> Accesses:
    return [(S.OA, _ext(o, S.OA), 0)]


ACCESSES: Final[dict[str, Callable[[Row, Any, Row], Accesses]]] = {
    "COPY": _copy, "PUT": _copy, "MATMUL": _matmul, "VEC": _vec, "PICK": _pick, "RING": _ring,
    "TOPK": _topk, "GROUP": _group,
}  # fmt: skip
"""What each instruction reads and writes, in order: (operand row, extents, write)."""

"""Host port: RING copies one record of INT32 words out of a slice."""

from __future__ import annotations

from ._jit import I32, I64, I64_2D, Array, Scalar, kernel
from ._operands import check, row0
from ._state import C_RINGS, CELL, INT32, O_ABS, O_BASE, O_EXT, O_FORMAT, O_SPACE, O_STRIDE, OA, SPAD
from ._traps import T_FORMAT, T_FULL


@kernel(f"int64({I64_2D}, int64, {I64}, {I32}, {I64})")
def ring(o: Array, s: Scalar, cfg: Array, m32: Array, records: Array) -> Scalar:
    """Append {slice, words, word ...} of operand A to the records; 0 or the code of a trap."""
    if o[OA, O_FORMAT] != INT32 or (o[OA, O_SPACE] != SPAD and o[OA, O_SPACE] != CELL):
        return T_FORMAT
    e0, e1, n = o[OA, O_EXT], o[OA, O_EXT + 1], o[OA, O_EXT + 2]
    count = e0 * e1 * n
    if count == 0:
        return 0
    code = check(o, OA, e0, e1, n, m32)
    if code != 0:
        return code
    at = cfg[C_RINGS]
    if at + 2 + count > len(records):
        return T_FULL
    records[at] = s
    records[at + 1] = count
    at += 2
    base = (o[OA, O_ABS] + o[OA, O_BASE]) >> 2
    for i0 in range(e0):
        row = base + row0(o, OA, i0, m32)
        for i1 in range(e1):
            for i in range(n):
                records[at] = m32[row + i1 * o[OA, O_STRIDE + 1] + i * o[OA, O_STRIDE + 2]]
                at += 1
    cfg[C_RINGS] = at
    return 0

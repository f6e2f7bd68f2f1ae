"""Collective unit: PUT, the only way from one slice's memory to another's."""

from __future__ import annotations

from systolith.spec.limits import SEMAPHORE_MAX

from ._jit import I32, I64, I64_2D, U8, Array, Scalar, kernel
from ._state import C_STRIDE, CELL, COUNTERS, DRAM, O_SPACE, OA, OD, SEMS, SPAD
from ._traps import T_POST, T_SPACE
from .dma import check_copy, copy_tensor


@kernel(f"int64({I64_2D}, int64, {I64_2D}, int64, int64, int64, int64, int64, int64, int64, {I64}, {U8}, {I32})")
def put(
    st: Array, s: Scalar, o: Array, first: Scalar, count: Scalar, apart: Scalar, arrive: Scalar, counter: Scalar,
    expect: Scalar, sem: Scalar, cfg: Array, m8: Array, m32: Array,
) -> Scalar:  # fmt: skip
    """Write operand A to operand D of `count` ranks from `first` on, 2^apart apart, and count the arrival there."""
    source, target = o[OA, O_SPACE], o[OD, O_SPACE]
    if (source != SPAD and source != CELL) or (target != SPAD and target != DRAM):
        return T_SPACE
    end = first + (count << apart)
    if count > 0:
        code = check_copy(o, m32)
        if code != 0:
            return code
    for rank in range(first, end, 1 << apart):
        if arrive != 0 and st[rank, COUNTERS + counter] + 1 == expect and st[rank, SEMS + sem] >= SEMAPHORE_MAX:
            return T_POST
    for rank in range(first, end, 1 << apart):
        copy_tensor(o, (rank - s) * cfg[C_STRIDE], m8, m32)
        if arrive != 0:
            st[rank, COUNTERS + counter] += 1
            if st[rank, COUNTERS + counter] == expect:
                st[rank, COUNTERS + counter] = 0
                st[rank, SEMS + sem] += 1
    return 0

"""DMA units: COPY (queues W, L, S) moves codes and scales as they are. `copy_tensor` serves PUT as well."""

from __future__ import annotations

from ._jit import I32, I64_2D, U8, Array, Scalar, kernel
from ._operands import bits_of, check, row0
from ._state import (
    CELL,
    DRAM,
    O_ABS,
    O_BASE,
    O_EXT,
    O_FORMAT,
    O_SBASE,
    O_SCALE,
    O_SPACE,
    O_STRIDE,
    O_VIA,
    OA,
    OD,
    SLOT,
    SPAD,
)  # fmt: skip
from ._traps import T_FORMAT, T_SHAPE, T_SPACE


@kernel(f"void({U8}, int64, int64, int64, int64, int64, int64)")
def copy_bytes(
    m8: Array, to: Scalar, to_step: Scalar, source: Scalar, source_step: Scalar, n: Scalar, m: Scalar
) -> None:
    """Copy n bytes `source_step` apart to `to`, `to_step` apart, then zeros up to m of them."""
    if to_step == 1 and source_step == 1:
        dst = m8[to : to + m]
        src = m8[source : source + n]
        if source < to < source + n:
            for i in range(n - 1, -1, -1):  # the whole row is read before it is written
                dst[i] = src[i]
        else:
            for i in range(n):
                dst[i] = src[i]
        for i in range(n, m):
            dst[i] = 0
    else:
        for i in range(n):
            m8[to + i * to_step] = m8[source + i * source_step]
        for i in range(n, m):
            m8[to + i * to_step] = 0


@kernel(f"int64({I64_2D}, {I32})")
def check_copy(o: Array, m32: Array) -> Scalar:
    """Check what a copy will write and what it will read; 0 or the code of a trap."""
    if o[OD, O_FORMAT] != o[OA, O_FORMAT] or o[OD, O_SCALE] != o[OA, O_SCALE]:
        return T_FORMAT
    if o[OD, O_SCALE] != 0 and o[OD, O_EXT + 2] & 31 != 0:
        return T_SHAPE
    code = check(o, OD, o[OD, O_EXT], o[OD, O_EXT + 1], o[OD, O_EXT + 2], m32)
    if code == 0:
        e0 = min(o[OD, O_EXT], o[OA, O_EXT])
        e1 = min(o[OD, O_EXT + 1], o[OA, O_EXT + 1])
        e2 = min(o[OD, O_EXT + 2], o[OA, O_EXT + 2])
        code = check(o, OA, e0, e1, e2, m32)
    return code


@kernel(f"void({I64_2D}, int64, {U8}, {I32})")
def copy_tensor(o: Array, away: Scalar, m8: Array, m32: Array) -> None:
    """Copy operand A to D, D's memory `away` bytes further (another slice's). Outside A: code 0, scale code 0."""
    bits = bits_of(o[OD, O_FORMAT])
    n = o[OD, O_EXT + 2]
    inside = min(n, o[OA, O_EXT + 2])
    to_base = o[OD, O_ABS] + o[OD, O_BASE] + away
    from_base = o[OA, O_ABS] + o[OA, O_BASE]
    to_scales = o[OD, O_ABS] + o[OD, O_SBASE] + away
    from_scales = o[OA, O_ABS] + o[OA, O_SBASE]
    scaled = o[OD, O_SCALE] != 0
    to_step = o[OD, O_STRIDE + 2]
    from_step = o[OA, O_STRIDE + 2]
    e0, e1 = o[OD, O_EXT], o[OD, O_EXT + 1]
    # Rows that lie one after the other on both sides, and all inside A, are one long row. Not within one memory, where
    # a row that is written may be read as part of the next one.
    if (
        o[OD, O_ABS] + away != o[OA, O_ABS]
        and inside == n
        and e1 <= o[OA, O_EXT + 1]
        and (to_step == 1 and from_step == 1)
    ):
        if e1 > 1 and o[OD, O_STRIDE + 1] == n and o[OA, O_STRIDE + 1] == n:
            n = inside = n * e1
            e1 = 1
        flat = o[OD, O_VIA] == 0 and o[OA, O_VIA] == 0 and e0 <= o[OA, O_EXT]
        if e1 == 1 and e0 > 1 and flat and o[OD, O_STRIDE] == n and o[OA, O_STRIDE] == n:
            n = inside = n * e0
            e0 = 1
    for i0 in range(e0):
        to0 = row0(o, OD, i0, m32)
        live0 = i0 < o[OA, O_EXT]
        from0 = row0(o, OA, i0, m32) if live0 else 0
        for i1 in range(e1):
            to = to0 + i1 * o[OD, O_STRIDE + 1]
            source = from0 + i1 * o[OA, O_STRIDE + 1]
            count = inside if live0 and i1 < o[OA, O_EXT + 1] else 0
            if bits == 32:
                w = (to_base >> 2) + to
                r = (from_base >> 2) + source
                if to_step == 1 and from_step == 1:
                    copy_bytes(m8, 4 * w, 1, 4 * r, 1, 4 * count, 4 * n)
                else:
                    for i in range(count):
                        m32[w + i * to_step] = m32[r + i * from_step]
                    for i in range(count, n):
                        m32[w + i * to_step] = 0
            elif bits == 8:
                copy_bytes(m8, to_base + to, to_step, from_base + source, from_step, count, n)
            else:  # E2M1: extents, strides and steps are even, the inner stride is 1
                copy_bytes(m8, to_base + (to >> 1), 1, from_base + (source >> 1), 1, count >> 1, n >> 1)
            if scaled:
                blocks = (count + 31) >> 5
                copy_bytes(m8, to_scales + (to >> 5), 1, from_scales + (source >> 5), 1, blocks, (n + 31) >> 5)


@kernel(f"int64({I64_2D}, int64, {U8}, {I32})")
def copy(o: Array, queue: Scalar, m8: Array, m32: Array) -> Scalar:
    """Run a COPY of queue W (0), L (1) or S (4); 0 or the code of a trap, nothing written then."""
    source, target = o[OA, O_SPACE], o[OD, O_SPACE]
    if queue == 0:
        right = source == DRAM and target == SLOT
    elif queue == 1:
        right = (source in (DRAM, SPAD)) and (target in (SPAD, CELL))
    else:
        right = (source in (SPAD, CELL)) and target == DRAM
    code = check_copy(o, m32) if right else T_SPACE
    if code == 0:
        copy_tensor(o, 0, m8, m32)
    return code

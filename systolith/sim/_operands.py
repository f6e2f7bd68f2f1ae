"""Operands of one instruction: a descriptor with its cells resolved, its bounds, and the offset of a row."""

from __future__ import annotations

import numpy as np

from ._jit import I32, I64, I64_2D, Array, Scalar, kernel
from ._state import (
    C_OFFSET,
    C_SIZE,
    C_STRIDE,
    CELL,
    D_BASE,
    D_EXT,
    D_FIELDS,
    D_FORMAT,
    D_SBASE,
    D_SCALE,
    D_SPACE,
    D_STEP,
    D_STRIDE,
    D_UNIT,
    D_VIA,
    D_XB,
    D_XE,
    DESCS,
    E2M1,
    FP32,
    INT32,
    O_ABS,
    O_BASE,
    O_EXT,
    O_FORMAT,
    O_LIST,
    O_LIST_ABS,
    O_LIST_SIZE,
    O_SBASE,
    O_SCALE,
    O_SIZE,
    O_SPACE,
    O_STRIDE,
    O_VIA,
    O_XB,
    SPAD,
)  # fmt: skip
from ._traps import T_BOUNDS, T_EXTENT, T_LIST, T_LIST_BOUNDS, T_SCALE_BOUNDS


@kernel("int64(int64)", inline=True)
def bits_of(form: Scalar) -> Scalar:
    """Storage bits of a format."""
    if form in (FP32, INT32):
        return 32
    return 4 if form == E2M1 else 8


@kernel(f"int64({I64_2D}, int64, int64, int64, {I64_2D}, {I64}, {I32})", inline=True)
def resolve(st: Array, s: Scalar, d: Scalar, k: Scalar, o: Array, cfg: Array, m32: Array) -> Scalar:
    """Put descriptor register d of slice s, cells resolved, into operand row k; 0 or the code of a trap."""
    at = DESCS + d * D_FIELDS
    space = st[s, at + D_SPACE]
    form = st[s, at + D_FORMAT]
    home = s * cfg[C_STRIDE]
    cells = (home + cfg[C_OFFSET + CELL]) >> 2
    o[k, O_SPACE] = space
    o[k, O_FORMAT] = form
    o[k, O_SCALE] = st[s, at + D_SCALE]
    for i in range(3):
        o[k, O_EXT + i] = st[s, at + D_EXT + i]
        o[k, O_STRIDE + i] = st[s, at + D_STRIDE + i]
    base = st[s, at + D_BASE]
    sbase = st[s, at + D_SBASE]
    o[k, O_ABS] = home + cfg[C_OFFSET + space]
    o[k, O_SIZE] = cfg[C_SIZE + space]
    via = st[s, at + D_VIA]
    xb = st[s, at + D_XB]
    x: Scalar = 0
    if xb != 0:
        x = np.int64(m32[cells + xb]) & 0xFFFFFFFF
    o[k, O_XB] = 0
    o[k, O_VIA] = 0
    code = 0
    if via != 0:
        o[k, O_VIA] = st[s, at + D_UNIT] + 1
        o[k, O_XB] = x
        table = DESCS + via * D_FIELDS
        o[k, O_LIST] = st[s, table + D_BASE]
        o[k, O_LIST_ABS] = home + cfg[C_OFFSET + SPAD]
        o[k, O_LIST_SIZE] = cfg[C_SIZE + SPAD]
        if st[s, table + D_SPACE] != SPAD or st[s, table + D_FORMAT] != INT32:
            o[k, O_LIST] = -1  # a trap once it is read
    elif xb != 0:
        move = x * st[s, at + D_STEP]
        base += (move * bits_of(form)) >> 3
        if st[s, at + D_SCALE] != 0:
            sbase += move >> 5
    o[k, O_BASE] = base
    o[k, O_SBASE] = sbase
    xe = st[s, at + D_XE]
    if xe != 0:
        extent = np.int64(m32[cells + xe]) & 0xFFFFFFFF
        if extent > o[k, O_EXT]:
            code = T_EXTENT
        o[k, O_EXT] = extent
    return code


@kernel(f"int64({I64_2D}, int64)", inline=True)
def via_of(o: Array, k: Scalar) -> Scalar:
    """What the resolved stream says of an operand's index list (`isa.resolved.VIA`)."""
    unit = o[k, O_VIA]
    return unit if unit == 0 else unit | (o[k, O_XB] & ((1 << (unit - 1)) - 1)) << 8


@kernel(f"int64({I64_2D}, int64, int64, {I32})")
def row0(o: Array, k: Scalar, i0: Scalar, m32: Array) -> Scalar:
    """Offset in elements of index i0 of dimension 0; through the index list where there is one."""
    if o[k, O_VIA] == 0:
        return i0 * o[k, O_STRIDE]
    unit = o[k, O_VIA] - 1
    j = i0 + o[k, O_XB]
    entry = np.int64(m32[((o[k, O_LIST_ABS] + o[k, O_LIST]) >> 2) + (j >> unit)]) & 0xFFFFFFFF
    return ((entry << unit) | (j & ((1 << unit) - 1))) * o[k, O_STRIDE]


@kernel(f"int64({I64_2D}, int64, int64, int64, int64, {I32})")
def check(o: Array, k: Scalar, e0: Scalar, e1: Scalar, e2: Scalar, m32: Array) -> Scalar:
    """Check that all elements (i0 < e0, i1 < e1, i2 < e2) of operand k lie in its space; 0 or the code of a trap."""
    if e0 <= 0 or e1 <= 0 or e2 <= 0:
        return 0
    low = high = 0
    for i in range(1, 3):
        reach = ((e1 if i == 1 else e2) - 1) * o[k, O_STRIDE + i]
        low += min(reach, 0)
        high += max(reach, 0)
    if o[k, O_VIA] == 0:
        reach = (e0 - 1) * o[k, O_STRIDE]
        low += min(reach, 0)
        high += max(reach, 0)
    else:
        unit = o[k, O_VIA] - 1
        first = o[k, O_LIST] + 4 * (o[k, O_XB] >> unit)
        last = o[k, O_LIST] + 4 * ((e0 - 1 + o[k, O_XB]) >> unit)
        if o[k, O_LIST] < 0:
            return T_LIST
        if first < 0 or last + 4 > o[k, O_LIST_SIZE]:
            return T_LIST_BOUNDS
        least = most = row0(o, k, 0, m32)
        for i in range(1, e0):
            at = row0(o, k, i, m32)
            least = min(least, at)
            most = max(most, at)
        low += least
        high += most
    bits = bits_of(o[k, O_FORMAT])
    first = o[k, O_BASE] + ((low * bits) >> 3)
    last = o[k, O_BASE] + ((high * bits) >> 3) + (4 if bits == 32 else 1)
    if first < 0 or last > o[k, O_SIZE]:
        return T_BOUNDS
    if o[k, O_SCALE] != 0 and (o[k, O_SBASE] + (low >> 5) < 0 or o[k, O_SBASE] + (high >> 5) + 1 > o[k, O_SIZE]):
        return T_SCALE_BOUNDS
    return 0

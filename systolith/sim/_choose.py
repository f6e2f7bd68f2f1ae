"""TOPK and GROUP: the best of each row by a heap, pairs in the order of their keys by digits."""

from __future__ import annotations

import numpy as np

from systolith.isa.choice import GROUP_MAX, TOPK_MAX

from ._jit import F32, F64, I16, I32, I64, I64_2D, U8, Array, Scalar, kernel
from ._operands import check, row0
from ._pick import order_key
from ._rows import load, store
from ._state import (
    ACC,
    CELL,
    FP32,
    INT32,
    O_ABS,
    O_BASE,
    O_EXT,
    O_FORMAT,
    O_SPACE,
    O_STRIDE,
    OA,
    OB,
    OD,
    OE,
    SPAD,
)  # fmt: skip
from ._traps import T_FORMAT, T_KEY, T_SHAPE, T_SPACE

_TABLES = f"{I16}, {I32}, {F64}, {F64}"
_TOPK_MAX, _GROUP_MAX = 64, 4096
assert (_TOPK_MAX, _GROUP_MAX) == (TOPK_MAX, GROUP_MAX)  # kernels kept on disk know them
_DIGIT = 8
"""Bits of a digit: 256 counters."""
_DIGITS = 3
"""Digits of a key, which is less than an extent of 20 bits."""
_INDEX = 20
"""Bits of an index in a row."""


@kernel(f"int64({I64_2D}, int64, int64, int64)")
def takes(o: Array, k: Scalar, form: Scalar, written: Scalar) -> Scalar:
    """Check format and space of operand k; 0 or the code of a trap."""
    space = o[k, O_SPACE]
    if space != SPAD and space != CELL and (space != ACC or written != 0):
        return T_SPACE
    return 0 if o[k, O_FORMAT] == form else T_FORMAT


@kernel(f"void({I64}, int64, int64)")
def sink(heap: Array, at: Scalar, n: Scalar) -> None:
    """Move entry `at` of heap[0..n), the smallest on top, down to its place."""
    value = heap[at]
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value


@kernel(f"void({F32}, {I32}, int64, int64, {I64})")
def best_of(v: Array, bits: Array, n: Scalar, k: Scalar, heap: Array) -> None:
    """Put the k best of n values, best first, into heap as key and index; heap: scratch of k or more."""
    last = (1 << _INDEX) - 1
    for i in range(k):
        heap[i] = (order_key(v[i], bits[i]) << _INDEX) | (last - i)
    for i in range(k // 2 - 1, -1, -1):
        sink(heap, i, k)
    for i in range(k, n):
        value = (order_key(v[i], bits[i]) << _INDEX) | (last - i)
        if value > heap[0]:
            heap[0] = value
            sink(heap, 0, k)
    for left in range(k - 1, 0, -1):
        smallest = heap[0]
        heap[0] = heap[left]
        heap[left] = smallest
        sink(heap, 0, left)


@kernel(f"int64({I64_2D}, {U8}, {I32}, {_TABLES}, {F32}, {I32}, {F32}, {I32}, {I64})")
def topk(
    o: Array, m8: Array, m32: Array, units: Array, e4m3: Array, powers: Array, exp2_table: Array,
    v: Array, v_bits: Array, t: Array, t_bits: Array, heap: Array,
) -> Scalar:  # fmt: skip
    """Run a TOPK; 0 or the code of a trap."""
    e0, e1, n = o[OA, O_EXT], o[OA, O_EXT + 1], o[OA, O_EXT + 2]
    k = o[OD, O_EXT + 2]
    code = takes(o, OA, FP32, 0)
    if code == 0:
        code = takes(o, OD, INT32, 1)
    if code == 0:
        code = takes(o, OE, FP32, 1)
    if code != 0 or e0 * e1 * n == 0:
        return code
    if k < 1 or k > n or k > _TOPK_MAX:
        return T_SHAPE
    code = check(o, OA, e0, e1, n, m32)
    if code == 0:
        code = check(o, OD, e0, e1, k, m32)
    if code == 0:
        code = check(o, OE, e0, e1, k, m32)
    if code != 0:
        return code
    last = (1 << _INDEX) - 1
    for i0 in range(e0):
        for i1 in range(e1):
            at = row0(o, OA, i0, m32) + i1 * o[OA, O_STRIDE + 1]
            load(o, OA, at, n, m8, m32, units, e4m3, powers, v, v_bits)
            best_of(v, v_bits, n, k, heap)
            for i in range(k):
                t_bits[i] = np.int32(last - (heap[i] & last))
            at = row0(o, OD, i0, m32) + i1 * o[OD, O_STRIDE + 1]
            store(o, OD, at, k, 0, m32, t, t_bits)
            for i in range(k):
                t_bits[i] = v_bits[last - (heap[i] & last)]
            at = row0(o, OE, i0, m32) + i1 * o[OE, O_STRIDE + 1]
            store(o, OE, at, k, 1, m32, t, t_bits)
    return 0


@kernel(f"void({I32}, int64, {I32}, {I32}, {I64})")
def order_by_key(keys: Array, n: Scalar, order: Array, other: Array, sums: Array) -> None:
    """Sort numbers 0..n-1 into `order` by key, equal keys by number; other: scratch of n, sums: of 256."""
    for i in range(n):
        order[i] = i
    mask = (1 << _DIGIT) - 1
    for digit in range(_DIGITS):
        shift = _DIGIT * digit
        sums[: mask + 1] = 0
        for i in range(n):
            sums[(keys[i] >> shift) & mask] += 1
        total: Scalar = 0
        for d in range(mask + 1):
            count = sums[d]
            sums[d] = total
            total += count
        for i in range(n):
            d = (keys[order[i]] >> shift) & mask
            other[sums[d]] = order[i]
            sums[d] += 1
        for i in range(n):
            order[i] = other[i]


@kernel(f"int64({I64_2D}, {U8}, {I32}, {_TABLES}, {F32}, {I32}, {I32}, {I32}, {I32}, {I64})")
def group(
    o: Array, m8: Array, m32: Array, units: Array, e4m3: Array, powers: Array, exp2_table: Array,
    v: Array, keys: Array, order: Array, other: Array, found: Array, sums: Array,
) -> Scalar:  # fmt: skip
    """Run a GROUP; 0 or the code of a trap. It leaves the number of keys in E's ext[0], for the sanitizer."""
    e0, e1, e2 = o[OA, O_EXT], o[OA, O_EXT + 1], o[OA, O_EXT + 2]
    n = e0 * e1 * e2
    code = takes(o, OA, INT32, 0)
    for k in (OB, OD, OE):
        if code == 0:
            code = takes(o, k, INT32, 1)
    if code != 0 or n == 0:
        return code
    short = o[OD, O_EXT] < 2 or o[OD, O_EXT + 1] < 1 or o[OD, O_EXT + 2] < n
    if n > _GROUP_MAX or short or o[OE, O_EXT] < 1 or o[OE, O_EXT + 1] < 1 or o[OE, O_EXT + 2] < 4:
        return T_SHAPE
    code = check(o, OA, e0, e1, e2, m32)
    if code != 0:
        return code
    for i0 in range(e0):
        for i1 in range(e1):
            at = row0(o, OA, i0, m32) + i1 * o[OA, O_STRIDE + 1]
            first = (i0 * e1 + i1) * e2
            load(o, OA, at, e2, m8, m32, units, e4m3, powers, v[first:], keys[first:])
    for i in range(n):
        if keys[i] < 0 or keys[i] >= o[OE, O_EXT]:
            return T_KEY
    order_by_key(keys, n, order, other, sums)
    distinct = 1
    for i in range(1, n):
        if keys[order[i]] != keys[order[i - 1]]:
            distinct += 1
    code = check(o, OD, 2, 1, n, m32)
    if code == 0:
        code = check(o, OE, distinct, 1, 4, m32)
    if code == 0:
        code = check(o, OB, 1, 1, 1, m32)
    if code != 0:
        return code
    store(o, OD, row0(o, OD, 0, m32), n, 0, m32, v, order)
    for i in range(n):
        other[i] = order[i] // e2
    store(o, OD, row0(o, OD, 1, m32), n, 0, m32, v, other)
    begin: Scalar = 0
    j: Scalar = 0
    for i in range(1, n + 1):
        if i == n or keys[order[i]] != keys[order[begin]]:
            found[0] = keys[order[begin]]
            found[1] = begin
            found[2] = i - begin
            found[3] = 0
            store(o, OE, row0(o, OE, j, m32), 4, 0, m32, v, found)
            begin = i
            j += 1
    m32[((o[OB, O_ABS] + o[OB, O_BASE]) >> 2) + row0(o, OB, 0, m32)] = distinct
    o[OE, O_EXT] = distinct
    return 0

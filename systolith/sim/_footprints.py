"""Kernels of `footprints`: the bytes that an instruction has written, and what the RTL has written in their place.

A key is a byte of one thread: thread << 40 | its place in the memory array of `FastMachine`; a thread is a queue of a
slice. For each key both sides have a sequence: instructions that wrote it, in order, and writes of the RTL by cycle.
"""

from __future__ import annotations

from ._jit import I32, I64, I64_2D, U8, Array, Scalar, kernel
from ._operands import bits_of, row0
from ._state import E2M1, O_ABS, O_BASE, O_FORMAT, O_SBASE, O_SCALE, O_STRIDE

THREAD_SHIFT = 40
OPERAND_SHIFT = 40
SCALE_BIT = 39
MISSING, WRONG, STRAY = 1, 2, 3
"""What `match` finds: an instruction that has not written, another value, a write that belongs to no instruction."""
F_KIND, F_BYTE, F_WRITE, F_TIME, F_COUNT, F_COMPARED, F_LAST_ONLY = range(7)
"""Its findings: kind, row of the simulator's bytes, row of the RTL's writes, cycle, how many; bytes compared, and those
of instructions so close to each other that only the last one's value was."""


@kernel(
    f"int64({I64_2D}, int64, int64, int64, int64, int64, int64, int64, {I32}, {U8}, {I64}, {U8}, {I64}, {I32}, int64)"
)
def collect(
    o: Array, k: Scalar, e0: Scalar, e1: Scalar, e2: Scalar, away: Scalar, thread: Scalar, who: Scalar,
    m32: Array, m8: Array, keys: Array, values: Array, places: Array, owners: Array, n: Scalar,
) -> Scalar:  # fmt: skip
    """Append the bytes of operand k over extents e0, e1, e2; give the new count, or -1 where there is no room.

    away : bytes to the slice whose memory it is    places : operand << 40 | scale << 39 | number of the element
    """
    if e0 <= 0 or e1 <= 0 or e2 <= 0:
        return n
    bits = bits_of(o[k, O_FORMAT])
    step = 1 if o[k, O_FORMAT] == E2M1 else o[k, O_STRIDE + 2]
    base = o[k, O_ABS] + o[k, O_BASE] + away
    sbase = o[k, O_ABS] + o[k, O_SBASE] + away
    high = thread << THREAD_SHIFT
    for i0 in range(e0):
        row = row0(o, k, i0, m32)
        for i1 in range(e1):
            at = row + i1 * o[k, O_STRIDE + 1]
            first = (i0 * e1 + i1) * e2
            count = ((e2 * bits + 7) >> 3) if step == 1 else e2 * (bits >> 3)
            if n + count + (e2 >> 5) + 1 > len(keys):
                return -1
            for b in range(count):
                element = (b << 3) // bits
                if step == 1:
                    place = base + ((at * bits) >> 3) + b
                else:
                    place = base + (at + element * step) * (bits >> 3) + b % (bits >> 3)
                keys[n] = high | place
                values[n] = m8[place]
                places[n] = k << OPERAND_SHIFT | (first + element)
                owners[n] = who
                n += 1
            if o[k, O_SCALE] != 0:
                for b in range((e2 + 31) >> 5):
                    place = sbase + (at >> 5) + b
                    keys[n] = high | place
                    values[n] = m8[place]
                    places[n] = k << OPERAND_SHIFT | 1 << SCALE_BIT | (first + 32 * b)
                    owners[n] = who
                    n += 1
    return n


@kernel(f"void({I64}, int64, int64, int64, int64)", inline=True)
def note(found: Array, kind: Scalar, byte: Scalar, write: Scalar, time: Scalar) -> None:
    """Keep the earliest finding."""
    found[F_COUNT] += 1
    if found[F_KIND] == 0 or time < found[F_TIME]:
        found[F_KIND], found[F_BYTE], found[F_WRITE], found[F_TIME] = kind, byte, write, time


@kernel(f"void({I64}, {U8}, {I32}, {I64}, {I64}, {I64}, {I64}, {U8}, {I64}, {I64}, {U8}, int64)")
def match(
    keys: Array, values: Array, owners: Array, starts: Array, ends: Array, passes: Array,
    found_keys: Array, found_values: Array, found_cycles: Array, found: Array, used: Array, final: Scalar,
) -> None:  # fmt: skip
    """Compare both sides, each sorted by key, then by instruction or cycle. used[i] becomes 1 for a write that has its
    instruction. passes : writes of one byte by an instruction. final : nothing is to come.
    """
    i = j = 0
    n, m = len(keys), len(found_keys)
    while i < n or j < m:
        if i == n or (j < m and found_keys[j] < keys[i]):
            # Writes of a byte that no ended instruction has written.
            if final != 0:
                note(found, STRAY, -1, j, found_cycles[j])
            j += 1
            continue
        key = keys[i]
        top = i
        while top < n and keys[top] == key:
            top += 1
        last = j
        while last < m and found_keys[last] == key:
            last += 1
        while i < top:
            # Instructions that overlap in time: one may begin to write before the end of the one before it.
            group, end, total, count = i, ends[owners[i]], 0, 0
            while group < top and (owners[group] == owners[max(i, group - 1)] or starts[owners[group]] < end):
                if group == i or owners[group] != owners[group - 1]:
                    total += passes[owners[group]]
                    count += 1
                end = ends[owners[group]]
                group += 1
            while j < last and found_cycles[j] < starts[owners[i]]:
                note(found, STRAY, i, j, found_cycles[j])
                used[j] = 1
                j += 1
            first = j
            while j < last and found_cycles[j] < end:
                used[j] = 1
                j += 1
            if first == j:
                note(found, MISSING, i, j if j < last else -1, end)
                i = group
                continue
            exact = total == j - first and count > 1
            write = first
            while i < group:
                own = i
                while i + 1 < group and owners[i + 1] == owners[own]:
                    i += 1
                if exact:
                    write += passes[owners[own]]
                if exact or i + 1 == group:
                    at = write - 1 if exact else j - 1
                    found[F_COMPARED] += 1
                    if found_values[at] != values[i]:
                        note(found, WRONG, i, at, found_cycles[at])
                    elif exact and found_cycles[at] >= ends[owners[own]]:
                        note(found, MISSING, i, at, ends[owners[own]])
                else:
                    found[F_LAST_ONLY] += 1
                i += 1
        if final != 0:
            while j < last:
                note(found, STRAY, top - 1, j, found_cycles[j])
                j += 1
        j = last

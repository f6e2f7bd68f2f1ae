"""Shadow memory of the sanitizer: the last write of each byte, its last read by each queue, and vector clocks.

An event is one executed instruction: its thread (slice * 7 + queue), its number in that thread (epoch), its word.
Event 0 is "never". An earlier event happened before the thread in hand if the thread's clock has reached its epoch.
"""

from __future__ import annotations

from ._jit import I32, I32_2D, I64, I64_2D, Array, Scalar, kernel
from ._operands import bits_of, row0
from ._state import (
    CELL,
    E2M1,
    O_ABS,
    O_BASE,
    O_FORMAT,
    O_LIST,
    O_LIST_ABS,
    O_SBASE,
    O_SCALE,
    O_SPACE,
    O_STRIDE,
    O_VIA,
    O_XB,
)  # fmt: skip

QUEUES = 7
"""Queues and the sequencer: threads of a slice."""
RACE_WRITE_WRITE, RACE_WRITE_READ, RACE_READ_WRITE, NEVER_WRITTEN = 1, 2, 3, 4
F_KIND, F_EVENT, F_BYTE, F_TOP = 0, 1, 2, 3
"""What `mark` finds: kind, the earlier event, the byte; F_TOP: the highest byte touched, plus 1."""
_SHADOW = f"{I32}, {I32_2D}, {I32}, {I32}, {I64}, {I64}"


@kernel(f"void(int64, int64, int64, int64, int64, {_SHADOW})")
def mark(
    low: Scalar, high: Scalar, write: Scalar, event: Scalar, queue: Scalar,
    writer: Array, reader: Array, thread_of: Array, epoch_of: Array, clock: Array, found: Array,
) -> None:  # fmt: skip
    """Check and note an access to bytes low .. high - 1 by `event`, whose thread has `clock`."""
    found[F_TOP] = max(found[F_TOP], high)
    for at in range(low, high):
        last = writer[at]
        if last != 0:
            # An instruction takes its own rows in order.
            if last != event and clock[thread_of[last]] < epoch_of[last] and found[F_KIND] == 0:
                found[F_KIND] = RACE_WRITE_WRITE if write != 0 else RACE_WRITE_READ
                found[F_EVENT] = last
                found[F_BYTE] = at
        elif write == 0 and found[F_KIND] == 0:
            found[F_KIND] = NEVER_WRITTEN
            found[F_BYTE] = at
        if write != 0:
            for q in range(QUEUES):
                past = reader[q, at]
                if past != 0:
                    if clock[thread_of[past]] < epoch_of[past] and found[F_KIND] == 0:
                        found[F_KIND] = RACE_READ_WRITE
                        found[F_EVENT] = past
                        found[F_BYTE] = at
                    reader[q, at] = 0
            writer[at] = event
        else:
            reader[queue, at] = event


@kernel(f"void({I64_2D}, int64, int64, int64, int64, int64, int64, int64, int64, {I32}, {I64_2D}, int64, {_SHADOW})")
def touch(
    o: Array, k: Scalar, e0: Scalar, e1: Scalar, e2: Scalar, away: Scalar, write: Scalar, event: Scalar, queue: Scalar,
    m32: Array, banks: Array, bank_bytes: Scalar,
    writer: Array, reader: Array, thread_of: Array, epoch_of: Array, clock: Array, found: Array,
) -> None:  # fmt: skip
    """Mark what an instruction accesses of operand k over extents e0, e1, e2: index list, codes, scales.

    away : bytes to the slice whose memory it is    banks : gets 1 for each scratchpad bank touched, [2, banks]: list,
    tensor
    """
    if e0 <= 0 or e1 <= 0 or e2 <= 0:
        return
    bits = bits_of(o[k, O_FORMAT])
    step = 1 if o[k, O_FORMAT] == E2M1 else o[k, O_STRIDE + 2]
    base = o[k, O_ABS] + o[k, O_BASE] + away
    sbase = o[k, O_ABS] + o[k, O_SBASE] + away
    home = o[k, O_ABS] + away
    scratchpad = o[k, O_SPACE] == 1
    if o[k, O_VIA] != 0:
        unit = o[k, O_VIA] - 1
        first = o[k, O_LIST] + 4 * (o[k, O_XB] >> unit)
        last = o[k, O_LIST] + 4 * ((o[k, O_XB] + e0 - 1) >> unit) + 4
        at = o[k, O_LIST_ABS]
        mark(at + first, at + last, 0, event, queue, writer, reader, thread_of, epoch_of, clock, found)
        found[F_TOP] = 0  # the list lies in another space
        for bank in range(first // bank_bytes, (last - 1) // bank_bytes + 1):
            banks[0, bank] = 1
    for i0 in range(e0):
        row = row0(o, k, i0, m32)
        for i1 in range(e1):
            at = row + i1 * o[k, O_STRIDE + 1]
            if step == 1:
                low = base + ((at * bits) >> 3)
                high = base + (((at + e2) * bits + 7) >> 3)
                mark(low, high, write, event, queue, writer, reader, thread_of, epoch_of, clock, found)
            else:
                size = bits >> 3
                for i in range(e2 if step != 0 else 1):
                    low = base + (at + i * step) * size
                    mark(low, low + size, write, event, queue, writer, reader, thread_of, epoch_of, clock, found)
                low = base + min(at, at + (e2 - 1) * step) * size
                high = base + max(at, at + (e2 - 1) * step) * size + size
            if scratchpad:
                for bank in range((low - home) // bank_bytes, (high - 1 - home) // bank_bytes + 1):
                    banks[1, bank] = 1
            if o[k, O_SCALE] != 0:
                low = sbase + (at >> 5)
                high = low + ((e2 + 31) >> 5)
                mark(low, high, write, event, queue, writer, reader, thread_of, epoch_of, clock, found)
                if scratchpad:
                    for bank in range((low - home) // bank_bytes, (high - 1 - home) // bank_bytes + 1):
                        banks[1, bank] = 1


assert CELL == 4

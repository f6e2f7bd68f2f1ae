"""The critical path: from the end of an instruction back through what each one waited for, every cycle once.

An edge is (from, to, part, why, record): the cycles [from, to) belong to `part`, passed through `record` because of
`why`. Edges of a walk are contiguous, so that their lengths sum to the window exactly.
"""

from __future__ import annotations

from typing import Final

from systolith.isa import cycles
from systolith.isa.compiled import Rows

from .state import (
    AT_ONCE,
    FULL,
    QUEUES,
    R_BEGIN,
    R_BOUND,
    R_CAUSE,
    R_DATA_END,
    R_END,
    R_FIRST,
    R_KIND,
    R_OWN_END,
    R_PREVIOUS,
    R_QUEUE,
    R_REF,
    R_RUN,
    R_RUN_CAUSE,
    R_RUN_REF,
    R_START,
    SEMAPHORE,
    entry,
    kernel,
)

__all__ = ["EDGE", "PARTS", "WHY", "walk"]

PARTS: Final = ("weights", "kv", "compute", "vector", "issue", "semaphores", "collectives", "host", "other")
"""weights: memory traffic of queue W; kv: that of L and S, activations too; host: RING; issue: the sequencer."""
(WEIGHTS, KV, COMPUTE, VECTOR, ISSUE, SEMAPHORES, COLLECTIVES, HOST, OTHER) = range(len(PARTS))

WHY: Final = (
    "runs", "memory bandwidth", "memory latency", "set-up", "semaphore", "sequencer", "queue full", "unknown",
)  # fmt: skip
(RUNS, BANDWIDTH, LATENCY, SET_UP, TOKEN, ISSUES, QUEUE_FULL, UNKNOWN) = range(len(WHY))

EDGE: Final = ("from", "to", "part", "why", "record")


@kernel
def part_of(queue: int, kind: int) -> int:
    """Part of the waterfall that the work of a queue belongs to."""
    if queue == 4 and kind == cycles.FIXED:
        return HOST
    if queue == 0:
        return WEIGHTS
    if queue == 2:
        return COMPUTE
    if queue == 3:
        return VECTOR
    if queue == 5:
        return COLLECTIVES
    return ISSUE if queue >= QUEUES else KV


@kernel
def put(edges: Rows, n: int, lo: int, hi: int, part: int, why: int, number: int) -> int:
    """Write edge n and give n + 1."""
    edges[n, 0], edges[n, 1], edges[n, 2], edges[n, 3], edges[n, 4] = lo, hi, part, why, number
    return n + 1


@entry
def walk(rec: Rows, semaphore: int, oldest: int, number: int, end: int, since: int, edges: Rows) -> int:
    """Walk from record `number` at cycle `end` back to `since`; fill edges [n, 5], latest first, give their count.

    semaphore : cycles from post to start. oldest : the oldest record that is still there; beyond it the cycles are
    "other". Gives -1 where edges is too short.
    """
    n, t = 0, end
    mask = rec.shape[0] - 1
    while t > since:
        if n + 4 > edges.shape[0]:
            return -1
        if number < oldest:
            return put(edges, n, since, t, OTHER, UNKNOWN, number)
        r = rec[number & mask]
        kind, previous = r[R_KIND], r[R_PREVIOUS]
        part = part_of(r[R_QUEUE], kind)
        if t > r[R_OWN_END] and t == r[R_END] and previous >= 0 and r[R_OWN_END] > 0:
            number = previous  # it ended when the one before it did
            continue
        memory = kind in (cycles.READ, cycles.WRITE)
        if (memory or kind == cycles.MATRIX) and t > r[R_FIRST]:
            if memory and t > r[R_DATA_END] and r[R_DATA_END] > 0:
                lo = max(since, r[R_DATA_END])
                n = put(edges, n, lo, t, part, LATENCY, number)
                t = lo
                continue
            lo = max(since, r[R_FIRST])
            n = put(edges, n, lo, t, part, BANDWIDTH if memory else RUNS, number)
            t = lo
            if r[R_BOUND] & 1 and previous >= 0 and rec[previous & mask][R_DATA_END] >= t:
                number = previous  # channel or array were still at the one before it
            continue
        if memory and t > r[R_BEGIN]:
            lo = max(since, r[R_BEGIN])
            n = put(edges, n, lo, t, part, LATENCY, number)
            t = lo
            continue
        if memory and t == r[R_BEGIN] and r[R_BOUND] & 2 and previous >= 0:
            number = previous  # its requests waited for those of the one before it
            continue
        if t > r[R_START]:
            lo = max(since, r[R_START])
            n = put(edges, n, lo, t, part, SET_UP if memory or kind == cycles.MATRIX else RUNS, number)
            t = lo
            continue
        cause, ref = r[R_CAUSE], r[R_REF]
        if cause == AT_ONCE:
            lo = max(since, r[R_RUN])
            n = put(edges, n, lo, t, ISSUE, ISSUES, number)
            t = lo
            cause, ref = r[R_RUN_CAUSE], r[R_RUN_REF]
            if t <= since:
                return n
            if cause == FULL and ref >= oldest:
                lo = max(since, rec[ref & mask][R_START])
                n = put(edges, n, lo, t, ISSUE, QUEUE_FULL, ref)
                t = lo
                number = ref
                continue
        if cause == SEMAPHORE:
            lo = max(since, t - semaphore)
            n = put(edges, n, lo, t, SEMAPHORES, TOKEN, ref)
            t = lo
        if ref < 0:
            return put(edges, n, since, t, OTHER, UNKNOWN, number)
        number = ref
    return n

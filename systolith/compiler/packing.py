"""Scratchpad buffers packed by lifetime: two may share bytes when no phase of a step has both.

That is safe without a barrier because a phase begins with a gather of all slices' results of the phase before: who
works in phase p + 1 knows that all work of phase p is done (docs/decisions/0005-compiler.md); the sanitizer proves it
for each program.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Sequence
from enum import IntEnum

from systolith.compiler.plan import padded

__all__ = ["ALIGN", "ALL", "Buffer", "Phase", "pack"]

ALIGN = 32
"""Bytes that a buffer's address is a multiple of."""


class Phase(IntEnum):
    """Stretches of a step; the layer's five repeat."""

    QKV = 0
    ATTENTION = 1
    O = 2
    FFN = 3
    DOWN = 4
    HEAD = 5
    START = 6
    SAMPLE = 7


ALL = tuple(Phase)

Buffer = tuple[str, int, tuple[Phase, ...]]
"""A scratchpad buffer: name, bytes, phases in which it holds something."""


def pack(
    buffers: list[Buffer], room: int, held: Sequence[tuple[int, int]] = (), low: Sequence[str] = ()
) -> tuple[dict[str, int], int]:
    """Place buffers, each at the lowest address free of all it shares a phase with, in the order of several that packs
    best; stops at the first that fits in `room` bytes. held: (base, bytes) of what has its place already; low: names
    of buffers of all phases that come first, so that who holds them elsewhere has one stretch of all else."""
    always = [b for b in buffers if len(b[2]) == len(ALL)]
    rest = [b for b in buffers if len(b[2]) < len(ALL)]
    orders = [
        sorted(rest, key=lambda b: (-len(b[2]), -b[1], b[0])),
        sorted(rest, key=lambda b: (-b[1], b[0])),
        sorted(rest, key=lambda b: (-b[1] * len(b[2]), b[0])),
    ]
    generator = random.Random(0)
    least = max(sum(padded(b[1], ALIGN) for b in buffers if phase in b[2]) for phase in ALL)
    if least > room:
        del orders[1:]  # no order fits
    else:
        orders += [sorted(rest, key=lambda b: -b[1] * generator.uniform(0.3, 1.0)) for _ in range(40)]
    best: tuple[dict[str, int], int] | None = None
    for order in orders:
        # Beside what has its place small ones fill the gaps, so that large ones begin in banks of their own.
        first = sorted(always, key=lambda b: (b[0] not in low, b[1] if held else -b[1], b[0]))
        placed = _place([*first, *order], held)
        if best is None or placed[1] < best[1]:
            best = placed
        if best[1] <= room:
            break
    assert best is not None
    return best


def _extent(placed: tuple[int, int, frozenset[Phase]]) -> tuple[int, int]:
    return placed[:2]


def _place(buffers: list[Buffer], held: Sequence[tuple[int, int]] = ()) -> tuple[dict[str, int], int]:
    """First fit in the order given: addresses, and the end of the highest."""
    placed = sorted(((base, base + padded(size, ALIGN), frozenset(ALL)) for base, size in held), key=_extent)
    bases: dict[str, int] = {}
    for name, count, phases in buffers:
        size, live = padded(count, ALIGN), frozenset(phases)
        base = 0
        for start, end, other in placed:
            if live & other and base < end and start < base + size:
                base = end
        insort(placed, (base, base + size, live), key=_extent)
        bases[name] = base
    return bases, max((end for _, end, _ in placed), default=0)

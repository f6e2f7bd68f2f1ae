"""Runs of an operand: how many contiguous pieces of memory or of a bank its tensor touches."""

from __future__ import annotations

from .compiled import Ints, rule
from .facts import BANK_SIZE, BURST
from .resolved import BASE, FORMAT, SBASE, SCALE, STRIDE0, STRIDE1, STRIDE2, VIA

__all__ = ["bank_of", "bits_of", "ceil_div", "log2_up", "phase_of", "place_of", "runs", "unit_of"]

_DRAM, _SPAD = 0, 1


@rule
def ceil_div(a: int, b: int) -> int:
    """Round a / b up."""
    return -(-a // b)


@rule
def log2_up(n: int) -> int:
    """Levels of a binary tree over n values."""
    levels = 0
    while (1 << levels) < n:
        levels += 1
    return levels


@rule
def bits_of(code: int) -> int:
    """Storage bits of an element by its format's number."""
    return 4 if code == 0 else 32 if code == 3 or code == 4 else 8


@rule
def unit_of(via: int) -> int:
    """Rows that an entry of an index list stands for; 0: no list."""
    return 1 << ((via & 255) - 1) if via > 0 else 0


@rule
def phase_of(via: int) -> int:
    """Row of its entry at which an operand with an index list begins."""
    return int(via >> 8)


@rule
def span(base: int, length: int, stride: int, count: int, grain: int) -> int:
    """Aligned pieces of `grain` bytes that `count` runs of `length` bytes touch, `stride` bytes apart."""
    if count <= 0 or length <= 0:
        return 0
    if stride % grain == 0:
        return int(count * ((base + length - 1) // grain - base // grain + 1))
    total = 0
    for i in range(count):
        at = base + i * stride
        total += (at + length - 1) // grain - at // grain + 1
    return int(total)


@rule
def runs(row: Ints, at: int, e0: int, e1: int, e2: int, grain: int, aligned: bool, out: Ints) -> None:
    """Count the pieces of `grain` bytes (out[0]) and the contiguous runs (out[1]) of an operand's codes and scales.

    out[2]: bytes; out[3]: runs whose pieces are counted one by one, as they lie at unequal places of a grain.
    aligned : whether pieces lie on multiples of `grain` (memory) or begin with the run (a bank, read at any byte).
    """
    out[0] = 0
    out[1] = 0
    out[2] = 0
    out[3] = 0
    if e0 * e1 * e2 == 0:
        return
    bits = bits_of(row[at + FORMAT])
    s0, s1, s2 = row[at + STRIDE0], row[at + STRIDE1], row[at + STRIDE2]
    length, n1, n0 = e2, e1, e0
    if s2 != 1 and e2 > 1:  # Every element is a run of its own.
        length, n1, s1 = 1, e1 * e2, s2
    elif s1 == e2 or e1 == 1:
        length, n1 = e1 * e2, 1
    if row[at + VIA] > 0:
        unit = unit_of(row[at + VIA])
        if n1 == 1 and s0 == length:
            length *= min(unit, e0)
            n0 = ceil_div(e0, unit)
            s0 *= unit
    elif n1 == 1 and (s0 == length or e0 == 1):
        length, n0 = length * e0, 1
    for part in range(1 + row[at + SCALE]):
        base = row[at + (BASE if part == 0 else SBASE)]
        size = ceil_div(length * bits, 8) if part == 0 else ceil_div(length, 32)
        b0 = s0 * bits // 8 if part == 0 else s0 // 32
        b1 = s1 * bits // 8 if part == 0 else s1 // 32
        out[1] += n0 * n1
        out[2] += n0 * n1 * size
        if aligned and not ((b0 % grain == 0 or n0 == 1) and (b1 % grain == 0 or n1 == 1)):
            out[3] = n0 * n1
        if not aligned:
            out[0] += n0 * n1 * ceil_div(size, grain)
        elif b0 % grain == 0 or n0 == 1:
            out[0] += n0 * span(base, size, b1, n1, grain)
        else:
            for i in range(n0):
                out[0] += span(base + i * b0, size, b1, n1, grain)


@rule
def place_of(f: Ints, space: int, address: int) -> int:
    """All that `cycles.work_row` sees of an operand's address, but for which operands share a bank: where in a burst
    it is."""
    return int(address % f[BURST]) if space == _DRAM else 0


@rule
def bank_of(f: Ints, space: int, address: int) -> int:
    """Bank of the scratchpad that an operand begins in, -1: none. `cycles.work_row` sees which operands share one."""
    return int(address // f[BANK_SIZE]) if space == _SPAD else -1

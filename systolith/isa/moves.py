"""The mover of a copy, piece by piece: how long it walks both tensors, and by how much it trails the memory channel.

It goes through both tensors in step, codes first, then scales, one piece of at most a bank's width a cycle. Rows that
follow each other on both sides make one run; a piece lies in one run. On the memory's side a piece waits for the last
burst that it touches. Copies whose pieces are unevenly spread over their bursts (rows of a few bytes, scales in rows of
their own) end after their last burst by what is left to move then.
"""

from __future__ import annotations

from .compiled import Ints, rule
from .facts import BANK_BYTES, BURST, DRAM_LATENCY, UNITS_PER_CYCLE
from .resolved import BASE, EXT0, EXT1, EXT2, FORMAT, SBASE, SCALE, STRIDE0, STRIDE1, STRIDE2, VIA, A, D
from .runs import bits_of, phase_of, unit_of

__all__ = ["FROM_MEMORY", "INSIDE", "TO_MEMORY", "walk"]

INSIDE, FROM_MEMORY, TO_MEMORY = range(3)


@rule
def bytes_of(elements: int, bits: int, part: int) -> int:
    """Bytes of a number of elements, of their codes (part 0) or their scales."""
    return int(elements * bits // 8 if part == 0 else elements // 32)


@rule
def walk(f: Ints, row: Ints, way: int, e0: int, e1: int, e2: int, bursts: int, own: int, turns: bool) -> int:
    """Walk a copy of extents e0, e1, e2; give the cycle after its last piece.

    way : INSIDE: cycle 0 is the first piece's, and with `turns` (one bank) reads and writes take turns. FROM_MEMORY,
    TO_MEMORY: cycle 0 is the first burst's; burst b comes b * own units later.
    """
    s2a, s2d = row[A + STRIDE2], row[D + STRIDE2]
    h0, h1, h2 = min(e0, row[A + EXT0]), min(e1, row[A + EXT1]), min(e2, row[A + EXT2])
    whole = h1 == e1 and h2 == e2
    single = (s2a != 1 or s2d != 1) and e2 > 1
    join1 = not single and (e1 == 1 or (row[A + STRIDE1] == e2 and row[D + STRIDE1] == e2 and whole))
    length = e1 * e2 if join1 else e2
    join0 = join1 and whole and row[A + STRIDE0] == length and row[D + STRIDE0] == length
    real_length = length if join1 and h2 == e2 else h2
    bits, piece, grain, units = bits_of(row[A + FORMAT]), f[BANK_BYTES], f[BURST], f[UNITS_PER_CYCLE]
    side = A if way == FROM_MEMORY else D
    ua, ud = unit_of(row[A + VIA]), unit_of(row[D + VIA])
    time = -f[DRAM_LATENCY] if way == FROM_MEMORY else 0
    need, before = 0, -1
    turn = 0
    for part in range(1 + row[A + SCALE]):
        base = row[side + (BASE if part == 0 else SBASE)]
        b0 = row[side + STRIDE0]
        b1, b2 = row[side + STRIDE1], row[side + STRIDE2]
        i0 = 0
        while i0 < e0:
            rows = 1
            if join0:
                rows = e0 - i0
                if ua > 0:
                    rows = min(rows, ua - ((i0 + phase_of(row[A + VIA])) & (ua - 1)))
                if ud > 0:
                    rows = min(rows, ud - ((i0 + phase_of(row[D + VIA])) & (ud - 1)))
            size = bytes_of(1 if single else length * rows, bits, part)
            for i1 in range(1 if join1 else e1):
                for i2 in range(e2 if single else 1):
                    real = 0
                    if i0 < h0 and i1 < h1 and (not single or i2 < h2):
                        real = 1 if single else real_length * min(rows, h0 - i0)
                        # A block that has begun has its scale.
                        real = bytes_of(real + (31 if part == 1 else 0), bits, part)
                    at = base + bytes_of(i0 * b0 + i1 * b1 + (i2 * b2 if single else 0), bits, part)
                    done = 0
                    while True:
                        count = min(size - done, piece)
                        valid = min(max(real - done, 0), count)
                        moved = valid if way == FROM_MEMORY else count
                        if turn == 1 and valid > 0:
                            time += 1
                        if way != INSIDE and moved > 0:
                            low, high = (at + done) // grain, (at + done + moved - 1) // grain
                            if need == 0 or low != before:
                                need += 1
                            if low != high:
                                need += 1
                            before = high
                        if way != INSIDE and need > 0:
                            if need <= bursts:
                                time = max(time, (need - 1) * own // units)
                            else:
                                time = max(time, (bursts - 1) * own // units + 1)
                        time += 1
                        turn = 1 if turns and valid > 0 else 0
                        done += piece
                        if done >= size:
                            break
            i0 += rows
    return int(time)

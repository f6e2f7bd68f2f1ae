"""The cycle rule of every instruction: the work that its resolved row asks of its unit.

docs/decisions/0004-timing.md has the reasons. Integer functions of `facts.facts(chip)` and a row of `resolved`;
`isa.alone` and `timing` read the same ones. Nothing here knows a kernel or a named chip.
"""

from __future__ import annotations

from typing import Final

from .compiled import STAMP, TYPES, Ints, Rows, compiled, rule
from .facts import (
    ACC_INTERVAL,
    ADD,
    ARRAY_COLUMNS,
    BANK,
    BANK_BYTES,
    BANK_SIZE,
    BLOCKS,
    BURST,
    BURST_UNITS,
    BY_ROWS,
    COLUMNS,
    CONVERT,
    DMA,
    DRAM_LATENCY,
    FREE,
    FUNC,
    FUNCTION,
    LANES,
    LOAD_BYTES,
    MULTIPLY,
    NET_DEN,
    NET_NUM,
    NORMALISE,
    OP1,
    OP2,
    OUTSTANDING,
    PASSES,
    RATE,
    RED,
    ROWS,
    SKEW,
    STACK,
    TERMS,
    UNITS_PER_CYCLE,
)  # fmt: skip
from .moves import FROM_MEMORY, INSIDE, TO_MEMORY, walk
from .resolved import (
    BASE,
    EXT0,
    EXT1,
    EXT2,
    FIELDS,
    FORMAT,
    OP,
    QUEUE,
    SCALE,
    SPACE,
    STRIDE0,
    STRIDE1,
    STRIDE2,
    VIA,
    A,
    B,
    D,
    E,
)  # fmt: skip
from .runs import bits_of, ceil_div, log2_up, runs

__all__ = ["WORK", "WORK_COLS", "work"]

# What `work` says of an instruction, by index.
(KIND, LEAD, HOLD, LAST, TAIL, BURSTS, OWN, BYTES, FLAGS, COPIES) = range(10)
WORK_COLS: Final = 10
WORK: Final = {
    "kind": "one of the kinds below",
    "lead": "cycles from start to the first use of what is shared: array, memory requests, network",
    "hold": "cycles it keeps that: passes of the array, beats of vectors, requests of a DMA, flits of a PUT",
    "last": "cycles of the last pass, during which the array loads the next instruction's first weights",
    "tail": "cycles from the end of its use to all writes visible",
    "bursts": "memory bursts",
    "own": "time of one burst in 1/UNITS_PER_CYCLE cycles, at least the channel's, more where runs or banks are slower",
    "bytes": "bytes that memory or network move for it, whole bursts",
    "flags": "ORDERED, BARRIER, TO_DRAM below",
    "copies": "descriptors that dispatch copies into the queue",
}

NOTHING, FIXED, MATRIX, VECTOR, READ, WRITE, SEND, SEQUENCER = range(8)
"""Kinds: waits and posts only; DMA without memory; matrix; vector; DMA from memory; DMA to memory; PUT; sequencer."""

ORDERED: Final = 1
"""Starts when all before it in its queue have ended: it reads what they may write (scratchpad, index list)."""
BARRIER: Final = 2
"""What follows it in its queue starts when it has ended: it writes cells, which are read at the start."""
TO_DRAM: Final = 4
"""A PUT whose receiver writes memory."""

PICK_SWEEPS: Final = 20
"""Sweeps over the row of PICK, whatever k and P are: eight digits of four bits for the k-th value, its ties, the sum,
eight digits for the threshold of P, its sum, the pick."""
COUNTED: Final = 4
"""Runs at unequal places of a burst that a DMA's set-up counts in a cycle, one by one."""
CARRY_ROWS: Final = 32
"""Rows of wide partial sums that an array shorter than a block carries from pass to pass."""

_MATMUL, _VEC, _PICK, _PUT, _COPY, _RING, _SYNC, _TOPK, _GROUP = 10, 11, 12, 13, 9, 15, 14, 16, 17
_DRAM, _SPAD, _SLOT, _ACC, _CELL = range(5)
_LOAD, _WEIGHTS = 1, 0


@rule
def lists(row: Ints) -> int:
    """Operands whose rows lie where an index list says."""
    count = 0
    for i in range(6):
        at = D + (A - D) * i
        if row[at + SPACE] >= 0 and row[at + VIA] > 0:
            count += 1
    return count


# --- matrix ---


@rule
def load_cycles(f: Ints, k: int, columns: int, bits: int, width: int, by_rows: int) -> int:
    """Cycles to load the weights of k rows x `columns` of the arrays through a port of `width` bytes.

    A cycle takes one piece of each of the next columns (or rows, where weights lie by rows): 32 elements, the whole of
    a shorter one, and more of a row where the port is wider than 32 elements for each row of an array.
    """
    each = max(1, 8 * width // bits)  # elements a cycle
    if by_rows:
        piece = min(each, f[COLUMNS], max(32, each // f[ROWS]))
        return int(ceil_div(k, min(f[ROWS], each // piece)) * ceil_div(columns, piece))
    piece = min(each, f[ROWS], 32)
    return int(ceil_div(columns, each // piece) * ceil_div(k, piece))


@rule
def tiles(f: Ints, stream: int, k: int, n: int, height: int, columns: int, bits: int, width: int, by_rows: int) -> int:
    """Sum over the tiles of one row group, `height` of K by `columns`, of the longer of the pass before it and its own
    load."""
    full_k, full_n = k // height, n // columns
    rest_k, rest_n = k - full_k * height, n - full_n * columns
    total = full_k * full_n * max(stream, load_cycles(f, height, columns, bits, width, by_rows))
    if rest_n > 0:
        total += full_k * max(stream, load_cycles(f, height, rest_n, bits, width, by_rows))
    if rest_k > 0:
        total += full_n * max(stream, load_cycles(f, rest_k, columns, bits, width, by_rows))
        if rest_n > 0:
            total += max(stream, load_cycles(f, rest_k, rest_n, bits, width, by_rows))
    return int(total)


@rule
def stacked(f: Ints, n: int, k: int, row_cycles: int, row_bits: int, per_row: int) -> int:
    """Arrays that stand on each other: as long as columns leave some idle, K goes on, a bank feeds them all, and the
    rows are many enough to fill the adders' way down the stack."""
    side = ceil_div(n, f[ARRAY_COLUMNS])
    most, high = f[COLUMNS] // f[ARRAY_COLUMNS], 1
    while (
        2 * high <= f[STACK]
        and 2 * high * side <= most
        and high * f[ROWS] < k
        and 2 * high * f[ROWS] * row_bits <= 8 * f[BANK_BYTES] * per_row
        and row_cycles > high * f[BLOCKS] * f[ACC_INTERVAL]
    ):
        high *= 2
    return int(high)


@rule
def matmul(f: Ints, row: Ints, out: Ints) -> None:
    """MATMUL: row groups, then column tiles, then K; the next tile's weights load during a pass."""
    fields = row[FIELDS]
    by_rows = fields >> f[BY_ROWS] & 1
    rows, k = row[A + EXT0] * row[A + EXT1], row[A + EXT2]
    if by_rows:
        n = row[B + EXT2]
    else:
        n = row[B + EXT0] * row[B + EXT1]
        k = k * (1 + (fields >> f[TERMS] & 1))
    if rows * k * n == 0:
        return
    bits = bits_of(row[B + FORMAT])
    width = f[LOAD_BYTES] if row[B + SPACE] == _SLOT else min(f[LOAD_BYTES], f[BANK_BYTES])
    per_row = f[RATE + 3 * row[A + FORMAT] + row[B + FORMAT]]
    high = 1
    if f[PASSES] == 1:
        high = stacked(f, n, k, rows * per_row, bits_of(row[A + FORMAT]), per_row)
    height, columns, blocks = high * f[ROWS], f[COLUMNS] // high, high * f[BLOCKS]
    least = ceil_div(blocks * f[ACC_INTERVAL], f[PASSES])
    group = rows if f[PASSES] == 1 else min(rows, CARRY_ROWS)
    groups = ceil_div(rows, group)
    rows_last = rows - (groups - 1) * group
    stream, stream_last = max(group * per_row, least), max(rows_last * per_row, least)
    # What follows may add to the same sums in any order: none of its rows before this one's last is added.
    added = (rows_last - 1) * per_row + blocks * f[ADD]
    last = max(stream_last, added - (f[PASSES] - 1) * least)
    first = load_cycles(f, min(k, height), min(n, columns), bits, width, by_rows)
    hold = (groups - 1) * tiles(f, stream, k, n, height, columns, bits, width, by_rows)
    hold += tiles(f, stream_last, k, n, height, columns, bits, width, by_rows)
    if groups > 1:  # The last group's first tile follows a pass of a whole group.
        hold += max(stream, first) - max(stream_last, first)
    before = stream if groups > 1 else stream_last
    out[KIND] = MATRIX
    out[LEAD] = f[BANK] + first + (f[BANK] if lists(row) > 0 else 0)
    out[HOLD] = hold - max(before, first) + last
    out[LAST] = last
    out[TAIL] = f[SKEW] + f[NORMALISE] + f[BANK]
    if f[PASSES] > 1:  # The last pass alone adds, and its rows are on their way when it is over.
        out[TAIL] += stream_last + f[ADD] - last


# --- vector ---


@rule
def port_of(f: Ints, row: Ints, at: int) -> int:
    """Port that an operand uses: its bank, the accumulator's (-2), none (-1: absent, or cells)."""
    if row[at + SPACE] == _SPAD:
        return int(row[at + BASE] // f[BANK_SIZE])
    return -2 if row[at + SPACE] == _ACC else -1


@rule
def row_accesses(f: Ints, row: Ints, at: int, n: int) -> int:
    """Accesses an operand makes to its port for one row of n elements: one a beat, one an element where it strides."""
    if port_of(f, row, at) == -1:
        return 0
    stride = row[at + STRIDE2]
    if stride == 0 and n > 1:
        return 1 if row[at + STRIDE0] != 0 or row[at + STRIDE1] != 0 else 0
    return int((ceil_div(n, f[LANES]) if stride == 1 else n) + row[at + SCALE])


@rule
def strides(row: Ints, at: int, n: int) -> bool:
    """Whether the elements of a row of an operand are neither side by side nor one: the unit takes one a cycle."""
    return bool(row[at + SPACE] >= 0 and n > 1 and row[at + STRIDE2] != 0 and row[at + STRIDE2] != 1)


@rule
def row_cycles(f: Ints, row: Ints, n: int) -> int:
    """Cycles of one row: its beats, the accesses to the port that is asked most, or its entries of index lists."""
    beats = ceil_div(n, f[LANES])
    most = max(beats, lists(row))
    for i in range(6):
        at = D + (A - D) * i
        if at != E and strides(row, at, n):  # cells too
            most = max(most, n)
        port = port_of(f, row, at)
        if port == -1:
            continue
        total = 0
        for j in range(6):
            other = D + (A - D) * j
            if port_of(f, row, other) == port:
                total += 1 if other == E else row_accesses(f, row, other, n)
        most = max(most, total)
    return int(most)


@rule
def op_cycles(f: Ints, op: int, second: bool) -> int:
    """Pipeline stages of op1 or op2; integer ones take one cycle, exponents one before the adder or the function."""
    if op == 0:
        return 0
    if op == 3 or (second and op == 10):
        return int(f[MULTIPLY])
    if op == 1 or op == 2:
        return int(f[ADD])
    if op == 12:
        return int(f[ADD] + 1)
    return int(f[FUNCTION] + 1 if op == 13 or op == 14 else 1)


@rule
def vector(f: Ints, row: Ints, out: Ints) -> None:
    """VEC: rows x beats, one row after another, then the pipeline's depth. The others: sweeps, whatever the values."""
    n, rows = row[A + EXT2], row[A + EXT0] * row[A + EXT1]
    if rows * n == 0:
        return
    out[KIND] = VECTOR
    beats = ceil_div(n, f[LANES])
    levels = log2_up(min(n, f[LANES])) + log2_up(beats)
    read = f[BANK] + (f[BANK] if lists(row) > 0 else 0)
    if row[OP] == _PICK:
        sweep = n if strides(row, A, n) or strides(row, B, n) else beats
        out[HOLD] = PICK_SWEEPS * (sweep + f[BANK] + 1 + levels) + read - f[BANK]
        out[TAIL] = f[BANK]
        return
    if row[OP] == _TOPK:
        sweep = n if strides(row, A, n) else beats
        # A choice of a row waits for the one before it; other rows fill the gap.
        out[HOLD] = (row[D + EXT2] - 1) * max(rows * sweep, sweep + 1 + levels) + rows * sweep
        out[TAIL] = read + 1 + levels + f[BANK]
        return
    if row[OP] == _GROUP:
        pairs = rows * n
        out[HOLD] = pairs * ceil_div(pairs, f[LANES]) + pairs
        out[TAIL] = read + 1 + f[BANK] + log2_up(min(pairs, f[LANES])) + log2_up(ceil_div(pairs, f[LANES]))
        return
    fields = row[FIELDS]
    op1, red = fields >> f[OP1] & 15, fields >> f[RED] & 7
    cycles = row_cycles(f, row, n)
    dequantise = 0
    for i in range(1, 4):
        at = D + (A - D) * i
        if row[at + SPACE] >= 0 and row[at + FORMAT] < 3:
            dequantise = f[MULTIPLY]
    read += dequantise
    first = read + op_cycles(f, op1, False)
    last = first + op_cycles(f, fields >> f[OP2] & 15, True)
    if fields >> f[FUNC] & 3:
        last += f[FUNCTION]
    end = last
    if red == 5:  # rowscale: a sweep for the row's largest, drained, and a sweep that writes
        out[HOLD] = rows * (2 * cycles + last + levels)
        out[TAIL] = last + f[CONVERT] + f[BANK]
        return
    if red == 1:
        end = max(end, first + levels * f[ADD])
    elif red == 2:
        end = max(end, read + f[MULTIPLY] + levels * f[ADD])
    elif red != 0:
        end = max(end, last + levels)
    if row[D + SPACE] >= 0 and row[D + SCALE]:
        end = max(end, last + ceil_div(32, f[LANES]) - 1 + f[CONVERT])  # a block waits for its largest
    out[HOLD] = rows * cycles
    out[TAIL] = end + f[BANK]


# --- DMA, network, host ---


@rule
def burst_time(f: Ints, bursts: int, cycles: int) -> int:
    """Time of one of `bursts` that together take at least `cycles`, in 1/UNITS_PER_CYCLE cycles."""
    own = max(f[BURST_UNITS], ceil_div(cycles * f[UNITS_PER_CYCLE], bursts))
    return int(max(own, ceil_div(f[DRAM_LATENCY] * f[UNITS_PER_CYCLE], f[OUTSTANDING])))


@rule
def copy(f: Ints, row: Ints, read: int, write: int, bursts: int, requests: int, uneven: int, out: Ints) -> None:
    """COPY: runs of bursts on the memory's side, beats on the chip's side, the slower of both; then what the mover
    has left to move after the last burst."""
    e0, e1, e2 = row[D + EXT0], row[D + EXT1], row[D + EXT2]
    source, target = row[A + SPACE], row[D + SPACE]
    beats = max(read, write)
    out[LEAD] = f[DMA] + (f[BANK] if source != _DRAM else 0)
    if uneven > 0:
        out[LEAD] = max(out[LEAD], 2 + ceil_div(uneven, COUNTED))
    out[TAIL] = f[BANK]
    if not row[FIELDS] >> f[FREE] & 1:
        if row[QUEUE] == _LOAD and source != _DRAM:
            out[FLAGS] = ORDERED
        if target == _CELL:
            out[FLAGS] |= BARRIER
    if bursts == 0:
        one_bank = source == target and row[A + BASE] // f[BANK_SIZE] == row[D + BASE] // f[BANK_SIZE]
        time = walk(f, row, INSIDE, e0, e1, e2, 0, 0, one_bank)
        out[KIND] = FIXED
        out[HOLD] = max(read + write if one_bank else beats, time)
        return
    out[KIND] = READ if source == _DRAM else WRITE
    out[HOLD] = requests
    out[BURSTS] = bursts
    out[OWN] = burst_time(f, bursts, max(requests, beats))
    out[BYTES] = bursts * f[BURST]
    if source != _DRAM:
        out[TAIL] = f[DRAM_LATENCY]
    time = walk(f, row, FROM_MEMORY if source == _DRAM else TO_MEMORY, e0, e1, e2, bursts, out[OWN], False)
    # Pieces that the mover still has when the last burst has gone by.
    over = time - ceil_div((bursts - 1) * out[OWN] + f[BURST_UNITS], f[UNITS_PER_CYCLE])
    out[TAIL] = max(out[TAIL], over + f[BANK])


@rule
def put(f: Ints, row: Ints, beats: int, bursts: int, size: int, out: Ints) -> None:
    """PUT: flits at the network's rate or the banks', at least one, so that an empty one still counts as arrived."""
    flits = max(1, beats, ceil_div(size * f[NET_DEN], f[NET_NUM]))
    e0, e1, e2 = row[D + EXT0], row[D + EXT1], row[D + EXT2]
    if e0 * e1 * e2 > 0:
        time = walk(f, row, INSIDE, e0, e1, e2, 0, 0, False)
        # The mover begins a cycle after the start, and reads the first entry of an index list before that.
        flits = max(flits, time + 1 - f[BANK] + (1 if lists(row) > 0 else 0))
    out[KIND] = SEND
    out[LEAD] = f[BANK]
    out[HOLD] = flits
    out[TAIL] = f[BANK]
    out[BYTES] = size
    if bursts > 0:
        out[BURSTS] = bursts
        out[OWN] = burst_time(f, bursts, flits)
        out[FLAGS] = TO_DRAM


@rule
def transfer(f: Ints, row: Ints, out: Ints) -> None:
    """COPY and PUT: count both sides, then leave the rest to `copy` and `put`."""
    if row[OP] == _COPY and row[D + EXT0] * row[D + EXT1] * row[D + EXT2] == 0:
        return
    read, write, bursts, requests, size, uneven = 0, 0, 0, 0, 0, 0
    for side in range(2):
        at = A if side == 0 else D
        e0, e1, e2 = row[D + EXT0], row[D + EXT1], row[D + EXT2]
        if side == 0:  # what lies outside A is written as zeros and not read
            e0, e1, e2 = min(e0, row[A + EXT0]), min(e1, row[A + EXT1]), min(e2, row[A + EXT2])
        space = row[at + SPACE]
        width = f[BANK_BYTES]
        if space == _DRAM:
            width = f[BURST]
        elif space == _SLOT:
            width = f[LOAD_BYTES]
        elif space == _CELL:
            width = 4
        runs(row, at, e0, e1, e2, width, space == _DRAM, out)
        if space == _DRAM:
            bursts, requests, uneven = out[0], out[1], out[3]
        elif side == 0:
            read = out[0]
        else:
            write = out[0]
        size = out[2]  # of D in the end: zeros travel too
    for i in range(4):
        out[i] = 0
    if row[OP] == _COPY:
        copy(f, row, read, write, bursts, requests, uneven, out)
    else:
        put(f, row, max(read, write), bursts, size, out)


@rule
def work_row(f: Ints, row: Ints, out: Ints) -> None:
    """Fill the first WORK_COLS entries of `out` from a row. Cycles, bytes; times of bursts in 1/UNITS_PER_CYCLE
    cycles."""
    for i in range(WORK_COLS):
        out[i] = 0
    op = row[OP]
    if op == _MATMUL:
        matmul(f, row, out)
    elif op in (_VEC, _PICK, _TOPK, _GROUP):
        vector(f, row, out)
    elif op in (_COPY, _PUT):
        transfer(f, row, out)
    elif op == _RING:
        words = row[A + EXT0] * row[A + EXT1] * row[A + EXT2]
        if words > 0:
            out[KIND] = FIXED
            out[LEAD] = f[DMA] + f[BANK]
            out[HOLD] = words
    elif op != _SYNC:
        out[KIND] = SEQUENCER
    copies = 0
    for i in range(6):
        if row[D + (A - D) * i + SPACE] >= 0:
            copies += 1
    out[COPIES] = copies


def _work(f: Ints, rows: Rows, works: Rows) -> None:
    """Fill works [n, WORK_COLS] from rows [n, COLS]."""
    for n in range(rows.shape[0]):
        work_row(f, rows[n], works[n])


work = compiled(_work, TYPES, STAMP, inner=False)

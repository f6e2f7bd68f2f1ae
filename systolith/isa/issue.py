"""What the sequencer hands on: the resolved stream, with the words between two instructions of queues made one number.

Words that only the sequencer runs take a time that their own row decides (docs/decisions/0004-timing.md). So all that
timing needs of them is how long they take together; an *issue* is an instruction of a queue, a READX that waits, or a
HALT, after that many cycles. Four of five words of a program go into a number here.
"""

from __future__ import annotations

from typing import Final

from systolith.spec import LOOP_DEPTH

from . import cycles
from .compiled import STAMP, TYPES, Ints, Rows, compiled, rule
from .facts import BANK, BRANCH, ISSUE, LOOP_LEN, PUT_APART, PUT_ARRIVE, PUT_COUNTER, PUT_EXPECT, PUT_SEM, SLICES
from .resolved import COUNT, FIELDS, FIRST, OP, PC, POST, QUEUE, TAKEN, WAIT

__all__ = ["CARRY_COLS", "OP_COLS", "issues"]

# The work of `isa.cycles`, then:
W: Final = cycles.WORK_COLS
(OP_CODE, OP_QUEUE, OP_WAIT, OP_POST, OP_PC, OP_RANKS, OP_ARRIVAL, OP_ISSUE, OP_BEFORE, OP_WORDS,
 OP_MARK) = range(W, W + 11)  # fmt: skip
# OP_RANKS, of a PUT: which ranks it reaches (`ranks`); OP_ARRIVAL: what it gives them (`arrival`).
# OP_ISSUE: cycles that its dispatch takes.
# OP_ISSUE on: read when it is dispatched, and not kept in its queue.
# OP_BEFORE: cycles of the words before it; OP_WORDS: words it stands for, itself too (HALT is not counted).
# OP_MARK: where the first of them is the marked word 1, and 2 where its loop begins.
OP_COLS: Final = W + 11
OP_KEPT: Final = OP_ISSUE
"""Columns that an entry of a queue has."""

# Of a slice, from row to row: what the words since its last issue add up to, and its loops (word after the body, left).
C_BEFORE, C_WORDS, C_MARK, C_ENTERED, C_LOOPS, C_LOOP = range(6)
CARRY_COLS: Final = C_LOOP + 2 * LOOP_DEPTH

_LOOP, _BR, _READX, _HALT, _PUT, _PAUSE = 5, 6, 7, 8, 13, 0
_QUEUES: Final = 6


@rule
def hand_on(carry: Ints, out: Ints) -> None:
    """Put what has been carried into an issue, which starts anew."""
    out[OP_BEFORE], out[OP_WORDS], out[OP_MARK] = carry[C_BEFORE], carry[C_WORDS], carry[C_MARK]
    carry[C_BEFORE] = carry[C_WORDS] = carry[C_MARK] = 0


@rule
def at_word(carry: Ints, mark: int, pc: int, ops: Rows, n: int) -> int:
    """Before a word: the marked one begins an issue, and what is carried until then becomes one. Gives n or n + 1."""
    if pc != mark:
        return n
    if carry[C_WORDS] > 0 or carry[C_BEFORE] > 0:
        for i in range(OP_COLS):
            ops[n, i] = 0
        ops[n, cycles.KIND] = cycles.SEQUENCER
        ops[n, OP_CODE], ops[n, OP_QUEUE] = _PAUSE, _QUEUES
        hand_on(carry, ops[n])
        n += 1
    carry[C_MARK] = 1 + carry[C_ENTERED]
    carry[C_ENTERED] = 0
    return n


@rule
def after_word(f: Ints, carry: Ints, mark: int, pc: int, op: int, length: int, taken: int) -> None:
    """Follow the loops: the last word of a body ends an iteration, unless it is a branch that jumps."""
    if op == _BR and taken != 0:
        return
    if op == _LOOP:
        if taken > 0:
            at = C_LOOP + 2 * carry[C_LOOPS]
            carry[at], carry[at + 1] = pc + 1 + length, taken
            carry[C_LOOPS] += 1
            if pc + 1 == mark:
                carry[C_ENTERED] = 1
            return
        pc += length
    while carry[C_LOOPS] > 0:
        at = C_LOOP + 2 * (carry[C_LOOPS] - 1)
        if carry[at] != pc + 1:
            return
        carry[at + 1] -= 1
        if carry[at + 1] > 0:
            return
        carry[C_LOOPS] -= 1
        carry[C_BEFORE] += f[BRANCH]


@rule
def sequencer_cycles(f: Ints, op: int, taken: int) -> int:
    """Cycles of a word that the sequencer runs itself, its tokens there."""
    if (op == _BR and taken != 0) or (op == _LOOP and taken == 0):
        return int(f[ISSUE] + f[BRANCH])
    return int(f[ISSUE] + f[BANK] if op == _READX else f[ISSUE])


@rule
def is_issue(op: int, queue: int, wait: int) -> bool:
    """Whether a word is an issue; else it is one of those that are carried."""
    return queue < _QUEUES or op == _HALT or (op == _READX and wait != 0)


@rule
def head(f: Ints, op: int, queue: int, wait: int, post: int, pc: int, taken: int, carry: Ints, out: Ints) -> None:
    """Fill an issue [OP_COLS], whose work is there, with what its word says and what has been carried."""
    out[OP_CODE], out[OP_QUEUE], out[OP_WAIT], out[OP_POST], out[OP_PC] = op, queue, wait, post, pc
    out[OP_RANKS] = out[OP_ARRIVAL] = 0
    hand_on(carry, out)
    if queue < _QUEUES:
        out[OP_ISSUE] = max(f[ISSUE], out[cycles.COPIES])
    else:
        out[OP_ISSUE] = sequencer_cycles(f, op, taken)
    if op != _HALT:
        out[OP_WORDS] += 1


@rule
def send(f: Ints, first: int, count: int, fields: int, out: Ints) -> None:
    """Fill the columns of a PUT: the ranks that it reaches and what it gives them."""
    expect = fields >> f[PUT_EXPECT] & 2047
    arrive, counter, sem = fields >> f[PUT_ARRIVE] & 1, fields >> f[PUT_COUNTER] & 15, fields >> f[PUT_SEM] & 31
    out[OP_RANKS] = first | count << 20 | (fields >> f[PUT_APART] & 15) << 40
    out[OP_ARRIVAL] = arrive | sem << 1 | counter << 6 | (expect if expect > 0 else f[SLICES]) << 10


@rule
def ranks(packed: int) -> tuple[int, int, int]:
    """Of OP_RANKS: the lowest, the first beyond them, and how far they are apart."""
    first, count, apart = packed & (1 << 20) - 1, packed >> 20 & (1 << 20) - 1, packed >> 40
    return first, first + (count << apart), 1 << apart


@rule
def arrival(packed: int) -> tuple[int, int, int, int]:
    """Of OP_ARRIVAL: 1 where it counts as arrived, semaphore, counter, and arrivals that give a token."""
    return packed & 1, packed >> 1 & 31, packed >> 6 & 15, packed >> 10


@rule
def decode(f: Ints, row: Ints, carry: Ints, out: Ints) -> None:
    """Make an issue [OP_COLS] of a row [COLS]."""
    cycles.work_row(f, row, out)
    head(f, row[OP], row[QUEUE], row[WAIT], row[POST], row[PC], row[TAKEN], carry, out)
    if row[OP] == _PUT:
        send(f, row[FIRST], row[COUNT], row[FIELDS], out)


def _issues(f: Ints, rows: Rows, carry: Ints, mark: int, ops: Rows) -> int:
    """Make issues [at most 2 n, OP_COLS] of the rows [n, COLS] of a slice; give their number.

    carry : [CARRY_COLS], of the rows before.    mark : word that always begins an issue, -1: none
    """
    n = 0
    for i in range(rows.shape[0]):
        row = rows[i]
        pc, op, taken = row[PC], row[OP], row[TAKEN]
        n = at_word(carry, mark, pc, ops, n)
        if is_issue(op, row[QUEUE], row[WAIT]):
            decode(f, row, carry, ops[n])
            n += 1
        else:
            carry[C_BEFORE] += sequencer_cycles(f, op, taken)
            carry[C_WORDS] += 1
        after_word(f, carry, mark, pc, op, row[FIELDS] >> f[LOOP_LEN] & 4095, taken)
    return n


issues = compiled(_issues, TYPES, STAMP, inner=False)

"""Each instruction alone on nano: cycles counted by hand from docs/decisions/0004-timing.md.

Every program pays 2 cycles of fetch, one for each DESC and one for each descriptor that dispatch copies.
"""

from dataclasses import replace

import pytest

from systolith.isa import (
    Adv,
    Br,
    Copy,
    Format,
    Group,
    Loop,
    Machine,
    Matmul,
    Op1,
    Pick,
    Put,
    Queue,
    Readx,
    Red,
    Ring,
    Space,
    Sync,
    Topk,
    Vec,
)
from systolith.isa.instruction import Instruction
from systolith.isa.resolved import OP
from systolith.spec import derive, load

from .helpers import NANO, program, tensor, time

D, S, W, ACC, X = Space.DRAM, Space.SPAD, Space.SLOT, Space.ACC, Space.CELL
F32, I32, I8, E2 = Format.FP32, Format.INT32, Format.INT8, Format.E2M1
BANK1, BANK2, BANK3 = 16384, 32768, 49152


def run(code: list[Instruction], constants: list, **more: object) -> int:
    return time(NANO, program(NANO, code, constants, **more)).cycles


def mx(space: Space, ext: tuple[int, int, int], fmt: Format = I8, base: int = 0, **more: int):
    return tensor(space, ext, fmt, base, scale=1, sbase=base + 4096, **more)


def test_halt() -> None:
    assert run([], []) == 2 + 1  # fetch, HALT


def test_sync() -> None:
    # Dispatched at 3, one cycle at the head of its queue; HALT at 4 waits no longer.
    assert run([Sync(on=Queue.M)], []) == 4


def test_sequencer_words() -> None:
    assert run([Adv(d=1)] * 5, []) == 2 + 5 + 1


def test_taken_branch() -> None:
    assert run([Br(cond=0, target=2), Adv(d=1)], []) == 2 + 1 + 2 + 1
    assert run([Br(cond=2, target=2), Adv(d=1)], []) == 2 + 1 + 1 + 1


def test_loop() -> None:
    # LOOP, 3 x 2 words, the end of the loop costs 2.
    assert run([Loop(count=3, len=2), Adv(d=1), Adv(d=1)], []) == 2 + 1 + 6 + 2 + 1
    assert run([Loop(count=0, len=2), Adv(d=1), Adv(d=1)], []) == 2 + 1 + 2 + 1
    # Two loops that end at one word: the inner ends twice, the outer once.
    code = [Loop(count=2, len=2), Loop(count=3, len=1), Adv(d=1)]
    assert run(code, []) == 2 + 1 + 2 * (1 + 3) + 3 * 2 + 1


def test_copy_from_memory() -> None:
    # 2,048 codes and 64 scales: 33 bursts of 4 cycles; set-up 4, latency 10, write 1.
    constants = [mx(D, (1, 64, 32)), mx(W, (1, 64, 32))]
    assert run([Copy(on=Queue.W, d=2, a=1)], constants) == 2 + 2 + 2 + (4 + 10 + 33 * 4 + 1)


def test_copy_of_short_runs_wastes_bursts() -> None:
    # 8 rows of 32 bytes, 128 bytes apart: a burst of 64 each.
    constants = [tensor(D, (1, 8, 32), stride=(0, 128, 1)), tensor(S, (1, 8, 32))]
    assert run([Copy(on=Queue.L, d=2, a=1)], constants) == 2 + 2 + 2 + (4 + 10 + 8 * 4 + 1)


def test_copy_between_banks() -> None:
    # 256 bytes at 16 a cycle; read and write overlap in two banks, not in one.
    other = [tensor(S, (1, 1, 256)), tensor(S, (1, 1, 256), base=BANK1)]
    same = [tensor(S, (1, 1, 256)), tensor(S, (1, 1, 256), base=4096)]
    assert run([Copy(on=Queue.L, d=2, a=1)], other) == 2 + 2 + 2 + (4 + 1 + 16 + 1)
    assert run([Copy(on=Queue.L, d=2, a=1)], same) == 2 + 2 + 2 + (4 + 1 + 32 + 1)


def test_copy_to_memory() -> None:
    # The first burst leaves after set-up and the read of the scratchpad; the last is there a latency after.
    constants = [tensor(S, (1, 1, 256)), tensor(D, (1, 1, 256))]
    assert run([Copy(on=Queue.S, d=2, a=1)], constants) == 2 + 2 + 2 + (4 + 1 + 4 * 4 + 10)


@pytest.mark.parametrize(
    ("rows", "k", "n", "fmt", "cycles"),
    [
        # read 1, first load 1; 8 passes a block of one row (a load of 16 bytes takes one cycle too);
        # skew 5, normalise 2, add 2, write 1.
        (1, 32, 4, I8, 1 + 1 + 8 + 10),
        (4, 32, 4, I8, 1 + 1 + 8 * 4 + 10),
        (1, 64, 8, I8, 1 + 1 + 2 * 2 * 8 + 10),
        (1, 32, 5, I8, 1 + 1 + 2 * 8 + 10),
        # 40 rows: a group of 32 and one of 8.
        (40, 32, 4, I8, 1 + 1 + 8 * 40 + 10),
    ],
)
def test_matmul(rows: int, k: int, n: int, fmt: Format, cycles: int) -> None:
    constants = [mx(S, (1, rows, k)), mx(W, (1, n, k), fmt), tensor(ACC, (1, rows, n), F32)]
    assert run([Matmul(d=3, a=1, b=2, zero=1)], constants) == 2 + 3 + 3 + cycles


def test_vec_elementwise() -> None:
    # 64 elements on 4 lanes, read 1, add 2, write 1, three banks.
    constants = [tensor(S, (1, 1, 64), F32, base) for base in (0, BANK1, BANK2)]
    assert run([Vec(d=3, a=1, b=2, op1=Op1.ADD)], constants) == 2 + 3 + 3 + (16 + 1 + 2 + 1)


def test_vec_shares_a_bank() -> None:
    # Both sources in one bank: two accesses a beat.
    constants = [tensor(S, (1, 1, 64), F32, base) for base in (0, 1024, BANK2)]
    assert run([Vec(d=3, a=1, b=2, op1=Op1.ADD)], constants) == 2 + 3 + 3 + (32 + 1 + 2 + 1)


def test_rows_through_lists() -> None:
    # 16 rows of a beat: two lists give an entry each a row, 1 more to read the first. A list for A of MATMUL: 1 more.
    table = tensor(S, (1, 1, 16), I32, BANK3)
    a, d = (tensor(S, (16, 1, 4), F32, base, via=3) for base in (0, BANK1))
    assert run([Vec(d=2, a=1)], [a, d, table]) == 2 + 3 + 2 + (2 * 16 + 1 + 1 + 1)
    rows = mx(S, (4, 1, 32), via=4)
    constants = [rows, mx(W, (1, 4, 32)), tensor(ACC, (4, 1, 4), F32), table]
    assert run([Matmul(d=3, a=1, b=2, zero=1)], constants) == 2 + 4 + 3 + (1 + 1 + 1 + 8 * 4 + 10)


def test_vec_tree() -> None:
    # Sum of squares of 64: multiply 2, two levels of lanes and four of beats at 2 each. Operands A and E.
    constants = [tensor(S, (1, 1, 64), F32), tensor(S, (1, 1, 1), F32, BANK1)]
    code = [Vec(d=1, a=1, red=Red.SUMSQ)]
    assert run(code, [constants[0], constants[1]]) == 2 + 2 + 3 + (16 * 2 + 1 + 2 + 6 * 2 + 1)


def test_vec_quantises() -> None:
    # 16 writes of codes and one of the row's scales; a block of 32 is 8 beats of 4 lanes: 7 more, then the conversion.
    constants = [tensor(S, (1, 1, 64), F32), mx(S, (1, 1, 64), base=BANK1)]
    assert run([Vec(d=2, a=1)], constants) == 2 + 2 + 2 + (17 + 1 + 7 + 2 + 1)


def test_pick() -> None:
    v = 16
    constants = [
        tensor(S, (1, 1, v), F32),
        tensor(S, (1, 1, v), I32, BANK1),
        tensor(S, (1, 1, 5), I32, BANK2),
        tensor(S, (1, 1, 1), I32, BANK2 + 64),
        tensor(X, (1, 1, 1), I32, 4),
    ]
    # 20 sweeps of 4 beats, each drained through read 1, compare 1 and 2 + 2 levels.
    assert run([Pick(d=5, a=1, b=2, c=3)], constants) == 2 + 5 + 5 + 20 * (4 + 1 + 1 + 4) + 1


def test_topk() -> None:
    # Three choices of two rows of 32 values, 8 beats each: 16 beats are more than 8 and the drain of 1 + 2 + 3 levels.
    constants = [
        tensor(S, (2, 1, 32), F32), tensor(S, (2, 1, 3), I32, BANK1), tensor(S, (2, 1, 3), F32, BANK2),
    ]  # fmt: skip
    assert run([Topk(d=2, a=1)], constants) == 2 + 3 + 3 + 3 * 16 + (1 + 1 + 5 + 1)
    # One row: a choice waits for the one before it.
    constants[0] = tensor(S, (1, 1, 32), F32)
    assert run([Topk(d=2, a=1)], constants) == 2 + 3 + 3 + 2 * (8 + 1 + 5) + 8 + (1 + 1 + 5 + 1)


def test_group() -> None:
    # 12 pairs against 12, 3 beats each, and 12 cycles to write; 2 levels of lanes and 2 of beats.
    constants = [
        tensor(S, (3, 1, 4), I32), tensor(S, (2, 1, 12), I32, BANK1), tensor(S, (8, 1, 4), I32, BANK2),
        tensor(X, (1, 1, 1), I32, 4),
    ]  # fmt: skip
    assert run([Group(d=2, a=1, b=4)], constants) == 2 + 4 + 4 + 12 * 3 + 12 + (1 + 1 + 4 + 1)


def test_put_to_itself() -> None:
    # 256 bytes at 16 a cycle: read 1, 16 flits, write 1.
    constants = [tensor(S, (1, 1, 256)), tensor(S, (1, 1, 256), base=BANK1)]
    assert run([Put(d=2, a=1, arrive=1, sem=3)], constants) == 2 + 2 + 2 + (1 + 16 + 1)


def test_ring() -> None:
    assert run([Ring(a=1)], [tensor(S, (1, 1, 8), I32)]) == 2 + 1 + 1 + (4 + 1 + 8)


def test_readx_waits_for_a_semaphore() -> None:
    # SYNC.V from 3 to 4, 2 of the semaphore: READX at 6 takes 2; then HALT.
    assert run([Sync(on=Queue.V, post=1), Readx(r=1, x=1, wait=1)], []) == 6 + 2 + 1


def test_alone_is_what_the_record_says() -> None:
    """Timed alone, an instruction takes what its record's latency says, from its dispatch."""
    constants = [mx(S, (1, 3, 96)), mx(W, (1, 10, 96), E2), tensor(ACC, (1, 3, 10), F32)]
    p = program(NANO, [Matmul(d=3, a=1, b=2, zero=1)], constants)
    row = next(r for r in Machine(NANO, p).resolved() if r[OP] == Matmul.OPCODE)
    assert time(NANO, p).cycles == 2 + 3 + 3 + p.code[3].latency_cycles(NANO, row)


@pytest.mark.parametrize(("rows", "stack", "cycles"), [(64, 8, 715), (64, 1, 4187), (4, 8, 235), (1, 8, 215)])
def test_arrays_stand_on_each_other(rows: int, stack: int, cycles: int) -> None:
    """64 columns leave 15 of server's 16 arrays idle: up to 8 stand on each other, if rows fill the way down.

    64 rows: 2 passes of 512 of K, 64 x 4 cycles each, instead of 16 of 64; 66 to begin; the last row has 16 adds of 4
    cycles instead of its own 4, and 72 + 3 + 2 to drain.
    """
    chip = derive(replace(load("server").config, array_stack=stack))
    a = mx(S, (rows, 1, 1024))
    w = mx(W, (64, 1, 1024), base=0).with_ext(0, 64)
    w = replace(w, sbase=1 << 17)
    a = replace(a, sbase=1 << 17)
    p = program(chip, [Matmul(d=3, a=1, b=2, zero=1)], [a, w, tensor(ACC, (rows, 1, 64), F32)], slices=1)
    assert time(chip, p).cycles == 2 + 3 + 3 + cycles


def test_a_free_copy_waits_for_none_before_it() -> None:
    constants = [
        tensor(D, (1, 1, 64), F32), tensor(S, (1, 1, 64), F32), tensor(S, (1, 1, 64), F32, BANK1),
        tensor(S, (1, 1, 64), F32, BANK2),
    ]  # fmt: skip
    load_, move = Copy(on=Queue.L, d=2, a=1), Copy(on=Queue.L, d=4, a=3)
    alone = run([load_], constants)
    assert run([load_, replace(move, free=1)], constants) == alone
    assert run([load_, move], constants) > alone + 16  # 16 beats and more, begun when the first has ended

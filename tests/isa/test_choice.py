"""TOPK and GROUP against NumPy, and the traps of both."""

import math
import re

import numpy as np
import pytest

from systolith.isa import Adv, Format, Group, Space, Topk, Vec
from systolith.spec import ProgramError

from .helpers import dense, machine, peek, poke, seeded, spad

D_AT, E_AT, B_AT = 16384, 32768, 49152
SCORES = np.array([math.nan, -math.inf, math.inf, -0.0, 0.0, 1.0, 1.0, -1.0, 2.0, 1e-45, -1e-45], np.float32)


def kept(row, k):
    """Indices of the k best: numbers by value, the lowest index first, then NaN by index."""
    numbers = np.where(np.isnan(row), 0, row).astype(np.float64)
    return np.lexsort((np.arange(len(row)), -numbers, np.isnan(row)))[:k]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (8, 3), (64, 64), (100, 64), (128, 8), (128, 1)])
def test_topk_is_the_order_of_rule_8(n, k):
    rng = np.random.default_rng(n)
    rows = np.where(rng.random((6, n)) < 0.6, rng.choice(SCORES, (6, n)), np.float32(rng.standard_normal((6, n))))
    rows[1] = np.nan
    rows[2] = np.where(np.arange(n) % 2, np.float32(-0.0), np.float32(0.0))
    m = machine(
        [Topk(d=2, a=1)],
        [spad(Format.FP32, (3, 2, n)), spad(Format.INT32, (3, 2, k), D_AT), spad(Format.FP32, (3, 2, k), E_AT)],
    )
    bits = rows.view(np.uint32) | np.where(np.isnan(rows), np.uint32(0x80012345), np.uint32(0))
    poke(m, Space.SPAD, 0, bits)
    assert m.run()
    indices = peek(m, Space.SPAD, D_AT, 6 * k, np.int32).reshape(6, k)
    values = peek(m, Space.SPAD, E_AT, 6 * k, np.uint32).reshape(6, k)
    for row, index, value in zip(rows, indices, values, strict=True):
        wanted = kept(row, k)
        assert list(index) == list(wanted)
        chosen = row[wanted]
        assert np.array_equal(value, np.where(np.isnan(chosen), np.uint32(0x7FC00000), chosen.view(np.uint32)))


def sorted_pairs(shape, keys, m, more=0):
    """Run a GROUP; give order [2, n], keys [m, 4] and their number, 77 where nothing was written."""
    n = math.prod(shape)
    constants = [
        spad(Format.INT32, shape), spad(Format.INT32, (2, 1, n + more), D_AT), spad(Format.INT32, (m, 1, 4), E_AT),
        dense(Space.CELL, Format.INT32, (1, 1, 1), 4 * 20),
    ]  # fmt: skip
    machine_ = machine([Group(d=2, a=1, b=4)], constants)
    poke(machine_, Space.SPAD, 0, np.array(keys, np.int32))
    poke(machine_, Space.SPAD, D_AT, np.full(2 * (n + more), 77, np.int32))
    poke(machine_, Space.SPAD, E_AT, np.full(4 * m, 77, np.int32))
    assert machine_.run()
    order = peek(machine_, Space.SPAD, D_AT, 2 * (n + more), np.int32).reshape(2, n + more)
    listed = peek(machine_, Space.SPAD, E_AT, 4 * m, np.int32).reshape(m, 4)
    return order, listed, machine_.cells(0)[20]


@pytest.mark.parametrize(("shape", "m"), [((1, 1, 1), 1), ((3, 2, 4), 8), ((16, 1, 8), 128), ((5, 1, 3), 2)])
def test_group_sorts_pairs_and_lists_keys(shape, m):
    rng = seeded(m)
    n = math.prod(shape)
    keys = np.array([rng.randrange(m) for _ in range(n)], np.int32)
    order, listed, count = sorted_pairs(shape, keys, m, more=2)
    wanted = np.argsort(keys, kind="stable")
    assert list(order[0, :n]) == list(wanted)
    assert list(order[1, :n]) == [number // shape[2] for number in wanted]
    assert (order[:, n:] == 77).all()
    distinct, first, counts = np.unique(keys[wanted], return_index=True, return_counts=True)
    assert count == len(distinct)
    assert np.array_equal(listed[:count, :3], np.stack([distinct, first, counts], 1))
    assert (listed[:count, 3] == 0).all()
    assert (listed[count:] == 77).all()


def test_empty_rows_are_left_alone():
    """No row: nothing is written, GROUP's count neither; k and extents do not matter then."""
    constants = [
        spad(Format.FP32, (1, 1, 4)), spad(Format.INT32, (1, 1, 4), 64), spad(Format.INT32, (2, 1, 4), D_AT),
        spad(Format.FP32, (1, 1, 4), E_AT), spad(Format.INT32, (1, 1, 4), E_AT), spad(Format.INT32, (1, 1, 1), B_AT),
    ]  # fmt: skip
    code = [Adv(d=1, kind=1, dim=1), Adv(d=2, kind=1, dim=0), Topk(d=3, a=1), Group(d=5, a=2, b=6)]
    m = machine(code[:3], constants)
    poke(m, Space.SPAD, D_AT, np.full(8, 77, np.int32))
    assert m.run()
    assert (peek(m, Space.SPAD, D_AT, 8, np.int32) == 77).all()
    m = machine([code[1], code[3]], constants)
    poke(m, Space.SPAD, B_AT, np.full(1, 77, np.int32))
    assert m.run()
    assert peek(m, Space.SPAD, B_AT, 1, np.int32)[0] == 77


F, I = Format.FP32, Format.INT32
ROWS, KEYS = spad(F, (1, 1, 80)), spad(I, (1, 1, 4))


@pytest.mark.parametrize(
    ("instruction", "a", "d", "e", "cause"),
    [
        (Topk(d=2, a=1), ROWS, spad(I, (1, 1, 65), D_AT), spad(F, (1, 1, 65), E_AT),
         "TOPK keeps 1..64 of 80 values, not k=65, the ext[2] of D"),
        (Topk(d=2, a=1), spad(F, (1, 1, 3)), spad(I, (1, 1, 4), D_AT), spad(F, (1, 1, 4), E_AT),
         "TOPK keeps 1..3 of 3 values, not k=4, the ext[2] of D"),
        (Topk(d=2, a=1), ROWS, spad(I, (1, 1, 0), D_AT), spad(F, (1, 1, 4), E_AT),
         "TOPK keeps 1..64 of 80 values, not k=0, the ext[2] of D"),
        (Topk(d=2, a=1), KEYS, spad(I, (1, 1, 2), D_AT), spad(F, (1, 1, 2), E_AT),
         "operand A of TOPK is INT32 in SPAD, which it does not take"),
        (Topk(d=2, a=1), ROWS, spad(I, (1, 1, 2), D_AT), dense(Space.ACC, F, (1, 1, 2)),
         "operand E of TOPK is FP32 in ACC, which it does not take"),
        (Group(d=2, a=1, b=4), KEYS, spad(I, (2, 1, 3), D_AT), spad(I, (9, 1, 4), E_AT),
         "operand D of GROUP has extents (2, 1, 3), too small for (2, 1, 4)"),
        (Group(d=2, a=1, b=4), KEYS, spad(I, (2, 1, 4), D_AT), spad(I, (9, 1, 3), E_AT),
         "operand E of GROUP has extents (9, 1, 3), too small for (1, 1, 4)"),
        (Group(d=2, a=1, b=4), KEYS, spad(I, (2, 1, 4), D_AT), spad(I, (5, 1, 4), E_AT),
         "the key of pair 2 is 5; it must be in 0..4, E has ext[0]=5"),
        (Group(d=2, a=1, b=4), spad(I, (1, 1, 4), 16), spad(I, (2, 1, 4), D_AT), spad(I, (9, 1, 4), E_AT),
         "the key of pair 1 is -1; it must be in 0..8, E has ext[0]=9"),
        (Group(d=2, a=1, b=4), spad(I, (1, 17, 241)), spad(I, (2, 1, 4097), D_AT), spad(I, (9, 1, 4), E_AT),
         "GROUP sorts up to 4096 pairs, not 4097, the elements of A"),
        (Group(d=2, a=1, b=4), KEYS, spad(I, (2, 1, 4), D_AT), spad(F, (9, 1, 4), E_AT),
         "operand E of GROUP is FP32 in SPAD, which it does not take"),
    ],
)  # fmt: skip
def test_traps(instruction, a, d, e, cause):
    m = machine([instruction], [a, d, e, spad(I, (1, 1, 1), B_AT)])
    poke(m, Space.SPAD, 0, np.array([0, 4, 5, 4, 0, -1, 0, 0], np.int32))
    with pytest.raises(ProgramError, match=rf"^slice 0, word 4 \(.*, test\.py:4\): {re.escape(cause)}\.$"):
        m.run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Topk(d=63, a=1), "TOPK: d and a must be descriptors 1..63, d at most 62: D[d+1] takes the values."),
        (lambda: Group(d=1, a=1, b=0), "GROUP: d, a and b must be descriptors 1..63, d at most 62: D[d+1] takes the "
                                       "keys."),
    ],
)  # fmt: skip
def test_missing_operands(make, message):
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        make()


def test_rows_of_a_group_are_gathered_and_scattered_through_its_order():
    """The use: rows by expert, read through the order and written back through it, list after list by ADV."""
    keys = np.array([2, 0, 2, 1, 0, 2], np.int32)
    rows = np.arange(3 * 4, dtype=np.float32)  # three rows of four, two experts each
    constants = [
        spad(I, (3, 1, 2)), spad(I, (2, 1, 6), D_AT), spad(I, (4, 1, 4), E_AT), spad(I, (1, 1, 1), B_AT),
        spad(I, (1, 1, 6), D_AT), spad(I, (1, 1, 6), D_AT + 24),  # the lists: pairs, rows
        spad(F, (2, 1, 4), 4096, via=6), spad(F, (2, 1, 4), 8192, via=5),
    ]  # fmt: skip
    again = [Vec(d=8, a=7), Adv(d=5, dim=2, imm=2), Adv(d=6, dim=2, imm=2)]
    m = machine([Group(d=2, a=1, b=4), *again, *again, *again], constants)
    poke(m, Space.SPAD, 0, keys)
    poke(m, Space.SPAD, 4096, rows)
    assert m.run()
    scattered = peek(m, Space.SPAD, 8192, 6 * 4, np.float32).reshape(6, 4)
    assert np.array_equal(scattered, rows.reshape(3, 4)[np.arange(6) // 2])

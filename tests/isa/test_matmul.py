"""MATMUL against exact rationals and a rounding written here."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from systolith.isa import Descriptor, Format, Loop, Matmul, Set, Space, Zero
from systolith.numerics.fp32 import round_fraction
from systolith.spec import ProgramError

from .helpers import dense, machine, peek, poke, seeded, spad

PAIRS = [
    (Format[a], Format[b])
    for a, b in (("E2M1", "E2M1"), ("E4M3", "E2M1"), ("INT8", "E2M1"), ("E4M3", "E4M3"), ("INT8", "INT8"))
]
A_SCALES, OUT = 8192, 0


def codes_of(rng, fmt, shape, extreme):
    top = 1 << fmt.bits
    nan = fmt.numeric.nan_codes
    codes = np.array([rng.randrange(top) for _ in range(math.prod(shape))], np.uint8).reshape(shape)
    if not extreme:
        for code in nan:
            codes[codes == code] = 1
    return codes


def packed(codes, fmt):
    flat = codes.reshape(-1)
    return (flat[0::2] | flat[1::2] << 4) if fmt is Format.E2M1 else flat


def expected(acc, a, sa, fa, b, sb, fb):
    """One accumulator over blocks of (codes, scale) of a and b in order."""
    for x, s, y, t in zip(a, sa, b, sb, strict=True):
        values = [(fa.numeric.values[p], fb.numeric.values[q]) for p, q in zip(x, y, strict=True)]
        bad = s == 255 or t == 255 or any((p is None and q != 0) or (q is None and p != 0) for p, q in values)
        if bad:
            block = math.nan
        else:
            exact = sum(Fraction(p or 0) * (q or 0) for p, q in values)
            exact *= Fraction(2) ** (fa.numeric.unit_exp + fb.numeric.unit_exp + int(s) + int(t) - 254)
            block = round_fraction(exact)
        with np.errstate(all="ignore"):
            acc = np.float32(acc) + np.float32(block)
    return acc


def bits(values):
    values = np.array(values, np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


@pytest.mark.parametrize(("fa", "fb"), PAIRS)
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("terms", [0, 1])
def test_by_columns(fa, fb, extreme, terms):
    rng = seeded(f"{fa}{fb}{extreme}{terms}")
    rows, K, N = 3, 64, 5
    blocks = K // 32
    a, b = codes_of(rng, fa, (rows, K), extreme), codes_of(rng, fb, (N, K << terms), extreme)
    low, high = (0, 256) if extreme else (120, 135)
    sa = np.array([rng.randrange(low, high) for _ in range(rows * blocks)], np.uint8).reshape(rows, blocks)
    sb = np.array([rng.randrange(low, high) for _ in range(N * blocks << terms)], np.uint8).reshape(N, -1)
    start = np.float32([rng.gauss(0, 1) for _ in range(rows * N)])
    m = machine(
        [Matmul(d=1, a=2, b=3, terms=terms)],
        [dense(Space.ACC, Format.FP32, (rows, 1, N)), spad(fa, (rows, 1, K), 0, A_SCALES, scale=1),
         dense(Space.SLOT, fb, (1, N, K << terms), 0, 4096, scale=1)],
    )  # fmt: skip
    poke(m, Space.SPAD, 0, packed(a, fa))
    poke(m, Space.SPAD, A_SCALES, sa)
    poke(m, Space.SLOT, 0, packed(b, fb))
    poke(m, Space.SLOT, 4096, sb)
    poke(m, Space.ACC, 0, start)
    assert m.run()
    found = peek(m, Space.ACC, 0, rows * N, np.uint32)
    a, b = np.repeat(a.reshape(rows, blocks, 32), 1 + terms, axis=1), b.reshape(N, -1, 32)
    sa = np.repeat(sa, 1 + terms, axis=1)
    wanted = [expected(start[r * N + n], a[r], sa[r], fa, b[n], sb[n], fb) for r in range(rows) for n in range(N)]
    assert np.array_equal(found, bits(wanted))


@pytest.mark.parametrize(("fa", "fb"), PAIRS)
def test_by_rows(fa, fb):
    rng = seeded(f"{fa}{fb}")
    e0, e1, K, N = 2, 2, 64, 6
    a, b = codes_of(rng, fa, (4, K), True), codes_of(rng, fb, (K, N), True)
    sa = np.array([rng.randrange(100, 150) for _ in range(8)], np.uint8).reshape(4, 2)
    m = machine(
        [Matmul(d=1, a=2, b=3, by_rows=1, zero=Zero.YES)],
        [dense(Space.ACC, Format.FP32, (e0, e1, N)), spad(fa, (e0, e1, K), 0, A_SCALES, scale=1),
         spad(fb, (K, 1, N), 16384)],
    )  # fmt: skip
    poke(m, Space.SPAD, 0, packed(a, fa))
    poke(m, Space.SPAD, A_SCALES, sa)
    poke(m, Space.SPAD, 16384, packed(b, fb))
    poke(m, Space.ACC, 0, np.float32([7] * 24))
    assert m.run()
    columns = b.T.reshape(N, 2, 32)
    wanted = [
        expected(0.0, a[r].reshape(2, 32), sa[r], fa, columns[n], [127, 127], fb) for r in range(4) for n in range(N)
    ]
    assert np.array_equal(peek(m, Space.ACC, 0, 24, np.uint32), bits(wanted))


def small(zero, before=(), after=()):
    """1 x 32 ones times 32 x 1 ones, INT8 at scale 2^0 in units of 2^-6: 32 * 64 * 64 / 4096 = 32."""
    m = machine(
        [*before, Matmul(d=1, a=2, b=3, zero=zero), *after],
        [dense(Space.ACC, Format.FP32, (1, 1, 1)), spad(Format.INT8, (1, 1, 32), 0, A_SCALES, scale=1),
         dense(Space.SLOT, Format.INT8, (1, 1, 32), 0, 4096, scale=1)],
    )  # fmt: skip
    poke(m, Space.SPAD, 0, b"\x40" * 32)
    poke(m, Space.SPAD, A_SCALES, b"\x7f")
    poke(m, Space.SLOT, 0, b"\x40" * 32)
    poke(m, Space.SLOT, 4096, b"\x7f")
    poke(m, Space.ACC, 0, np.float32([1000]))
    assert m.run()
    return peek(m, Space.ACC, 0, 1, np.float32)[0]


def test_zero():
    assert small(Zero.NO) == 1032
    assert small(Zero.YES) == 32
    assert small(Zero.FIRST) == 32  # outside every loop
    assert small(Zero.FIRST, [Loop(count=5, len=1)]) == 160
    assert small(Zero.NO, [Loop(count=5, len=1)]) == 1160
    # first iteration of the innermost loop, in each iteration of the outer one
    assert small(Zero.FIRST, [Loop(count=3, len=2), Loop(count=2, len=1)]) == 64
    assert small(Zero.FIRST, [Loop(count=2, len=3), Loop(count=2, len=1), Set(r=1)]) == 64


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({3: dense(Space.SLOT, Format.E4M3, (1, 4, 32), 0, 4096, scale=1)},
         "INT8 x E4M3 cannot be multiplied; the pairs are E2M1xE2M1, E4M3xE2M1, INT8xE2M1, E4M3xE4M3, INT8xINT8"),
        ({1: spad(Format.FP32, (1, 1, 4))}, "MATMUL takes A from SPAD, B from SLOT or SPAD and adds "
        "to ACC, not SPAD, SLOT and SPAD"),
        ({1: dense(Space.ACC, Format.INT32, (1, 1, 4))}, "MATMUL adds to FP32, not INT32"),
        ({1: dense(Space.ACC, Format.FP32, (1, 1, 3))}, "D has extents (1, 1, 3), too small for "
        "rows (1, 1) and 4 columns"),
        ({2: spad(Format.INT8, (1, 1, 32))}, "A has scales, weights by columns have scales, weights by rows have none"),
        ({3: dense(Space.SLOT, Format.INT8, (1, 4, 32))}, "A has scales, weights by columns have "
        "scales, weights by rows have none"),
        ({3: dense(Space.SLOT, Format.INT8, (1, 4, 64), 0, 4096, scale=1)},
         "K=32 of A must be a multiple of 32, and B, of extents (1, 4, 64), must have K=32 as ext[2]"),
    ],
)  # fmt: skip
def test_traps_of_matmul(change, cause):
    constants = {
        1: dense(Space.ACC, Format.FP32, (1, 1, 4)), 2: spad(Format.INT8, (1, 1, 32), 0, A_SCALES, scale=1),
        3: dense(Space.SLOT, Format.INT8, (1, 4, 32), 0, 4096, scale=1),
    }  # fmt: skip
    m = machine([Matmul(d=1, a=2, b=3)], (constants | change).values())
    with pytest.raises(
        ProgramError, match=rf"^slice 0, word 3 \(MATMUL D1, D2, D3, test\.py:3\): {re.escape(cause)}\.$"
    ):
        m.run()


def test_an_empty_operand_changes_nothing():
    constants = [
        dense(Space.ACC, Format.FP32, (1, 1, 4)), spad(Format.INT8, (1, 1, 32), 0, A_SCALES, scale=1),
        Descriptor(space=Space.SLOT, format=Format.INT8, scale=1, ext=(1, 0, 32), stride=(0, 0, 1)),
    ]  # fmt: skip
    m = machine([Matmul(d=1, a=2, b=3, zero=Zero.YES)], constants)
    poke(m, Space.ACC, 0, np.float32([5] * 4))
    assert m.run()
    assert list(peek(m, Space.ACC, 0, 4, np.float32)) == [5] * 4

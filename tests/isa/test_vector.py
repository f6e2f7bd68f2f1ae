"""VEC and PICK against direct computations in NumPy and exact integers."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from systolith.isa import Copy, Descriptor, Format, Func, Op1, Op2, Pick, Queue, Red, Set, Space, Vec
from systolith.numerics import choose, philox
from systolith.numerics.blocks import dequantise, quantise_row
from systolith.spec import ProgramError

from .helpers import dense, machine, peek, poke, seeded, spad

MASKED, NAN_FX = -(2**31), 2**31 - 1
SPECIALS = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 3.4e38, -3.4e38, 1.0, -1.5]
A_AT, B_AT, C_AT, D_AT, E_AT = 0, 4096, 8192, 12288, 16384


def f32(rng, n):
    values = [
        rng.choice(SPECIALS) if rng.random() < 0.3 else rng.gauss(0, 1) * 2.0 ** rng.randint(-20, 20) for _ in range(n)
    ]
    return np.array(values, np.float32)


def i32(rng, n):
    values = [
        rng.choice([MASKED, NAN_FX, 0, 1, -1]) if rng.random() < 0.3 else rng.randint(-(2**31), 2**31 - 1)
        for _ in range(n)
    ]
    return np.array(values, np.int32)


def canonical(values):
    values = np.array(values, np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


def tree(values):
    level = list(values)
    with np.errstate(all="ignore"):
        while len(level) > 1:
            rest = level[-1:] if len(level) % 2 else []
            level = [np.float32(x + y) for x, y in zip(level[0::2], level[1::2], strict=False)] + rest
    return level[0]


def single(vec, inputs, out, e_format=None, shape=(2, 1, 5), chip=None):
    """Run one VEC: a at D1, b at D2, c at D3, c+1 at D4, d at D5, e at D6; give d and e."""
    places = (A_AT, B_AT, C_AT, C_AT + 2048)
    constants = []
    for place, values in zip(places, (*inputs, None, None, None, None)[:4], strict=True):
        fmt = Format.INT32 if values is not None and values.dtype == np.int32 else Format.FP32
        constants.append(spad(fmt, shape, place))
    constants.append(spad(out or Format.FP32, shape, D_AT))
    constants.append(spad(e_format or Format.FP32, (*shape[:2], 1), E_AT))
    m = machine([vec], constants)
    for place, values in zip(places, inputs, strict=False):
        if values is not None:
            poke(m, Space.SPAD, place, values)
    assert m.run()
    n = math.prod(shape)
    return peek(m, Space.SPAD, D_AT, n, np.uint32), peek(m, Space.SPAD, E_AT, shape[0] * shape[1], np.uint32)


def larger(x, y):
    if math.isnan(x) or math.isnan(y):
        return np.float32(math.nan)
    if x == y:
        return x if not np.signbit(x) else y
    return max(x, y)


FLOAT = {
    "ADD": lambda x, y: np.float32(x + y),
    "SUB": lambda x, y: np.float32(x - y),
    "MUL": lambda x, y: np.float32(x * y),
    "MAX": larger,
    "MIN": lambda x, y: -larger(-x, -y),
}
INTEGER = {
    "IADD": lambda x, y: (x + y + 2**31) % 2**32 - 2**31,
    "ISUB": lambda x, y: (x - y + 2**31) % 2**32 - 2**31,
    "IMAX": max,
    "IMIN": min,
    "IEQ": lambda x, y: int(x == y),
    "ILT": lambda x, y: int(x < y),
}


@pytest.mark.parametrize("name", FLOAT)
@pytest.mark.parametrize("stage", [1, 2])
def test_float_operations(name, stage):
    rng = seeded(name)
    a, b = f32(rng, 20), f32(rng, 20)
    with np.errstate(all="ignore"):
        wanted = canonical([FLOAT[name](x, y) for x, y in zip(a, b, strict=True)])
    if stage == 1:
        d, _ = single(Vec(d=5, a=1, b=2, op1=Op1[name]), (a, b), Format.FP32, shape=(2, 2, 5))
    else:
        d, _ = single(Vec(d=5, a=1, c=3, op2=Op2[name]), (a, None, b), Format.FP32, shape=(2, 2, 5))
    assert np.array_equal(d, wanted)


@pytest.mark.parametrize("name", INTEGER)
def test_integer_operations(name):
    rng = seeded(name)
    a, b = i32(rng, 20), i32(rng, 20)
    wanted = [INTEGER[name](int(x), int(y)) for x, y in zip(a, b, strict=True)]
    d, _ = single(Vec(d=5, a=1, b=2, op1=Op1[name]), (a, b), Format.INT32, shape=(2, 2, 5))
    assert list(d.view(np.int32)) == wanted
    if name in Op2.__members__:
        d, _ = single(Vec(d=5, a=1, c=3, op2=Op2[name]), (a, None, b), Format.INT32, shape=(2, 2, 5))
        assert list(d.view(np.int32)) == wanted


def test_two_operations_and_a_function_in_turn():
    rng = seeded(1)
    a, b, c = f32(rng, 10), f32(rng, 10), f32(rng, 10)
    d, _ = single(Vec(d=5, a=1, b=2, c=3, op1=Op1.MUL, op2=Op2.ADD, func=Func.RCP), (a, b, c), Format.FP32)
    with np.errstate(all="ignore"):
        wanted = canonical((1.0 / ((a * b) + c).astype(np.float64)).astype(np.float32))
    assert np.array_equal(d, wanted)


def test_rsqrt_and_fix():
    rng = seeded(2)
    a = f32(rng, 10)
    d, _ = single(Vec(d=5, a=1, func=Func.RSQRT), (a,), Format.FP32)
    with np.errstate(all="ignore"):
        wanted = canonical((1 / np.sqrt(a.astype(np.float64))).astype(np.float32))
    assert np.array_equal(d, wanted)
    d, _ = single(Vec(d=5, a=1, func=Func.FIX), (a,), Format.INT32)
    for x, found in zip(a, d.view(np.int32), strict=True):
        if math.isnan(x):
            assert found == NAN_FX
        else:
            assert found == max(
                -(2**31) + 1, min(2**31 - 2, round(float(x) * 65536) if math.isfinite(x) else math.copysign(1e30, x))
            )


def exp2(F, M):
    if F == NAN_FX:
        return math.nan
    if F == MASKED:
        return 0.0
    f = F - M * 65536
    # the table of rule 5 is within 2^-24 of 2^f; compare with a tolerance here, bits are numerics' own tests
    return math.ldexp(2.0 ** ((f & 0xFFFF) / 65536), f >> 16) if f >> 16 < 200 else math.inf


def test_exp2_with_masks_and_mulm():
    F = np.array([MASKED, NAN_FX, 0, 65536, -70000, 1234567, MASKED, 5, -(2**30), 2**30], np.int32)
    M = np.full(10, 3, np.int32)
    scale = np.array([math.nan, 2, 2, 2, 2, 2, 2, math.nan, 2, 2], np.float32)
    d, e = single(
        Vec(d=5, a=1, b=2, c=3, op1=Op1.EXP2, op2=Op2.MULM, red=Red.SUM), (F, M, scale), Format.FP32, Format.FP32
    )
    p = np.array([exp2(int(f), 3) for f in F])
    with np.errstate(all="ignore"):
        wanted = np.float32(p * scale)
    wanted[[0, 6]] = 0.0  # masked, whatever meets it
    assert np.allclose(d.view(np.float32), wanted, rtol=1e-6, equal_nan=True)
    assert d[0] == d[6] == 0
    sums = e.view(np.float32)
    assert math.isnan(sums[0])
    assert np.isinf(sums[1])


def test_sum_is_the_tree_of_the_values_after_op1():
    rng = seeded(4)
    a, b = np.float32([rng.gauss(0, 1) for _ in range(35)]), np.float32([rng.gauss(0, 1) for _ in range(35)])
    _, e = single(
        Vec(d=5, a=1, b=2, c=3, op1=Op1.MUL, op2=Op2.ADD, red=Red.SUM), (a, b, b), Format.FP32, Format.FP32, (5, 1, 7)
    )
    assert list(e.view(np.float32)) == [tree(row) for row in (a * b).reshape(5, 7)]


def test_sum_of_squares_is_of_the_value_read():
    a = np.float32([seeded(5).gauss(0, 1) for _ in range(20)])
    d, e = single(Vec(d=5, a=1, b=2, op1=Op1.ADD, red=Red.SUMSQ), (a, a), Format.FP32, Format.FP32, (2, 2, 5))
    assert list(e.view(np.float32)) == [tree(row) for row in (a * a).reshape(4, 5)]
    assert np.array_equal(d.view(np.float32), a + a)


def test_reductions_of_integers():
    rows = np.array(
        [[MASKED] * 4, [5, MASKED, -70000, 65537], [-1, -65536, -65537, MASKED], [NAN_FX, 0, 1, 2]], np.int32
    )
    for red, wanted in (
        (Red.CEILMAX, [MASKED, 2, 0, 32768]),
        (Red.IMAX, [MASKED, 65537, -1, NAN_FX]),
        (Red.ISUM, [(int(sum(map(int, r))) + 2**31) % 2**32 - 2**31 for r in rows]),
    ):
        d, e = single(Vec(d=5, a=1, red=red), (rows.reshape(-1),), Format.INT32, Format.INT32, (4, 1, 4))
        assert list(e.view(np.int32)) == wanted
        assert np.array_equal(d.view(np.int32), rows.reshape(-1))


def test_fmax_of_a_row():
    a = np.float32([[-0.0, 0.0, -1], [math.nan, 1, 2], [-math.inf, -3, -2]]).reshape(-1)
    _, e = single(Vec(d=5, a=1, red=Red.FMAX), (a,), Format.FP32, Format.FP32, (3, 1, 3))
    assert list(e) == [0, 0x7FC00000, 0xC0000000]


def test_shiftadd_merges_with_exponents():
    rng = seeded(6)
    a, b = f32(rng, 20), f32(rng, 20)
    ea, eb = (np.array([rng.choice([MASKED, 0, 3, -40, 90]) for _ in range(20)], np.int32) for _ in range(2))
    d, _ = single(Vec(d=5, a=1, b=2, c=3, op1=Op1.SHIFTADD), (a, b, ea, eb), Format.FP32, shape=(4, 1, 5))
    for x, m, y, k, found in zip(a, ea, b, eb, d, strict=True):
        x, y, m, k = float(x), float(y), int(m), int(k)
        if m == MASKED or k == MASKED:
            assert found == canonical([y if m == MASKED else x])[0]
        elif math.isfinite(x) and math.isfinite(y) and (x or y):
            exact = Fraction(x) * Fraction(2) ** (m - max(m, k)) + Fraction(y) * Fraction(2) ** (k - max(m, k))
            near = [np.float32(np.nextafter(np.float32(float(exact)), s)) for s in (-np.inf, np.inf)]
            mine = np.uint32(found).view(np.float32)
            if math.isfinite(mine) and all(map(math.isfinite, near)):
                assert all(abs(Fraction(float(mine)) - exact) <= abs(Fraction(float(z)) - exact) for z in near)
        else:
            with np.errstate(all="ignore"):
                assert found == canonical([np.float32(x) + np.float32(y)])[0]


def test_weight_is_an_unsigned_integer():
    F = np.array([65536, 65536 - 32768, MASKED, NAN_FX, -(2**30)], np.int32)
    d, _ = single(Vec(d=5, a=1, b=2, op1=Op1.WEIGHT), (F, np.full(5, 1, np.int32)), Format.INT32, shape=(1, 1, 5))
    assert d[0] == 2**31
    assert abs(int(d[1]) - 2**31 / math.sqrt(2)) < 256
    assert list(d[2:]) == [0, 0, 0]


def visible(j, row, base, group, window):
    hi = base + (row // group if group else 0)
    return j < hi and (window == 0 or j >= hi - window)


@pytest.mark.parametrize(
    ("start", "length", "group", "window"), [(0, 3, 2, 0), (4, 6, 1, 3), (2, 4, 0, 2), (100, 6, 3, 0)]
)
def test_mask_hides_positions(start, length, group, window):
    shape = (4, 2, 9)
    a = np.float32(np.arange(math.prod(shape)) / 16)
    vec = Vec(d=5, a=1, c=7, func=Func.FIX, mask=1, rj=8, rw=9 if window else 0, group=group, red=Red.CEILMAX)
    constants = [spad(Format.FP32, shape)] * 4 + [spad(Format.INT32, shape, D_AT), spad(Format.INT32, (4, 2, 1), E_AT)]
    m = machine([Set(r=7, imm=length), Set(r=8, imm=start), Set(r=9, imm=window), vec], constants)
    poke(m, Space.SPAD, 0, a)
    assert m.run()
    F = peek(m, Space.SPAD, D_AT, a.size, np.int32).reshape(8, 9)
    top = peek(m, Space.SPAD, E_AT, 8, np.int32)
    for row in range(8):
        wanted = [
            round(float(a[9 * row + i]) * 65536) if visible(start + i, row, length, group, window) else MASKED
            for i in range(9)
        ]
        assert list(F[row]) == wanted
        assert top[row] == (MASKED if max(wanted) == MASKED else -(-max(wanted) // 65536))


@pytest.mark.parametrize("fmt", [Format.E2M1, Format.E4M3, Format.INT8])
@pytest.mark.parametrize("n", [32, 40, 96])
def test_quantising_write_fills_the_last_block(fmt, n):
    rng = seeded(n)
    a = f32(rng, 2 * n)
    pad = -(-n // 32) * 32
    out = spad(fmt, (2, 1, pad), D_AT, E_AT, scale=1)
    m = machine([Vec(d=2, a=1)], [spad(Format.FP32, (2, 1, n)), out])
    poke(m, Space.SPAD, 0, a)
    poke(m, Space.SPAD, D_AT, b"\xff" * 512)
    assert m.run()
    codes = m.slices[0].view(2)
    for row in range(2):
        wanted = quantise_row([float(x) for x in a[row * n : (row + 1) * n]], fmt.numeric)
        assert codes.codes(row, 0, pad) == list(wanted.codes) + [0] * (pad - n)
        assert codes.scales(row, 0, pad // 32) == list(wanted.scales)


@pytest.mark.parametrize("fmt", [Format.E2M1, Format.E4M3, Format.INT8])
def test_rowscale_has_one_scale_for_the_row(fmt):
    rng = seeded(9)
    n = 70
    a = np.float32([rng.gauss(0, 1) * 100 for _ in range(2 * n)])
    m = machine(
        [Vec(d=2, a=1, red=Red.ROWSCALE)],
        [spad(Format.FP32, (2, 1, n)), spad(fmt, (2, 1, n), D_AT), spad(Format.E8M0, (2, 1, 1), E_AT)],
    )
    poke(m, Space.SPAD, 0, a)
    assert m.run()
    for row in range(2):
        part = a[row * n : (row + 1) * n]
        e = math.frexp(float(np.abs(part).max()))[1] - 1 - fmt.numeric.emax
        assert peek(m, Space.SPAD, E_AT + row, 1)[0] == e + 127
        for x, code in zip(part, m.slices[0].view(2).codes(row, 0, n), strict=True):
            units = fmt.numeric.values[code]
            best = min(
                abs(float(x) - u * 2.0 ** (fmt.numeric.unit_exp + e))
                for u in fmt.numeric.values
                if u is not None and u != -128
            )
            assert abs(float(x) - units * 2.0 ** (fmt.numeric.unit_exp + e)) == best


@pytest.mark.parametrize("fmt", [Format.E2M1, Format.E4M3, Format.INT8])
@pytest.mark.parametrize("scale", [0, 1])
def test_quantised_operands_are_dequantised(fmt, scale):
    """Every code, -0, NaN and -128 included, under scales 0, 1, 127, 254 and 255."""
    codes = list(range(1 << fmt.bits)) * (2 if fmt is Format.E2M1 else 1)
    n = len(codes)
    scales = [0, 255, 127, 254, 1, 100, 130, 140][: n // 32]
    m = machine([Vec(d=2, a=1)], [spad(fmt, (1, 1, n), 0, 2048, scale=scale), spad(Format.FP32, (1, 1, n), D_AT)])
    packed = bytes(codes) if fmt.bits == 8 else bytes(x | y << 4 for x, y in zip(codes[0::2], codes[1::2], strict=True))
    poke(m, Space.SPAD, 0, packed)
    poke(m, Space.SPAD, 2048, bytes(scales))
    assert m.run()
    wanted = canonical([dequantise(c, fmt.numeric, scales[k // 32] if scale else 127) for k, c in enumerate(codes)])
    assert np.array_equal(peek(m, Space.SPAD, D_AT, n, np.uint32), wanted)
    if fmt is not Format.INT8:
        assert peek(m, Space.SPAD, D_AT, n, np.uint32)[1 << fmt.bits - 1] == 0  # -0 reads as +0
    elif not scale:
        assert peek(m, Space.SPAD, D_AT, n, np.float32)[128] == -2.0  # -128 is legal


def test_e8m0_reads_as_a_power_of_two():
    m = machine([Vec(d=2, a=1)], [spad(Format.E8M0, (1, 1, 256)), spad(Format.FP32, (1, 1, 256), D_AT)])
    poke(m, Space.SPAD, 0, bytes(range(256)))
    assert m.run()
    d = peek(m, Space.SPAD, D_AT, 256, np.float32)
    assert [float(x) for x in d[:255]] == [2.0 ** (k - 127) for k in range(255)]
    assert peek(m, Space.SPAD, D_AT, 256, np.uint32)[255] == 0x7FC00000


def test_strides_of_zero_broadcast():
    a = np.float32(np.arange(24))
    row = Descriptor(space=Space.SPAD, format=Format.FP32, base=B_AT, ext=(1, 1, 4), stride=(0, 0, 1))
    column = Descriptor(space=Space.CELL, format=Format.FP32, base=4 * 10, ext=(2, 1, 1), stride=(1, 0, 0))
    cells = dense(Space.CELL, Format.FP32, (1, 1, 2), base=40)
    out = spad(Format.FP32, (2, 3, 4), D_AT)
    m = machine(
        [Copy(on=Queue.L, d=4, a=5), Vec(d=6, a=1, b=2, c=3, op1=Op1.MUL, op2=Op2.ADD)],
        [spad(Format.FP32, (2, 3, 4)), row, column, cells, spad(Format.FP32, (1, 1, 2), C_AT), out],
    )
    poke(m, Space.SPAD, 0, a)
    poke(m, Space.SPAD, B_AT, np.float32([1, 2, 3, 4]))
    poke(m, Space.SPAD, C_AT, np.float32([100, 200]))
    assert m.run()
    wanted = a.reshape(2, 3, 4) * np.float32([1, 2, 3, 4]) + np.float32([100, 200]).reshape(2, 1, 1)
    assert np.array_equal(peek(m, Space.SPAD, D_AT, 24, np.float32), wanted.reshape(-1))


def test_results_may_replace_an_operand():
    a, c = np.float32([1, 2, 3, 4]), np.float32([10, 20, 30, 40])
    m = machine(
        [Vec(d=2, a=1, b=1, c=2, op1=Op1.MUL, op2=Op2.ADD)],
        [spad(Format.FP32, (1, 1, 4)), spad(Format.FP32, (1, 1, 4), C_AT)],
    )
    poke(m, Space.SPAD, 0, a)
    poke(m, Space.SPAD, C_AT, c)
    assert m.run()
    assert list(peek(m, Space.SPAD, C_AT, 4, np.float32)) == list(a * a + c)


def test_the_accumulator_is_read_and_an_empty_extent_writes_nothing():
    acc = dense(Space.ACC, Format.FP32, (1, 1, 3))
    m = machine([Vec(d=2, a=1), Vec(d=2, a=3)], [acc, spad(Format.FP32, (1, 1, 3)), acc.with_ext(0, 0)])
    poke(m, Space.ACC, 0, np.float32([1, 2, 3]))
    assert m.run()
    assert list(peek(m, Space.SPAD, 0, 3, np.float32)) == [1, 2, 3]


I4, F4 = spad(Format.INT32, (1, 1, 4)), spad(Format.FP32, (1, 1, 4))


@pytest.mark.parametrize(
    ("vec", "a", "d", "e", "cause"),
    [
        (Vec(d=2, a=1, b=1, op1=Op1.ADD), I4, F4, F4, "op1=add takes FP32 values, not INT32"),
        (Vec(d=2, a=1, b=1, op1=Op1.IADD), F4, F4, F4, "op1=iadd takes INT32 values, not FP32"),
        (Vec(d=2, a=1, func=Func.FIX), I4, I4, F4, "func=fix takes FP32 values, not INT32"),
        (Vec(d=2, a=1, red=Red.SUM), I4, I4, F4, "red=sum takes FP32 values, not INT32"),
        (Vec(d=2, a=1), I4, F4, F4, "a result in FP32 takes FP32 values, not INT32"),
        (Vec(d=2, a=1), F4, spad(Format.INT8, (1, 1, 4)), F4, "VEC writes FP32, INT32, or elements "
        "with scale=1, not INT8 with scale=0"),
        (Vec(d=2, a=1), F4, dense(Space.ACC, Format.FP32, (1, 1, 4)), F4, "operand D of VEC must be "
        "in SPAD, CELL, not in ACC"),
        (Vec(d=2, a=1), dense(Space.DRAM, Format.FP32, (1, 1, 4)), F4, F4, "operand A of VEC must "
        "be in SPAD, ACC, CELL, not in DRAM"),
        (Vec(d=2, a=1), dense(Space.ACC, Format.INT8, (1, 1, 4)), F4, F4, "operand A of VEC in INT8 must be in "
        "SPAD, not in ACC"),
        (Vec(d=2, a=1, red=Red.SUM), F4, F4, spad(Format.INT8, (1, 1, 32), scale=1), "a reduction is written in FP32 "
        "or INT32, not in INT8"),
        (
            Vec(d=2, a=1, red=Red.ROWSCALE), F4, spad(Format.INT8, (1, 1, 4)), F4,
            "red=rowscale writes E2M1, E4M3 or INT8 with scale=0 and an E8M0 scale, not INT8 with scale=0 and FP32",
        ),
    ],
)  # fmt: skip
def test_traps_of_vec(vec, a, d, e, cause):
    m = machine([vec], [a, d, e])
    with pytest.raises(ProgramError, match=rf"^slice 0, word 3 \(VEC .*, test\.py:3\): {re.escape(cause)}\.$"):
        m.run()


# --- PICK ---


def pick(logits, weights, k=0, p=1 << 32, seed=0, position=0):
    n = len(logits)
    constants = [
        spad(Format.FP32, (1, 1, n)), spad(Format.INT32, (1, 1, n), B_AT), spad(Format.INT32, (1, 1, 5), C_AT),
        dense(Space.SPAD, Format.INT32, (1, 1, 1), D_AT), dense(Space.CELL, Format.INT32, (1, 1, 1), 4 * 20),
    ]  # fmt: skip
    m = machine([Pick(d=5, a=1, b=2, c=3)], constants)
    poke(m, Space.SPAD, 0, np.float32(logits))
    poke(m, Space.SPAD, B_AT, np.array(weights, np.uint32))
    poke(m, Space.SPAD, C_AT, np.array([k, p & 0xFFFFFFFF, p >> 32, seed & 0xFFFFFFFF, seed >> 32], np.uint32))
    poke(m, Space.SPAD, D_AT, np.uint32([position]))
    assert m.run()
    return m.cells(0)[20]


def test_pick_is_the_sampling_of_the_contract():
    rng = seeded(10)
    for _ in range(60):
        logits = [
            rng.choice([math.nan, -math.inf, 1.0, -0.0, 0.0]) if rng.random() < 0.2 else rng.gauss(0, 3)
            for _ in range(50)
        ]
        logits = [float(np.float32(x)) for x in logits]
        k, p, seed, position = (
            rng.choice([0, 1, 5, 50, 70]),
            rng.choice([1 << 32, 0, rng.getrandbits(32)]),
            rng.getrandbits(64),
            rng.getrandbits(16),
        )
        scale = float(np.float32(1.4426950408889634))
        F = [choose.fix(choose.mul(x, scale)) for x in logits]
        weights = [choose.weight(f, choose.sample_max(F)) for f in F]
        wanted = choose.sample(logits, scale, min(k, 50), p, philox.sample_word(seed, position))
        assert pick(logits, weights, k, p, seed, position) == wanted


def test_pick_without_weights_is_the_argmax():
    assert pick([1.0, 3.0, math.nan, 3.0], [0, 0, 0, 0]) == 1
    assert pick([math.nan, math.nan], [0, 0]) == 0
    assert pick([1.0, 3.0, 2.0], [5, 1, 9], k=1) == 1


def test_nan_is_left_out_of_the_maximum_for_sampling():
    """The sequence that the decision page gives: iadd 1 turns NaN into MASKED, imax, isub 1, ceilmax."""
    F = np.array([NAN_FX, 70000, MASKED + 1, -5], np.int32)
    one = Descriptor(space=Space.SPAD, format=Format.INT32, base=C_AT, ext=(1, 1, 1))
    row, out = spad(Format.INT32, (1, 1, 4)), spad(Format.INT32, (1, 1, 1), D_AT)
    code = [Vec(d=0, a=2, b=3, op1=Op1.IADD, red=Red.IMAX), Vec(d=4, a=1, b=3, op1=Op1.ISUB, red=Red.CEILMAX)]
    m = machine(code, [spad(Format.INT32, (1, 1, 1), E_AT), row, one, spad(Format.INT32, (1, 1, 1), D_AT + 8), out])
    poke(m, Space.SPAD, 0, F)
    poke(m, Space.SPAD, C_AT, np.int32([1]))
    assert m.run()
    assert peek(m, Space.SPAD, D_AT, 1, np.int32)[0] == choose.sample_max([int(f) for f in F]) == 2

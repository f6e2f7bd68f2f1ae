"""Single values: strict FP32, and the simulator's functions against `numerics`, which are written apart."""

import random

import numba
import numpy as np
import pytest

from systolith.numerics import blocks, choose, formats, fp32, functions, philox
from systolith.sim import _functions as f
from systolith.sim._jit import F32, kernel
from systolith.sim._pick import share, share_up

TABLE = functions.exp2_table().astype(np.float64)
SPECIAL = (
    0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x403A18E3,
    0x3F800000, 0x3F7FFFFF, 0x7E800001, 0x7F000000,
)  # fmt: skip


def bits(x):
    return fp32.to_bits(float(x))


def values(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        yield fp32.from_bits(rng.choice(SPECIAL) if rng.random() < 0.2 else rng.getrandbits(32))


def test_multiply_and_add_are_not_contracted():
    """LLVM may not make an FMA of a * b + c: a million triples equal NumPy's two roundings."""

    @kernel(f"void({F32}, {F32}, {F32}, {F32})")
    def multiply_add(a, b, c, out):
        for i in range(len(a)):
            out[i] = a[i] * b[i] + c[i]

    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(1_000_000).astype(np.float32) for _ in range(2))
    c = (-a * b * (1 + rng.integers(-3, 4, 1_000_000) * np.float32(2.0**-23))).astype(np.float32)
    out = np.empty_like(a)
    multiply_add(a, b, c, out)
    fused = (a.astype(np.float64) * b + c).astype(np.float32)
    assert np.array_equal(out.view(np.uint32), (a * b + c).view(np.uint32))
    assert not np.array_equal(out, fused), "the triples cannot tell"


def test_kernels_are_strict():
    flags = f.rcp.targetoptions if isinstance(f.rcp, numba.core.dispatcher.Dispatcher) else {}
    assert not flags.get("fastmath")


def test_rcp_rsqrt_and_fix():
    for x in values(20_000, 1):
        X = np.float32(x)
        assert bits(f.rcp(X)) == bits(functions.rcp(x)), x
        assert bits(f.rsqrt(X)) == bits(functions.rsqrt(x)), x
        assert f.fix(X) == functions.fix(x), x


def test_rsqrt_of_the_hard_input_in_every_even_binade():
    for exponent in range(1, 255):
        x = fp32.from_bits(exponent << 23 | 0x3A18E3)
        assert bits(f.rsqrt(np.float32(x))) == bits(functions.rsqrt(x))


@pytest.mark.deep
def test_rcp_and_rsqrt_of_every_mantissa():
    rng = random.Random(5)
    for mantissa in range(1 << 23):
        for exponent in (rng.randrange(0, 255), 127, 128):
            x = fp32.from_bits(exponent << 23 | mantissa)
            assert bits(f.rcp(np.float32(x))) == bits(functions.rcp(x)), x
            assert bits(f.rsqrt(np.float32(x))) == bits(functions.rsqrt(x)), x


def test_exp2fx_and_weight():
    rng = random.Random(2)
    corners = (-(2**31), 2**31 - 1, 0, 1, -1, 65535, 65536, -149 * 65536, -150 * 65536, 128 * 65536)
    for i in range(20_000):
        F = (
            rng.choice(corners)
            if i % 5 == 0
            else rng.randint(-(2**24), 2**23)
            if i % 2
            else rng.randint(-(2**31), 2**31 - 1)
        )
        M = rng.choice((0, rng.randint(-200, 200), rng.randint(-(2**31), 2**31 - 1)))
        assert bits(f.exp2fx(F, M, TABLE)) == bits(functions.exp2fx(F, M)), (F, M)
        assert f.weight(F, M, TABLE) == choose.weight(F, M), (F, M)


def test_every_fraction_of_exp2():
    for F in range(65536):
        assert bits(f.exp2fx(F - (130 << 16), 0, TABLE)) == bits(functions.exp2fx(F - (130 << 16)))


def test_shift_add():
    rng = random.Random(3)
    sides = list(values(20_000, 4))
    for a, b in zip(sides[::2], sides[1::2], strict=True):
        ea = rng.choice((-(2**31), rng.randint(-300, 300), rng.randint(-3000, 3000)))
        eb = rng.choice((-(2**31), ea + rng.randint(-60, 60) if ea > -(2**30) else 0, rng.randint(-3000, 3000)))
        expected = fp32.shift_add(a, ea, b, eb)[0]
        assert bits(f.shift_add(np.float32(a), ea, np.float32(b), eb)) == bits(expected), (a, ea, b, eb)


@pytest.mark.parametrize(("number", "form"), list(enumerate((formats.E2M1, formats.E4M3, formats.INT8))))
def test_scale_and_codes(number, form):
    rng = random.Random(number)
    for x in values(8_000, 6):
        if not np.isfinite(x) or x == 0:
            continue
        others = [fp32.round_f32(x / d) for d in (1, rng.uniform(1, 2), rng.uniform(1, 300), -rng.uniform(1, 4))]
        scale, codes = blocks.quantise_block((x, *others), form)
        e = f.scale_exponent(np.int32(bits(abs(x))), form.emax)
        assert e + 127 == scale
        assert tuple(f.encode(np.float32(y), 2.0**-e, number) for y in (x, *others)) == codes


def test_philox_and_shares():
    rng = random.Random(7)
    for _ in range(2_000):
        seed, position = rng.getrandbits(64), rng.getrandbits(32)
        assert f.philox_word(seed & 0xFFFFFFFF, seed >> 32, position) == philox.sample_word(seed, position)
        part, total = rng.choice((rng.getrandbits(32), 1 << 32, 0)), rng.getrandbits(rng.choice((20, 40, 55)))
        assert share(part, total) == part * total >> 32
        assert share_up(part, total) == -(-part * total >> 32)

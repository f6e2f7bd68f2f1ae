"""The fuzz finds nothing in the two executors, and finds what is planted in either."""

import importlib
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

import systolith.isa.choice
import systolith.isa.matrix
import systolith.isa.vector
import systolith.sim
from systolith import spec
from systolith.numerics import choose
from systolith.numerics.fp32 import from_bits, to_bits
from systolith.sim.fuzz import Report, classes_of, fuzz, machine_chip
from systolith.spec import PAIRS

CHIPS = ("nano", "micro", "mini", "server", "slice64")


def commit_seed():
    """A seed from the commit under test, so that each commit tries other programs; 2 where there is no git."""
    root = Path(__file__).parents[2]
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 2
    return zlib.crc32(head.encode())


@pytest.mark.parametrize("chip", CHIPS)
def test_quick(chip):
    report = fuzz(spec.load(chip), 2_000, 1)
    assert report.mismatches == [], str(report)
    assert report.instructions >= 2_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [20_000, commit_seed()], ids=["fixed", "commit"])
def test_20_000_instructions(seed):
    report = fuzz(spec.load("micro"), 20_000, seed)
    assert report.mismatches == [], str(report)
    shares = classes_of(report)
    for name in ("load", "weight", "matrix", "vector", "store", "collective"):
        assert shares[name] >= 0.1, str(report)
    for pair in PAIRS:
        assert report.by_format[pair] > 100


@pytest.mark.deep
@pytest.mark.parametrize("chip", CHIPS)
def test_200_000_instructions(chip):
    report = fuzz(spec.load(chip), 200_000, 200_000)
    assert report.mismatches == [], str(report)
    shares = classes_of(report)
    for name in ("load", "weight", "matrix", "vector", "store", "collective"):
        assert shares[name] >= 0.1, str(report)


def test_progress_and_report():
    seen = []
    report = fuzz(spec.load("nano"), 500, 5, lambda done, count: seen.append((done, count)))
    assert seen[-1] == (500, 500)
    text = str(report)
    assert "0 mismatches" in text
    assert "by class:" in text
    assert machine_chip(spec.load("server")).slices == 3


def toward_zero(round_f32):
    """Round as the contract does not: the last bit of the result is cut."""
    return lambda x: from_bits(to_bits(round_f32(x)) & ~1) if abs(x) < 1e30 and x == x else round_f32(x)


@pytest.mark.parametrize(
    ("module", "name", "instruction"),
    [(systolith.isa.matrix, "round_f32", "MATMUL"), (systolith.isa.vector, "shift_add", "shiftadd")],
)
def test_a_wrong_rounding_in_execute_is_named(monkeypatch, module, name, instruction):
    right = getattr(module, name)
    if name == "round_f32":
        monkeypatch.setattr(module, name, toward_zero(right))
    else:
        monkeypatch.setattr(module, name, lambda *sides: (toward_zero(lambda x: x)(right(*sides)[0]), right(*sides)[1]))
    report = fuzz(spec.load("nano"), 20_000, 1)
    assert len(report.mismatches) == 1
    mismatch = report.mismatches[0]
    assert instruction in mismatch.where
    assert "fuzz.py:" in mismatch.where
    assert "element at offset" in mismatch.what
    assert mismatch.expected != mismatch.found


@pytest.mark.parametrize(("name", "instruction"), [("choose", "TOPK"), ("sorted", "GROUP")])
def test_a_wrong_order_of_equals_in_execute_is_named(monkeypatch, name, instruction):
    """The last of equal values comes first, where the contract has the lowest index first."""
    plant = {
        "choose": SimpleNamespace(top_k=lambda row, k: [len(row) - 1 - i for i in choose.top_k(row[::-1], k)]),
        "sorted": lambda values, key=None: sorted(values, key=(lambda i: (key(i), -i)) if key else None),
    }[name]
    monkeypatch.setattr(systolith.isa.choice, name, plant, raising=False)
    report = fuzz(spec.load("nano"), 20_000, 1)
    assert len(report.mismatches) == 1
    assert instruction in report.mismatches[0].where
    assert "of D (INT32)" in report.mismatches[0].what


@pytest.mark.slow
def test_a_wrong_rounding_in_the_simulator_is_named(tmp_path, monkeypatch):
    """The same fuzz on a copy of the simulator whose adder after a block sum rounds toward zero."""
    folder = tmp_path / "planted"
    shutil.copytree(Path(systolith.sim.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    matrix = folder / "matrix.py"
    right = "acc[n] = np.float32(acc[n] + np.float32(sums[n] * (scale_a * scale_w[n])))"
    wrong = right + "\n        acc.view(np.int32)[n] &= -2"
    assert right in matrix.read_text()
    matrix.write_text(matrix.read_text().replace(right, wrong))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        planted = importlib.import_module("planted")
        report: Report = fuzz(spec.load("nano"), 20_000, 1, simulator=planted.FastMachine)
    finally:
        for module in [m for m in sys.modules if m.partition(".")[0] == "planted"]:
            del sys.modules[module]
    assert len(report.mismatches) == 1
    assert "MATMUL" in report.mismatches[0].where
    assert "of D (FP32)" in report.mismatches[0].what

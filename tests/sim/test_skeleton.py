"""A skeleton yields the resolved stream of the full machine: every row, every column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import systolith.models
from systolith.compiler import Compiled
from systolith.isa import cycles
from systolith.isa.facts import SLICES, facts
from systolith.isa.issue import CARRY_COLS, OP_COLS, issues
from systolith.isa.resolved import BASE, COLS, OPERANDS, SBASE, SPACE
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.job import Request, layout, write_job
from systolith.runtime.session import compile_job
from systolith.sim import FastMachine
from systolith.sim.skeleton import Skeleton, _apart
from systolith.spec import load
from tests.reference.make_model import make_llama

TINYCODE = Path(systolith.models.__file__).parent / "tinycode"
JOB = [Request(tuple(range(5, 45)), 4), Request((3, 4, 5), 3)]


def stream(machine: FastMachine, compiled: Compiled, job: list[Request]) -> list[np.ndarray]:
    """All rows that a job's run resolves, by slice."""
    write_job(machine, compiled.program, job, layout(compiled.program, job))
    slices = compiled.program.requires.slices
    buffer, found = np.zeros((slices, 512, COLS), np.int64), [[] for _ in range(slices)]
    while (counts := machine.run_resolved(buffer)).any():
        for rank in range(slices):
            found[rank].append(buffer[rank, : counts[rank]].copy())
    return [np.concatenate(rows) for rows in found]


@pytest.mark.parametrize("name", ["nano", "micro"])
def test_the_stream_is_that_of_the_full_machine(name: str) -> None:
    chip = load(name)
    compiled = compile_job(Checkpoint.open(TINYCODE), chip, Profile.default(), JOB)
    full = stream(FastMachine(chip, compiled.program), compiled, JOB)
    bare = stream(Skeleton(chip, compiled.program, *compiled.memory.control), compiled, JOB)
    for rank in range(chip.slices):
        np.testing.assert_array_equal(full[rank], bare[rank])


@pytest.mark.parametrize("most", [7, 1 << 12])
def test_its_issues_are_those_of_the_stream(most: int) -> None:
    """What a skeleton issues by itself is what `isa.issue` makes of its resolved rows, in whatever pieces."""
    chip = load("micro")
    compiled = compile_job(Checkpoint.open(TINYCODE), chip, Profile.default(), JOB)
    mark = max(pc for pc, i in enumerate(compiled.program.code) if i.NAME == "LOOP") + 1
    rows = stream(Skeleton(chip, compiled.program, *compiled.memory.control), compiled, JOB)
    machine = Skeleton(chip, compiled.program, *compiled.memory.control, body=(mark, mark + 1))
    write_job(machine, compiled.program, JOB, layout(compiled.program, JOB))
    found: list[list[np.ndarray]] = [[] for _ in rows]
    while True:
        ops, counts = machine.run_issues(most)
        if not counts.any() and not machine.at_cut:
            break
        for rank, count in enumerate(counts):
            found[rank].append(ops[rank, :count].copy())
    known = facts(chip).copy()
    known[SLICES] = len(rows)
    for rank, expected in enumerate(rows):
        out = np.zeros((2 * len(expected), OP_COLS), np.int64)
        n = issues(known, expected, np.zeros(CARRY_COLS, np.int64), mark, out)
        assert n < len(expected) // 3, "most words are carried"
        np.testing.assert_array_equal(np.concatenate(found[rank]), out[:n])


def test_work_sees_no_more_of_an_address_than_is_remembered() -> None:
    """Rows whose addresses move by whole bursts in DRAM, whole banks in the scratchpad, and at will elsewhere, have the
    same work: what `repeats` and the memory of a word's work build on."""
    chip, random = load("nano"), np.random.default_rng(5)
    compiled = compile_job(Checkpoint.open(TINYCODE), chip, Profile.default(), JOB)
    rows = stream(Skeleton(chip, compiled.program, *compiled.memory.control), compiled, JOB)[0][::7].copy()
    works = [np.zeros((len(rows), cycles.WORK_COLS), np.int64) for _ in range(2)]
    cycles.work(facts(chip), rows, works[0])
    banks = random.integers(0, 9, len(rows)) * chip.bank_size_bytes
    for column in OPERANDS.values():
        space = rows[:, column + SPACE]
        for field in (BASE, SBASE):
            bursts = random.integers(0, 99, len(rows)) * chip.dram_burst_bytes
            free = random.integers(0, 999, len(rows)) * 32
            rows[:, column + field] += np.select([space == 0, space == 1, space >= 2], [bursts, banks, free], 0)
    cycles.work(facts(chip), rows, works[1])
    np.testing.assert_array_equal(*works)
    assert len(np.unique(works[0], axis=0)) > 50


def test_operands_may_move_as_long_as_the_same_ones_share_a_bank() -> None:
    def periods(bases: list[int], steps: list[int]) -> int:
        return _apart(np.array([bases]), np.array([steps]), 100, 30)

    assert periods([10, 150, -1], [10, 0, 0]) == 8  # the ninth comes into the other's bank
    assert periods([10, 50, -1], [10, 0, 0]) == 8  # the ninth leaves it
    assert periods([10, 350, -1], [10, 0, 0]) == 28
    assert periods([10, 20, -1], [100, 100, 0]) == 30  # together
    assert periods([10, 850, -1], [0, 0, 0]) == 30


def test_a_mixture_of_experts_has_a_scenario_for_its_router(tmp_path: Path) -> None:
    """With a row a step every choice of experts costs the same: the streams differ in the experts' addresses alone."""
    path = make_llama(
        tmp_path / "mixture", family="mixtral", hidden=64, intermediate=96, vocab=300, context=512, seed=3
    )
    chip, job = load("micro"), [Request((5,), 4)]
    compiled = compile_job(Checkpoint.open(path), chip, Profile.default(), job)
    full = stream(FastMachine(chip, compiled.program), compiled, job)
    seeds = [
        stream(Skeleton(chip, compiled.program, *compiled.memory.control, seed=seed), compiled, job) for seed in (0, 1)
    ]
    same = [i for i in range(COLS) if i not in {column + BASE for column in OPERANDS.values()}]
    same = [i for i in same if i not in {column + SBASE for column in OPERANDS.values()}]
    for rank in range(chip.slices):
        for bare in seeds:
            np.testing.assert_array_equal(full[rank][:, same], bare[rank][:, same])
    assert any((a != b).any() for a, b in zip(*seeds, strict=True)), "another seed chooses other experts"
    many = [Request((1,) * 60, 2)]
    compiled = compile_job(Checkpoint.open(path), chip, Profile.default(), many)
    chosen = stream(Skeleton(chip, compiled.program, *compiled.memory.control), compiled, many)
    assert all(len(rows) for rows in chosen)

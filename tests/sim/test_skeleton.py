"""A skeleton yields the resolved stream of the full machine: every row, every column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import systolith.models
from systolith.compiler import Compiled
from systolith.isa.resolved import COLS
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.job import Request, layout, write_job
from systolith.runtime.session import compile_job
from systolith.sim import FastMachine
from systolith.sim.skeleton import Skeleton
from systolith.spec import load

TINYCODE = Path(systolith.models.__file__).parent / "tinycode"
JOB = [Request(tuple(range(5, 45)), 4), Request((3, 4, 5), 3)]


def stream(machine: FastMachine, compiled: Compiled) -> list[np.ndarray]:
    """All rows that a job's run resolves, by slice."""
    write_job(machine, compiled.program, JOB, layout(compiled.program, JOB))
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
    full = stream(FastMachine(chip, compiled.program), compiled)
    bare = stream(Skeleton(chip, compiled.program, *compiled.memory.control), compiled)
    for rank in range(chip.slices):
        np.testing.assert_array_equal(full[rank], bare[rank])

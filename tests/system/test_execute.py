"""`isa.execute.Machine`, the definition, beside the fast simulator: every word of a decoder, footprint by footprint."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from systolith.isa import Machine, Space
from systolith.isa.execute import where
from systolith.runtime.job import Request, Sampling, layout, write_job
from systolith.sim import FastMachine
from systolith.timing import simulate

from .harness import Compiled, Subject, chip, compiled, run_job, same_bits
from .test_profiles import FP4, FP8, SPANS
from .test_program import _Writer

PROMPTS = ((3, 14, 15), (9,))
KERNELS = {"attention", "cache", "chunk", "dump", "embed", "ffn", "head", "linear", "norm", "partial", "project", "qkv",
           "sample", "segment", "step"}  # fmt: skip


def lockstep(program: Compiled, name: str, requests: list[Request]) -> Counter[str]:
    """Run a job on both, a word at a time; compare what each word wrote, registers and semaphores, then all memory.

    Gives the words compared by kernel.
    """
    machine, fast = Machine(chip(name), program.program), FastMachine(chip(name), program.program)
    for device in (machine, fast):
        run_job(program, chip(name), requests, machine=_Writer(device))  # type: ignore[arg-type]
    compared: Counter[str] = Counter()
    spaces = {Space.DRAM: fast.dram, Space.SPAD: fast.spad, Space.SLOT: fast.slot, Space.ACC: fast.acc}
    while (ran := fast.step()) is not None:
        rank, pc = ran
        written = machine.step()
        s = machine.slices[rank]
        for mark in written:
            end = mark.address + len(mark.data)
            mine = machine.slices[mark.slice].memory[mark.space][mark.address : end]
            if mark.space is Space.CELL:
                assert machine.cells(mark.slice) == fast.cells(mark.slice), where(program.program, rank, pc)
            elif bytes(mine) != spaces[mark.space](mark.slice)[mark.address : end].tobytes():
                raise AssertionError(f"{where(program.program, rank, pc)} writes other bytes at {mark.address}")
        assert (list(s.regs), list(s.sems)) == (fast.regs(rank), fast.sems(rank)), where(program.program, rank, pc)
        compared[program.program.line(pc).split(":")[0].removeprefix("kernels/").removesuffix(".py")] += 1
    assert all(s.halted for s in machine.slices)
    for rank in range(program.plan.slices):
        for space, view in spaces.items():
            mine = np.frombuffer(machine.slices[rank].memory[space], np.uint8)
            assert np.array_equal(mine, view(rank)), f"{space.name} of slice {rank}"
        assert machine.cells(rank) == fast.cells(rank)
        assert machine.records(rank) == fast.records(rank)
    return compared


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nano-mxint8": ("nano", {}),
    "nano-mxfp8-spans": ("nano", {**FP8, "lanes": 2, "spans": SPANS}),
    "nano-mxfp4-mxfp8-sink": ("nano", {"weights": "E2M1", "activations": "E4M3", "attention": {"sink": -1.0}}),
    "micro-two-terms-not-deferred": ("micro", {"weights": "INT8x2", "deferred_norm": False}),
    "three-mxint8": ("three", {}),
    "three-mxfp4-window": ("three", {**FP4, "lanes": 2, "attention": {"window": 2}}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kernel_writes_the_same_bytes(small: Subject, case: str) -> None:
    """Two requests in one batch, three tokens each, one of them sampled; the steps hold a prefill and two decodes."""
    name, table = CASES[case]
    requests = [Request(PROMPTS[0], 3), Request(PROMPTS[1], 3, Sampling(1.0, 5, 0.9, 11))]
    program = compiled(small, chip(name), small.profile(table), requests, dump=True)
    compared = lockstep(program, name, requests)
    assert KERNELS - {"partial"} <= set(compared), KERNELS - set(compared)
    assert sum(compared.values()) > 5000


@pytest.mark.deep
@pytest.mark.parametrize("name", ["nano", "micro", "three"])
def test_two_chunks_of_attention(small: Subject, name: str) -> None:
    requests = [Request(tuple(n % 70 for n in range(258)), 2)]
    program = compiled(small, chip(name), small.profile({"lanes": 2}), requests)
    assert KERNELS - {"dump"} <= set(lockstep(program, name, requests))


def test_the_definition_decodes_the_references_tokens(small: Subject) -> None:
    """The same job on the definition alone: tokens, and the logits they were picked from."""
    profile, requests = small.profile(), [Request(PROMPTS[0], 3)]
    program = compiled(small, chip("nano"), profile, requests)
    ran = run_job(program, chip("nano"), requests, machine=Machine(chip("nano"), program.program))
    assert ran.tokens[0] == small.expected_tokens(profile, PROMPTS[0], 3, Sampling())
    want = small.expected(profile, [*PROMPTS[0], *ran.tokens[0][:2]]).logits[2:]
    same_bits(ran.logits[0], want, "logits")


@pytest.mark.deep
def test_the_definition_decodes_tinycode(tinycode: Subject, tinycode_text: list[int]) -> None:
    profile, requests = tinycode.profile(), [Request(tuple(tinycode_text[:2]), 2)]
    program = compiled(tinycode, chip("nano"), profile, requests)
    machine = Machine(chip("nano"), program.program)
    slow = run_job(program, chip("nano"), requests, machine=machine)
    fast = run_job(program, chip("nano"), requests)
    assert slow.tokens == fast.tokens == [tinycode.expected_tokens(profile, tinycode_text[:2], 2, Sampling())]
    assert np.array_equal(machine.dram(0), fast.machine.dram(0))
    assert machine.counts == fast.machine.counts


def test_times_do_not_depend_on_how_the_stream_is_cut(small: Subject) -> None:
    """A slice that answers another's PUT must not be overtaken by what the sender does next."""
    requests = [Request((1, 2, 3), 4), Request((4,), 4)]
    on = chip("micro")
    program = compiled(small, on, small.profile(), requests)
    seen = set()
    for rows in (7, 64, 512, 4096):
        machine = FastMachine(on, program.program)
        write_job(machine, program.program, requests, layout(program.program, requests))
        result = simulate(on, program.program, machine, rows=rows)
        seen.add((result.cycles, *sorted((event.slice, event.cycle) for event in result.rings)))
    assert len(seen) == 1

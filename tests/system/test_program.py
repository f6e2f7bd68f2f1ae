"""The chip matters: programs differ from chip to chip, and what runs is the program, word by word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from systolith.isa import Machine, Space
from systolith.isa import resolved as R
from systolith.isa.descriptor import Format
from systolith.isa.dma import Copy
from systolith.isa.instruction import Instruction
from systolith.isa.matrix import Matmul
from systolith.isa.vector import Vec
from systolith.runtime.job import Request
from systolith.sim import FastMachine
from systolith.spec import QUEUES, ProgramError

from .harness import CHIPS, Compiled, Subject, chip, compiled, run_job

PROMPT = (3, 14, 15, 9, 26)


def small_program(subject: Subject, name: str, **options: object) -> Compiled:
    return compiled(subject, chip(name), subject.profile(), [Request(PROMPT)], every_row=True, **options)


def test_encoded_programs_differ_between_chips(odd: Subject) -> None:
    programs = {name: small_program(odd, name).program for name in CHIPS}
    for a, b in combinations(CHIPS, 2):
        assert programs[a].sha256 != programs[b].sha256, f"{a} and {b}"
        if {a, b} != {"server", "server63"}:
            assert programs[a].code_bytes() != programs[b].code_bytes(), f"{a} and {b}"
    # All slices run the same words, and each finds its share of the work in a table: what 63 slices have other than 64.
    assert programs["server"].images_sha256 != programs["server63"].images_sha256
    assert programs["server"].requires != programs["server63"].requires


def test_the_same_program_comes_out_again(odd: Subject) -> None:
    first, again = (small_program(odd, "three").program for _ in range(2))
    assert first.sha256 == again.sha256
    assert first.images_sha256 == again.images_sha256


@pytest.mark.parametrize("name", ["nano", "three"])
def test_executed_instructions_are_counted_from_the_program(small: Subject, name: str) -> None:
    program = small_program(small, name)
    requests = [Request(PROMPT)]
    machine = Machine(chip(name), program.program)
    counted: Counter[str] = Counter()
    words = np.zeros(len(program.program.words), np.int64)
    # The job is written by a run of its own; then the words that the definition executes are counted one by one.
    fast = FastMachine(chip(name), program.program)
    run_job(program, chip(name), requests, machine=_Writer(machine))
    for row in machine.resolved():
        words[row[R.PC]] += 1
        counted[program.program.code[row[R.PC]].mnemonic] += 1
    run_job(program, chip(name), requests, machine=fast)
    assert fast.counts == counted
    assert fast.executed.tolist() == words.tolist()
    assert sum(counted.values()) > 1000


class _Writer:
    """Takes a job and does not run it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.write_dram, self.read_dram = machine.write_dram, machine.read_dram

    def run(self, on_ring: object) -> None:
        """Nothing."""


CHANGED = {
    "kernels/linear.py": Matmul, "kernels/qkv.py": Vec, "kernels/norm.py": Vec, "kernels/ffn.py": Vec,
    "kernels/project.py": Vec, "kernels/head.py": Vec, "kernels/chunk.py": Matmul,
}  # fmt: skip


@pytest.mark.parametrize("kernel", CHANGED)
def test_one_operand_field_changed_gives_other_logits(small: Subject, kernel: str) -> None:
    """Operand B becomes A, in the first word of a kernel for which that is legal."""
    program, requests = small_program(small, "nano"), [Request(PROMPT)]
    want = run_job(program, chip("nano"), requests).logits[0]
    for pc, instruction in enumerate(program.program.code):
        if not (program.program.line(pc).startswith(kernel) and _has_two_operands(instruction, CHANGED[kernel])):
            continue
        words = list(program.program.words)
        words[pc] = replace(instruction, b=instruction.a).encode()  # type: ignore[call-arg, attr-defined]
        changed = replace(program, program=replace(program.program, words=tuple(words)))
        try:
            got = run_job(changed, chip("nano"), requests).logits[0]
        except ProgramError:
            continue
        assert not np.array_equal(got.view(np.uint32), want.view(np.uint32))
        return
    raise AssertionError(f"no word of {kernel} can be changed")


def _has_two_operands(instruction: Instruction, kind: type) -> bool:
    return isinstance(instruction, kind) and instruction.b not in (0, instruction.a)  # type: ignore[attr-defined]


def weight_copies(program: Compiled, name: str, requests: list[Request]) -> Iterator[np.ndarray]:
    """Resolved rows of every COPY.W that runs, on all slices."""
    machine = FastMachine(chip(name), program.program)
    run_job(program, chip(name), requests, machine=_Writer(machine))  # type: ignore[arg-type]
    buffer = np.zeros((program.plan.slices, 20000, R.COLS), np.int64)
    while True:
        filled = machine.run_resolved(buffer)
        for rank, count in enumerate(filled):
            rows = buffer[rank, :count]
            yield from rows[(rows[:, R.OP] == Copy.OPCODE) & (rows[:, R.QUEUE] == QUEUES.index("W"))]
        if not (filled == buffer.shape[1]).any():
            return


@pytest.mark.parametrize("name", ["nano", "micro", "three", "server"])
def test_prefill_reads_each_weight_as_often_as_the_accumulator_asks(odd: Subject, name: str) -> None:
    """256 tokens are ceil(256 / rows) products; rows: sums of 32 columns in half of the accumulator, at most 256."""
    requests = [Request(tuple(range(256)), 1)]
    program = compiled(odd, chip(name), odd.profile(), requests)
    rows = min(256, chip(name).accumulator_bytes // 2 // 4 // 32)
    regions = [program.memory.dram[f"{kind}_{linear.name}"] for linear in program.plan.linears for kind in ("w", "ws")]
    ends = sorted(program.memory.dram.values())
    reads = np.zeros((program.plan.slices, program.memory.dram_bytes + 1), np.int32)
    for row in weight_copies(program, name, requests):
        assert row[R.A + R.SPACE] == Space.DRAM
        bits = Format(int(row[R.A + R.FORMAT])).bits
        e0, e1, e2 = (int(n) for n in row[R.A + R.EXT0 : R.A + R.EXT0 + 3])
        s0, s1, s2 = (int(n) for n in row[R.A + R.STRIDE0 : R.A + R.STRIDE0 + 3])
        assert s2 == 1
        starts = (np.arange(e0)[:, None] * s0 + np.arange(e1) * s1).ravel()
        spans = [(int(row[R.A + R.BASE]) + starts * bits // 8, e2 * bits // 8)]
        if row[R.A + R.SCALE]:
            spans.append((int(row[R.A + R.SBASE]) + starts // 32, -(-e2 // 32)))
        for at, length in spans:
            np.add.at(reads[row[R.SLICE]], at, 1)
            np.add.at(reads[row[R.SLICE]], at + length, -1)
    times = reads.cumsum(1)
    assert times.max() <= -(-256 // rows)
    for base in regions:
        end = next(other for other in [*ends, program.memory.dram_bytes] if other > base)
        assert times[:, base:end].max() > 0, "every matrix is read"
    outside = np.ones(times.shape[1], bool)
    for base in regions:
        outside[base : next(other for other in [*ends, program.memory.dram_bytes] if other > base)] = False
    assert times[:, outside].max() == 0, "the weight queue reads weights and nothing else"

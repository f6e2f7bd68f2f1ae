"""Fuzz: random legal programs on `Machine` and on `FastMachine` in lock step, compared after each instruction.

The compiled entry points are those that `generate` runs. The report names the first mismatch: instruction, element,
both values.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from systolith.isa import Descriptor, Format, Machine, Program, Space
from systolith.isa.execute import where
from systolith.isa.state import Footprint, Slice
from systolith.spec import Chip, ConfigError, ProgramError

from ._generate import make_program, memory_at_start
from .machine import FastMachine

__all__ = ["CLASSES", "Mismatch", "Report", "classes_of", "compare", "fuzz", "machine_chip"]

CLASSES = {
    "COPY.L": "load", "COPY.W": "weight", "MATMUL": "matrix", "VEC": "vector", "PICK": "vector", "TOPK": "vector",
    "GROUP": "vector", "COPY.S": "store",
    "RING": "store", "PUT": "collective",
}  # fmt: skip
"""Class of each mnemonic; what is not here counts as `sequencer`."""

SLICES = 3
"""Most slices of a program."""
_SPACES = (Space.DRAM, Space.SPAD, Space.SLOT, Space.ACC)


@dataclass(frozen=True)
class Mismatch:
    """The first difference of a program."""

    seed: int
    """Of the program: `fuzz(chip, 1, seed)` makes it again."""
    where: str
    """Slice, word, assembly, source line."""
    what: str
    """The place: operand and element, register, semaphore, ..."""
    expected: str
    """Value that `execute` has."""
    found: str
    """Value that the simulator has."""

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.where}: {self.what}: execute has {self.expected}, sim has {self.found}"


@dataclass
class Report:
    """What a fuzz run did."""

    instructions: int = 0
    """Executed and compared."""
    programs: int = 0
    by_class: Counter[str] = field(default_factory=Counter)
    by_format: Counter[str] = field(default_factory=Counter)
    """MATMUL by pair, the others by the format of each operand."""
    mismatches: list[Mismatch] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.instructions} instructions of {self.programs} programs, {len(self.mismatches)} mismatches"]
        for title, counts in (("class", self.by_class), ("format", self.by_format)):
            parts = (f"{name} {n} ({100 * n / max(1, self.instructions):.1f} %)" for name, n in counts.most_common())
            lines.append(f"by {title}: " + ", ".join(parts))
        return "\n".join(lines + [str(m) for m in self.mismatches])


def machine_chip(chip: Chip) -> Chip:
    """Give a chip with fewer slices and less memory, so that comparing all of it after each instruction is cheap."""
    small = {"scratchpad_bytes": 64 << 10, "slots_bytes": 8 << 10, "accumulator_bytes": 8 << 10}
    small = {name: size for name, size in small.items() if getattr(chip, name) > size}
    slices = {"slices": SLICES} if chip.slices > SLICES else {}
    for changes in (small | slices, slices):
        try:
            return chip.vary(**changes) if changes else chip
        except ConfigError:
            continue
    return chip


def fuzz(
    chip: Chip,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    simulator: type[FastMachine] = FastMachine,
    stop_after: int = 1,
) -> Report:
    """Compare `count` executed instructions, or a few more: programs run to their end.

    progress : called with (done, count) after each program    simulator : class that is compared with Machine
    stop_after : mismatches after which it gives up    Cost: about 5 ms an instruction.
    """
    small = machine_chip(chip)
    report = Report()
    number = seed
    while report.instructions < count and len(report.mismatches) < stop_after:
        rng = random.Random(number)
        program = make_program(rng, small, rng.randint(1, min(SLICES, small.slices)))
        compare(small, program, number, report, simulator, limit=count + 400 - report.instructions)
        report.programs += 1
        number += 1
        if progress is not None:
            progress(min(report.instructions, count), count)
    return report


def compare(
    chip: Chip, program: Program, seed: int, report: Report, simulator: type[FastMachine] = FastMachine,
    limit: int | None = None, memory: Callable[[int, int], dict[Space, Any]] = memory_at_start,
) -> None:  # fmt: skip
    """Run a program in lock step on both; add to the report.

    memory : gives what the spaces of (seed, rank) hold at start    limit : most words
    """
    machine, fast = Machine(chip, program), simulator(chip, program)
    for s in machine.slices:
        for space, data in memory(seed, s.rank).items():
            s.memory[space][: len(data)] = data.tobytes()
            fast._space(s.rank, space)[: len(data)] = data
    pairs = _views(machine, fast)
    done = 0
    while limit is None or done < limit:
        rank = _next(machine)
        if rank is None:
            break
        s = machine.slices[rank]
        pc = s.pc
        instruction = program.code[pc]
        operands = {letter: s.descriptors[n] for letter, n in instruction.operands().items()}
        targets = {
            letter: (operands[letter], s.view(n).base)
            for letter, n in instruction.operands().items()
            if letter in instruction.WRITES
        }
        (written, trap), (ran, fast_trap) = _tried(machine.step), _tried(fast.step)
        if trap or fast_trap:
            if trap != fast_trap:
                report.mismatches.append(Mismatch(seed, where(program, rank, pc), "trap", str(trap), str(fast_trap)))
            return
        done += 1
        report.instructions += 1
        report.by_class[CLASSES.get(instruction.mnemonic, "sequencer")] += 1
        _count_formats(report, instruction.NAME, operands)
        found = None
        if ran != (rank, pc):
            found = ("order of words", f"slice {rank}, word {pc}", f"{ran}")
        found = found or _difference(machine, fast, pairs, written, targets)
        if found:
            report.mismatches.append(Mismatch(seed, where(program, rank, pc), *found))
            return
    for s in machine.slices:
        if s.records != fast.records(s.rank):
            report.mismatches.append(
                Mismatch(seed, f"slice {s.rank}", "ring records", str(s.records), str(fast.records(s.rank)))
            )
            return


def classes_of(report: Report) -> dict[str, float]:
    """Share of each class in what was executed."""
    return {name: n / report.instructions for name, n in report.by_class.items()}


# What follows is private.


def _tried(step: Callable[[], Any]) -> tuple[Any, str | None]:
    """Result of a step, or the sentence of its trap."""
    try:
        return step(), None
    except ProgramError as error:
        return None, str(error)


def _next(machine: Machine) -> int | None:
    """The slice whose word Machine.step will execute; None when all have halted."""
    for i in range(len(machine.slices)):
        rank = (machine._turn + i) % len(machine.slices)
        if machine._ready(machine.slices[rank]):
            return rank
    return None


def _views(machine: Machine, fast: FastMachine) -> list[tuple[int, Space, Any, Any]]:
    spaces = (*_SPACES, Space.CELL)
    return [
        (s.rank, space, np.frombuffer(s.memory[space], np.uint8), fast._space(s.rank, space))
        for s in machine.slices
        for space in spaces
    ]


def _difference(
    machine: Machine, fast: FastMachine, pairs: list[tuple[int, Space, Any, Any]], written: list[Footprint],
    targets: dict[str, tuple[Descriptor, int]],
) -> tuple[str, str, str] | None:  # fmt: skip
    """Find the first place where the two differ: (what, expected, found)."""
    for mark in written:
        data = np.frombuffer(mark.data, np.uint8)
        mine = fast._space(mark.slice, mark.space)[mark.address : mark.address + len(data)]
        if not np.array_equal(data, mine):
            # A later write of the same instruction may have gone over this one: the memory of `execute` decides.
            theirs = np.frombuffer(machine.slices[mark.slice].memory[mark.space], np.uint8)
            theirs = theirs[mark.address : mark.address + len(data)]
            if not np.array_equal(theirs, mine):
                at = mark.address + int(np.flatnonzero(theirs != mine)[0])
                return _element(machine, fast, mark.slice, mark.space, at, targets)
    for rank, space, theirs, mine in pairs:
        if not np.array_equal(theirs, mine):
            at = int(np.flatnonzero(theirs != mine)[0])
            what, expected, found = _element(machine, fast, rank, space, at, targets)
            return f"{what} (outside what execute wrote)", expected, found
    for s in machine.slices:
        for name, ours, found_there in _registers(s, fast):
            if ours != found_there:
                at = next(i for i, (x, y) in enumerate(zip(ours, found_there, strict=True)) if x != y)
                return f"slice {s.rank}, {name} {at}", str(ours[at]), str(found_there[at])
    return None


def _registers(s: Slice, fast: FastMachine) -> list[tuple[str, list[int], list[int]]]:
    return [
        ("register", s.regs, fast.regs(s.rank)),
        ("semaphore", s.sems, fast.sems(s.rank)),
        ("arrival counter", s.arrivals, fast.arrivals(s.rank)),
    ]


def _element(
    machine: Machine, fast: FastMachine, rank: int, space: Space, address: int,
    targets: dict[str, tuple[Descriptor, int]],
) -> tuple[str, str, str]:  # fmt: skip
    """Name the element of a written operand, given with its base, at an address, and both values."""
    theirs, mine = machine.slices[rank].memory[space], fast._space(rank, space)
    found: list[tuple[int, str]] = []
    for letter, (d, base) in targets.items():
        if d.space is space:
            if d.scale and address >= d.sbase:
                found.append((address - d.sbase, f"scale {address - d.sbase} of {letter}"))
            if address >= base:
                found.append((address - base, letter))
    if found:  # the operand that begins closest below
        distance, name = min(found)
        if name in targets:
            d, _ = targets[name]
            size = max(1, d.format.bits // 8)
            at = address - distance % size
            what = f"element at offset {distance * 8 // d.format.bits} of {name} ({d.format.name})"
            values = [_value(d.format, bytes(memory[at : at + size])) for memory in (theirs, mine)]
            return f"slice {rank}, {what}, {space.name} byte {at}", values[0], values[1]
        return f"slice {rank}, {name}, {space.name} byte {address}", *_bytes(theirs, mine, address)
    return f"slice {rank}, {space.name} byte {address}", *_bytes(theirs, mine, address)


def _bytes(theirs: Any, mine: Any, at: int) -> tuple[str, str]:
    return f"{int(theirs[at]):#04x}", f"{int(mine[at]):#04x}"


def _value(form: Format, data: bytes) -> str:
    if form is Format.FP32:
        return f"{struct.unpack('<f', data)[0]!r} ({int.from_bytes(data, 'little'):#010x})"
    if form is Format.INT32:
        return str(struct.unpack("<i", data)[0])
    return f"code {data[0]:#04x}"


def _count_formats(report: Report, name: str, operands: dict[str, Descriptor]) -> None:
    if name == "MATMUL":
        report.by_format[f"{operands['A'].format.name}x{operands['B'].format.name}"] += 1
    else:
        for form in {d.format.name for d in operands.values()}:
            report.by_format[form] += 1

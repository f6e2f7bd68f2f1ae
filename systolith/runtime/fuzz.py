"""Fuzz of the RTL: random programs on a chip's Verilog beside the functional simulator and the timing model.

Legal programs: every byte that an instruction writes, records, final memories, start and end of every instruction.
Illegal ones, spoilt at one place so that the simulator traps: the RTL must stop with a cause, or the trap is counted
among those that no unit finds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from systolith.isa.program import Program
from systolith.sim.fuzz import CLASSES, SLICES
from systolith.sim.ordered import make_ordered
from systolith.sim.spoil import spoil
from systolith.spec import Chip, ProgramError

from .cosim import Cosim, cosim

__all__ = ["RtlReport", "fuzz_rtl", "run_spoilt"]

HOLD_SHARE = 64
"""Of 256 cycles, how often something is held back under pressure."""
SPOILT_EVERY = 8
"""One program in so many is spoilt."""
COMPUTE = frozenset({"MATMUL", "VEC", "PICK", "TOPK", "GROUP"})
"""Instructions whose cycles are the rule's, whatever else goes on; copies with uneven pieces may take longer (0010)."""


@dataclass
class RtlReport:
    """What a fuzz of the RTL did."""

    instructions: int = 0
    """Executed words of legal programs, those of the sequencer included."""
    programs: int = 0
    cycles: int = 0
    bytes: int = 0
    """Written bytes that were compared."""
    by_class: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    """Bits, and durations of instructions of the units that compute."""
    late: Counter[str] = field(default_factory=Counter)
    """Others with another duration than their rule's, by mnemonic; not compared under pressure."""
    moved: int = 0
    """Instructions that started or ended in another cycle."""
    cycle_error: int = 0
    """Cycles of all programs on the RTL beyond those of the timing model."""
    spoilt: int = 0
    """Illegal programs."""
    trapped: Counter[str] = field(default_factory=Counter)
    """Causes that the RTL gave for them."""
    untrapped: Counter[str] = field(default_factory=Counter)
    """What was spoilt, where the RTL ran to the end of it or hung."""
    verilog_sha256: str = ""
    verilator: str = ""

    def __str__(self) -> str:
        lines = [
            f"{self.instructions} instructions of {self.programs} programs, {self.cycles} cycles, {self.bytes} bytes "
            f"compared, {len(self.mismatches)} mismatches",
            "by class: " + ", ".join(f"{name} {n}" for name, n in self.by_class.most_common()),
            f"others with another duration: {dict(self.late)}; {self.moved} instructions at another time, "
            f"{self.cycle_error:+d} cycles in all",
            f"{self.spoilt} illegal programs: {sum(self.trapped.values())} trapped, {dict(self.untrapped)} not",
        ]
        return "\n".join(lines + self.mismatches)


def fuzz_rtl(
    chip: Chip,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    folder: Path | None = None,
    pressure: int | None = None,
    stop_after: int = 1,
) -> RtlReport:
    """Compare `count` executed instructions, or a few more: programs run to their end.

    folder : Verilog to run instead of the chip's own    pressure : seed of what holds memory, network and host back;
    times are then not compared    stop_after : mismatches after which it gives up
    """
    report, number = RtlReport(), seed
    while report.instructions < count and len(report.mismatches) < stop_after:
        slices = random.Random(number).randint(1, min(SLICES, chip.slices))
        program = make_ordered(number, chip, slices)
        hold = {} if pressure is None else {"hold_share": HOLD_SHARE, "seed": pressure + number + 1}
        found = cosim(chip, program, folder=folder, **hold)  # type: ignore[arg-type]
        _add(report, found, number)
        if number % SPOILT_EVERY == 0 and found.first is None:
            _spoilt(report, chip, program, number, folder, 2 * found.cycles + 20_000)
        report.programs += 1
        number += 1
        if progress is not None:
            progress(min(report.instructions, count), count)
    return report


def run_spoilt(chip: Chip, program: Program, folder: Path | None = None, *, cycles: int) -> str | None:
    """Run a program that the simulator traps on the RTL; give the cause that it stops with, None where it does not."""
    from systolith.rtl.device import RtlMachine

    machine = RtlMachine(chip, program, folder=folder)
    try:
        machine.run(cycles=cycles)
    except ProgramError as fault:
        return str(fault)
    return None


# What follows is private.


def _add(report: RtlReport, found: Cosim, number: int) -> None:
    report.verilog_sha256, report.verilator = found.verilog_sha256, found.verilator
    report.bytes += found.bytes
    report.cycles += found.cycles
    for mnemonic, n in found.executed.items():
        report.instructions += n
        report.by_class[CLASSES.get(mnemonic, "sequencer")] += n
    report.mismatches += [f"seed {number}: {text}" for text in found.differences]
    for mnemonic, n in found.durations.items():
        if mnemonic not in COMPUTE:
            report.late[mnemonic] += n
    report.mismatches += [
        f"seed {number}: {late.where}: {late.found} cycles, by the rule {late.expected}"
        for late in found.late
        if late.mnemonic in COMPUTE
    ]
    if found.timed:
        report.moved += found.moved
        report.cycle_error += found.cycles - found.expected_cycles


def _spoilt(report: RtlReport, chip: Chip, program: Program, number: int, folder: Path | None, cycles: int) -> None:
    """Spoil a program and run it."""
    made = spoil(random.Random(number), chip, program)
    if made is None:
        return
    bad, what = made
    report.spoilt += 1
    cause = run_spoilt(chip, bad, folder, cycles=cycles)
    if cause is None:
        report.untrapped[what] += 1
    else:
        report.trapped[cause.rsplit(": ", 1)[-1]] += 1

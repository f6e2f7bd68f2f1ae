"""The RTL beside the functional simulator and the timing model: one program, the same bits, the same cycles.

Compared are every byte that an instruction writes, the records to the host, the final memories and cells of every
slice, and start and end of every instruction of every queue.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from systolith.isa.execute import where
from systolith.isa.program import Program
from systolith.isa.resolved import COLS
from systolith.sim.footprints import Difference, Footprints
from systolith.spec import QUEUES, Chip, ProgramError

if TYPE_CHECKING:
    from systolith.timing import TimingResult

__all__ = ["Cosim", "Late", "cosim", "reference", "waveform"]

Setup = Callable[[Any], None]
_MEMORIES = ("dram", "spad", "slot", "acc")
_ROWS = 512
_WINDOW = 1 << 15
"""Cycles between two comparisons of what has been written."""
_BEFORE, _AFTER = 300, 30
"""Cycles of a waveform before and after a difference."""
_SLACK, _SLACK_CYCLES = 8, 100_000
"""A run that takes longer than that many times the timing model's cycles hangs."""


@dataclass(frozen=True)
class Late:
    """An instruction whose duration on the RTL is not the rule's."""

    where: str
    mnemonic: str
    expected: int
    found: int


@dataclass
class Cosim:
    """What a comparison found."""

    cycles: int
    """Of the RTL: the last slice's halt."""
    expected_cycles: int
    """Of the timing model."""
    instructions: int = 0
    """Compared instructions of queues."""
    first: Difference | None = None
    """The first write that is not the simulator's; the run ends with it."""
    differences: list[str] = field(default_factory=list)
    """Bits: each a sentence that names memory, address, both values."""
    bytes: int = 0
    """Written bytes that were compared, instruction by instruction."""
    late: list[Late] = field(default_factory=list)
    """Durations that differ, first of each word."""
    durations: Counter[str] = field(default_factory=Counter)
    """Instructions whose duration differs, by mnemonic."""
    moved: int = 0
    """Instructions whose start or end differs."""
    executed: Counter[str] = field(default_factory=Counter)
    """Words of the program by mnemonic."""
    timed: bool = True
    """Whether times were compared: not under back-pressure."""
    verilog_sha256: str = ""
    verilator: str = ""
    timing: TimingResult | None = field(default=None, repr=False)
    events: Any = field(default=None, repr=False)
    """Of the RTL, as `RtlMachine.events`."""
    records: Any = field(default=None, repr=False)
    """Of the timing model, [n, columns of timing.RECORD]."""
    status: list[dict[str, int]] = field(default_factory=list, repr=False)
    """Counters of each slice of the RTL."""

    @property
    def error(self) -> float:
        """Share by which the RTL's cycles differ from the model's, signed."""
        return self.cycles / self.expected_cycles - 1


def reference(chip: Chip, program: Program, setup: Setup) -> tuple[Any, TimingResult, npt.NDArray[np.int64]]:
    """Run the functional simulator and time it: the machine, the result, the record of every instruction."""
    from systolith.sim import FastMachine
    from systolith.timing import TimingMachine

    machine = FastMachine(chip, program)
    setup(machine)
    timing = TimingMachine(chip, program, keep_all=True)
    buffer = np.zeros((program.requires.slices, _ROWS, COLS), np.int64)
    while not timing.feed(buffer, machine.run_resolved(buffer)):
        pass
    return machine, timing.finish(), timing.records


def cosim(
    chip: Chip,
    program: Program,
    setup: Setup = lambda machine: None,
    *,
    folder: Path | None = None,
    hold_share: int = 0,
    seed: int = 1,
    fault: int = 0,
    expected: tuple[Any, TimingResult, npt.NDArray[np.int64]] | None = None,
) -> Cosim:
    """Run a program on the RTL and beside it; `setup` writes what the host lays down into either machine.

    hold_share, seed : back-pressure; times are then not compared. fault : of a Verilog of `rtl.faults`, the one to
    switch on. expected : what `reference` gives, where it has run already.
    Raises what the machines raise.
    """
    from systolith.rtl.device import RtlMachine

    rtl = RtlMachine(chip, program, folder=folder, hold_share=hold_share, seed=seed, writes=True, fault=fault)
    setup(rtl)
    fast, timed, records = expected or reference(chip, program, setup)
    watch = Footprints(chip, program, setup)
    library = rtl.library
    found = Cosim(0, timed.cycles, verilog_sha256=library.verilog_sha256, verilator=library.verilator, timing=timed)
    found.first = _run(rtl, watch, _SLACK * timed.cycles + _SLACK_CYCLES)
    found.cycles, found.bytes, found.executed = rtl.halt_time, watch.compared, fast.counts
    found.timed = not hold_share and found.first is None
    found.events, found.records = rtl.events(), records
    found.status = [rtl.status(rank) for rank in range(program.requires.slices)]
    if found.first is not None:
        found.differences.append(str(found.first))
        return found
    for rank in range(program.requires.slices):
        _compare_bits(found, rank, rtl, fast)
    if not hold_share:
        _compare_times(found, program, found.events, records)
    return found


def waveform(
    chip: Chip,
    program: Program,
    setup: Setup,
    difference: Difference,
    path: Path,
    *,
    folder: Path | None = None,
    hold_share: int = 0,
    seed: int = 1,
) -> tuple[int, int]:
    """Run again on a build that traces, and write all signals around a difference (VCD); give first and last cycle."""
    from systolith.rtl.device import RtlMachine

    first, last = max(0, difference.cycle - _BEFORE), difference.cycle + _AFTER
    rtl = RtlMachine(
        chip, program, folder=folder, hold_share=hold_share, seed=seed, events=False, trace=(path, first, last)
    )
    setup(rtl)
    with contextlib.suppress(ProgramError):  # the fault that is looked at
        rtl.run(cycles=last + 2)
    rtl.close_trace()
    return first, last


def _run(rtl: Any, watch: Footprints, limit: int) -> Difference | None:
    """Run the RTL window by window, and compare what each window has written; the first difference ends it."""
    halted, fault = False, None
    while not halted and fault is None and rtl.cycles < limit:
        try:
            halted = rtl.run(cycles=_WINDOW)
        except ProgramError as error:
            fault = error
        events = rtl.events()
        thread = events[:, 0] * len(QUEUES) + events[:, 1]
        done = events[:, 4] >= 0
        watch.advance([int(done[thread == t].sum()) for t in range(watch.threads)])
        writer, rank, space, address, value, cycle = rtl.take_writes()
        writes = watch.key(writer, rank, space, address), value, cycle
        difference = watch.compare(writes, events, final=halted)
        if difference is not None:
            return difference
    if fault is not None:
        return Difference(rtl.cycles, "the rtl", f"it stops where sim does not: {fault}")
    if not halted:
        return Difference(rtl.cycles, "the rtl", f"it has not halted, {_SLACK} times as late as the timing model")
    return None


def _compare_bits(found: Cosim, rank: int, rtl: Any, fast: Any) -> None:
    for name in _MEMORIES:
        ours, theirs = getattr(rtl, name)(rank), getattr(fast, name)(rank)
        wrong = np.flatnonzero(ours != theirs)
        if len(wrong):
            at = int(wrong[0])
            found.differences.append(
                f"slice {rank}, {name} at {at}: rtl has {int(ours[at])}, sim has {int(theirs[at])}; "
                f"{len(wrong)} bytes differ in all"
            )
    if rtl.records(rank) != fast.records(rank):
        ours, theirs = rtl.records(rank), fast.records(rank)
        pairs = enumerate(zip(ours, theirs, strict=False))
        number = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        found.differences.append(f"slice {rank}: record {number} to the host differs, or is missing")
    for cell, (a, b) in enumerate(zip(rtl.cells(rank), fast.cells(rank), strict=True)):
        if a != b and cell:
            found.differences.append(f"slice {rank}, cell {cell}: rtl has {a}, sim has {b}")


def _compare_times(found: Cosim, program: Program, events: Any, records: Any) -> None:
    from systolith.timing import state as at

    seen: set[int] = set()
    for rank in range(program.requires.slices):
        for queue in range(len(QUEUES)):
            ours = events[(events[:, 0] == rank) & (events[:, 1] == queue)][:, 2:5]
            mine = (records[:, at.R_SLICE] == rank) & (records[:, at.R_QUEUE] == queue)
            theirs = records[mine][:, [at.R_PC, at.R_START, at.R_END]]
            if len(ours) != len(theirs) or (ours[:, 0] != theirs[:, 0]).any():
                found.differences.append(
                    f"slice {rank}, queue {QUEUES[queue]}: {len(ours)} instructions on the rtl, {len(theirs)} in the "
                    "model, or others"
                )
                continue
            found.instructions += len(ours)
            found.moved += int((ours != theirs).any(axis=1).sum())
            took, rule = ours[:, 2] - ours[:, 1], theirs[:, 2] - theirs[:, 1]
            for i in np.flatnonzero(took != rule):
                pc = int(ours[i, 0])
                mnemonic = program.code[pc].mnemonic
                found.durations[mnemonic] += 1
                if pc not in seen:
                    seen.add(pc)
                    found.late.append(Late(where(program, rank, pc), mnemonic, int(rule[i]), int(took[i])))

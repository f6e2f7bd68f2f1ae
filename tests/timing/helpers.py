"""Small programs built from records, and the plain executor as a source of resolved rows."""

from collections.abc import Iterator, Sequence

import numpy as np

from systolith.isa import Copy, Desc, Descriptor, Format, Halt, Instruction, Program, Requires, Space
from systolith.isa.execute import Machine
from systolith.isa.resolved import SLICE
from systolith.spec import Chip, load
from systolith.timing import TimingResult, simulate

NANO = load("nano")


class Rows:
    """`run_resolved` on top of the definition."""

    def __init__(self, machine: Machine) -> None:
        self.stream: Iterator[np.ndarray] = machine.resolved()

    def run_resolved(self, buffer: np.ndarray) -> np.ndarray:
        counts = np.zeros(len(buffer), np.int64)
        for row in self.stream:
            s = int(row[SLICE])
            buffer[s, counts[s]] = row
            counts[s] += 1
            if counts[s] == buffer.shape[1]:
                break
        return counts


def tensor(space: Space, ext: Sequence[int], fmt: Format = Format.INT8, base: int = 0, **more: object) -> Descriptor:
    """A contiguous tensor; with scale=1 its scales stand where `sbase` says."""
    e0, e1, e2 = ext
    values: dict = {"stride": (e1 * e2, e2, 1)} | more
    return Descriptor(space=space, format=fmt, base=base, ext=(e0, e1, e2), **values)


def program(
    chip: Chip,
    code: Sequence[Instruction],
    constants: Sequence[Descriptor] = (),
    sems: dict[int, int] | None = None,
    slices: int | None = None,
    lines: Sequence[str] = (),
) -> Program:
    """DESC of every constant into D1, D2, ..., then the code, then HALT."""
    head = [Desc(d=i + 1, k=i) for i in range(len(constants))]
    words = [i.encode() for i in (*head, *code, Halt(cause=1))]
    init = [0] * 24
    for number, count in (sems or {}).items():
        init[number] = count
    needs = Requires(
        slices=slices or chip.slices,
        dram_bytes=min(chip.dram_bytes, 1 << 20),
        spad_bytes=chip.scratchpad_bytes,
        slot_bytes=chip.slots_bytes,
        acc_bytes=chip.accumulator_bytes,
    )
    return Program(
        words=tuple(words), constants=tuple(constants), sem_init=tuple(init), requires=needs, lines=tuple(lines)
    )


def time(chip: Chip, p: Program, **options: object) -> TimingResult:
    """Time a program whose rows the definition yields."""
    return simulate(chip, p, Rows(Machine(chip, p)), **options)


__all__ = ["NANO", "Copy", "Rows", "program", "tensor", "time"]

"""A chip that runs step by step under the eyes of the host: the executor, and with it the timing.

Between two steps the device polls its mailbox. The host here answers at once: it has the records of the step before,
writes its message, and only then the poll is made. `cycle` is the chip's time at that point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from systolith.compiler import Compiled
from systolith.compiler.plan import padded
from systolith.isa.program import Program
from systolith.isa.resolved import COLS
from systolith.runtime.device import Device, Machine
from systolith.runtime.mail import Mailbox, Message, is_end
from systolith.spec.chip import Chip

if TYPE_CHECKING:
    from systolith.timing import TimingMachine

__all__ = ["Control", "LiveChip", "StepResult"]

_ROWS = 512
"""Resolved rows of each slice asked for at once."""
_GRAIN = 16
"""Cycles by which the poll is put off until the records of the step have left the chip: the host reads them first."""


@dataclass(slots=True)
class StepResult:
    """What a step gave. tokens: (token, position, live, tag) of each output row; cycles: when each left the chip, empty
    without timing; taken: messages the device has taken; live: request slots that live; message: its number and what it
    held, the same for steps that went on by themselves."""

    tokens: list[tuple[int, ...]]
    cycles: list[int]
    taken: int
    live: int
    message: Message
    alone: bool
    """The device went on without a message."""
    logits: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """Rows of logits that were asked for, by place among `tokens`."""


class Control:
    """A device that runs a program's control alone, without weights: for times. Every token is 0."""

    name, runs = "control", True

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled

    def open(self, chip: Chip, program: Program) -> Machine:
        """Load the program."""
        from systolith.sim.skeleton import Skeleton

        return Skeleton(chip, program, *self._compiled.memory.control)


class LiveChip:
    """A program that serves, on a device. Raises ProgramError where it traps."""

    def __init__(self, compiled: Compiled, device: Device, *, timing: bool) -> None:
        self.plan = compiled.plan
        self._memory = compiled.memory
        self._machine = device.open(self.plan.chip, compiled.program)
        self.mailbox = Mailbox(self._machine, compiled.program)
        self._timing: TimingMachine | None = None
        self._buffer: NDArray[np.int64] | None = None
        if timing:
            from systolith.timing import TimingMachine

            self._timing = TimingMachine(self.plan.chip, compiled.program)
            self._buffer = np.zeros((self.plan.slices, _ROWS, COLS), np.int64)
        self._last = Message()
        self.live = 0

    @property
    def goes_on(self) -> bool:
        """Whether the device would make a step without a message."""
        return bool(self._last.pattern) and self.live > 0

    @property
    def cycle(self) -> int:
        """Cycle of the poll; 0 without timing."""
        return self._timing.sequencer if self._timing is not None else 0

    def wait_until(self, cycle: int) -> None:
        """Leave the chip polling until a cycle. The polls themselves are not run: they do nothing else."""
        if self._timing is not None:
            self._timing.wait_until(cycle)

    def step(self, message: Message | None, logits_of: frozenset[int] = frozenset()) -> StepResult:
        """Run one step: of a message, or of the pattern. logits_of: request slots whose logits are read back."""
        if message is not None:
            self.mailbox.write(message)
            now = message
        else:
            assert self.goes_on
            now = Message(self._last.pattern, pattern=self._last.pattern, outputs=list(self._last.pattern))
        self._last = now
        while True:
            counts, done = self._machine.run_to_record(is_end, self._buffer)
            if self._timing is not None:
                assert self._buffer is not None
                self._timing.feed(self._buffer, counts)
            if done:
                break
        records = self._machine.take_records()
        cycles = self._cycles(len(records))
        taken, self.live = records.pop()
        rows = {row: self._row(row) for row, slot in enumerate(now.outputs) if slot in logits_of}
        return StepResult(records, cycles[: len(records)], taken, self.live, now, message is None, rows)

    def _cycles(self, count: int) -> list[int]:
        """When each record of the step left the chip. All slices stand at the poll, so time may go on till then."""
        timing = self._timing
        if timing is None:
            return []
        timing.wait_until(timing.sequencer)
        while len(mine := [event.cycle for event in timing.rings if event.slice == 0]) < count:
            timing.wait_until(timing.sequencer + _GRAIN)
        assert len(mine) == count
        timing.rings.clear()
        timing.windows.clear()
        return mine

    def _row(self, row: int) -> NDArray[np.float32]:
        """A row of logits [vocab] of the step, which the slice that sampled it keeps until the next one."""
        vocab = self.plan.model.vocab
        width = padded(vocab)
        data = self._machine.read_dram(row % self.plan.slices, self._memory.dram["logits"] + 4 * row * width, 4 * vocab)
        return np.frombuffer(data, "<f4")

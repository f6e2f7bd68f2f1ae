"""Programs that run for their times alone: a decode step at a context, the prefill of a prompt, without weights.

The program is the one that `compile` emits. A `sim.Skeleton` yields its resolved stream and `timing` gives it cycles:
nothing here has a rule of its own about time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from systolith.compiler import Compiled
from systolith.compiler.builder import SEMAPHORE
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import Sync
from systolith.runtime.job import GridStep, Layout, Request, decode_steps, prefill, write_job
from systolith.spec.errors import ConfigError, ProgramError

if TYPE_CHECKING:
    from systolith.timing import TimingMachine, TimingResult, Waterfall

__all__ = ["OnWindow", "Scenario", "Timed", "decode_at", "prefill_of", "run_scenario"]

_ISSUES = 1 << 14
"""Issues asked for at once, of all slices together; 128 of each at least."""

OnWindow = Callable[["TimingMachine", "Waterfall"], None]


@dataclass(frozen=True)
class Scenario:
    """Requests as the host lays them down, and the steps of the prefill that run (none: the prompts are cached)."""

    requests: tuple[Request, ...]
    layout: Layout


@dataclass
class Timed:
    """What a scenario took.

    steps : cycle at which the last instruction of each step ended on slice 0.
    tokens : cycle at which each record of a token left the chip.
    simulated, skipped : layers, over all steps.
    """

    timing: TimingResult
    steps: list[int]
    tokens: list[int]
    simulated: int
    skipped: int

    def waterfall(self, start: int, end: int) -> Waterfall:
        """Critical path between two tokens, or from cycle 0 to one."""
        from systolith.timing import Waterfall

        return Waterfall.total(w for w in self.timing.windows if w.start >= start and w.end <= end)


def decode_at(context: int, batch: int = 1, *, steps: int = 1, rows: int | None = None) -> Scenario:
    """`steps` decode steps of `batch` requests, of which the last sees `context` tokens; caches are taken as filled.

    rows : of a step of the program, where it takes several to make a token for each request. The first of `steps`
    starts a cold chip, so ask for one more than is read. Raises ConfigError.
    """
    if context <= steps:
        raise ConfigError(f"context={context} must be more than {steps}; a decode step needs a prompt")
    cached = context - steps
    requests = tuple(Request((0,) * cached, steps + 1) for _ in range(batch))
    return Scenario(requests, Layout((), decode_steps([cached] * batch, rows or batch)))


def prefill_of(
    compiled: Compiled, lengths: Sequence[int], chosen: Sequence[int] | None = None,
    grid: Sequence[GridStep] | None = None,
) -> Scenario:  # fmt: skip
    """The prefill of prompts, to their first tokens; `chosen`: only these of its steps, in order; `grid`: only these on
    the grid."""
    requests = tuple(Request((0,) * length, 1) for length in lengths)
    whole = prefill(compiled.program, requests)
    steps = whole.steps if chosen is None else tuple(whole.steps[i] for i in chosen)
    return Scenario(requests, replace(whole, steps=steps, grid=whole.grid if grid is None else tuple(grid)))


def _step_ends(compiled: Compiled) -> list[int]:
    """Words that end a step: V tells L that all tables may be replaced."""
    released = 1 << SEMAPHORE["released"]
    return [
        pc
        for pc, i in enumerate(compiled.program.code)
        if isinstance(i, Sync)
        and i.queue == Queue.V
        and i.posts == released
        and not i.waits
        and compiled.program.line(pc).startswith(("kernels/step.py", "kernels/grid/step.py"))
    ]


def run_scenario(
    compiled: Compiled,
    scenario: Scenario,
    *,
    seed: int = 0,
    skip: bool = True,
    on_window: OnWindow | None = None,
    watch: tuple[int, int] | None = None,
) -> Timed:
    """Run a scenario to its end and time it.

    seed : of the choices of experts.    skip : leave out layers that are proved to go as those before (`timing.layers`)
    watch : numbers of two tokens: `timing.slices` of the result is for the time between them alone.
    """
    from systolith.sim.skeleton import Skeleton
    from systolith.timing import LayerMachine, layer_loop

    chip, program = compiled.plan.chip, compiled.program
    loop = layer_loop(program) if skip else None
    machine = Skeleton(chip, program, *compiled.memory.control, seed=seed, body=loop[:2] if loop else None)
    write_job(machine, program, scenario.requests, scenario.layout)
    timing = LayerMachine(chip, program, loop[:2] if loop else None)
    layers = max(1, compiled.plan.model.layers // loop[2]) if loop else 0  # of an iteration
    timing.on_window = on_window
    timing.watch = watch
    ends, steps, seen, finished = np.array(_step_ends(compiled), np.int64), [], 0, False

    def take_ends() -> None:
        nonlocal seen
        found, seen = timing.ends_since(seen, ends)
        steps.extend(found)

    timing.on_records = take_ends
    most = max(128, _ISSUES // compiled.plan.slices)
    while not finished:
        ops, counts = machine.run_issues(most)
        finished = False
        if counts.any() or not machine.at_cut:
            finished = timing.feed_issues(ops, counts, cuts=machine.cuts)
        if machine.at_cut:
            timing.cut(machine.periods)
            times, period = machine.repeats(chip.dram_burst_bytes, chip.bank_size_bytes)
            if times:
                timing.repeat(times, period)
                machine.skip(times, period)
        elif not finished and not counts.any():
            raise ProgramError("timing: the program stopped before every slice had halted")
    take_ends()
    timing.on_records = None
    result = timing.finish()
    tokens = [event.cycle for event in result.rings if event.slice == 0]
    skipped = layers * timing.skipped
    return Timed(result, steps, tokens, len(steps) * compiled.plan.model.layers - skipped, skipped)

"""One job from requests to results: choose the program's sizes, compile, load, run, time, read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from systolith.compiler import Compiled, Options, Plan, compile_model
from systolith.compiler.compile import plan_model
from systolith.compiler.plan import padded
from systolith.isa.resolved import COLS
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.bound import Bound, bound
from systolith.runtime.device import Device, Machine
from systolith.runtime.job import Request, check_requests, layout, pack, write_job
from systolith.spec.chip import Chip
from systolith.spec.errors import ProgramError

if TYPE_CHECKING:
    from systolith.timing import TimingMachine, TimingResult, Waterfall

__all__ = ["Run", "Token", "compile_job", "load_kernels", "prompt_logits", "run_job"]

CONTEXT_STEP = 256
"""A program's context is a multiple of this, or the model's: nearby jobs have one program."""
STEPS_STEP = 8
"""A program's step records are a multiple of this, for the same reason."""
_ROWS = 512
"""Resolved rows of each slice asked for at once."""
_WORDS = 1 << 18
"""Words of each slice between two looks at the world."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token that reached the host. index: 0 for the first of its request; cycle: None without times."""

    slot: int
    index: int
    token: int
    position: int
    cycle: int | None


@dataclass
class Run:
    """What a job gave. Lists are by request slot.

    tokens, cycles : of generated tokens; cycles are empty without times.
    logits : FP32 [batch, steps, vocab] or None; steps behind a request's last token are 0.
    timing : None without times, or where nothing ran.
    """

    compiled: Compiled
    requests: tuple[Request, ...]
    tokens: list[list[int]]
    cycles: list[list[int]]
    logits: NDArray[np.float32] | None = None
    timing: TimingResult | None = None
    ran: bool = True
    rtl: dict[str, object] | None = None
    """Cycles, SHA-256 of the Verilog and Verilator's version, where the RTL ran; `timing` is then None."""

    @property
    def plan(self) -> Plan:
        """The plan of the program that ran."""
        return self.compiled.plan

    @property
    def clock_hz(self) -> int:
        """Clock of the chip, Hz."""
        return self.plan.chip.clock_hz

    def ttft_s(self, slot: int) -> float | None:
        """Chip time from start to a request's first token, seconds."""
        return self.cycles[slot][0] / self.clock_hz if self.cycles[slot] else None

    def tpot_s(self, slot: int) -> float | None:
        """Mean chip time of a request's tokens after its first, seconds; None where there is no second."""
        times = self.cycles[slot]
        return (times[-1] - times[0]) / (len(times) - 1) / self.clock_hz if len(times) > 1 else None

    def bound(self) -> Bound:
        """The chip's own bound for this job; where nothing ran, for the tokens that were asked for."""
        made = [len(t) for t in self.tokens] if self.ran else [r.max_tokens for r in self.requests]
        lengths = [len(r.prompt) for r in self.requests]
        steps = [
            [length + i for length, n in zip(lengths, made, strict=True) if i < n] for i in range(max(made, default=0))
        ]
        return bound(self.plan, steps)

    def decode_waterfall(self) -> Waterfall | None:
        """Cycles by part from the last first token to the last token; None without a decode step."""
        from systolith.timing import Waterfall

        firsts = [times[0] for times in self.cycles if times]
        if self.timing is None or not firsts or (last := max(t[-1] for t in self.cycles if t)) <= max(firsts):
            return None
        return Waterfall.total(w for w in self.timing.windows if w.start >= max(firsts) and w.end <= last)


def load_kernels(device: Device) -> None:
    """Import what a timed run needs. The first time on a machine this compiles it, half a minute; then it is cached."""
    if device.runs:
        import_module("systolith.timing")
    if device.name == "sim":
        import_module("systolith.sim")


def compile_job(
    checkpoint: Checkpoint,
    chip: Chip,
    profile: Profile,
    requests: Sequence[Request],
    *,
    page_tokens: int = 64,
    prefill_chunk: int | None = None,
    keep_logits: bool = False,
    every_row: bool = False,
    dump: bool = False,
    rows: int | None = None,
) -> Compiled:
    """Compile the smallest program that runs a job: context, batch, steps and rows of logits are what it needs."""
    graph = checkpoint.graph
    check_requests(requests, graph.vocab, graph.context)
    need = max(len(r.prompt) + r.max_tokens - 1 for r in requests)
    kept = 0
    if every_row:
        kept = sum(len(r.prompt) for r in requests)
    elif keep_logits:
        kept = len(requests) * max(r.max_tokens for r in requests)
    options = Options(
        batch=len(requests),
        context=min(padded(need, CONTEXT_STEP), graph.context),
        page_tokens=page_tokens,
        steps=2,
        log_rows=kept,
        every_row=every_row,
        dump=dump,
        rows=rows,
    )
    plan, memory = plan_model(checkpoint, chip, profile, options)
    steps = pack(requests, plan.rows, memory.record.max_segments, prefill_chunk=prefill_chunk, every_row=every_row)
    # Prompts that a grid does may leave as many steps of other rows, and one for the logits of those that end there.
    options = replace(options, steps=padded(len(steps) + 1 + plan.decode_steps, STEPS_STEP), rows=plan.rows)
    return compile_model(checkpoint, chip, profile, options)


@dataclass
class _Collector:
    """Sorts the done-ring's records into tokens of requests."""

    batch: int
    on_token: Callable[[Token], None] | None
    tokens: list[list[int]] = field(init=False)
    cycles: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = [[] for _ in range(self.batch)]
        self.cycles = [[] for _ in range(self.batch)]

    def take(self, record: tuple[int, ...], cycle: int | None) -> None:
        """Take a record {token, position, live, slot}. One of a finished request, live 0, is no token of it."""
        token, position, live, slot = record
        made = self.tokens[slot]
        if made and not live:
            return
        made.append(token)
        if cycle is not None:
            self.cycles[slot].append(cycle)
        if self.on_token is not None:
            self.on_token(Token(slot, len(made) - 1, token, position, cycle))


def run_job(
    compiled: Compiled,
    device: Device,
    requests: Sequence[Request],
    *,
    timing: bool = True,
    prefill_chunk: int | None = None,
    on_token: Callable[[Token], None] | None = None,
    on_window: Callable[[TimingMachine, Waterfall], None] | None = None,
) -> Run:
    """Run a job to its end.

    timing : also time it.      on_token : called with each token as it arrives.
    on_window : called by the timing with each window between two records; all records are then kept.
    Raises ProgramError where the program traps, CapacityError where chip or program are too small for the job.
    """
    program, chip = compiled.program, compiled.plan.chip
    machine = device.open(chip, program)
    plan = layout(program, requests, prefill_chunk)
    write_job(machine, program, requests, plan)
    run = Run(compiled, tuple(requests), [[] for _ in requests], [[] for _ in requests], ran=device.runs)
    if not device.runs:
        return run
    collector = _Collector(len(requests), on_token)
    if device.name == "rtl":
        run.rtl = _run_rtl(machine, collector)
    elif timing:
        run.timing = _run_timed(machine, compiled, collector, on_window)
    else:
        while not machine.run(_WORDS, lambda _, record: collector.take(record, None)):
            pass
    run.tokens, run.cycles = collector.tokens, collector.cycles
    if compiled.plan.options.log_rows and not compiled.plan.options.every_row:
        outputs = [slot for step in plan.steps for _, slot in step.outputs]
        run.logits = _generated_logits(machine, compiled, outputs, [len(t) for t in run.tokens])
    return run


def _run_timed(
    machine: Machine,
    compiled: Compiled,
    collector: _Collector,
    on_window: Callable[[TimingMachine, Waterfall], None] | None,
) -> TimingResult:
    """Run with times: the executor runs a little ahead, a token counts when its record has left the chip."""
    from systolith.timing import TimingMachine

    timing = TimingMachine(compiled.plan.chip, compiled.program, keep_all=on_window is not None)
    timing.on_window = on_window
    buffer = np.zeros((compiled.plan.slices, _ROWS, COLS), np.int64)
    seen = done = 0
    finished = False
    while not finished:
        counts = machine.run_resolved(buffer)
        finished = timing.feed(buffer, counts)
        if not finished and not counts.any():
            raise ProgramError("timing: the device stopped before every slice had halted")
        events = timing.rings
        if seen == len(events):
            continue
        records = machine.records(0)
        for event in events[seen:]:
            if event.slice == 0:
                collector.take(records[done], event.cycle)
                done += 1
        seen = len(events)
    return timing.finish()


def _run_rtl(machine: Any, collector: _Collector) -> dict[str, object]:
    """Run a machine that keeps its own time; its records get their cycles at the end."""
    records: list[tuple[int, ...]] = []
    machine.run(on_ring=lambda _, record: records.append(record))
    for record, cycle in zip(records, machine.record_cycles(), strict=True):
        collector.take(record, cycle)
    library = machine.library
    return {
        "cycles": machine.halt_time, "verilog_sha256": library.verilog_sha256, "verilator": library.verilator,
    }  # fmt: skip


def _rows(machine: Machine, compiled: Compiled, rows: int) -> NDArray[np.float32]:
    """Logits that slice 0 kept, FP32 [rows, vocab]."""
    vocab = compiled.plan.model.vocab
    width = padded(vocab)
    data = machine.read_dram(0, compiled.memory.dram["logits"], 4 * rows * width)
    return np.frombuffer(data, "<f4").reshape(rows, width)[:, :vocab].copy()


def _generated_logits(
    machine: Machine, compiled: Compiled, outputs: Sequence[int], made: Sequence[int]
) -> NDArray[np.float32]:
    """Logits of generated tokens, [batch, steps, vocab]: first a row for each prompt's end, in the order of `outputs`,
    then a row for each slot and decode step."""
    batch, steps = len(made), max(made)
    rows = _rows(machine, compiled, len(outputs) + batch * (steps - 1))
    result = np.zeros((batch, steps, rows.shape[1]), np.float32)
    for row, slot in enumerate(outputs):
        result[slot, 0] = rows[row]
    for step in range(1, steps):
        for slot in range(batch):
            if step < made[slot]:
                result[slot, step] = rows[len(outputs) + (step - 1) * batch + slot]
    return result


def prompt_logits(
    compiled: Compiled, device: Device, request: Request, *, prefill_chunk: int | None = None
) -> tuple[NDArray[np.float32], Machine]:
    """Logits FP32 [positions, vocab] of every position of a prompt, and the machine that has them.

    The program must have been compiled with `every_row`.
    """
    machine = device.open(compiled.plan.chip, compiled.program)
    plan = layout(compiled.program, [request], prefill_chunk)
    write_job(machine, compiled.program, [request], plan)
    while not machine.run(_WORDS):
        pass
    return _rows(machine, compiled, len(request.prompt)), machine

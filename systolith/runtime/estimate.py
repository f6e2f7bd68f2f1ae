"""What a chip gives for a model without weights: time per token, time to first token, where it goes, what bounds it.

Times are those of the compiled program on the timing simulator. Bounds come from the config alone (`runtime.bound`), so
that a time below one is a fault of one of the two.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from systolith.compiler import Compiled, Options
from systolith.compiler.compile import compile_graph, plan_graph
from systolith.compiler.plan import padded
from systolith.models.family import build_graph, load_config, packaged_configs
from systolith.models.graph import ModelGraph
from systolith.models.profile import Profile
from systolith.runtime.bound import StepCost, prefill_cost, step_cost
from systolith.runtime.job import Layout, Request, pack
from systolith.runtime.layer_path import StepPath, layer_path, lines_of
from systolith.runtime.manifest import manifest
from systolith.runtime.scenario import OnWindow, decode_at, prefill_of, run_scenario
from systolith.spec.chip import Chip
from systolith.spec.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from systolith.timing import SliceTimes, TimingMachine, Waterfall

__all__ = ["Estimate", "Question", "compile_for", "decode_step", "estimate", "first_token", "open_config"]

CONTEXT_STEP = 256
EFFICIENCIES = (Fraction(9, 10), Fraction(19, 20))
"""Shares of the pin rate that a memory with refresh is also timed at."""
WHOLE_PREFILL = 12
"""Most steps of a prefill that are all timed; of more, SAMPLES are."""
SAMPLES = 5


def open_config(name: str) -> tuple[ModelGraph, str, str]:
    """A model's graph, its source for messages, and the SHA-256 of what its config says.

    name : a packaged config, `tinycode`, a model directory, or a config.json. Raises ModelError.
    """
    known = packaged_configs()
    if name in known:
        path, label = known[name], name
    elif name == "tinycode":
        path, label = Path(str(resources.files("systolith.models"))) / "tinycode", name
    else:
        path = Path(name)
        label = path.resolve().parent.name if path.suffix == ".json" else path.resolve().name
        if not path.exists():
            raise ModelError(
                f"{name}: not found; give a model directory, a config.json, or one of {', '.join(known)}, tinycode"
            )
    config = load_config(path)
    graph = build_graph(config)
    facts = json.dumps({"model_type": config.family, **config.values}, sort_keys=True, separators=(",", ":"))
    return replace(graph, name=label or graph.name), str(path), hashlib.sha256(facts.encode()).hexdigest()


@dataclass(frozen=True)
class Question:
    """What is asked. context: tokens that the timed decode step sees, where `output_len` is None; else a prompt of
    `input_len` tokens and `output_len` made. batch: requests that decode together; a prompt is prefilled alone.

    Raises ConfigError.
    """

    context: int = 8192
    batch: int = 1
    input_len: int | None = None
    output_len: int | None = None
    page_tokens: int = 64
    seed: int = 0
    sensitivity: bool = True
    prefill: bool = True

    def __post_init__(self) -> None:
        faults = [
            f"{name}={value} must be {low} or more"
            for name, value, low in (
                ("context", self.context, 3), ("batch", self.batch, 1),
                ("input-len", self.prompt, 2), ("output-len", 2 if self.output_len is None else self.output_len, 2),
            )
            if value < low
        ]  # fmt: skip
        if faults:
            raise ConfigError("; ".join(faults) + "; correct the option")

    @property
    def prompt(self) -> int:
        """Tokens of the prompt that the time to first token is for."""
        return self.context if self.input_len is None else self.input_len

    @property
    def contexts(self) -> list[int]:
        """Contexts of the decode steps that are timed: the one asked for, or the first, middle and last of the output.

        Cost is close to linear in the context, with steps at chunks of 256; the mean weighs them by Simpson's rule.
        """
        if self.output_len is None:
            return [self.context]
        first, last = self.prompt + 1, self.prompt + self.output_len - 1
        return sorted({first, (first + last) // 2, last})

    @property
    def most(self) -> int:
        """Positions that a sequence needs."""
        return max(self.prompt, *self.contexts) + 1


@dataclass
class Decode:
    """A timed decode step. cycles: of the step; cost: what it must do; path: where its critical path goes."""

    context: int
    cycles: int
    cost: StepCost
    waterfall: Waterfall
    path: StepPath
    layers: tuple[int, int]
    """Simulated, and skipped as equal."""
    slices: tuple[SliceTimes, ...]
    """What each slice did in a window as long as the step."""


@dataclass
class First:
    """The time to a first token. cycles: from start; timed, steps: steps of the prefill that were timed, and in all."""

    cycles: int
    timed: int
    steps: int
    layers: tuple[int, int]
    path: StepPath
    """Critical path of the steps that were timed."""


@dataclass
class Estimate:
    """Everything that `systolith estimate` prints. Seconds unless the name says otherwise."""

    compiled: Compiled
    question: Question
    decodes: list[Decode]
    first: First | None
    model_sha256: str
    sensitivity: dict[str, float] = field(default_factory=dict)

    @property
    def chip(self) -> Chip:
        """The chip."""
        return self.compiled.plan.chip

    @property
    def tpot_s(self) -> float:
        """Mean time of a decode step."""
        return _mean([d.cycles for d in self.decodes]) / self.chip.clock_hz

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token of one prompt on an idle chip; None where it was not asked for."""
        return self.first.cycles / self.chip.clock_hz if self.first else None

    @property
    def middle(self) -> Decode:
        """The decode step that stands for all: the one of the middle context."""
        return self.decodes[len(self.decodes) // 2]

    def to_dict(self, made_of: dict[str, Any] | None = None) -> dict[str, Any]:
        """The object of `--json`. made_of: the manifest of a command; left out, that of the question."""
        chip, plan, middle = self.chip, self.compiled.plan, self.middle
        cost = middle.cost
        memory, compute = cost.seconds(chip)
        step_s = middle.cycles / chip.clock_hz
        prefill_memory, prefill_compute = prefill_cost(plan, self.question.prompt).seconds(chip)
        share = chip.dram_efficiency
        prefill_fractions: dict[str, Any] = {}
        if self.ttft_s is not None:
            prefill_fractions = {
                "prefill_compute_of_peak": _ratio(prefill_compute, self.ttft_s),
                "prefill_of_bound": _ratio(max(prefill_memory, prefill_compute), self.ttft_s),
            }
        uniform = cost.uniform_seconds(chip)
        by_experts: dict[str, Any] = {}
        if plan.model.experts is not None:
            by_experts = {"decode_of_stated_rate_uniform_router": _ratio(max(uniform / share, compute), step_s)}
        runs = [d.layers for d in self.decodes] + ([self.first.layers] if self.first else [])
        return {
            "chip": chip.name,
            "model": plan.model.name,
            "tpot_s": self.tpot_s,
            "ttft_s": self.ttft_s,
            "tokens_per_s": self.question.batch / self.tpot_s,
            "bytes": {"weights": cost.bytes - cost.kv_bytes, "kv": cost.kv_bytes},
            "bound_s": {"memory": float(memory), "compute": float(compute)}
            | ({"memory_uniform_router": float(uniform)} if by_experts else {}),
            "prefill_bound_s": {"memory": float(prefill_memory), "compute": float(prefill_compute)},
            "waterfall": {part: n / chip.clock_hz for part, n in middle.waterfall.parts.items()},
            "fractions": {
                "decode_of_pin_rate": _ratio(max(memory, compute), step_s),
                "decode_of_stated_rate": _ratio(max(memory / share, compute), step_s),
                "memory_of_pin_rate": _ratio(memory, step_s),
                "memory_of_stated_rate": _ratio(memory / share, step_s),
                "compute_of_peak": _ratio(compute, step_s),
            }
            | by_experts
            | prefill_fractions,
            "binds": "memory bandwidth" if memory / share >= compute else "arithmetic",
            "layer_path": layer_path(middle.path, plan.model.layers, chip.clock_hz),
            "lines": {line: n / chip.clock_hz for line, n in lines_of(middle.path).most_common(12)},
            "prefill_lines": _shares(lines_of(self.first.path)) if self.first else {},
            "decode_steps": [{"context": d.context, "seconds": d.cycles / chip.clock_hz} for d in self.decodes],
            "sensitivity": self.sensitivity,
            "simulated": {
                "layers_simulated": sum(n for n, _ in runs), "layers_skipped_as_equal": sum(n for _, n in runs),
                "prefill_steps_timed": self.first.timed if self.first else 0,
                "prefill_steps": self.first.steps if self.first else 0,
            },
            "weights_enter": weights_enter(chip),
            "grid": grid_facts(self.compiled),
            "manifest": made_of or manifest(
                "estimate", chip, self.model_sha256, program_sha256=self.compiled.program.sha256,
                seed=self.question.seed, options=asdict(self.question),
                resolved={"profile": plan.profile.to_dict(), "rows": plan.rows},
            ),
        }  # fmt: skip


def grid_facts(compiled: Compiled) -> dict[str, Any]:
    """The grid that prompts are done on: row groups (members of a column group), column groups, columns of a product,
    rows of a step; or "none" and why."""
    grid = compiled.grid
    if grid is None:
        return {"none": compiled.no_grid}
    return {"members": grid.members, "groups": grid.groups, "width": grid.width, "rows": grid.plan.rows}


def weights_enter(chip: Chip) -> str:
    """How weights come into the array: what other simulators leave open and what decides at small batches."""
    return (
        f"weights are loaded into a second register of each PE, {chip.weight_load_bytes} bytes a cycle and slice, "
        "while the array streams the tile before; a pass takes the longer of the two"
    )


def _shares(lines: Counter[str]) -> dict[str, float]:
    """The largest, as shares of all."""
    return {line: n / lines.total() for line, n in lines.most_common(12)}


def _ratio(numerator: Fraction, denominator_s: float) -> dict[str, float]:
    return {
        "value": float(numerator) / denominator_s,
        "numerator_s": float(numerator),
        "denominator_s": denominator_s,
    }


def _mean(values: list[int]) -> float:
    """Of one value, the mean of two, or by Simpson's rule of three."""
    if len(values) == 3:
        return (values[0] + 4 * values[1] + values[2]) / 6
    return sum(values) / len(values)


def estimate(
    graph: ModelGraph, chip: Chip, profile: Profile, question: Question, *, source: str = "", sha256: str = ""
) -> Estimate:
    """Compile a model without weights and time it. Raises CapacityError, ModelError, ConfigError."""
    if question.most > graph.context:
        raise ModelError(
            f"{source or graph.name}: a context of {question.most} is more than max_position_embeddings, "
            f"{graph.context}; ask for fewer tokens"
        )
    compiled = compile_for(graph, chip, profile, question, source=source, sha256=sha256)
    decodes = [decode_step(compiled, context, question) for context in question.contexts]
    first = first_token(compiled, question) if question.prefill else None
    found = Estimate(compiled, question, decodes, first, sha256)
    if question.sensitivity and chip.dram_efficiency < 1:
        context = question.contexts[len(question.contexts) // 2]
        for share in EFFICIENCIES:
            other = on_chip(compiled, chip.vary(dram_efficiency=share))
            step = decode_step(other, context, question)
            found.sensitivity[f"{float(share):.2f}"] = step.cycles / chip.clock_hz
    return found


def compile_for(
    graph: ModelGraph, chip: Chip, profile: Profile, question: Question, *, source: str = "", sha256: str = ""
) -> Compiled:
    """Compile the program that a question is asked of, without weights. Raises as `estimate`."""
    options = Options(
        batch=question.batch, context=min(padded(question.most, CONTEXT_STEP), graph.context),
        page_tokens=question.page_tokens, steps=2,
    )  # fmt: skip
    plan, memory = plan_graph(graph, chip, profile, options, source=source)
    # Room for the records of the prefill.
    steps = len(pack([Request((0,) * question.prompt)], plan.rows, memory.record.max_segments))
    options = replace(options, steps=padded(steps + plan.decode_steps, 8), rows=plan.rows)
    return compile_graph(graph, chip, profile, options, source=source, sha256=sha256)


def on_chip(compiled: Compiled, chip: Chip) -> Compiled:
    """The same program on a chip that differs in what timing alone reads."""
    return replace(compiled, plan=replace(compiled.plan, chip=chip))


def decode_step(compiled: Compiled, context: int, question: Question) -> Decode:
    """Time the decode step that sees `context` tokens, after another: the chip is warm."""
    path: StepPath = Counter()
    batch = question.batch
    window: list[tuple[int, StepPath]] = []
    timed = run_scenario(
        compiled, decode_at(context, batch, steps=2, rows=compiled.plan.rows), seed=question.seed,
        on_window=_line_counter(compiled, window), watch=(batch - 1, 2 * batch - 1),
    )  # fmt: skip
    start, end = timed.tokens[batch - 1], timed.tokens[2 * batch - 1]
    for closed, counted in window:
        if start < closed <= end:
            path += counted
    return Decode(
        context, end - start, step_cost(compiled.plan, [context] * batch), timed.waterfall(start, end), path,
        (timed.simulated, timed.skipped), timed.timing.slices,
    )  # fmt: skip


def _line_counter(compiled: Compiled, window: list[tuple[int, StepPath]]) -> Callable[[TimingMachine, Waterfall], None]:
    """Collect, for each window, where its critical path goes."""
    from systolith.timing.path import PARTS, WHY
    from systolith.timing.state import R_PC
    from systolith.timing.waterfall import overlaps

    def note(machine: TimingMachine, found: Waterfall) -> None:
        assert found.edges is not None
        rec, mask = machine.state.rec, machine.state.rec.shape[0] - 1
        part, why, number = found.edges[:, 2], found.edges[:, 3], found.edges[:, 4]
        pc = np.where(number >= 0, rec[number & mask, R_PC], -1)
        totals = np.zeros((len(compiled.program.words) + 1, len(PARTS), len(WHY)), np.int64)
        np.add.at(totals, (pc, part, why), overlaps(found.edges, found.repeats))  # the last row: before the run
        counted: StepPath = Counter()
        for word, kind, reason in np.argwhere(totals).tolist():
            line = compiled.program.line(word) if word < len(totals) - 1 else "before"
            counted[line, PARTS[kind], WHY[reason]] += int(totals[word, kind, reason])
        window.append((found.end, counted))

    return note


def first_token(compiled: Compiled, question: Question) -> First:
    """Time a prompt up to its first token.

    All steps are timed where there are few. Of many, the first, the last and SAMPLES between, each right after the step
    before it; between two samples the time of a step is taken as linear in its number, which it is but for the stairs
    of chunks of 256 tokens. Of steps on the grid the first two, the last and the last whole one are timed: those
    between differ in the chunks that attention meets, by as many from one to the next.
    """
    window: list[tuple[int, StepPath]] = []
    note = _line_counter(compiled, window)
    scenario = prefill_of(compiled, [question.prompt])
    total = len(scenario.layout.steps)
    if scenario.layout.grid:
        return _first_on_grid(compiled, question, scenario.layout, note, window)
    if total <= WHOLE_PREFILL:
        timed = run_scenario(compiled, scenario, seed=question.seed, on_window=note)
        return First(timed.tokens[0], total, total, (timed.simulated, timed.skipped), _whole_path(window))
    picks = sorted({1 + round(i * (total - 2) / (SAMPLES - 1)) for i in range(SAMPLES)} | {total - 1})
    chosen = sorted({0} | {p - 1 for p in picks} | set(picks))
    some = prefill_of(compiled, [question.prompt], chosen)
    timed = run_scenario(compiled, some, seed=question.seed, on_window=note)
    ends = [*timed.steps[: len(chosen) - 1], timed.tokens[0]]
    took = {step: ends[i] - (ends[i - 1] if i else 0) for i, step in enumerate(chosen)}
    known = [(p, took[p]) for p in picks[:-1]]
    cycles = Fraction(took[0] + took[total - 1])
    for step in range(1, total - 1):
        if step >= known[-1][0]:
            cycles += known[-1][1]
            continue
        (a, low), (b, high) = next((p, q) for p, q in pairwise(known) if p[0] <= step < q[0])
        cycles += low + Fraction((high - low) * (step - a), b - a)
    return First(round(cycles), len(chosen), total, (timed.simulated, timed.skipped), _whole_path(window))


def _first_on_grid(
    compiled: Compiled, question: Question, whole: Layout, note: OnWindow, window: list[tuple[int, StepPath]]
) -> First:
    """As `first_token`, for a prompt that is done on the grid but for its last rows."""
    steps = whole.grid
    last_whole = max(i for i, step in enumerate(steps) if step.chunks == steps[0].chunks)
    chosen = sorted({0, min(1, last_whole), last_whole, len(steps) - 1})
    some = prefill_of(compiled, [question.prompt], grid=[steps[i] for i in chosen])
    timed = run_scenario(compiled, some, seed=question.seed, on_window=note)
    cycles = Fraction(timed.tokens[0])
    if last_whole > 2:
        second, last = (timed.steps[i] - timed.steps[i - 1] for i in (1, 2))
        cycles += sum(second + Fraction((last - second) * i, last_whole - 1) for i in range(1, last_whole - 1))
    total = len(steps) + len(whole.steps)
    layers = (len(chosen) + len(whole.steps)) * compiled.plan.model.layers
    return First(round(cycles), len(chosen) + len(whole.steps), total, (layers, 0), _whole_path(window))


def _whole_path(window: list[tuple[int, StepPath]]) -> StepPath:
    """The path of all windows."""
    found: StepPath = Counter()
    for _, counted in window:
        found += counted
    return found

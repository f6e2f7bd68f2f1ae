"""Ways to run a checkpoint through the compiler and the fast simulator, and to compare what comes out, bit by bit.

Nothing here knows the command line: a program is compiled, a job is written into DRAM, the machine runs, DRAM is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from reference import contract

from systolith.compiler import Compiled, Options, compile_model
from systolith.compiler.memory import dump_widths
from systolith.isa import Machine
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.job import Layout, Request, Sampling, layout, write_job
from systolith.sim import FastMachine
from systolith.spec import Chip, load

CHIPS = ("nano", "micro", "mini", "server", "three", "server63")
"""Named chips, and those of the folder `chips`."""

GREEDY = Sampling()
COMMON = ("r", "q", "k", "v", "attention", "x")
"""Intermediates that every family has."""
Floats = npt.NDArray[np.float32]


@cache
def chip(name: str) -> Chip:
    """A chip of CHIPS."""
    own = Path(__file__).parent / "chips" / f"{name}.toml"
    return load(str(own) if own.exists() else name)


@dataclass(frozen=True, eq=False)
class Subject:
    """A checkpoint as the compiler reads it, and as the reference does."""

    checkpoint: Checkpoint
    reference: contract.Model

    @staticmethod
    def open(path: Path) -> Subject:
        return Subject(Checkpoint.open(path), contract.load_model(path))

    def profile(self, table: Mapping[str, Any] | None = None) -> Profile:
        """A profile for this model from the entries that differ from the default."""
        return Profile.from_dict(table or {}).resolved(self.checkpoint.graph)

    def expected(
        self, profile: Profile, ids: Sequence[int], trace: bool = False, state: contract.State | None = None
    ) -> contract.Result:
        """What the reference makes of a sequence, or of its continuation."""
        table = _without_masks(profile)
        return contract.run(self.reference, table, ids, trace=trace, state=state, **self._masks(profile))

    def expected_tokens(self, profile: Profile, prompt: Sequence[int], count: int, sampling: Sampling) -> list[int]:
        """What the reference generates."""
        return contract.generate(
            self.reference, _without_masks(profile), prompt, count, temperature=sampling.temperature,
            top_k=sampling.top_k, top_p=sampling.top_p, seed=sampling.seed, **self._masks(profile),
        )  # fmt: skip

    def _masks(self, profile: Profile) -> dict[str, Any]:
        return {"window": profile.window, "sinks": profile.sinks(self.reference.heads)}


def _without_masks(profile: Profile) -> contract.Profile:
    """The profile as the reference takes it: window and sinks are its own arguments."""
    table = profile.to_dict()
    table.pop("attention", None)
    return contract.Profile.of(table)


@dataclass(frozen=True, eq=False)
class Ran:
    """A program that has run a job. logits: of each request, FP32 [rows, vocab]; tokens: made for each request."""

    compiled: Compiled
    machine: FastMachine
    requests: tuple[Request, ...]
    plan: Layout
    logits: list[Floats]
    tokens: list[list[int]]

    def dumped(self, slot: int = 0) -> dict[str, Floats]:
        """Intermediates of one request by the names of the reference's trace (Options.dump)."""
        return _dumped(self, slot)


def compiled(subject: Subject, on: Chip, profile: Profile, requests: Sequence[Request], **options: Any) -> Compiled:
    """A program for these requests. Options left out follow from them; every_row keeps the logits of all rows."""
    rows = [len(r.prompt) if options.get("every_row") else r.max_tokens for r in requests]
    longest = max(len(r.prompt) + r.max_tokens for r in requests)
    chosen: dict[str, Any] = {
        "batch": len(requests),
        "context": min(subject.checkpoint.graph.context, -(-longest // 256) * 256),
        "log_rows": sum(rows) if options.get("every_row") else len(rows) * max(rows),
        # A row a step at worst; where slots take turns the decode steps have a record for each of them.
        "steps": sum(len(r.prompt) for r in requests) + max(2, len(requests)),
    }
    return compile_model(subject.checkpoint, on, profile, Options(**{**chosen, **options}))


def run_job(
    program: Compiled, on: Chip, requests: Sequence[Request], prefill_chunk: int | None = None,
    machine: FastMachine | Machine | None = None,
) -> Ran:  # fmt: skip
    """Run requests; read logits and tokens back."""
    device = machine or FastMachine(on, program.program)
    plan = layout(program.program, requests, prefill_chunk)
    write_job(device, program.program, requests, plan)
    records: list[tuple[int, ...]] = []
    device.run(on_ring=lambda _, record: records.append(record))
    options, vocab = program.plan.options, program.plan.model.vocab
    width = -(-vocab // 32) * 32
    count = max(options.log_rows, program.plan.out_rows)
    raw = np.frombuffer(device.read_dram(0, program.memory.dram["logits"], 4 * count * width), np.float32)
    table = raw.reshape(count, width)[:, :vocab]
    tokens: list[list[int]] = [[] for _ in requests]
    rows: list[list[int]] = [[] for _ in requests]
    if options.every_row:
        order = [slot for step in plan.steps for _, slot in step.outputs]
        for row, slot in enumerate(order):
            rows[slot].append(row)
    else:
        for row, (token, _, live, slot) in enumerate(records):
            if live or not tokens[slot]:
                tokens[slot].append(token)
                rows[slot].append(row)
    logits = [table[kept] for kept in rows] if options.every_row or options.log_rows else []
    return Ran(program, device, tuple(requests), plan, logits, tokens)  # type: ignore[arg-type]


def prefill(
    subject: Subject, on: Chip, profile: Profile, *prompts: Sequence[int], prefill_chunk: int | None = None,
    **options: Any,
) -> Ran:  # fmt: skip
    """Logits of every position of some prompts, run together. prefill_chunk 1: token by token."""
    requests = [Request(tuple(ids)) for ids in prompts]
    program = compiled(subject, on, profile, requests, every_row=True, **options)
    return run_job(program, on, requests, prefill_chunk)


def generate(
    subject: Subject, on: Chip, profile: Profile, prompts: Sequence[Sequence[int]], count: int,
    sampling: Sampling = GREEDY, stops: Sequence[int] = (), prefill_chunk: int | None = None, **options: Any,
) -> Ran:  # fmt: skip
    """Tokens made on the device, and the logits they were picked from. Each request has a seed of its own."""
    requests = [
        Request(tuple(ids), count, replace(sampling, seed=sampling.seed + n), tuple(stops))
        for n, ids in enumerate(prompts)
    ]
    program = compiled(subject, on, profile, requests, **options)
    return run_job(program, on, requests, prefill_chunk)


def same_bits(got: Floats, want: Floats, what: str) -> None:
    """Assert that two FP32 arrays are equal bit for bit; name the first that is not."""
    got, want = np.ascontiguousarray(got, np.float32), np.ascontiguousarray(want, np.float32)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, not {want.shape}"
    wrong = np.argwhere(got.view(np.uint32) != want.view(np.uint32))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        share = len(wrong) / got.size
        raise AssertionError(f"{what}: {share:.2%} of the values differ, first {at}: {got[at]!r}, not {want[at]!r}")


def same_trace(got: Mapping[str, Floats], want: Mapping[str, Floats], rows: int) -> None:
    """Assert that all intermediates of the first rows are equal bit for bit, and that none is missing; h of experts and
    what their router says the device keeps to itself."""
    assert {name for name in want if name.split("-", 1)[1] in COMMON} <= set(got) <= set(want)
    for name in sorted(got):
        axis = 1 if want[name].ndim == 3 else 0
        same_bits(got[name].take(range(rows), axis), want[name].take(range(rows), axis), name)


def _dumped(ran: Ran, slot: int) -> dict[str, Floats]:
    plan, memory = ran.compiled.plan, ran.compiled.memory
    model, hidden = plan.model, -(-plan.model.hidden // 32) * 32
    tokens = max(plan.options.log_rows, plan.rows)
    widths = {**dump_widths(plan), "x0": hidden}
    order = [s for step in ran.plan.steps for s, _ in step.rows]
    rows = [row for row, s in enumerate(order) if s == slot]

    def read(name: str, layer: int = 0) -> Floats:
        """One tensor of one layer; a slice stores what it makes and leaves zeros elsewhere."""
        count = tokens * widths[name]
        words = np.zeros(count, np.uint32)
        for rank in range(plan.slices):
            at = memory.dram[f"dump_{name}"] + 4 * layer * count
            words |= np.frombuffer(ran.machine.read_dram(rank, at, 4 * count), np.uint32)
        return words.view(np.float32).reshape(tokens, widths[name])[rows]

    def heads(values: Floats, count: int) -> Floats:
        return values.reshape(len(rows), count, plan.dp)[..., : model.head_dim].transpose(1, 0, 2)

    def latent_heads(values: Floats, count: int) -> Floats:
        parts = values.reshape(len(rows), count, plan.kp)
        both = [parts[..., : model.head_dim], parts[..., plan.dp : plan.dp + model.turned]]
        return np.concatenate(both, -1).transpose(1, 0, 2)

    out = {"00-x": read("x0")[:, : model.hidden]}
    norms = [name for name in ("r_attention", "r_q", "r_ffn") if name in widths]
    for layer in range(model.layers):
        for place, r in enumerate(norms):
            out[f"{len(norms) * layer + place:02d}-r"] = read(r, layer)
        for place, x in enumerate(("x_attention", "x_ffn")):
            out[f"{2 * layer + place + 1:02d}-x"] = read(x, layer)[:, : model.hidden]
        if model.latent is not None:
            for name, count in (("q", model.heads), ("k", 1)):
                out[f"{layer:02d}-{name}"] = latent_heads(read(name, layer), count)
            out[f"{layer:02d}-latent"] = heads(read("latent", layer), model.heads)
        else:
            for name, count in (("q", model.heads), ("k", model.kv_heads), ("v", model.kv_heads)):
                out[f"{layer:02d}-{name}"] = heads(read(name, layer), count)
        out[f"{layer:02d}-attention"] = read("attention", layer)
        if model.experts is None:
            out[f"{layer:02d}-h"] = read("h", layer)[:, : model.inner]
    out[f"{len(norms) * model.layers:02d}-r"] = read("r_attention", model.layers)
    return out

"""Engines for tests: under the sanitizer, and beside each request alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from systolith.compiler import Options, compile_model
from systolith.isa.program import Program
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.engine import Engine, EngineRequest
from systolith.runtime.job import Request, Sampling
from systolith.runtime.replay import Arrival, Outcome, play
from systolith.sim.sanitizer import Finding, Sanitizer
from systolith.spec import Chip

from .harness import run_job


class Watched:
    """A device under the sanitizer."""

    name, runs = "watched", True

    def __init__(self) -> None:
        self.sanitizer: Sanitizer | None = None

    def open(self, chip: Chip, program: Program) -> Watched:
        self.sanitizer = Sanitizer(chip, program, bells=[(0, program.meta["dram"]["bell"])])  # type: ignore[index]
        self.write_dram = self.sanitizer.write_dram
        self.read_dram = self.sanitizer.machine.read_dram
        self.take_records = self.sanitizer.machine.take_records
        return self

    def run_to_record(self, last: Callable[[tuple[int, ...]], bool], buffer: Any = None) -> tuple[Any, bool]:
        assert self.sanitizer is not None
        assert buffer is None
        sent = self.sanitizer.machine._sent
        while not (sent[0] and last(sent[0][-1])):
            assert not self.sanitizer.run(1), [str(f) for f in self.sanitizer.findings]
        return np.zeros(0, np.int64), True

    @property
    def findings(self) -> list[Finding]:
        assert self.sanitizer is not None
        return self.sanitizer.faults


class Alone:
    """Tokens of each request run by itself, by the program that takes its steps from no mailbox."""

    def __init__(
        self, checkpoint: Checkpoint, on: Chip, context: int = 512, table: Mapping[str, Any] | None = None
    ) -> None:  # fmt: skip
        self.on = on
        options = Options(context=context, steps=context + 2)
        self.program = compile_model(checkpoint, on, Profile.from_dict(table or {}), options)
        self.eos = tuple(checkpoint.graph.eos_ids)

    def tokens(self, request: EngineRequest) -> list[int]:
        stops = (*request.stops, *(() if request.ignore_eos else self.eos))
        job = [Request(request.prompt, request.max_tokens, request.sampling, stops)]
        return run_job(self.program, self.on, job).tokens[0]


def draw_requests(
    seed: int, count: int, vocab: int, *, longest: int = 150, most: int = 12, span: float = 0.0, cancels: float = 0.0,
    prefix: int = 100,
) -> list[Arrival]:  # fmt: skip
    """Random requests: half of them share one of two prefixes; arrivals over `span` seconds; a share is cancelled."""
    draw = random.Random(seed)
    prefixes = [[draw.randrange(vocab) for _ in range(prefix)] for _ in range(2)]
    arrivals = []
    for number in range(count):
        own = [draw.randrange(vocab) for _ in range(draw.randrange(1, longest))]
        head = draw.choice(prefixes) if draw.random() < 0.5 else []
        prompt = tuple((head + own)[: longest + prefix])
        sampling = Sampling(draw.choice([0.0, 0.8, 1.3]), draw.choice([0, 20]), draw.choice([1.0, 0.9]), number)
        at = draw.random() * span
        leave = at + span * 10 ** -draw.uniform(0.5, 3.5) if draw.random() < cancels else None
        stops = tuple(draw.randrange(vocab) for _ in range(draw.choice([0, 4])))
        request = EngineRequest(prompt, draw.randrange(1, most + 1), sampling, stops)
        arrivals.append(Arrival(f"r{number}", number, at, leave, request))
    return arrivals


def check_against_alone(alone: Alone, arrivals: Sequence[Arrival], outcomes: Sequence[Outcome]) -> None:
    """Each request has the tokens that it has alone; a cancelled one the first of them."""
    for arrival, outcome in zip(arrivals, outcomes, strict=True):
        want = alone.tokens(arrival.request)
        if outcome.reason == "cancelled":
            assert outcome.tokens == want[: len(outcome.tokens)], arrival.id
        else:
            assert outcome.tokens == want, arrival.id
            ended = "stop" if len(want) < arrival.request.max_tokens else outcome.reason
            assert outcome.reason == ended, arrival.id


def play_all(engine: Engine, arrivals: Sequence[Arrival]) -> list[Outcome]:
    """Play, and see that nothing is left behind."""
    outcomes = play(engine, arrivals)
    stats = engine.stats
    assert engine.idle
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert all(outcome.reason for outcome in outcomes)
    return outcomes

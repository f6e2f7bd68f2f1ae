"""The engine: requests that come and go, on one chip whose program never changes.

`submit` checks a request and queues it, `step` lets the device run on to its next step and gives what came of it.
Tokens of a request depend on its prompt, its sampling and its seed alone, never on what else runs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from systolith.compiler import Options, compile_model
from systolith.compiler.memory import STOPS
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.device import find_device
from systolith.runtime.job import Request, Sampling
from systolith.runtime.session import run_job
from systolith.spec.chip import Chip
from systolith.spec.errors import ModelError, SystolithError

__all__ = [
    "Engine", "EngineRequest", "EngineStats", "FinishEvent", "QueueFull", "RequestError", "TokenEvent",
]  # fmt: skip

MAX_LOGPROBS = 64
"""Most alternatives of a token that a request may ask for."""


class RequestError(SystolithError):
    """A request that cannot be served: one sentence. No other request notices."""


class QueueFull(SystolithError):
    """The waiting queue is at its limit."""


@dataclass(frozen=True)
class EngineRequest:
    """A prompt and how to go on. stops: tokens that end it beside the model's; logprobs: alternatives told with each
    token, None for no log probabilities at all."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stops: tuple[int, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True)
class TokenEvent:
    """A token that reached the host. cycle: of the chip, None without timing; logprob, top: natural logarithms of the
    model's own distribution, where the request asked for them."""

    request: int
    index: int
    token: int
    cycle: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class FinishEvent:
    """The end of a request. ttft_s: chip time from its arrival to its first token; tpot_s: mean of the later ones."""

    request: int
    reason: str
    """stop, length, cancelled or error"""
    tokens: int
    ttft_s: float | None
    tpot_s: float | None
    message: str = ""


@dataclass(frozen=True)
class EngineStats:
    """Counts since the start, and what is there now (running, waiting, pages_used)."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0
    pages_total: int = 0
    prefix_hits: int = 0
    prefix_queries: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


@dataclass
class _Life:
    """A request while the engine knows it."""

    number: int
    request: EngineRequest
    arrival: int
    cycles: list[int] = field(default_factory=list)
    made: int = 0


class Engine:
    """Requests on one chip. Not safe for several threads at once: one loop owns it."""

    def __init__(
        self, checkpoint: Checkpoint, chip: Chip, profile: Profile, *, slots: int = 8, context: int | None = None,
        page_tokens: int = 64, pages: int | None = None, max_waiting: int = 64, prefill_chunk: int | None = None,
        device: str = "sim", timing: bool = True, prefix_cache: bool = True,
    ) -> None:  # fmt: skip
        self.chip = chip
        self.context = context or checkpoint.graph.context
        self.slots = slots
        self.max_waiting = max_waiting
        self.timing = timing
        self._vocab, self._eos = checkpoint.graph.vocab, tuple(checkpoint.graph.eos_ids)
        self._device = find_device(device)
        self._chunk = prefill_chunk
        steps = slots * (self.context + 2)
        options = Options(batch=slots, context=self.context, page_tokens=page_tokens, steps=steps)
        self._compiled = compile_model(checkpoint, chip, profile, options)
        self._waiting: deque[_Life] = deque()
        self._events: deque[list[TokenEvent | FinishEvent]] = deque()
        self._cancelled: set[int] = set()
        self._running: set[int] = set()
        self._next = 0
        self.cycle = 0
        self._prompt_tokens = self._generation_tokens = 0

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._waiting and not self._events

    @property
    def stats(self) -> EngineStats:
        """Counts as they are now."""
        return EngineStats(
            running=len(self._running), waiting=len(self._waiting), prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
        )  # fmt: skip

    def submit(self, request: EngineRequest, arrival_cycle: int | None = None) -> int:
        """Queue a request; give its number. Raises RequestError, QueueFull."""
        self.check(request)
        if len(self._waiting) >= self.max_waiting:
            raise QueueFull(f"{len(self._waiting)} requests wait already, at most {self.max_waiting} may; try later")
        number = self._next
        self._next += 1
        self._waiting.append(_Life(number, request, self.cycle if arrival_cycle is None else arrival_cycle))
        return number

    def check(self, request: EngineRequest) -> None:
        """Raise RequestError, one sentence, for a request that this engine can never serve."""
        prompt, context = request.prompt, self.context
        if not prompt:
            raise RequestError("the prompt is empty; give at least one token")
        wrong = next((t for t in prompt if not 0 <= t < self._vocab), None)
        if wrong is not None:
            raise RequestError(f"token {wrong} of the prompt must be 0..{self._vocab - 1}; give ids of this model")
        if request.max_tokens < 1:
            raise RequestError(f"max_tokens={request.max_tokens} must be at least 1; ask for a token")
        if len(prompt) + request.max_tokens > context:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and max_tokens={request.max_tokens}, more than the context of "
                f"{context} in all; shorten the prompt or ask for fewer tokens"
            )
        stops = self._stops(request)
        if len(stops) > STOPS:
            raise RequestError(
                f"{len(stops)} stop tokens, the model's included, are more than {STOPS}; give fewer stop tokens"
            )
        if request.logprobs is not None and not 0 <= request.logprobs <= MAX_LOGPROBS:
            raise RequestError(f"logprobs={request.logprobs} must be 0..{MAX_LOGPROBS}; ask for fewer")

    def _stops(self, request: EngineRequest) -> tuple[int, ...]:
        return tuple(dict.fromkeys((*request.stops, *(() if request.ignore_eos else self._eos))))

    def cancel(self, request: int) -> None:
        """End a request; idempotent."""
        for life in list(self._waiting):
            if life.number == request:
                self._waiting.remove(life)
                self._events.append([FinishEvent(request, "cancelled", 0, None, None)])
        if request in self._running and request not in self._cancelled:
            self._cancelled.add(request)
            made = 0
            for events in self._events:
                events[:] = [e for e in events if e.request != request]
            self._events.appendleft([FinishEvent(request, "cancelled", made, None, None)])
            self._running.discard(request)

    def step(self) -> list[TokenEvent | FinishEvent]:
        """Run to the next records."""
        if not self._events and self._waiting:
            self._batch()
        events = self._events.popleft() if self._events else []
        for event in events:
            if isinstance(event, FinishEvent):
                self._running.discard(event.request)
            else:
                self._generation_tokens += 1
        return events

    def _batch(self) -> None:
        """Run a whole batch to its end."""
        lives = [self._waiting.popleft() for _ in range(min(self.slots, len(self._waiting)))]
        jobs = [
            Request(x.request.prompt, x.request.max_tokens, x.request.sampling, self._stops(x.request)) for x in lives
        ]
        jobs += [Request((0,))] * (self.slots - len(jobs))
        try:
            run = run_job(self._compiled, self._device, jobs, timing=self.timing, prefill_chunk=self._chunk)
        except (ModelError, SystolithError) as error:
            self._events.append([FinishEvent(x.number, "error", 0, None, None, str(error)) for x in lives])
            return
        start = self.cycle
        self._running |= {x.number for x in lives}
        most = max(len(t) for t in run.tokens)
        for index in range(most):
            events: list[TokenEvent | FinishEvent] = []
            for slot, life in enumerate(lives):
                tokens = run.tokens[slot]
                if index < len(tokens):
                    cycle = start + run.cycles[slot][index] if run.cycles[slot] else None
                    events.append(TokenEvent(life.number, index, tokens[index], cycle))
                    if index == len(tokens) - 1:
                        reason = "stop" if tokens[-1] in self._stops(life.request) else "length"
                        events.append(FinishEvent(life.number, reason, len(tokens), run.ttft_s(slot), run.tpot_s(slot)))
            self._events.append(events)
        self._prompt_tokens += sum(len(x.request.prompt) for x in lives)
        if run.timing:
            self.cycle += run.timing.cycles

    def close(self) -> None:
        """Give back what the engine holds."""
        self._waiting.clear()
        self._events.clear()

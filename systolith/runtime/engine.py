"""The engine: requests that come and go, on one chip whose program never changes.

`submit` checks a request and queues it, `step` gives the device its next step and tells what came of it. First come,
first served: a request waits until a request slot and all the pages it can need are free, so it never has to stop for
others. Its tokens depend on its prompt, its sampling and its seed alone, never on what else runs.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from systolith.compiler import Options, compile_model
from systolith.compiler.compile import compile_graph, plan_graph
from systolith.compiler.memory import STOPS
from systolith.models.checkpoint import Checkpoint
from systolith.models.graph import ModelGraph
from systolith.models.profile import Profile
from systolith.runtime.bound import bound
from systolith.runtime.device import Device, find_device
from systolith.runtime.job import Sampling
from systolith.runtime.live import Control, LiveChip, StepResult
from systolith.runtime.mail import Message, Prefill, SlotUpdate
from systolith.runtime.pages import Lease, PagePool
from systolith.spec.chip import Chip
from systolith.spec.errors import ConfigError, SystolithError
from systolith.spec.limits import CHUNK_TOKENS

__all__ = [
    "MAX_LOGPROBS", "Engine", "EngineRequest", "EngineStats", "FinishEvent", "QueueFull", "RequestError", "TokenEvent",
]  # fmt: skip

MAX_LOGPROBS = 64
"""Most alternatives of a token that a request may ask for."""


class RequestError(SystolithError):
    """A request that cannot be served: one sentence. No other request notices."""


class QueueFull(SystolithError):
    """The waiting queue is at its limit."""


@dataclass(frozen=True)
class EngineRequest:
    """A prompt and how to go on. stops: tokens that end it, beside the model's unless ignore_eos; logprobs:
    alternatives told with each token, None for no log probabilities at all."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
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
    """The end of a request. ttft_s: chip time from its arrival to its first token; tpot_s: mean of the later ones;
    None without timing, or where there are no such tokens."""

    request: int
    reason: str
    """stop, length, cancelled or error"""
    tokens: int
    ttft_s: float | None
    tpot_s: float | None
    message: str = ""


@dataclass(frozen=True)
class EngineStats:
    """What is there now (running, waiting, pages_used), and counts since the start: tokens of prompts looked up and
    found in the prefix cache, tokens of prompts computed, tokens made."""

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    prefix_hits: int
    prefix_queries: int
    preemptions: int
    prompt_tokens: int
    generation_tokens: int
    steps: int = 0


@dataclass(eq=False)
class _Life:
    """A request while the engine knows it."""

    number: int
    request: EngineRequest
    stops: tuple[int, ...]
    arrival: int
    slot: int = -1
    lease: Lease | None = None
    chain: list[bytes] = field(default_factory=list)
    """Keys of the pages of its prompt."""
    done: int = 0
    """Prompt tokens whose steps have been sent, or that were found in the cache."""
    made: list[int] = field(default_factory=list)
    first: int | None = None
    last: int | None = None
    """Cycles of the first and the last token."""
    ended: str = ""


class Engine:
    """Requests on one chip. Not safe for several threads at once: one loop owns it.

    model : a checkpoint; or a graph alone, for times without weights: every token is then 0 and none is a stop
    slots : requests that run at once     context : most tokens of a request (None: the model's)
    pages : of the KV cache (None: what slots x context needs)     prefill_chunk : most prompt tokens of a request in
    one step (None: what a step holds)     lag : steps by which the host reads the done-ring late; changes no token
    """

    def __init__(
        self, model: Checkpoint | ModelGraph, chip: Chip, profile: Profile, *, slots: int = 8,
        context: int | None = None, page_tokens: int = 64, pages: int | None = None, max_waiting: int = 64,
        prefill_chunk: int | None = None, device: str | Device = "sim", timing: bool = True,
        prefix_cache: bool = True, lag: int = 0,
    ) -> None:  # fmt: skip
        graph = model if isinstance(model, ModelGraph) else model.graph
        self.chip, self.max_waiting, self.timing = chip, max_waiting, timing
        self.context = min(context or graph.context, graph.context)
        self._data = not isinstance(model, ModelGraph)
        self._vocab, self._eos = graph.vocab, tuple(graph.eos_ids)
        self._chunk = prefill_chunk
        options = Options(batch=slots, context=self.context, page_tokens=page_tokens, serve=True)
        if pages is not None:
            plan, _ = plan_graph(graph, chip, profile, options)
            options = replace(options, pages=max(1, pages // plan.group))
        if isinstance(model, ModelGraph):
            self.compiled = compile_graph(model, chip, profile, options)
            target: Device = Control(self.compiled)
        else:
            self.compiled = compile_model(model, chip, profile, options)
            target = find_device(device) if isinstance(device, str) else device
        if not target.runs:
            raise ConfigError(
                f"device {target.name} runs nothing, and requests need tokens; take one that runs, such as sim"
            )
        self._live = LiveChip(self.compiled, target, timing=timing)
        # Without timing a step counts as what the chip needs at least for a decode step.
        self._step_cycles = max(1, round(bound(self.compiled.plan, [[1]]).seconds * chip.clock_hz))
        self._pool = PagePool(self.compiled.plan, cache=prefix_cache)
        self._lag = lag
        self._late: deque[StepResult] = deque()
        self._slots: list[_Life | None] = [None] * slots
        self._waiting: deque[_Life] = deque()
        self._lives: dict[int, _Life] = {}
        """Requests that wait or run, by number."""
        self._pattern: list[int] = []
        """Request slots that the device would go on with."""
        self._retired: list[_Life] = []
        """Ended, but still in the device's pattern."""
        self._events: list[TokenEvent | FinishEvent] = []
        self._taken = 0
        self._next = 0
        self._clock = 0
        self._queries = self._steps = self._prompt_tokens = self._generation_tokens = 0

    # ---- requests --------------------------------------------------------------------------------------------------

    def check(self, request: EngineRequest) -> None:
        """Raise RequestError, one sentence, for a request that this engine can never serve."""
        prompt = request.prompt
        if not prompt:
            raise RequestError("the prompt is empty; give at least one token")
        wrong = next((t for t in prompt if not 0 <= t < self._vocab), None)
        if wrong is not None:
            raise RequestError(f"token {wrong} of the prompt must be 0..{self._vocab - 1}; give ids of this model")
        if request.max_tokens < 1:
            raise RequestError(f"max_tokens={request.max_tokens} must be at least 1; ask for a token")
        tokens = len(prompt) + request.max_tokens
        if tokens > self.context:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and max_tokens={request.max_tokens}, more than the context of "
                f"{self.context} in all; shorten the prompt or ask for fewer tokens"
            )
        short = self._pool.shortage(tokens)
        if short is not None:
            raise RequestError(
                f"the prompt and max_tokens={request.max_tokens} need {short[0]} pages of a lane group and there are "
                f"{short[1]}; ask for fewer tokens"
            )
        bad = next((t for t in request.stops if not 0 <= t < self._vocab), None)
        if bad is not None:
            raise RequestError(f"stop token {bad} must be 0..{self._vocab - 1}; give ids of this model")
        stops = self._stops(request)
        if len(stops) > STOPS:
            raise RequestError(
                f"{len(stops)} stop tokens, the model's included, are more than {STOPS}; give fewer stop tokens"
            )
        if request.logprobs is not None and not 0 <= request.logprobs <= MAX_LOGPROBS:
            raise RequestError(f"logprobs={request.logprobs} must be 0..{MAX_LOGPROBS}; ask for fewer")

    def _stops(self, request: EngineRequest) -> tuple[int, ...]:
        if not self._data:
            return ()
        return tuple(dict.fromkeys((*request.stops, *(() if request.ignore_eos else self._eos))))

    def submit(self, request: EngineRequest, arrival_cycle: int | None = None) -> int:
        """Queue a request; give its number. arrival_cycle: from which its times count (None: now).

        Raises RequestError, QueueFull; other requests do not notice.
        """
        self.check(request)
        if len(self._waiting) >= self.max_waiting:
            raise QueueFull(f"{len(self._waiting)} requests wait already, at most {self.max_waiting} may; try later")
        number = self._next
        self._next += 1
        life = _Life(number, request, self._stops(request), self.cycle if arrival_cycle is None else arrival_cycle)
        self._lives[number] = life
        self._waiting.append(life)
        return number

    def cancel(self, request: int) -> None:
        """End a request; nothing where it has ended already. Its slot and pages are free a step later."""
        life = self._lives.get(request)
        if life is None:
            return
        if life.slot < 0:
            self._waiting.remove(life)
        self._end(life, "cancelled")

    def _end(self, life: _Life, reason: str, message: str = "") -> None:
        """Tell the end of a request, and let the next message take it out of the device's steps."""
        life.ended = reason
        del self._lives[life.number]
        if life.slot >= 0:
            self._retired.append(life)
        clock = self.chip.clock_hz
        ttft = (life.first - life.arrival) / clock if life.first is not None else None
        tpot = None
        if life.first is not None and life.last is not None and len(life.made) > 1:
            tpot = (life.last - life.first) / (len(life.made) - 1) / clock
        self._events.append(FinishEvent(life.number, reason, len(life.made), ttft, tpot, message))

    # ---- state -----------------------------------------------------------------------------------------------------

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the compiler warns of, a sentence each."""
        return tuple(self.compiled.plan.warnings)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._lives or self._events or self._retired or self._late)

    @property
    def cycle(self) -> int:
        """The chip's time; without timing a count that steps and `wait_until` move on."""
        return max(self._clock, self._live.cycle)

    def wait_until(self, cycle: int) -> None:
        """Let an idle chip poll until a cycle."""
        assert self.idle
        self._clock = max(self._clock, cycle)
        self._live.wait_until(cycle)

    @property
    def stats(self) -> EngineStats:
        """Counts as they are now."""
        pool = self._pool
        return EngineStats(
            running=sum(life is not None and not life.ended for life in self._slots), waiting=len(self._waiting),
            pages_used=pool.used, pages_total=pool.total, prefix_hits=pool.hits * pool.page_tokens,
            prefix_queries=self._queries, preemptions=0, prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens, steps=self._steps,
        )  # fmt: skip

    # ---- steps -----------------------------------------------------------------------------------------------------

    def step(self) -> list[TokenEvent | FinishEvent]:
        """Run the device until the next step's records are in; give what they say. [] where there is nothing to do."""
        message = self._schedule() if self._live.mailbox.room(self._taken) else None
        if message is not None or self._live.goes_on:
            wants = frozenset(
                slot for slot, life in enumerate(self._slots) if life and life.request.logprobs is not None
            )
            self._late.append(self._live.step(message, wants))
            self._steps += 1
            if not self.timing:
                self._clock += self._step_cycles
            if len(self._late) > self._lag:
                self._read(self._late.popleft())
        elif self._late:
            self._read(self._late.popleft())
        events, self._events = self._events, []
        return events

    def _schedule(self) -> Message | None:
        """The message for the next step; None where the device need not be told anything."""
        updates: dict[int, SlotUpdate] = {}
        changed = bool(self._retired)
        for life in self._retired:
            assert life.lease is not None
            # Dead rows are in steps before this message's, and a slice makes its steps in order: its pages and its slot
            # may be others' from this message on.
            self._pool.give_back(life.lease)
            if life.slot in self._pattern:
                self._pattern.remove(life.slot)
            self._slots[life.slot] = None
            if life.ended == "cancelled":
                updates[life.slot] = SlotUpdate(life.slot, 0, 0, 1, life.request.sampling, (), (), live=False)
        self._retired.clear()
        listed = self._admit()
        decode = list(self._pattern)
        prefill = self._prefill(self.compiled.plan.rows - len(decode), listed)
        for life in listed:
            request = life.request
            assert life.lease is not None
            updates[life.slot] = SlotUpdate(
                life.slot, life.number & 0x7FFFFFFF, len(request.prompt), request.max_tokens, request.sampling,
                life.stops, life.lease.numbers,
            )  # fmt: skip
        if not (changed or updates or prefill):
            return None
        self._pattern += [part.slot for part in prefill if part.ends]
        return Message(decode, prefill, list(self._pattern), list(updates.values()))

    def _admit(self) -> list[_Life]:
        """Give slots and pages to those that wait, in their order; the first that must wait holds up the others."""
        admitted = []
        free = [slot for slot, life in enumerate(self._slots) if life is None]
        while self._waiting and free:
            life = self._waiting[0]
            request = life.request
            if not life.chain:
                life.chain = self._pool.chain(request.prompt)
            lease = self._pool.take(life.chain, len(request.prompt) + request.max_tokens)
            if lease is None:
                break
            self._waiting.popleft()
            self._queries += len(request.prompt)
            life.lease, life.slot = lease, free.pop(0)
            life.done = lease.shared * self._pool.page_tokens
            self._slots[life.slot] = life
            admitted.append(life)
        return admitted

    def _prefill(self, rows: int, listed: list[_Life]) -> list[Prefill]:
        """Runs of prompt tokens for a step, first come first served; one run a request, inside a chunk of attention.

        A request waits for pages of its prompt that one before it is about to make, and takes them then: it is added to
        `listed`, as its page list changes.
        """
        parts: list[Prefill] = []
        filled: list[_Life] = []
        coming: set[bytes] = set()
        # A slot is in the pattern, or it has prompt tokens to come.
        for life in sorted((x for x in self._slots if x and not x.ended), key=lambda x: x.number):
            prompt, lease, size = life.request.prompt, life.lease, self._pool.page_tokens
            assert lease is not None
            if life.done == len(prompt):
                continue
            if life.done == len(lease.keys) * size:
                for key in life.chain[len(lease.keys) :]:
                    if not self._pool.adopt(lease, key):
                        break
                    life.done += size
                    if life not in listed:
                        listed.append(life)
            missing = life.chain[len(lease.keys) :]
            waits = life.done == len(lease.keys) * size and bool(missing) and missing[0] in coming
            coming.update(missing)
            if waits:
                continue
            take = min(
                len(prompt) - life.done, rows, CHUNK_TOKENS - life.done % CHUNK_TOKENS, self._chunk or CHUNK_TOKENS
            )
            if take <= 0:
                continue
            start, life.done = life.done, life.done + take
            parts.append(Prefill(life.slot, prompt[start : life.done], start, life.done == len(prompt)))
            rows -= take
            self._prompt_tokens += take
            filled.append(life)
        # Only now: what this step writes may be read from the next one on.
        for life in filled:
            assert life.lease is not None
            self._pool.know(life.lease, life.request.prompt[: life.done])
        return parts

    def _read(self, result: StepResult) -> None:
        """Take the records of a step: tokens, and who has ended."""
        self._taken = result.taken
        for place, (token, _, live, tag) in enumerate(result.tokens):
            life = self._lives.get(tag)
            if life is None or not live:
                continue
            cycle = result.cycles[place] if result.cycles else None
            logprob: float | None = None
            top: tuple[tuple[int, float], ...] = ()
            if life.request.logprobs is not None:
                logprob, top = log_probabilities(result.logits[place], token, life.request.logprobs)
            self._events.append(TokenEvent(tag, len(life.made), token, cycle, logprob, top))
            life.made.append(token)
            life.last = cycle
            if life.first is None:
                life.first = cycle
            self._generation_tokens += 1
            assert life.lease is not None
            if self._pool.fills(life.lease, len(life.request.prompt) + len(life.made) - 1):
                self._pool.know(life.lease, (*life.request.prompt, *life.made[:-1]))
            if token in life.stops:
                self._end(life, "stop")
            elif len(life.made) == life.request.max_tokens:
                self._end(life, "length")

    def close(self) -> None:
        """Give back what the engine holds."""
        self._waiting.clear()
        self._lives.clear()
        self._events.clear()


def log_probabilities(
    logits: NDArray[np.float32], token: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural logarithm of a token's probability, and the `count` most probable tokens with theirs; ties by index."""
    values = logits.astype(np.float64)
    values = np.where(np.isnan(values), -math.inf, values)
    most = float(values.max())
    logs = values - most - math.log(float(np.exp(values - most).sum()))
    best = np.argsort(-logs, kind="stable")[:count]
    return float(logs[token]), tuple((int(i), float(logs[i])) for i in best)

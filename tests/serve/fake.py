"""An engine that says what it is told: it repeats the prompt, a token a step, and fails on command.

What stands around the engine (text, streams, limits, a process that dies) is tested against answers that are known.
"""

from __future__ import annotations

import os
import time
from dataclasses import fields
from typing import Any

from systolith.runtime.engine import EngineRequest, EngineStats, FinishEvent, QueueFull, RequestError, TokenEvent

CRASH, RAISE, LOSE, REFUSE, HOLD = 2047, 2046, 2045, 2044, 2043
"""Tokens that do it: the process ends; a step raises; submit raises; the request is refused; it makes two tokens and
then stays where it is."""

STEP_S = 0.004


class FakeEngine:
    """Takes what `Engine` takes."""

    def __init__(
        self, checkpoint: Any, chip: Any, profile: Any, *, slots: int, max_waiting: int, **options: Any
    ) -> None:
        self.slots, self.most = slots, slots + max_waiting
        self.eos = checkpoint.graph.eos_ids
        self.clock_hz = chip.clock_hz
        self.requests: dict[int, tuple[EngineRequest, int, list[int]]] = {}  # with arrival, cycles of tokens
        self.cycle = self.next = self.made = self.read = 0
        self.warnings = ("the fake engine repeats what it reads",)

    @property
    def idle(self) -> bool:
        return not self.requests

    @property
    def stats(self) -> EngineStats:
        running = min(len(self.requests), self.slots)
        counts = dict.fromkeys((field.name for field in fields(EngineStats)), 0) | {
            "running": running, "waiting": len(self.requests) - running, "pages_used": running,
            "pages_total": self.slots, "prompt_tokens": self.read, "generation_tokens": self.made,
        }  # fmt: skip
        return EngineStats(**counts)

    def submit(self, request: EngineRequest, arrival_cycle: int | None = None) -> int:
        if LOSE in request.prompt:
            raise KeyError("lost")
        if REFUSE in request.prompt:
            raise RequestError("token 2044 is refused; give another")
        if len(self.requests) == self.most:
            raise QueueFull("the queue is full")
        self.next += 1
        self.requests[self.next] = (request, self.cycle, [])
        self.read += len(request.prompt)
        return self.next

    def cancel(self, request: int) -> None:
        self.requests.pop(request, None)

    def step(self) -> list[TokenEvent | FinishEvent]:
        time.sleep(STEP_S)
        self.cycle += 1000
        events: list[TokenEvent | FinishEvent] = []
        for number, (request, arrival, cycles) in list(self.requests.items())[: self.slots]:
            if CRASH in request.prompt and len(cycles) == 2:
                os._exit(3)
            if RAISE in request.prompt and len(cycles) == 2:
                raise ValueError("a step that fails")
            if HOLD in request.prompt and len(cycles) == 2:
                continue
            said = [t for t in request.prompt if t != 0] or [0]
            token = said[len(cycles) % len(said)]
            top = tuple((i, -1.0 - i) for i in range(request.logprobs or 0))
            logprob = None if request.logprobs is None else -0.5
            events.append(TokenEvent(number, len(cycles), token, self.cycle, logprob, top))
            cycles.append(self.cycle)
            self.made += 1
            stops = request.stops if request.ignore_eos else (*request.stops, *self.eos)
            reason = "stop" if token in stops else "length" if len(cycles) == request.max_tokens else None
            if reason == "stop" or reason == "length":
                ttft = (cycles[0] - arrival) / self.clock_hz
                tpot = (cycles[-1] - cycles[0]) / (len(cycles) - 1) / self.clock_hz if len(cycles) > 1 else None
                events.append(FinishEvent(number, reason, len(cycles), ttft, tpot))
                del self.requests[number]
        return events

    def close(self) -> None:
        self.requests.clear()

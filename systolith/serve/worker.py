"""The engine's process: takes messages between two steps, sends what a step has made. process.py has the messages."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.engine import Engine, EngineRequest, FinishEvent, QueueFull
from systolith.spec import Chip
from systolith.spec.errors import ConfigError, SystolithError

__all__ = ["ENGINE", "Pace", "Ready", "Setup", "main"]

ENGINE = "systolith.runtime.engine:Engine"


@dataclass(frozen=True)
class Setup:
    """What the engine's process opens. Fields are those of `Engine`; pace: run no faster than the chip.

    engine : module and class, for tests of what stands around the engine.
    """

    checkpoint: Path
    chip: Chip
    profile: Profile
    slots: int
    context: int
    page_tokens: int
    pages: int | None
    max_waiting: int
    prefill_chunk: int | None
    device: str
    timing: bool
    prefix_cache: bool
    pace: bool
    engine: str = ENGINE


@dataclass(frozen=True)
class Ready:
    """What the process says when it can take requests."""

    pid: int
    warnings: tuple[str, ...]


class Pace:
    """Holds the engine back to the chip's own speed. Where the simulator is slower, time is not made up later."""

    SLACK_S = 0.05
    """Lags below this are made up: a sleep is never exact."""

    def __init__(self, clock_hz: int) -> None:
        self._clock_hz = clock_hz
        self._start: tuple[float, int] | None = None  # moment, cycle

    def idle(self) -> None:
        """Nothing runs: the chip's clock has no meaning until something does."""
        self._start = None

    def wait_s(self, cycle: int, now: float) -> float:
        """Seconds from `now` until the chip would be at `cycle`; the first call after `idle` sets the start."""
        if self._start is None:
            self._start = now, cycle
        moment, at = self._start
        left = moment + (cycle - at) / self._clock_hz - now
        if left < -self.SLACK_S:
            self._start = now, cycle
        return max(0.0, left)


def main(connection: Connection, setup: Setup) -> None:
    """Open everything, say so, then serve until the pipe ends or asks to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to both; the server ends this process
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        try:
            engine = _open(setup)
        except SystolithError as error:
            connection.send(("failed", error))
            return
        except MemoryError:
            connection.send(
                ("failed", ConfigError("too little memory for this model; take fewer slots or a shorter context"))
            )
            return
        connection.send(("ready", Ready(os.getpid(), engine.warnings)))
        try:
            _Worker(connection, engine, Pace(setup.chip.clock_hz) if setup.pace else None).run()
        except (BrokenPipeError, EOFError, ConnectionResetError):
            raise
        except Exception as error:
            if not isinstance(error, SystolithError):
                traceback.print_exc()
            connection.send(("died", f"{type(error).__name__}: {error}"))
        finally:
            engine.close()


def _open(setup: Setup) -> Engine:
    module, name = setup.engine.split(":")
    made: Engine = getattr(import_module(module), name)(
        Checkpoint.open(setup.checkpoint), setup.chip, setup.profile,
        slots=setup.slots, context=setup.context, page_tokens=setup.page_tokens, pages=setup.pages,
        # Before a step all wait, those for whom a slot is free too; the server counts what is open, and that is less.
        max_waiting=setup.slots + setup.max_waiting, prefill_chunk=setup.prefill_chunk, device=setup.device,
        timing=setup.timing, prefix_cache=setup.prefix_cache,
    )  # fmt: skip
    return made


class _Worker:
    """The loop."""

    def __init__(self, connection: Connection, engine: Engine, pace: Pace | None) -> None:
        self.connection, self.engine, self.pace = connection, engine, pace
        self.keys: dict[int, int] = {}  # engine's number: server's key
        self.numbers: dict[int, int] = {}
        self.closing = False

    def run(self) -> None:
        """Step while there is work; between steps take what has come."""
        while not self.closing:
            if self.engine.idle:
                if self.pace:
                    self.pace.idle()
                self._take(self.connection.recv())
            self._take_all()
            if self.engine.idle or self.closing:
                self._send([])
                continue
            if self.pace:
                self.pace.wait_s(self.engine.cycle, time.monotonic())
            events = self.engine.step()
            self._hold()
            self._send(events)

    def _hold(self) -> None:
        """Wait until the chip would be where the engine is; requests may join or leave meanwhile."""
        while self.pace and not self.closing:
            left = self.pace.wait_s(self.engine.cycle, time.monotonic())
            if not left:
                return
            if self.connection.poll(left):
                self._take(self.connection.recv())

    def _take_all(self) -> None:
        while not self.closing and self.connection.poll():
            self._take(self.connection.recv())

    def _take(self, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "submit":
            self._submit(*rest)
        elif kind == "cancel":
            for key in rest[0]:
                if key in self.numbers:
                    self._forget(self.numbers[key], cancel=True)
        else:
            self.closing = True

    def _submit(self, group: int, requests: tuple[tuple[int, EngineRequest], ...]) -> None:
        """All or none of a group."""
        taken: list[int] = []
        try:
            for key, request in requests:
                number = self.engine.submit(request)
                self.keys[number], self.numbers[key] = key, number
                taken.append(number)
        except Exception as error:
            for number in taken:
                self._forget(number, cancel=True)
            kind = "full" if isinstance(error, QueueFull) else "bad" if isinstance(error, SystolithError) else "fault"
            if kind == "fault":
                traceback.print_exc()
            self.connection.send(("refused", group, kind, str(error)))
        else:
            self.connection.send(("accepted", group, self.engine.cycle))

    def _forget(self, number: int, *, cancel: bool = False) -> None:
        self.numbers.pop(self.keys.pop(number))
        if cancel:
            self.engine.cancel(number)

    def _send(self, events: list[Any]) -> None:
        out = []
        for event in events:
            if event.request not in self.keys:
                continue  # cancelled
            out.append((self.keys[event.request], event))
            if isinstance(event, FinishEvent):
                self._forget(event.request)
        self.connection.send(("events", tuple(out), self.engine.stats))

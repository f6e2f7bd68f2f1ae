"""The engine in a process of its own, seen from the server's event loop.

Two pipes' worth of messages in one duplex pipe, all of them tuples of plain values and frozen records:

    to the engine      ("submit", group, ((key, EngineRequest), ...))  ("cancel", keys)  ("close",)
    from the engine    ("ready", Ready)  ("failed", error)
                       ("accepted", group, the chip's cycle)  ("refused", group, kind, sentence)
                       ("events", ((key, TokenEvent | FinishEvent), ...), stats)  ("died", sentence)

Keys are the server's own numbers, so that a request can be cancelled before the engine has seen it. A pipe that ends
means that the process is gone: every open request then ends with an error, and `alive` is false from then on.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from systolith.runtime.engine import EngineRequest, EngineStats, FinishEvent, TokenEvent
from systolith.serve.errors import ApiError, bad_request, engine_lost, too_busy
from systolith.serve.worker import Ready, Setup, main
from systolith.spec.errors import SystolithError

__all__ = ["EngineProcess", "Group"]

_CLOSING_S = 5.0


class Group:
    """Requests of one HTTP request, and what the engine says of them."""

    def __init__(self, process: EngineProcess, keys: Sequence[int]) -> None:
        self._process = process
        self._index = {key: index for index, key in enumerate(keys)}
        self._queue: asyncio.Queue[tuple[int, TokenEvent | FinishEvent] | ApiError] = asyncio.Queue()
        self.open = set(keys)
        self.arrival_cycle = 0
        """When the chip took the requests."""

    def put(self, key: int, event: TokenEvent | FinishEvent) -> None:
        """Take an event of the request with this key."""
        self._queue.put_nowait((self._index[key], event))

    def fail(self, error: ApiError) -> None:
        """End every request of the group."""
        self.open.clear()
        self._queue.put_nowait(error)

    async def next(self) -> tuple[int, TokenEvent | FinishEvent]:
        """Wait for the next event and the index of its request. Raises ApiError where the engine is gone."""
        item = await self._queue.get()
        if isinstance(item, ApiError):
            raise item
        return item

    def cancel(self, index: int) -> None:
        """End one request early."""
        key = next(k for k, i in self._index.items() if i == index)
        self._process.cancel([key] if key in self.open else [])

    def close(self) -> None:
        """End what is still running; its slots and pages are free at the next step."""
        self._process.cancel(sorted(self.open))


class EngineProcess:
    """Starts the process, routes messages, counts what is open. `start` blocks; the rest belongs to one event loop."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._keys: Iterator[int] = itertools.count()
        self._groups: dict[int, Group] = {}  # by key
        self._replies: dict[int, asyncio.Future[int]] = {}
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure = ""
        self._closing = False
        self.stats: EngineStats | None = None
        self.on_stats: Callable[[EngineStats], None] = lambda stats: None

    @property
    def alive(self) -> bool:
        """Whether requests can be taken."""
        return self._loop is not None and not self._failure and not self._closing

    @property
    def failure(self) -> str:
        """Why it is not alive."""
        return self._failure or ("it is closing" if self._closing else "it has not started")

    @property
    def pid(self) -> int | None:
        """The process."""
        return self._process.pid if self._process else None

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._groups)

    @property
    def limit(self) -> int:
        """Most requests that may be open: in slots, and waiting."""
        return self._setup.slots + self._setup.max_waiting

    def start(self) -> Ready:
        """Start the process and wait until it is ready. Raises the SystolithError that it met, or one of its own."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=main, args=(theirs, self._setup), name="systolith-engine", daemon=True)
        process.start()
        theirs.close()  # the only other end is the child's, so that its death ends the pipe
        self._connection, self._process = ours, process
        try:
            kind, value = ours.recv()
        except (EOFError, OSError):
            process.join(_CLOSING_S)
            raise SystolithError(
                f"the engine's process ended with code {process.exitcode} before it was ready; see above"
            ) from None
        if kind == "failed":
            process.join(_CLOSING_S)
            raise value
        ready: Ready = value
        return ready

    def attach(self) -> None:
        """Begin to take requests on the running event loop."""
        self._loop = asyncio.get_running_loop()
        for target in (self._read, self._write):
            threading.Thread(target=target, name=f"systolith-{target.__name__}", daemon=True).start()

    async def submit(self, requests: Sequence[EngineRequest]) -> Group:
        """Hand requests over, all or none. Raises ApiError: 400 bad, 429 no room, 503 the engine is gone."""
        if not self.alive:
            raise engine_lost(self.failure)
        if len(requests) > self.limit:
            raise bad_request(
                f"prompts x n asks for {len(requests)} choices, this server holds {self.limit}; ask for fewer at once"
            )
        if self.open + len(requests) > self.limit:
            raise too_busy(f"{self.open} requests are open of at most {self.limit}; try again later")
        keys = [next(self._keys) for _ in requests]
        group = Group(self, keys)
        reply = asyncio.get_running_loop().create_future()
        self._groups |= dict.fromkeys(keys, group)
        self._replies[keys[0]] = reply
        self._outgoing.put(("submit", keys[0], tuple(zip(keys, requests, strict=True))))
        try:
            group.arrival_cycle = await reply
        except ApiError:
            self._forget(keys)
            raise
        except asyncio.CancelledError:  # the client has left before the answer; the engine may have them by now
            group.close()
            raise
        finally:
            self._replies.pop(keys[0], None)
        return group

    def cancel(self, keys: Sequence[int]) -> None:
        """End requests; nothing more is heard of them."""
        open_keys = [key for key in keys if key in self._groups]
        if open_keys:
            self._forget(open_keys)
            self._outgoing.put(("cancel", tuple(open_keys)))

    def give_up(self) -> None:
        """Answer everything that is open with an error: the server is closing."""
        self._closing = True
        self._end_all(ApiError(503, "the server is closing; ask again later", "server_error", code="server_closing"))

    def close(self) -> None:
        """End the process. Blocks for a moment."""
        self._closing = True
        self._outgoing.put(("close",))
        if self._process is not None:
            self._process.join(_CLOSING_S)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()

    def _forget(self, keys: Sequence[int]) -> None:
        for key in keys:
            group = self._groups.pop(key, None)
            if group is not None:
                group.open.discard(key)

    def _read(self) -> None:
        """Thread: bring messages to the event loop."""
        assert self._connection is not None
        assert self._loop is not None
        reason = ""
        try:
            while True:
                message = self._connection.recv()
                if message[0] == "died":
                    reason = message[1]
                else:
                    self._loop.call_soon_threadsafe(self._take, message)
        except (EOFError, OSError):
            pass
        except RuntimeError:  # the loop is closed: nobody is left to tell
            return
        if not reason:
            assert self._process is not None
            self._process.join(_CLOSING_S)
            reason = f"its process ended with code {self._process.exitcode}"
        try:
            self._loop.call_soon_threadsafe(self._lost, reason)
        except RuntimeError:
            return

    def _write(self) -> None:
        """Thread: a full pipe (the engine is in a long step) must not hold the event loop up."""
        assert self._connection is not None
        while True:
            message = self._outgoing.get()
            try:
                self._connection.send(message)
            except OSError:
                return  # _read sees the same end
            if message[0] == "close":
                return

    def _take(self, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "events":
            events, self.stats = rest
            self.on_stats(self.stats)
            for key, event in events:
                group = self._groups.get(key)
                if group is None:
                    continue  # cancelled here, not yet there
                if isinstance(event, FinishEvent):
                    self._forget([key])
                group.put(key, event)
            return
        reply = self._replies.get(rest[0])
        if reply is None or reply.done():
            return
        if kind == "accepted":
            reply.set_result(rest[1])
        else:
            _, refused, sentence = rest
            reply.set_exception(too_busy(sentence) if refused == "full" else _refused(refused, sentence))

    def _lost(self, reason: str) -> None:
        """Answer everything that is open: the process is gone."""
        self._failure = reason
        self._end_all(engine_lost(reason))

    def _end_all(self, error: ApiError) -> None:
        for group in {id(g): g for g in self._groups.values()}.values():
            group.fail(error)
        self._groups.clear()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error)


def _refused(kind: str, sentence: str) -> ApiError:
    if kind == "bad":
        return bad_request(sentence)
    return ApiError(500, f"the engine failed on this request ({sentence}); report it", "server_error")

"""From options to a server that runs: the port is taken first, then the engine starts, then requests are answered."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from systolith.models.checkpoint import Checkpoint
from systolith.models.token_bytes import TokenBytes
from systolith.models.tokenizer import Tokenizer
from systolith.serve.app import Service, make_app
from systolith.serve.generation import Served
from systolith.serve.metrics import Metrics
from systolith.serve.process import EngineProcess
from systolith.serve.template import ChatTemplate
from systolith.serve.worker import Setup
from systolith.spec.errors import ConfigError

__all__ = ["Listening", "serve"]

_LEAVE_S = 3
"""Seconds that open answers have after Ctrl-C."""
_BODY_BYTES = 1 << 20


@dataclass(frozen=True)
class Listening:
    """What the user is told when the server answers. url: of the API; plain_chat: the model has no chat template."""

    name: str
    url: str
    engine_pid: int
    plain_chat: bool
    warnings: tuple[str, ...]


def serve(
    setup: Setup,
    checkpoint: Checkpoint,
    *,
    host: str,
    port: int,
    keys: Sequence[str] = (),
    name: str | None = None,
    chat_template: Path | None = None,
    on_ready: Callable[[Listening], None] = lambda listening: None,
) -> None:
    """Serve until interrupted. Raises SystolithError, one sentence, for what cannot be served.

    host, port : where to listen; port 0 takes a free one.      keys : API keys, none to ask for none.
    name : of the model, if not its own.      chat_template : file instead of the model's.
    """
    # A client that leaves while a chunk is written is no news; asyncio would print a line for each.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    graph = checkpoint.graph
    tokenizer = Tokenizer.open(checkpoint.path, graph.vocab)
    served = Served(
        name=name or graph.name, chip=setup.chip.name, clock_hz=setup.chip.clock_hz, context=setup.context,
        vocab=graph.vocab, eos_ids=tuple(graph.eos_ids), tokenizer=tokenizer, token_bytes=TokenBytes(tokenizer),
        template=ChatTemplate.open(checkpoint.path, chat_template), created=int(time.time()),
    )  # fmt: skip
    with _listen(host, port) as listener:
        engine = EngineProcess(setup)
        try:
            ready = engine.start()
            service = Service(served, engine, Metrics(served.name), tuple(keys), _BODY_BYTES + 16 * setup.context)
            config = uvicorn.Config(
                make_app(service), log_config=None, access_log=False, loop="asyncio", http="h11", ws="none",
                lifespan="on", timeout_graceful_shutdown=2 * _LEAVE_S, server_header=False,
            )  # fmt: skip
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{listener.getsockname()[1]}/v1"
            server = _Server(
                config,
                engine,
                lambda: on_ready(Listening(served.name, url, ready.pid, not served.template.source, ready.warnings)),
            )
            server.run(sockets=[listener])
        finally:
            engine.close()


class _Server(uvicorn.Server):
    """Says when it answers; ends answers that are open when it has been told to leave and has waited."""

    def __init__(self, config: uvicorn.Config, engine: EngineProcess, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._engine, self._on_ready = engine, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        waiting = asyncio.get_running_loop().call_later(_LEAVE_S, self._engine.give_up)
        await super().shutdown(sockets)
        waiting.cancel()


def _listen(host: str, port: int) -> socket.socket:
    """Take the port, so that one that is in use is refused before anything is compiled."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: cannot be listened on ({reason}); take another") from None
    return listener

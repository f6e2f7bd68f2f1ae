"""`systolith serve`: the OpenAI API for a model on a chip."""

from __future__ import annotations

import contextlib
import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import progress, warn, write
from systolith.spec import ConfigError

if TYPE_CHECKING:
    from systolith.serve.server import Listening

__all__ = ["Pace", "register", "serve"]

_CONTEXT = 4096
"""Tokens of a sequence where nothing is said and the model would allow more."""


class Pace(StrEnum):
    """How fast tokens leave: as the simulator makes them, or as the chip would."""

    simulator = "simulator"
    chip = "chip"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    model: options.ModelArgument = options.TINYCODE,
    chip: options.ChipOption = "nano",
    host: Annotated[str, typer.Option("--host", help="Address to listen on; only this machine unless told.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option("--api-key", metavar="KEY", help="Ask /v1 for this key; may be repeated.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="File with one key a line: other users see no command line.")
    ] = None,
    served_name: Annotated[
        str | None, typer.Option("--served-name", help="Name of the model in the API (default: its directory's).")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option("--chat-template", help="Jinja file instead of the model's own template.")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Requests that run at once.")] = 8,
    context: Annotated[
        int | None,
        typer.Option("--context", min=2, help="Most tokens of a sequence (default: the model's, at most 4096)."),
    ] = None,
    page_tokens: options.PageOption = 64,
    pages: Annotated[
        int | None, typer.Option("--pages", min=1, help="Pages of the KV cache (default: all slots at full context).")
    ] = None,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=0, help="Requests that wait for a slot; more are answered with 429.")
    ] = 64,
    prefill_chunk: options.PrefillOption = None,
    prefix_cache: Annotated[
        bool, typer.Option("--prefix-cache/--no-prefix-cache", help="Share pages of equal prefixes.")
    ] = True,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Give each answer the chip's own times; off is faster.")
    ] = True,
    pace: Annotated[
        Pace, typer.Option("--pace", help="simulator: as fast as it goes; chip: no faster than the chip.")
    ] = Pace.simulator,
    device: options.DeviceOption = "sim",
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
) -> None:
    """Serve a model on a chip with the OpenAI API, until interrupted.

    /v1/models, /v1/completions, /v1/chat/completions, /health, /metrics; docs/serve.md has every field.
    """
    options.check_pages(page_tokens)
    if pace is Pace.chip and not timing:
        raise ConfigError("--pace chip needs the chip's times; leave --no-timing out")
    keys = _keys(api_key or [], api_key_file)
    loaded = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)
    checkpoint = options.open_model(model)
    graph = checkpoint.graph
    if context is not None and context > graph.context:
        raise ConfigError(
            f"--context={context} must be 2..{graph.context}, {graph.name} has no more; take a smaller one"
        )

    from systolith.runtime.device import find_device

    if not find_device(device).runs:
        raise ConfigError(f"device {device} runs nothing, so it has no answers; take sim or execute")
    try:
        from systolith.serve import server
        from systolith.serve.worker import Setup
    except ImportError as error:
        missing = (error.name or str(error)).split(".")[0]
        if missing == "systolith":
            raise
        raise ConfigError(
            f"{missing} is not installed; install what serving needs: pip install 'systolith[serve]'"
        ) from None
    setup = Setup(
        checkpoint=checkpoint.path, chip=loaded, profile=chosen, slots=slots,
        context=context or min(_CONTEXT, graph.context), page_tokens=page_tokens, pages=pages, max_waiting=max_waiting,
        prefill_chunk=prefill_chunk, device=device, timing=timing, prefix_cache=prefix_cache, pace=pace is Pace.chip,
    )  # fmt: skip
    if not _is_loopback(host) and not keys:
        warn(f"--host {host} may be reached by others, and no --api-key was given: whoever reaches it can use it")
    with contextlib.ExitStack() as waiting:
        waiting.enter_context(progress(f"compiling {graph.name} for {loaded.name}"))

        def ready(listening: Listening) -> None:
            waiting.close()
            for sentence in listening.warnings:
                warn(sentence)
            if listening.plain_chat:
                warn(f"{listening.name} has no chat template, messages are joined, a line each; see --chat-template")
            write(f"{listening.name} on {loaded.name} at {listening.url}\n")

        server.serve(
            setup, checkpoint,
            host=host, port=port, keys=keys, name=served_name, chat_template=chat_template, on_ready=ready,
        )  # fmt: skip


def _keys(given: list[str], file: Path | None) -> list[str]:
    """Keys of both options; an empty one would let everybody in and is refused."""
    keys = list(given)
    if file is not None:
        lines = [line.strip() for line in options.read_text(file, "the file of API keys").splitlines()]
        keys += [line for line in lines if line]
        if not any(lines):
            raise ConfigError(f"{file}: holds no API key; give one a line")
    wrong = next((key for key in keys if not key or not key.isascii() or key != key.strip()), None)
    if wrong is not None:
        raise ConfigError("an API key must be ASCII without blanks around it and not empty; give another")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

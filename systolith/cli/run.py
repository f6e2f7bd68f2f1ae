"""`systolith run`: requests from a file, played against a chip as they arrive."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, print_table, progress, seconds_text, warn, write
from systolith.cli._evidence import evidence
from systolith.spec import Chip, ConfigError

if TYPE_CHECKING:
    from systolith.models.tokenizer import Tokenizer
    from systolith.runtime.engine import Engine
    from systolith.runtime.replay import Outcome

__all__ = ["Mode", "register", "run"]

_CONTEXT_STEP = 256
_SHOWN = 40
"""Rows of the table for people; the file of `-o` has all."""


class Mode(StrEnum):
    """What is simulated: tokens, times without weights, or both."""

    functional = "functional"
    timing = "timing"
    both = "both"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run)


def run(
    ctx: typer.Context,
    requests: Annotated[Path, typer.Argument(metavar="REQUESTS", help="File of requests, one JSON object a line.")],
    model: Annotated[
        str,
        typer.Option("--model", help="Model directory, or tinycode; with --mode timing also a config as `estimate`."),
    ] = options.TINYCODE,
    chip: options.ChipOption = "nano",
    mode: Annotated[
        Mode, typer.Option("--mode", help="functional: tokens; timing: times, without weights; both: both.")
    ] = Mode.both,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Requests that run at once.")] = 8,
    context: Annotated[
        int | None, typer.Option("--context", min=2, help="Most tokens of a request (default: what the file needs).")
    ] = None,
    page_tokens: options.PageOption = 64,
    pages: Annotated[
        int | None, typer.Option("--pages", min=1, help="Pages of the KV cache (default: all slots at full context).")
    ] = None,
    prefill_chunk: options.PrefillOption = None,
    prefix_cache: Annotated[
        bool, typer.Option("--prefix-cache/--no-prefix-cache", help="Share pages of equal prefixes.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the object of --json to this file, too.")
    ] = None,
    device: options.DeviceOption = "sim",
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Play requests as they arrive against one chip: continuous batching, chunked prefill, shared prefixes.

    A bad request is refused alone. Each request has the tokens that it has by itself, whatever else runs.
    """
    options.check_pages(page_tokens)
    loaded = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)
    if output is not None:
        from systolith.runtime.files import check_output

        check_output(output)
    if mode is Mode.timing and device != "sim":
        raise ConfigError(f"--device={device} goes with --mode functional or both; timing alone runs no data")
    opened, tokenizer = _open(model, mode)

    from systolith.runtime.engine import Engine
    from systolith.runtime.replay import fitting_context, play, read_requests

    data = _read(requests)
    arrivals, refused = read_requests(data, str(requests), tokenizer.encode if tokenizer else None, opened.graph.vocab)
    if not arrivals:
        raise ConfigError([outcome.message for outcome in refused[:20]])
    most = opened.graph.context
    if context is not None and context > most:
        raise ConfigError(f"--context={context} must be 2..{most}, {opened.graph.name} has no more; take a smaller one")
    need = context or fitting_context(arrivals, most, _CONTEXT_STEP)
    with progress(f"compiling {opened.graph.name} for {loaded.name}"):
        engine = Engine(
            opened.model, loaded, chosen, slots=slots, context=need,
            page_tokens=page_tokens, pages=pages, prefill_chunk=prefill_chunk, prefix_cache=prefix_cache, device=device,
            timing=mode is not Mode.functional, max_waiting=len(arrivals) + 1,
        )  # fmt: skip
    with progress(f"playing on {loaded.name}", len(arrivals)) as advance:
        ended = 0

        def count(event: object) -> None:
            nonlocal ended
            ended += hasattr(event, "reason")
            advance(ended)

        outcomes = play(engine, arrivals, count)
    everything = sorted([*outcomes, *refused], key=lambda outcome: outcome.line)
    for outcome in [o for o in everything if o.reason == "refused"][:20]:
        place = "" if outcome.message.startswith(f"{requests}:") else f"{requests}:{outcome.line}: "
        warn(f"{place}{outcome.message}")
    found = report(engine, everything, mode, tokenizer)
    if output is not None or as_json:
        found["manifest"] = evidence(
            ctx, loaded, opened.sha256, engine.compiled.program.sha256, resolved=engine.compiled.plan
        )
    if output is not None:
        from systolith.runtime.files import write_whole

        text = json.dumps(found, ensure_ascii=False) + "\n"
        write_whole(output, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
    if as_json:
        print_json(found)
    else:
        _print(found, everything, engine, loaded)


class _Opened:
    """A model: its checkpoint, or with times alone its graph."""

    def __init__(self, name: str, mode: Mode) -> None:
        from systolith.models.checkpoint import Checkpoint
        from systolith.models.graph import ModelGraph

        self.model: Checkpoint | ModelGraph
        if mode is Mode.timing:
            from systolith.runtime.estimate import open_config

            self.graph, source, self.sha256 = open_config(name)
            self.model, self.path = self.graph, Path(source)
        else:
            self.model = options.open_model(name)
            self.graph, self.path, self.sha256 = self.model.graph, self.model.path, self.model.sha256


def _open(name: str, mode: Mode) -> tuple[_Opened, Tokenizer | None]:
    from systolith.models.tokenizer import Tokenizer

    opened = _Opened(name, mode)
    there = opened.path.is_dir() and (opened.path / "tokenizer.json").exists()
    return opened, Tokenizer.open(opened.path, opened.graph.vocab) if there else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the file of requests cannot be read ({error.strerror}); check the path") from None


def report(engine: Engine, outcomes: list[Outcome], mode: Mode, tokenizer: Tokenizer | None) -> dict[str, object]:
    """The object of `--json`; docs/cli.md explains each key."""
    from systolith.runtime.replay import quantiles

    plan, stats = engine.compiled.plan, engine.stats
    told = mode is not Mode.timing
    timed = mode is not Mode.functional
    rows = [
        {
            "id": o.id, "line": o.line, "reason": o.reason, "message": o.message, "arrival_s": o.arrival_s,
            "prompt_tokens": o.prompt_tokens, "generated": len(o.tokens), "tokens": o.tokens if told else None,
            "text": tokenizer.decode(o.tokens) if told and tokenizer else None, "ttft_s": o.ttft_s, "tpot_s": o.tpot_s,
            "finish_s": o.finish_s,
        }
        for o in outcomes
    ]  # fmt: skip
    seconds = engine.cycle / engine.chip.clock_hz if timed else None
    made = sum(len(o.tokens) for o in outcomes)
    reasons = {name: sum(o.reason == name for o in outcomes) for name in ("stop", "length", "cancelled", "refused")}
    return {
        "chip": plan.chip.name, "model": plan.model.name, "mode": mode.value, "slots": plan.options.batch,
        "context": engine.context, "rows": plan.rows,
        "pages": {"total": stats.pages_total, "tokens": plan.page_tokens, "held": stats.pages_used},
        "requests": rows,
        "summary": {
            "requests": len(outcomes), **reasons, "steps": stats.steps, "prompt_tokens": stats.prompt_tokens,
            "prefix_tokens": stats.prefix_hits, "generated": made, "cycles": engine.cycle if timed else None,
            "seconds": seconds, "tokens_per_s": made / seconds if seconds else None,
            "ttft_s": quantiles([o.ttft_s for o in outcomes if o.ttft_s is not None]),
            "tpot_s": quantiles([o.tpot_s for o in outcomes if o.tpot_s is not None]),
        },
        "program_sha256": engine.compiled.program.sha256,
    }  # fmt: skip


def _print(found: dict[str, object], outcomes: list[Outcome], engine: Engine, chip: Chip) -> None:
    """Print a row for each request, and what it comes to."""
    from systolith.runtime.replay import quantiles

    plan, stats = engine.compiled.plan, engine.stats
    rows = [
        [o.id[:24], f"{o.arrival_s:.6g} s", str(o.prompt_tokens), str(len(o.tokens)), o.reason, seconds_text(o.ttft_s),
         seconds_text(o.tpot_s)]
        for o in outcomes[:_SHOWN]
    ]  # fmt: skip
    print_table(rows, ["request", "arrives", "prompt", "made", "ended", "first token", "per token"])
    if len(outcomes) > _SHOWN:
        write(f"... and {len(outcomes) - _SHOWN} more; -o FILE has them all\n")
    slices = f"{chip.slices} slice{'s' if chip.slices > 1 else ''} at {chip.clock_hz / 1e6:g} MHz"
    write(
        f"\n{plan.model.name} on {chip.name} ({slices}), {plan.options.batch} request slots, context {engine.context}, "
        f"{stats.pages_total} pages of {plan.page_tokens} tokens, at most {plan.rows} rows a step\n"
    )
    made = sum(len(o.tokens) for o in outcomes)
    lines = [
        ["steps", str(stats.steps)],
        [
            "tokens",
            f"{made} made, {stats.prompt_tokens} of prompts computed, {stats.prefix_hits} found in shared pages",
        ],
        ["pages still held", str(stats.pages_used)],
    ]
    if engine.timing:
        seconds = engine.cycle / chip.clock_hz
        lines.append(["chip time", f"{seconds_text(seconds)}, {made / seconds:,.0f} tokens/s"])
        for name, key in (("time to first token", "ttft_s"), ("time per token", "tpot_s")):
            spread = quantiles([v for o in outcomes if (v := getattr(o, key)) is not None])
            if spread:
                lines.append([name, ", ".join(f"{k} {seconds_text(v)}" for k, v in spread.items())])
    print_table(lines)

"""`systolith trace`: where every cycle of a run went, as a file for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, progress, write

__all__ = ["register", "trace"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(trace)


def trace(
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write, whole or not at all.")],
    model: options.ModelArgument = options.TINYCODE,
    chip: options.ChipOption = "nano",
    prompt: Annotated[str, typer.Option("--prompt", help="Text to go on from; white space at its end is dropped.")] = (
        "def fibonacci(n):"
    ),
    prompt_ids: Annotated[
        str | None, typer.Option("--prompt-ids", help="Token ids instead of text: 1,2,3 or a file of them.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens to make.")] = 4,
    slices: Annotated[int, typer.Option("--slices", min=1, help="Slices that get tracks, from the first.")] = 4,
    device: options.DeviceOption = "sim",
    page_tokens: options.PageOption = 64,
    prefill_chunk: options.PrefillOption = None,
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Generate tokens and write a trace: a track for each unit, a reason on each gap, bandwidth and occupancy, and the
    critical path. Open it in ui.perfetto.dev; one nanosecond there is one cycle."""
    options.check_pages(page_tokens)
    loaded = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)
    checkpoint = options.open_model(model)

    from systolith.models.tokenizer import Tokenizer
    from systolith.runtime.device import find_device
    from systolith.runtime.files import check_output, write_whole
    from systolith.runtime.job import Request
    from systolith.runtime.session import compile_job, run_job
    from systolith.spec import ConfigError
    from systolith.timing.trace import Trace

    check_output(output)
    target = find_device(device)
    if not target.runs:
        raise ConfigError(f"device {device} runs nothing, so there is nothing to trace; take sim or execute")
    if prompt_ids is not None:
        ids = options.read_ids(prompt_ids)
    else:
        ids = tuple(Tokenizer.open(checkpoint.path, checkpoint.graph.vocab).encode(prompt.rstrip()))
    requests = [Request(ids, max_tokens, stops=tuple(checkpoint.graph.eos_ids))]
    with progress(f"tracing {checkpoint.graph.name} on {loaded.name}", max_tokens) as advance:
        compiled = compile_job(
            checkpoint, loaded, chosen, requests, page_tokens=page_tokens, prefill_chunk=prefill_chunk
        )
        collected = Trace(loaded, compiled.program, range(min(slices, loaded.slices)))
        run = run_job(
            compiled, target, requests,
            prefill_chunk=prefill_chunk, on_token=lambda token: advance(token.index + 1), on_window=collected.add,
        )  # fmt: skip
    data = collected.bytes()
    write_whole(output, lambda file: file.write(data))
    assert run.timing is not None
    parts = run.timing.waterfall.parts
    if as_json:
        print_json({
            "chip": loaded.name, "model": checkpoint.graph.name, "file": str(output), "bytes": len(data),
            "cycles": run.timing.cycles, "waterfall": parts,
        })  # fmt: skip
        return
    shares = ", ".join(f"{part} {n:,}" for part, n in sorted(parts.items(), key=lambda item: -item[1]) if n)
    write(
        f"{output}: {run.timing.cycles:,} cycles of {checkpoint.graph.name} on {loaded.name}, {len(data):,} bytes; "
        f"open it in ui.perfetto.dev\ncycles of the critical path: {shares}\n"
    )

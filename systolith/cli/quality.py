"""`systolith quality`: what a choice of formats costs in perplexity, on the compiled program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, print_table, progress, write
from systolith.cli._evidence import evidence
from systolith.spec import ConfigError

__all__ = ["quality", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(quality)


def quality(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Model directory; files here are further texts.")
    ] = None,
    text: Annotated[list[Path] | None, typer.Option("--text", metavar="FILES", help="UTF-8 text files.")] = None,
    chip: options.ChipOption = "nano",
    context: Annotated[
        int | None, typer.Option("--context", min=2, help="Tokens of a window (default: the model's, at most 512).")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Stop after so many tokens of text.")
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Also measure the plain FP32 graph on the same tokens.")
    ] = False,
    device: options.DeviceOption = "sim",
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure perplexity on text files with the compiled program: `quality MODEL --text FILES`.

    Each text is cut into windows that are read after a start token; every token is predicted once.
    """
    model, files = _arguments(arguments or [], text or [])
    loaded = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)
    checkpoint = options.open_model(model)

    from systolith.models.tokenizer import Tokenizer
    from systolith.runtime.device import find_device
    from systolith.runtime.quality import measure, measure_reference, text_windows

    graph = checkpoint.graph
    span = context or min(512, graph.context)
    if span > graph.context:
        raise ConfigError(f"--context={span} must be 2..{graph.context}, {graph.name} has no more; take a smaller one")
    target = find_device(device)
    if not target.runs:
        raise ConfigError(f"device {device} runs nothing, so there is nothing to measure; take sim or execute")
    texts = [options.read_text(file, "the text") for file in files]
    size = sum(len(t.encode("utf-8")) for t in texts)
    windows = text_windows(checkpoint, Tokenizer.open(checkpoint.path, graph.vocab), texts, span)
    total = sum(len(w.tokens) for w in windows)
    total = min(total, max_tokens or total)
    with progress(f"{graph.name} on {loaded.name}", total) as advance:
        found = measure(checkpoint, loaded, chosen, target, windows, most=max_tokens, text_bytes=size, progress=advance)
    plain = None
    if reference:
        with progress("plain FP32", total) as advance:
            plain = measure_reference(checkpoint, windows, most=max_tokens, text_bytes=size, progress=advance)
    resolved = chosen.resolved(graph)
    facts: dict[str, object] = {
        "chip": loaded.name, "model": graph.name, "profile": resolved.to_dict(), "context": span,
        "files": len(files), "windows": found.windows, "tokens": found.tokens, "nats": found.nats,
        "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte,
    }  # fmt: skip
    if plain is not None:
        facts |= {"reference_perplexity": plain.perplexity, "increase": found.perplexity / plain.perplexity - 1}
    if as_json:
        print_json({**facts, "manifest": evidence(ctx, loaded, checkpoint.sha256, resolved=resolved)})
        return
    from systolith.cli._report import formats

    write(
        f"{graph.name} on {loaded.name}, device {device}; {formats(resolved)}; {found.tokens:,} tokens of {len(files)} "
        f"file{'s' if len(files) > 1 else ''} in {found.windows} windows of {span}\n"
    )
    bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits per byte"
    rows = [["perplexity", f"{found.perplexity:.4f}{bits}"]]
    if plain is not None:
        change = 100 * (found.perplexity / plain.perplexity - 1)
        rows.append(["plain FP32", f"{plain.perplexity:.4f}; the chip's formats cost {change:+.3f} %"])
    print_table(rows)


def _arguments(arguments: list[str], texts: list[Path]) -> tuple[str, list[Path]]:
    """Tell the model from texts: a shell puts all files but the first of `--text *.py` where MODEL stands."""
    models = [a for a in arguments if a == options.TINYCODE or Path(a).is_dir()]
    files = texts + [Path(a) for a in arguments if a not in models]
    if len(models) > 1:
        raise ConfigError(f"{' and '.join(models)} are models; give one MODEL, and files behind --text")
    if not texts:
        raise ConfigError("no text was given; give --text FILE, UTF-8 text that the model has not seen")
    return (models[0] if models else options.TINYCODE), files

"""`systolith logits`: FP32 logits of every position of a prompt, and the model's intermediates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, progress, write
from systolith.cli._evidence import evidence

__all__ = ["logits", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(logits)


def logits(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="FP32 logits, positions x vocabulary, .npy.")],
    prompt_ids: Annotated[str, typer.Option("--prompt-ids", help="Token ids: 1,2,3 or a file of them.")],
    model: options.ModelArgument = options.TINYCODE,
    chip: options.ChipOption = "nano",
    dump: Annotated[
        Path | None, typer.Option("--dump", help="Also write r, q, k, v, attention, h and x of each layer, .npz.")
    ] = None,
    device: options.DeviceOption = "sim",
    page_tokens: options.PageOption = 64,
    prefill_chunk: options.PrefillOption = None,
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Prefill a prompt and write the logits of all its positions. The bits are the same on every chip."""
    options.check_pages(page_tokens)
    loaded = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)
    checkpoint = options.open_model(model)

    import numpy as np

    from systolith.runtime.device import find_device
    from systolith.runtime.dump import read_dump
    from systolith.runtime.files import check_output, write_whole
    from systolith.runtime.job import Request
    from systolith.runtime.session import compile_job, prompt_logits

    check_output(output)
    if dump is not None:
        check_output(dump)
    target = find_device(device)
    request = Request(options.read_ids(prompt_ids))
    with progress(f"{checkpoint.graph.name} on {loaded.name}"):
        compiled = compile_job(
            checkpoint, loaded, chosen, [request],
            page_tokens=page_tokens, prefill_chunk=prefill_chunk, every_row=True, dump=dump is not None,
        )  # fmt: skip
        found, machine = prompt_logits(compiled, target, request, prefill_chunk=prefill_chunk)
    count = len(request.prompt) if target.runs else 0
    if dump is not None:
        values = read_dump(machine, compiled, count)
        write_whole(dump, lambda file: np.savez(file, allow_pickle=False, **values))
    write_whole(output, lambda file: np.save(file, found[:count]))
    if as_json:
        print_json({
            "chip": loaded.name, "model": checkpoint.graph.name, "file": str(output), "positions": count,
            "vocabulary": checkpoint.graph.vocab, "program_sha256": compiled.program.sha256,
            "manifest": evidence(ctx, loaded, checkpoint.sha256, compiled.program.sha256, resolved=compiled.plan),
        })  # fmt: skip
        return
    from systolith.cli._report import formats

    nothing = "" if target.runs else f"; device {device} runs nothing, so the file is empty"
    write(
        f"{output}: FP32 [{count}, {checkpoint.graph.vocab}] of {checkpoint.graph.name} on {loaded.name}, "
        f"{formats(compiled.plan.profile)}{nothing}\n"
    )

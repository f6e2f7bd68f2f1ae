"""`systolith generate`: text from a model on a chip, with the chip's own time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, progress, write
from systolith.cli._evidence import evidence
from systolith.spec import ConfigError

if TYPE_CHECKING:
    from systolith.models.tokenizer import StreamDecoder, Tokenizer
    from systolith.runtime.job import Request
    from systolith.runtime.session import Run, Token

__all__ = ["generate", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(generate)


def generate(
    ctx: typer.Context,
    model: options.ModelArgument = options.TINYCODE,
    chip: options.ChipOption = "nano",
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text to go on from; white space at its end is dropped.")
    ] = None,
    prompt_ids: Annotated[
        str | None, typer.Option("--prompt-ids", help="Token ids instead of text: 1,2,3 or a file of them.")
    ] = None,
    batch: Annotated[
        Path | None, typer.Option("--batch", help="File with one prompt a line, run together; blank lines are skipped.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens to make for a prompt.")] = 64,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of sampling, 64 bits; with --batch the same for every prompt.")
    ] = 0,
    temperature: Annotated[float, typer.Option("--temperature", help="0: the best token; above: sampling.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Sample from so many best tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample from the best tokens with this much weight.")] = 1.0,
    logits: Annotated[
        Path | None, typer.Option("--logits", help="Write FP32 logits of the tokens, steps x vocabulary, .npy.")
    ] = None,
    device: options.DeviceOption = "sim",
    rtl: Annotated[
        Path | None, typer.Option("--rtl", help="With --device rtl: run the Verilog of this folder.")
    ] = None,
    page_tokens: options.PageOption = 64,
    prefill_chunk: options.PrefillOption = None,
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Generate text on a chip and print its tokens with the chip's time.

    Text streams to stdout as it is made; then follow the times, the use of each unit, the bytes moved, and this chip's
    bound for this model.
    """
    options.check_pages(page_tokens)
    loaded_chip = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)
    checkpoint = options.open_model(model)

    from systolith.runtime.device import find_device
    from systolith.runtime.files import check_output, write_whole
    from systolith.runtime.job import Request, Sampling
    from systolith.runtime.session import compile_job, load_kernels, run_job

    target = find_device(device)
    if rtl is not None:
        if device != "rtl":
            raise ConfigError(f"--rtl names Verilog to run and --device is {device}; give --device rtl with it")
        from systolith.rtl.device import Rtl

        target = Rtl(rtl)
    if logits is not None:
        check_output(logits)
    sampling = Sampling(temperature, top_k, top_p, seed)
    tokenizer = _tokenizer(checkpoint.path, checkpoint.graph.vocab, needed=prompt_ids is None)
    texts, prompts = _prompts(prompt, prompt_ids, batch, tokenizer)
    requests = [Request(ids, max_tokens, sampling, tuple(checkpoint.graph.eos_ids)) for ids in prompts]
    with progress(f"compiling {checkpoint.graph.name} for {loaded_chip.name}"):
        compiled = compile_job(
            checkpoint, loaded_chip, chosen, requests,
            page_tokens=page_tokens, prefill_chunk=prefill_chunk, keep_logits=logits is not None,
        )  # fmt: skip
    with progress("loading the simulator (compiled on first use)"):
        load_kernels(target)
    stream = _Stream(texts[0], tokenizer) if batch is None and not as_json and target.runs else None
    if stream is not None:
        stream.begin()
        run = run_job(compiled, target, requests, prefill_chunk=prefill_chunk, on_token=stream.push)
        stream.end()
    else:
        total = max_tokens * len(requests)
        with progress(f"{target.name} on {loaded_chip.name}", total) as advance:
            made = 0

            def count(token: Token) -> None:
                nonlocal made
                made += 1
                advance(made)

            run = run_job(compiled, target, requests, prefill_chunk=prefill_chunk, on_token=count)
    if logits is not None:
        import numpy as np

        kept = run.logits if run.logits is not None else np.zeros((len(requests), 0, checkpoint.graph.vocab), "<f4")
        array = kept if batch is not None else kept[0]
        write_whole(logits, lambda file: np.save(file, array))
    made_texts = [tokenizer.decode(tokens) if tokenizer else "" for tokens in run.tokens]
    if as_json:
        found = summary(run, requests, made_texts, batched=batch is not None)
        made_of = evidence(ctx, loaded_chip, checkpoint.sha256, compiled.program.sha256, resolved=compiled.plan)
        print_json({**found, "manifest": made_of})
        return
    from systolith.cli._report import print_batch, print_run

    if batch is not None and run.ran:
        print_batch(texts, made_texts)
    print_run(run, target.name)


def summary(run: Run, requests: list[Request], texts: list[str], *, batched: bool) -> dict[str, object]:
    """The object of `--json`; docs/cli.md explains each key."""
    chip, name = run.plan.chip.name, run.plan.model.name
    first: dict[str, list[object]] = {
        "chip": [chip] * len(requests),
        "model": [name] * len(requests),
        "prompt_tokens": [list(r.prompt) for r in requests],
        "tokens": [list(t) for t in run.tokens],
        "text": list(texts),
        "ttft_s": [run.ttft_s(i) for i in range(len(requests))],
        "tpot_s": [run.tpot_s(i) for i in range(len(requests))],
    }
    timing = run.timing
    return (
        {key: value if batched else value[0] for key, value in first.items()}
        | {
            "cycles": timing.cycles if timing else run.rtl["cycles"] if run.rtl else None,
            "utilisation": timing.utilisation if timing else None,
            "bytes": timing.bytes if timing else None,
            "bound_tpot_s": run.bound().seconds,
            "waterfall": timing.waterfall.parts if timing else None,
            "program_sha256": run.compiled.program.sha256,
        }
        | ({"rtl": run.rtl} if run.rtl else {})
    )


def _tokenizer(path: Path, vocab: int, *, needed: bool) -> Tokenizer | None:
    """The model's tokenizer; None where token ids are given and there is none."""
    from systolith.models.tokenizer import Tokenizer

    if not needed and not (path / "tokenizer.json").exists():
        return None
    return Tokenizer.open(path, vocab)


def _prompts(
    prompt: str | None, prompt_ids: str | None, batch: Path | None, tokenizer: Tokenizer | None
) -> tuple[list[str], list[tuple[int, ...]]]:
    """Texts and token ids of the prompts; exactly one of the three sources."""
    given = [n for n, v in (("--prompt", prompt), ("--prompt-ids", prompt_ids), ("--batch", batch)) if v is not None]
    if len(given) != 1:
        said = " and ".join(given) if given else "no prompt"
        raise ConfigError(f"{said} was given; give one of --prompt TEXT, --prompt-ids 1,2,3 and --batch FILE")
    if prompt_ids is not None:
        ids = options.read_ids(prompt_ids)
        return [tokenizer.decode(ids) if tokenizer else ""], [ids]
    assert tokenizer is not None
    if prompt is not None:
        texts = [prompt.rstrip()]
    else:
        assert batch is not None
        lines = options.read_text(batch, "the file of prompts").splitlines()
        texts = [line.rstrip() for line in lines if line.strip()]
        if not texts:
            raise ConfigError(f"{batch}: holds no prompt; give one a line")
    if texts == [""]:
        raise ConfigError("--prompt holds nothing but white space; give some text")
    return texts, [tuple(tokenizer.encode(text)) for text in texts]


class _Stream:
    """Prompt and generated text on stdout, each character as soon as it is certain."""

    def __init__(self, prompt: str, tokenizer: Tokenizer | None) -> None:
        self.prompt = prompt
        self.decoder: StreamDecoder | None = tokenizer.stream() if tokenizer else None

    def begin(self) -> None:
        write(self.prompt)

    def push(self, token: Token) -> None:
        write(self.decoder.push(token.token) if self.decoder else f" {token.token}")

    def end(self) -> None:
        write((self.decoder.finish() if self.decoder else "") + "\n")

"""`systolith compile`, `asm`, `disasm`: program files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import bytes_text, print_json, progress, warn, write

__all__ = ["asm", "compile_program", "disasm", "register"]

OutputOption = Annotated[Path, typer.Option("-o", "--output", help="File to write, whole or not at all.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("compile")(compile_program)
    app.command()(asm)
    app.command()(disasm)


def compile_program(
    output: OutputOption,
    model: options.ModelArgument = options.TINYCODE,
    chip: options.ChipOption = "nano",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Request slots.")] = 1,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Most tokens of a sequence (default: at most 512).")
    ] = None,
    page_tokens: options.PageOption = 64,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Most prefill steps.")] = 64,
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compile a model for a chip into a program file."""
    options.check_pages(page_tokens)
    loaded = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)
    checkpoint = options.open_model(model)

    from systolith.compiler import Options, compile_model
    from systolith.runtime.files import check_output, save_program

    check_output(output)
    wanted = Options(batch, context or min(512, checkpoint.graph.context), page_tokens, steps)
    with progress(f"compiling {checkpoint.graph.name} for {loaded.name}"):
        compiled = compile_model(checkpoint, loaded, chosen, wanted)
    for sentence in compiled.plan.warnings:
        warn(sentence)
    save_program(compiled.program, output)
    program, plan = compiled.program, compiled.plan
    facts: dict[str, object] = {
        "chip": loaded.name, "model": checkpoint.graph.name, "file": str(output), "words": len(program.words),
        "rows": plan.rows, "batch": batch, "context": wanted.context, "slices": loaded.slices,
        "dram_bytes": compiled.memory.dram_bytes, "scratchpad_bytes": compiled.memory.spad_bytes,
        "program_sha256": program.sha256,
    }  # fmt: skip
    if as_json:
        print_json(facts)
        return
    from systolith.cli._report import formats

    write(
        f"{output}: {checkpoint.graph.name} for {loaded.name}, {formats(plan.profile)}; batch {batch}, context "
        f"{wanted.context}, {plan.rows} rows a step\n{len(program.words)} words; of each slice "
        f"{bytes_text(compiled.memory.dram_bytes)} of memory, {bytes_text(compiled.memory.spad_bytes)} of scratchpad\n"
        f"program {program.sha256}\n"
    )


def asm(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Assembly, .sasm.")],
    output: OutputOption,
    images: Annotated[
        Path | None, typer.Option("--images", help="Program file whose memory images are taken: text has none.")
    ] = None,
) -> None:
    """Assemble a text into a program file."""
    from systolith.isa.asm import assemble
    from systolith.isa.program import Program
    from systolith.runtime.files import check_output, save_program

    check_output(output)
    text = options.read_text(source, "the assembly")
    program = assemble(text, str(source))
    if images is not None:
        program = replace(program, images=Program.load(images).images)
    save_program(program, output)
    write(f"{output}: {len(program.words)} words, {len(program.images)} images, program {program.sha256}\n")


def disasm(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Program file.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write instead of stdout.")] = None,
) -> None:
    """Print a program file as assembly."""
    from systolith.isa.asm import disassemble
    from systolith.isa.program import Program
    from systolith.runtime.files import check_output, write_whole

    text = disassemble(Program.load(source))
    if output is None:
        write(text if text.endswith("\n") else text + "\n")
        return
    check_output(output)
    write_whole(output, lambda file: file.write(text.encode("utf-8")))

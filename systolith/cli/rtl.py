"""`systolith rtl`, `systolith cosim`, `systolith correlate`: the chip's Verilog, and what it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, progress, write
from systolith.spec import ConfigError

if TYPE_CHECKING:
    from systolith.isa.program import Program
    from systolith.runtime.correlate import Correlation
    from systolith.runtime.cosim import Cosim
    from systolith.spec import Chip

__all__ = ["correlate", "cosim", "register", "rtl"]

RtlOption = Annotated[Path | None, typer.Option("--rtl", help="Run the Verilog of this folder instead of emitting it.")]
_MODEL = Annotated[
    str, typer.Argument(metavar="MODEL_OR_PROGRAM", help="tinycode, a model's directory, or a program file.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (rtl, cosim, correlate):
        app.command()(command)


def rtl(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a chip, or path of a chip file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; new or empty.")],
) -> None:
    """Write a chip's Verilog with file list, clock constraint, memories, ports and parameters."""
    chip = options.open_chip(name)
    _needs("amaranth")

    from systolith.rtl.folder import FILES, write_folder

    with progress(f"emitting {chip.name}"):
        files = write_folder(chip, output)
    for path in files:
        write(f"{path}: {path.stat().st_size} bytes, {FILES[path.name]}\n")


def cosim(
    what: _MODEL = options.TINYCODE,
    chip: options.ChipOption = "nano",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Tokens of a model's prompt.")] = 8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens to make.")] = 1,
    hold: Annotated[
        int, typer.Option("--hold", min=0, max=250, help="Of 256 cycles, how many memory, network and host hold back.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=1, help="Seed of what holds back.")] = 1,
    rtl: RtlOption = None,
    wave: Annotated[
        Path, typer.Option("--wave", help="At a difference: the file for the waveform around it (VCD).")
    ] = Path("cosim.vcd"),
    no_wave: Annotated[bool, typer.Option("--no-wave", help="No waveform: it takes a second, longer build.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Run a program on the RTL beside the functional simulator and the timing model; compare every byte that an
    instruction writes, records, and start and end of every instruction. The first difference names the instruction,
    the element and both values, and a second build writes all signals around it. Ends with 1 if a bit differs."""
    loaded = options.open_chip(chip)
    program, setup = _job(what, loaded, prompt_tokens, max_tokens)

    from systolith.runtime.cosim import cosim as compare
    from systolith.runtime.cosim import waveform

    with progress(f"{program.name or what} on the RTL of {loaded.name}"):
        found = compare(loaded, program, setup, folder=rtl, hold_share=hold, seed=seed)
    if found.first is not None and not no_wave:
        with progress(f"waveform of {loaded.name}"):
            first, last = waveform(
                loaded, program, setup, found.first, wave, folder=rtl, hold_share=hold, seed=seed
            )  # fmt: skip
        typer.echo(f"{wave}: all signals, cycles {first} to {last}", err=True)
    if as_json:
        print_json(_object(loaded, found))
    else:
        _print(found)
    if found.differences:
        raise typer.Exit(1)


def correlate(
    chip: options.ChipOption = "nano",
    count: Annotated[int, typer.Option("--count", min=1, help="Cases of kernels, and programs of single ones.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of what is drawn.")] = 0,
    most: Annotated[int, typer.Option("--most-cycles", min=1000, help="Longest case, by the model.")] = 400_000,
    rtl: RtlOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Draw kernels of all families at random sizes, and instructions that run alone; compare the RTL's cycles with the
    timing model's. Ends with 1 where they differ by more than is allowed, and names the unit."""
    loaded = options.open_chip(chip)
    _needs("amaranth")

    from systolith.runtime.correlate import correlate as compare
    from systolith.runtime.correlate import correlation_object

    done = 0
    with progress(f"correlate on {loaded.name}", 2 * count) as advance:

        def step(number: int) -> None:
            nonlocal done
            done += 1
            advance(done)

        found = compare(loaded, count, seed, folder=rtl, most=most, progress=step)
    if as_json:
        print_json(correlation_object(found))
    else:
        _print_correlation(found)
    if not found.holds:
        raise typer.Exit(1)


# What follows is private.


def _needs(module: str) -> None:
    """Stop with a sentence where a part of the extra `rtl` is missing."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ConfigError(f"{module}: the Python package is not installed; run pip install 'systolith[rtl]'.")


def _job(what: str, chip: Chip, prompt: int, tokens: int, seed: int = 0) -> tuple[Program, Any]:
    """A program and what the host lays down for it."""
    from systolith.isa.program import Program

    path = Path(what)
    if path.is_file():
        return Program.load(path), lambda machine: None
    import random

    from systolith.models.profile import Profile
    from systolith.runtime.job import Request, layout, write_job
    from systolith.runtime.session import compile_job

    checkpoint = options.open_model(what)
    rng = random.Random(seed)
    ids = tuple(rng.randrange(checkpoint.graph.vocab) for _ in range(prompt))
    requests = [Request(ids, tokens, stops=())]
    profile: Profile = options.open_profile(None, None, None, None)
    program = compile_job(checkpoint, chip, profile, requests).program
    plan = layout(program, requests)
    return program, lambda machine: write_job(machine, program, requests, plan)


def _object(chip: Chip, found: Cosim) -> dict[str, Any]:
    return {
        "chip": chip.name, "cycles": found.cycles, "expected_cycles": found.expected_cycles, "error": found.error,
        "instructions": found.instructions, "moved": found.moved, "durations": dict(found.durations),
        "late": [{"where": x.where, "expected": x.expected, "found": x.found} for x in found.late],
        "first": str(found.first) if found.first else None, "bytes": found.bytes,
        "differences": found.differences, "verilog_sha256": found.verilog_sha256, "verilator": found.verilator,
    }  # fmt: skip


def _print(found: Cosim) -> None:
    write(
        f"rtl {found.cycles} cycles, timing {found.expected_cycles} ({100 * found.error:+.4f} %); {found.instructions} "
        f"instructions, {sum(found.durations.values())} with another duration, {found.moved} at another time\n"
    )
    for late in found.late[:10]:
        write(f"  {late.where}: {late.found} cycles, by the rule {late.expected}\n")
    for difference in found.differences[:10]:
        write(f"  {difference}\n")
    write("no bit differs\n" if not found.differences else f"{len(found.differences)} differences\n")


def _print_correlation(found: Correlation) -> None:
    """Cases, their kernels, and units whose instructions alone take another time than their rule."""
    from systolith.runtime.correlate import UNITS

    write(f"{found.alone} instructions alone, {len(found.late)} with another duration than their rule\n")
    for unit, (number, of) in found.units.items():
        late = next(x for x in found.late if UNITS.get(x.mnemonic, x.mnemonic) == unit)
        write(f"  {unit}: {number} of {of}; {late.where}: rtl {late.found}, model {late.expected} cycles\n")
    for text in found.differences[:10]:
        write(f"  {text}\n")
    for r in found.results:
        run = r.found
        write(
            f"{r.case.name}: rtl {run.cycles}, model {run.expected_cycles} cycles ({100 * run.error:+.3f} %)"
            f"{'' if r.holds else ', more than is allowed'}; memory {100 * r.utilisation['rtl']['memory']:.0f} %, "
            f"matrix {100 * r.utilisation['rtl']['M']:.0f} %\n"
        )
        for name, kernel in sorted(r.kernels.items()):
            if kernel.rtl.cycles != kernel.model.cycles or kernel.other:
                write(
                    f"  {name}: rtl {kernel.rtl.cycles}, model {kernel.model.cycles}; {kernel.other} of "
                    f"{kernel.instructions} instructions with another duration\n"
                )
        for text in run.differences[:3]:
            write(f"  {text}\n")
    write(f"median {100 * found.median:.3f} %, largest {100 * found.largest:.3f} %\n")

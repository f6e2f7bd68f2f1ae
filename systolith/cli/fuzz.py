"""`systolith fuzz`: the fast simulator against the definition, or the RTL against both models, on random programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, progress, write
from systolith.spec import ConfigError

if TYPE_CHECKING:
    from systolith.spec import Chip

__all__ = ["fuzz", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(fuzz)


def fuzz(
    chip: options.ChipOption = "nano",
    count: Annotated[int, typer.Option("--count", min=1, help="Instructions to compare; about 5 ms each.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first program.")] = 0,
    device: Annotated[str, typer.Option("--device", help="What is compared: sim, or rtl.")] = "sim",
    rtl: Annotated[
        Path | None, typer.Option("--rtl", help="With --device rtl: run the Verilog of this folder.")
    ] = None,
    pressure: Annotated[
        int | None,
        typer.Option("--pressure", min=0, help="With --device rtl: seed of what holds memory, network and host back."),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Run random legal programs on the fast simulator and on the definition, and compare everything after each
    instruction; or on the RTL, and compare every byte that an instruction writes, and its cycles. Ends with 1 if
    anything differs."""
    loaded = options.open_chip(chip)
    if device == "rtl":
        _rtl(loaded, count, seed, rtl, pressure, as_json)
        return
    if device != "sim":
        raise ConfigError(f"--device {device}: fuzz compares sim or rtl; name one of them")
    if rtl is not None or pressure is not None:
        raise ConfigError("--rtl and --pressure belong to the RTL and --device is sim; give --device rtl with them")

    from systolith.sim.fuzz import fuzz as compare

    with progress(f"fuzz on {loaded.name}", count) as advance:
        report = compare(loaded, count, seed, lambda done, _: advance(done))
    if as_json:
        print_json({
            "chip": loaded.name, "seed": seed, "instructions": report.instructions, "programs": report.programs,
            "by_class": dict(report.by_class), "by_format": dict(report.by_format),
            "mismatches": [str(m) for m in report.mismatches],
        })  # fmt: skip
    else:
        write(f"{loaded.name}, seed {seed}: {report}\n")
    if report.mismatches:
        raise typer.Exit(1)


def _rtl(chip: Chip, count: int, seed: int, folder: Path | None, pressure: int | None, as_json: bool) -> None:
    from systolith.runtime.fuzz import fuzz_rtl

    with progress(f"fuzz on the RTL of {chip.name}", count) as advance:
        report = fuzz_rtl(
            chip, count, seed, lambda done, _: advance(done), folder=folder, pressure=pressure
        )  # fmt: skip
    if as_json:
        print_json({
            "chip": chip.name, "seed": seed, "pressure": pressure, "instructions": report.instructions,
            "programs": report.programs, "cycles": report.cycles, "bytes": report.bytes,
            "by_class": dict(report.by_class), "mismatches": report.mismatches, "late": dict(report.late),
            "moved": report.moved, "cycle_error": report.cycle_error, "spoilt": report.spoilt,
            "trapped": dict(report.trapped), "untrapped": dict(report.untrapped),
            "verilog_sha256": report.verilog_sha256, "verilator": report.verilator,
        })  # fmt: skip
    else:
        write(f"{chip.name}, seed {seed}: {report}\n")
    if report.mismatches:
        raise typer.Exit(1)

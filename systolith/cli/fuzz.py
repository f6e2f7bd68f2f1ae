"""`systolith fuzz`: the fast simulator against the definition, on random legal programs."""

from __future__ import annotations

from typing import Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, progress, write

__all__ = ["fuzz", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(fuzz)


def fuzz(
    chip: options.ChipOption = "nano",
    count: Annotated[int, typer.Option("--count", min=1, help="Instructions to compare; about 5 ms each.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first program.")] = 0,
    as_json: options.JsonOption = False,
) -> None:
    """Run random legal programs on the fast simulator and on the definition, and compare everything after each
    instruction. Ends with 1 if anything differs."""
    loaded = options.open_chip(chip)

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

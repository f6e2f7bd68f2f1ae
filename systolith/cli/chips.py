"""`systolith chips`: the named chips, and the record of one with all that follows from it."""

from __future__ import annotations

from typing import Annotated

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, print_table, write
from systolith.spec import NAMES, describe, format_quantity, load

__all__ = ["chips", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(chips)


def chips(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of a chip, or path of a chip file.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """List the named chips, or print one chip's record with units and derived numbers."""
    if name is None:
        _list(as_json)
        return
    chip = options.open_chip(name)
    rows = describe(chip)
    if as_json:
        print_json({row.field: {"value": row.value, "unit": row.unit} for row in rows})
        return
    for title, derived in ((f"{chip.name}: the record", False), ("derived from it", True)):
        write(f"{title}\n")
        print_table([[r.field, r.text, r.note] for r in rows if r.derived == derived], ("field", "value", "meaning"))
        write("\n")


def _list(as_json: bool) -> None:
    """Print a line for each named chip."""
    known = [load(name) for name in NAMES]
    if as_json:
        print_json({
            chip.name: {
                "slices": chip.slices, "clock_hz": chip.clock_hz, "arrays": chip.arrays, "rows": chip.array_rows,
                "columns": chip.array_cols, "dram_bytes": chip.chip_dram_bytes,
                "dram_bytes_per_s": float(chip.chip_dram_bytes_per_s),
            }
            for chip in known
        })  # fmt: skip
        return
    rows = [
        [
            chip.name, str(chip.slices), f"{chip.arrays} of {chip.array_rows}x{chip.array_cols}",
            format_quantity(chip.clock_hz, "Hz"), format_quantity(chip.chip_dram_bytes, "bytes"),
            format_quantity(chip.chip_dram_bytes_per_s, "bytes/s"), format_quantity(chip.chip_sram_bytes, "bytes"),
        ]
        for chip in known
    ]  # fmt: skip
    print_table(rows, ("chip", "slices", "arrays a slice", "clock", "memory", "bandwidth", "SRAM"))

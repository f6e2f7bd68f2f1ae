"""`systolith peers`, `fit` and `validate`: other people's chips, and a model held to what was measured of them."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, print_table, progress, write

if TYPE_CHECKING:
    from systolith.peers.validation import Judged

__all__ = ["register"]


class LeaveOut(StrEnum):
    """What a row's prediction may not know."""

    device = "device"
    model = "model"


OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="Write to this file, whole or not at all.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("peers")(peers)
    app.command("fit")(fit)
    app.command("validate")(validate)


def peers(
    device: Annotated[str | None, typer.Argument(metavar="DEVICE", help="A device, by any of its names.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """List what can be bought or was published, or all that is known of one device, each field with its source."""
    from systolith.peers.catalogue import devices
    from systolith.peers.facts_file import packaged
    from systolith.peers.names import find
    from systolith.spec.errors import ConfigError

    facts, _ = packaged()
    if device is None:
        if as_json:
            print_json({key: _plain(one.facts, key in facts.devices) for key, one in devices().items()})
            return
        rows = [
            [key, one.name, *(_cell(one.facts.get(name)) for name in ("memory", "bandwidth", "bf16", "fp8", "power")),
             "measured" if key in facts.devices else "no measurement"]
            for key, one in devices().items()
        ]  # fmt: skip
        print_table(rows, ("device", "name", "memory GB", "TB/s", "bf16 TFLOP/s", "fp8 TFLOP/s", "W", ""))
        return
    key = find("device", device)
    if key is None:
        raise ConfigError(f"{device}: is no device of the catalogue; known are {', '.join(devices())}")
    found = devices()[key]
    if as_json:
        print_json({"device": key, **_plain(found.facts, key in facts.devices)})
        return
    said = "measured" if key in facts.devices else "no measurement of it: predictions take other devices' scalars"
    write(f"{found.name} ({key}): {said}\n")
    rows = [[name, fact.text, fact.unit, fact.confidence, fact.date, fact.source] for name, fact in found.facts.items()]
    print_table(rows, ("field", "value", "unit", "confidence", "date", "source"))


def _plain(facts: Any, measured: bool) -> dict[str, Any]:
    from dataclasses import asdict

    return {"measured": measured, "fields": {name: asdict(fact) for name, fact in facts.items()}}


def _cell(fact: Any) -> str:
    if fact is None or fact.low is None:
        return "-"
    text = f"{fact.low:g}" if fact.low == fact.high else f"{fact.low:g}-{fact.high:g}"
    return text + (" ?" if fact.confidence == "uncertain" else "")


def fit(
    data: Annotated[
        Path, typer.Option("--data", help="Directory of calibrate.csv, h200_ops.csv and a100_matmul_fp16.csv.")
    ],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the starts of the search.")] = 0,
    output: OutputOption = None,
    page: Annotated[Path | None, typer.Option("--page", help="Also write the page of errors, docs/peers.md.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Fit six scalars a device generation to measurements, and again without each device and each model."""
    from systolith.peers.fitting import fit_directory
    from systolith.peers.page import errors, render, scalars
    from systolith.peers.validation import judge, summary
    from systolith.runtime.files import check_output, write_whole

    for path in (output, page):
        if path is not None:
            check_output(path)
    with progress("fitting") as done:
        facts, rows = fit_directory(data, seed, done)
    if output is not None:
        write_whole(output, lambda file: file.write(facts.to_json().encode()))
    if page is not None:
        text = render(facts, rows)
        write_whole(page, lambda file: file.write(text.encode()))
    judged = [judge(rows, facts, leave_out) for leave_out in (None, "device", "model")]
    if as_json:
        from json import loads

        print_json({
            "facts": loads(facts.to_json()),
            "errors": dict(zip(("fit", "device", "model"), map(summary, judged), strict=True)),
        })  # fmt: skip
        return
    write(f"{scalars(facts)}\n\n{errors(*judged)}\n")


def validate(
    csv: Annotated[Path, typer.Argument(metavar="CSV", help="Measurements, with the columns of docs/cli.md.")],
    leave_out: Annotated[
        LeaveOut | None,
        typer.Option("--leave-out", help="Predict each row as if its device, or its model, had not been measured."),
    ] = None,
    facts: Annotated[
        Path | None, typer.Option("--facts", help="Fitted scalars of systolith fit, instead of the package's.")
    ] = None,
    output: OutputOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare measured rows with the device model: predicted, measured, error, regime, whether fitted on."""
    from systolith import __version__
    from systolith.peers.facts_file import read_facts
    from systolith.peers.rows import read_measurements
    from systolith.peers.validation import judge, report
    from systolith.runtime.files import check_output, write_whole
    from systolith.runtime.manifest import file_sha256

    if output is not None:
        check_output(output)
    fitted, text = read_facts(facts)
    rows = read_measurements(csv)
    judged = judge(rows, fitted, leave_out.value if leave_out else None)
    found = report(judged) | {
        "leave_out": leave_out.value if leave_out else None,
        "manifest": {
            "version": __version__, "command": "validate", "facts_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "fitted_on": dict(fitted.inputs), "inputs": {str(csv): file_sha256(csv)},
        },
    }  # fmt: skip
    if output is not None:
        import json

        write_whole(output, lambda file: file.write((json.dumps(found, ensure_ascii=False) + "\n").encode()))
    if as_json:
        print_json(found)
        return
    _print(judged, found)


def _print(judged: list[Judged], found: dict[str, Any]) -> None:
    """Print the tables for people: measured, claimed and predicted never share a column."""
    lines = []
    for one in judged:
        row = one.to_dict()
        value = _number(row["measured"])
        kinds = ("", value) if row["kind"] == "claimed" else (value, "")
        lines.append([
            row["id"] or str(row["line"]), row["chip"], row["model"], row["metric"], row["regime"] or "-", *kinds,
            _number(row["predicted"]), "-" if row["error"] is None else f"{100 * row['error']:+.1f} %",
            "yes" if row["used_in_fit"] else "no",
            row["reason"] or row["no_conclusion"] or "; ".join(row["assumed"]),
        ])  # fmt: skip
    header = (
        "row", "chip", "model", "metric", "regime", "measured elsewhere", "claimed by a vendor", "predicted here",
        "error", "fitted on", "remark",
    )  # fmt: skip
    print_table(lines, header)
    rows = [
        [regime, name, str(cell["rows"]), f"{100 * cell['median']:.1f} %", f"{100 * cell['mean']:.1f} %"]
        for regime, devices in found["summary"].items()
        for name, cell in devices.items()
    ]
    write("\n")
    print_table(rows, ("regime", "device", "rows", "median error", "mean error"))
    counts = found["counts"]
    write(
        f"{counts['rows']} rows: {counts['evaluated']} evaluated, {counts['refused']} refused, "
        f"{counts['without_conclusion']} without a conclusion, {counts['used_in_fit']} fitted on\n"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"

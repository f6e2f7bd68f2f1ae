"""From a directory of measurements to fitted scalars, those with a device or a model left out among them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from systolith.peers.cases import Refused, case_of
from systolith.peers.facts_file import Facts
from systolith.peers.fit import Fitted, Observed, fit, median
from systolith.peers.operators import Operators, read_a100, read_h200
from systolith.peers.rows import Measurement, read_measurements
from systolith.spec.errors import ConfigError

__all__ = ["CALIBRATION", "INPUTS", "fit_all", "fit_directory", "observe"]

CALIBRATION = "calibrate.csv"
INPUTS = (CALIBRATION, "h200_ops.csv", "a100_matmul_fp16.csv")
"""The files that are fitted on, and no others."""


def observe(rows: Sequence[Measurement]) -> tuple[list[tuple[Measurement, Observed]], list[tuple[Measurement, str]]]:
    """Rows that say something of a device, and rows that do not, with the reason.

    A row that is marked weak or uncertain, or was claimed, is not fitted on.
    """
    good, bad = [], []
    for row in rows:
        try:
            case = case_of(row)
        except Refused as error:
            bad.append((row, str(error)))
            continue
        why = no_conclusion(row, case.uncertain)
        if why:
            bad.append((row, why))
        else:
            assert row.value is not None
            good.append((row, Observed(case, row.value)))
    return good, bad


def no_conclusion(row: Measurement, uncertain: Sequence[str]) -> str | None:
    """Why a row carries no conclusion, if so."""
    said = row.confidence.lower()
    if any(word in said for word in ("weak", "uncertain", "unverified")):
        return f"the row is marked {row.confidence!r}"
    if claimed(row):
        return "claimed by a vendor, not measured"
    if uncertain:
        return f"uncertain of the device: {', '.join(uncertain)}"
    return None


def claimed(row: Measurement) -> bool:
    """Whether a figure is a vendor's claim and no measurement."""
    return "claim" in f"{row.confidence} {row.notes}".lower()


def fit_directory(
    data: Path, seed: int, progress: Callable[[int], None] = lambda done: None
) -> tuple[Facts, list[Measurement]]:
    """Fit on the files of INPUTS in a directory. Raises ConfigError.

    progress : gets the number of fits that are done, of 1 and one a device and one a model.
    """
    if not data.is_dir():
        raise ConfigError(f"--data: {data} is no directory; give the one that holds {', '.join(INPUTS)}")
    missing = [name for name in INPUTS if not (data / name).is_file()]
    if missing:
        raise ConfigError(f"--data: {data} lacks {', '.join(missing)}; give the directory that holds them")
    rows = read_measurements(data / CALIBRATION)
    operators = {"ampere": read_a100(data / INPUTS[2]), "hopper": read_h200(data / INPUTS[1])}
    inputs = {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in INPUTS}
    good, _ = observe(rows)
    if not good:
        raise ConfigError(f"{data / CALIBRATION}: no row of it can be fitted on; systolith validate says why")
    facts = fit_all([some for _, some in good], operators, seed, progress)
    return replace(facts, inputs=inputs, rows=frozenset(row.key for row, _ in good)), rows


def fit_all(
    observed: Sequence[Observed],
    operators: Mapping[str, Sequence[Operators]],
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Facts:
    """Fit on everything, then without each device and without each model."""
    devices = {some.case.device.key: some.case.device.generation for some in observed}
    devices |= {some.device.key: some.device.generation for found in operators.values() for some in found}
    devices = dict(sorted(devices.items()))
    models = sorted({some.case.work.name for some in observed})
    done = 0

    def one(rows: Sequence[Observed], some: Mapping[str, Sequence[Operators]]) -> Fitted:
        nonlocal done
        found = fit(rows, some, seed)
        done += 1
        progress(done)
        return found

    def middle(found: Fitted, without: str | None = None) -> list[str]:
        return [generation for key, generation in devices.items() if key != without and generation in found.generations]

    whole = one(observed, operators)
    without_device = {}
    for key in devices:
        rest = [some for some in observed if some.case.device.key != key]
        fewer = {name: [s for s in found if s.device.key != key] for name, found in operators.items()}
        if not rest:
            continue
        found = one(rest, {name: some for name, some in fewer.items() if some})
        without_device[key] = median([found.generations[g] for g in middle(found, key)])
    without_model = {}
    for name in models:
        rest = [some for some in observed if some.case.work.name != name]
        if not rest:
            continue
        found = one(rest, operators)
        without_model[name] = {
            **found.generations, "": median([found.generations[g] for g in middle(found)]),
        }  # fmt: skip
    return Facts(
        seed, {}, frozenset(), devices, whole.generations,
        median([whole.generations[g] for g in middle(whole)]), without_device, without_model,
    )  # fmt: skip

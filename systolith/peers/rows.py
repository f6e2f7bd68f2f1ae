"""Reading measurements from CSV, and what each row asks: device, model, formats, layout, regime and metric.

A file that is no table of these columns is refused whole, with all its faults. A row that is well formed and cannot be
evaluated stays, with the reason.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from systolith.spec.errors import ConfigError

__all__ = ["COLUMNS", "Measurement", "read_measurements"]

COLUMNS = (
    "id", "chip", "n_chips", "model", "precision", "kv_precision", "parallelism", "input_len", "output_len",
    "batch_or_concurrency", "metric", "value", "unit_scope", "framework", "source", "date", "confidence", "notes",
)  # fmt: skip
OPTIONAL = ("id", "kv_precision", "unit_scope", "framework", "source", "date", "confidence", "notes")
"""Columns that a file may lack."""
_SHOWN = 30
"""Most faults that one message lists in full."""


@dataclass(frozen=True)
class Measurement:
    """A row. line : in the file, from 1.      devices, value : None where the field is blank; the rest as it stands."""

    line: int
    id: str
    chip: str
    devices: int | None
    model: str
    precision: str
    kv_precision: str
    parallelism: str
    input_len: str
    output_len: str
    batch: str
    metric: str
    value: float | None
    scope: str
    framework: str
    source: str
    date: str
    confidence: str
    notes: str

    @property
    def key(self) -> str:
        """Digest of all that says what was measured and what came out, for finding a row again in another file."""
        said = (
            self.chip, self.devices, self.model, self.precision, self.kv_precision, self.parallelism, self.input_len,
            self.output_len, self.batch, self.metric, self.value, self.scope, self.framework,
        )  # fmt: skip
        text = "\x1f".join(re.sub(r"\s+", " ", str(part)).strip().lower() for part in said)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_measurements(path: Path) -> list[Measurement]:
    """The rows of a file. Raises ConfigError with every fault of the file at once."""
    rows, faults = parse(_text(path), str(path))
    if faults:
        more = [f"{path}: {len(faults) - _SHOWN} more faults"] if len(faults) > _SHOWN else []
        raise ConfigError([*faults[:_SHOWN], *more] if more else faults)
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; give a CSV file in UTF-8") from None


def parse(text: str, source: str) -> tuple[list[Measurement], list[str]]:
    """(rows, faults) of a text. Lines that begin with # before the header are skipped."""
    rows: list[Measurement] = []
    faults: list[str] = []
    columns: list[str] | None = None
    seen: dict[str, int] = {}
    for line, cells in _lines(text, source, faults):
        if columns is None:
            if cells[0].startswith("#"):
                continue
            columns = [cell.strip() for cell in cells]
            missing = [name for name in COLUMNS if name not in columns and name not in OPTIONAL]
            unknown = [repr(name)[:40] for name in columns if name not in COLUMNS]
            twice = sorted({name for name in columns if columns.count(name) > 1})
            for what, found in (("lacks", missing), ("has unknown", unknown), ("has twice", twice)):
                if found:
                    faults.append(
                        f"{source}:{line}: the header {what} {', '.join(found)}; its columns are {', '.join(COLUMNS)}"
                    )
            if faults:
                return rows, faults
            continue
        if len(cells) != len(columns):
            faults.append(
                f"{source}:{line}: has {len(cells)} fields, must have {len(columns)}, as the header; quote commas"
            )
            continue
        row = _row(line, dict(zip(columns, cells, strict=True)), source, faults)
        if row.id and row.id in seen:
            faults.append(
                f"{source}:{line}: id={row.id[:40]} is that of line {seen[row.id]} too; give each row its own"
            )
        seen.setdefault(row.id, line)
        rows.append(row)
    if columns is None:
        faults.append(f"{source}: is empty; its first line must name the columns {', '.join(COLUMNS)}")
    return rows, faults


def _lines(text: str, source: str, faults: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""))
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            faults.append(f"{source}:{start}: is no CSV ({error}); correct the line")
            start = reader.line_num + 1
            continue
        line, start = start, reader.line_num + 1
        if any("\n" in cell or "\r" in cell for cell in cells):
            faults.append(f"{source}:{line}: a quoted field runs over the end of the line; close its quotes")
        elif any(cell.strip() for cell in cells):
            yield line, cells


def _row(line: int, cells: dict[str, str], source: str, faults: list[str]) -> Measurement:
    def text(name: str) -> str:
        return cells.get(name, "").strip()

    def number(name: str, whole: bool) -> float | None:
        given = text(name)
        if not given:
            return None
        try:
            found = float(given.replace(",", ""))
        except ValueError:
            found = math.nan
        if not math.isfinite(found) or found <= 0 or (whole and (found != int(found) or found > 1e6)):
            kind = "a whole number 1..1000000" if whole else "a number above 0"
            faults.append(f"{source}:{line}: {name}={given[:40]!r} must be {kind}, or blank")
            return None
        return found

    devices = number("n_chips", whole=True)
    return Measurement(
        line, text("id"), text("chip"), None if devices is None else int(devices), text("model"), text("precision"),
        text("kv_precision"), text("parallelism"), text("input_len"), text("output_len"), text("batch_or_concurrency"),
        text("metric"), number("value", whole=False), text("unit_scope"), text("framework"), text("source"),
        text("date"), text("confidence"), text("notes"),
    )  # fmt: skip

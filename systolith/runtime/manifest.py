"""Evidence: what a result was made of, so that it can be made again, and what differs when it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systolith import __version__
from systolith.spec.chip import Chip
from systolith.spec.errors import ConfigError

__all__ = ["COMMANDS", "Difference", "Result", "differences", "file_sha256", "manifest", "read_result"]

COMMANDS = ("generate", "logits", "quality", "run", "estimate", "waterfall", "curve", "cost")
"""Commands whose results carry a manifest."""

_HASH = 64
_KEYS = (
    "version", "command", "chip_sha256", "model_sha256", "program_sha256", "seed", "options", "resolved",
    "inputs", "outputs",
)  # fmt: skip
_MAY_DIFFER = ("manifest.version", "file")
"""The version is told apart, and the place of an output is no result."""

_ABSENT = object()


def manifest(
    command: str,
    chip: Chip,
    model_sha256: str,
    *,
    program_sha256: str | None = None,
    seed: int | None = None,
    options: Mapping[str, object],
    resolved: Mapping[str, object],
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The manifest of a result.

    program_sha256 : None where there are several programs.      seed : None where nothing is drawn.
    options : what was asked for; of a command its options by name, files to write as true.
    resolved : what became of them: the whole numerics profile, and most rows of a step.
    inputs : SHA-256 of each file that options name, by its path.      outputs : that of each file written, by option.
    """
    return {
        "version": __version__,
        "command": command,
        "chip_sha256": chip.sha256,
        "model_sha256": model_sha256,
        "program_sha256": program_sha256,
        "seed": seed,
        "options": dict(options),
        "resolved": dict(resolved),
        "inputs": dict(inputs or {}),
        "outputs": dict(outputs or {}),
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises ConfigError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read ({reason}); check the path") from None


@dataclass(frozen=True)
class Result:
    """A result that was read from a file. values : the whole object, its manifest among it."""

    path: Path
    values: dict[str, Any]
    command: str
    options: dict[str, Any]
    inputs: dict[str, str]

    def hash(self, name: str) -> object:
        """A hash of the manifest."""
        return self.values["manifest"][name]

    @property
    def version(self) -> object:
        """The version that made it."""
        return self.values["manifest"]["version"]

    def check_inputs(self) -> None:
        """Raise ConfigError if a file that the result was made of has changed or is gone."""
        for name, sha256 in self.inputs.items():
            now = file_sha256(Path(name))
            if now != sha256:
                raise ConfigError(
                    f"{self.path}: the input {name} has changed since (SHA-256 {now[:12]}, was {sha256[:12]}); "
                    "give the file as it was, or make a new result"
                )

    def check_same(self, what: str, name: str, now: object) -> None:
        """Raise ConfigError if the chip or the model is no longer what it was."""
        before = self.hash(f"{what}_sha256")
        if before != now:
            raise ConfigError(
                f"{self.path}: the {what} {name} has changed since (SHA-256 {str(now)[:12]}, was {str(before)[:12]}); "
                f"give the {what} as it was, or make a new result"
            )


def read_result(path: Path) -> Result:
    """Read the object that `--json` has printed. Raises ConfigError for a file that is no such result."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: the result cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; give a result that --json has printed") from None
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON ({error}); give a result that --json has printed") from None
    found = values.get("manifest") if isinstance(values, dict) else None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: has no manifest; give a result that --json of {', '.join(COMMANDS)} has printed")
    faults = [f"manifest.{name} is missing" for name in _KEYS if name not in found]
    faults += [f"manifest.{name} is no known key" for name in found if name not in _KEYS]
    command: str = found.get("command", "")
    options = found.get("options")
    inputs: dict[str, str] = found.get("inputs", {})
    if command not in COMMANDS:
        faults.append(f"manifest.command={_short(command)} must be one of {', '.join(COMMANDS)}")
    if not isinstance(options, dict):
        options = {}
        faults.append(f"manifest.options={_short(found.get('options'))} must be an object")
    hashes = list(inputs.values()) if isinstance(inputs, dict) else [None]
    if not all(isinstance(value, str) and len(value) == _HASH for value in hashes):
        faults.append(f"manifest.inputs={_short(inputs)} must be an object of SHA-256 by path")
    if faults:
        raise ConfigError(f"{path}: {'; '.join(faults)}; give the file as --json has printed it")
    return Result(path, values, command, options, inputs)


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different."""
    table = dict(items)
    if len(table) < len(items):
        raise ValueError("a key is given twice in one object")
    return table


@dataclass(frozen=True)
class Difference:
    """key : path of names and numbers, with dots.      before, now : as JSON; None where the key is not there."""

    key: str
    before: str | None
    now: str | None

    def __str__(self) -> str:
        """One line on it."""
        if self.before is None:
            return f"{self.key}: {self.now} now, was not there"
        if self.now is None:
            return f"{self.key}: was {self.before}, is not there now"
        return f"{self.key}: was {self.before}, is {self.now} now"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """What differs between two results, key by key, in their order; numbers must be equal to the last bit.

    An output that went into a pipe before has no hash to compare.
    """
    return [
        d
        for d in _walk("", before, now)
        if d.key not in _MAY_DIFFER and not (d.before is None and d.key.startswith("manifest.outputs."))
    ]


def _walk(key: str, before: Any, now: Any) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            inner = f"{key}.{name}" if key else str(name)
            yield from _walk(inner, before.get(name, _ABSENT), now.get(name, _ABSENT))
    elif isinstance(before, list) and isinstance(now, list):
        for i in range(max(len(before), len(now))):
            pair = (values[i] if i < len(values) else _ABSENT for values in (before, now))
            yield from _walk(f"{key}[{i}]", *pair)
    else:
        was, is_ = (None if value is _ABSENT else json.dumps(value, ensure_ascii=False) for value in (before, now))
        if was != is_:
            yield Difference(key, was and _cut(was), is_ and _cut(is_))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _short(value: object) -> str:
    return _cut(json.dumps(value, ensure_ascii=True))

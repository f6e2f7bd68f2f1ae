"""Reading of untrusted JSON and the words of error messages, shared by the readers of this package."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from systolith.spec.errors import ModelError

__all__ = ["did_you_mean", "parse_json", "read_bytes", "read_json_object", "show"]

_MAX_JSON_BYTES = 64 << 20  # the largest tokenizer.json of a published model has 34 MB


def show(value: object, limit: int = 60) -> str:
    """A value of a JSON or TOML file on one line of ASCII, shortened to `limit` characters."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} that is too large to print"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean NAME?)` for the nearest known name, or nothing where none is near."""
    near = difflib.get_close_matches(name[:200], sorted(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def read_bytes(path: Path, what: str) -> bytes:
    """The whole of a small file. Raises ModelError if it is not there, is no file, or is larger than 64 MiB."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError(f"{path}: has {path.stat().st_size} bytes, {what} has at most {_MAX_JSON_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; a model directory needs {what}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"{path}: cannot be read ({reason}); a model directory needs {what}") from None


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    seen: dict[str, object] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key {show(key)} stands twice")
        seen[key] = value
    return seen


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def parse_json(data: bytes) -> object:
    """Parse strict JSON: UTF-8, no key twice, no NaN or Infinity. Raises ValueError with a reason on one line."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_object(path: Path, what: str) -> Mapping[str, object]:
    """Read a file that holds one JSON object. Raises ModelError that names the file, the place and the remedy."""
    try:
        value = parse_json(read_bytes(path, what))
    except ValueError as error:
        raise ModelError(f"{path}: is not valid JSON ({error}); fetch the file again or mend it") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds {show(value)}, must hold a JSON object; fetch the file again or mend it")
    return value

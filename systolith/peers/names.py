"""One table of names: what a measurement calls a device, a model, an engine or a format, and what it is called here."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from importlib import resources

from systolith.peers.architectures import known_models
from systolith.peers.catalogue import devices
from systolith.peers.formats import FORMATS

__all__ = ["canonical", "find", "unknown_configs"]


def canonical(text: str) -> str:
    """A name without what makers of tables do not agree on: case, blanks, dashes, dots, underscores."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


@functools.cache
def _table() -> Mapping[str, object]:
    text = resources.files("systolith.peers").joinpath("facts/aliases.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@functools.cache
def _names(kind: str) -> Mapping[str, str]:
    """Canonical name to the name here."""
    known: tuple[str, ...] = FORMATS if kind == "format" else ()
    if kind in ("device", "model"):
        known = tuple(devices()) if kind == "device" else tuple(known_models())
    found = {canonical(name): name for name in known}
    if kind == "device":
        found |= {canonical(device.name): key for key, device in devices().items()}
    table = _table()[kind]
    assert isinstance(table, dict)
    for name, others in table.items():
        found[canonical(name)] = name
        for other in others:
            found[canonical(other)] = name
    return found


def find(kind: str, text: str) -> str | None:
    """The name here of a "device", "model", "engine" or "format"; None where the table does not have it.

    What is added to a name is left off, piece by piece: the maker before it, words of a variant behind it.
    """
    names = _names(kind)
    text = text.strip()
    tail = text.rsplit("/", 1)[-1]
    for candidate in (text, tail, re.sub(r"\([^)]*\)", " ", tail)):
        key = canonical(candidate)
        if key in names:
            return names[key]
    if kind == "engine":
        key = canonical(text)
        return next((name for start, name in names.items() if key.startswith(start)), None)
    key = canonical(re.sub(r"\([^)]*\)", " ", tail))
    if kind == "format":
        key = re.sub(r"g\d{1,5}$", "", key)
        return names.get(key)
    if kind == "device":
        return names.get(re.sub(r"^(nvidia|amd|aws|google|intel)", "", key))
    return _model(key, names)


_VARIANTS = (
    r"(instruct|chat|base|hf|it|fp8kv|fp8|fp4|nvfp4|mxfp4|bf16|fp16|w8a8|w4a16|awq|gptq|dynamic|v\d{1,2}|\d{4})$"
)


def _model(key: str, names: Mapping[str, str]) -> str | None:
    key = re.sub(r"^(meta|mistralai|nvidia|amd|openai|google|qwen(?=qwen))", "", key)
    for _ in range(6):
        if key in names:
            return names[key]
        shorter = re.sub(_VARIANTS, "", key)
        if shorter == key:
            return None
        key = shorter
    return None


def unknown_configs() -> Mapping[str, str]:
    """Models that are known by name, whose config is not known here with certainty, and why."""
    table = _table()["no_config"]
    assert isinstance(table, dict)
    return {canonical(name): str(reason) for name, reason in table.items()}

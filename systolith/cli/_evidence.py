"""The manifest of a command's result: its options, and the hashes of what it read and wrote."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from systolith.spec import Chip

if TYPE_CHECKING:
    from systolith.compiler.plan import Plan
    from systolith.models.profile import Profile

__all__ = ["NO_PART", "OUTPUTS", "evidence"]

OUTPUTS = {
    "generate": ("logits",),
    "logits": ("output", "dump"),
    "waterfall": ("svg",),
    "curve": ("svg",),
    "cost": ("svg",),
}
"""Options that name a file to write, whose bytes are part of the result."""
NO_PART = {("run", "output")}
"""Of those the ones that take the result itself."""
_FILES = ("profile", "batch", "requests", "prompt_ids", "text", "arguments")
"""Options that may name a file to read. Chip and model have hashes of their own."""


def evidence(
    ctx: typer.Context,
    chip: Chip,
    model_sha256: str,
    program_sha256: str | None = None,
    *,
    resolved: Plan | Profile,
) -> dict[str, Any]:
    """The manifest of the command that is running; its output files must have been written.

    resolved : the plan of the program, or where there are several the profile.
    """
    from systolith.compiler.plan import Plan
    from systolith.runtime.manifest import file_sha256, manifest

    command = str(ctx.info_name)
    given: dict[str, object] = {}
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for parameter in ctx.command.params:
        name = str(parameter.name)
        if name not in ctx.params or name == "as_json" or (command, name) in NO_PART:
            continue
        value = ctx.params[name]
        if name in OUTPUTS.get(command, ()):
            given[name] = value is not None
            if value is not None and Path(str(value)).is_file():  # a pipe cannot be read again
                outputs[name] = file_sha256(Path(str(value)))
            continue
        given[name] = _plain(value)
        if name in _FILES:
            for text in value if isinstance(value, list | tuple) else [value]:
                if text is not None and _is_file(str(text)):
                    inputs[str(text)] = file_sha256(Path(str(text)))
    seed = given.get("seed")
    facts: dict[str, object]
    if isinstance(resolved, Plan):
        facts = {"profile": resolved.profile.to_dict(), "rows": resolved.rows}
    else:
        facts = {"profile": resolved.to_dict()}
    return manifest(
        command, chip, model_sha256, program_sha256=program_sha256, seed=seed if isinstance(seed, int) else None,
        options=given, resolved=facts, inputs=inputs, outputs=outputs,
    )  # fmt: skip


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # token ids make a name that is too long
        return False


def _plain(value: object) -> object:
    """An option's value as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

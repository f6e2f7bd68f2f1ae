"""`systolith repro`: make a result again, and say what differs."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, progress, warn, write
from systolith.cli._evidence import NO_PART, OUTPUTS
from systolith.spec import ConfigError, load

if TYPE_CHECKING:
    from systolith.runtime.manifest import Result

__all__ = ["register", "repro"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(repro)


def repro(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Result that --json of a command has printed.")],
    as_json: options.JsonOption = False,
) -> int:
    """Repeat a result from its manifest and say what differs, key by key. Exit code 0: equal, 1: different."""
    from systolith import __version__
    from systolith.runtime.manifest import differences, read_result

    before = read_result(file)
    before.check_inputs()
    chip = before.options.get("chip")
    if not isinstance(chip, str):
        raise ConfigError(f"{file}: manifest.options.chip must be a text; give the file as --json has printed it")
    before.check_same("chip", chip, load(_argument(file, "chip", chip)).sha256)
    if before.version != __version__:
        warn(f"{file} was made by version {_show(before.version)}, this is {__version__}")
    with tempfile.TemporaryDirectory() as folder, progress(f"repeating {before.command}"):
        now = _again(before, Path(folder))
    name = now["model"][0] if isinstance(now["model"], list) else now["model"]
    before.check_same("model", name, now["manifest"]["model_sha256"])
    found = differences(before.values, now)
    if as_json:
        rows = [{"key": d.key, "before": d.before, "now": d.now} for d in found]
        print_json({"file": str(file), "command": before.command, "equal": not found, "differences": rows})
    else:
        for difference in found:
            write(f"{difference}\n")
        verdict = f"{len(found)} differences" if len(found) != 1 else "1 difference"
        write(f"{file}: {before.command} on {chip}: {verdict if found else 'equal'}\n")
    return 1 if found else 0


def _again(before: Result, folder: Path) -> dict[str, Any]:
    """Run the command of a result; its object."""
    from systolith.cli import command_line

    whole = command_line()
    command = whole.commands[before.command]
    arguments = _arguments(before, command.params, folder)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        command.main(args=arguments, prog_name=before.command, standalone_mode=False)
    found: dict[str, Any] = json.loads(text.getvalue())
    return found


def _arguments(before: Result, parameters: Sequence[Any], folder: Path) -> list[str]:
    """The options of a result as a command line."""
    known = {p.name: p for p in parameters}
    flags, places = [], []
    for name, value in before.options.items():
        where = f"{before.path}: manifest.options.{_show(name)}"
        if name not in known or name in ("as_json", "help") or (before.command, name) in NO_PART:
            raise ConfigError(f"{where} is no option of {before.command}; give the file as --json has printed it")
        parameter = known[name]
        if name in OUTPUTS.get(before.command, ()):
            if not isinstance(value, bool):
                raise ConfigError(f"{where}={_show(value)} must be true or false: whether a file is written")
            flags += [f"{parameter.opts[-1]}={folder / name}"] if value else []
        elif isinstance(value, bool):
            names = parameter.opts if value else parameter.secondary_opts
            flags += names[-1:]
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            texts = [_argument(before.path, name, item) for item in values]
            if parameter.param_type_name == "argument":
                places += texts
            else:
                flags += [f"{parameter.opts[-1]}={text}" for text in texts]
    return [*flags, "--json", "--", *places]


def _argument(path: Path, name: str, value: object) -> str:
    """A value as a command line holds it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{path}: manifest.options.{name}={_show(value)} must be a text or number")
    text = str(value)
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(f"{path}: manifest.options.{name}={_show(value)} holds what no command line can")
    return text


def _show(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""The command line: one module per group of commands. A command imports what it needs when it runs.

A fault that the user can mend is one sentence on stderr and exit code 2; an interrupt is 130; a fuzz that found a
mismatch, and a result that is not the same again, is 1. A fault of our own is one sentence with its place, and 70.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

# The base of typer's usage errors has no public name; typer is pinned.
from typer._click.exceptions import ClickException

from systolith.cli import (
    chips,
    cost,
    curve,
    estimate,
    fuzz,
    generate,
    logits,
    peers,
    program,
    quality,
    repro,
    rtl,
    run,
    serve,
    trace,
)
from systolith.cli._console import write
from systolith.spec.errors import SystolithError

__all__ = ["app", "command_line", "main"]

BAD_INPUT, INTERNAL, INTERRUPTED, BROKEN_PIPE = 2, 70, 130, 141

app = typer.Typer(
    name="systolith",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    from systolith import __version__

    if wanted:
        write(f"systolith {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """An open LLM-inference chip: compile a model, run it bit for bit, and see the chip's own time."""


for module in (
    generate,
    serve,
    run,
    logits,
    quality,
    estimate,
    curve,
    cost,
    peers,
    repro,
    program,
    trace,
    chips,
    fuzz,
    rtl,
):
    module.register(app)


@functools.cache
def command_line() -> Any:
    """The app as typer runs it; making it takes longer than many commands."""
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process if left out) and give its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = command_line()(args=arguments, prog_name="systolith", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ClickException as error:
        sentence = " ".join(error.format_message().split())
        return _refuse(sentence) if sentence else BAD_INPUT  # without a command typer has printed the help
    except SystolithError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        return _close(BROKEN_PIPE)
    except SystemExit:  # how typer ends when nobody reads its output any more
        return _close(BROKEN_PIPE)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        _refuse(f"{where}{error.strerror or error}; check the path and the space left")
        return _close(BAD_INPUT)
    except MemoryError as error:
        return _refuse(f"this machine has too little memory ({error}); take a smaller model, batch or context")
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        name = "/".join(place.filename.split("/")[-3:])
        _refuse(f"fault in Systolith itself: {type(error).__name__} at {name}:{place.lineno} ({error}); report it")
        return INTERNAL


def _refuse(sentence: str) -> int:
    """Print a sentence on stderr."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(f"systolith: {sentence}", file=sys.stderr, flush=True)
    return BAD_INPUT


def _close(code: int) -> int:
    """Let no later flush of a stdout that takes nothing fail again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
    return code

"""Files that are whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from systolith.isa.program import Program
from systolith.spec.errors import ConfigError

__all__ = ["check_output", "save_program", "write_whole"]


def check_output(path: Path) -> None:
    """Refuse, before any work is done, a path that cannot be written."""
    parent = path.parent
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; give the path of a file")
    if not parent.is_dir():
        raise ConfigError(f"{path}: the directory {parent} is not there; make it or take another path")
    if not os.access(path if _special(path) else parent, os.W_OK):
        raise ConfigError(f"{path}: cannot be written (Permission denied); take another path")


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file, which then appears at once; a device or pipe is written as it is.

    Raises ConfigError in one sentence where that fails; then nothing is left behind and an older file stays.
    """
    temporary: str | None = None
    try:
        if _special(path):
            with path.open("wb") as file:
                write(file)
            return
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            write(file)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror or error}); free space or take another path"
        ) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def save_program(program: Program, path: Path) -> None:
    """Write a program file; a device or pipe gets its bytes."""
    if not _special(path):
        program.save(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "program"
        program.save(made)
        write_whole(path, lambda file: file.write(made.read_bytes()))


def _special(path: Path) -> bool:
    """Whether a path is something other than a file, which a rename would replace."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False

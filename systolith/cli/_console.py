"""What goes where: results to stdout, progress and warnings to stderr, progress only where stderr is a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Progress", "bytes_text", "print_json", "print_table", "progress", "seconds_text", "warn", "write"]

Progress = Callable[[int], None]
"""Takes the amount that is done so far."""


def write(text: str) -> None:
    """Write text to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def warn(sentence: str) -> None:
    """Print a warning on stderr."""
    print(f"systolith: warning: {sentence}", file=sys.stderr, flush=True)


def print_json(value: Mapping[str, object]) -> None:
    """Print one object on stdout."""
    write(json.dumps(value, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """Show a bar on stderr while the block runs, a spinner where no total is known; nothing without a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = [TextColumn("{task.description}"), TimeElapsedColumn()]
    middle = [SpinnerColumn()] if total is None else [BarColumn(), MofNCompleteColumn()]
    with Bar(*columns[:1], *middle, *columns[1:], console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), title: str = "") -> None:
    """Print rows in columns on stdout; numbers need no more."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_header=bool(header), show_edge=False,
        pad_edge=False,
    )  # fmt: skip
    for i in range(max(len(header), *(len(row) for row in rows), 1)):
        table.add_column(header[i] if i < len(header) else "", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False)
    with console.capture() as captured:
        console.print(table)
    write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")


def seconds_text(seconds: float | None) -> str:
    """Write a time with the unit that suits it."""
    if seconds is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds / 1e-9:.4g} ns"


def bytes_text(count: float) -> str:
    """Write a number of bytes with the unit that suits it."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} bytes"

"""What each slice did in a decode step, for people: a table of all, or one slice queue by queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from systolith.cli._console import bytes_text, print_table, seconds_text, write

__all__ = ["print_all", "print_one"]

_UNITS = ("memory", "matrix", "vector", "collective")
_BYTES = ("weights", "load", "store", "network")


def print_all(slices: Sequence[dict[str, Any]]) -> None:
    """Print how busy each slice's units were, what it moved and what held up its matrix unit; equal rows are one."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for found in slices:
        matrix = found["queues"]["M"]
        cells = (
            *(_share(found, found["busy"][unit]) for unit in _UNITS),
            *(bytes_text(found["bytes"][kind]) for kind in _BYTES),
            _share(found, matrix["semaphore"]), _share(found, matrix["empty"]),
        )  # fmt: skip
        rows.setdefault(cells, []).append(found["slice"])
    print_table(
        [(_ranges(numbers), *cells) for cells, numbers in rows.items()],
        header=("slices", *_UNITS, "weights", "loads", "stores", "sent", "M waits: semaphore", "no instruction"),
    )
    write("busiest against mean: ")
    mean = {unit: sum(s["busy"][unit] for s in slices) / len(slices) for unit in _UNITS}
    write(
        ", ".join(f"{unit} {max(s['busy'][unit] for s in slices) / mean[unit]:.2f}" for unit in _UNITS if mean[unit])
        + "\n"
    )


def print_one(found: dict[str, Any]) -> None:
    """Print what each queue of a slice did and waited for; each row sums to the step."""
    from systolith.timing import STATES

    print_table(
        [
            (queue, *(f"{seconds_text(parts[state])}, {_share(found, parts[state])}" for state in STATES))
            for queue, parts in found["queues"].items()
        ],
        header=(f"slice {found['slice']}: queue", "works", "waits: semaphore", "no instruction", "its unit"),
    )
    write("\n")
    stood = found["sequencer"]
    print_table([
        ("units in use", ", ".join(f"{unit} {_share(found, found['busy'][unit])}" for unit in _UNITS)),
        ("bytes", ", ".join(f"{kind} {bytes_text(found['bytes'][kind])}" for kind in _BYTES)),
        ("sequencer", f"{stood['words']:,} words; stood still {seconds_text(stood['queue full_s'])} for a full queue, "
         f"{seconds_text(stood['semaphore_s'])} for semaphores"),
    ])  # fmt: skip


def _share(found: dict[str, Any], seconds: float) -> str:
    return f"{seconds / found['seconds'] * 100:.1f} %"


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order as a text: 0, 3-7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)

"""Devices: what a program runs on. Found by the entry point group `systolith.devices`, so that others can add theirs.

`null` runs nothing and says so; `execute` is the definition, in plain Python; `sim` is the fast functional simulator.
Timing is no device: it is a view of a run, from the resolved instructions that a device yields.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from systolith.isa.program import Program
from systolith.spec.chip import Chip
from systolith.spec.errors import ConfigError

__all__ = ["GROUP", "Device", "Machine", "device_names", "find_device"]

GROUP = "systolith.devices"
"""Entry point group; an entry is a class without arguments that is a `Device`."""

LastRecord = Callable[[tuple[int, ...]], bool]
OnRing = Callable[[int, tuple[int, ...]], None]


class Machine(Protocol):
    """The slices of a chip while they execute a program."""

    def run(self, limit: int | None = None, on_ring: OnRing | None = None) -> bool:
        """Run to the end (True) or for `limit` words a slice (False); records of slice 0 go to `on_ring`."""

    def run_resolved(self, buffer: NDArray[np.int64]) -> NDArray[np.int64]:
        """Run and fill rows [slices, rows, COLS] with resolved instructions; give the counts [slices]."""

    def write_dram(self, rank: int, address: int, data: bytes, /) -> None:
        """Write DRAM of a slice from the host."""

    def read_dram(self, rank: int, address: int, count: int, /) -> bytes:
        """Read DRAM of a slice."""

    def records(self, rank: int, /) -> list[tuple[int, ...]]:
        """What RING of a slice has sent so far."""

    def run_to_record(
        self, last: LastRecord, buffer: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], bool]:
        """Run until slice 0 has sent a record that is `last` and all others wait; rows as in `run_resolved`."""

    def take_records(self) -> list[tuple[int, ...]]:
        """Give what slice 0 has sent since the last call; forget all records."""


class Device(Protocol):
    """Something that runs programs. `runs` is False where nothing is executed."""

    name: str
    runs: bool

    def open(self, chip: Chip, program: Program) -> Machine:
        """Load a program. Raises CapacityError where the chip is too small, ConfigError where the device cannot run."""


class Null:
    """Runs nothing: no tokens, no cycles. For trying everything around a run."""

    name = "null"
    runs = False

    def open(self, chip: Chip, program: Program) -> Machine:
        """Check that the program fits on the chip."""
        program.check_chip(chip)
        return _Nothing(program.requires.slices)


class _Nothing:
    """A machine that halts at once."""

    def __init__(self, slices: int) -> None:
        self.slices = slices

    def run(self, limit: int | None = None, on_ring: OnRing | None = None) -> bool:
        return True

    def run_resolved(self, buffer: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.zeros(self.slices, np.int64)

    def write_dram(self, rank: int, address: int, data: bytes) -> None:
        pass

    def read_dram(self, rank: int, address: int, count: int) -> bytes:
        return bytes(count)

    def records(self, rank: int) -> list[tuple[int, ...]]:
        return []

    def run_to_record(
        self, last: LastRecord, buffer: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], bool]:
        raise ConfigError("device null sends no records; take one that runs, such as sim")

    def take_records(self) -> list[tuple[int, ...]]:
        return []


class Execute:
    """The definition of the instruction set. Slow: some thousand multiply-adds a second."""

    name = "execute"
    runs = True

    def open(self, chip: Chip, program: Program) -> Machine:
        """Load a program into `isa.execute.Machine`."""
        from systolith.runtime._execute import ResolvedMachine

        return ResolvedMachine(chip, program)


class Sim:
    """The fast functional simulator."""

    name = "sim"
    runs = True

    def open(self, chip: Chip, program: Program) -> Machine:
        """Load a program into `sim.FastMachine`."""
        from systolith.sim import FastMachine

        return FastMachine(chip, program)


def device_names() -> list[str]:
    """Names of the installed devices."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find_device(name: str) -> Device:
    """Find a device by name. Raises ConfigError for one that is not there or cannot be loaded."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                made: Any = point.load()()
            except (ImportError, AttributeError) as error:
                raise ConfigError(f"device {name}: cannot be loaded ({error}); install what it needs") from None
            device: Device = made
            return device
    names = device_names()
    close = difflib.get_close_matches(name, names, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(f"device {name!r} is not known{hint}; installed devices are {', '.join(names) or 'none'}")

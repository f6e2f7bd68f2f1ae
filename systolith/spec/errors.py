"""The errors a user meets. Each message is one sentence a fault: name, value, what is allowed, what to do.

A subclass exists where somebody catches it apart from the others; a fault of our own is an `assert`, not one of these.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["CapacityError", "ConfigError", "ModelError", "ProgramError", "SystolithError"]


class SystolithError(Exception):
    """A fault the user can mend. The command line prints the message on stderr and ends with code 2."""


class ConfigError(SystolithError):
    """A chip file, profile or option that says something impossible. `faults` holds one sentence each, all at once."""

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return type(self), (self.faults,)


class ProgramError(SystolithError):
    """A program that is damaged, foreign, illegal or faulty when it runs. Raised at load, or by the sanitizer."""


class ModelError(SystolithError):
    """A model directory or a request to a model that cannot be served. Raised before anything is compiled."""


class CapacityError(SystolithError):
    """A model, batch or context that is right but too large for this chip. A larger chip or a smaller job helps."""

"""Objects that other packages add through entry points: loading them, and what is said of one that is none."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import TypeVar

from systolith.spec.errors import ModelError

__all__ = ["plugins"]

T = TypeVar("T")


def plugins(group: str, kind: type[T]) -> Iterator[tuple[str, T]]:
    """The objects of a group of entry points, each with the words that name its entry point in a message.

    Raises ModelError for an entry point that cannot be loaded or whose object is not of `kind`.
    """
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    for point in metadata.entry_points(group=group):
        where = f"entry point {point.name}={point.value} of {group}"
        try:
            found = point.load()
        except Exception as error:  # whatever a stranger's module raises
            raise ModelError(
                f"{where} cannot be loaded ({type(error).__name__}: {error}); repair or uninstall its package"
            ) from error
        if not isinstance(found, kind):
            raise ModelError(
                f"{where} must be {article} {kind.__name__}, is of type {type(found).__name__}; repair or uninstall "
                "its package"
            )
        yield where, found

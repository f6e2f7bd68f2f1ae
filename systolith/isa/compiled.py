"""How cycle rules and the timing model are compiled: for the types that annotations name, without reference counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numba

__all__ = ["TYPES", "Ints", "Rows", "compiled", "rule", "stamp_of"]

_F = TypeVar("_F", bound=Callable[..., Any])

Ints: TypeAlias = Any
"""int64 array [n]."""
Rows: TypeAlias = Any
"""int64 array [m, n]."""

_NUMBA: Any = numba.types  # has no types of its own

TYPES: Final[dict[str, Any]] = {
    "int": numba.int64, "bool": numba.boolean, "None": numba.void, "Ints": numba.int64[::1],
    "Rows": numba.int64[:, ::1],
    "tuple[int, int, int]": _NUMBA.UniTuple(numba.int64, 3),
    "tuple[int, int, int, int]": _NUMBA.UniTuple(numba.int64, 4),
}  # fmt: skip
"""Compiled type of each annotation."""


def stamp_of(files: Iterable[Path]) -> str:
    """Hash of sources that a kept result depends on."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compiled(function: _F, types: Mapping[str, Any], stamp: str, inner: bool, inline: bool = False) -> _F:
    """Compile a function and keep it on disk. inner: it is called from compiled code only; inline: as a part of it.

    Numba knows a kept result by the date of its own file, though code of others is linked into it: the stamp takes the
    date's place. Nothing compiled here allocates, so reference counts are left out, which halves the time it takes.
    """
    signature = [types[str(name)] for name in function.__annotations__.values()]
    options: dict[str, Any] = {
        "_nrt": False,
        "no_cpython_wrapper": inner,
        "no_cfunc_wrapper": inner,
        "forceinline": inline,
    }
    result: Any = numba.njit(error_model="numpy", nogil=True, **options)(function)
    if hasattr(result, "enable_caching"):  # plain Python with NUMBA_DISABLE_JIT
        result.enable_caching()
        result._cache._cache_file._source_stamp = stamp
        result.compile(signature[-1](*signature[:-1]))
        result.disable_compile()
    return result  # type: ignore[no-any-return]


STAMP: Final = stamp_of(
    Path(__file__).parent / f"{name}.py"
    for name in ("compiled", "cycles", "facts", "issue", "moves", "resolved", "runs")
)


def rule(function: _F) -> _F:
    """Compile a cycle rule that other rules use; the plain function stays as `py_func`."""
    return compiled(function, TYPES, STAMP, inner=True)

"""How every kernel of the simulator is compiled, and the names of the array types in signatures.

One explicit signature a kernel, so that nothing is compiled twice. No fastmath: LLVM then neither reorders a sum nor
contracts a multiplication and an addition (tests/sim/test_functions.py compares 10^6 triples with NumPy).
`error_model="numpy"`: 1/0 is inf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numba

from systolith.isa import compiled, cycles, facts, issue, moves, resolved, runs
from systolith.spec import limits

__all__ = ["F32", "F64", "I16", "I16_2D", "I32", "I32_2D", "I64", "I64_2D", "U8", "Array", "Scalar", "kernel"]

Array: TypeAlias = Any
"""A NumPy array inside a kernel; its type stands in the signature."""

Scalar: TypeAlias = Any
"""An integer or a float inside a kernel."""

U8 = "uint8[::1]"
I16 = "int16[::1]"
I16_2D = "int16[:,::1]"
I32 = "int32[::1]"
I32_2D = "int32[:,::1]"
I64 = "int64[::1]"
I64_2D = "int64[:,::1]"
F32 = "float32[::1]"
F64 = "float64[::1]"

_F = TypeVar("_F", bound=Callable[..., Any])

_SOURCES: Final = (
    "_choose", "_footprints", "_functions", "_interpreter", "_jit", "_operands", "_pick", "_rows", "_shadow",
    "_skeleton", "_state", "_traps", "collective", "dma", "host", "matrix", "sequencer", "vector",
)  # fmt: skip


def _stamp() -> str:
    """Hash of all sources that a kernel may hold parts of."""
    files = [Path(__file__).parent / f"{name}.py" for name in _SOURCES]
    files += [Path(module.__file__ or "") for module in (compiled, cycles, facts, issue, moves, resolved, runs, limits)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


_STAMP: Final = _stamp()


def kernel(signature: str, *, inline: bool = False) -> Callable[[_F], _F]:
    """Compile a function for one signature, e.g. `void(int64, uint8[::1])`; the result is kept on disk.

    inline : always as a part of its callers, for what runs with every word: a call hands arrays over word by word.

    Numba knows a kept result by the date of its own file only, though code of other files is linked into it; the stamp
    takes the date's place, so that a change anywhere compiles everything again.
    """

    def compile_it(function: _F) -> _F:
        # No kernel makes an array: without reference counts a view of one costs nothing.
        options: dict[str, Any] = {"_nrt": False, "forceinline": inline}
        compiled: Any = numba.njit(error_model="numpy", nogil=True, **options)(function)
        if hasattr(compiled, "enable_caching"):  # plain Python with NUMBA_DISABLE_JIT
            compiled.enable_caching()
            compiled._cache._cache_file._source_stamp = _STAMP
            compiled.compile(signature)
            compiled.disable_compile()
        return compiled  # type: ignore[no-any-return]

    return compile_it

"""How every kernel of the simulator is compiled, and the names of the array types in signatures.

One explicit signature a kernel, so that nothing is compiled twice. No fastmath: LLVM then neither reorders a sum nor contracts
a multiplication and an addition (tests/sim/test_jit.py compares 10^6 triples with NumPy). `error_model="numpy"`: 1/0 is inf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numba

__all__ = ["F32", "F64", "I16", "I32", "I64", "I64_2D", "U8", "Array", "Scalar", "kernel"]

Array: TypeAlias = Any
"""A NumPy array inside a kernel; its type stands in the signature."""

Scalar: TypeAlias = Any
"""An integer or a float inside a kernel."""

U8 = "uint8[::1]"
I16 = "int16[::1]"
I32 = "int32[::1]"
I64 = "int64[::1]"
I64_2D = "int64[:,::1]"
F32 = "float32[::1]"
F64 = "float64[::1]"

_F = TypeVar("_F", bound=Callable[..., Any])


def kernel(signature: str) -> Callable[[_F], _F]:
    """Compile a function for one signature, e.g. `void(int64, uint8[::1])`; the result is kept on disk."""

    def compile_it(function: _F) -> _F:
        compiled: _F = numba.njit(signature, cache=True, error_model="numpy", nogil=True)(function)
        return compiled

    return compile_it

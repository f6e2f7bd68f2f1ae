"""One safetensors file: its header, checked whole before anything is read, and its tensors as FP32 rows.

Read here and not by the `safetensors` package because that hands out no bfloat16 to NumPy, no single rows without the
whole tensor, and no reason in a sentence when a file is damaged.

Source: the format section of the safetensors repository's README: 8 bytes of header length, little-endian; a JSON
object of name -> {dtype, shape, data_offsets}; the data, without gaps.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from systolith.models._text import parse_json, show
from systolith.spec.errors import ModelError

__all__ = ["READABLE", "SafetensorsFile", "StoredTensor"]

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

READABLE = ("F32", "F16", "BF16")
"""Types that become FP32 without rounding."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: type and shape as in the header; first byte in the file and size, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class SafetensorsFile:
    """An opened file: its path, its size when it was opened, and its tensors by name in the order of the header."""

    path: Path
    size_bytes: int
    tensors: Mapping[str, StoredTensor]

    @staticmethod
    def open(path: Path) -> SafetensorsFile:
        """Read and check the header. Raises ModelError in one sentence; reads no tensor."""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length_field = file.read(8)
                if len(length_field) < 8:
                    raise _damaged(path, f"it has {size} bytes, a header takes at least 8")
                (length,) = struct.unpack("<Q", length_field)
                if length > min(size - 8, _MAX_HEADER_BYTES):
                    raise _damaged(path, f"its header says {length} bytes, the file has {size - 8} after that number")
                header = file.read(length)
        except FileNotFoundError:
            raise ModelError(f"{path}: not found; fetch the whole checkpoint again") from None
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from None
        try:
            table = parse_json(header)
        except ValueError as error:
            raise _damaged(path, f"its header is not valid JSON: {error}") from None
        if not isinstance(table, dict):
            raise _damaged(path, "its header is no JSON object")
        table.pop("__metadata__", None)
        tensors = {name: _entry(path, name, entry, 8 + length, size) for name, entry in table.items()}
        _check_layout(path, tensors, 8 + length, size)
        return SafetensorsFile(path, size, tensors)

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Bytes of a tensor, or of the rows start..stop-1 of its first dimension, as they lie in the file.

        Raises ModelError if the file has changed since it was opened.
        """
        tensor = self.tensors[name]
        offset, size = tensor.offset, tensor.size_bytes
        if stop is not None:
            row = size // tensor.shape[0]
            offset, size = offset + start * row, (stop - start) * row
        try:
            data = np.fromfile(self.path, np.uint8, size, offset=offset)
        except OSError as error:
            raise ModelError(f"{self.path}: cannot be read ({error.strerror or error}); run it again") from None
        if len(data) != size:
            raise ModelError(
                f"{self.path}: tensor {show(name)} ends after {len(data)} of {size} bytes, the file was whole when it "
                "was opened; leave the file alone while it is read"
            )
        return data

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """A tensor, or rows start..stop-1 of it, as FP32, exact. The dtype is one of READABLE."""
        tensor = self.tensors[name]
        shape = tensor.shape if stop is None else (stop - start, *tensor.shape[1:])
        return to_float32(self.raw(name, start, stop), tensor.dtype).reshape(shape)


def to_float32(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Little-endian bytes of F32, F16 or BF16 as FP32, without rounding."""
    if dtype == "F32":
        return data.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            return data.view("<f2").astype(np.float32)
    assert dtype == "BF16", dtype
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path}: is not a whole safetensors file ({reason}); fetch the file again")


def _entry(path: Path, name: str, entry: object, base: int, size: int) -> StoredTensor:
    """Check one entry of the header."""
    where = f"tensor {show(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{where} is {show(entry)}, must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(path, f"{where} has dtype {show(dtype)}, must be one of {', '.join(_BITS)}")
    if not _sizes(shape) or len(shape) > 16:
        raise _damaged(path, f"{where} has shape {show(shape)}, must be a list of sizes")
    if not _sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - base:
        raise _damaged(path, f"{where} has data_offsets {show(offsets)}, must be two within 0..{size - base}")
    begin, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (end - begin):
        raise _damaged(path, f"{where} of {dtype} {show(shape)} needs {bits / 8:.0f} bytes and has {end - begin}")
    return StoredTensor(dtype, tuple(shape), base + begin, end - begin)


def _sizes(value: object) -> bool:
    """Whether a value is a list of sizes that a file can have."""
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in value
    )


def _check_layout(path: Path, tensors: Mapping[str, StoredTensor], base: int, size: int) -> None:
    """The tensors must cover the data one after the other, without gap or overlap."""
    at = base
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size_bytes)):
        if tensor.offset != at:
            raise _damaged(path, f"tensor {show(name)} starts at byte {tensor.offset}, the one before it ends at {at}")
        at += tensor.size_bytes
    if at != size:
        raise _damaged(path, f"its tensors end at byte {at}, the file at {size}")

"""Where a tensor of the graph lies in the files: by its own name, or as a part of a larger tensor, or in blocks.

A graph names each matrix of each expert by itself. Checkpoints store some of them so, others as one stack for all
experts, gate and up together, transposed, or quantised. A family says in its `layouts` how else its tensors may lie;
`Place` is what was found for one tensor, and reads it.

Source: MXFP4 as gpt-oss stores it (two codes a byte, the lower index in the low nibble; scales E8M0) and the layouts of
gpt_oss, mixtral and qwen2_moe in conversion_mapping.py and integrations/mxfp4.py of transformers 5.23; FP8 blocks of
128 x 128 as in the README of DeepSeek-V3, "weight_scale_inv".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from systolith.models.graph import WeightRef
from systolith.models.safetensors_file import READABLE, SafetensorsFile, StoredTensor
from systolith.numerics.formats import E4M3
from systolith.numerics.vector import unpack_e2m1

__all__ = ["Place", "Stored", "find_places"]

_T = TypeVar("_T", bound=np.generic)
_FP8_BLOCK = 128
_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Stored:
    """One way a tensor may lie in a checkpoint.

    name : with `{layer}` and `{expert}`; without `{expert}`, of a tensor that experts have, it is a stack of all.
    part, parts : the tensor is part `part` of `parts` equal ones along N; interleaved: rows part, part + parts, ...
    transposed : stored [K, N].
    pitch, start : where pitch is not 0, the tensors of all heads lie below one another in one matrix, pitch rows for
    each head, of which these are rows start, start + 1, ...
    coding : "plain"; "mxfp4" (name_blocks and name_scales); "fp8" (name_scale_inv beside it); "plus_one" (stored as the
    difference to 1).
    """

    name: str
    part: int = 0
    parts: int = 1
    interleaved: bool = False
    transposed: bool = False
    coding: str = "plain"
    pitch: int = 0
    start: int = 0

    def stacked(self, ref: WeightRef) -> bool:
        """Whether the first dimension counts the experts."""
        return ref.experts > 0 and "{expert}" not in self.name and not self.pitch

    def below(self, ref: WeightRef, expert: int | None) -> tuple[int, int | None]:
        """Range of rows of the stored matrix that one tensor takes; (0, None) is all."""
        if not self.pitch or expert is None:
            return 0, None
        first = expert * self.pitch + self.start
        return first, first + ref.shape[1 if self.transposed else 0]

    def names(self, ref: WeightRef, layer: int | None, expert: int | None) -> tuple[str, ...]:
        """The stored tensors: the data first, then its scales."""
        name = WeightRef(self.name, ref.shape, ref.tensor).at(layer, None if self.stacked(ref) else expert)
        suffixes = {"mxfp4": ("_blocks", "_scales"), "fp8": ("", "_scale_inv")}.get(self.coding, ("",))
        return tuple(name + suffix for suffix in suffixes)

    def shapes(self, ref: WeightRef) -> tuple[tuple[int, ...], ...]:
        """The shapes they must have."""
        n, rest = ref.shape[0] * self.parts, ref.shape[1:]
        stack = (ref.experts,) if self.stacked(ref) else ()
        if self.coding == "mxfp4":
            blocks = rest[0] // _BLOCK
            return (*stack, n, blocks, _BLOCK // 2), (*stack, n, blocks)
        whole = (*rest, n) if self.transposed else (n, *rest)
        if self.pitch:
            whole = (ref.experts * self.pitch, *whole[1:])
        scales = tuple(-(-size // _FP8_BLOCK) for size in whole)
        return ((*stack, *whole), (*stack, *scales)) if self.coding == "fp8" else ((*stack, *whole),)

    def types(self) -> tuple[tuple[str, ...], ...]:
        """The types they may have."""
        return {"mxfp4": (("U8",), ("U8",)), "fp8": (("F8_E4M3",), READABLE)}.get(self.coding, (READABLE,))


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor found in the files: of which reference, in which way, of which expert, under which names."""

    ref: WeightRef
    how: Stored
    expert: int | None
    names: tuple[str, ...]

    def read(self, files: Mapping[str, SafetensorsFile]) -> NDArray[np.float32]:
        """The tensor as FP32, of `ref.shape`. Exact, but for FP8, RNE(code * scale), and for RNE(1 + difference)."""
        if self.how.coding == "mxfp4":
            codes, scales = self.blocks(files)
            return decode_mxfp4(codes, scales)
        data = self._piece(files)
        if self.how.coding == "fp8":
            scale = files[self.names[1]].rows(self.names[1])
            rows = (np.arange(data.shape[0]) + self.how.below(self.ref, self.expert)[0]) // _FP8_BLOCK
            with np.errstate(over="ignore", invalid="ignore"):
                data = data * scale[rows][:, np.arange(data.shape[1]) // _FP8_BLOCK]
        if self.how.coding == "plus_one":
            data = np.float32(1) + data
        return np.ascontiguousarray(self._part(data.T if self.how.transposed else data))

    def blocks(self, files: Mapping[str, SafetensorsFile]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Of an MXFP4 tensor the codes, one a byte [N, K], and the E8M0 scales [N, K / 32], as they are stored."""
        packed, scales = (self._part(self._bytes(files, index)) for index in (0, 1))
        return unpack_e2m1(packed.reshape(len(packed), -1)), np.ascontiguousarray(scales)

    def _part(self, data: NDArray[_T]) -> NDArray[_T]:
        """Rows of this tensor among those of all parts."""
        how, n = self.how, self.ref.shape[0]
        return data[how.part :: how.parts] if how.interleaved else data[how.part * n : (how.part + 1) * n]

    def _slice(self) -> tuple[int, int | None]:
        """Range along the first dimension of what is stored."""
        if self.how.stacked(self.ref):
            assert self.expert is not None
            return self.expert, self.expert + 1
        return self.how.below(self.ref, self.expert)

    def _bytes(self, files: Mapping[str, SafetensorsFile], index: int) -> NDArray[np.uint8]:
        shape = self.how.shapes(self.ref)[index]
        inner = shape[1:] if self.how.stacked(self.ref) else (-1, *shape[1:])
        return files[self.names[index]].raw(self.names[index], *self._slice()).reshape(inner)

    def _piece(self, files: Mapping[str, SafetensorsFile]) -> NDArray[np.float32]:
        """Data of one expert or head as FP32."""
        name = self.names[0]
        if files[name].tensors[name].dtype == "F8_E4M3":
            return _FP8[self._bytes(files, 0)]
        data = files[name].rows(name, *self._slice())
        return data[0] if self.how.stacked(self.ref) else data


_FP4 = np.array([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def decode_mxfp4(codes: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Values FP32 [N, K] of E2M1 codes [N, K] under E8M0 scales [N, K / 32]; exact, an overflow is infinite.

    The code of -0 gives -0, as in transformers; the scale 0xFF gives NaN.
    """
    power = np.repeat(scales.astype(np.int32) - 127, _BLOCK, axis=1)
    with np.errstate(over="ignore"):
        values = np.ldexp(_FP4[codes], power)
    return np.where(power == 128, np.float32(np.nan), values)


_UNITS = [np.nan if units is None else units for units in E4M3.values]
_FP8 = np.ldexp(np.array(_UNITS, np.float32), E4M3.unit_exp)
"""Value of each E4M3 code."""


def find_places(
    ref: WeightRef, layer: int | None, ways: tuple[Stored, ...], files: Mapping[str, SafetensorsFile]
) -> Iterator[tuple[str, Place | None, list[str]]]:
    """For each tensor of a reference: (its name, its place, what is wrong with what lies there).

    The first of `ways` whose tensors are all there is taken; None where there is none.
    """
    for expert in range(ref.experts) if ref.experts else (None,):
        found = (Place(ref, how, expert, how.names(ref, layer, expert)) for how in ways)
        place = next((p for p in found if all(name in files for name in p.names)), None)
        yield ref.at(layer, expert), place, [] if place is None else list(_misfits(place, files))


def _misfits(place: Place, files: Mapping[str, SafetensorsFile]) -> Iterator[str]:
    """Shapes and types that are not those of the way."""
    for name, shape, types in zip(place.names, place.how.shapes(place.ref), place.how.types(), strict=True):
        stored: StoredTensor = files[name].tensors[name]
        where = f"tensor {name} of {files[name].path.name}"
        if stored.shape != shape:
            yield f"{where} has shape {list(stored.shape)}, must have {list(shape)}"
        if stored.dtype not in types:
            yield f"{where} has type {stored.dtype}, must be one of {', '.join(types)}"

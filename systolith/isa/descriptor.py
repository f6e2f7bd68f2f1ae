"""Tensor descriptors: where the elements of a tensor lie, in which format, and which cells change that late.

docs/decisions/0001-isa.md has the table; `FIELDS` here is its machine-readable form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Final

from systolith.numerics import formats
from systolith.spec import BLOCK, CELLS, DESCRIPTORS, DRAM_ADDRESS_BITS, ProgramError

__all__ = ["DESCRIPTOR_BITS", "DESCRIPTOR_BYTES", "FIELDS", "ZERO", "Descriptor", "Format", "Space", "pack", "unpack"]


class Space(IntEnum):
    """Address spaces of a slice; each starts at byte 0."""

    DRAM = 0
    """Memory of the slice."""
    SPAD = 1
    """Scratchpad."""
    SLOT = 2
    """Weight slots."""
    ACC = 3
    """Accumulator, words of 32 bits."""
    CELL = 4
    """64 cells of 32 bits; cell n is at byte 4n."""


class Format(IntEnum):
    """Storage formats by the number a descriptor holds."""

    E2M1 = 0
    """MXFP4 element, two a byte, the even one in the low nibble."""
    E4M3 = 1
    """MXFP8 element."""
    INT8 = 2
    """MXINT8 element; without scales its block scale is 2^0."""
    FP32 = 3
    """Little-endian, 4-byte aligned."""
    INT32 = 4
    """Little-endian, 4-byte aligned."""
    E8M0 = 5
    """A scale as a tensor of its own: reads as 2^(code-127), 255 as NaN."""

    @property
    def bits(self) -> int:
        """Storage bits of one element."""
        return _BITS[self]

    @property
    def is_element(self) -> bool:
        """Whether it is an element of MX blocks (E2M1, E4M3, INT8)."""
        return self <= Format.INT8

    @property
    def numeric(self) -> formats.Format:
        """The record of `systolith.numerics.formats`; E8M0 has none (KeyError)."""
        return formats.FORMATS[self.name]


_BITS: Final = {
    Format.E2M1: 4,
    Format.E4M3: 8,
    Format.INT8: 8,
    Format.FP32: 32,
    Format.INT32: 32,
    Format.E8M0: 8,
}

# name, bits, signed; the first field is in the lowest bits. A name with an index is one entry of a tuple.
FIELDS: Final[tuple[tuple[str, int, bool], ...]] = (
    ("space", 3, False),
    ("format", 4, False),
    ("scale", 1, False),
    ("base", DRAM_ADDRESS_BITS, False),
    ("sbase", DRAM_ADDRESS_BITS, False),
    ("ext[0]", 20, False),
    ("ext[1]", 20, False),
    ("ext[2]", 20, False),
    ("stride[0]", 32, True),
    ("stride[1]", 32, True),
    ("stride[2]", 32, True),
    ("step", 32, True),
    ("xb", 6, False),
    ("xe", 6, False),
    ("via", 6, False),
    ("unit", 4, False),
    ("wrap", 32, False),
)
"""Layout of a packed descriptor."""

DESCRIPTOR_BITS: Final = sum(bits for _, bits, _ in FIELDS)
DESCRIPTOR_BYTES: Final = 48
"""Bytes of a descriptor constant in program memory: three words; the bits above DESCRIPTOR_BITS are zero."""

assert DESCRIPTOR_BITS <= 8 * DESCRIPTOR_BYTES
assert CELLS == DESCRIPTORS == 1 << 6


@dataclass(frozen=True)
class Descriptor:
    """A tensor of up to three dimensions, 0 the outermost, in one space of a slice.

    Raises ProgramError, one sentence, where a field is out of range or the fields contradict each other.
    """

    space: Space = Space.DRAM
    format: Format = Format.E2M1
    scale: int = 0
    """1: an E8M0 scale for each block of 32 elements of dimension 2."""
    base: int = 0
    """Byte address of element 0."""
    sbase: int = 0
    """Byte address of its scale; the scale of the element at offset o is at sbase + o // 32."""
    ext: tuple[int, int, int] = (0, 0, 0)
    """Extents in elements."""
    stride: tuple[int, int, int] = (0, 0, 0)
    """Strides in elements."""
    step: int = 0
    """Stride of the address-only dimension 3, in elements."""
    xb: int = 0
    """Cell whose value times `step` is added to the offset (with `via`: added to the row); 0: none."""
    xe: int = 0
    """Cell that replaces ext[0]; 0: none."""
    via: int = 0
    """Descriptor of the index list of dimension 0; 0: none."""
    unit: int = 0
    """log2 of the rows that one index stands for."""
    wrap: int = 0
    """Ring length in elements for ADV; 0: none."""

    def __post_init__(self) -> None:
        for name, bits, signed in FIELDS:
            value = _get(self, name)
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
            if not low <= value <= high:
                raise ProgramError(f"descriptor: {name}={value} does not fit in {bits} bits ({low}..{high}).")
        try:
            object.__setattr__(self, "space", Space(self.space))
            object.__setattr__(self, "format", Format(self.format))
        except ValueError:
            raise ProgramError(
                f"descriptor: space={int(self.space)} must be in 0..{len(Space) - 1} and format={int(self.format)} in "
                f"0..{len(Format) - 1}."
            ) from None
        if fault := self._fault():
            raise ProgramError(f"descriptor: {fault}")

    def _fault(self) -> str | None:
        """Say which fields contradict each other."""
        if self.scale and not self.format.is_element:
            return f"scale=1 needs format E2M1, E4M3 or INT8, not {self.format.name}; write scale=0."
        if self.format.bits == 32 and self.base % 4:
            return f"base={self.base} must be a multiple of 4 for {self.format.name}."
        if 0 in self.ext:
            return None  # empty: nothing is addressed
        if (self.scale or self.format is Format.E2M1) and self.stride[2] != 1:
            what = "scale=1" if self.scale else "E2M1"
            return f"stride[2]={self.stride[2]} must be 1 with {what}."
        grain = BLOCK if self.scale else 2 if self.format is Format.E2M1 else 1
        for name in ("stride[0]", "stride[1]", "step", "wrap"):
            if _get(self, name) % grain:
                what = "scale=1" if self.scale else "E2M1"
                return f"{name}={_get(self, name)} must be a multiple of {grain} with {what}."
        if self.format is Format.E2M1 and self.ext[2] % 2:
            return f"ext[2]={self.ext[2]} must be even with E2M1, two codes a byte."
        return None

    @cached_property
    def bits(self) -> int:
        """Storage bits of one element."""
        return self.format.bits

    def with_ext(self, dim: int, n: int) -> Descriptor:
        """Give the descriptor with ext[dim] = n; raises ProgramError as the constructor does."""
        e0, e1, e2 = (n if i == dim else extent for i, extent in enumerate(self.ext))
        return replace(self, ext=(e0, e1, e2))

    def advance(self, dim: int, n: int, ring: tuple[int, int] | None = None) -> Descriptor:
        """Give the descriptor moved by n elements' strides of `dim` (3: step), scales with it.

        ring : (base, sbase) of the constant, where the ring of `wrap` elements starts; used where wrap is not 0.
        Raises ProgramError if the move is no whole byte, no whole block, or leaves the 40-bit address space.
        """
        move = n * (self.step if dim == 3 else self.stride[dim])
        base, sbase = self.base, self.sbase
        if self.wrap:
            base0, sbase0 = ring or (base, sbase)
            position = (base - base0) * 8 // self.bits
            move, base, sbase = (position + move) % self.wrap, base0, sbase0
        if move * self.bits % 8:
            raise ProgramError(f"ADV by {move} elements of {self.format.name} is no whole number of bytes.")
        if self.scale and move % BLOCK:
            raise ProgramError(f"ADV by {move} elements must be a multiple of {BLOCK} with scale=1.")
        return replace(self, base=base + move * self.bits // 8, sbase=sbase + move // BLOCK if self.scale else sbase)


def pack(d: Descriptor) -> int:
    """Pack a descriptor to DESCRIPTOR_BITS bits."""
    word, low = 0, 0
    for name, bits, _ in FIELDS:
        word |= (_get(d, name) & (1 << bits) - 1) << low
        low += bits
    return word


def unpack(word: int) -> Descriptor:
    """Unpack a descriptor; raises ProgramError where bits above the last field are set or fields are illegal."""
    if word >> DESCRIPTOR_BITS:
        raise ProgramError(f"descriptor: bits {DESCRIPTOR_BITS} and up must be zero.")
    values: dict[str, int] = {}
    low = 0
    for name, bits, signed in FIELDS:
        value = word >> low & (1 << bits) - 1
        values[name] = value - (1 << bits) if signed and value >> bits - 1 else value
        low += bits
    ext = (values.pop("ext[0]"), values.pop("ext[1]"), values.pop("ext[2]"))
    stride = (values.pop("stride[0]"), values.pop("stride[1]"), values.pop("stride[2]"))
    return Descriptor(**values, ext=ext, stride=stride)  # type: ignore[arg-type]  # __post_init__ makes the enums


def _get(d: Descriptor, name: str) -> int:
    """Value of a field of FIELDS, "ext[1]" included."""
    if name[-1] == "]":
        part: tuple[int, int, int] = getattr(d, name[:-3])
        return part[int(name[-2])]
    return int(getattr(d, name))


ZERO: Final = Descriptor()
"""What every descriptor register holds at start: an empty tensor."""

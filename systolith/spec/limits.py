"""Sizes that belong to the instruction set, the same on every chip: a program may lean on them without asking.

They live below `isa` because the checks of a chip and the numerics need them too.
"""

from __future__ import annotations

from typing import Final

BLOCK: Final = 32
"""Elements that share a scale (OCP Microscaling Formats v1.0, section 5.1); a block sum is exact."""

CHUNK_TOKENS: Final = 256
"""Tokens of one chunk of attention, at absolute positions. A rule of the numerics, not of buffers."""

WORD_BYTES: Final = 16
"""Bytes of one instruction word."""

REGISTERS: Final = 32
"""Registers of 32 bits in the sequencer of a slice; the last one is the rank of the slice."""

RANK_REGISTER: Final = REGISTERS - 1
"""The register that holds the rank of the slice when a program starts."""

SLICES_REGISTER: Final = REGISTERS - 2
"""The register that holds the number of slices when a program starts."""

CELLS: Final = 64
"""Cells of 32 bits a slice; cell 0 means "none" in a descriptor."""

DESCRIPTORS: Final = 64
"""Descriptors a slice; descriptor 0 means "none" as an index list."""

SEMAPHORES: Final = 24
"""Semaphores a slice: one bit each in the wait mask and the post mask of a word."""

SEMAPHORE_MAX: Final = 255
"""Most tokens a semaphore holds; one more is a trap."""

ARRIVAL_COUNTERS: Final = 16
"""Counters a slice of arrivals from other slices; each posts a semaphore when a whole group has arrived."""

LOOP_DEPTH: Final = 8
"""Hardware loops that may nest."""

DRAM_ADDRESS_BITS: Final = 40
"""Bits of a base address in a descriptor: no memory of a slice may be larger than 1 TiB."""

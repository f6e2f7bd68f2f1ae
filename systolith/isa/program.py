"""`Program`: words, constants, semaphores, requirements and memory images; its file is `program_file`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from systolith.spec import LOOP_DEPTH, PAIRS, SEMAPHORE_MAX, SEMAPHORES, CapacityError, Chip, ProgramError

from .descriptor import DESCRIPTOR_BYTES, Descriptor, pack
from .registry import decode
from .sequencer import Br, Desc, Loop

if TYPE_CHECKING:
    from .instruction import Instruction

__all__ = ["ISA_VERSION", "Image", "Program", "Requires", "check_code"]

ISA_VERSION: Final = 1
"""Version of the instruction set; a program names it, and no other runs."""

EVERY_SLICE: Final = -1


@dataclass(frozen=True)
class Image:
    """Bytes in DRAM before the program starts."""

    slice: int
    """Rank, or -1 for every slice."""
    address: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Requires:
    """What a program needs of a chip; sizes are per slice, in bytes."""

    slices: int = 1
    """Slices it runs on: exactly these; R30 holds the number."""
    dram_bytes: int = 0
    spad_bytes: int = 0
    slot_bytes: int = 0
    acc_bytes: int = 0
    pairs: tuple[str, ...] = ()
    """Operand pairs of the matrix unit that it uses, names of `spec.PAIRS`."""
    isa_version: int = ISA_VERSION

    def faults(self, chip: Chip) -> list[str]:
        """Say, one sentence each, what a chip offers less of."""
        sizes = {
            "slices": (self.slices, chip.slices),
            "dram_bytes": (self.dram_bytes, chip.dram_bytes),
            "scratchpad_bytes": (self.spad_bytes, chip.scratchpad_bytes),
            "slots_bytes": (self.slot_bytes, chip.slots_bytes),
            "accumulator_bytes": (self.acc_bytes, chip.accumulator_bytes),
        }
        return [
            f"it needs {name}={need} and {chip.name} has {have}" for name, (need, have) in sizes.items() if need > have
        ]


def check_code(words: tuple[int, ...], constants: int) -> tuple[Instruction, ...]:
    """Decode all words and check what one word cannot know; give the instructions.

    Loop bodies nest properly, at most 8 deep, and end inside the program; a branch stays in the innermost loop body it
    stands in; DESC names a constant that is there. Raises ProgramError naming the word.
    """
    code: list[Instruction] = []
    for pc, word in enumerate(words):
        try:
            code.append(decode(word))
        except ProgramError as fault:
            raise ProgramError(f"word {pc}: {fault}") from None
    body: list[tuple[int, int]] = [(0, len(code))]  # innermost last: first word and the word after
    home: list[tuple[int, int]] = []
    for pc, instruction in enumerate(code):
        while pc == body[-1][1]:
            body.pop()
        home.append(body[-1])
        if isinstance(instruction, Loop):
            end = pc + 1 + instruction.len
            if end > body[-1][1]:
                raise ProgramError(
                    f"word {pc}: LOOP ends at word {end}, past the end of what is around it, word {body[-1][1]}."
                )
            body.append((pc + 1, end))
            if len(body) - 1 > LOOP_DEPTH:
                raise ProgramError(f"word {pc}: loops nest {len(body) - 1} deep; at most {LOOP_DEPTH} may.")
        elif isinstance(instruction, Desc) and instruction.k >= constants:
            raise ProgramError(f"word {pc}: DESC names constant {instruction.k}, but the program has {constants}.")
    for pc, instruction in enumerate(code):
        if isinstance(instruction, Br) and (instruction.target >= len(code) or home[instruction.target] != home[pc]):
            raise ProgramError(
                f"word {pc}: BR to word {instruction.target} leaves its innermost loop body, words "
                f"{home[pc][0]}..{home[pc][1] - 1}."
            )
    return tuple(code)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program for the slices of one chip. Raises ProgramError where it is illegal."""

    name: str = ""
    words: tuple[int, ...]
    constants: tuple[Descriptor, ...] = ()
    sem_init: tuple[int, ...] = (0,) * SEMAPHORES
    requires: Requires = Requires()
    lines: tuple[str, ...] = ()
    """Source of each word, for messages; empty, or one a word."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Numerics profile, model, memory map of the host interface: what JSON holds."""
    images: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        if not self.words:
            raise ProgramError(f"program {self.name!r} has no words.")
        if len(self.sem_init) != SEMAPHORES or not all(0 <= n <= SEMAPHORE_MAX for n in self.sem_init):
            raise ProgramError(f"program {self.name!r}: sem_init must be {SEMAPHORES} counts in 0..{SEMAPHORE_MAX}.")
        if self.lines and len(self.lines) != len(self.words):
            raise ProgramError(f"program {self.name!r} has {len(self.lines)} source lines for {len(self.words)} words.")
        unknown = [pair for pair in self.requires.pairs if pair not in PAIRS]
        if unknown:
            raise ProgramError(f"program {self.name!r}: requires.pairs={unknown} must be from {', '.join(PAIRS)}.")
        for image in self.images:
            if not -1 <= image.slice < self.requires.slices or not (
                0 <= image.address <= self.requires.dram_bytes - len(image.data)
            ):
                raise ProgramError(
                    f"program {self.name!r}: an image of {len(image.data)} bytes at {image.address} of slice "
                    f"{image.slice} does not fit in {self.requires.slices} slices of {self.requires.dram_bytes} bytes."
                )
        try:
            code = check_code(self.words, len(self.constants))
        except ProgramError as fault:
            raise ProgramError(f"program {self.name!r}: {fault}") from None
        object.__setattr__(self, "_code", code)

    @property
    def code(self) -> tuple[Instruction, ...]:
        """The words, decoded."""
        code: tuple[Instruction, ...] = self.__dict__["_code"]
        return code

    @property
    def program_bytes(self) -> int:
        """Program memory that it takes: words and constants."""
        return 16 * len(self.words) + DESCRIPTOR_BYTES * len(self.constants)

    def line(self, pc: int) -> str:
        """Source of a word, "" where none is known."""
        return self.lines[pc] if pc < len(self.lines) else ""

    def check_chip(self, chip: Chip) -> None:
        """Raise CapacityError if a chip offers less than the program needs, ProgramError for another version."""
        if self.requires.isa_version != ISA_VERSION:
            raise ProgramError(
                f"program {self.name!r} is for instruction set {self.requires.isa_version}, this is {ISA_VERSION}; "
                "compile it again."
            )
        faults = self.requires.faults(chip)
        if self.program_bytes > chip.program_bytes:
            faults.append(f"it has program_bytes={self.program_bytes} and {chip.name} has {chip.program_bytes}")
        if faults:
            raise CapacityError(
                f"program {self.name!r} does not fit on chip {chip.name}: {', '.join(faults)}; take a larger chip or "
                "compile it for this one."
            )

    def code_bytes(self) -> bytes:
        """Words and packed constants, little-endian."""
        words = b"".join(word.to_bytes(16, "little") for word in self.words)
        return words + b"".join(pack(d).to_bytes(DESCRIPTOR_BYTES, "little") for d in self.constants)

    @cached_property
    def sha256(self) -> str:
        """Digest of words, constants, sem_init, requires and meta: not of name, lines and images."""
        facts = {
            "words": len(self.words),
            "constants": len(self.constants),
            "sem_init": self.sem_init,
            "requires": asdict(self.requires),
            "meta": self.meta,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(self.code_bytes())
        return digest.hexdigest()

    @cached_property
    def images_sha256(self) -> str:
        """Digest of the images."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.slice} {image.address} {len(image.data)}\n".encode())
            digest.update(image.data)
        return digest.hexdigest()

    def save(self, path: Path | str) -> None:
        """Write the program file whole or not at all; raises ProgramError if it cannot be written."""
        from .program_file import save

        save(self, Path(path))

    @staticmethod
    def load(path: Path | str) -> Program:
        """Read a program file; raises ProgramError for one that is missing, damaged, foreign or of another version."""
        from .program_file import load

        return load(Path(path))

"""The base of every instruction record: bit layout, encoding, and what the other layers ask of it.

A word has 128 bits: [127:122] op, [121:98] wait, [97:74] post, [73:68] d, [67:62] a, [61:56] b, [55:50] c, [49:0]
fields. A record lists the bits that it uses; all others are reserved and zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Final, Self

from systolith.spec import QUEUES, SEMAPHORES, Chip, ProgramError

if TYPE_CHECKING:
    from .state import Slice

__all__ = ["OPERAND_BITS", "POST", "WAIT", "Bits", "Instruction", "Kind", "Queue", "operand"]

WORD_BITS: Final = 128
OP_LOW: Final = 122
OP_BITS: Final = 6
OPERAND_LOW: Final = {"d": 68, "a": 62, "b": 56, "c": 50}
OPERAND_BITS: Final = 6
FIELD_BITS: Final = 50


class Queue(IntEnum):
    """In-order queues, numbered as `spec.QUEUES`; SEQ is the sequencer itself."""

    W = 0
    """Weight DMA: DRAM to slots."""
    L = 1
    """Load DMA: DRAM or scratchpad to scratchpad or cells."""
    M = 2
    """Matrix unit."""
    V = 3
    """Vector unit."""
    S = 4
    """Store DMA and the host ring."""
    C = 5
    """Collective unit."""
    SEQ = 6
    """The sequencer."""


assert tuple(q.name for q in Queue)[:6] == QUEUES


class Kind(IntEnum):
    """What a field of a word holds; the assembler writes each in its own way."""

    UNSIGNED = 0
    """A number."""
    SIGNED = 1
    """A number in two's complement."""
    DESC = 2
    """A descriptor register; written D5, none is a dash."""
    REG = 3
    """A register; written R5."""
    CELL = 4
    """A cell; written X5, none is a dash."""
    MASK = 5
    """A set of semaphores."""
    LABEL = 6
    """A word of the program."""
    LENGTH = 7
    """A number of words that follow; written as the label after the last of them."""
    CONST = 8
    """A descriptor constant of the program."""
    SEMAPHORE = 9
    """A semaphore."""


@dataclass(frozen=True)
class Bits:
    """One field of an instruction word."""

    name: str
    """Attribute of the record."""
    low: int
    """Lowest bit."""
    width: int
    kind: Kind = Kind.UNSIGNED
    text: str = ""
    """What it means, for the manual."""
    choices: type[IntEnum] | None = None
    """The values it may have, where these are names."""

    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value."""
        if self.kind is Kind.SIGNED:
            return -(1 << self.width - 1), (1 << self.width - 1) - 1
        return 0, (1 << self.width) - 1


WAIT: Final = Bits("wait", 98, SEMAPHORES, Kind.MASK, "semaphores that give one token each before the start")
POST: Final = Bits("post", 74, SEMAPHORES, Kind.MASK, "semaphores that get one token each after all writes are visible")


def operand(name: str, slot: str, kind: Kind, text: str) -> Bits:
    """Give the field of an operand in slot d, a, b or c."""
    return Bits(name, OPERAND_LOW[slot], OPERAND_BITS, kind, text)


@dataclass(frozen=True)
class Instruction:
    """One instruction. Subclasses are frozen records, one an opcode, made by their constructor or by `decode`.

    The constructor raises ProgramError, one sentence, for a value that does not fit or a combination that is illegal.
    """

    OPCODE: ClassVar[int]
    NAME: ClassVar[str]
    LAYOUT: ClassVar[tuple[Bits, ...]]
    SUMMARY: ClassVar[str]
    """One line for the manual's index."""
    WRITES: ClassVar[str] = "DE"
    """Letters of the operands that it writes, as far as it has them."""
    ERRORS: ClassVar[tuple[str, ...]] = ()
    """What traps beyond what every access checks."""

    def __post_init__(self) -> None:
        for bits in self.LAYOUT:
            value = getattr(self, bits.name)
            low, high = bits.bounds()
            if bits.kind is Kind.REG:
                high = 31
            if not low <= value <= high:
                raise ProgramError(f"{self.NAME}: {bits.name}={value} does not fit ({low}..{high}).")
            if bits.choices is not None:
                try:
                    object.__setattr__(self, bits.name, bits.choices(value))
                except ValueError:
                    names = ", ".join(f"{c.value} {c.name.lower()}" for c in bits.choices)
                    raise ProgramError(f"{self.NAME}: {bits.name}={value} must be one of {names}.") from None
        if fault := self.fault():
            raise ProgramError(f"{self.NAME}: {fault}")

    def fault(self) -> str | None:
        """Say which fields contradict each other; None where all is well."""
        return None

    @property
    def queue(self) -> Queue:
        """The queue it goes into."""
        return Queue.SEQ

    @property
    def mnemonic(self) -> str:
        """Name with the queue where one name serves several: COPY.W."""
        return self.NAME

    @property
    def waits(self) -> int:
        """Mask of the semaphores it takes a token of."""
        return int(getattr(self, "wait", 0))

    @property
    def posts(self) -> int:
        """Mask of the semaphores it gives a token."""
        return int(getattr(self, "post", 0))

    def encode(self) -> int:
        """Give the 128-bit word."""
        word = self.OPCODE << OP_LOW
        for bits in self.LAYOUT:
            word |= (getattr(self, bits.name) & (1 << bits.width) - 1) << bits.low
        return word

    @classmethod
    def decode(cls, word: int) -> Self:
        """Make the record of a word of this opcode; raises ProgramError for reserved bits and illegal fields."""
        rest = word & (1 << OP_LOW) - 1
        values: dict[str, int] = {}
        for bits in cls.LAYOUT:
            raw = word >> bits.low & (1 << bits.width) - 1
            rest &= ~(((1 << bits.width) - 1) << bits.low)
            values[bits.name] = raw - (1 << bits.width) if raw > bits.bounds()[1] else raw
        if rest:
            raise ProgramError(f"{cls.NAME}: reserved bits {rest:#x} must be zero.")
        return cls(**values)

    def operands(self) -> dict[str, int]:
        """Descriptor registers it uses, by the operand's letter: D, A, B, C, E (D[d+1]) and F (D[c+1])."""
        return {}

    def late(self, s: Slice) -> dict[str, int]:
        """Values known only when it starts, for the resolved row: zero, taken, first, count."""
        return {}

    def kind_of(self, bits: Bits) -> Kind:
        """What a field holds in this instruction, where that depends on another field."""
        return bits.kind

    def execute(self, s: Slice) -> None:
        """Do what the instruction means on a slice: the definition."""
        raise NotImplementedError

    def latency_cycles(self, chip: Chip, row: Sequence[int]) -> int:
        """Cycles from start to all writes visible, every unit idle; `row` is its resolved row. The rule is `cycles`."""
        from .alone import alone  # it reads the layouts of all records

        return alone(chip, row)

    def interval_cycles(self, chip: Chip, row: Sequence[int]) -> int:
        """Cycles from its start to the earliest start of another of its queue and shape."""
        from .alone import interval

        return interval(chip, row)

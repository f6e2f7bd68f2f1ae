"""Instructions of the sequencer: registers, descriptors, loops, branches; and SYNC, which any queue executes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from .instruction import POST, WAIT, Bits, Instruction, Kind, Queue, operand

if TYPE_CHECKING:
    from .state import Slice

__all__ = ["Adv", "Alu", "AluFn", "Br", "Cond", "Desc", "Halt", "Loop", "Readx", "Set", "Sync", "signed", "wrap32"]


class AluFn(IntEnum):
    """Functions of ALU on unsigned 32-bit values, modulo 2^32."""

    ADD = 0
    SUB = 1
    MUL = 2
    SHL = 3
    """Shift left by rb modulo 32."""
    SHR = 4
    """Logical shift right by rb modulo 32."""
    AND = 5
    OR = 6
    MIN = 7
    """Unsigned."""
    MAX = 8
    """Unsigned."""
    CEILDIV = 9
    """Unsigned quotient rounded up; a divisor of 0 traps."""


class Cond(IntEnum):
    """Conditions of BR, unsigned."""

    ALWAYS = 0
    EQ = 1
    NE = 2
    LT = 3
    GE = 4


def signed(value: int) -> int:
    """Read the low 32 bits as two's complement."""
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def wrap32(value: int) -> int:
    """Give the low 32 bits."""
    return value & 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Set(Instruction):
    """R[r] = imm.

    A constant enters a register. Instructions that are dispatched later see it; those already in a queue hold copies.
    """

    OPCODE = 1
    NAME = "SET"
    SUMMARY = "load a constant into a register"
    LAYOUT = (operand("r", "d", Kind.REG, "register"), Bits("imm", 0, 32, text="value"))

    r: int
    imm: int = 0

    def execute(self, s: Slice) -> None:
        """Define SET."""
        s.regs[self.r] = self.imm


@dataclass(frozen=True, kw_only=True)
class Alu(Instruction):
    """R[r] = fn(R[ra], R[rb] or imm), unsigned, modulo 2^32.

    The immediate is sign-extended to 32 bits first.
    """

    OPCODE = 2
    NAME = "ALU"
    SUMMARY = "compute on registers"
    ERRORS = ("CEILDIV by 0.",)
    LAYOUT = (
        operand("r", "d", Kind.REG, "result"),
        operand("ra", "a", Kind.REG, "left operand"),
        operand("rb", "b", Kind.REG, "right operand"),
        Bits("fn", 0, 4, text="function", choices=AluFn),
        Bits("use_imm", 4, 1, text="1: imm instead of R[rb]"),
        Bits("imm", 5, 16, Kind.SIGNED, "immediate"),
    )

    r: int
    ra: int = 0
    rb: int = 0
    fn: AluFn = AluFn.ADD
    use_imm: int = 0
    imm: int = 0

    def execute(self, s: Slice) -> None:
        """Define ALU."""
        x, y = s.regs[self.ra], wrap32(self.imm) if self.use_imm else s.regs[self.rb]
        if self.fn is AluFn.CEILDIV and y == 0:
            raise s.trap("CEILDIV by 0; guard it with a branch")
        s.regs[self.r] = wrap32(
            {
                AluFn.ADD: lambda: x + y,
                AluFn.SUB: lambda: x - y,
                AluFn.MUL: lambda: x * y,
                AluFn.SHL: lambda: x << (y & 31),
                AluFn.SHR: lambda: x >> (y & 31),
                AluFn.AND: lambda: x & y,
                AluFn.OR: lambda: x | y,
                AluFn.MIN: lambda: min(x, y),
                AluFn.MAX: lambda: max(x, y),
                AluFn.CEILDIV: lambda: -(-x // y),
            }[self.fn]()
        )


@dataclass(frozen=True, kw_only=True)
class Desc(Instruction):
    """D[d] = constant k of the program.

    The base of the constant is also where the ring of `wrap` elements starts, for ADV. Writing D0 is legal, but 0 as
    an operand, an index list or a result means "none".
    """

    OPCODE = 3
    NAME = "DESC"
    SUMMARY = "load a descriptor constant"
    LAYOUT = (operand("d", "d", Kind.DESC, "descriptor"), Bits("k", 0, 16, Kind.CONST, "number of the constant"))

    d: int
    k: int = 0

    def execute(self, s: Slice) -> None:
        """Define DESC."""
        constant = s.program.constants[self.k]
        s.descriptors[self.d] = constant
        s.rings[self.d] = (constant.base, constant.sbase)


@dataclass(frozen=True, kw_only=True)
class Adv(Instruction):
    """Move a descriptor, or set an extent.

    n is imm, or R[r] as a signed number. kind 0: base moves by n * stride(dim) elements (dim 3: step), sbase with it.
    With wrap, the position in the ring that starts at the constant's base is kept modulo wrap, for negative moves too.
    kind 1: ext[dim] = n, dim 0..2.
    """

    OPCODE = 4
    NAME = "ADV"
    SUMMARY = "move a descriptor or set an extent"
    ERRORS = (
        "A base or extent that leaves its field.",
        "A move by a part of a byte (E2M1), or by a part of a block (scale = 1).",
    )
    LAYOUT = (
        operand("d", "d", Kind.DESC, "descriptor"),
        Bits("dim", 0, 2, text="dimension; 3: step"),
        Bits("kind", 2, 1, text="0: move, 1: set the extent"),
        Bits("use_reg", 3, 1, text="1: n = R[r]"),
        Bits("r", 4, 5, Kind.REG, "register"),
        Bits("imm", 9, 24, Kind.SIGNED, "n where use_reg is 0"),
    )

    d: int
    dim: int = 0
    kind: int = 0
    use_reg: int = 0
    r: int = 0
    imm: int = 0

    def fault(self) -> str | None:
        """Dimension 3 has no extent."""
        return "dim=3 has no extent; kind=1 takes dim 0..2." if self.kind and self.dim == 3 else None

    def execute(self, s: Slice) -> None:
        """Define ADV."""
        n = signed(s.regs[self.r]) if self.use_reg else self.imm
        before = s.descriptors[self.d]
        if self.kind:
            s.descriptors[self.d] = before.with_ext(self.dim, n)
        else:
            s.descriptors[self.d] = before.advance(self.dim, n, s.rings[self.d])


@dataclass(frozen=True, kw_only=True)
class Loop(Instruction):
    """Run the next `len` words count times.

    count is the field, or R[r] unsigned; 0 skips the words. Loops nest 8 deep; bodies nest properly, which is checked
    when a program is loaded. Dispatch takes no cycle for the way back beyond `branch_cycles`.
    """

    OPCODE = 5
    NAME = "LOOP"
    SUMMARY = "repeat the next words"
    LAYOUT = (
        Bits("use_reg", 0, 1, text="1: count = R[r]"),
        Bits("r", 1, 5, Kind.REG, "register"),
        Bits("count", 6, 16, text="count where use_reg is 0"),
        Bits("len", 22, 12, Kind.LENGTH, "words of the body, at least 1"),
    )

    use_reg: int = 0
    r: int = 0
    count: int = 0
    len: int

    def fault(self) -> str | None:
        """Refuse an empty body."""
        return "len=0 must be at least 1 word." if self.len == 0 else None

    def late(self, s: Slice) -> dict[str, int]:
        """Give the count."""
        return {"taken": s.regs[self.r] if self.use_reg else self.count}

    def execute(self, s: Slice) -> None:
        """Define LOOP."""
        count = s.regs[self.r] if self.use_reg else self.count
        if count == 0:
            s.next_pc = s.pc + 1 + self.len
        else:
            s.push_loop(start=s.pc + 1, end=s.pc + 1 + self.len, count=count)


@dataclass(frozen=True, kw_only=True)
class Br(Instruction):
    """Jump to word `target` if the condition holds for R[ra] and R[rb] or imm, unsigned.

    The immediate is sign-extended to 32 bits first. The loop stack stays as it is: target lies in the same innermost
    loop body as the branch, which is checked when a program is loaded.
    """

    OPCODE = 6
    NAME = "BR"
    SUMMARY = "branch"
    LAYOUT = (
        operand("ra", "a", Kind.REG, "left operand"),
        operand("rb", "b", Kind.REG, "right operand"),
        Bits("cond", 0, 3, text="condition", choices=Cond),
        Bits("use_imm", 3, 1, text="1: imm instead of R[rb]"),
        Bits("imm", 4, 16, Kind.SIGNED, "immediate"),
        Bits("target", 20, 16, Kind.LABEL, "word"),
    )

    ra: int = 0
    rb: int = 0
    cond: Cond = Cond.ALWAYS
    use_imm: int = 0
    imm: int = 0
    target: int

    def late(self, s: Slice) -> dict[str, int]:
        """Say whether it jumps."""
        return {"taken": int(self._taken(s))}

    def _taken(self, s: Slice) -> bool:
        x, y = s.regs[self.ra], wrap32(self.imm) if self.use_imm else s.regs[self.rb]
        return {Cond.ALWAYS: True, Cond.EQ: x == y, Cond.NE: x != y, Cond.LT: x < y, Cond.GE: x >= y}[self.cond]

    def execute(self, s: Slice) -> None:
        """Define BR."""
        if self._taken(s):
            s.next_pc = self.target


@dataclass(frozen=True, kw_only=True)
class Readx(Instruction):
    """Wait, then R[r] = X[x].

    The only instruction that makes the sequencer wait for the queues.
    """

    OPCODE = 7
    NAME = "READX"
    SUMMARY = "read a cell into a register"
    LAYOUT = (WAIT, operand("r", "d", Kind.REG, "register"), Bits("x", 0, 6, Kind.CELL, "cell"))

    wait: int = 0
    r: int
    x: int = 0

    def execute(self, s: Slice) -> None:
        """Define READX."""
        s.regs[self.r] = s.cell(self.x)


@dataclass(frozen=True, kw_only=True)
class Halt(Instruction):
    """Wait until all queues are empty, stop the slice, tell the host the cause."""

    OPCODE = 8
    NAME = "HALT"
    SUMMARY = "stop the slice"
    LAYOUT = (Bits("cause", 0, 16, text="number for the host"),)

    cause: int = 0

    def execute(self, s: Slice) -> None:
        """Define HALT."""
        s.halted, s.cause = True, self.cause


@dataclass(frozen=True, kw_only=True)
class Sync(Instruction):
    """Take and give tokens in a queue; nothing else.

    It passes a token on in the order of the queue: the work before it is done when it posts.
    """

    OPCODE = 14
    NAME = "SYNC"
    SUMMARY = "wait and post in a queue"
    LAYOUT = (WAIT, POST, Bits("on", 0, 3, text="queue", choices=Queue))

    on: Queue
    wait: int = 0
    post: int = 0

    def fault(self) -> str | None:
        """The sequencer is no queue."""
        return "on=6 must be a queue, 0..5 (W L M V S C)." if self.on is Queue.SEQ else None

    @property
    def queue(self) -> Queue:
        """The queue of field `on`."""
        return self.on

    @property
    def mnemonic(self) -> str:
        """SYNC.M and so on."""
        return f"{self.NAME}.{self.on.name}"

    def execute(self, s: Slice) -> None:
        """Define SYNC: the masks do it all."""

"""When the control of a program's layers must repeat, so that a skeleton need not run it again.

Two arguments meet. Of the words: from the loop's first word backwards over all ways through the program, which bits of
which registers, and which descriptors, can decide a branch, a count, an extent, or what lies in a control table
(`Words.control`); and that what else changes moves by sums and multiples alone (`Words.linear`). Of a run: that all of
these, the tables, tokens, arrivals and loops are as they were a period ago, and that what else has changed, changed by
as much as in the period before. Then every further period takes the same way, and its addresses move by that much.
"""

from __future__ import annotations

from collections.abc import Sequence

from systolith.isa.instruction import Instruction
from systolith.isa.sequencer import Adv, Alu, AluFn, Br, Cond, Desc, Loop, Readx, Set
from systolith.isa.vector import Vec
from systolith.spec.limits import DESCRIPTORS, REGISTERS

__all__ = ["Words"]

_ALL = (1 << 32) - 1


def _bits(r: int) -> int:
    """All bits of a register."""
    return _ALL << 32 * r


class Words:
    """A program's words as a graph of ways. deciding: words that write a cell or a control table."""

    def __init__(self, code: Sequence[Instruction], vias: dict[int, int], deciding: frozenset[int]) -> None:
        self.code = code
        self._vias = vias
        self._deciding = deciding
        self._known: dict[tuple[int, int, int, int], int] = {}
        """What `linear` has found."""
        self._next = [self._successors(pc) for pc in range(len(code))]
        for pc, i in enumerate(code):
            if isinstance(i, Loop):
                self._next[pc + i.len].append(pc + 1)

    def _successors(self, pc: int) -> list[int]:
        i = self.code[pc]
        after = [pc + 1] if pc + 1 < len(self.code) else []
        if isinstance(i, Br):
            return [i.target] if i.cond == Cond.ALWAYS else [*after, i.target]
        if isinstance(i, Loop):
            return [*after, pc + 1 + i.len]
        return after

    def _flow(self, *, control: bool) -> list[tuple[int, int]]:
        """What matters before each word, for control or (control=False) for anything at all: 32 bits for each register
        in one number, a bit for each descriptor."""
        count = len(self.code)
        live = [(0, 0)] * (count + 1)
        changed = True
        while changed:
            changed = False
            for pc in range(count - 1, -1, -1):
                regs, descs = 0, 0
                for then in self._next[pc]:
                    regs |= live[then][0]
                    descs |= live[then][1]
                now = self._before(pc, regs, descs, control)
                if now != live[pc]:
                    live[pc] = now
                    changed = True
        return live

    def _before(self, pc: int, regs: int, descs: int, control: bool) -> tuple[int, int]:
        """What matters before a word, from what matters after it."""
        i = self.code[pc]
        if isinstance(i, Set | Readx):
            regs &= ~_bits(i.r)
        elif isinstance(i, Alu):
            want = regs >> 32 * i.r & _ALL
            regs &= ~_bits(i.r)
            if want:
                left = right = _ALL
                if i.fn in (AluFn.ADD, AluFn.SUB, AluFn.MUL):
                    left = right = (1 << want.bit_length()) - 1  # carries go upwards only
                elif i.fn == AluFn.AND:
                    left, right = (want & i.imm & _ALL if i.use_imm else want), want
                regs |= left << 32 * i.ra
                if not i.use_imm:
                    regs |= right << 32 * i.rb
        elif isinstance(i, Desc):
            descs &= ~(1 << i.d)
        elif isinstance(i, Adv):
            if i.use_reg and (i.kind or descs >> i.d & 1):
                regs |= _bits(i.r)
        elif isinstance(i, Br):
            if i.cond != Cond.ALWAYS:
                regs |= _bits(i.ra)
                if not i.use_imm:
                    regs |= _bits(i.rb)
        elif isinstance(i, Loop):
            if i.use_reg:
                regs |= _bits(i.r)
        elif not control or pc in self._deciding:
            for d in i.operands().values():
                descs |= 1 << d
            descs |= self._vias.get(pc, 0)
            if isinstance(i, Vec) and i.mask:
                regs |= _bits(i.c) | _bits(i.rj) | _bits(i.rw)
        return regs, descs

    def control(self, pc: int) -> tuple[list[int], int]:
        """Bits of each register, and descriptors, that may decide what happens from word `pc` on."""
        regs, descs = self._flow(control=True)[pc]
        return [regs >> 32 * r & _ALL for r in range(REGISTERS)], descs

    def used(self, pc: int) -> tuple[list[int], int]:
        """The same, for anything at all."""
        regs, descs = self._flow(control=False)[pc]
        return [regs >> 32 * r & _ALL for r in range(REGISTERS)], descs

    def linear(self, first: int, end: int, registers: int, descriptors: int) -> int:
        """Whether all that hangs on these registers and descriptors (masks) in words first..end-1 is a sum of them, or
        a multiple by what does not: -1 if not, else how many of their low bits are looked at for themselves."""
        asked = (first, end, registers, descriptors)
        if asked not in self._known:
            self._known[asked] = self._linear(*asked)
        return self._known[asked]

    def _linear(self, first: int, end: int, registers: int, descriptors: int) -> int:
        low = 0
        moved = [(0, 0)] * (len(self.code) + 1)
        work = [(first, (registers, descriptors))]
        while work:
            pc, (regs, descs) = work.pop()
            if not first <= pc < end:
                continue
            old = moved[pc]
            now = (old[0] | regs, old[1] | descs)
            if now == old and old != (0, 0):
                continue
            moved[pc] = now
            regs, descs = now
            i = self.code[pc]
            if isinstance(i, Set | Readx):
                regs &= ~(1 << i.r)
            elif isinstance(i, Desc):
                descs &= ~(1 << i.d)
            elif isinstance(i, Alu):
                left = regs >> i.ra & 1
                right = 0 if i.use_imm else regs >> i.rb & 1
                if left or right:
                    sums = i.fn in (AluFn.ADD, AluFn.SUB)
                    multiple = (i.fn == AluFn.MUL and not (left and right)) or (i.fn == AluFn.SHL and not right)
                    if i.fn == AluFn.AND and i.use_imm and i.imm >= 0:
                        low = max(low, i.imm.bit_length())
                        regs &= ~(1 << i.r)
                    elif sums or multiple:
                        regs |= 1 << i.r
                    else:
                        return -1
                else:
                    regs &= ~(1 << i.r)
            elif isinstance(i, Adv) and not i.kind and i.use_reg and regs >> i.r & 1:
                descs |= 1 << i.d
            work += [(then, (regs, descs)) for then in self._next[pc]]
        return low


assert DESCRIPTORS <= 64

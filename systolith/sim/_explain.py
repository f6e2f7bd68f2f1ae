"""The sentence of a trap: the kernel has said where, the definition of the instruction says why.

Nothing that this finds changes a result; it runs once, when the program has failed already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from systolith.isa.descriptor import Descriptor, Format, Space
from systolith.isa.execute import where
from systolith.isa.state import LoopState, Slice
from systolith.spec import DESCRIPTORS, ProgramError

from . import _state as S
from ._traps import T_END

if TYPE_CHECKING:
    from .machine import FastMachine

__all__ = ["sentence"]


def sentence(machine: FastMachine, rank: int) -> str:
    """Say what trapped on a slice, in the words of `isa`."""
    program, state = machine.program, machine._state[rank]
    pc, code = int(state[S.PC]), int(state[S.ERR])
    if code == T_END:
        return (
            f"program {program.name!r}, slice {rank}: it ran past the last word, {len(program.code) - 1}; "
            "end it with HALT."
        )
    s = _slices(machine)[rank]
    s.next_pc = pc + 1
    instruction = program.code[pc]
    try:
        instruction.execute(s)
        s.give(instruction.posts)
    except ProgramError as cause:
        text = str(cause).removesuffix(".")
        return f"{where(program, rank, pc)}: {text}."
    raise AssertionError(f"{where(program, rank, pc)}: the simulator trapped (code {code}), the definition does not")


def _slices(machine: FastMachine) -> list[Slice]:
    """Make slices as `isa` has them, on the simulator's own memory."""
    slices: list[Slice] = []
    for rank, state in enumerate(machine._state):
        memory: dict[Space, Any] = {space: memoryview(machine._space(rank, space)) for space in Space}  # type: ignore[arg-type]
        s = Slice(rank, machine.program, memory, slices, machine.regs(rank), sems=machine.sems(rank))
        s.arrivals = machine.arrivals(rank)
        for d in range(DESCRIPTORS):
            at = S.DESCS + d * S.D_FIELDS
            s.descriptors[d] = _descriptor([int(x) for x in state[at : at + S.D_FIELDS]])
            s.rings[d] = (int(state[at + S.D_BASE0]), int(state[at + S.D_SBASE0]))
        for i in range(int(state[S.DEPTH])):
            start, end, left, iteration = (int(x) for x in state[S.LOOPS + 4 * i : S.LOOPS + 4 * i + 4])
            s.loops.append(LoopState(start, end, left, iteration == 0))
        s.pc = int(state[S.PC])
        slices.append(s)
    return slices


def _descriptor(v: list[int]) -> Descriptor:
    return Descriptor(
        Space(v[S.D_SPACE]), Format(v[S.D_FORMAT]), v[S.D_SCALE], v[S.D_BASE], v[S.D_SBASE],
        (v[S.D_EXT], v[S.D_EXT + 1], v[S.D_EXT + 2]), (v[S.D_STRIDE], v[S.D_STRIDE + 1], v[S.D_STRIDE + 2]),
        v[S.D_STEP], v[S.D_XB], v[S.D_XE], v[S.D_VIA], v[S.D_UNIT], v[S.D_WRAP],
    )  # fmt: skip

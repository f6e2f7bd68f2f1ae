"""Illegal programs for the fuzz: a legal one with one thing changed that `execute` traps."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Final

from systolith.isa import Adv, Alu, AluFn, Descriptor, Format, Halt, Program, Set, Space
from systolith.isa.instruction import WAIT
from systolith.spec import SEMAPHORE_MAX, SEMAPHORES, Chip, ProgramError

from .machine import FastMachine

__all__ = ["spoil"]

_TRIES: Final = 40
_KINDS: Final = ("space", "format", "scale", "base", "extent", "cell", "list", "ceildiv", "move", "semaphore", "end")
_LENGTH: Final = 1 << 20
"""Most words of a run."""


def spoil(rng: random.Random, chip: Chip, program: Program) -> tuple[Program, str] | None:
    """Give a program that traps, and what was changed and how the trap reads; None if none was found."""
    for _ in range(_TRIES):
        kind = rng.choice(_KINDS)
        try:
            made = _changed(rng, kind, program)
        except ProgramError:
            continue
        if made is None:
            continue
        try:
            FastMachine(chip, made).run(_LENGTH)
        except ProgramError as trap:
            sentence = str(trap)
            if sentence.startswith("deadlock"):
                continue
            return made, f"{kind}: {re.sub('[0-9]+', '#', sentence.rsplit('): ', 1)[-1])}"
    return None


def _changed(rng: random.Random, kind: str, program: Program) -> Program | None:
    words = list(program.words)
    if kind in ("ceildiv", "move", "end"):
        places = [pc for pc, i in enumerate(program.code) if isinstance(i, Halt if kind == "end" else Set)]
        at = rng.choice(places)
        if kind == "end":
            words[at] = Set(r=0, imm=0).encode()
        elif kind == "ceildiv":
            words[at] = Alu(r=3, ra=rng.randint(0, 12), fn=AluFn.CEILDIV, use_imm=1, imm=0).encode()
        else:
            words[at] = Adv(d=rng.randint(2, 30), dim=rng.randint(0, 3), imm=rng.choice((-(1 << 22), 1, 3))).encode()
        return replace(program, words=tuple(words))
    if kind == "semaphore":
        counts, n = list(program.sem_init), rng.randrange(SEMAPHORES)
        counts[n] = SEMAPHORE_MAX
        # Nobody takes one: else it would depend on time whether there is room for the next.
        words = [
            word & ~(1 << WAIT.low + n) if i.waits >> n & 1 else word
            for i, word in zip(program.code, words, strict=True)
        ]
        return replace(program, sem_init=tuple(counts), words=tuple(words))
    constants = list(program.constants)
    at = rng.randrange(7, len(constants))
    constants[at] = _descriptor(rng, kind, constants[at])
    return replace(program, constants=tuple(constants))


def _descriptor(rng: random.Random, kind: str, d: Descriptor) -> Descriptor:
    """Change one thing of a tensor."""
    e0, e1, e2 = d.ext
    if kind == "space":
        return replace(d, space=rng.choice([s for s in Space if s is not d.space]))
    if kind == "format":
        return replace(d, format=rng.choice([f for f in Format if f is not d.format]))
    if kind == "scale":
        return replace(d, scale=1 - d.scale)
    if kind == "base":
        return replace(d, base=d.base + (rng.choice((1 << 13, 1 << 16, 1 << 20)) & -64))
    if kind == "extent":
        return replace(d, ext=rng.choice(((e0, e1, e2 + rng.choice((1, 32))), (e0 + 40, e1, e2), (e0, e1 + 9, e2))))
    if kind == "cell":
        return replace(d, xe=rng.randint(1, 24), ext=(rng.randint(0, 1), e1, e2))
    return replace(d, via=rng.choice((1, 2, 3)), unit=rng.choice((0, 3)))

"""Random programs for the whole chip: copies of every kind, PUT, RING and SYNC, each with memory of its own.

Nothing that one queue writes is touched by another without a token between them, so that the order of queues is free.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from systolith.isa import Copy, Descriptor, Format, Image, Instruction, Program, Put, Queue, Space, Sync
from systolith.isa.sequencer import Alu, AluFn, Set
from systolith.spec import Chip
from tests.timing.helpers import program, tensor

_BITS = {Format.E2M1: 4, Format.E4M3: 8, Format.INT8: 8, Format.FP32: 32, Format.INT32: 32, Format.E8M0: 8}
_DRAM = 1 << 20


class _Maker:
    def __init__(self, chip: Chip, rng: random.Random, *, even: bool) -> None:
        self.rng, self.even = rng, even
        self.top = {Space.DRAM: 65536, Space.SPAD: 512, Space.SLOT: 0}
        self.size = {Space.DRAM: _DRAM, Space.SPAD: chip.scratchpad_bytes, Space.SLOT: chip.slots_bytes}

    def place(self, space: Space, count: int, align: int) -> int | None:
        """Memory that nobody else has."""
        at = self.top[space] + (0 if self.even else self.rng.randrange(40))
        align = 64 if self.even else align
        at = -(-at // align) * align
        self.top[space] = at + count
        return at if self.top[space] <= self.size[space] else None

    def descriptor(self, space: Space, form: Format, scale: int, ext: Sequence[int], page: int) -> Descriptor | None:
        """A tensor of a shape; page: 0, or 1 + log2 of the rows that an index stands for."""
        rng = self.rng
        pad = 0 if self.even else rng.choice((0, 0, 32, 64))
        s1 = ext[2] + rng.choice((0, pad))
        s0 = s1 * ext[1] + rng.choice((0, pad))
        last = (8 << page - 1) - 1 if page else ext[0] - 1
        count = last * s0 + (ext[1] - 1) * s1 + ext[2]
        base = self.place(space, (count * _BITS[form] + 7) // 8, 4 if _BITS[form] == 32 else 1)
        sbase = self.place(space, count // 32 + 1, 1) if scale else 0
        if base is None or sbase is None:
            return None
        return Descriptor(
            space=space, format=form, scale=scale, base=base, sbase=sbase, ext=(ext[0], ext[1], ext[2]),
            stride=(s0, s1, 1), via=1 if page else 0, unit=max(0, page - 1),
        )  # fmt: skip


def copies(chip: Chip, seed: int, *, even: bool = False) -> Program:
    """A random program. even: rows that follow each other at multiples of a burst, so that every time is the rule's."""
    rng = random.Random(seed)
    maker = _Maker(chip, rng, even=even)
    table = tensor(Space.SPAD, (1, 1, 64), Format.INT32)
    constants = [table, tensor(Space.DRAM, (1, 1, 64), Format.INT32)]
    code: list[Instruction] = [Copy(on=Queue.L, d=1, a=2, post=15)]
    code += [Sync(on=queue, wait=1 << i) for i, queue in enumerate((Queue.W, Queue.S, Queue.C, Queue.L))]
    for _ in range(rng.randint(4, 14)):
        kind = rng.choice(("L", "W", "S", "LL", "PUT", "SYNC", "SET"))
        if kind == "SYNC":
            code.append(Sync(on=Queue(rng.randrange(6))))
            continue
        if kind == "SET":
            code += [Set(r=1, imm=rng.randrange(1000)), Alu(r=2, ra=1, rb=2, fn=AluFn(rng.randrange(9)))]
            continue
        form = rng.choice(tuple(_BITS))
        scale = int(form.is_element and rng.random() < 0.5)
        inner = rng.choice((32, 64, 96)) if scale else 2 * rng.choice((1, 2, 8, 16, 20, 50))
        ext = [rng.randint(1, 6), rng.randint(1, 3), inner]
        if even:
            ext = [1, 1, 128 * rng.randint(1, 6)]
        source = Space.DRAM if kind in "LW" else Space.SPAD
        target = {"W": Space.SLOT, "S": Space.DRAM}.get(kind, Space.SPAD)
        pages = [0 if even or space is Space.SLOT or rng.random() < 0.7 else rng.randint(1, 4) for space in "ab"]
        d = maker.descriptor(target, form, scale, ext, 0 if target is Space.SLOT else pages[0])
        a = maker.descriptor(source, form, scale, ext, pages[1])
        if d is None or a is None or len(constants) > 50:
            continue
        if not even and not a.via and kind != "PUT" and rng.random() < 0.2:  # what lies outside A is zero
            a = replace(a, ext=(max(1, ext[0] - 1), ext[1], inner if scale else max(2, inner - 2)))
        constants += [d, a]
        names = {"d": len(constants) - 1, "a": len(constants)}
        code.append(Put(**names) if kind == "PUT" else Copy(on=Queue[kind[0]], **names))
    made = program(chip, code, constants, slices=1)
    noise = np.random.default_rng(seed)
    data = noise.integers(0, 256, _DRAM, dtype=np.uint8)
    data[:256] = np.tile(noise.permutation(8).astype("<u4"), 8).view(np.uint8)
    return replace(made, images=(Image(0, 0, data.tobytes()),))

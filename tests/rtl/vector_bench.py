"""Random instructions of queue V on the RTL of the vector unit: cycles and all memories beside `isa`."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from systolith.isa import Descriptor, Format, Instruction, Space
from systolith.isa.alone import work_of
from systolith.isa.asm import line_of
from systolith.isa.cycles import HOLD, KIND, NOTHING, TAIL
from systolith.isa.resolved import COLS, fill_row
from systolith.isa.sequencer import signed
from systolith.isa.state import Slice
from systolith.sim._generate import memory_at_start
from systolith.sim._operators import LATE, Maker
from systolith.spec import Chip, ProgramError

from .unit_bench import MEMORIES, UnitBench, operand, pack

FAR = 64 << 10
"""Results lie this far from operands, and reductions as far again: what overlaps otherwise is not legal."""
LIST = Descriptor(space=Space.SPAD, format=Format.INT32, ext=(1, 1, 128), stride=(0, 0, 1))


def bench_chip(chip: Chip) -> Chip:
    """Give a chip of one slice with room for that."""
    return chip.vary(slices=1, scratchpad_bytes=256 << 10, accumulator_bytes=max(chip.accumulator_bytes, 8 << 10))


@dataclass
class Case:
    """One instruction, ready for the unit, and what `isa` says of it."""

    text: str
    name: str
    command: int
    cycles: int
    memory: dict[Space, bytes]


def fresh(chip: Chip, seed: int) -> Slice:
    """Give a slice with typed regions in its memories."""
    program = SimpleNamespace(requires=SimpleNamespace(dram_bytes=0, slices=1), sem_init=(0,) * 24)
    s = Slice.fresh(0, chip, program, [])  # type: ignore[arg-type]
    s.slices.append(s)
    for space, data in memory_at_start(seed, 0).items():
        if space is not Space.DRAM:
            s.memory[space][: len(data)] = data.tobytes()
    return s


def moved(d: Descriptor, letter: str) -> Descriptor:
    """Move a result away from the operands."""
    if d.space is not Space.SPAD:
        return d
    if letter == "B":  # of GROUP, one word
        return replace(d, base=3 * FAR + d.base % 512 // 4 * 4, xb=0, via=0, unit=0)
    up = FAR * (1 if letter == "D" else 2)
    return replace(d, base=d.base + up, sbase=d.sbase + up if d.scale else 0)


def odd(rng: random.Random, d: Descriptor, letter: str, rows: tuple[int, int], n: int) -> Descriptor:
    """Give an operand of VEC a form that the fuzz does not draw: strides of results, operands and rows in cells."""
    e0, e1 = rows
    if letter in "DE" and not d.scale and d.format not in (Format.E2M1, Format.E8M0):
        length = n if letter == "D" else 1
        if letter == "E" and e0 * e1 <= 63 - LATE and rng.random() < 0.5:
            return Descriptor(
                space=Space.CELL, format=d.format, base=4 * (LATE + 1), ext=(e0, e1, 1), stride=(e1, 1, 1)
            )
        inner = rng.choice((0, 1, 2, 3, -1))
        row = length * abs(inner) + rng.randint(1, 3)
        base = FAR * (1 if letter == "D" else 2) + (16 << 10)
        return replace(d, base=base, stride=(row * e1, row, inner), step=0, xb=0, via=0, unit=0)
    if letter in "ABCF" and d.format in (Format.FP32, Format.INT32) and rng.random() < 0.4:
        inner = rng.choice((0, 1, 2, 3))
        stride = rng.choice((0, 1)), rng.choice((0, 1)), inner
        reach = (e0 - 1) * stride[0] + (e1 - 1) * stride[1] + (n - 1) * inner
        if reach < LATE:  # the cells behind are for results
            base = 4 * rng.randint(1, LATE - reach)
            return Descriptor(space=Space.CELL, format=d.format, base=base, ext=(e0, e1, n), stride=stride)
    return d


def draw(
    chip: Chip, seed: int, kinds: tuple[str, ...], count: int, layout: Any
) -> tuple[dict[Space, bytes], list[Case]]:
    """Make `count` cases that follow each other on one memory: (memory at start, cases). kinds: methods of `Maker`,
    `odd` for VECs that it does not make."""
    rng = random.Random(seed)
    s = fresh(chip, seed)
    s.regs[:13] = [rng.getrandbits(32) if rng.random() < 0.1 else rng.randint(0, 60) for _ in range(13)]
    start = {space: bytes(s.memory[space]) for space in MEMORIES}
    cases: list[Case] = []
    while len(cases) < count:
        kind = rng.choice(kinds)
        maker = Maker(rng, chip, 1, constants=[LIST])
        instruction: Instruction = getattr(maker, "vec" if kind == "odd" else kind)()
        s.descriptors[1] = LIST
        for load in maker.loads:
            s.descriptors[load.d] = maker.constants[load.k]  # type: ignore[attr-defined]
        operands = instruction.operands()
        for letter, number in operands.items():
            d = s.descriptors[number]
            if letter in instruction.WRITES:
                d = moved(d, letter)
            if kind == "odd":
                e0, e1, n = s.descriptors[operands["A"]].ext
                if letter != "A" and s.descriptors[operands["A"]].xe:
                    s.descriptors[operands["A"]] = replace(s.descriptors[operands["A"]], xe=0)
                d = odd(rng, d, letter, (max(1, e0), max(1, e1)), n)
            s.descriptors[number] = d
        before = {space: bytes(s.memory[space]) for space in MEMORIES}
        row = np.zeros(COLS, np.int64)
        word = instruction.encode()
        try:
            fill_row(row, s, instruction, word)
            work = work_of(chip, row)
            if work[KIND] == NOTHING:
                continue
            values: dict[str, Any] = {"op": instruction.OPCODE, "fields": word & (1 << 50) - 1}
            values |= {letter.lower(): operand(s, number) for letter, number in operands.items()}
            if instruction.NAME == "VEC":
                i: Any = instruction
                values |= {"r_hi": signed(s.regs[i.c]) if i.mask else 0}
                values |= {"r_j": signed(s.regs[i.rj]), "r_w": signed(s.regs[i.rw])}
            instruction.execute(s)
        except ProgramError:
            for space, data in before.items():  # a trap in the middle of it
                s.memory[space][:] = data
            continue
        memory = {space: bytes(s.memory[space]) for space in MEMORIES}
        text = f"{line_of(instruction)} {[str(s.descriptors[n]) for n in operands.values()]}"
        cases.append(Case(text, instruction.NAME, pack(layout, values), work[HOLD] + work[TAIL], memory))
    return start, cases


def compare(bench: UnitBench, seed: int, kinds: tuple[str, ...], count: int = 12) -> list[str]:
    """Run cases; raise AssertionError at the first one whose cycles or bytes differ. Gives their names.

    A legal instruction that the unit takes for a fault has negative cycles.
    """
    start, cases = draw(bench.chip, seed, kinds, count, bench.layout)
    cycles, found = bench.run(start, [case.command for case in cases], limit=1 << 18)
    for case, took, memory in zip(cases, cycles, found, strict=True):
        assert took == case.cycles, f"seed {seed}: {case.text} took {took} cycles, the rule says {case.cycles}"
        for space in MEMORIES:
            wanted = np.frombuffer(case.memory[space], np.uint8)
            at = np.flatnonzero(wanted != memory[space])
            assert not len(at), (
                f"seed {seed}: {case.text}: {space.name} byte {at[0]} holds {memory[space][at[0]]}, execute wrote "
                f"{wanted[at[0]]}; {len(at)} differ"
            )
    return [case.name for case in cases]


def spoilt(rng: random.Random, d: Descriptor) -> Descriptor:
    """Give a descriptor with one thing changed that an instruction may not take; ProgramError if none is left."""
    word = Format.INT32 if d.format is Format.FP32 else Format.FP32
    change: dict[str, Any] = rng.choice(
        (
            {"format": word, "scale": 0, "base": d.base // 4 * 4},
            {"space": rng.choice((Space.DRAM, Space.SLOT, Space.ACC, Space.CELL))},
            {"base": (1 << 33) + d.base},
            {"base": rng.choice((256, 8192, 256 << 10)) - 4 * rng.randint(0, 3)},
            {"sbase": (256 << 10) - rng.randint(0, 2)} if d.scale else {"stride": (d.stride[0] << 16, *d.stride[1:])},
            {"scale": 0},
            {"ext": (*d.ext[:2], rng.choice((0, 1, 65)))},
        )
    )
    return replace(d, **change)


def refused(bench: UnitBench, seed: int, kinds: tuple[str, ...]) -> str:
    """Run one instruction that `execute` traps; raise AssertionError unless the unit faults. Gives the trap's words.

    What `isa` refuses before it writes anything must leave the memories as they are, too.
    """
    rng = random.Random(seed)
    for _ in range(1000):
        s = fresh(bench.chip, seed)
        maker = Maker(rng, bench.chip, 1, constants=[LIST])
        instruction: Instruction = getattr(maker, rng.choice(kinds))()
        s.descriptors[1] = LIST
        for load in maker.loads:
            s.descriptors[load.d] = maker.constants[load.k]  # type: ignore[attr-defined]
        operands = instruction.operands()
        start = {space: bytes(s.memory[space]) for space in MEMORIES}
        try:
            number = rng.choice(list(operands.values()))
            s.descriptors[number] = spoilt(rng, s.descriptors[number])
            values: dict[str, Any] = {letter.lower(): operand(s, n) for letter, n in operands.items()}
            row = np.zeros(COLS, np.int64)
            word = instruction.encode()
            fill_row(row, s, instruction, word)
        except ProgramError:
            continue
        if 0 in s.view(operands["A"]).ext:
            continue
        try:
            instruction.execute(s)
        except ProgramError as trap:
            values |= {"op": instruction.OPCODE, "fields": word & (1 << 50) - 1}
            cycles, found = bench.run(start, [pack(bench.layout, values)], limit=1 << 24)
            text = f"seed {seed}: {line_of(instruction)} {[str(s.descriptors[n]) for n in operands.values()]}: {trap}"
            assert cycles[0] < 0, f"{text}: no fault"
            if all(bytes(s.memory[space]) == start[space] for space in MEMORIES) and "outside" not in str(trap):
                for space in MEMORIES:
                    assert bytes(found[0][space]) == start[space], f"{text}: {space.name} has changed"
            return str(trap)
    raise AssertionError("no trap was found")

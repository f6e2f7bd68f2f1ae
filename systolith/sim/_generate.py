"""Random legal programs for the fuzz, and what their memory holds at start."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from systolith.isa import (
    Adv,
    Br,
    Cond,
    Desc,
    Descriptor,
    Format,
    Halt,
    Instruction,
    Loop,
    Program,
    Put,
    Queue,
    Requires,
    Set,
    Space,
    Sync,
)
from systolith.spec import PAIRS, Chip

from ._operators import (
    ACC,
    DRAM,
    DRAM_END,
    EXPONENTS,
    KEY_MAX,
    KEYS,
    LATE,
    LATE_MAX,
    LIST_BYTES,
    LIST_RING,
    RECORDS,
    SCORES,
    SLOT,
    SLOT_END,
    SPAD,
    SPAD_END,
    Maker,
    Region,
)

Bytes = npt.NDArray[np.uint8]
_CLASSES = ("load", "weight", "matrix", "vector", "store", "collective")
_LAST_DESCRIPTOR = 55
"""An instruction takes six registers at most."""


def make_program(rng: random.Random, chip: Chip, slices: int, chunks: int = 3) -> Program:
    """Make a program of a few loops, each over instructions of every class."""
    code: list[Instruction] = []
    constants: list[Descriptor] = [
        Descriptor(
            space=Space.SPAD, format=Format.INT32, base=0, ext=(1, 1, LIST_BYTES // 4), stride=(0, 0, 1), wrap=LIST_RING
        )
    ]
    code.append(Desc(d=1, k=0))
    code += [Set(r=r, imm=rng.randint(0, 40)) for r in range(1, 8)]
    done: Counter[str] = Counter()
    for chunk in range(chunks):
        maker = Maker(rng, chip, slices, constants)
        body = _body(maker, 16 + chunk % 7, done)
        code += maker.loads
        code.append(Loop(count=rng.randint(8, 13), len=len(body)))
        code += [replace(i, target=len(code) + n + 2) if isinstance(i, Br) else i for n, i in enumerate(body)]
    code.append(Halt(cause=rng.randrange(1 << 16)))
    return Program(
        name="fuzz",
        words=tuple(i.encode() for i in code),
        constants=tuple(constants),
        sem_init=tuple(rng.choice((0, 0, 1, 7)) if n < 16 else 0 for n in range(24)),
        requires=Requires(
            slices=slices,
            dram_bytes=DRAM_END,
            spad_bytes=SPAD_END,
            slot_bytes=SLOT_END,
            acc_bytes=4 * ACC.elements,
            pairs=PAIRS,
        ),
        lines=tuple(f"fuzz.py:{n}" for n in range(len(code))),
    )


def _body(maker: Maker, barrier: int, done: Counter[str]) -> list[Instruction]:
    """Make the body of a loop: an inner loop stands in some of them; tokens are given and taken inside one level.

    done : executions of each class an outer iteration, so far; the rarest class comes next
    """
    rng = maker.rng
    makers = {
        "load": lambda: maker.copy(Queue.L),
        "weight": lambda: maker.copy(Queue.W),
        "matrix": maker.matmul,
        "vector": lambda: rng.choices((maker.vec, maker.pick, maker.topk, maker.group), (76, 8, 8, 8))[0](),
        "store": lambda: maker.copy(Queue.S),
        "collective": maker.put,
    }
    body = [maker.late_cells()]  # operands lie elsewhere in the next iteration
    classes = {id(body[0]): "load"}
    done["load"] += 1
    while maker.free < _LAST_DESCRIPTOR:
        name = min(_CLASSES, key=lambda name: (done[name], rng.random()))
        done[name] += 1
        body.append(makers[name]())
        classes[id(body[-1])] = name
    rng.shuffle(body)
    for _ in range(rng.choice((1, 1, 2))):
        body.insert(rng.randint(0, len(body)), maker.scalar())
    start = rng.randint(0, len(body) - 2)
    end = rng.randint(start + 1, len(body)) if rng.random() < 0.5 else start
    levels = [body[:start], body[start:end], body[end:]]
    count = rng.randint(1, 3)
    for instruction in levels[1]:
        if id(instruction) in classes:
            done[classes[id(instruction)]] += count - 1
    sem = 0
    for level in levels:
        for _ in range(min(3, len(level) // 2)):
            _pair(rng, level, sem)
            sem += 1
        _arrival(rng, level, barrier)
    moves = [*maker.moves, Adv(d=1, dim=2, imm=rng.randint(-9, 9))]
    if levels[1]:
        levels[1] = [Loop(count=count, len=len(levels[1])), *levels[1]]
    last = levels[2] + moves
    if rng.random() < 0.25:
        # A branch over one instruction of the sequencer, taken or not.
        jump = Br(cond=rng.choice(list(Cond)), ra=rng.randint(0, 12), rb=rng.randint(0, 12), target=0)
        last += [jump, Set(r=3, imm=rng.randint(0, 40)), Sync(on=Queue.M)]
    return levels[0] + levels[1] + (last or [Sync(on=Queue.M)])


def _pair(rng: random.Random, level: list[Instruction], sem: int) -> None:
    """Let one instruction post a semaphore for which a later one of the same level waits."""
    i = rng.randrange(len(level) - 1)
    j = rng.randrange(i + 1, len(level))
    if hasattr(level[i], "post") and hasattr(level[j], "wait"):
        level[i] = replace(level[i], post=level[i].posts | 1 << sem)  # type: ignore[call-arg]
        level[j] = replace(level[j], wait=level[j].waits | 1 << sem)  # type: ignore[call-arg]


def _arrival(rng: random.Random, level: list[Instruction], sem: int) -> None:
    """Let a PUT from all slices to all arrive, and a later instruction wait for it."""
    for i, instruction in enumerate(level[:-1]):
        waiters = [j for j in range(i + 1, len(level)) if hasattr(level[j], "wait")]
        if isinstance(instruction, Put) and instruction.count == 0 and waiters:
            level[i] = replace(instruction, b=0, arrive=1, sem=sem, counter=sem - 8, expect=0)
            j = rng.choice(waiters)
            level[j] = replace(level[j], wait=level[j].waits | 1 << sem)  # type: ignore[call-arg]
            return


def memory_at_start(seed: int, rank: int) -> dict[Space, Bytes]:
    """Give what the spaces hold before the program: typed regions, 5 % of the values special."""
    rng = np.random.default_rng((seed, rank))
    spaces = {
        Space.DRAM: np.zeros(DRAM_END, np.uint8),
        Space.SPAD: np.zeros(SPAD_END, np.uint8),
        Space.SLOT: np.zeros(SLOT_END, np.uint8),
        Space.ACC: np.zeros(4 * ACC.elements, np.uint8),
        Space.CELL: np.zeros(4 * (LATE + 1), np.uint8),
    }
    for region in (*DRAM.values(), *SPAD.values(), *SLOT.values(), ACC):
        _fill(rng, spaces[region.space], region)
    entries = rng.integers(0, 8, LIST_BYTES // 4).astype(np.uint32)
    entries[:32] = rng.integers(0, LATE_MAX + 1, 32)
    records = np.zeros((RECORDS, 8), np.uint32)
    records[:, 0] = rng.choice([0, 1, 2, 7, 50, 2000], RECORDS)
    top_p = rng.choice([0, 1, 1 << 31, (1 << 32) - 1, 1 << 32, 3 << 29], RECORDS).astype(np.uint64)
    records[:, 1], records[:, 2] = top_p & np.uint64(0xFFFFFFFF), top_p >> np.uint64(32)
    records[:, 3:5] = rng.integers(0, 1 << 32, (RECORDS, 2))
    for space in (Space.SPAD, Space.DRAM):
        spaces[space][:LIST_BYTES] = entries.view(np.uint8)
        spaces[space][LIST_BYTES : LIST_BYTES + 32 * RECORDS] = records.reshape(-1).view(np.uint8)
    n = EXPONENTS.elements
    size = rng.choice([1, 8, 8, 30, 300], n)
    exponents = np.where(rng.random(n) < 0.05, -(2**31), rng.integers(-size, size + 1)).astype(np.int32)
    spaces[Space.SPAD][EXPONENTS.base : EXPONENTS.base + 4 * n] = exponents.view(np.uint8)
    n = KEYS.elements
    keys = np.where(rng.random(n) < 0.5, rng.integers(0, KEY_MAX + 1, n), rng.choice([0, 1, 2, KEY_MAX], n))
    spaces[Space.SPAD][KEYS.base : KEYS.base + 4 * n] = keys.astype(np.uint32).view(np.uint8)
    n = SCORES.elements
    scores = np.where(rng.random(n) < 0.2, _NAN, rng.choice(np.array(_SCORES, np.uint32), n))
    scores = np.where(rng.random(n // 64).repeat(64) < 0.2, _NAN, scores).astype(np.uint32)
    spaces[Space.SPAD][SCORES.base : SCORES.base + 4 * n] = scores.view(np.uint8)
    cells = rng.integers(0, LATE_MAX + 1, LATE + 1).astype(np.uint32)
    cells[0] = 0
    spaces[Space.CELL][:] = cells.view(np.uint8)
    return spaces


_FP32_SPECIAL = (
    0x7FC00000, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x403A18E3,
    0x7FC12345, 0xFFC00000, 0x3F800000,
)  # fmt: skip
_SCORES = (
    0x7F800000, 0xFF800000, 0x80000000, 0x80000000, 0, 0, 1, 0x80000001, 0x3F800000, 0x3F800000, 0xBF800000, 0x40000000,
    0x40000001, 0x7FC12345, 0xFFC00000,
)  # fmt: skip
_NAN = np.uint32(0x7FC00000)
_INT32_SPECIAL = (0x80000000, 0x7FFFFFFF, 0x7FFFFFFE, 0x80000001, 0, 1, 0xFFFFFFFF, 0xFFFF0000)


def _fill(rng: np.random.Generator, memory: Bytes, region: Region) -> None:
    n = region.elements
    special = rng.random(n) < 0.05
    if region.format is Format.FP32:
        values = (rng.standard_normal(n) * np.exp2(rng.integers(-8, 8, n))).astype(np.float32).view(np.uint32)
        words = np.where(special, rng.choice(np.array(_FP32_SPECIAL, np.uint32), n), values)
        memory[region.base : region.base + 4 * n] = words.astype(np.uint32).view(np.uint8)
    elif region.format is Format.INT32:
        size = rng.choice([5, 40, 1 << 12, 1 << 20, 1 << 23], n)
        values = rng.integers(-size, size).astype(np.int32).view(np.uint32)
        words = np.where(special, rng.choice(np.array(_INT32_SPECIAL, np.uint32), n), values)
        memory[region.base : region.base + 4 * n] = words.astype(np.uint32).view(np.uint8)
    elif region.format is Format.E8M0:
        memory[region.base : region.base + n] = _scales(rng, n)
    else:
        codes = rng.integers(0, 256, n * region.format.bits // 8).astype(np.uint8)
        if region.format is Format.E4M3:
            codes = np.where((codes & 127 == 127) & (rng.random(len(codes)) < 0.8), np.uint8(0x38), codes)
        memory[region.base : region.base + len(codes)] = codes
        memory[region.sbase : region.sbase + n // 32] = _scales(rng, n // 32)


def _scales(rng: np.random.Generator, n: int) -> Bytes:
    values = rng.integers(120, 136, n)
    special = rng.random(n) < 0.05
    return np.where(special, rng.choice([0, 1, 100, 200, 254, 255], n), values).astype(np.uint8)

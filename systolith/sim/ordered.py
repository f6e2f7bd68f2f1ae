"""Random programs whose queues may run side by side: semaphores order what touches the same bytes, and nothing else.

`_generate` makes programs for executors that go word by word. On hardware queues overlap; these programs have a token
between two instructions of different queues where one writes what the other touches, as the sanitizer counts it, and
no instruction whose result the definition leaves open (0001, Overlap). Their memories are filled by copies of their
own, so a chip runs them from nothing but DRAM.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np

from systolith.isa import (
    Adv,
    Br,
    Cond,
    Copy,
    Desc,
    Descriptor,
    Format,
    Halt,
    Image,
    Instruction,
    Loop,
    Program,
    Put,
    Queue,
    Readx,
    Requires,
    Set,
    Space,
    Sync,
)
from systolith.spec import BLOCK, PAIRS, RANK_REGISTER, SEMAPHORES, Chip

from ._generate import memory_at_start
from ._operators import ACC, DRAM, DRAM_END, LATE_MAX, LIST_BYTES, SLOT_END, SPAD, SPAD_END, Maker

__all__ = ["make_ordered"]

QUEUES: Final = 7
"""Queues and the sequencer."""
_SEQ: Final = int(Queue.SEQ)
_L: Final = int(Queue.L)
_ARRIVAL: Final = SEMAPHORES - 1
"""Semaphore of the barrier over the slices; its tokens come from the network."""
_UNHEARD: Final = SEMAPHORES - 2
"""Semaphore of arrivals that nobody waits for."""
_LIST_RING: Final = 32
_PAGES: Final = 8
_LAST_DESCRIPTOR: Final = 54
_COUNTERS: Final = 8
_START: Final = -(-DRAM_END // 64) * 64
"""Where DRAM holds what the spaces on the chip get."""
_PLACES: Final = {Space.SPAD: _START, Space.SLOT: _START + (64 << 10), Space.CELL: _START + (80 << 10)}
_DRAM_BYTES: Final = _START + (84 << 10)


class Range(NamedTuple):
    """Bytes of a space."""

    space: Space
    low: int
    high: int


Ranges = list[Range]


def ranges(d: Descriptor, ring: bool = True) -> Ranges:
    """Give the bytes that a tensor may touch, wherever cells, lists and rings put it."""
    e0, e1, e2 = (max(1, e) for e in d.ext)
    e2 += -e2 % (BLOCK if d.scale else 2 if d.format is Format.E2M1 else 1)
    rows = _PAGES << d.unit if d.via else e0
    low = high = 0
    reaches = [(rows - 1) * d.stride[0], (e1 - 1) * d.stride[1], (e2 - 1) * d.stride[2]]
    if d.xb and not d.via:
        reaches.append(LATE_MAX * d.step)
    if d.wrap and ring:
        reaches.append(d.wrap - 1)
    for reach in reaches:
        low, high = low + min(0, reach), high + max(0, reach)
    found = [Range(d.space, d.base + low * d.bits // 8, d.base + -(-(high + 1) * d.bits // 8))]
    if d.scale:
        found.append(Range(d.space, d.sbase + low // BLOCK, d.sbase + high // BLOCK + 1))
    return found


def cells(d: Descriptor) -> Ranges:
    """Give the cells that shift or shorten a tensor."""
    return [Range(Space.CELL, 4 * x, 4 * x + 4) for x in (d.xb, d.xe) if x]


def meet(x: Ranges, y: Ranges) -> bool:
    """Whether two lists of ranges share a byte."""
    return any(a.space is b.space and a.low < b.high and b.low < a.high for a in x for b in y)


@dataclass
class Touch:
    """What an instruction reads and writes."""

    reads: Ranges = field(default_factory=list)
    writes: Ranges = field(default_factory=list)


def touch_of(instruction: Instruction, registers: dict[int, Descriptor]) -> Touch:
    """Give what an instruction may touch, index lists apart, which nothing writes."""
    found = Touch()
    for letter, register in instruction.operands().items():
        d = registers[register]
        found.reads += cells(d)
        (found.writes if letter in instruction.WRITES else found.reads).extend(ranges(d))
    if instruction.NAME == "MATMUL":
        found.reads += found.writes
    if isinstance(instruction, Put) and instruction.count and instruction.b:
        found.reads.append(Range(Space.CELL, 4 * instruction.b, 4 * instruction.b + 4))
    if isinstance(instruction, Readx) and instruction.x:
        found.reads.append(Range(Space.CELL, 4 * instruction.x, 4 * instruction.x + 4))
    return found


def rows_apart(d: Descriptor) -> bool:
    """Whether no two rows share an element."""
    rows = _PAGES << d.unit if d.via else d.ext[0]
    (n, s), (m, t) = sorted(((rows, abs(d.stride[0])), (d.ext[1], abs(d.stride[1]))), key=lambda x: x[1])
    length = (d.ext[2] - 1) * abs(d.stride[2]) + 1
    return (n == 1 or s >= length) and (m == 1 or t >= (n - 1) * s + length)


def settled(instruction: Instruction, registers: dict[int, Descriptor]) -> bool:
    """Whether the definition says what every executor must do: no overlap that it leaves open."""
    operands = {letter: registers[register] for letter, register in instruction.operands().items()}
    written = {letter: d for letter, d in operands.items() if letter in instruction.WRITES}
    if instruction.NAME in ("MATMUL", "TOPK"):  # they take rows in an order of their own
        for d in written.values():
            if (d.via and d.ext[0] > (_PAGES - 1 << d.unit)) or not rows_apart(d):
                return False
    if instruction.NAME == "MATMUL":
        return True
    for letter, d in written.items():
        for other, o in operands.items():
            same = d == o and instruction.NAME == "VEC" and letter == "D" and other not in written
            if other != letter and not same and meet(ranges(d), ranges(o)):
                return False
        if any(meet(ranges(d), cells(o)) for o in operands.values()):
            return False
    return True


@dataclass
class _Done:
    """An instruction that has been placed."""

    queue: int
    number: int
    """Its place in its queue, from 1."""
    at: int
    """Its word."""
    touch: Touch
    knew: list[int]


class Order:
    """Words so far, and what each queue knows to be done when its next instruction starts."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.code: list[Instruction] = []
        self.semaphores: dict[tuple[int, int], int] = {}
        self.count = [0] * QUEUES
        self.known = [[0] * QUEUES for _ in range(QUEUES)]
        self.done: list[_Done] = []
        self.settled = 0
        """Copies of L up to this one are done when the next one of L starts."""

    def place(self, instruction: Instruction, touch: Touch) -> bool:
        """Add an instruction with the tokens that it needs; False where the semaphores do not suffice."""
        queue = int(instruction.queue)
        copy = isinstance(instruction, Copy) and queue == _L
        inside = copy and not instruction.free and any(r.space is not Space.DRAM for r in self._source(touch))  # type: ignore[attr-defined]
        if inside:
            self.settled = self.count[_L]
        needs = self._needs(queue, touch)
        if not self.wait_for(needs, queue, instruction):
            return False
        at = len(self.code) - 1
        self.count[queue] += 1
        self.done.append(_Done(queue, self.count[queue], at, touch, list(self.known[queue])))
        if copy and not instruction.free and touch.writes[0].space is Space.CELL:  # type: ignore[attr-defined]
            self.settled = self.count[_L]
        return True

    @staticmethod
    def _source(touch: Touch) -> Ranges:
        return [r for r in touch.reads if r.space is not Space.CELL]

    def _needs(self, queue: int, touch: Touch) -> dict[int, _Done]:
        """The latest instruction of each queue that must have ended and is not known to."""
        known = self.known[queue]
        for p in range(QUEUES):  # what the sequencer knows is known to all that it hands out
            known[p] = max(known[p], self.known[_SEQ][p])
        needs: dict[int, _Done] = {}
        for past in self.done:
            if past.queue == queue != _L or past.queue == _SEQ:
                continue
            if past.number <= (self.settled if past.queue == queue else known[past.queue]):
                continue
            if past.queue == queue:
                clash = meet(touch.writes, [r for r in past.touch.reads if r.space is not Space.CELL])
            else:
                clash = meet(touch.writes, past.touch.reads)
            if clash or meet(touch.writes + touch.reads, past.touch.writes):
                needs[past.queue] = past
        return needs

    def wait_for(self, needs: dict[int, _Done], queue: int, instruction: Instruction) -> bool:
        """Add an instruction that waits for others."""
        pairs = [(p, queue) for p in needs]
        new = [pair for pair in pairs if pair not in self.semaphores]
        if len(self.semaphores) + len(new) > _UNHEARD:
            return False
        for pair in new:
            self.semaphores[pair] = len(self.semaphores)
        mask = 0
        for p, past in needs.items():
            bit = 1 << self.semaphores[p, queue]
            mask |= bit
            word: Any = self.code[past.at]
            self.code[past.at] = replace(word, post=word.posts | bit)
            known = self.known[queue]
            known[:] = [max(x, y) for x, y in zip(known, past.knew, strict=True)]
            if p != queue:
                known[p] = max(known[p], past.number)
            else:
                self.settled = max(self.settled, past.number)
        if mask and queue != _SEQ and self.rng.random() < 0.15:
            self.code.append(Sync(on=Queue(queue), wait=mask))
            mask = 0
        if mask:
            word = instruction
            instruction = replace(word, wait=word.waits | mask)
        self.code.append(instruction)
        return True

    def barrier(self) -> None:
        """Let the sequencer wait for all that is under way."""
        last = {d.queue: d for d in self.done if d.queue != _SEQ and d.number > self.known[_SEQ][d.queue]}
        if last and not self.wait_for(last, _SEQ, Readx(r=self.rng.randint(8, 12), x=0)):
            raise RuntimeError("no semaphore is left for a barrier")
        self.settled = self.count[_L]
        for known in self.known:
            known[:] = self.count
        self.done.clear()


class _Writer:
    """Writes one program."""

    def __init__(self, rng: random.Random, chip: Chip, slices: int, put_dram: bool) -> None:
        self.rng, self.chip, self.slices, self.put_dram = rng, chip, slices, put_dram
        self.order = Order(rng)
        self.code = self.order.code
        for q in range(QUEUES - 1):  # barriers must not fail
            self.order.semaphores[q, _SEQ] = q
        self.constants: list[Descriptor] = [
            Descriptor(
                space=Space.SPAD, format=Format.INT32, base=4 * 32, ext=(1, 1, LIST_BYTES // 4 - 32), stride=(0, 0, 1),
                wrap=_LIST_RING,
            )
        ]  # fmt: skip

    def start(self) -> None:
        """Fill the memories of the chip."""
        raw = {Space.SPAD: (Queue.L, SPAD_END), Space.SLOT: (Queue.W, SLOT_END), Space.CELL: (Queue.L, 4 * 25)}
        for space, (queue, size) in raw.items():
            form, n = (Format.INT32, size // 4) if space is Space.CELL else (Format.INT8, size)
            first = 1 if space is Space.CELL else 0
            pair = [
                Descriptor(space=where, format=form, base=at + 4 * first, ext=(1, 1, n - first), stride=(0, 0, 1))
                for where, at in ((space, 0), (Space.DRAM, _PLACES[space]))
            ]
            self.code += [Desc(d=2 + i, k=len(self.constants) + i) for i in range(2)]
            self.constants += pair
            self.order.place(Copy(on=queue, d=2, a=3), Touch([*ranges(pair[1])], [*ranges(pair[0])]))
        self.code.append(Desc(d=1, k=0))
        self.code += [Set(r=r, imm=self.rng.randint(0, 40)) for r in range(1, 8)]
        self.order.barrier()

    def chunk(self, size: int) -> None:
        """Add some instructions, straight or in a loop."""
        rng = self.rng
        maker = Maker(rng, self.chip, self.slices, self.constants)
        drawn = [self._draw(maker) for _ in range(size)]
        kept = [x for x in drawn if x is not None]
        self.code += maker.loads
        if rng.random() < 0.4:
            self._place(maker, kept, self.code)
            self.code += maker.moves
            return
        self.order.barrier()
        head = len(self.code)
        self.code.append(Loop(count=rng.randint(2, 4), len=1))
        start = rng.randint(0, len(kept))
        end = rng.randint(start, len(kept)) if rng.random() < 0.4 else start
        self._place(maker, kept[:start], self.code)
        if end > start:
            self.order.barrier()
            inner = len(self.code)
            self.code.append(Loop(count=rng.randint(1, 3), len=1))
            self._place(maker, kept[start:end], self.code)
            self.order.barrier()
            self._close(inner)
        self._place(maker, kept[end:], self.code)
        self.order.barrier()
        self.code += [*maker.moves, Adv(d=1, dim=2, imm=rng.randint(-9, 9))]
        if rng.random() < 0.25:
            at = len(self.code)
            jump = Br(cond=rng.choice(list(Cond)), ra=rng.randint(0, 12), rb=rng.randint(0, 12), target=at + 2)
            self.code += [jump, Set(r=3, imm=rng.randint(0, 40)), Sync(on=Queue.M)]
        self._close(head)

    def _close(self, head: int) -> None:
        self.code[head] = replace(self.code[head], len=len(self.code) - head - 1)  # type: ignore[call-arg]

    def _place(self, maker: Maker, drawn: list[tuple[Instruction, Touch]], code: list[Instruction]) -> None:
        for instruction, touch in drawn:
            if self.rng.random() < 0.15:
                scalar = maker.scalar()
                if scalar.queue is Queue.SEQ:
                    self.order.place(scalar, touch_of(scalar, {}))
                else:
                    code.append(scalar)
            self.order.place(instruction, touch)

    def _draw(self, maker: Maker) -> tuple[Instruction, Touch] | None:
        """Draw an instruction that is legal whatever the other queues do; None where registers are used up."""
        rng = self.rng
        makers: list[Callable[[], Instruction]] = [
            lambda: maker.copy(Queue.L), lambda: maker.copy(Queue.L), lambda: maker.copy(Queue.W), maker.matmul,
            maker.matmul, maker.vec, maker.vec, maker.vec,
            lambda: rng.choice((maker.pick, maker.topk, maker.group, maker.vec))(), lambda: maker.copy(Queue.S),
        ]  # fmt: skip
        if self.slices == 1:
            makers.append(lambda: self._put(maker))
        for _ in range(60):
            if maker.free > _LAST_DESCRIPTOR:
                return None
            before = maker.free, len(maker.constants), len(maker.loads), len(maker.moves)
            instruction = rng.choice(makers)()
            registers = {load.d: maker.constants[load.k] for load in maker.loads}  # type: ignore[attr-defined]
            if instruction.NAME == "VEC":
                self._in_place(maker, instruction, registers)
            if settled(instruction, registers) and not self._slow(instruction, registers):
                if isinstance(instruction, Copy) and instruction.on is Queue.L and rng.random() < 0.2:
                    d = registers[instruction.d]
                    instruction = replace(instruction, free=int(d.space is Space.SPAD))
                return instruction, touch_of(instruction, registers)
            maker.free = before[0]
            for items, length in zip((maker.constants, maker.loads, maker.moves), before[1:], strict=True):
                del items[length:]  # type: ignore[attr-defined]
        return None

    def _in_place(self, maker: Maker, instruction: Instruction, registers: dict[int, Descriptor]) -> None:
        """Now and then: write a VEC's result exactly over its first operand."""
        names = instruction.operands()
        if "D" not in names or self.rng.random() > 0.3:
            return
        a, d = registers[names["A"]], registers[names["D"]]
        _, e1, e2 = a.ext
        apart = a.stride[1] >= e2 and a.stride[0] >= a.stride[1] * e1 and a.stride[2] == 1
        plain = a.format is d.format and a.format in (Format.FP32, Format.INT32) and a.space is Space.SPAD
        if plain and apart and not (a.wrap or d.wrap or a.via):
            at = next(load.k for load in maker.loads if load.d == names["D"])  # type: ignore[attr-defined]
            registers[names["D"]] = maker.constants[at] = a

    def _slow(self, instruction: Instruction, registers: dict[int, Descriptor]) -> bool:
        """Whether it takes so long that it is drawn less often."""
        names = instruction.operands()
        e0, e1, e2 = registers[names["A"]].ext if "A" in names else (1, 1, 1)
        n = max(1, e0) * e1 * e2
        cost = {"TOPK": n * registers[names["D"]].ext[2] if "D" in names else 0, "GROUP": n * n, "PICK": 20 * n}
        return cost.get(instruction.NAME, 0) / self.chip.lanes > 2000 and self.rng.random() < 0.9

    def _put(self, maker: Maker) -> Put:
        """Make a PUT of a chip with one slice: to itself, or to nobody."""
        rng = self.rng
        form = rng.choice(list(SPAD))
        more: dict[str, int] = {"count": rng.choice((0, 0, 1, 2, 2047))}
        if more["count"]:
            more |= {"b": rng.choice((0, rng.randint(1, 24))), "apart": rng.choice((0, 0, 1, 2))}
        if rng.random() < 0.4:
            more |= {
                "arrive": 1,
                "sem": _UNHEARD,
                "counter": rng.randrange(_COUNTERS),
                "expect": rng.randint(1000, 2047),
            }
        target = rng.choice((SPAD, DRAM)) if self.put_dram else SPAD
        made: Put = maker.transfer(lambda d, a: Put(d=d, a=a, **more), SPAD[form], target[form], rng.random() < 0.7)  # type: ignore[assignment]
        return made

    def exchange(self) -> None:
        """Let the slices send each other tensors: each to a place of its own, between two barriers over all."""
        rng = self.rng
        self.order.barrier()
        self._meet()
        written: Ranges = []
        read: Ranges = []
        for _ in range(rng.randint(1, 4)):
            maker = Maker(rng, self.chip, self.slices, self.constants, free=40)
            form = rng.choice(list(SPAD))
            bits, scale = form.bits, int(form.is_element and rng.random() < 0.6)
            inner = rng.choice((32, 64, 96)) if scale else 2 * rng.randint(1, 40)
            ext = (rng.randint(1, 4), rng.randint(1, 3), inner)
            size = ext[0] * ext[1] * ext[2]
            region = SPAD[form]
            room = region.elements - size * self.slices
            at = rng.randint(0, max(0, room // 32)) * 32
            if room < 32:
                continue
            d = Descriptor(
                space=Space.SPAD, format=form, scale=scale, base=region.base + at * bits // 8,
                sbase=region.sbase + at // 32 if scale else 0, ext=ext, stride=(ext[1] * ext[2], ext[2], 1), step=size,
            )  # fmt: skip
            a = maker.tensor(region, ext, scale=scale, dense=True)
            area = ranges(replace(d, ext=(ext[0] * self.slices, ext[1], ext[2])))
            if meet(area, written + read) or meet(ranges(a), written + area) or a.wrap:
                continue
            written += area
            read += ranges(a)
            count = rng.choice((0, 0, 1, self.slices, 2047))
            more = {"b": rng.randint(1, 24), "apart": rng.choice((0, 1))} if count else {}
            if rng.random() < 0.4:
                more |= {"arrive": 1, "sem": _UNHEARD, "counter": rng.randrange(_COUNTERS), "expect": 2000}
            put = Put(d=maker.take(d), a=maker.take(a), count=count, **more)
            self.code += [*maker.loads, Adv(d=put.d, dim=3, use_reg=1, r=RANK_REGISTER)]
            self.order.place(put, Touch([*cells(a), *ranges(a)], area))
        self.order.barrier()
        self._meet()

    def _meet(self) -> None:
        """A barrier over the slices."""
        k = len(self.constants)
        none = Descriptor(space=Space.SPAD, format=Format.INT32, base=0, ext=(1, 1, 0), stride=(0, 0, 1))
        self.constants.append(none)
        self.code += [Desc(d=60, k=k), Put(d=60, a=60, arrive=1, sem=_ARRIVAL, counter=15)]
        self.order.count[int(Queue.C)] += 1
        self.code.append(Readx(r=8, x=0, wait=1 << _ARRIVAL))


def _memory(seed: int, rank: int) -> dict[Space, Any]:
    """Memory at start: lists of which any eight entries that follow each other differ."""
    found = memory_at_start(seed, rank)
    rng = np.random.default_rng((seed, rank, 1))
    entries = np.tile(rng.permutation(_PAGES).astype(np.uint32), LIST_BYTES // 4 // _PAGES)[32:]
    for space in (Space.SPAD, Space.DRAM):
        found[space][4 * 32 : LIST_BYTES] = entries.view(np.uint8)
    return found


def make_ordered(
    seed: int, chip: Chip, slices: int, *, chunks: int = 4, size: int = 14, put_dram: bool = False
) -> Program:
    """Make a program of a few chunks, each straight or a loop. put_dram : PUTs may go to DRAM."""
    rng = random.Random(seed)
    writer = _Writer(rng, chip, slices, put_dram)
    writer.start()
    for _ in range(chunks):
        writer.chunk(rng.randint(4, size))
        if slices > 1 and rng.random() < 0.7:
            writer.exchange()
    writer.order.barrier()
    code = writer.code
    code.append(Halt(cause=rng.randrange(1 << 16)))
    images = []
    for rank in range(slices):
        memory = _memory(seed, rank)
        images.append(Image(rank, 0, memory[Space.DRAM].tobytes()))
        images += [Image(rank, at, memory[space].tobytes()) for space, at in _PLACES.items()]
    return Program(
        name=f"fuzz {seed}",
        words=tuple(i.encode() for i in code),
        constants=tuple(writer.constants),
        sem_init=(0,) * SEMAPHORES,
        requires=Requires(
            slices=slices, dram_bytes=_DRAM_BYTES, spad_bytes=SPAD_END, slot_bytes=SLOT_END, acc_bytes=4 * ACC.elements,
            pairs=PAIRS,
        ),
        images=tuple(images),
        lines=tuple(f"fuzz.py:{n}" for n in range(len(code))),
    )  # fmt: skip

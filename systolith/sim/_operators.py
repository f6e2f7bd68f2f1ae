"""Random legal instructions and their tensors for the fuzz; `_generate` makes programs of them.

Memory is cut into typed regions, alike in DRAM and scratchpad, so that what one instruction writes another reads as
values and not as noise. Cells 1..LATE hold 0..4 all the time and may shift or shorten any operand.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from systolith.isa import (
    Adv,
    Alu,
    AluFn,
    Copy,
    Desc,
    Descriptor,
    Format,
    Func,
    Group,
    Instruction,
    Matmul,
    Op1,
    Op2,
    Pick,
    Put,
    Queue,
    Readx,
    Red,
    Ring,
    Set,
    Space,
    Sync,
    Topk,
    Vec,
    Zero,
)  # fmt: skip
from systolith.spec import BLOCK, PAIRS, SEMAPHORES, Chip

ELEMENTS: Final = 1024
"""Most elements of one instruction."""
MACS: Final = 32 * 1024
"""Most multiply-adds of one instruction."""
LATE: Final = 24
"""Cells 1..LATE hold 0..LATE_MAX."""
LATE_MAX: Final = 4
_LIST: Final = 128
"""Entries of the index list at byte 0 of the scratchpad; each 0..7."""
LIST_RING: Final = 64
"""Places that the list's own descriptor may move to; what is left is as long as a list must be."""


class Region(NamedTuple):
    """Part of a space that holds one format."""

    space: Space
    format: Format
    base: int
    sbase: int
    elements: int


def _regions(space: Space, start: int, parts: tuple[tuple[Format, int], ...]) -> tuple[dict[Format, Region], int]:
    """Lay out regions one after the other; the element formats have their scales behind them."""
    found, at = {}, start
    for form, elements in parts:
        size = elements * form.bits // 8
        found[form] = Region(space, form, at, at + size, elements)
        at += size + (elements // BLOCK if form.is_element else 0)
        at += -at % 4
    return found, at


_WIDE: Final = (
    (Format.FP32, 4096), (Format.INT32, 3072), (Format.E2M1, 8192), (Format.E4M3, 8192), (Format.INT8, 8192),
    (Format.E8M0, 1024),
)  # fmt: skip
_SLOT: Final = ((Format.E2M1, 4096), (Format.E4M3, 2688), (Format.INT8, 2688))
LIST_BYTES: Final = 4 * _LIST
RECORDS: Final = 16
"""Sampling records {k, P, P high, seed, seed high} behind the list, 8 words each."""
EXPONENTS: Final = Region(Space.SPAD, Format.INT32, LIST_BYTES + 32 * RECORDS, 0, 1280)
"""Exponents of SHIFTADD, -2^31 among them; read only. The definition shifts exact integers by them: no noise here."""
KEYS: Final = Region(Space.SPAD, Format.INT32, EXPONENTS.base + 4 * EXPONENTS.elements, 0, 768)
"""Keys of GROUP, 0..KEY_MAX; read only."""
KEY_MAX: Final = 47
SCORES: Final = Region(Space.SPAD, Format.FP32, KEYS.base + 4 * KEYS.elements, 0, 768)
"""Rows of TOPK with many equal values, -0, NaN and rows of nothing but NaN; read only."""
_START: Final = SCORES.base + 4 * SCORES.elements
SPAD, SPAD_END = _regions(Space.SPAD, _START, _WIDE)
DRAM, DRAM_END = _regions(Space.DRAM, _START, _WIDE)
SLOT, SLOT_END = _regions(Space.SLOT, 0, _SLOT)
ACC: Final = Region(Space.ACC, Format.FP32, 0, 0, 2048)


@dataclass
class Maker:
    """Makes one program. `lines` says what each instruction is there for."""

    rng: random.Random
    chip: Chip
    slices: int
    constants: list[Descriptor] = field(default_factory=list)
    free: int = 2
    """Next descriptor register; register 1 is the index list."""
    loads: list[Instruction] = field(default_factory=list)
    moves: list[Instruction] = field(default_factory=list)

    # --- descriptors ---

    def take(self, *descriptors: Descriptor) -> int:
        """Put descriptors into registers that follow each other; give the first."""
        first = self.free
        for d in descriptors:
            self.loads.append(Desc(d=self.free, k=len(self.constants)))
            self.constants.append(d)
            self.free += 1
        return first

    def tensor(
        self, region: Region, ext: tuple[int, int, int], *, scale: int = 0, read: bool = True, plain: bool = False,
        span: tuple[int, int, int] | None = None, dense: bool = False,
    ) -> Descriptor:  # fmt: skip
        """Place a tensor somewhere in a region.

        span : extents that are accessed, where they are not `ext`    plain : no cells, no list, no ring
        dense : inner stride 1
        """
        rng, form = self.rng, region.format
        e0, e1, e2 = (max(1, e) for e in (span or ext))
        grain = BLOCK if scale else 2 if form is Format.E2M1 else 1
        e2 += -e2 % grain
        inner = 1 if dense or grain > 1 or not read else rng.choice((1, 1, 1, 0, 2))
        length = (e2 - 1) * inner + 1
        length += -length % grain
        room = region.elements - length - grain * (LATE_MAX + 9)
        s1 = self.stride(length, e1, room // 4, grain, read)
        room -= s1 * (e1 - 1)
        via = unit = xb = xe = step = wrap = 0
        rows, low = e0, 0
        late = not plain and region.space is not Space.CELL
        if late and rng.random() < 0.2 and e0 + LATE_MAX <= _LIST - LIST_RING:
            via, unit = 1, rng.choice((0, 1, 2))
            rows = 8 << unit
        s0 = self.stride(length, rows, room, grain, read)
        if via and s0 == 0 and not read:
            via, rows = 0, e0
        reach = s0 * (rows - 1)
        room -= reach
        if read and s0 and rng.random() < 0.1 and not via:
            low, s0 = reach, -s0
        if late and rng.random() < 0.6:
            xb = rng.randint(1, LATE)
            if not via:
                step = grain * rng.choice((0, 1, 2, max(1, room // (grain * (LATE_MAX + 1)))))
                step = min(step, max(0, room // (grain * LATE_MAX)) * grain)
                room -= step * LATE_MAX
        if late and rng.random() < 0.3 and ext[0] >= LATE_MAX:
            xe = rng.randint(1, LATE)
        if late and room > 4 * grain and rng.random() < 0.07:
            wrap = grain * rng.randint(1, room // (2 * grain))
            room -= wrap
        at = low + grain * rng.randint(0, max(0, room // grain))
        return Descriptor(
            space=region.space, format=form, scale=scale, base=region.base + at * form.bits // 8,
            sbase=region.sbase + at // BLOCK if scale else 0, ext=ext, stride=(s0, s1, inner), step=step, xb=xb, xe=xe,
            via=via, unit=unit, wrap=wrap,
        )  # fmt: skip

    def stride(self, length: int, count: int, room: int, grain: int, read: bool) -> int:
        """Choose an outer stride; 0 where the rows would not fit, which only a read may."""
        most = room // max(1, count - 1) if count > 1 else 4 * length
        if read and self.rng.random() < 0.15:
            return 0
        if most < length:
            return (max(0, most) // grain) * grain if read else grain * max(0, most // grain)
        return length + grain * self.rng.choice((0, 0, 0, self.rng.randint(0, (most - length) // grain)))

    def wander(self, register: int, d: Descriptor) -> None:
        """Move a ring, or shorten an extent, once an iteration."""
        if d.wrap:
            dim = self.rng.choice((0, 1, 3) if d.scale or d.format is Format.E2M1 else (0, 1, 2, 3))
            self.moves.append(Adv(d=register, dim=dim, imm=self.rng.randint(-3, 7)))
        elif self.rng.random() < 0.03 and d.ext[0] > 1 and not d.xe:
            self.moves.append(Adv(d=register, dim=0, kind=1, imm=self.rng.randint(0, d.ext[0])))

    def operands(self, *descriptors: Descriptor) -> int:
        """Take registers for descriptors and let some of them wander."""
        first = self.take(*descriptors)
        for i, d in enumerate(descriptors):
            self.wander(first + i, d)
        return first

    def extents(self, most: int, grain: int = 1, wide: int = 0) -> tuple[int, int, int]:
        """Three extents with at most `most` elements, sometimes 0; `wide` is met and passed by the inner one."""
        rng = self.rng
        inner = rng.choice(
            (grain, grain * rng.randint(1, 8), grain * rng.randint(1, max(1, 128 // grain)), wide or grain)
        )
        inner = max(grain, min(inner, most) // grain * grain)
        left = max(1, most // inner)
        e0 = rng.randint(1, min(left, rng.choice((1, 4, 16))))
        e1 = rng.randint(1, min(max(1, left // e0), rng.choice((1, 2, 12))))
        return (0 if rng.random() < 0.01 else e0), e1, inner

    # --- instructions ---

    def copy(self, queue: Queue) -> Instruction:
        """Make a COPY of queue W, L or S."""
        rng = self.rng
        if queue is Queue.L and rng.random() < 0.1:
            return self.late_cells()
        if queue is Queue.S and rng.random() < 0.1:
            cells = Descriptor(
                space=Space.CELL, format=Format.INT32, base=4 * rng.randint(1, 50), ext=(1, 1, 8), stride=(0, 0, 1)
            )
            if rng.random() < 0.5:
                return Ring(a=self.take(cells))
            return Copy(
                on=queue, d=self.take(self.tensor(DRAM[Format.INT32], (1, 1, 8), read=False)), a=self.take(cells)
            )
        sources, targets = {
            Queue.W: ((DRAM,), SLOT), Queue.L: ((DRAM, DRAM, SPAD), SPAD), Queue.S: ((SPAD,), DRAM),
        }[queue]  # fmt: skip
        form = rng.choice(list(SLOT if queue is Queue.W else DRAM))
        return self.transfer(
            lambda d, a: Copy(on=queue, d=d, a=a), rng.choice(sources)[form], targets[form], rng.random() < 0.7
        )

    def late_cells(self) -> Instruction:
        """Make a COPY of list entries to the cells that shift operands, from a place that such a cell shifts.

        Entries 0..31 hold 0..LATE_MAX, the others up to 7, which is too much for a cell.
        """
        rng = self.rng
        n, step = rng.randint(4, 12), rng.randint(1, 3)
        a = Descriptor(
            space=Space.SPAD, format=Format.INT32, base=4 * rng.randint(0, 31 - n - step * LATE_MAX), ext=(1, 1, n),
            stride=(0, 0, 1), step=step, xb=rng.randint(1, LATE),
        )  # fmt: skip
        d = Descriptor(
            space=Space.CELL,
            format=Format.INT32,
            base=4 * rng.randint(1, LATE - n + 1),
            ext=(1, 1, n),
            stride=(0, 0, 1),
        )
        return Copy(on=Queue.L, d=self.take(d), a=self.take(a))

    def transfer(self, make: Any, source: Region, target: Region, scaled: bool) -> Instruction:
        """Make a COPY or a PUT between two regions of one format; the extents of the two need not agree."""
        rng, form = self.rng, source.format
        scale = int(form.is_element and scaled)
        grain = BLOCK if scale else 2 if form is Format.E2M1 else 1
        ext = self.extents(min(ELEMENTS, target.elements // 8), grain)
        other = list(ext)
        if rng.random() < 0.3:
            dim = rng.randrange(3)
            other[dim] = max(1, other[dim] + rng.randint(-other[dim], 3))
            other[2] += -other[2] % (2 if form is Format.E2M1 else 1)
        dense = source.space is target.space
        a = self.tensor(source, (other[0], other[1], other[2]), scale=scale, dense=dense)
        d = self.tensor(target, ext, scale=scale, read=False)
        return make(self.operands(d), self.operands(a))  # type: ignore[no-any-return]

    def put(self) -> Instruction:
        """Make a PUT; one that all slices make to all may be waited for, others post a semaphore nobody waits for."""
        rng = self.rng
        form = rng.choice(list(SPAD))
        more: dict[str, int] = {"count": rng.choice((0, 0, 1, 2, self.slices, 2047))}
        if more["count"] and rng.random() < 0.7:
            more["b"] = rng.randint(1, LATE)
        if more["count"]:
            more["apart"] = rng.choice((0, 0, 1, 2))
        if rng.random() < 0.4:
            more |= {"arrive": 1, "sem": SEMAPHORES - 1, "counter": rng.randrange(8), "expect": rng.randint(100, 2047)}
        target = rng.choice((SPAD, SPAD, DRAM))[form]
        return self.transfer(lambda d, a: Put(d=d, a=a, **more), SPAD[form], target, rng.random() < 0.7)

    def matmul(self) -> Instruction:
        """Make a MATMUL of any pair, by columns or by rows, one or two terms."""
        rng = self.rng
        fa, fb = (Format[name] for name in rng.choice(PAIRS).split("x"))
        by_rows = int(rng.random() < 0.3)
        terms = int(not by_rows and rng.random() < 0.25)
        home = SPAD[fb] if rng.random() < 0.3 else SLOT[fb]
        K = BLOCK * rng.choice((1, 2, 3, 8))
        while True:
            n = rng.choice((1, 2, 3, self.chip.array_cols, self.chip.columns + 1, rng.randint(1, 40)))
            n = min(n, 96)
            n += n % 2 if by_rows else 0
            rows = (rng.choice((1, 1, 2, rng.randint(1, 12))), rng.choice((1, 1, 3)))
            if (
                (K << terms) * n <= home.elements // 2
                and rows[0] * rows[1] * K * n <= MACS
                and rows[0] * rows[1] * n <= ELEMENTS
            ):
                break
            K = max(BLOCK, K // 2 // BLOCK * BLOCK)
        a = self.tensor(SPAD[fa], (*rows, K), scale=1)
        if by_rows:
            b = self.tensor(home, (K, 1, n), plain=True, dense=True)
            b = Descriptor(**{**_fields(b), "xe": 0})
        else:
            n0 = next(x for x in (rng.randint(1, 6), 3, 2, 1) if n % x == 0)
            b = self.tensor(home, (n0, n // n0, K << terms), scale=1)
            b = Descriptor(**{**_fields(b), "xe": 0})
        d = self.tensor(ACC, (*rows, n + rng.randint(0, 3)), read=False, span=(*rows, n), dense=True)
        d = Descriptor(**{**_fields(d), "xe": 0})
        registers = self.take(d), self.take(a), self.take(b)
        for register, operand in zip(registers, (d, a, b), strict=True):
            if operand.wrap:
                self.wander(register, operand)
        zero = rng.choice((Zero.NO, Zero.YES, Zero.FIRST, Zero.FIRST))
        return Matmul(d=registers[0], a=registers[1], b=registers[2], zero=zero, by_rows=by_rows, terms=terms)

    def source(self, integer: bool, ext: tuple[int, int, int]) -> Descriptor:
        """Choose an operand that reads as INT32 or as FP32."""
        rng = self.rng
        if integer:
            return self.tensor(SPAD[Format.INT32], ext)
        if rng.random() < 0.2:
            return self.tensor(ACC, ext)
        form = rng.choice((Format.FP32,) * 4 + (Format.E2M1, Format.E4M3, Format.INT8, Format.E8M0))
        scale = int(form.is_element and rng.random() < 0.7)
        if form is Format.E2M1 and ext[2] % 2:
            form = Format.FP32
        return self.tensor(SPAD[form], ext, scale=scale * int(form.is_element))

    def vec(self) -> Instruction:
        """Make a VEC: operations by chance, among those that fit the kind of the value at each stage."""
        rng = self.rng
        ext = self.extents(ELEMENTS, wide=self.chip.lanes + 1)
        integer = rng.random() < 0.35
        fields: dict[str, Any] = {}
        op1 = rng.choice(
            (
                Op1.NONE,
                Op1.IADD,
                Op1.ISUB,
                Op1.IMAX,
                Op1.IMIN,
                Op1.IEQ,
                Op1.ILT,
                Op1.EXP2,
                Op1.EXP2,
                Op1.EXP2,
                Op1.WEIGHT,
            )
            if integer
            else (Op1.NONE, Op1.ADD, Op1.SUB, Op1.MUL, Op1.MAX, Op1.MIN, Op1.SHIFTADD)
        )
        a = self.source(integer, ext)
        shift = op1 is Op1.SHIFTADD
        fields["a"] = self.operands(a)
        if op1 is not Op1.NONE:
            fields["b"] = self.operands(self.source(integer, ext))
        first_kind = integer
        if op1 is Op1.EXP2:
            integer = False
        after_op1 = integer
        choice = [Op2.NONE, Op2.NONE]
        choice += (
            [Op2.IADD, Op2.ISUB, Op2.IMAX, Op2.IMIN]
            if integer
            else [Op2.ADD, Op2.SUB, Op2.MUL, Op2.MAX, Op2.MIN, Op2.MULM]
        )
        op2 = Op2.NONE if shift else rng.choice(choice)
        func = Func.NONE if integer else rng.choice((Func.NONE, Func.NONE, Func.RCP, Func.RSQRT, Func.FIX, Func.FIX))
        if shift:
            exponents = [self.tensor(EXPONENTS, ext) for _ in range(2)]
            fields["c"] = self.operands(*exponents)
        elif op2 is not Op2.NONE:
            fields["c"] = self.operands(self.source(integer, ext))
        if func is Func.FIX:
            integer = True
            if op2 is Op2.NONE and not shift and rng.random() < 0.6:
                fields |= {"mask": 1, "c": rng.randint(0, 12), "rj": rng.randint(0, 12)}
                fields |= {"rw": rng.choice((0, rng.randint(1, 12))), "group": rng.choice((0, 1, 2, 3))}
        reds = [Red.NONE, Red.NONE]
        reds += [] if after_op1 else [Red.SUM]
        reds += [] if first_kind else [Red.SUMSQ]
        reds += [Red.CEILMAX, Red.IMAX, Red.ISUM] if integer else [Red.FMAX, Red.ROWSCALE]
        red = rng.choice(reds)
        forms = [Format.INT32] if integer else [Format.FP32, Format.E2M1, Format.E4M3, Format.INT8]
        form = rng.choice(forms)
        padded = (ext[0], ext[1], ext[2] + -ext[2] % BLOCK)
        if red is Red.ROWSCALE:
            form = rng.choice((Format.E2M1, Format.E4M3, Format.INT8))
            even = (ext[0], ext[1], ext[2] + ext[2] % 2)
            d = self.tensor(SPAD[form], even if form is Format.E2M1 else ext, read=False)
        elif form.is_element:
            d = self.tensor(SPAD[form], padded, scale=1, read=False)
        else:
            d = self.tensor(SPAD[form], ext, read=False)
        d = Descriptor(**{**_fields(d), "xe": 0})
        if red is Red.NONE:
            fields["d"] = self.operands(d)
        else:
            source_int = after_op1 if red is Red.SUM else False if red is Red.SUMSQ else integer
            e_form = Format.E8M0 if red is Red.ROWSCALE else Format.INT32 if source_int else Format.FP32
            e = self.tensor(SPAD[e_form], (ext[0], ext[1], 1), read=False)
            e = Descriptor(**{**_fields(e), "xe": 0})
            if ext[0] == ext[1] == 1 and e_form is not Format.E8M0 and rng.random() < 0.2:
                e = Descriptor(
                    space=Space.CELL, format=e_form, base=4 * rng.randint(LATE + 1, 63), ext=(1, 1, 1), stride=(1, 1, 1)
                )
            fields["d"] = self.operands(d, e)
        return Vec(op1=op1, op2=op2, func=func, red=red, **fields)

    def pick(self) -> Instruction:
        """Make a PICK."""
        rng = self.rng
        ext = (1, 1, rng.randint(1, ELEMENTS))
        record = Descriptor(
            space=Space.SPAD,
            format=Format.INT32,
            base=LIST_BYTES + 32 * rng.randrange(RECORDS),
            ext=(1, 1, 5),
            stride=(0, 0, 1),
        )
        d = self.tensor(SPAD[Format.INT32], (1, 1, 1), read=False)
        c = self.take(record, self.tensor(SPAD[Format.INT32], (1, 1, 1), plain=True))
        logits = self.tensor(rng.choice((SPAD[Format.FP32], ACC)), ext, plain=True)
        weights = self.tensor(SPAD[Format.INT32], ext, plain=True)
        return Pick(d=self.take(d), a=self.take(logits), b=self.take(weights), c=c)

    def topk(self) -> Instruction:
        """Make a TOPK that keeps from one value to all of a row."""
        rng = self.rng
        region = rng.choice((SCORES, SCORES, SPAD[Format.FP32], ACC))
        ext = self.extents(256 if region is SCORES else ELEMENTS, rng.choice((1, 4)), wide=self.chip.lanes + 1)
        most = min(64, ext[2])
        kept = (ext[0], ext[1], rng.choice((1, most, rng.randint(1, most), rng.randint(1, most))))
        d, e = (self.tensor(SPAD[form], kept, read=False) for form in (Format.INT32, Format.FP32))
        if ext[0] == ext[1] == 1 and kept[2] <= 8 and rng.random() < 0.3:
            e = Descriptor(
                space=Space.CELL, format=Format.FP32, base=4 * rng.randint(LATE + 1, 56), ext=kept, stride=(0, 0, 1)
            )
        d, e = (Descriptor(**{**_fields(x), "xe": 0}) for x in (d, e))
        return Topk(d=self.operands(d, e), a=self.operands(self.tensor(region, ext)))

    def group(self) -> Instruction:
        """Make a GROUP of up to 256 pairs."""
        rng = self.rng
        a = self.tensor(KEYS, self.extents(256, wide=self.chip.lanes + 1))
        pairs = max(1, a.ext[0]) * a.ext[1] * a.ext[2]
        # No index lists: where they put two rows at one address, which of them stays is not said.
        d = self.tensor(SPAD[Format.INT32], (2, 1, pairs + rng.randint(0, 3)), read=False, plain=True)
        e = self.tensor(SPAD[Format.INT32], (KEY_MAX + 1 + rng.randint(0, 3), 1, 4), read=False, plain=True)
        b = self.tensor(SPAD[Format.INT32], (1, 1, 1), read=False)
        if rng.random() < 0.3:
            b = Descriptor(space=Space.CELL, format=Format.INT32, base=4 * rng.randint(LATE + 1, 63), ext=(1, 1, 1))
        written = [Descriptor(**{**_fields(x), "xe": 0}) for x in (d, e, b)]
        first = self.take(*written)
        for register, operand in enumerate(written, first):
            if operand.wrap:
                self.wander(register, operand)
        return Group(d=first, a=self.operands(a), b=first + 2)

    def scalar(self) -> Instruction:
        """Make an instruction of the sequencer, or a SYNC."""
        rng = self.rng
        kind = rng.randrange(4)
        if kind == 0:
            return Set(r=rng.randint(0, 12), imm=rng.choice((rng.randint(0, 40), rng.getrandbits(32))))
        if kind == 1:
            fn = rng.choice([f for f in AluFn if f is not AluFn.CEILDIV])
            more = {"use_imm": 1, "imm": rng.randint(-50, 50)} if rng.random() < 0.5 else {"rb": rng.randint(0, 31)}
            return Alu(r=rng.randint(0, 12), ra=rng.randint(0, 31), fn=fn, **more)
        if kind == 2:
            return Readx(r=rng.randint(0, 12), x=rng.randint(0, 63))
        return Sync(on=rng.choice([q for q in Queue if q is not Queue.SEQ]))


def _fields(d: Descriptor) -> dict[str, Any]:
    """Fields of a descriptor, without what it has computed from them."""
    return {name: getattr(d, name) for name in Descriptor.__dataclass_fields__}

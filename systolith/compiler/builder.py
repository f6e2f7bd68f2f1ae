"""Writes a program: words, descriptor constants, loops, branches, semaphores and registers by name.

A kernel calls the methods here in program order. Every word remembers the kernel line that wrote it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from systolith.isa.choice import Group, Topk
from systolith.isa.collective import Put
from systolith.isa.descriptor import DESCRIPTOR_BYTES, Descriptor, Format, Space
from systolith.isa.dma import Copy
from systolith.isa.host import Ring
from systolith.isa.instruction import Instruction, Queue
from systolith.isa.matrix import Matmul, Zero
from systolith.isa.sequencer import Adv, Alu, AluFn, Br, Cond, Desc, Halt, Loop, Readx, Set, Sync
from systolith.isa.vector import Func, Op1, Op2, Pick, Red, Vec
from systolith.spec.errors import ProgramError
from systolith.spec.limits import DESCRIPTORS, RANK_REGISTER, REGISTERS, SEMAPHORES, WORD_BYTES

__all__ = ["LOOP_WORDS", "SEMAPHORE", "Builder", "Label", "tensor"]

SEMAPHORE = {
    name: number
    for number, name in enumerate((
        "slot_full", "slot_free",        # W to M and back: weight slots
        "acc_full", "acc_free",          # M to V and back: accumulator halves
        "stage_full", "stage_free",      # V to C and back: what is sent
        "operand",                       # network to M: a gathered operand
        "partials",                      # network to V: partial sums of squares, attention partials
        "own_weights",                   # L to C: weights that a slice of the grid sends on
        "arrived",                       # network to L: K and V of this step; logits
        "kv_full", "kv_free",            # L to M and back: parts of K and V
        "load_full", "load_free",        # L to V and back: scales of V, gains, biases, residual tiles
        "p_full", "p_free",              # V to M and back: probabilities
        "store_full", "store_free",      # V to S and back: what is stored or told to the host
        "cached",                        # S to L: K and V of this step are in memory; on the grid, residual tiles
        "loaded",                        # L to the sequencer: cells
        "decided",                       # V to the sequencer: how many requests live
        "released",                      # V to L: index lists and tables may be read or replaced
        "residual",                      # S to L: the residual tile is stored, its buffer free
        "consumed",                      # M to C: a round of weights on the grid
    ))
}  # fmt: skip
"""Semaphores of a program by name, with the queue that posts and the one that waits."""

assert len(SEMAPHORE) <= SEMAPHORES

SEMAPHORE["columns"] = SEMAPHORE["residual"]
"""Network to V: columns that the slice before has made. Only where the residual stream stays in the scratchpad, so that
the other is not used."""

SEMAPHORE["team"] = SEMAPHORE["consumed"]
"""Network to C: rows of the other members of a team. Steps on the grid are over when teams gather."""

LOOP_WORDS = next(bits for bits in Loop.LAYOUT if bits.name == "len").bounds()[1]
"""Most words that LOOP repeats."""

_HELPERS = ("builder.py", "context.py", "contextlib.py")
"""Files that write words for a kernel: not the source line a reader wants."""

_HERE = Path(__file__).resolve().parent


def mask(names: str) -> int:
    """Mask of the semaphores named in a string, separated by spaces."""
    return sum(1 << SEMAPHORE[name] for name in names.split())


def tensor(
    space: Space,
    fmt: str,
    base: int,
    ext: tuple[int, int, int],
    stride: tuple[int, int, int],
    *,
    sbase: int | None = None,
    step: int = 0,
    xb: int = 0,
    xe: int = 0,
    via: int = 0,
    unit: int = 0,
    wrap: int = 0,
) -> Descriptor:
    """Describe a tensor; scales where `sbase` is given. Strides, step and wrap in elements, bases in bytes."""
    return Descriptor(
        space=space, format=Format[fmt], scale=int(sbase is not None), base=base, sbase=sbase or 0, ext=ext,
        stride=stride, step=step, xb=xb, xe=xe, via=via, unit=unit, wrap=wrap,
    )  # fmt: skip


@dataclass(eq=False)
class Label:
    """A place in the program that branches may name before it is known."""

    target: int | None = None
    users: list[int] = field(default_factory=list)


@dataclass
class Builder:
    """A program in the making."""

    instructions: list[Instruction] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    constants: dict[Descriptor, int] = field(default_factory=dict)
    _registers: list[int] = field(
        default_factory=lambda: [r for r in range(REGISTERS - 1, 0, -1) if r not in (RANK_REGISTER, RANK_REGISTER - 1)]
    )
    _descriptors: list[int] = field(default_factory=lambda: list(range(DESCRIPTORS - 1, 0, -1)))
    tensor_name: str = ""
    """Named in the source line beside the kernel."""
    longest_loop: int = 0
    """Words of the longest loop that is closed."""

    @property
    def program_bytes(self) -> int:
        """Program memory that the words and constants take so far."""
        return WORD_BYTES * len(self.instructions) + DESCRIPTOR_BYTES * len(self.constants)

    def fits(self, program_bytes: int) -> bool:
        """Whether so much program memory holds what there is so far, and the field of every loop its length."""
        return self.program_bytes <= program_bytes and self.longest_loop <= LOOP_WORDS

    def reserve(self, d: int) -> None:
        """Keep a descriptor register out of the pool."""
        self._descriptors.remove(d)

    # ---- words -----------------------------------------------------------------------------------------------------

    def emit(self, instruction: Instruction) -> int:
        """Add a word; give its place."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.endswith(_HELPERS):
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        file = path.relative_to(_HERE).as_posix() if path.is_relative_to(_HERE) else path.name
        self.instructions.append(instruction)
        self.lines.append(f"{file}:{frame.f_lineno}{' ' + self.tensor_name if self.tensor_name else ''}")
        return len(self.instructions) - 1

    # ---- registers and descriptors ---------------------------------------------------------------------------------

    def register(self) -> int:
        """Take a free register."""
        if not self._registers:
            raise ProgramError("the kernels need more than 29 registers at once.")
        return self._registers.pop()

    @contextmanager
    def registers(self, count: int) -> Iterator[tuple[int, ...]]:
        """Take registers for a while."""
        taken = tuple(self.register() for _ in range(count))
        try:
            yield taken
        finally:
            self._registers.extend(reversed(taken))

    def descriptor(self) -> int:
        """Take a free descriptor register."""
        if not self._descriptors:
            raise ProgramError("the kernels need more than 63 descriptors at once.")
        return self._descriptors.pop()

    def release(self, r: int) -> None:
        """Give a register back."""
        self._registers.append(r)

    def release_descriptor(self, d: int) -> None:
        """Give a descriptor register back."""
        self._descriptors.append(d)

    @contextmanager
    def descriptors(self, count: int) -> Iterator[tuple[int, ...]]:
        """Take descriptor registers for a while; they are copied at dispatch, so they may be reused at once."""
        taken = tuple(self.descriptor() for _ in range(count))
        try:
            yield taken
        finally:
            self._descriptors.extend(reversed(taken))

    @contextmanager
    def pair(self) -> Iterator[int]:
        """Take two descriptor registers in a row, D[d] and D[d + 1]."""
        free = set(self._descriptors)
        d = max((x for x in free if x + 1 in free), default=0)
        if not d:
            raise ProgramError("the kernels need more than 63 descriptors at once.")
        self._descriptors = [x for x in self._descriptors if x not in (d, d + 1)]
        try:
            yield d
        finally:
            self._descriptors = [d, d + 1, *self._descriptors]

    # ---- sequencer -------------------------------------------------------------------------------------------------

    def set(self, r: int, value: int) -> None:
        """R[r] = value."""
        self.emit(Set(r=r, imm=value & 0xFFFFFFFF))

    def alu(self, fn: AluFn, r: int, ra: int, value: int) -> None:
        """R[r] = fn(R[ra], value)."""
        self.emit(Alu(r=r, ra=ra, fn=fn, use_imm=1, imm=value))

    def alu_r(self, fn: AluFn, r: int, ra: int, rb: int) -> None:
        """R[r] = fn(R[ra], R[rb])."""
        self.emit(Alu(r=r, ra=ra, rb=rb, fn=fn))

    def move(self, r: int, ra: int) -> None:
        """R[r] = R[ra]."""
        self.alu(AluFn.ADD, r, ra, 0)

    def load(self, d: int, constant: Descriptor) -> None:
        """D[d] = constant."""
        k = self.constants.setdefault(constant, len(self.constants))
        self.emit(Desc(d=d, k=k))

    def advance(self, d: int, dim: int, count: int) -> None:
        """Move D[d] by `count` elements of a dimension (3: step)."""
        if count:
            self.emit(Adv(d=d, dim=dim, imm=count))

    def advance_r(self, d: int, dim: int, r: int) -> None:
        """Move D[d] by R[r] elements of a dimension (3: step)."""
        self.emit(Adv(d=d, dim=dim, use_reg=1, r=r))

    def extent_r(self, d: int, dim: int, r: int) -> None:
        """ext[dim] of D[d] = R[r]."""
        self.emit(Adv(d=d, dim=dim, kind=1, use_reg=1, r=r))

    def extent(self, d: int, dim: int, count: int) -> None:
        """ext[dim] of D[d] = count."""
        self.emit(Adv(d=d, dim=dim, kind=1, imm=count))

    def read(self, r: int, cell: int, wait: str = "") -> None:
        """R[r] = X[cell], once the semaphores have given a token."""
        self.emit(Readx(r=r, x=cell, wait=mask(wait)))

    @contextmanager
    def loop(self, count: int) -> Iterator[None]:
        """Repeat what is written inside."""
        place = self.emit(Loop(count=count, len=1))
        yield
        self.close_loop(place)

    @contextmanager
    def loop_r(self, r: int) -> Iterator[None]:
        """Repeat what is written inside R[r] times."""
        place = self.open_loop(r)
        yield
        self.close_loop(place)

    def open_loop(self, r: int) -> int:
        """Begin what is repeated R[r] times. The count is copied: the register is free inside."""
        return self.emit(Loop(use_reg=1, r=r, len=1))

    def close_loop(self, place: int) -> None:
        """End what `open_loop` began."""
        old = self.instructions[place]
        assert isinstance(old, Loop)
        length = len(self.instructions) - place - 1
        self.longest_loop = max(self.longest_loop, length)
        if length > LOOP_WORDS:
            return  # `fits` says so
        self.instructions[place] = Loop(use_reg=old.use_reg, r=old.r, count=old.count, len=length)

    def branch(self, label: Label, cond: Cond = Cond.ALWAYS, ra: int = 0, value: int = 0) -> None:
        """Jump to a label, if R[ra] and value meet a condition."""
        immediate = cond is not Cond.ALWAYS
        place = self.emit(Br(ra=ra, cond=cond, use_imm=int(immediate), imm=value if immediate else 0, target=0))
        label.users.append(place)

    def branch_r(self, label: Label, cond: Cond, ra: int, rb: int) -> None:
        """Jump to a label, if R[ra] and R[rb] meet a condition."""
        label.users.append(self.emit(Br(ra=ra, rb=rb, cond=cond, target=0)))

    def place(self, label: Label) -> None:
        """Put a label here."""
        label.target = len(self.instructions)

    # ---- units -----------------------------------------------------------------------------------------------------

    def copy(self, queue: Queue, d: int, a: int, wait: str = "", post: str = "", *, free: bool = False) -> None:
        """COPY on a DMA queue. free: L orders nothing for it."""
        self.emit(Copy(on=queue, d=d, a=a, free=int(free), wait=mask(wait), post=mask(post)))

    def matmul(self, d: int, a: int, w: int, *, zero: int, by_rows: bool = False, terms: int = 1, wait: str = "",
               post: str = "") -> None:  # fmt: skip
        """MATMUL. zero: 0 add, 1 from +0, 2 from +0 in the first iteration of the innermost loop."""
        self.emit(
            Matmul(
                d=d, a=a, b=w, zero=Zero(zero), by_rows=int(by_rows), terms=terms - 1, wait=mask(wait), post=mask(post)
            )
        )

    def vec(self, d: int, a: int, b: int = 0, c: int = 0, *, op1: Op1 = Op1.NONE, op2: Op2 = Op2.NONE,
            func: Func = Func.NONE, red: Red = Red.NONE, wait: str = "", post: str = "") -> None:  # fmt: skip
        """VEC without a mask."""
        self.emit(Vec(d=d, a=a, b=b, c=c, op1=op1, op2=op2, func=func, red=red, wait=mask(wait), post=mask(post)))

    def vec_masked(self, d: int, a: int, b: int, *, op1: Op1, red: Red, j0: int, window: int, high: int, group: int,
                   wait: str = "", post: str = "") -> None:  # fmt: skip
        """VEC with fix and the causal mask. j0, window (0: none), high: registers."""
        self.emit(
            Vec(d=d, a=a, b=b, c=high, op1=op1, func=Func.FIX, red=red, mask=1, rj=j0, rw=window, group=group,
                wait=mask(wait), post=mask(post))
        )  # fmt: skip

    def pick(self, d: int, a: int, b: int, c: int, wait: str = "", post: str = "") -> None:
        """PICK."""
        self.emit(Pick(d=d, a=a, b=b, c=c, wait=mask(wait), post=mask(post)))

    def topk(self, d: int, a: int, wait: str = "", post: str = "") -> None:
        """TOPK: indices to D[d], values to D[d + 1]."""
        self.emit(Topk(d=d, a=a, wait=mask(wait), post=mask(post)))

    def group(self, d: int, a: int, b: int, wait: str = "", post: str = "") -> None:
        """GROUP: order to D[d], keys to D[d + 1], their number to D[b]."""
        self.emit(Group(d=d, a=a, b=b, wait=mask(wait), post=mask(post)))

    def put(self, d: int, a: int, first_cell: int = 0, count: int = 0, wait: str = "", post: str = "",
            arrival: tuple[str, int] | None = None, apart: int = 0, expect: int = 0) -> None:  # fmt: skip
        """PUT of data; with (semaphore, counter) it also counts as this slice's arrival, at the members, which are the
        expected senders unless `expect` says how many there are. apart: log2 of what lies between their ranks."""
        if arrival is None:
            self.emit(Put(d=d, a=a, b=first_cell, count=count, apart=apart, wait=mask(wait), post=mask(post)))
        else:
            sem, counter = SEMAPHORE[arrival[0]], arrival[1]
            self.emit(
                Put(d=d, a=a, b=first_cell, count=count, apart=apart, sem=sem, counter=counter, expect=expect or count,
                    arrive=1, wait=mask(wait), post=mask(post))
            )  # fmt: skip

    def send(self, d: int, a: int, cell: int, arrival: tuple[str, int], wait: str = "", post: str = "") -> None:
        """PUT of data to the one rank X[cell], with an arrival there that gives a token by itself."""
        sem, counter = SEMAPHORE[arrival[0]], arrival[1]
        self.emit(
            Put(d=d, a=a, b=cell, count=1, sem=sem, counter=counter, expect=1, arrive=1, wait=mask(wait),
                post=mask(post))
        )  # fmt: skip

    def arrive(self, nothing: int, sem: str, counter: int, first_cell: int = 0, count: int = 0, wait: str = "",
               post: str = "", apart: int = 0) -> None:  # fmt: skip
        """PUT of nothing that counts as this slice's arrival."""
        self.put(nothing, nothing, first_cell, count, wait, post, (sem, counter), apart)

    def sync(self, queue: Queue, wait: str = "", post: str = "") -> None:
        """Wait and post only."""
        self.emit(Sync(on=queue, wait=mask(wait), post=mask(post)))

    def ring(self, a: int, wait: str = "", post: str = "") -> None:
        """Tell the host."""
        self.emit(Ring(a=a, wait=mask(wait), post=mask(post)))

    def halt(self, cause: int = 0) -> None:
        """Stop."""
        self.emit(Halt(cause=cause))

    # ---- the end ---------------------------------------------------------------------------------------------------

    def resolve(self, labels: list[Label]) -> None:
        """Write the targets of labels into their branches."""
        for label in labels:
            assert label.target is not None
            for place in label.users:
                old = self.instructions[place]
                assert isinstance(old, Br)
                self.instructions[place] = Br(
                    ra=old.ra, rb=old.rb, cond=old.cond, use_imm=old.use_imm, imm=old.imm, target=label.target
                )

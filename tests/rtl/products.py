"""Programs of matrix products for measuring utilisation: operands and results in memory."""

from dataclasses import replace

from systolith.isa import (
    Adv,
    Copy,
    Desc,
    Descriptor,
    Format,
    Halt,
    Instruction,
    Loop,
    Matmul,
    Program,
    Queue,
    Requires,
    Space,
    Sync,
    Vec,
    Zero,
)
from systolith.spec import BLOCK, SEMAPHORES, Chip

LOADED, FULL, FREE, SUMS, ROOM, STAGED, STORED = range(7)
"""Semaphores: rows of A are here; slots full, free; sums done, their room free; staged, stored."""


class Writer:
    """Words and constants; every instruction's descriptors are loaded before it."""

    def __init__(self) -> None:
        self.words: list[Instruction] = []
        self.constants: list[Descriptor] = []
        self.next = 1

    def use(self, d: Descriptor) -> int:
        """Load a constant into the next of registers 1 to 48."""
        if d not in self.constants:
            self.constants.append(d)
        self.words.append(Desc(d=self.next, k=self.constants.index(d)))
        register, self.next = self.next, self.next % 48 + 1
        return register

    def program(self, chip: Chip, name: str, tokens: dict[int, int]) -> Program:
        """Close with HALT."""
        init = [tokens.get(n, 0) for n in range(SEMAPHORES)]
        needs = Requires(
            slices=chip.slices, dram_bytes=1 << 20, spad_bytes=chip.scratchpad_bytes, slot_bytes=chip.slots_bytes,
            acc_bytes=chip.accumulator_bytes,
        )  # fmt: skip
        words = tuple(i.encode() for i in (*self.words, Halt()))
        return Program(name=name, words=words, constants=tuple(self.constants), sem_init=tuple(init), requires=needs)


def mx(space: Space, form: Format, ext: tuple[int, int], stride: int, base: int, sbase: int) -> Descriptor:
    """Rows of blocks."""
    return Descriptor(
        space=space, format=form, scale=1, base=base, sbase=sbase, ext=(ext[0], 1, ext[1]), stride=(stride, 0, 1)
    )


A_AT, W_AT, Y_AT = 0, 1 << 18, 1 << 19
"""Codes in memory; scales follow at once."""


def square(chip: Chip, form: Format) -> Program:
    """512 x 512 x 512 on `mini`: a slice makes 256 rows by 256 columns from its rows of A and its columns of W.

    A stays in the scratchpad, 32 columns of W at a time go through the slots, results are quantised and stored.
    """
    m = n = 256
    k, group = 512, BLOCK
    bank, tile = chip.bank_size_bytes, group * k
    slots = chip.slots_bytes // (tile * 33 // 32)
    parts = [(0, 32), (32, 32), (64, 64), (128, 64), (192, 64)]
    w = Writer()

    def rows_of_a(first: int, count: int, space: Space) -> Descriptor:
        if space is Space.DRAM:
            return mx(space, form, (count, k), k, A_AT + first * k, A_AT + m * k + first * k // BLOCK)
        return mx(space, form, (count, k), k, first * k, (4 + first // 64) * bank + first * k // BLOCK)

    def load(number: int) -> None:
        first, count = parts[number]
        d, a = w.use(rows_of_a(first, count, Space.SPAD)), w.use(rows_of_a(first, count, Space.DRAM))
        w.words.append(Copy(on=Queue.L, d=d, a=a, post=1 << LOADED))

    def weights(g: int) -> None:
        slot = mx(Space.SLOT, form, (group, k), k, g % slots * tile, slots * tile + g % slots * tile // BLOCK)
        source = mx(Space.DRAM, form, (group, k), k, W_AT + g * tile, W_AT + n * k + g * tile // BLOCK)
        d, a = w.use(slot), w.use(source)
        w.words.append(Copy(on=Queue.W, d=d, a=a, wait=1 << FREE, post=1 << FULL))

    load(0)
    weights(0)
    for number in range(1, len(parts)):
        load(number)
    for g in range(n // group):
        if g + 1 < n // group:
            weights(g + 1)
        for number, (first, count) in enumerate(parts):
            last = number == len(parts) - 1
            at = 4 * (g % 2 * m + first) * group
            sums = Descriptor(space=Space.ACC, format=Format.FP32, base=at, ext=(count, 1, group), stride=(group, 0, 1))
            slot = mx(Space.SLOT, form, (group, k), k, g % slots * tile, slots * tile + g % slots * tile // BLOCK)
            d, a, b = w.use(sums), w.use(rows_of_a(first, count, Space.SPAD)), w.use(slot)
            wait = 1 << ROOM | (1 << FULL if number == 0 else 0) | (1 << LOADED if g == 0 else 0)
            w.words.append(Matmul(d=d, a=a, b=b, zero=1, wait=wait, post=1 << SUMS | (1 << FREE if last else 0)))
            turn = (g * len(parts) + number) % 2
            stage = mx(Space.SPAD, form, (count, group), group, (5 + turn) * bank + 16384, (5 + turn) * bank + 24576)
            out = mx(
                Space.DRAM, form, (count, group), n, Y_AT + first * n + g * group,
                Y_AT + m * n + (first * n + g * group) // BLOCK,
            )  # fmt: skip
            staged = w.use(stage)
            w.words.append(Vec(d=staged, a=w.use(sums), wait=1 << SUMS | 1 << STORED, post=1 << ROOM | 1 << STAGED))
            w.words.append(Copy(on=Queue.S, d=w.use(out), a=staged, wait=1 << STAGED, post=1 << STORED))
    tokens = {FREE: slots, ROOM: 2 * len(parts), STORED: 2}
    return w.program(chip, "512x512x512", tokens)


def one_block(chip: Chip, m: int, n: int) -> Program:
    """A product of one block of K in MXINT8: m x 4 x n or m x 8 x n after padding.

    Memory holds codes of A, codes of W (by columns) and the scales of both in one run; the sums go back in FP32.
    """
    codes, scales = BLOCK * (m + n), m + n
    w = Writer()
    flat = Descriptor(space=Space.DRAM, format=Format.INT8, ext=(1, 1, codes + scales), stride=(0, 0, 1))
    near = Descriptor(space=Space.SPAD, format=Format.INT8, ext=(1, 1, codes + scales), stride=(0, 0, 1))
    sums = Descriptor(space=Space.ACC, format=Format.FP32, ext=(m, 1, n), stride=(n, 0, 1))
    at = chip.bank_size_bytes
    out = Descriptor(space=Space.SPAD, format=Format.FP32, base=at, ext=(1, 1, m * n), stride=(0, 0, 1))
    row = Descriptor(space=Space.ACC, format=Format.FP32, ext=(1, 1, m * n), stride=(0, 0, 1))
    home = Descriptor(space=Space.DRAM, format=Format.FP32, base=4096, ext=(1, 1, m * n), stride=(0, 0, 1))
    d, a = w.use(near), w.use(flat)
    w.words.append(Copy(on=Queue.L, d=d, a=a, post=1 << LOADED))
    a = w.use(mx(Space.SPAD, Format.INT8, (m, BLOCK), BLOCK, 0, codes))
    b = w.use(mx(Space.SPAD, Format.INT8, (n, BLOCK), BLOCK, BLOCK * m, codes + m))
    w.words.append(Matmul(d=w.use(sums), a=a, b=b, zero=1, wait=1 << LOADED, post=1 << SUMS))
    staged = w.use(out)
    w.words.append(Vec(d=staged, a=w.use(row), wait=1 << SUMS, post=1 << STAGED))
    w.words.append(Copy(on=Queue.S, d=w.use(home), a=staged, wait=1 << STAGED))
    return w.program(chip, f"{m}x{BLOCK}x{n}", {})


X_AT = 0
"""The row of A in memory: codes, then scales; the weights begin at `WEIGHTS_AT`, results at `RESULTS_AT`."""
WEIGHTS_AT = 1 << 15


def linear(chip: Chip, n: int, k: int, weights: Format, activations: Format) -> tuple[Program, int, int]:
    """One row times n columns of k: a linear layer at batch 1. Each slice has n / slices columns, weights in memory.

    Weights lie tile by tile, as a slot takes them, their scales behind all codes. Gives the program, the word that ends
    a group of 32 columns on queue M, and the bytes of a slice's weights.
    """
    columns, bits = n // chip.slices, weights.bits
    assert columns % BLOCK == 0
    assert k % BLOCK == 0
    chunk = BLOCK
    while k % (2 * chunk) == 0 and 3 * (2 * chunk * BLOCK * bits // 8 + 2 * chunk) <= chip.slots_bytes:
        chunk *= 2
    tile = BLOCK * chunk * bits // 8
    slots = chip.slots_bytes // (tile + chunk)
    groups, chunks = columns // BLOCK, k // chunk
    size = groups * chunks * tile
    results = WEIGHTS_AT + size + groups * chunks * chunk
    results += -results % 64
    w = Writer()
    blocks, weight = {"scale": 1, "format": weights}, BLOCK * chunk
    slot = Descriptor(
        space=Space.SLOT, base=0, sbase=slots * tile, ext=(BLOCK, 1, chunk), stride=(chunk, 0, 1), step=weight,
        wrap=slots * weight, **blocks,
    )  # fmt: skip
    into, out_of = w.use(slot), w.use(slot)
    source = w.use(
        Descriptor(
            space=Space.DRAM, base=WEIGHTS_AT, sbase=WEIGHTS_AT + size, ext=(BLOCK, 1, chunk), stride=(chunk, 0, 1),
            step=weight, **blocks,
        )
    )  # fmt: skip
    near = mx(Space.SPAD, activations, (1, k), k, 0, k)
    row = w.use(replace(near, ext=(1, 1, chunk), stride=(0, 0, 1), step=chunk, wrap=k))
    acc = Descriptor(
        space=Space.ACC, format=Format.FP32, ext=(1, 1, BLOCK), stride=(0, 0, 1), step=BLOCK, wrap=2 * BLOCK
    )
    sums, sums_read = w.use(acc), w.use(acc)
    stage = w.use(
        Descriptor(space=Space.SPAD, format=Format.FP32, base=chip.bank_size_bytes, ext=(1, 1, BLOCK), stride=(0, 0, 1))
    )
    home = w.use(
        Descriptor(space=Space.DRAM, format=Format.FP32, base=results, ext=(1, 1, BLOCK), stride=(0, 0, 1), step=BLOCK)
    )
    x, x_home = w.use(near), w.use(mx(Space.DRAM, activations, (1, k), k, X_AT, X_AT + k))
    w.words.append(Copy(on=Queue.L, d=x, a=x_home, post=1 << LOADED))
    w.words.append(Sync(on=Queue.M, wait=1 << LOADED))
    inner = [
        Copy(on=Queue.W, d=into, a=source, wait=1 << FREE, post=1 << FULL),
        Adv(d=source, dim=3, imm=1), Adv(d=into, dim=3, imm=1),
        Matmul(d=sums, a=row, b=out_of, zero=Zero.FIRST, wait=1 << FULL, post=1 << FREE),
        Adv(d=row, dim=3, imm=1), Adv(d=out_of, dim=3, imm=1),
    ]  # fmt: skip
    before = [Sync(on=Queue.M, wait=1 << ROOM)]
    after = [
        Sync(on=Queue.M, post=1 << SUMS),
        Vec(d=stage, a=sums_read, wait=1 << SUMS | 1 << STORED, post=1 << ROOM | 1 << STAGED),
        Copy(on=Queue.S, d=home, a=stage, wait=1 << STAGED, post=1 << STORED),
        Adv(d=sums, dim=3, imm=1), Adv(d=sums_read, dim=3, imm=1), Adv(d=home, dim=3, imm=1),
    ]  # fmt: skip
    body = [*before, Loop(count=chunks, len=len(inner)), *inner, *after]
    w.words += [Loop(count=groups, len=len(body)), *body]
    ends = len(w.words) - len(after)
    program = w.program(chip, f"1x{k}x{n}", {FREE: slots, ROOM: 2, STORED: 1})
    needs = replace(program.requires, dram_bytes=results + 4 * columns)
    return replace(program, requires=needs), ends, size * 33 // 32 if bits == 8 else size + size // 16

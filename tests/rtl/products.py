"""Programs of matrix products for measuring utilisation: operands and results in memory."""

from systolith.isa import (
    Copy,
    Desc,
    Descriptor,
    Format,
    Halt,
    Instruction,
    Matmul,
    Program,
    Queue,
    Requires,
    Space,
    Vec,
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

"""Instructions per CPU second of the timing model, the executor apart: `python bench/timing.py [CHIP ...]`."""

import sys
import time
from collections.abc import Sequence

import numpy as np

from systolith.isa import (
    Adv,
    Copy,
    Desc,
    Descriptor,
    Format,
    Halt,
    Loop,
    Matmul,
    Program,
    Put,
    Queue,
    Requires,
    Space,
    Vec,
)
from systolith.isa.resolved import COLS
from systolith.sim import FastMachine
from systolith.spec import Chip, load
from systolith.timing import TimingMachine


def layer(chip: Chip, rounds: int) -> Program:
    """A linear layer's shape, again and again: four weight copies and products, a vector pass, a PUT, three ADV."""

    def tensor(space: Space, ext: tuple[int, int, int], fmt: Format, base: int = 0, scale: int = 0) -> Descriptor:
        _, e1, e2 = ext
        return Descriptor(
            space=space, format=fmt, base=base, ext=ext, stride=(e1 * e2, e2, 1), scale=scale, sbase=base + 4096
        )

    constants = [
        tensor(Space.DRAM, (1, 8, 32), Format.INT8, scale=1),
        tensor(Space.SLOT, (1, 8, 32), Format.INT8, scale=1),
        tensor(Space.SPAD, (1, 1, 32), Format.INT8, scale=1),
        tensor(Space.ACC, (1, 1, 8), Format.FP32),
        tensor(Space.SPAD, (1, 1, 8), Format.FP32, chip.bank_size_bytes),
        tensor(Space.SPAD, (1, 1, 8), Format.FP32, 2 * chip.bank_size_bytes),
    ]
    code = [
        *(Desc(d=i + 1, k=i) for i in range(len(constants))),
        Loop(count=rounds, len=9),
        Loop(count=4, len=5),
        Copy(on=Queue.W, d=2, a=1, wait=2, post=1),
        Matmul(d=4, a=3, b=2, zero=2, wait=1, post=2),
        Adv(d=1, dim=0, imm=0),
        Adv(d=2, dim=0, imm=0),
        Adv(d=3, dim=0, imm=0),
        Matmul(d=4, a=3, b=2, post=4),
        Vec(d=5, a=4, wait=4 | 32, post=16),
        Put(d=6, a=5, arrive=1, sem=5, wait=16),
        Halt(),
    ]
    return Program(
        words=tuple(i.encode() for i in code),
        constants=tuple(constants),
        sem_init=(0, 4, 0, 0, 0, 1, *[0] * 18),
        requires=Requires(slices=chip.slices, dram_bytes=1 << 16),
    )


def measure(chip: Chip, rounds: int) -> tuple[int, float, int]:
    """Words timed, CPU seconds of it, cycles."""
    program = layer(chip, rounds)
    machine, timing = FastMachine(chip, program), TimingMachine(chip, program)
    buffer = np.zeros((chip.slices, 512, COLS), np.int64)
    words, spent, done = 0, 0.0, False
    while not done:
        counts = machine.run_resolved(buffer)
        words += int(counts.sum())
        start = time.process_time()
        done = timing.feed(buffer, counts)
        spent += time.process_time() - start
    return words, spent, timing.finish().cycles


def main(names: Sequence[str]) -> None:
    """Print one line a chip."""
    for name in names:
        chip = load(name)
        measure(chip, 2)
        words, spent, cycles = measure(chip, max(50, 20000 // chip.slices))
        print(f"{name}: {words} words, {cycles} cycles, {spent:.2f} CPU s: {words / spent / 1e6:.2f} M words/s")


if __name__ == "__main__":
    main(sys.argv[1:] or ["nano", "mini", "server"])

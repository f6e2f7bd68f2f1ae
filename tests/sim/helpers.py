"""Programs for the tests of `sim`, and `same`: execute and the simulator in lock step on one program."""

import numpy as np

from systolith import spec
from systolith.isa import Desc, Descriptor, Format, Halt, Program, Requires, Space
from systolith.sim import FastMachine
from systolith.sim.fuzz import Report, compare

NANO = spec.load("nano")
MINI = spec.load("mini")
DRAM_BYTES = 1 << 16


def dense(space, form, ext, base=0, sbase=0, scale=0, **more):
    """Descriptor of a tensor that lies densely."""
    _, e1, e2 = ext
    row = e2 + -e2 % (32 if scale else 2 if form is Format.E2M1 else 1)
    stride = more.pop("stride", (e1 * row, row, 1))
    return Descriptor(space=space, format=form, scale=scale, base=base, sbase=sbase, ext=ext, stride=stride, **more)


def spad(form, ext, base=0, sbase=0, scale=0, **more):
    return dense(Space.SPAD, form, ext, base, sbase, scale, **more)


def program(instructions, constants=(), slices=1, **more):
    """Constants n go to registers n + 1, then the instructions, then HALT."""
    code = [*(Desc(d=n + 1, k=n) for n in range(len(constants))), *instructions, Halt()]
    needs = {"slices": slices, "dram_bytes": DRAM_BYTES, "spad_bytes": 1 << 16, "slot_bytes": 8192, "acc_bytes": 8192}
    return Program(
        name="test",
        words=tuple(i.encode() for i in code),
        constants=tuple(constants),
        requires=Requires(**needs),
        lines=tuple(f"kernel.py:{n}" for n in range(len(code))),
        **more,
    )


def noise(seed, rank):
    """Random bytes in every space but the cells."""
    rng = np.random.default_rng((seed, rank))
    sizes = {Space.DRAM: DRAM_BYTES, Space.SPAD: 1 << 16, Space.SLOT: 8192, Space.ACC: 8192}
    return {space: rng.integers(0, 256, size).astype(np.uint8) for space, size in sizes.items()}


def same(instructions, constants=(), slices=1, memory=noise, chip=None, seed=1, **more):
    """Run on both, compare after each instruction; give the simulator."""
    made = []

    class Kept(FastMachine):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    report = Report()
    chip = chip or (NANO if slices == 1 else MINI)
    compare(chip, program(instructions, constants, slices, **more), seed, report, Kept, memory=memory)
    assert report.mismatches == [], str(report.mismatches[0])
    assert report.instructions > 0
    return made[0]


def words(*values):
    """Bytes of 32-bit words."""
    return np.array([v & 0xFFFFFFFF for v in values], np.uint32).view(np.uint8)

"""Short ways to make programs and machines for the tests of `isa`."""

import random
import struct

import numpy as np

from systolith import spec
from systolith.isa import (
    INSTRUCTIONS,
    Adv,
    Br,
    Desc,
    Descriptor,
    Format,
    Halt,
    Instruction,
    Loop,
    Machine,
    Program,
    Requires,
    Space,
)  # fmt: skip
from systolith.isa.descriptor import FIELDS
from systolith.isa.instruction import Kind
from systolith.spec import ProgramError

NANO = spec.load("nano")
DRAM_BYTES = 1 << 16


def dense(space, fmt, ext, base=0, sbase=0, scale=0, **more):
    """Descriptor of a tensor that lies densely."""
    _, e1, e2 = ext
    return Descriptor(
        space=space, format=fmt, scale=scale, base=base, sbase=sbase, ext=ext, stride=(e1 * e2, e2, 1), **more
    )


def program(instructions, constants=(), slices=1, **more):
    """Program of instructions, each descriptor register n+1 loaded with constant n first, HALT at the end."""
    head = [Desc(d=n + 1, k=n) for n in range(len(constants))]
    code = [*head, *instructions, Halt()]
    return Program(
        name="test",
        words=tuple(i.encode() for i in code),
        constants=tuple(constants),
        requires=Requires(slices=slices, dram_bytes=DRAM_BYTES),
        lines=tuple(f"test.py:{n}" for n in range(len(code))),
        **more,
    )


def machine(instructions, constants=(), slices=1, chip=None, **more):
    chip = chip or (NANO if slices == 1 else spec.load("mini"))
    return Machine(chip, program(instructions, constants, slices, **more))


def poke(m, space, address, data, rank=0):
    if isinstance(data, np.ndarray):
        data = data.tobytes()
    m.slices[rank].memory[space][address : address + len(data)] = data


def peek(m, space, address, count, dtype=np.uint8, rank=0):
    size = np.dtype(dtype).itemsize
    return np.frombuffer(bytes(m.slices[rank].memory[space][address : address + count * size]), dtype)


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


def random_descriptor(rng):
    """A legal descriptor with every field in play."""
    while True:
        values = {}
        for name, bits, signed in FIELDS:
            width = rng.choice((1, 4, bits))
            value = rng.getrandbits(min(width, bits))
            values[name] = value - (1 << bits - 1) if signed and rng.random() < 0.3 else value >> int(signed)
        fmt = Format(rng.randrange(6))
        scale = int(fmt <= Format.INT8 and rng.random() < 0.5)
        grain = 32 if scale else 2
        if scale or fmt is Format.E2M1:
            values["stride[2]"] = 1
            for name in ("stride[0]", "stride[1]", "step", "wrap", "ext[2]"):
                values[name] -= values[name] % grain
        if fmt.bits == 32:
            values["base"] &= ~3
        ext = tuple(values.pop(f"ext[{i}]") for i in range(3))
        stride = tuple(values.pop(f"stride[{i}]") for i in range(3))
        values |= {"space": rng.randrange(5), "format": fmt, "scale": scale}
        try:
            return Descriptor(**values, ext=ext, stride=stride)
        except ProgramError:
            continue


def random_instruction(rng, cls=None):
    """A legal instruction of a class, every field in play."""
    cls = cls or INSTRUCTIONS[rng.choice(list(INSTRUCTIONS))]
    while True:
        values = {}
        for bits in cls.LAYOUT:
            low, high = bits.bounds()
            if bits.choices is not None:
                values[bits.name] = rng.choice(list(bits.choices))
            elif rng.random() < 0.4 and low <= 0:
                values[bits.name] = 0
            else:
                values[bits.name] = rng.randint(low, min(high, 31) if bits.kind is Kind.REG else high)
        try:
            return cls(**values)
        except ProgramError:
            continue


def random_program(rng, length=20):
    """A legal program of random words: loops nest, branches stay in their body, constants exist."""
    constants = tuple(random_descriptor(rng) for _ in range(rng.randrange(1, 5)))
    code: list[Instruction] = []

    def body(n, depth):
        start = len(code)
        while (left := n - (len(code) - start)) > 0:
            cls = INSTRUCTIONS[rng.choice(list(INSTRUCTIONS))]
            if cls is Loop:
                if depth == 8 or left < 3:
                    continue
                inner = rng.randint(1, left - 1)
                i = random_instruction(rng, Loop)
                code.append(Loop(use_reg=i.use_reg, r=i.r, count=i.count, len=inner))
                body(inner, depth + 1)
            elif cls is Br:
                i = random_instruction(rng, Br)
                target = len(code)  # itself: always its own body
                code.append(Br(ra=i.ra, rb=i.rb, cond=i.cond, use_imm=i.use_imm, imm=i.imm, target=target))
            elif cls is Desc:
                code.append(Desc(d=rng.randrange(64), k=rng.randrange(len(constants))))
            else:
                code.append(random_instruction(rng, cls))

    body(length, 0)
    return Program(
        name=rng.choice(["", "plain", 'odd "name" ; with: marks']),
        words=tuple(i.encode() for i in code),
        constants=constants,
        sem_init=tuple(rng.choice((0, 0, rng.randrange(256))) for _ in range(24)),
        requires=Requires(
            slices=rng.randint(1, 64), dram_bytes=rng.randrange(1 << 30), pairs=("INT8xINT8",)[: rng.randrange(2)]
        ),
        meta=rng.choice(({}, {"model": "x;y", "map": {"token": 4}})),
    )


def adv(d, n, dim=0, **more):
    return Adv(d=d, dim=dim, imm=n, **more)


def spad(fmt, ext, base=0, sbase=0, scale=0, **more):
    return dense(Space.SPAD, fmt, ext, base, sbase, scale, **more)


def seeded(seed):
    return random.Random(seed)

"""Speed of the fast simulator on single instructions: `python bench/sim.py`. CPU seconds, first call apart."""

from __future__ import annotations

import time

from systolith import spec
from systolith.isa import (
    Alu,
    Copy,
    Desc,
    Descriptor,
    Format,
    Func,
    Halt,
    Instruction,
    Loop,
    Matmul,
    Op1,
    Program,
    Queue,
    Requires,
    Set,
    Space,
    Vec,
    Zero,
)  # fmt: skip

CHIP = spec.load("server")


def tensor(space: Space, form: Format, ext: tuple[int, int, int], base: int = 0, scale: int = 0) -> Descriptor:
    """Dense tensor, its scales 1 MiB / 128 KiB behind."""
    sbase = base + (1 << 18) if scale else 0
    return Descriptor(
        space=space, format=form, scale=scale, base=base, sbase=sbase, ext=ext, stride=(ext[1] * ext[2], ext[2], 1)
    )


def measure(instruction: Instruction, constants: tuple[Descriptor, ...], count: int) -> float:
    """CPU seconds of one execution, over `count` of them."""
    from systolith.sim import FastMachine

    code = [Desc(d=i + 1, k=i) for i in range(len(constants))]
    code += [Loop(count=min(count, 65535), len=1), instruction, Halt()]
    program = Program(
        words=tuple(i.encode() for i in code), constants=constants, requires=Requires(slices=1, dram_bytes=1 << 20)
    )
    machine = FastMachine(CHIP, program)
    machine.spad(0)[:] = 0x3C
    machine.slot(0)[:] = 0x3C
    start = time.process_time()
    machine.run()
    return (time.process_time() - start) / count


def main() -> None:
    """Print one line an instruction."""
    start = time.process_time()
    from systolith.sim import FastMachine

    print(f"import, kernels compiled or read: {time.process_time() - start:.2f} s CPU ({FastMachine.__name__})")
    print(f"SET                    {1e9 * measure(Set(r=1, imm=3), (), 60000):9.0f} ns")
    print(f"ALU                    {1e9 * measure(Alu(r=1, ra=1, use_imm=1, imm=3), (), 60000):9.0f} ns")
    for a, w in (("INT8", "INT8"), ("INT8", "E2M1"), ("E4M3", "E2M1"), ("E4M3", "E4M3"), ("E2M1", "E2M1")):
        for rows, columns, K in ((1, 32, 256), (1, 4, 256), (32, 32, 256)):
            operands = (
                tensor(Space.ACC, Format.FP32, (rows, 1, columns)),
                tensor(Space.SPAD, Format[a], (rows, 1, K), scale=1),
                tensor(Space.SLOT, Format[w], (columns, 1, K), scale=1),
            )
            seconds = measure(Matmul(d=1, a=2, b=3, zero=Zero.YES), operands, 20000 // rows)
            rate = rows * columns * K / seconds / 1e9
            print(f"MATMUL {a}x{w} {rows:2}x{columns}x{K} {1e6 * seconds:9.2f} us {rate:7.2f} G multiply-adds/s")
    by_rows = (
        tensor(Space.ACC, Format.FP32, (1, 1, 64)),
        tensor(Space.SPAD, Format.INT8, (1, 1, 256), scale=1),
        tensor(Space.SPAD, Format.INT8, (256, 1, 64), base=1 << 19),
    )
    seconds = measure(Matmul(d=1, a=2, b=3, zero=Zero.YES, by_rows=1), by_rows, 20000)
    print(f"MATMUL by rows 1x64x256 {1e6 * seconds:8.2f} us")
    fp32 = tensor(Space.SPAD, Format.FP32, (1, 1, 768))
    int8 = tensor(Space.SPAD, Format.INT8, (1, 1, 768), base=1 << 19, scale=1)
    int32 = tensor(Space.SPAD, Format.INT32, (1, 1, 768), base=1 << 16)
    for name, instruction, operands in (
        ("mul", Vec(d=1, a=2, b=3, op1=Op1.MUL), (fp32, fp32, fp32)),
        ("mul, quantised", Vec(d=1, a=2, b=3, op1=Op1.MUL), (int8, fp32, fp32)),
        ("dequantise", Vec(d=1, a=2), (fp32, int8)),
        ("rcp", Vec(d=1, a=2, func=Func.RCP), (fp32, fp32)),
        ("rsqrt", Vec(d=1, a=2, func=Func.RSQRT), (fp32, fp32)),
        ("fix", Vec(d=1, a=2, func=Func.FIX), (int32, fp32)),
        ("exp2", Vec(d=1, a=2, b=3, op1=Op1.EXP2), (fp32, int32, int32)),
    ):
        print(f"VEC 768 {name:20} {1e6 * measure(instruction, operands, 10000):9.2f} us")
    move = (
        tensor(Space.SLOT, Format.INT8, (32, 1, 256), scale=1), tensor(Space.DRAM, Format.INT8, (32, 1, 256), scale=1)
    )  # fmt: skip
    print(f"COPY.W 32x256 INT8      {1e6 * measure(Copy(on=Queue.W, d=1, a=2), move, 20000):8.2f} us")


if __name__ == "__main__":
    main()

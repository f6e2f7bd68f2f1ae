"""Vector unit: execute and sim on corner operands of VEC and PICK."""

import numpy as np
import pytest
from sim.helpers import NANO, dense, program, same, spad, words

from systolith.isa import Format, Func, Machine, Op1, Op2, Pick, Red, Set, Space, Vec
from systolith.sim import FastMachine
from systolith.spec import ProgramError

FLOATS = (
    0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FC12345, 0xFFC00000,
    0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x403A18E3, 0x3F7FFFFF, 0x33800000,
    0x46FFFE00, 0x42F70000,
)  # fmt: skip
INTS = (0, 1, -1, 65536, -65536, 65537, 2**31 - 1, 2**31 - 2, -(2**31), -(2**31) + 1, 40, -40, 8388608, -9830400)
F32S, I32S = len(FLOATS) ** 2, len(INTS) ** 2


def corners(seed, rank):
    """Every pair of corner values: FP32 at 0 and 4096, INT32 at 8192 and 12288; codes and scales at 16384."""
    x, y = np.meshgrid(np.array(FLOATS, np.uint32), np.array(FLOATS, np.uint32))
    i, j = np.meshgrid(np.array(INTS, np.int32), np.array(INTS, np.int32))
    memory = np.zeros(65536, np.uint8)
    for at, values in ((0, x), (4096, y), (8192, i), (12288, j)):
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        memory[at : at + len(data)] = data
    memory[16384:16640] = np.arange(256)
    memory[16640:16896] = np.arange(256)[::-1]
    return {Space.SPAD: memory, Space.CELL: words(*range(64))}


X, Y = spad(Format.FP32, (1, 1, F32S)), spad(Format.FP32, (1, 1, F32S), 4096)
I, J = spad(Format.INT32, (1, 1, I32S), 8192), spad(Format.INT32, (1, 1, I32S), 12288)
OUT, OUT_INT = spad(Format.FP32, (1, 1, F32S), 32768), spad(Format.INT32, (1, 1, F32S), 32768)
OUT_E = (spad(Format.FP32, (1, 1, 1), 40000), spad(Format.INT32, (1, 1, 1), 40000), spad(Format.E8M0, (1, 1, 1), 40000))


@pytest.mark.parametrize("op", [Op1.ADD, Op1.SUB, Op1.MUL, Op1.MAX, Op1.MIN])
def test_fp32_operations_on_every_pair(op):
    same(
        [Vec(d=3, a=1, b=2, op1=op), Vec(d=3, a=1, b=2, c=2, op1=Op1.ADD, op2=Op2[op.name])],
        (X, Y, OUT),
        memory=corners,
    )


@pytest.mark.parametrize("op", [Op1.IADD, Op1.ISUB, Op1.IMAX, Op1.IMIN, Op1.IEQ, Op1.ILT, Op1.WEIGHT])
def test_integer_operations_on_every_pair(op):
    same([Vec(d=3, a=1, b=2, op1=op)], (I, J, OUT_INT), memory=corners)


def test_exp2_and_the_masked_multiply_on_every_pair():
    same(
        [Vec(d=3, a=1, b=2, op1=Op1.EXP2), Vec(d=3, a=1, b=2, c=4, op1=Op1.EXP2, op2=Op2.MULM)],
        (I, J, OUT, X),
        memory=corners,
    )
    # M in units of 1, so that the results are of every scale
    small = spad(Format.INT32, (1, I32S, 40), 8192, stride=(0, 1, 0))
    M = spad(Format.INT32, (1, I32S, 40), 20480, stride=(0, 0, 1))

    def memory(seed, rank):
        filled = corners(seed, rank)
        filled[Space.SPAD][20480:20640] = words(*range(-160, 160, 8))
        return filled

    same([Vec(d=3, a=1, b=2, op1=Op1.EXP2)], (small, M, spad(Format.FP32, (1, I32S, 40), 24576)), memory=memory)


@pytest.mark.parametrize("func", [Func.RCP, Func.RSQRT, Func.FIX])
def test_functions(func):
    out = OUT_INT if func is Func.FIX else OUT
    same([Vec(d=2, a=1, func=func)], (X, out), memory=corners)
    # every exponent with mantissas near the ends and in between
    mantissas = np.array([0, 1, 0x3A18E3, 0x3A18E2, 0x400000, 0x7FFFFF, 0x7FFFFE, 0x123456], np.uint32)
    values = (np.arange(512, dtype=np.uint32)[:, None] << 23 | mantissas).reshape(-1)

    def memory(seed, rank):
        return {Space.SPAD: values.view(np.uint8)}

    many = spad(Format.FP32, (4, 1, 1024))
    same([Vec(d=2, a=1, func=func)], (many, spad(out.format, (4, 1, 1024), 32768)), memory=memory)


@pytest.mark.parametrize("shift", [0, 1, 23, 24, 25, 50, 148, 149, 150, 151, 300, 899, 900, 901, 2000])
def test_shift_add_on_every_pair(shift):
    def memory(seed, rank):
        filled = corners(seed, rank)
        filled[Space.SPAD][20480:20500] = words(shift, 0, -(2**31), -shift, 3)
        return filled

    constants = [X, Y, OUT]
    for a, b in ((0, 1), (1, 0), (2, 1), (1, 2), (2, 2), (3, 4)):
        constants += [spad(Format.INT32, (1, 1, F32S), 20480 + 4 * k, stride=(0, 0, 0)) for k in (a, b)]
    same([Vec(d=3, a=1, b=2, c=4 + 2 * k, op1=Op1.SHIFTADD) for k in range(6)], constants, memory=memory)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 31, 32, 33, 100, 400])
def test_reductions_of_every_length(n):
    x, i = spad(Format.FP32, (2, 2, n), 8), spad(Format.INT32, (2, 2, n), 8192)
    fp32, int32 = spad(Format.FP32, (2, 2, 1), 40000), spad(Format.INT32, (2, 2, 1), 41000)
    code = [Vec(d=3, a=1, b=1, op1=Op1.MUL, red=Red.SUM), Vec(d=3, a=1, red=Red.SUMSQ), Vec(d=3, a=1, red=Red.FMAX)]
    code += [Vec(d=5, a=2, red=red) for red in (Red.CEILMAX, Red.IMAX, Red.ISUM)]
    same(code, (x, i, OUT, fp32, spad(Format.INT32, (2, 2, n), 33000), int32), memory=corners)


@pytest.mark.parametrize("form", [Format.E2M1, Format.E4M3, Format.INT8])
def test_quantise_and_dequantise(form):
    blocks = spad(form, (4, 1, 128), 49152, 53248, 1)
    rows = spad(form, (4, 1, 100), 49152)
    scale = spad(Format.E8M0, (4, 1, 1), 53248)
    pieces = [spad(Format.FP32, (4, 1, n), 64, stride=(100, 0, 1)) for n in (100, 1, 33)]
    code = [Vec(d=1, a=k) for k in (4, 5, 6)] + [Vec(d=2, a=k, red=Red.ROWSCALE) for k in (4, 5, 6)]
    same(code, (blocks, rows, scale, *pieces), memory=corners)
    codes = spad(form, (16, 1, 256 if form is not Format.E2M1 else 32), 16384, 16640, 1, stride=(0, 0, 1))
    plain = spad(form, (1, 1, 256), 16384)
    every = spad(Format.E8M0, (1, 1, 256), 16384)
    same(
        [Vec(d=4, a=1), Vec(d=4, a=2), Vec(d=4, a=3)],
        (codes, plain, every, spad(Format.FP32, (16, 1, 256), 32768)),
        memory=corners,
    )


def test_masks_windows_and_groups():
    x, out, e = (
        spad(Format.FP32, (3, 2, 40)),
        spad(Format.INT32, (3, 2, 40), 32768),
        spad(Format.INT32, (3, 2, 1), 40000),
    )
    code = []
    for hi in (0, 5, 39, 100, 0xFFFFFFFF):
        for first in (0, 7, 0xFFFFFFF0):
            code += [Set(r=1, imm=hi), Set(r=2, imm=first), Set(r=3, imm=11)]
            code += [
                Vec(d=2, a=1, c=1, func=Func.FIX, mask=1, rj=2, rw=rw, group=group, red=Red.CEILMAX)
                for rw in (0, 3) for group in (0, 1, 4)
            ]  # fmt: skip
    same(code, (x, out, e), memory=corners)


def test_in_place_broadcast_and_negative_strides():
    x = spad(Format.FP32, (2, 3, 20))
    back = spad(Format.FP32, (2, 3, 20), 4096 + 400, stride=(-60, -20, 1))
    one = spad(Format.FP32, (2, 3, 20), 4096, stride=(0, 0, 0))
    same(
        [Vec(d=1, a=1, b=2, c=3, op1=Op1.ADD, op2=Op2.MUL), Vec(d=1, a=1, b=1, op1=Op1.SUB)],
        (x, back, one),
        memory=corners,
    )


@pytest.mark.parametrize("k", [0, 1, 3, 50, 400, 2000])
@pytest.mark.parametrize("top_p", [0, 1, 1 << 30, (1 << 32) - 1, 1 << 32, 1 << 40])
def test_pick(k, top_p):
    def memory(seed, rank):
        filled = corners(seed, rank)
        rng = np.random.default_rng(k)
        filled[Space.SPAD][20480:20504] = words(k, top_p & 0xFFFFFFFF, top_p >> 32, 0xDEADBEEF, 0x12345678, 77)
        filled[Space.SPAD][24576:26176] = words(*rng.choice([0, 0, 5, 5, 1 << 31, 1 << 20, 0xFFFFFFFF], 400))
        return filled

    record, position = spad(Format.INT32, (1, 1, 5), 20480), spad(Format.INT32, (1, 1, 1), 20500)
    w = spad(Format.INT32, (1, 1, 400), 24576)
    nothing = spad(Format.INT32, (1, 1, 400), 30000, stride=(0, 0, 0))
    out = spad(Format.INT32, (1, 1, 1), 40000)
    constants = (record, position, w, spad(Format.FP32, (1, 1, 400)), out, nothing)
    same([Pick(d=5, a=4, b=3, c=1), Pick(d=5, a=4, b=6, c=1)], constants, memory=memory)


@pytest.mark.parametrize(
    ("instruction", "constants"),
    [
        (Vec(d=1, a=2, b=3, op1=Op1.ADD), (OUT, X, I)),
        (Vec(d=1, a=2, b=3, op1=Op1.IADD), (OUT, I, J)),
        (Vec(d=1, a=2, func=Func.RCP), (OUT, I)),
        (Vec(d=1, a=2), (OUT_INT, X)),
        (Vec(d=1, a=2), (spad(Format.INT8, (1, 1, 400), 32768), X)),
        (Vec(d=1, a=2), (dense(Space.ACC, Format.FP32, (1, 1, 400)), X)),
        (Vec(d=1, a=3, red=Red.ROWSCALE), (spad(Format.INT8, (1, 1, 400), 32768), OUT_E[0], X)),
        (Vec(d=1, a=3, red=Red.ISUM), (OUT, OUT_E[1], X)),
        (Vec(d=1, a=2), (OUT, spad(Format.FP32, (1, 1, 400), 65000))),
        (Pick(d=1, a=2, b=3, c=4), (OUT_INT, X, X, I, J)),
        (Pick(d=1, a=2, b=3, c=4), (OUT_INT, spad(Format.FP32, (2, 1, 4)), I, I, J)),
    ],
)  # fmt: skip
def test_illegal_operands_trap_with_the_sentence_of_execute(instruction, constants):
    p = program([instruction], constants)
    sentences = []
    for machine in (Machine, FastMachine):
        with pytest.raises(ProgramError) as error:
            machine(NANO, p).run()
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]

"""Sequencer: execute and sim on the corners of every instruction it runs."""

import pytest
from sim.helpers import NANO, dense, program, same, spad, words

from systolith.isa import (
    Adv,
    Alu,
    AluFn,
    Br,
    Cond,
    Desc,
    Format,
    Loop,
    Machine,
    Matmul,
    Queue,
    Readx,
    Set,
    Space,
    Sync,
    Zero,
)  # fmt: skip
from systolith.sim import FastMachine
from systolith.spec import ProgramError

CORNERS = (0, 1, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF0001)


@pytest.mark.parametrize("fn", AluFn)
def test_alu_on_corner_values(fn):
    code = []
    for x in CORNERS:
        for y in CORNERS:
            if fn is AluFn.CEILDIV and y == 0:
                continue
            code += [Set(r=1, imm=x), Set(r=2, imm=y), Alu(r=3, ra=1, rb=2, fn=fn)]
    code += [Alu(r=4, ra=1, fn=AluFn.ADD, use_imm=1, imm=-1), Alu(r=5, ra=4, fn=AluFn.MUL, use_imm=1, imm=-32768)]
    same(code)


@pytest.mark.parametrize("cond", Cond)
def test_branches_on_corner_values(cond):
    code = []
    for x in CORNERS[:4]:
        for y in CORNERS[2:6]:
            at = len(code)
            code += [Set(r=1, imm=x), Set(r=2, imm=y), Br(ra=1, rb=2, cond=cond, target=at + 4), Set(r=3, imm=at)]
    code += [Set(r=9, imm=1)]
    same(code)


def test_loops_nest_eight_deep_end_together_and_skip():
    code = [Set(r=1, imm=0)]
    code += [Loop(count=2, len=8 - depth) for depth in range(8)]
    code += [Alu(r=1, ra=1, use_imm=1, imm=1), Loop(count=0, len=1), Alu(r=1, ra=1, use_imm=1, imm=100)]
    m = same(code)
    assert m.regs(0)[1] == 256


def test_adv_moves_rings_and_extents():
    ring = spad(Format.INT8, (2, 2, 32), sbase=4096, scale=1, step=64, wrap=256)
    nibbles = spad(Format.E2M1, (2, 2, 8), step=6)
    code = [Adv(d=1, dim=dim, imm=n) for dim in (0, 1, 3) for n in (1, 5, -3, -100)]
    code += [Set(r=1, imm=0xFFFFFFFE), Adv(d=1, dim=3, use_reg=1, r=1), Adv(d=1, kind=1, dim=1, imm=0)]
    code += [Adv(d=2, dim=3, imm=7), Adv(d=2, dim=2, imm=2), Adv(d=2, kind=1, dim=2, imm=4)]
    assert same(code, (ring, nibbles)).counts["ADV"] == len(code) - 1


def test_first_iteration_of_the_innermost_loop():
    operands = (
        dense(Space.ACC, Format.FP32, (1, 1, 2)), spad(Format.INT8, (1, 1, 32), 0, 4096, 1),
        spad(Format.INT8, (2, 1, 32), 64, 4100, 1),
    )  # fmt: skip
    first = Matmul(d=1, a=2, b=3, zero=Zero.FIRST)
    same([first, Loop(count=2, len=3), Loop(count=3, len=1), first, first], operands)


def test_readx_takes_tokens_and_reads_unsigned():
    m = same(
        [Sync(on=Queue.V, post=8), Readx(r=1, x=5, wait=8), Readx(r=2, x=0)],
        memory=lambda seed, rank: {Space.CELL: words(7, 0, 0, 0, 0, -2)},
    )
    assert m.regs(0)[1:3] == [0xFFFFFFFE, 0]


@pytest.mark.parametrize(
    ("code", "constants"),
    [
        ([Alu(r=1, ra=1, rb=2, fn=AluFn.CEILDIV)], ()),
        ([Adv(d=1, dim=2, imm=1)], (spad(Format.E2M1, (1, 1, 2)),)),
        ([Adv(d=1, dim=0, imm=-1)], (spad(Format.INT8, (1, 1, 2)),)),
        ([Adv(d=1, dim=0, kind=1, imm=1 << 20)], (spad(Format.INT8, (1, 1, 2)),)),
        ([Adv(d=1, dim=2, imm=1)], (spad(Format.INT8, (1, 1, 32), scale=1),)),
        ([Loop(count=3, len=1), Sync(on=Queue.M, post=1), Loop(count=255, len=1), Sync(on=Queue.M, post=1)], ()),
        ([Sync(on=Queue.M, wait=4)], ()),
    ],
)  # fmt: skip
def test_traps_and_deadlocks_have_the_sentence_of_execute(code, constants):
    p = program(code, constants)
    with pytest.raises(ProgramError) as expected:
        Machine(NANO, p).run()
    with pytest.raises(ProgramError) as found:
        FastMachine(NANO, p).run()
    assert str(found.value) == str(expected.value)
    assert "kernel.py" in str(found.value)


def test_running_past_the_last_word_is_a_sentence():
    p = program([Br(target=3), Set(r=1, imm=1), Desc(d=0, k=0)], (spad(Format.INT8, (1, 1, 1)),))
    p = type(p)(name="test", words=p.words[:-1], constants=p.constants, requires=p.requires)
    sentences = []
    for machine in (Machine, FastMachine):
        with pytest.raises(ProgramError) as error:
            machine(NANO, p).run()
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]

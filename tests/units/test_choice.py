"""Vector unit: execute and sim on TOPK and GROUP, and rows that VEC and MATMUL reach through index lists."""

import numpy as np
import pytest
from sim.helpers import NANO, dense, noise, program, same, spad, words

from systolith.isa import Adv, Copy, Format, Group, Loop, Machine, Matmul, Op1, Op2, Queue, Red, Space, Topk, Vec
from systolith.sim import FastMachine
from systolith.sim.sanitizer import Sanitizer
from systolith.spec import ProgramError

F, I = Format.FP32, Format.INT32
CORNERS = (
    0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FC12345, 0xFFC00000,
    0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000, 0x3F800001, 0x40000000,
)  # fmt: skip
LISTS_AT = 60000
LISTS = ((3, 0, 2, 1, 1, 2, 3, 0), (7, 5, 6, 4, 0, 1, 2, 3))


def values(seed, rank):
    """Corner values in any order at 0 of the scratchpad and the accumulator, two lists of rows, 64 bytes apart."""
    filled = noise(seed, rank)
    corners = words(*np.random.default_rng(seed).choice(CORNERS, 2048))
    filled[Space.SPAD][:8192] = filled[Space.ACC][:8192] = corners
    filled[Space.SPAD][3200:3600] = words(*[0x7FC00000] * 100)  # the third row of 100 has nothing else
    for n, entries in enumerate(LISTS):
        filled[Space.SPAD][LISTS_AT + 64 * n : LISTS_AT + 64 * n + 32] = words(*entries)
    return filled


@pytest.mark.parametrize("k", [1, 2, 20, 64])
@pytest.mark.parametrize("space", [Space.SPAD, Space.ACC])
def test_topk_of_rows_with_many_equal_values(k, space):
    """A whole row, rows, rows along a column, rows through a list; results through lists, and in cells."""
    constants = (
        dense(space, F, (1, 1, 2000)), dense(space, F, (8, 2, 100)), dense(space, F, (4, 5, 80), stride=(1, 4, 20)),
        dense(space, F, (4, 1, 100), via=9),
        spad(I, (8, 5, k), 32768, via=10), spad(F, (8, 5, k), 45000),  # 5, 6
        dense(Space.CELL, I, (1, 1, min(k, 20)), 4), spad(F, (1, 1, 20), 44000),  # 7, 8
        spad(I, (1, 1, 4), LISTS_AT), spad(I, (1, 1, 8), LISTS_AT + 64),  # 9, 10: the lists
    )  # fmt: skip
    same([*(Topk(d=5, a=n) for n in (1, 2, 3, 4)), Topk(d=7, a=1)], constants, memory=values)


@pytest.mark.parametrize("m", [1, 2, 200, 257, 1 << 17])
def test_group_with_keys_of_one_to_three_digits(m):
    """All the pairs that it takes where few keys are met, 192 where many are; rows through a list."""

    def memory(seed, rank):
        filled = values(seed, rank)
        keys = np.random.default_rng(m).integers(0, m, 4096)
        keys[3] = m - 1
        filled[Space.SPAD][:16384] = words(*keys)
        return filled

    constants = (
        spad(I, (4, 4, 12)), spad(I, (4, 6, 8), via=7), spad(I, (64, 1, 64)),  # 1, 2, 3: the pairs
        spad(I, (2, 1, 4096), 16384), spad(I, (m, 1, 4), 49152), spad(I, (1, 1, 1), 59996),  # 4, 5, 6
        spad(I, (1, 1, 4), LISTS_AT),  # 7: the list
    )  # fmt: skip
    same([Group(d=4, a=n, b=6) for n in (1, 2, 3)[: 3 if m <= 257 else 2]], constants, memory=memory)


def listed_rows():
    """VEC reads A, B, C and writes D and E through lists, MATMUL reads A; ADV moves the lists' own descriptors."""
    constants = (
        spad(F, (4, 1, 32), via=14), spad(Format.INT8, (4, 1, 32), 8192, 9216, scale=1, via=15),  # 1, 2
        spad(F, (4, 1, 32), 4096, via=15), spad(F, (4, 1, 1), 5120, via=15),  # 3, 4
        spad(Format.INT8, (4, 1, 32), 16384, 17408, scale=1, via=14), spad(F, (4, 1, 1), 18432, via=14),  # 5, 6
        spad(Format.INT8, (4, 1, 32), 20480, via=15), spad(Format.E8M0, (4, 1, 1), 21504, via=15),  # 7, 8
        dense(Space.ACC, F, (4, 1, 8)), spad(Format.INT8, (8, 1, 32), 24576, 25600, scale=1),  # 9, 10
        spad(F, (4, 1, 8), 33792, via=15), dense(Space.ACC, F, (4, 1, 8), via=14),  # 11, 12
        spad(F, (4, 1, 8), 34816, via=14), spad(I, (1, 1, 4), LISTS_AT), spad(I, (1, 1, 4), LISTS_AT + 64),  # 13, lists
    )  # fmt: skip
    body = [
        Vec(d=3, a=1, b=2, op1=Op1.MUL, red=Red.SUM),
        Vec(d=5, a=3, b=6, c=1, op1=Op1.SUB, op2=Op2.MUL, red=Red.FMAX),
        Vec(d=7, a=1, red=Red.ROWSCALE),
        Matmul(d=9, a=5, b=10, zero=1),
        Vec(d=11, a=9),
        Vec(d=13, a=12),
        Adv(d=14, dim=2, imm=2),
        Adv(d=15, dim=2, imm=2),
    ]
    return [Loop(count=3, len=len(body)), *body], constants


def test_rows_through_lists_that_move():
    same(*listed_rows(), memory=values)


@pytest.mark.parametrize(
    ("instruction", "constants"),
    [
        (Topk(d=1, a=3), (spad(I, (1, 1, 65), 32768), spad(F, (1, 1, 65), 40000), spad(F, (1, 1, 80)))),
        (Topk(d=1, a=3), (spad(I, (1, 1, 4), 65532), spad(F, (1, 1, 4), 40000), spad(F, (1, 1, 80)))),
        (Topk(d=1, a=3), (spad(I, (1, 1, 4), 32768), spad(F, (1, 1, 4), 65532), spad(F, (1, 1, 80)))),
        (Topk(d=1, a=3), (spad(I, (1, 1, 4), 32768), spad(F, (1, 1, 4), 40000), spad(F, (1, 1, 80), 65500))),
        (Topk(d=1, a=3), (spad(I, (1, 1, 4), 32768), spad(I, (1, 1, 4), 40000), spad(F, (1, 1, 80)))),
        (Topk(d=1, a=3), (dense(Space.ACC, I, (1, 1, 4)), spad(F, (1, 1, 4), 40000), spad(F, (1, 1, 80)))),
        (Group(d=1, a=3, b=4), (spad(I, (2, 1, 3), 4096), spad(I, (9, 1, 4), 8192), spad(I, (1, 1, 4)),
                                spad(I, (1, 1, 1), 128))),
        (Group(d=1, a=3, b=4), (spad(I, (2, 1, 4), 4096), spad(I, (9, 1, 4), 65532), spad(I, (1, 1, 4)),
                                spad(I, (1, 1, 1), 128))),
        (Group(d=1, a=3, b=4), (spad(I, (2, 1, 4), 4096), spad(I, (9, 1, 4), 8192), spad(I, (1, 1, 4)),
                                spad(I, (1, 1, 1), 65536))),
        (Group(d=1, a=3, b=4), (spad(I, (2, 1, 4), 4096), spad(I, (9, 1, 4), 8192), spad(I, (1, 1, 4)),
                                dense(Space.ACC, I, (1, 1, 1)))),
        (Group(d=1, a=3, b=4), (spad(I, (2, 1, 4), 4096), spad(I, (0, 1, 4), 8192), spad(I, (1, 1, 4)),
                                spad(I, (1, 1, 1), 128))),
        (Group(d=1, a=3, b=4), (spad(I, (2, 1, 8), 4096), spad(I, (7, 1, 4), 8192), spad(I, (1, 1, 8), LISTS_AT + 64),
                                spad(I, (1, 1, 1), 128))),
    ],
)  # fmt: skip
def test_illegal_operands_trap_with_the_sentence_of_execute(instruction, constants):
    p = program([instruction], constants)
    sentences = []
    for machine in (Machine, FastMachine):
        m = machine(NANO, p)
        entries = words(*LISTS[1])
        if machine is Machine:
            m.slices[0].memory[Space.SPAD][LISTS_AT + 64 : LISTS_AT + 96] = entries.tobytes()
        else:
            m._space(0, Space.SPAD)[LISTS_AT + 64 : LISTS_AT + 96] = entries
        with pytest.raises(ProgramError) as error:
            m.run()
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]


# --- the sanitizer ---


def observed(code, constants, written):
    """Run under observation; `written`: (space, address, bytes) that count as written at the start."""
    sanitizer = Sanitizer(NANO, program(code, constants))
    for space, address, count in written:
        sanitizer.written(0, space, address, count)
    sanitizer.run()
    return sanitizer.findings


EXPERTS = (
    spad(I, (1, 1, 4)), spad(I, (2, 1, 4), 16384), spad(I, (8, 1, 4), 32768), dense(Space.CELL, I, (1, 1, 1), 4),
    spad(I, (1, 1, 4), 32768), spad(I, (1, 1, 4), 32784), dense(Space.ACC, F, (1, 1, 4)), spad(I, (1, 1, 8), 16384),
)  # fmt: skip


def test_what_group_writes_is_written_and_no_more():
    """All keys are 0: one row of keys is there to be read, the next one is not."""
    code = [Group(d=2, a=1, b=4), Vec(d=1, a=5), Vec(d=1, a=8)]
    assert observed(code, EXPERTS, [(Space.SPAD, 0, 16)]) == []
    assert [f.fault for f in observed(code, EXPERTS, [])] == ["unwritten"]
    findings = observed([*code, Vec(d=1, a=6)], EXPERTS, [(Space.SPAD, 0, 16)])
    assert [f.fault for f in findings] == ["unwritten"]
    assert "SPAD byte 32784" in findings[0].sentence


@pytest.mark.parametrize("operand", [2, 3, 4])
def test_group_races_with_a_reader_of_each_result(operand):
    back = dense(Space.DRAM, I, EXPERTS[operand - 1].ext if operand != 3 else (1, 1, 4))
    constants = (*EXPERTS, back)
    source = 5 if operand == 3 else operand
    for post in (0, 1):
        code = [Group(d=2, a=1, b=4, post=post), Copy(on=Queue.S, d=9, a=source, wait=post)]
        faults = {f.fault for f in observed(code, constants, [(Space.SPAD, 0, 16)])}
        assert faults - {"bank"} == (set() if post else {"race"})


def test_topk_writes_both_results_and_reads_its_rows():
    constants = (spad(F, (2, 1, 8)), spad(I, (2, 1, 3), 16384), spad(F, (2, 1, 3), 32768), spad(F, (1, 1, 7), 32768))
    code = [Topk(d=2, a=1), Vec(d=3, a=3), Vec(d=2, a=2)]
    assert observed(code, constants, [(Space.SPAD, 0, 64)]) == []
    assert [f.fault for f in observed(code, constants, [(Space.SPAD, 0, 60)])] == ["unwritten"]
    assert [f.fault for f in observed([*code, Vec(d=3, a=4)], constants, [(Space.SPAD, 0, 64)])] == ["unwritten"]


def test_the_sanitizer_follows_lists_that_move():
    """Rows 0..3 of eight lie scattered by the second half of a list: its first half is never read."""
    constants = (
        spad(F, (4, 1, 4)), spad(F, (4, 1, 4), 16384, via=3), spad(I, (1, 1, 4), LISTS_AT + 64),
        spad(F, (4, 1, 4), 16384), spad(F, (1, 1, 4), 16384 + 64),
    )  # fmt: skip
    code = [Adv(d=3, dim=2, imm=4), Vec(d=2, a=1), Vec(d=1, a=4), Vec(d=1, a=5)]
    rows = (Space.SPAD, 0, 64)
    sentences = {}
    for name, there in (("list", [rows]), ("row", [rows, (Space.SPAD, LISTS_AT + 80, 16)])):
        sanitizer = Sanitizer(NANO, program(code, constants))
        for space, address, count in there:
            sanitizer.written(0, space, address, count)
        memory = sanitizer.machine._space(0, Space.SPAD)
        memory[LISTS_AT + 64 : LISTS_AT + 96] = words(*LISTS[1])
        sanitizer.run()
        sentences[name] = [f.sentence for f in sanitizer.findings if f.fault == "unwritten"]
    assert f"SPAD byte {LISTS_AT + 80} " in sentences["list"][0]
    assert len(sentences["row"]) == 1  # the rows that were scattered are there, row 4 is not
    assert f"SPAD byte {16384 + 64} " in sentences["row"][0]

"""Sequencer, semaphores, arrivals, loops, traps and footprints of `Machine`."""

import re

import numpy as np
import pytest

from systolith.isa import (
    Adv,
    Alu,
    AluFn,
    Br,
    Cond,
    Copy,
    Desc,
    Format,
    Halt,
    Loop,
    Put,
    Queue,
    Readx,
    Ring,
    Set,
    Space,
    Sync,
)  # fmt: skip
from systolith.isa import resolved as col
from systolith.isa.state import Footprint
from systolith.spec import ProgramError

from .helpers import dense, machine, peek, poke, program, spad

WORDS = dense(Space.SPAD, Format.INT32, (1, 1, 4))


def run(instructions, constants=(), **more):
    m = machine(instructions, constants, **more)
    assert m.run()
    return m


def fails(message, instructions, constants=(), prepare=lambda m: None, **more):
    m = machine(instructions, constants, **more)
    prepare(m)
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        m.run()
    return m


@pytest.mark.parametrize(
    ("fn", "x", "y", "result"),
    [
        (AluFn.ADD, 0xFFFFFFFF, 2, 1),
        (AluFn.SUB, 1, 2, 0xFFFFFFFF),
        (AluFn.MUL, 0x10001, 0x10001, 0x20001),
        (AluFn.SHL, 3, 33, 6),
        (AluFn.SHR, 0x80000000, 31, 1),
        (AluFn.AND, 12, 10, 8),
        (AluFn.OR, 12, 10, 14),
        (AluFn.MIN, 0xFFFFFFFF, 5, 5),
        (AluFn.MAX, 0xFFFFFFFF, 5, 0xFFFFFFFF),
        (AluFn.CEILDIV, 7, 2, 4),
        (AluFn.CEILDIV, 0xFFFFFFFF, 0xFFFFFFFF, 1),
    ],
)
def test_alu(fn, x, y, result):
    m = run([Set(r=1, imm=x), Set(r=2, imm=y), Alu(r=3, ra=1, rb=2, fn=fn)])
    assert m.regs(0)[3] == result


def test_alu_immediates_are_sign_extended():
    m = run([Set(r=1, imm=5), Alu(r=2, ra=1, use_imm=1, imm=-6), Alu(r=3, ra=1, fn=AluFn.MIN, use_imm=1, imm=-1)])
    assert m.regs(0)[2:4] == [0xFFFFFFFF, 5]


def test_registers_at_start():
    m = machine([], slices=3)
    assert [m.regs(r)[30:] for r in range(3)] == [[3, 0], [3, 1], [3, 2]]
    assert m.regs(1)[:30] == [0] * 30


def test_ceildiv_by_zero_traps_with_place_and_source():
    fails(
        "slice 0, word 1 (ALU R1, R0, R0 fn=ceildiv, test.py:1): CEILDIV by 0; guard it with a branch.",
        [Set(r=2), Alu(r=1, fn=AluFn.CEILDIV)],
    )


def count(r):
    return Alu(r=r, ra=r, use_imm=1, imm=1)


def test_loops_of_count_0_and_from_registers():
    m = run([Loop(count=0, len=1), count(1), Set(r=5, imm=7), Loop(use_reg=1, r=5, len=2), count(2), count(2)])
    assert m.regs(0)[1:3] == [0, 14]


def test_loops_nest_8_deep_and_end_together():
    m = run([*(Loop(count=2, len=8 - n) for n in range(8)), count(1)])
    assert m.regs(0)[1] == 2**8
    assert m.counts["ALU"] == 256
    assert not m.slices[0].loops


def test_a_loop_of_count_0_at_the_end_of_another_ends_it():
    m = run([Loop(count=3, len=3), count(1), Loop(count=0, len=1), count(2)])
    assert m.regs(0)[1:3] == [3, 0]


@pytest.mark.parametrize(
    ("cond", "x", "y", "taken"),
    [
        (Cond.ALWAYS, 1, 2, True), (Cond.EQ, 1, 2, False), (Cond.EQ, 2, 2, True), (Cond.NE, 1, 2, True),
        (Cond.LT, 0xFFFFFFFF, 1, False), (Cond.LT, 1, 2, True), (Cond.GE, 2, 2, True), (Cond.GE, 1, 2, False),
    ],
)  # fmt: skip
def test_branches(cond, x, y, taken):
    m = run([Set(r=1, imm=x), Set(r=2, imm=y), Br(ra=1, rb=2, cond=cond, target=4), count(3), count(4)])
    assert m.regs(0)[3:5] == [0 if taken else 1, 1]


def test_a_branch_back_inside_a_loop_leaves_its_count():
    body = [
        count(1),
        Alu(r=2, ra=1, fn=AluFn.AND, use_imm=1, imm=1),
        Br(ra=2, cond=Cond.EQ, use_imm=1, imm=1, target=1),
    ]
    m = run([Loop(count=3, len=4), *body, count(3)])
    assert m.regs(0)[3] == 3
    assert m.regs(0)[1] == 6


def test_running_past_the_end_is_an_error():
    p = program([])
    from systolith.isa import Machine, Program

    from .helpers import NANO

    m = Machine(NANO, Program(name="open", words=(Set(r=1).encode(),), requires=p.requires))
    message = "program 'open', slice 0: it ran past the last word, 0; end it with HALT."
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        m.run()


def test_halt_keeps_its_cause():
    m = machine([Halt(cause=9), count(1)])
    assert m.run()
    assert (m.slices[0].cause, m.regs(0)[1]) == (9, 0)
    assert m.step() == []


def test_adv_moves_descriptors_and_sets_extents():
    d = dense(Space.SPAD, Format.INT32, (4, 2, 8), base=64, wrap=64, step=16)
    m = run(
        [
            Adv(d=1, dim=0, imm=3), Adv(d=1, dim=0, imm=2), Adv(d=2, dim=1, imm=-1), Adv(d=3, dim=3, imm=-1),
            Set(r=4, imm=0xFFFFFFFE), Adv(d=4, dim=2, use_reg=1, r=4), Adv(d=5, dim=2, kind=1, imm=5),
        ],
        [d] * 5,
    )  # fmt: skip
    bases = [m.slices[0].descriptors[n].base for n in range(1, 5)]
    assert bases == [64 + 4 * (5 * 16 % 64), 64 + 4 * 56, 64 + 4 * 48, 64 + 4 * 62]
    assert m.slices[0].descriptors[5].ext == (4, 2, 5)


def test_adv_out_of_a_field_traps():
    d = dense(Space.SPAD, Format.INT8, (1, 1, 64), scale=1)
    fails(
        "slice 0, word 1 (ADV D1 dim=2 imm=7, test.py:1): ADV by 7 elements must be a multiple of 32 with scale=1.",
        [Adv(d=1, dim=2, imm=7)], [d],
    )  # fmt: skip
    fails(
        "slice 0, word 1 (ADV D1 kind=1 imm=-1, test.py:1): descriptor: ext[0]=-1 does not fit in "
        "20 bits (0..1048575).",
        [Adv(d=1, kind=1, imm=-1)], [d],
    )  # fmt: skip


# --- semaphores and arrivals ---


def test_masks_take_and_give_one_token_each():
    m = run([Sync(on=Queue.M, wait=0b11, post=0b110)], sem_init=(1, 2, *[0] * 22))
    assert m.sems(0)[:4] == [0, 2, 1, 0]


def test_a_semaphore_over_255_traps():
    fails(
        "slice 0, word 0 (SYNC.V post=3, test.py:0): semaphore 3 of slice 0 holds 255 tokens, the most it can.",
        [Sync(on=Queue.V, post=8)], sem_init=(0, 0, 0, 255, *[0] * 20),
    )  # fmt: skip


def test_a_wait_that_nobody_answers_is_a_deadlock_that_names_all():
    fails(
        "deadlock: no slice can go on; slice 0, word 0 (SYNC.V wait=0,3, test.py:0) waits for semaphore 3; "
        "slice 1, word 0 (SYNC.V wait=0,3, test.py:0) waits for semaphore 3.",
        [Sync(on=Queue.V, wait=9)], slices=2, sem_init=(1, *[0] * 23),
    )  # fmt: skip


def test_readx_waits_and_reads_a_cell():
    cell = dense(Space.CELL, Format.INT32, (1, 1, 1), base=4 * 7)
    m = machine([Copy(on=Queue.L, d=2, a=1, post=1), Readx(r=3, x=7, wait=1)], [WORDS, cell])
    poke(m, Space.SPAD, 0, np.int32([-5]))
    assert m.run()
    assert m.regs(0)[3] == m.cells(0)[7] == 2**32 - 5


def test_every_slice_gathers_from_all():
    """Each of 3 slices puts its rank into its place in all, and waits until all have arrived."""
    one = dense(Space.SPAD, Format.INT32, (1, 1, 1), base=256)
    place = dense(Space.SPAD, Format.INT32, (1, 1, 1), base=0, step=1, xb=5)
    cell = dense(Space.CELL, Format.INT32, (1, 1, 1), base=20)
    m = machine(
        [Copy(on=Queue.L, d=3, a=1), Put(d=2, a=1, arrive=1, sem=4, counter=2), Sync(on=Queue.V, wait=1 << 4)],
        [one, place, cell], slices=3,
    )  # fmt: skip
    for rank in range(3):
        poke(m, Space.SPAD, 256, np.int32([rank]), rank)
    assert m.run()
    for rank in range(3):
        assert list(peek(m, Space.SPAD, 0, 3, np.int32, rank)) == [0, 1, 2]
    assert m.slices[0].arrivals[2] == 0
    # Slice 0 waited for the others: its SYNC came after their PUT.
    assert m.sems(0)[4] == 0


@pytest.mark.parametrize(
    ("count", "first", "members"),
    [(0, 2, [0, 1, 2]), (1, 1, [1]), (2, 1, [1, 2]), (2, 2, [2]), (5, 0, [0, 1, 2]), (1, 7, [])],
)
def test_put_writes_the_ranks_that_exist(count, first, members):
    cell = dense(Space.CELL, Format.INT32, (1, 1, 1), base=4 * 9)
    source, target = spad(Format.INT32, (1, 1, 2), base=64), spad(Format.INT32, (1, 1, 3))
    steps = [Copy(on=Queue.L, d=1, a=2), Set(r=1), Br(ra=31, cond=Cond.NE, use_imm=1, imm=0, target=7)]
    m = machine(
        [*steps, Put(d=3, a=2, b=9, count=count, arrive=1, sem=1, counter=1, expect=1)],
        [cell, source, target],
        slices=3,
    )
    for rank in range(3):
        poke(m, Space.SPAD, 0, np.int32([7, 7, 7]), rank)
        poke(m, Space.SPAD, 64, np.int32([first, 5]), rank)
    rows = list(m.resolved())
    for rank in range(3):
        there = rank in members
        assert list(peek(m, Space.SPAD, 0, 3, np.int32, rank)) == ([first, 5, 0] if there else [7, 7, 7])
        assert m.sems(rank)[1] == there
    put = next(row for row in rows if row[col.OP] == Put.OPCODE)
    assert put[col.COUNT] == len(members)
    assert not members or put[col.FIRST] == members[0]


def test_arrivals_count_up_to_expect():
    empty = spad(Format.INT32, (0, 1, 1))
    m = run([Loop(count=7, len=1), Put(d=1, a=1, arrive=1, sem=3, counter=15, expect=3)], [empty])
    assert (m.sems(0)[3], m.slices[0].arrivals[15]) == (2, 1)


def test_put_overflow_names_the_receiver():
    empty = spad(Format.INT32, (0, 1, 1))
    fails(
        "slice 0, word 1 (PUT D1, D1 expect=1 arrive=1, test.py:1): semaphore 0 of slice 0 holds "
        "255 tokens, the most it can.",
        [Put(d=1, a=1, arrive=1, expect=1)], [empty], sem_init=(255, *[0] * 23),
    )  # fmt: skip


# --- the machine ---


def test_run_stops_after_limit_words_a_slice_and_goes_on():
    m = machine([Loop(count=100, len=1), count(1)], slices=2)
    assert not m.run(limit=51)
    assert [m.regs(r)[1] for r in (0, 1)] == [50, 50]
    assert m.run()
    assert [m.regs(r)[1] for r in (0, 1)] == [100, 100]


def test_ring_records_reach_the_host_in_order():
    grid = dense(Space.SPAD, Format.INT32, (2, 1, 2))
    m = machine([Ring(a=1), Adv(d=1, dim=2, imm=1), Ring(a=1)], [grid], slices=2)
    for rank in (0, 1):
        poke(m, Space.SPAD, 0, np.int32([1, -2, 3, 4, 5 + rank]), rank)
    seen = []
    assert m.run(on_ring=lambda rank, words: seen.append((rank, words)))
    assert seen == [(0, (1, -2, 3, 4)), (0, (-2, 3, 4, 5))]
    assert m.records(1)[1] == (-2, 3, 4, 6)


def test_step_gives_the_footprint_with_adjacent_bytes_joined():
    target = dense(Space.SPAD, Format.INT8, (2, 1, 32), sbase=512, scale=1, base=128)
    source = dense(Space.DRAM, Format.INT8, (1, 1, 32), sbase=40, scale=1)
    m = machine([Copy(on=Queue.L, d=1, a=2)], [target, source])
    m.write_dram(0, 0, bytes(range(41)))
    assert m.step() == m.step() == []
    assert m.step() == [
        Footprint(0, Space.SPAD, 128, bytes(range(32))),
        Footprint(0, Space.SPAD, 512, b"\x28"),
        Footprint(0, Space.SPAD, 160, bytes(32)),
        Footprint(0, Space.SPAD, 513, b"\0"),
    ]


def test_host_access_outside_dram_is_refused():
    m = machine([])
    message = "bytes 65535..65538 of DRAM of slice 0 are not there: 1 slices have 65536 bytes each."
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        m.write_dram(0, 65535, b"abcd")
    with pytest.raises(ProgramError, match=r"^bytes 0\.\.3 of DRAM of slice 1 are not there"):
        m.read_dram(1, 0, 4)


def test_resolved_rows_have_cells_and_loops_resolved():
    cell = dense(Space.CELL, Format.INT32, (1, 1, 1), base=4 * 5)
    tensor = dense(Space.SPAD, Format.FP32, (9, 1, 4), base=128, xe=5, xb=5, step=2)
    m = machine(
        [
            Copy(on=Queue.L, d=1, a=2, post=1),
            Loop(count=2, len=1),
            Copy(on=Queue.L, d=3, a=3),
            Sync(on=Queue.L, wait=1),
        ],
        [cell, spad(Format.INT32, (1, 1, 1)), tensor],
    )
    poke(m, Space.SPAD, 0, np.int32([3]))
    rows = list(m.resolved())
    assert [int(row[col.PC]) for row in rows] == [0, 1, 2, 3, 4, 5, 5, 6, 7]
    assert rows[4][col.TAKEN] == 2
    assert list(rows[5][col.A : col.A + col.OPERAND_COLS]) == [1, 3, 0, 128 + 24, 0, 3, 1, 4, 4, 4, 1, 0]
    assert (rows[5][col.QUEUE], rows[4][col.QUEUE], rows[0][col.OP]) == (1, 6, Desc.OPCODE)
    assert all(rows[7][at + col.SPACE] == -1 for at in col.OPERANDS.values())
    assert (rows[7][col.WAIT], rows[3][col.POST]) == (1, 1)
    assert m.counts == {"DESC": 3, "COPY.L": 3, "LOOP": 1, "SYNC.L": 1, "HALT": 1}


# --- addressing ---


def test_copy_fills_with_zeros_outside_the_source():
    source, target = spad(Format.INT32, (2, 2, 3)), spad(Format.INT32, (3, 1, 4), base=256)
    m = machine([Copy(on=Queue.L, d=1, a=2)], [target, source])
    poke(m, Space.SPAD, 0, np.arange(1, 13, dtype=np.int32))
    poke(m, Space.SPAD, 256, np.full(12, 99, np.int32))
    assert m.run()
    assert list(peek(m, Space.SPAD, 256, 12, np.int32)) == [1, 2, 3, 0, 7, 8, 9, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("fmt", [Format.E2M1, Format.E4M3, Format.INT8])
def test_copy_of_a_part_block_keeps_its_scale(fmt):
    source = dense(Space.DRAM, fmt, (1, 1, 64), sbase=1024, scale=1)
    source = source.with_ext(2, 40)
    target = spad(fmt, (2, 1, 96), base=0, sbase=1024, scale=1)
    m = machine([Copy(on=Queue.L, d=1, a=2)], [target, source])
    m.write_dram(0, 0, b"\x11" * 64)
    m.write_dram(0, 1024, b"\x80\x81\x82")
    poke(m, Space.SPAD, 0, b"\xff" * 2048)
    assert m.run()
    per = fmt.bits
    codes = b"\x11" * (40 * per // 8) + bytes(56 * per // 8 + 96 * per // 8)
    assert bytes(peek(m, Space.SPAD, 0, len(codes))) == codes
    assert bytes(peek(m, Space.SPAD, 1024, 7)) == b"\x80\x81\0\0\0\0\xff"


def test_index_lists_gather_pages():
    """Rows 2.. of a paged tensor: two rows a page, pages 3, 0, 2 in this order; X[6] = 2 is the first row."""
    table = dense(Space.SPAD, Format.INT32, (1, 1, 8), base=1024)
    pages = dense(Space.DRAM, Format.INT32, (3, 1, 2), via=3, unit=1, xb=6)
    target = spad(Format.INT32, (3, 1, 2))
    cell = dense(Space.CELL, Format.INT32, (1, 1, 1), base=24)
    two = spad(Format.INT32, (1, 1, 1), base=512)
    m = machine([Copy(on=Queue.L, d=4, a=5), Copy(on=Queue.L, d=1, a=2)], [target, pages, table, cell, two])
    poke(m, Space.SPAD, 512, np.int32([2]))
    poke(m, Space.SPAD, 1024, np.int32([3, 0, 2]))
    m.write_dram(0, 0, np.arange(100, dtype=np.int32).tobytes())
    assert m.run()
    # list index 1 is page 0 (rows 0, 1), list index 2 is page 2 (rows 4, 5)
    assert list(peek(m, Space.SPAD, 0, 6, np.int32)) == [0, 1, 2, 3, 8, 9]


def test_a_cell_replaces_an_extent_and_traps_above_it():
    tensor = dense(Space.SPAD, Format.INT32, (4, 1, 1), xe=3)
    target = dense(Space.SPAD, Format.INT32, (4, 1, 1), base=64, xe=3)
    cell = dense(Space.CELL, Format.INT32, (1, 1, 1), base=12)
    code = [Copy(on=Queue.L, d=1, a=4), Copy(on=Queue.L, d=3, a=2)]
    constants = [cell, tensor, target, spad(Format.INT32, (1, 1, 1), base=512)]
    for extent in (0, 2, 4):
        m = machine(code, constants)
        poke(m, Space.SPAD, 0, np.int32([1, 2, 3, 4]))
        poke(m, Space.SPAD, 512, np.int32([extent]))
        assert m.run()
        assert list(peek(m, Space.SPAD, 64, 4, np.int32)) == [1, 2, 3, 4][:extent] + [0] * (4 - extent)
    fails(
        "slice 0, word 5 (COPY.L D3, D2, test.py:5): cell 3 holds 5, more than ext[0]=4, which it replaces.",
        code, constants, prepare=lambda m: poke(m, Space.SPAD, 512, np.int32([5])),
    )  # fmt: skip


def test_strided_copies_gather_and_scatter():
    column = dense(Space.SPAD, Format.INT32, (1, 4, 3)).with_ext(2, 1)
    from systolith.isa import Descriptor

    column = Descriptor(space=Space.SPAD, format=Format.INT32, ext=(1, 1, 4), stride=(0, 0, 3))
    spread = Descriptor(space=Space.SPAD, format=Format.INT32, base=256, ext=(1, 1, 4), stride=(0, 0, -2))
    m = machine([Copy(on=Queue.L, d=2, a=1)], [column, spread])
    poke(m, Space.SPAD, 0, np.arange(12, dtype=np.int32))
    assert m.run()
    assert list(peek(m, Space.SPAD, 256 - 24, 7, np.int32)) == [9, 0, 6, 0, 3, 0, 0]


def test_copy_checks_spaces_formats_and_bounds():
    dram, slot = dense(Space.DRAM, Format.INT32, (1, 1, 4)), dense(Space.SLOT, Format.INT32, (1, 1, 4))
    fails(
        "slice 0, word 2 (COPY.L D2, D1, test.py:2): COPY.L copies from DRAM or SPAD to SPAD or "
        "CELL, not from DRAM to SLOT.",
        [Copy(on=Queue.L, d=2, a=1)], [dram, slot],
    )  # fmt: skip
    fails(
        "slice 0, word 2 (COPY.L D2, D1, test.py:2): D is FP32 with scale=0, A is INT32 with "
        "scale=0: they must be equal.",
        [Copy(on=Queue.L, d=2, a=1)], [dram, spad(Format.FP32, (1, 1, 4))],
    )  # fmt: skip
    far = spad(Format.INT32, (1, 1, 4), base=65532)
    m = fails(
        "slice 0, word 2 (COPY.L D2, D1, test.py:2): bytes 65532..65547 lie outside SPAD of slice "
        "0, which has 65536 bytes.",
        [Copy(on=Queue.L, d=2, a=1)], [dram, far],
    )  # fmt: skip
    assert not m.spad(0).any()
    odd = spad(Format.INT8, (1, 1, 64), scale=1).with_ext(2, 40)
    fails(
        "slice 0, word 1 (COPY.L D1, D1, test.py:1): D has ext[2]=40, which must be a multiple of 32 with scale=1.",
        [Copy(on=Queue.L, d=1, a=1)], [odd],
    )  # fmt: skip


def test_ring_takes_integers_only():
    fails(
        "slice 0, word 1 (RING D1, test.py:1): RING sends INT32 from SPAD or CELL, not FP32 from SPAD.",
        [Ring(a=1)], [spad(Format.FP32, (1, 1, 1))],
    )  # fmt: skip

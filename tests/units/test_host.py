"""Host port: RING and what the host reads and writes, execute and sim."""

import pytest
from sim.helpers import MINI, NANO, dense, program, same, spad, words

from systolith.isa import Adv, Format, Image, Loop, Machine, Ring, Set, Space
from systolith.sim import FastMachine
from systolith.spec import CapacityError, ProgramError


def memory(seed, rank):
    return {Space.SPAD: words(*range(-8, 4000)), Space.CELL: words(*range(64))}


def test_records_keep_their_order():
    constants = (
        spad(Format.INT32, (2, 2, 3), stride=(40, 7, 2)),
        dense(Space.CELL, Format.INT32, (1, 1, 5), 4),
        spad(Format.INT32, (0, 1, 3)),
    )
    m = same(
        [Ring(a=1), Ring(a=2), Ring(a=3), Loop(count=3, len=2), Ring(a=2), Adv(d=2, dim=2, imm=1)],
        constants,
        slices=3,
        memory=memory,
    )
    assert len(m.records(2)) == 5
    assert m.records(0)[1] == (1, 2, 3, 4, 5)


def test_the_host_hears_slice_0_at_once():
    p = program(
        [Loop(count=3, len=2), Ring(a=1), Set(r=1, imm=9), Set(r=2, imm=1)], (spad(Format.INT32, (1, 1, 2)),), slices=2
    )
    heard = []
    for kind in (Machine, FastMachine):
        machine = kind(MINI, p)
        seen = []
        assert machine.run(on_ring=lambda rank, record, m=machine, seen=seen: seen.append((rank, record, m.regs(0)[1])))
        heard.append(seen)
    assert heard[0] == heard[1]
    assert [rank for rank, _, _ in heard[0]] == [0, 0, 0]
    assert [r for _, _, r in heard[0]] == [0, 9, 9]


def test_a_record_larger_than_the_buffer():
    p = program([Ring(a=1)], (spad(Format.INT32, (8, 2, 16000), stride=(0, 0, 1)),))
    machine = FastMachine(NANO, p)
    machine.spad(0)[:64000] = 1
    assert machine.run()
    assert machine.records(0) == [(0x01010101,) * 256000]


def test_images_and_memory_of_the_host():
    p = program([Set(r=1, imm=1)], slices=2, images=(Image(-1, 16, b"all"), Image(1, 20, b"one")))
    for kind in (Machine, FastMachine):
        machine = kind(MINI, p)
        machine.write_dram(0, 100, b"host")
        assert machine.read_dram(0, 16, 8) == b"all\0\0\0\0\0"
        assert machine.read_dram(1, 16, 8) == b"all\0one\0"
        assert machine.read_dram(0, 100, 4) == b"host"
        with pytest.raises(
            ProgramError,
            match=r"^bytes 65536\.\.65536 of DRAM of slice 0 are not there: 2 slices have 65536 bytes each\.$",
        ):
            machine.read_dram(0, 65536, 1)
        with pytest.raises(ProgramError, match="slice 2 are not there"):
            machine.write_dram(2, 0, b"x")


def test_a_program_too_large_for_the_chip_is_refused():
    with pytest.raises(CapacityError, match=r"needs slices=2 and nano has 1"):
        FastMachine(NANO, program([], slices=2))


def test_illegal_records_trap_with_the_sentence_of_execute():
    for a in (
        spad(Format.FP32, (1, 1, 2)),
        dense(Space.DRAM, Format.INT32, (1, 1, 2)),
        spad(Format.INT32, (1, 1, 2), 65532),
    ):
        sentences = []
        for machine in (Machine, FastMachine):
            with pytest.raises(ProgramError) as error:
                machine(NANO, program([Ring(a=1)], (a,))).run()
            sentences.append(str(error.value))
        assert sentences[0] == sentences[1]

"""DMA: execute and sim on the corners of COPY."""

import itertools

import pytest
from sim.helpers import NANO, dense, program, same, spad, words

from systolith.isa import Copy, Descriptor, Format, Machine, Queue, Space
from systolith.sim import FastMachine
from systolith.spec import ProgramError

WAYS = [
    (Queue.W, Space.DRAM, Space.SLOT),
    (Queue.L, Space.DRAM, Space.SPAD),
    (Queue.L, Space.SPAD, Space.SPAD),
    (Queue.S, Space.SPAD, Space.DRAM),
]


@pytest.mark.parametrize(("queue", "source", "target"), WAYS)
@pytest.mark.parametrize("form", Format)
def test_extents_that_differ_fill_with_zeros(queue, source, target, form):
    for scale in (0, 1) if form.is_element else (0,):
        for d_ext, a_ext in itertools.product(
            [(1, 1, 32), (3, 2, 64), (2, 3, 96), (0, 1, 32)], [(2, 2, 40), (3, 3, 96), (1, 1, 2), (2, 0, 64)]
        ):
            d = dense(target, form, d_ext, base=2048, sbase=7168, scale=scale)
            a = dense(source, form, a_ext, base=1024, sbase=4096, scale=scale, stride=(320, 96, 1))
            same([Copy(on=queue, d=1, a=2)], (d, a))


@pytest.mark.parametrize("shift", [-5, -1, 1, 5])
def test_a_row_is_read_whole_before_it_is_written(shift):
    a = spad(Format.INT8, (3, 1, 64), base=1000)
    d = spad(Format.INT8, (3, 1, 64), base=1000 + shift)
    same([Copy(on=Queue.L, d=1, a=2)], (d, a))


def test_strides_lists_and_cells():
    def memory(seed, rank):
        return {Space.CELL: words(0, 2, 3), Space.SPAD: words(5, 1, 4, 0, 2, 2), Space.DRAM: words(*range(4000))}

    pages = spad(Format.INT32, (1, 1, 6))
    via = dense(Space.DRAM, Format.INT32, (7, 2, 5), base=64, stride=(40, 7, 2), via=1, unit=1, xb=1)
    moved = dense(Space.DRAM, Format.INT32, (4, 2, 5), base=64, stride=(40, 7, 2), step=9, xb=1, xe=2)
    d = spad(Format.INT32, (7, 2, 5), base=256, stride=(33, 11, 2))
    same([Copy(on=Queue.L, d=4, a=2), Copy(on=Queue.L, d=4, a=3)], (pages, via, moved, d), memory=memory)


def test_cells_are_a_space():
    cells = dense(Space.CELL, Format.INT32, (1, 1, 8), base=40)
    m = same(
        [Copy(on=Queue.L, d=2, a=1), Copy(on=Queue.S, d=3, a=2)],
        (spad(Format.INT32, (1, 1, 8)), cells, dense(Space.DRAM, Format.INT32, (1, 1, 8))),
    )
    assert m.read_dram(0, 0, 32) == m.spad(0)[:32].tobytes()


@pytest.mark.parametrize(
    ("queue", "d", "a"),
    [
        (Queue.W, dense(Space.SPAD, Format.INT8, (1, 1, 32)), dense(Space.DRAM, Format.INT8, (1, 1, 32))),
        (Queue.L, spad(Format.INT8, (1, 1, 32)), dense(Space.DRAM, Format.E4M3, (1, 1, 32))),
        (Queue.L, spad(Format.INT8, (1, 1, 32)), dense(Space.DRAM, Format.INT8, (1, 1, 32), scale=1)),
        (Queue.L, spad(Format.INT8, (1, 1, 40), scale=1), dense(Space.DRAM, Format.INT8, (1, 1, 32), scale=1)),
        (Queue.L, spad(Format.INT8, (1, 1, 64), base=65500), dense(Space.DRAM, Format.INT8, (1, 1, 64))),
        (Queue.L, spad(Format.INT8, (1, 1, 64)), dense(Space.DRAM, Format.INT8, (2, 1, 64), base=65500)),
        (
            Queue.L,
            spad(Format.INT8, (1, 1, 64), sbase=65535, scale=1),
            dense(Space.DRAM, Format.INT8, (1, 1, 64), scale=1),
        ),
        (
            Queue.L,
            spad(Format.INT8, (2, 1, 32)),
            Descriptor(space=Space.DRAM, format=Format.INT8, ext=(2, 1, 32), stride=(-32, 0, 1)),
        ),
        (Queue.L, spad(Format.INT8, (2, 1, 32)), dense(Space.DRAM, Format.INT8, (2, 1, 32), via=1)),
    ],
)
def test_illegal_copies_trap_with_the_sentence_of_execute(queue, d, a):
    p = program([Copy(on=queue, d=1, a=2)], (d, a))
    sentences = []
    for machine in (Machine, FastMachine):
        with pytest.raises(ProgramError) as error:
            machine(NANO, p).run()
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]

"""Collective unit: execute and sim on PUT; without it no byte reaches another slice."""

import numpy as np
import pytest
from sim.helpers import MINI, dense, program, same, spad, words

from systolith.isa import Adv, Copy, Format, Machine, Put, Queue, Space, Sync
from systolith.sim import FastMachine
from systolith.spec import ProgramError


def cells(seed, rank):
    rng = np.random.default_rng((seed, rank))
    return {Space.SPAD: rng.integers(0, 256, 65536).astype(np.uint8), Space.CELL: words(0, 1, 2, 3, 0xFFFFFFFF, rank)}


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
def test_members_and_arrivals(slices):
    d, a = spad(Format.INT8, (2, 1, 64), 4096, 8192, 1), spad(Format.INT8, (2, 2, 64), 0, 8200, 1)
    code = [Put(d=1, a=2, count=count, b=b) for count in (0, 1, 2, 2047) for b in (0, 1, 2, 3, 4)]
    code += [Put(d=1, a=2, arrive=1, sem=3, counter=15, expect=0), Sync(on=Queue.V, wait=8)]
    code += [Put(d=1, a=2, count=1, arrive=1, sem=4, counter=2, expect=9)]
    same(code, (d, a), slices=slices, memory=cells)


def test_gather_by_rank():
    """Each slice writes its own part, found through a cell that holds its rank, into all."""
    part = spad(Format.FP32, (1, 1, 8), 1024, step=8, xb=5)
    code = [Put(d=1, a=2, arrive=1, sem=0), Sync(on=Queue.V, wait=1)]
    m = same(code, (part, spad(Format.FP32, (1, 1, 8))), slices=3, memory=cells)
    whole = np.concatenate([m.spad(rank)[:32] for rank in range(3)])
    for rank in range(3):
        assert np.array_equal(m.spad(rank)[1024:1120], whole)


def test_an_empty_put_still_arrives():
    code = [Adv(d=1, kind=1, dim=0, imm=0), Put(d=1, a=2, arrive=1, sem=0), Sync(on=Queue.V, wait=1)]
    same(code, (spad(Format.INT8, (1, 1, 32), 4096), spad(Format.INT8, (1, 1, 32))), slices=2, memory=cells)


def gather(dropped):
    put = Sync(on=Queue.C) if dropped else Put(d=1, a=2, arrive=1, sem=0)
    wait = 0 if dropped else 1
    constants = (
        spad(Format.INT32, (1, 1, 4), 1024, step=4, xb=5),
        spad(Format.INT32, (1, 1, 4)),
        dense(Space.DRAM, Format.INT32, (1, 1, 8)),
    )
    return program(
        [put, Copy(on=Queue.S, d=3, a=4, wait=wait)], (*constants, spad(Format.INT32, (1, 1, 8), 1024)), slices=2
    )


def test_a_dropped_put_gives_other_results():
    results = []
    for dropped in (False, True):
        machine = FastMachine(MINI, gather(dropped))
        for rank in range(2):
            machine.spad(rank)[:16] = rank + 1
            machine._space(rank, Space.CELL)[20] = rank
        machine.run()
        results.append([machine.read_dram(rank, 0, 32) for rank in range(2)])
    assert results[0] == [bytes([1] * 16 + [2] * 16)] * 2
    assert results[1] != results[0]


def test_a_dropped_put_whose_arrival_is_waited_for_is_a_deadlock():
    p = program([Sync(on=Queue.C), Sync(on=Queue.V, wait=1)], slices=2)
    with pytest.raises(
        ProgramError, match=r"^deadlock: no slice can go on; slice 0, word 1 .* waits for semaphore 0; slice 1"
    ):
        FastMachine(MINI, p).run()


def test_spaces_are_apart():
    d, a = dense(Space.SLOT, Format.INT8, (1, 1, 32)), spad(Format.INT8, (1, 1, 32))
    p = program([Put(d=1, a=2)], (d, a), slices=2)
    sentences = []
    for machine in (Machine, FastMachine):
        with pytest.raises(ProgramError) as error:
            machine(MINI, p).run()
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]

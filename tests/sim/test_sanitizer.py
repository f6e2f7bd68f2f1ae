"""Each class of fault: a small program that commits it, and one that does not."""

import re

import numpy as np
import pytest

from systolith.isa import (
    Copy,
    Format,
    Image,
    Loop,
    Matmul,
    Op1,
    Program,
    Put,
    Queue,
    Readx,
    Requires,
    Ring,
    Set,
    Space,
    Sync,
    Vec,
    Zero,
)
from systolith.isa.asm import assemble
from systolith.sim.sanitizer import FAULTS, Finding, Sanitizer, sanitize

from .helpers import MINI, NANO, dense, program, spad

X, Y = spad(Format.FP32, (1, 1, 32)), spad(Format.FP32, (1, 1, 32), 32768)
HOST = dense(Space.DRAM, Format.FP32, (1, 1, 32))
BACK = dense(Space.DRAM, Format.FP32, (1, 1, 32), 4096)
LOAD, STORE = Copy(on=Queue.L, d=1, a=3, post=1), Copy(on=Queue.S, d=4, a=2, wait=2)
DOUBLE = Vec(d=2, a=1, b=1, op1=Op1.ADD, wait=1, post=2)
OPERANDS = (X, Y, HOST, BACK)
IMAGE = (Image(-1, 0, bytes(128)),)


def run(code, constants=OPERANDS, chip=NANO, **more):
    more.setdefault("images", IMAGE)
    return sanitize(chip, program(code, constants, **more))


def kinds(findings):
    return {finding.fault for finding in findings}


def change(instruction, **fields):
    from dataclasses import replace

    return replace(instruction, **fields)


def test_a_clean_program():
    assert run([LOAD, DOUBLE, STORE]) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ([change(LOAD, post=0), change(DOUBLE, wait=0), STORE], "reads what is written by"),
        ([LOAD, DOUBLE, change(STORE, wait=0)], "reads what is written by"),
        ([LOAD, DOUBLE, STORE, change(LOAD, post=0)], "both write"),  # copies of L overlap
        ([LOAD, change(DOUBLE, post=0), change(LOAD, d=2, post=4), change(STORE, wait=4)], "both write"),
    ],
)
def test_races(code, fault):
    findings = [f for f in run(code) if f.fault == "race"]
    assert findings
    assert any(fault in f.sentence for f in findings)
    assert re.search(r"slice 0, word \d+ \(.*kernel\.py:\d+\)", findings[0].sentence)
    assert len(findings[0].words) == 2
    assert not findings[0].warning


def test_a_semaphore_back_ends_the_race_of_a_loop():
    """A buffer used again: without a token back to the loader the second load may overtake the reader."""
    again = Loop(count=3, len=3)
    code = [again, LOAD, DOUBLE, STORE]
    assert "race" in kinds(run(code))
    back = [again, change(LOAD, wait=4), change(DOUBLE, wait=1 | 8, post=2 | 4), change(STORE, post=8)]
    assert run(back, sem_init=(0, 0, 1, 1, *(0,) * 20)) == []


def test_order_through_the_sequencer():
    cell = dense(Space.CELL, Format.INT32, (1, 1, 1), 40)
    constants = (spad(Format.INT32, (1, 1, 1)), cell, HOST, X)
    write = Copy(on=Queue.L, d=2, a=1, post=1)
    code = [Copy(on=Queue.L, d=4, a=3), write, Readx(r=1, x=10, wait=1), Vec(d=4, a=4, b=4, op1=Op1.ADD)]
    assert run(code, constants) == []
    code[1:3] = [change(write, post=0), Readx(r=1, x=10)]
    assert kinds(run(code, constants)) >= {"race"}


def test_cells_and_lists_are_memory():
    constants = (
        spad(Format.INT32, (1, 1, 4)),
        spad(Format.FP32, (2, 1, 4), 1024, via=1),
        dense(Space.DRAM, Format.INT32, (1, 1, 4)),
        spad(Format.FP32, (2, 1, 4), 8192),
        dense(Space.CELL, Format.INT32, (1, 1, 1), 40),
        spad(Format.FP32, (1, 1, 4), 1024, step=4, xb=10),
        dense(Space.DRAM, Format.FP32, (2, 1, 4)),
    )
    fill = Copy(on=Queue.L, d=4, a=7)
    table = Copy(on=Queue.L, d=1, a=3, post=1)
    ready = Copy(on=Queue.L, d=6, a=7)
    assert "race" in kinds(run([fill, ready, change(table, post=0), Vec(d=4, a=2)], constants))
    cell = Copy(on=Queue.L, d=5, a=3)
    assert "race" in kinds(run([ready, cell, Vec(d=4, a=6)], constants))
    assert run([ready, change(cell, post=1), Vec(d=4, a=6, wait=1)], constants) == []


def gather(arrive):
    """Both slices put their part into both; the reader waits for the arrival of all, or for nothing."""
    constants = (
        spad(Format.FP32, (1, 1, 8), 1024, step=8, xb=5),
        spad(Format.FP32, (1, 1, 8)),
        dense(Space.DRAM, Format.FP32, (1, 1, 8)),
        dense(Space.CELL, Format.INT32, (1, 1, 1), 20),
        dense(Space.DRAM, Format.INT32, (1, 1, 1), 1024),
        spad(Format.FP32, (1, 1, 16), 1024),
        spad(Format.FP32, (1, 1, 16), 2048),
    )
    put = Put(d=1, a=2, wait=1, arrive=1, sem=2) if arrive else Put(d=1, a=2, wait=1)
    code = [Copy(on=Queue.L, d=4, a=5), Copy(on=Queue.L, d=2, a=3, post=1), put, Vec(d=7, a=6, wait=4 if arrive else 0)]
    ranks = tuple(Image(rank, 1024, bytes([rank, 0, 0, 0])) for rank in range(2))
    return run(code, constants, MINI, slices=2, images=(*IMAGE, *ranks))


def test_arrivals_order_slices():
    assert gather(arrive=True) == []
    assert "race" in kinds(gather(arrive=False)) | kinds(gather(arrive=False))


def test_deadlock():
    findings = run([LOAD, change(DOUBLE, wait=8)])
    assert kinds(findings) == {"deadlock"}
    assert "waits for semaphore 3" in findings[0].sentence
    assert "kernel.py:" in findings[0].sentence


def test_bounds():
    far = spad(Format.FP32, (1, 1, 32), 65500)
    findings = run([LOAD, Vec(d=5, a=1, wait=1)], (*OPERANDS, far))
    assert kinds(findings) == {"bounds"}
    assert "lie outside SPAD" in findings[0].sentence
    assert findings[0].words == (6,)


def test_unwritten():
    findings = run([LOAD, change(DOUBLE, b=2), STORE])
    assert kinds(findings) == {"unwritten"}
    assert "SPAD byte 32768" in findings[0].sentence
    assert kinds(run([LOAD, DOUBLE, STORE], images=())) == {"unwritten"}


def test_host_writes_count():
    p = program([LOAD, DOUBLE, STORE], OPERANDS)
    assert sanitize(NANO, p, lambda s: s.write_dram(0, 0, bytes(128))) == []
    assert kinds(sanitize(NANO, p, lambda s: s.write_dram(0, 0, bytes(124)))) == {"unwritten"}


def test_an_accumulator_that_is_added_to_before_it_is_set():
    constants = (
        dense(Space.ACC, Format.FP32, (1, 1, 4)),
        spad(Format.INT8, (1, 1, 32), 0, 32, 1),
        dense(Space.SLOT, Format.INT8, (4, 1, 32), 0, 128, 1),
        dense(Space.DRAM, Format.INT8, (4, 1, 32), 0, 128, 1),
        dense(Space.DRAM, Format.INT8, (1, 1, 32), 0, 128, 1),
    )
    loads = [Copy(on=Queue.W, d=3, a=4, post=1), Copy(on=Queue.L, d=2, a=5, post=2)]
    for zero, found in ((Zero.YES, set()), (Zero.NO, {"unwritten"})):
        image = (Image(0, 0, bytes(200)),)
        assert kinds(run([*loads, Matmul(d=1, a=2, b=3, zero=zero, wait=3)], constants, images=image)) == found


def test_shared_bank():
    """X and its neighbour lie in one bank; two queues use it unordered. Y lies in another."""
    near = spad(Format.FP32, (1, 1, 32), 1024)
    code = [LOAD, change(DOUBLE, post=0), Copy(on=Queue.L, d=5, a=3)]
    findings = run(code, (*OPERANDS, near))
    assert kinds(findings) == {"bank"}
    assert findings[0].warning
    assert "may use bank 0 at the same time" in findings[0].sentence
    assert run(code, (*OPERANDS, spad(Format.FP32, (1, 1, 32), 20000))) == []


def test_capacity():
    needs = Requires(slices=1, dram_bytes=1 << 16, spad_bytes=1 << 20)
    words = program([Set(r=1, imm=1)]).words
    findings = sanitize(NANO, Program(words=words, requires=needs))
    assert kinds(findings) == {"capacity"}
    assert "scratchpad_bytes=1048576" in findings[0].sentence
    p = program([LOAD, DOUBLE, STORE], OPERANDS, images=IMAGE)
    small = Program(
        name="small",
        words=p.words,
        constants=p.constants,
        images=IMAGE,
        lines=p.lines,
        requires=Requires(slices=1, dram_bytes=1 << 16, spad_bytes=1024),
    )
    findings = sanitize(NANO, small)
    assert [f.sentence for f in findings] == [
        "program 'small' uses 32896 bytes of SPAD, but requires spad_bytes=1024: state what it needs"
    ]


def test_semaphore_with_two_posters_or_waiters():
    post = [Sync(on=Queue.L, post=1), Sync(on=Queue.S, post=1)]
    assert kinds(run([*post, Sync(on=Queue.M, wait=1)])) == {"semaphore"}
    wait = [Sync(on=Queue.L, post=1), Sync(on=Queue.L, post=1), Sync(on=Queue.M, wait=1)]
    assert kinds(run([*wait, Sync(on=Queue.V, wait=1)])) == {"semaphore"}
    assert kinds(run([*wait, Readx(r=1, x=1, wait=1)])) == {"semaphore"}
    assert run([*wait, Sync(on=Queue.M, wait=1)]) == []


def test_a_semaphore_may_pass_to_another_poster_once_all_is_taken():
    """S posts for V; V tells M when it has waited, and M posts next: nothing is open, and M knows it."""
    first = [Sync(on=Queue.S, post=1), Sync(on=Queue.V, wait=1, post=2), Sync(on=Queue.M, wait=2, post=1)]
    assert run([*first, Sync(on=Queue.C, wait=1)]) == []
    # M does not know that V has waited: its token might be the one that V takes.
    apart = [Sync(on=Queue.S, post=1), Sync(on=Queue.V, wait=1), Sync(on=Queue.M, post=1)]
    assert kinds(run([*apart, Sync(on=Queue.V, wait=1)])) == {"semaphore"}


def test_semaphore_that_may_overflow():
    """Program order never holds more than one token, but nothing keeps the poster from running ahead."""
    code = [Loop(count=300, len=2), Sync(on=Queue.L, post=1), Sync(on=Queue.M, wait=1)]
    findings = run(code)
    assert kinds(findings) == {"semaphore"}
    assert "token 256" in findings[0].sentence
    back = [Loop(count=300, len=2), Sync(on=Queue.L, wait=2, post=1), Sync(on=Queue.M, wait=1, post=2)]
    assert run(back, sem_init=(0, 4, *(0,) * 22)) == []
    trap = run([Loop(count=256, len=1), Sync(on=Queue.L, post=1)])
    assert kinds(trap) == {"semaphore"}


def test_trap():
    findings = run([Vec(d=1, a=3)], (X, Y, HOST))
    assert kinds(findings) == {"trap"}


def test_hand_written_programs_are_clean():
    from pathlib import Path

    for path in sorted((Path(__file__).parents[1] / "isa" / "programs").glob("*.sasm")):
        p = assemble(path.read_text(), path.name)
        found = sanitize(NANO, p, lambda s, p=p: s.written(0, Space.DRAM, 0, p.requires.dram_bytes))
        assert [f for f in found if not f.warning] == [], path.name


def test_findings_read_as_sentences():
    assert str(Finding("race", "a and b")) == "race: a and b"
    assert set(FAULTS) == {"race", "deadlock", "bounds", "unwritten", "bank", "capacity", "semaphore", "trap"}
    s = Sanitizer(NANO, program([LOAD, DOUBLE, STORE], OPERANDS, images=IMAGE))
    assert not s.run(limit=2)
    assert s.run()
    assert s.faults == []
    assert np.count_nonzero(s._writer) > 0


# ---- the host, which writes while the program runs ----

BELL, MAIL = 0, 128
RANG = dense(Space.CELL, Format.INT32, (1, 1, 1), 4)
POLL = (
    dense(Space.DRAM, Format.INT32, (1, 1, 1), BELL), dense(Space.DRAM, Format.FP32, (1, 1, 32), MAIL), RANG, X,
)  # fmt: skip
ASK = [Copy(on=Queue.L, d=3, a=1, post=1), Readx(r=1, x=1, wait=1)]
TAKE = Copy(on=Queue.L, d=4, a=2)


def hosted(code, host, bells=((0, BELL),)):
    """Findings of a program before whose second word the host acts."""
    sanitizer = Sanitizer(NANO, program([Set(r=2, imm=1), *code], POLL, images=(Image(-1, 0, bytes(256)),)), bells)
    sanitizer.run(1)
    host(sanitizer)
    sanitizer.run()
    return [str(finding) for finding in sanitizer.faults]


def test_what_the_host_writes_before_it_rings_is_ordered():
    def host(s):
        s.write_dram(0, MAIL, bytes(128))
        s.write_dram(0, BELL, b"\1\0\0\0")

    assert hosted([*ASK, TAKE], host) == []


def test_what_the_host_writes_after_it_rings_is_a_race():
    def host(s):
        s.write_dram(0, BELL, b"\1\0\0\0")
        s.write_dram(0, MAIL, bytes(128))

    assert re.search(r"race: .* reads what is written by the host: DRAM byte 128", hosted([*ASK, TAKE], host)[0])


def test_a_message_that_is_taken_without_a_poll_is_a_race():
    def host(s):
        s.write_dram(0, MAIL, bytes(128))
        s.write_dram(0, BELL, b"\1\0\0\0")

    assert hosted([TAKE], host)


def test_the_host_overwrites_only_what_a_record_says_is_read():
    def twice(code):
        s = Sanitizer(NANO, program([*code, Set(r=2, imm=1)], POLL, images=(Image(-1, 0, bytes(256)),)), ((0, BELL),))
        s.run(len(s.program.words) - 2)  # all but SET and HALT
        s.write_dram(0, MAIL, bytes(128))
        return [str(finding) for finding in s.faults]

    told = [change(TAKE, post=2), Ring(a=3, wait=2)]
    assert twice(told) == []
    assert "race: the host writes what is read by" in twice([change(TAKE, post=2)])[0]

"""The builder: labels, loops, masks, registers, and the lines that words remember."""

from __future__ import annotations

import pytest

from systolith.compiler.builder import LOOP_WORDS, SEMAPHORE, Builder, Label, mask, tensor
from systolith.isa import Program, Space
from systolith.isa.instruction import Queue
from systolith.isa.registry import decode
from systolith.isa.sequencer import Adv, AluFn, Br, Cond, Loop
from systolith.spec import ProgramError, load


def test_masks_name_semaphores() -> None:
    assert mask("") == 0
    assert mask("slot_full acc_free") == 1 << SEMAPHORE["slot_full"] | 1 << SEMAPHORE["acc_free"]
    apart = {name: number for name, number in SEMAPHORE.items() if name not in ("columns", "team")}
    assert len(set(apart.values())) == len(apart) <= 24
    assert SEMAPHORE["columns"] == SEMAPHORE["residual"]  # of which a program uses one
    assert SEMAPHORE["team"] == SEMAPHORE["consumed"]  # steps on the grid are over when teams gather
    with pytest.raises(KeyError):
        mask("slot_fool")


def test_loops_count_their_words() -> None:
    b = Builder()
    with b.registers(1) as (n,):
        b.set(n, 3)
        with b.loop(5):
            b.set(n, 1)
            with b.loop_r(n):
                b.alu(AluFn.ADD, n, n, 1)
                b.move(n, n)
    outer, inner = b.instructions[1], b.instructions[3]
    assert isinstance(outer, Loop)
    assert isinstance(inner, Loop)
    assert (outer.count, outer.len, outer.use_reg) == (5, 4, 0)
    assert (inner.r, inner.len, inner.use_reg) == (n, 2, 1)


def test_a_loop_has_as_many_words_as_its_field_holds() -> None:
    b = Builder()
    with b.loop(2):
        for _ in range(LOOP_WORDS):
            b.set(1, 0)
    assert b.fits(b.program_bytes)
    assert not b.fits(b.program_bytes - 1)
    with b.loop(2):
        for _ in range(LOOP_WORDS + 1):
            b.set(1, 0)
    assert not b.fits(b.program_bytes)


def test_labels_may_be_named_before_they_are_known() -> None:
    b = Builder()
    forward, back = Label(), Label()
    b.place(back)
    b.branch(forward, Cond.EQ, 3, 7)
    b.branch(back)
    b.branch_r(forward, Cond.LT, 1, 2)
    b.place(forward)
    b.halt()
    b.resolve([forward, back])
    first, second, third = b.instructions[:3]
    assert isinstance(first, Br)
    assert isinstance(second, Br)
    assert isinstance(third, Br)
    assert (first.target, first.cond, first.ra, first.use_imm, first.imm) == (3, Cond.EQ, 3, 1, 7)
    assert (second.target, second.cond) == (0, Cond.ALWAYS)
    assert (third.target, third.ra, third.rb, third.use_imm) == (3, 1, 2, 0)


def test_registers_come_back_in_order_and_run_out_in_one_sentence() -> None:
    b = Builder()
    with b.registers(2) as (x, y):
        assert x != y
        assert 0 not in (x, y)
    with b.registers(2) as again:
        assert again == (x, y)
    assert 0 not in [b.register() for _ in range(29)]
    with pytest.raises(ProgramError, match=r"^the kernels need more than 29 registers at once\.$"):
        b.register()
    assert 0 not in [b.descriptor() for _ in range(63)]
    with pytest.raises(ProgramError, match=r"^the kernels need more than 63 descriptors at once\.$"):
        b.descriptor()


def test_a_pair_of_descriptors_is_two_in_a_row() -> None:
    b = Builder()
    with b.descriptors(5) as held, b.pair() as d:
        assert d not in held
        assert d + 1 not in held
    with b.descriptors(2) as taken:
        assert len(set(taken)) == 2


def test_equal_constants_are_one() -> None:
    b = Builder()
    for _ in range(3):
        b.load(5, tensor(Space.SPAD, "FP32", 64, (1, 1, 8), (0, 0, 1)))
    b.load(6, tensor(Space.SPAD, "FP32", 64, (1, 1, 9), (0, 0, 1)))
    assert len(b.constants) == 2
    assert [i.k for i in b.instructions] == [0, 0, 0, 1]  # type: ignore[attr-defined]


def test_advancing_by_nothing_writes_no_word() -> None:
    b = Builder()
    b.advance(3, 0, 0)
    assert b.instructions == []
    b.advance(3, 2, -5)
    assert b.instructions == [Adv(d=3, dim=2, imm=-5)]


def test_words_remember_who_wrote_them() -> None:
    b = Builder()
    b.tensor_name = "layer"
    b.sync(Queue.V, wait="slot_full", post="slot_free")
    with b.loop(2):
        b.halt()
    assert len(b.lines) == len(b.instructions)
    assert all(line.startswith("test_building.py:") and line.endswith(" layer") for line in b.lines)


def test_what_it_writes_is_a_legal_program_that_runs() -> None:
    from systolith.isa import Machine

    b = Builder()
    label = Label()
    with b.registers(2) as (count, total):
        b.set(count, 4)
        b.set(total, 0)
        with b.loop_r(count):
            b.alu(AluFn.ADD, total, total, 10)
        b.branch(label, Cond.EQ, total, 40)
        b.halt(1)
        b.place(label)
        b.halt()
        b.resolve([label])
    program = Program(name="b", words=tuple(i.encode() for i in b.instructions), lines=tuple(b.lines))
    assert [decode(w) for w in program.words] == b.instructions
    machine = Machine(load("nano"), program)
    assert machine.run()
    assert machine.regs(0)[total] == 40
    assert machine.slices[0].cause == 0

"""The mailbox: between two steps the host may change what runs.

A message holds the record of one step, the record of the decode steps to follow, and new words of request slots. The
host writes it into the mailbox of every slice and then rings slice 0: a word in its memory, the number of messages so
far. Slice 0 alone reads that word and tells it to all, so that all take the same message at the same step. Where there
is nothing new the decode rows go on; where there are none, slice 0 reads again (docs/decisions/0008-batching.md).
"""

from __future__ import annotations

from systolith.compiler.builder import Label, tensor
from systolith.compiler.context import Cell, Context, Counter
from systolith.compiler.kernels.sample import POSITION, TOKEN, column, out_slots
from systolith.compiler.memory import HEADER_WORDS, MAIL_ENTRIES, SEGMENT_WORDS, Message, slot_pages
from systolith.isa.descriptor import Descriptor, Space
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond
from systolith.spec.limits import RANK_REGISTER

__all__ = ["end_of_step", "fill_rows", "head_into_cells", "next_message", "start_mail"]


def start_mail(ctx: Context) -> None:
    """No message taken, nothing running; the first poll need not wait for a step."""
    b = ctx.b
    b.set(ctx.r_taken, 0)
    b.sync(Queue.S, post="cached")


def next_message(ctx: Context, empty: Label, end: Label) -> None:
    """Have the record of the next step: of a new message, or of the one before. Goes on to `empty` with a message
    without rows, to `end` with the one that stops the program."""
    b = ctx.b
    pattern, filled = ctx.label(), ctx.label()
    b.tensor_name = "mail"
    # L may go on once V has used the tables and S has told the host of the step before.
    b.sync(Queue.L, wait="released cached")
    with b.registers(1) as (known,):
        _poll(ctx, known)
        b.branch_r(pattern, Cond.EQ, known, ctx.r_taken)
    _load_record(ctx, 0)
    _update_slots(ctx)
    b.alu(AluFn.ADD, ctx.r_taken, ctx.r_taken, 1)
    b.set(ctx.r_decoding, 0)
    with b.registers(1) as (stop,):
        b.read(stop, Cell.STOP)
        b.branch(end, Cond.NE, stop, 0)
    b.branch(filled)
    b.place(pattern)
    # The pattern of a message is loaded once; then only tokens and positions change.
    b.branch(filled, Cond.NE, ctx.r_decoding, 0)
    b.alu(AluFn.SUB, ctx.r_taken, ctx.r_taken, 1)
    _load_record(ctx, _message(ctx).pattern)
    b.alu(AluFn.ADD, ctx.r_taken, ctx.r_taken, 1)
    b.set(ctx.r_decoding, 1)
    b.place(filled)
    fill_rows(ctx)
    with b.registers(1) as (rows,):
        b.read(rows, Cell.ROWS)
        b.branch(empty, Cond.EQ, rows, 0)
    b.tensor_name = ""


def fill_rows(ctx: Context) -> None:
    """Decode rows: the token that a request slot made last, at its position."""
    b, record, count = ctx.b, ctx.memory.record, ctx.plan.out_rows
    b.sync(Queue.L, post="load_full")
    with out_slots(ctx) as slots, b.descriptors(2) as (d, a):
        for number, (which, offset, stride) in enumerate((
            (TOKEN, record.ids, 1), (POSITION, record.positions, 1), (POSITION, record.segments + 3, SEGMENT_WORDS),
        )):  # fmt: skip
            b.load(a, column(ctx, which, slots, Cell.DECODE))
            b.load(d, ctx.spad("record", "INT32", (count, 1, 1), (stride, 0, 0), offset=4 * offset))
            b.vec(d, a, wait="" if number else "load_full", post="released" if number == 2 else "")
    b.sync(Queue.L, wait="released")


def end_of_step(ctx: Context) -> None:
    """Tell the host that the step is done, after its stores: messages taken, request slots that live."""
    b = ctx.b
    b.sync(Queue.V, post="store_full released")
    with b.descriptors(1) as (d,):
        b.load(d, tensor(Space.CELL, "INT32", 4 * Cell.MAIL, (1, 1, 2), (0, 0, Cell.LIVE - Cell.MAIL)))
        b.ring(d, wait="store_full", post="cached")


def _message(ctx: Context) -> Message:
    return ctx.memory.record.message(ctx.plan.options.batch, slot_pages(ctx.plan))


def _part(ctx: Context, words: int, offset: int) -> Descriptor:
    """Describe `words` words of a message, from word `offset` on; moves by messages (3) and blocks of updates (0)."""
    message = _message(ctx)
    return ctx.dram("mail", "INT32", (1, 1, words), (message.block, 0, 1), offset=4 * offset, step=message.words,
                    wrap=MAIL_ENTRIES * message.words)  # fmt: skip


def _poll(ctx: Context, known: int) -> None:
    """R[known] = messages that there are, the same on all slices: what slice 0 reads, until it is worth a step.

    Polls take turns with their arrival counters and words: between two of them there may be no other gather, and then
    a message has been taken.
    """
    b = ctx.b
    told, again, found, odd, sent = (ctx.label() for _ in range(5))
    with b.registers(2) as (turn, going), b.descriptors(2) as (d, a):
        b.alu(AluFn.AND, turn, ctx.r_taken, 1)
        # Rows that go on by themselves: those of the pattern, while any request lives.
        b.read(going, Cell.NEXT)
        b.read(known, Cell.LIVE)
        b.alu_r(AluFn.MUL, going, going, known)
        b.branch(told, Cond.NE, RANK_REGISTER, 0)
        b.place(again)
        b.load(d, ctx.cell(Cell.BELL))
        b.load(a, ctx.dram("bell", "INT32", (1, 1, 1), (0, 0, 1)))
        b.copy(Queue.L, d, a, post="loaded")
        b.read(known, Cell.BELL, wait="loaded")
        b.branch_r(found, Cond.NE, known, ctx.r_taken)
        b.branch(again, Cond.EQ, going, 0)
        b.place(found)
        b.load(a, ctx.spad("mail", "INT32", (1, 1, 1), (0, 0, 1), step=1))
        b.advance_r(a, 3, turn)
        b.put(a, d)
        b.place(told)
        b.sync(Queue.V, wait="stage_free", post="stage_full")
        b.sync(Queue.C, wait="stage_full", post="stage_free")
        b.branch(odd, Cond.NE, turn, 0)
        b.arrive(ctx.nothing, "arrived", Counter.MAIL)
        b.branch(sent)
        b.place(odd)
        b.arrive(ctx.nothing, "arrived", Counter.MAIL + 1)
        b.place(sent)
        b.load(d, ctx.cell(Cell.MAIL))
        b.load(a, ctx.spad("mail", "INT32", (1, 1, 1), (0, 0, 1), step=1))
        b.advance_r(a, 3, turn)
        b.copy(Queue.L, d, a, wait="arrived", post="loaded")
        b.read(known, Cell.MAIL, wait="loaded")


def _load_record(ctx: Context, offset: int) -> None:
    """Load a record of message R[taken] and its head into cells."""
    b, words = ctx.b, ctx.memory.record.words
    with b.descriptors(2) as (d, a):
        b.load(d, ctx.spad("record", "INT32", (1, 1, words), (0, 0, 1)))
        b.load(a, _part(ctx, words, offset))
        b.advance_r(a, 3, ctx.r_taken)
        b.copy(Queue.L, d, a)
    head_into_cells(ctx)


def head_into_cells(ctx: Context) -> None:
    """Copy the head of the record that was loaded last into cells, and wait for it."""
    b = ctx.b
    with b.descriptors(2) as (d, a):
        b.load(d, ctx.cell(Cell.ROWS, HEADER_WORDS))
        b.load(a, ctx.spad("record", "INT32", (1, 1, HEADER_WORDS), (0, 0, 1)))
        b.copy(Queue.L, d, a, post="loaded")
    with b.registers(1) as (rows,):
        b.read(rows, Cell.ROWS, wait="loaded")


def _update_slots(ctx: Context) -> None:
    """Copy the blocks of message R[taken] into the tables of the request slots that its record lists."""
    b, record, message = ctx.b, ctx.memory.record, _message(ctx)
    ends = [*message.starts.values(), message.block][1:]
    with ctx.cell_loop(Cell.UPDATES) as index, b.registers(1) as (slot,), b.descriptors(2) as (d, a):
        b.load(d, ctx.cell(Cell.OUT_SLOT))
        b.load(a, ctx.spad("record", "INT32", (1, 1, 1), (0, 0, 1), offset=4 * record.updates, step=1))
        b.advance_r(a, 3, index)
        b.copy(Queue.L, d, a, post="loaded")
        b.read(slot, Cell.OUT_SLOT, wait="loaded")
        for (name, start), end in zip(message.starts.items(), ends, strict=True):
            words = end - start
            b.load(d, ctx.spad(name, "INT32", (1, 1, words), (0, 0, 1), step=words))
            b.advance_r(d, 3, slot)
            b.load(a, _part(ctx, words, message.updates + start))
            b.advance_r(a, 3, ctx.r_taken)
            b.advance_r(a, 0, index)
            b.copy(Queue.L, d, a)

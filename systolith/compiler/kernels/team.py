"""A gather in two stages: rows are handed to the members of a team, which send them to all (`compiler.team`).

A team's buffer is used again by the next gather: what is handed over then is made from the gather before, which all
have ended, so that its rows have left. The parts of a tile of h are the only ones that follow each other without such a
gather in between: a fast slice hands over the second part when a slow one has still to hand over the first. They take
turns with two buffers and two arrival counters. Nobody is further ahead, as C works in order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from systolith.compiler.context import Cell, Context, Counter
from systolith.compiler.team import Deal, team_shape
from systolith.isa.descriptor import Descriptor
from systolith.isa.sequencer import AluFn
from systolith.spec.limits import RANK_REGISTER

__all__ = ["Sent", "send_by_team"]

_COUNTERS = (Counter.TEAM, Counter.TEAM_AGAIN)


@dataclass(frozen=True, slots=True)
class Sent:
    """What is staged and sent. stage: [rows, 1, columns] of codes, an entry of a ring that `Context.r_stage` counts;
    deal, cells: how columns are dealt out, and cells of this slice's first unit of them and its units; buffer: of the
    team; target: buffer of the operand, whose rows have `width` elements, from element `start` on; arrival: at
    (semaphore, counter) of all."""

    stage: Descriptor
    deal: Deal
    cells: tuple[Cell, Cell]
    buffer: str
    target: str
    width: int
    arrival: tuple[str, int] | None = None
    start: int = 0


def send_by_team(ctx: Context, sent: Sent, *, rows: int = 0, turn: int = 0, post: str = "stage_free") -> None:
    """Send what V has staged, of all slices alike.

    rows : register of the number of rows, or 0: those of the step. turn : which of two counters. post : semaphores that
    say that the team has it.
    """
    b, team = ctx.b, ctx.plan.team
    with b.registers(5) as (member, count, first, units, left):
        # The team's columns: from its first slice's on, as many as up to the next team's.
        b.alu(AluFn.AND, member, RANK_REGISTER, team - 1)
        b.alu_r(AluFn.SUB, count, RANK_REGISTER, member)
        _first_unit(ctx, sent.deal, first, count)
        if sent.deal.made:
            b.alu(AluFn.ADD, count, count, team)
            _first_unit(ctx, sent.deal, units, count)
            b.alu_r(AluFn.SUB, units, units, first)
        if rows:
            b.move(left, rows)
        else:
            b.read(left, Cell.ROWS)
        _hand_over(ctx, sent, member, first, left, turn, post)
        # All members have had their rows: `member` is this slice again.
        _rows_of(ctx, count, member, left)
        each, pitch = team_shape(ctx.plan, sent.stage.ext[0], sent.deal)
        with b.descriptors(2) as (source, out):
            b.load(source, _buffer(ctx, sent, pitch))
            all_rows = sent.stage.ext[0]
            view = ctx.spad(sent.target, sent.stage.format.name, (each, 1, pitch), (team * sent.width, sent.width, 1),
                            scales=all_rows * sent.width, step=sent.deal.unit)  # fmt: skip
            b.load(out, view)
            b.advance_r(out, 1, member)
            b.advance_r(out, 3, first)
            b.advance(out, 2, sent.start)
            for d in (source, out):
                b.extent_r(d, 0, count)
            if sent.deal.made:
                _cut_columns(ctx, sent.deal, units, source, out)
            b.put(out, source, wait="team", arrival=sent.arrival)


def _hand_over(ctx: Context, sent: Sent, member: int, first: int, rows: int, turn: int, post: str) -> None:
    """Send each member of the team its rows of what is staged, this slice itself first: so no two send to the same."""
    b, team = ctx.b, ctx.plan.team
    each, pitch = team_shape(ctx.plan, sent.stage.ext[0], sent.deal)
    columns, row = sent.stage.ext[2], sent.stage.stride[0]
    staged = replace(sent.stage, ext=(each, 1, columns), stride=(team * row, row, 1), xe=0)
    cells = [*range(Cell.TEAM, Cell.TEAM + 4), *range(Cell.TEAM_MORE, Cell.TEAM_MORE + 4)][:team]
    with b.registers(2) as (units, count), b.descriptors(2) as (source, out):
        b.read(units, sent.cells[0])
        b.alu_r(AluFn.SUB, units, units, first)
        b.load(out, _buffer(ctx, sent, pitch, columns))
        b.advance_r(out, 3, units)
        ctx.load_ring(source, staged, ctx.r_stage)
        b.advance_r(source, 1, member)
        if sent.deal.made:
            b.read(units, sent.cells[1])
            _cut_columns(ctx, sent.deal, units, source, out)
        for number, cell in enumerate(cells):
            if number:
                # From one member to the next, behind the last the first: row by row, or back.
                b.move(count, member)
                _next(ctx, member)
                b.alu_r(AluFn.SUB, count, member, count)
                b.advance_r(source, 1, count)
            _rows_of(ctx, count, member, rows)
            for d in (source, out):
                b.extent_r(d, 0, count)
            b.put(out, source, cell, 1, wait="" if number else "stage_full", post=post if number == team - 1 else "",
                  arrival=("team", _COUNTERS[turn]), expect=team)  # fmt: skip
    _next(ctx, member)


def _next(ctx: Context, member: int) -> None:
    """R[member] = the member behind it, the first behind the last."""
    ctx.b.alu(AluFn.ADD, member, member, 1)
    ctx.b.alu(AluFn.AND, member, member, ctx.plan.team - 1)


def _rows_of(ctx: Context, count: int, member: int, rows: int) -> None:
    """R[count] = rows of R[rows] that member R[member] of a team has: every H-th from its own number on."""
    b = ctx.b
    b.alu_r(AluFn.MAX, count, rows, member)
    b.alu_r(AluFn.SUB, count, count, member)
    b.alu(AluFn.CEILDIV, count, count, ctx.plan.team)


def _first_unit(ctx: Context, deal: Deal, r: int, rank: int) -> None:
    """R[r] = first unit of columns of rank R[rank], which may be the number of slices."""
    b = ctx.b
    if not deal.made:
        b.move(r, rank)
        return
    b.alu(AluFn.MUL, r, rank, deal.made)
    b.alu(AluFn.SHR, r, r, deal.unit.bit_length() - 1)
    with b.registers(1) as (most,):
        b.set(most, deal.units)
        b.alu_r(AluFn.MIN, r, r, most)


def _cut_columns(ctx: Context, deal: Deal, units: int, *descriptors: int) -> None:
    """Cut tensors in registers to R[units] units of columns, which R[units] counts then."""
    ctx.b.alu(AluFn.MUL, units, units, deal.unit)
    for d in descriptors:
        ctx.b.extent_r(d, 2, units)


def _buffer(ctx: Context, sent: Sent, pitch: int, columns: int = 0) -> Descriptor:
    """All that a member of a team brings together, or one slice's columns of it; a step is a unit of columns."""
    each, _ = team_shape(ctx.plan, sent.stage.ext[0], sent.deal)
    return ctx.spad(sent.buffer, sent.stage.format.name, (each, 1, columns or pitch), (pitch, 0, 1),
                    scales=each * pitch, step=sent.deal.unit)  # fmt: skip

"""The program around the layers: start, the endless loop of steps, and the end.

A step is described by a record: how many rows, which tokens at which positions, which segments, which rows need logits.
The host lays down the records of the prefill before it starts the chip, and one for decode steps, in which the device
fills in tokens and positions itself. Between start and stop the host only reads the done-ring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from systolith.compiler.builder import tensor
from systolith.compiler.context import Cell, Context, Counter, Mixture
from systolith.compiler.kernels.attention import attention
from systolith.compiler.kernels.cache import append, await_rows
from systolith.compiler.kernels.decode import load_ahead, start_ahead
from systolith.compiler.kernels.embed import embed
from systolith.compiler.kernels.experts import experts_down, experts_up
from systolith.compiler.kernels.ffn import ffn
from systolith.compiler.kernels.head import head
from systolith.compiler.kernels.head_norm import rewind_head_gains
from systolith.compiler.kernels.latent import latent_qk, latent_values, rewind_low_gains
from systolith.compiler.kernels.linear import fetch_ahead, open_streams, rewind
from systolith.compiler.kernels.mail import end_of_step, fill_rows, head_into_cells, next_message, start_mail
from systolith.compiler.kernels.norm import make_r
from systolith.compiler.kernels.project import project
from systolith.compiler.kernels.qkv import qkv
from systolith.compiler.kernels.route import route
from systolith.compiler.kernels.sample import sample
from systolith.compiler.kernels.sigmoid_route import rewind_correction
from systolith.compiler.memory import (
    CONST_WORDS,
    PARAM_WORDS,
    RANK_WORDS,
    STATE_WORDS,
    STOPS,
    TEAM_WORDS,
    owner_words,
    route_numbers,
    sink_layers,
    slot_pages,
)
from systolith.compiler.model import LayerKind, periods
from systolith.isa.descriptor import Space
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn, Cond

__all__ = ["write_program"]


def write_program(ctx: Context, steps_before: Callable[[], None] | None = None) -> None:
    """Write the whole program. steps_before: writes steps that come before all others."""
    b, plan = ctx.b, ctx.plan
    _start(ctx)
    if steps_before is not None:
        ctx.after_grid = True
        steps_before()
    if plan.team > 1:
        _load_team(ctx)
    if plan.gains_resident:
        _load_gains(ctx)
    step, no_logits, end = (ctx.label() for _ in range(3))
    told = ctx.label() if plan.options.serve else end
    b.place(step)
    if not plan.x_resident:
        # The last store of a step reads a cell that the next record replaces.
        b.sync(Queue.L, wait="residual")
        b.sync(Queue.S, post="residual")
    if plan.options.serve:
        next_message(ctx, told, end)
    else:
        decode, run = ctx.label(), ctx.label()
        b.branch(decode, Cond.EQ, ctx.r_steps, 0)
        _load_record(ctx, wait="released")
        b.alu(AluFn.SUB, ctx.r_steps, ctx.r_steps, 1)
        b.branch(run)
        b.place(decode)
        if plan.options.every_row:
            b.branch(end)
        else:
            _next_decode(ctx)
        b.place(run)
    _position_tables(ctx)
    rewind(ctx)
    if plan.model.head_norms is not None:
        rewind_head_gains(ctx)
    b.load(ctx.streams["g"], ctx.dram("g", "FP32", (1, 1, ctx.shard), (0, 0, 1), step=ctx.shard))
    b.set(ctx.r_layer, 0)
    if plan.row_ahead:
        start_ahead(ctx)
    from_grid = ctx.label()
    if ctx.after_grid:
        with b.registers(1) as (flag,):
            b.read(flag, Cell.FROM_GRID)
            b.branch(from_grid, Cond.NE, flag, 0)
    if plan.model.latent is not None:
        rewind_low_gains(ctx)
    if "correction" in ctx.streams:
        rewind_correction(ctx)
    embed(ctx)
    done = mixed = 0
    for kinds, times in periods(plan.model.kinds):
        every = sum(kind.experts for kind in kinds)
        with b.loop(times):
            if plan.team > 1 and _share_words(kinds):
                ctx.mixture = Mixture(done, len(kinds), every, mixed)
                with b.registers(1) as (number,):
                    b.set(number, 0)
                    with b.loop(len(kinds)):
                        _layer(ctx, kinds, number)
                        b.alu(AluFn.ADD, number, number, 1)
            else:
                for place, kind in enumerate(kinds):
                    before = sum(other.experts for other in kinds[:place])
                    ctx.mixture = Mixture(done + place, len(kinds), every, mixed + before)
                    _layer(ctx, (kind,))
        done, mixed = done + times * len(kinds), mixed + times * every
    # The last gather brought the operand of the head.
    b.sync(Queue.M, wait="operand")
    if plan.profile.deferred_norm:
        make_r(ctx, "a")
    b.place(from_grid)
    with b.registers(1) as (count,):
        b.read(count, Cell.OUT_ROWS)
        b.branch(no_logits, Cond.EQ, count, 0)
    head(ctx)
    if plan.options.every_row:
        with b.registers(1) as (count,):
            b.read(count, Cell.OUT_ROWS)
            b.alu_r(AluFn.ADD, ctx.r_log, ctx.r_log, count)
        b.sync(Queue.L, wait="arrived")
        b.sync(Queue.V, post="released")
        b.branch(step)
    elif plan.options.serve:
        sample(ctx)
        with b.registers(1) as (live,):
            b.read(live, Cell.LIVE, wait="decided")
        b.branch(told)
    else:
        sample(ctx)
        with b.registers(1) as (live,):
            b.read(live, Cell.LIVE, wait="decided")
            b.sync(Queue.V, post="released")
            b.branch(step, Cond.NE, ctx.r_steps, 0)
            b.branch(end, Cond.EQ, live, 0)
            b.branch(step)
    # Without logits the slices still meet, or a fast one would send the next step's operand into one being read.
    b.place(no_logits)
    ctx.arrive(("arrived", Counter.LOGITS))
    if plan.options.serve:
        # V goes on behind L here: it will stand for this slice at the next poll.
        b.sync(Queue.L, wait="arrived", post="load_full")
        b.sync(Queue.V, wait="load_full")
        b.place(told)
        end_of_step(ctx)
    else:
        b.sync(Queue.L, wait="arrived")
        b.sync(Queue.V, post="released")
    b.branch(step)
    b.place(end)
    b.halt()
    b.resolve(ctx.labels)


def _share_words(kinds: Sequence[LayerKind]) -> bool:
    """Whether layers of these kinds, all unlike, differ in their windows alone: then attention has words for each, and
    all else is written once. LOOP repeats only so many words."""
    return len(kinds) == len(set(kinds)) > 1 and len({replace(kind, window=None) for kind in kinds}) == 1


def _layer(ctx: Context, kinds: Sequence[LayerKind], number: int = 0) -> None:
    """One layer of the decoder, of kind R[number] where there are several."""
    b, plan = ctx.b, ctx.plan
    ctx.kind = kind = kinds[0]
    if plan.model.latent is None:
        qkv(ctx)
    else:
        latent_qk(ctx)
    fetch_ahead(ctx)
    await_rows(ctx)
    append(ctx)
    done = ctx.label()
    for place, ctx.kind in enumerate(kinds):
        other = ctx.label()
        if place < len(kinds) - 1:
            b.branch(other, Cond.NE, number, place)
        attention(ctx)
        if place < len(kinds) - 1:
            b.branch(done)
        b.place(other)
    b.place(done)
    if plan.model.latent is not None:
        latent_values(ctx)
    project(ctx, plan.o, "attention" if plan.model.latent is None else "attended", "b")
    if plan.row_ahead:
        load_ahead(ctx)
    if kind.experts:
        route(ctx)
        experts_up(ctx)
        experts_down(ctx)
    else:
        ffn(ctx)
        project(ctx, plan.dense.down if plan.dense is not None else plan.down, "h", "a")
    b.alu(AluFn.ADD, ctx.r_layer, ctx.r_layer, 1)


def _start(ctx: Context) -> None:
    """Load what stays: constants, page lists, request slots, the slice's share of the work."""
    b, plan, o = ctx.b, ctx.plan, ctx.plan.options
    b.tensor_name = "start"
    b.load(ctx.nothing, tensor(Space.SPAD, "INT8", 0, (0, 0, 0), (0, 0, 0)))
    open_streams(ctx)
    for name in ("g", "record", "g_head", "g_low", "correction"):
        if name in ("g", "record") or name in ctx.memory.dram:
            ctx.streams[name] = b.descriptor()
    tables = [
        ("consts", "INT32", CONST_WORDS), ("pages", "INT32", o.batch * slot_pages(plan)),
        ("state", "INT32", STATE_WORDS * o.batch), ("params", "INT32", PARAM_WORDS * o.batch),
        ("stops", "INT32", STOPS * o.batch),
    ]  # fmt: skip
    if plan.logits_dealt:
        tables.append(("owners", "INT32", owner_words(plan)))
    if "route_numbers" in ctx.memory.spad:
        tables.append(("route_numbers", "INT32", route_numbers(plan)))
    if "sinks" in ctx.memory.spad:
        tables.append(("sinks", "INT32", 2 * plan.model.heads * sink_layers(plan)))
    with b.descriptors(2) as (d, a):
        for name, fmt, count in tables:
            b.load(d, ctx.spad(name, fmt, (1, 1, count), (0, 0, 1)))
            b.load(a, ctx.dram(name, fmt, (1, 1, count), (0, 0, 1)))
            b.copy(Queue.L, d, a, post="load_full" if name == tables[-1][0] else "")
        b.sync(Queue.V, wait="load_full")
        b.load(d, ctx.cell(Cell.O_FIRST, RANK_WORDS))
        b.load(a, ctx.dram("ranks", "INT32", (1, 1, RANK_WORDS), (0, 0, 1)))
        b.copy(Queue.L, d, a, post="loaded")
    b.read(ctx.r_steps, Cell.STEPS, wait="loaded")
    counters = (ctx.r_decoding, ctx.r_log, ctx.r_exchange, ctx.r_slot, ctx.r_acc, ctx.r_stage, ctx.r_load, ctx.r_kv)
    for register in filter(None, counters):
        b.set(register, 0)
    if o.serve:
        start_mail(ctx)
    else:
        words = ctx.memory.record.words
        b.load(ctx.streams["record"], ctx.dram("steps", "INT32", (1, 1, words), (0, 0, 1), step=words))
    b.tensor_name = ""


def _load_team(ctx: Context) -> None:
    """Load the ranks of the team into cells that steps on the grid, which are over, had for others."""
    b = ctx.b
    with b.descriptors(2) as (d, a), b.registers(1) as (rank,):
        b.load(d, ctx.cell(Cell.TEAM, TEAM_WORDS))
        b.load(a, ctx.dram("ranks", "INT32", (1, 1, TEAM_WORDS), (0, 0, 1), offset=4 * RANK_WORDS))
        b.copy(Queue.L, d, a, post="loaded")
        b.read(rank, Cell.TEAM, wait="loaded")


def _load_gains(ctx: Context) -> None:
    """Load the gains of all layers, which stay: behind steps that have other things in their place."""
    b, plan = ctx.b, ctx.plan
    count = ctx.shard * (len(plan.model.layer_norms) * plan.model.layers + 1)
    with b.descriptors(2) as (d, a):
        b.load(d, ctx.spad("g", "FP32", (1, 1, count), (0, 0, 1)))
        b.load(a, ctx.dram("g", "FP32", (1, 1, count), (0, 0, 1)))
        b.copy(Queue.L, d, a, post="load_full")
    b.sync(Queue.V, wait="load_full")


def _load_record(ctx: Context, wait: str) -> None:
    """Load the next step record and its head into cells."""
    b = ctx.b
    words = ctx.memory.record.words
    with b.descriptors(1) as (d,):
        b.load(d, ctx.spad("record", "INT32", (1, 1, words), (0, 0, 1)))
        b.copy(Queue.L, d, ctx.streams["record"], wait=wait)
        b.advance(ctx.streams["record"], 3, 1)
    head_into_cells(ctx)


def _next_decode(ctx: Context) -> None:
    """One row for each request slot: the token it made last, at its position. The first time the record is loaded;
    where slots take turns, each time the next of their records."""
    b, again, steps = ctx.b, ctx.label(), ctx.plan.decode_steps
    b.sync(Queue.L, wait="released")
    if steps == 1:
        b.branch(again, Cond.NE, ctx.r_decoding, 0)
        _load_record(ctx, wait="")
        b.set(ctx.r_decoding, 1)
    else:
        _load_record(ctx, wait="")
        b.alu(AluFn.ADD, ctx.r_decoding, ctx.r_decoding, 1)
        b.branch(again, Cond.NE, ctx.r_decoding, steps)
        b.set(ctx.r_decoding, 0)
        b.advance(ctx.streams["record"], 3, -steps)
    b.place(again)
    fill_rows(ctx)


def _position_tables(ctx: Context) -> None:
    """Gather cosines and sines of the rows' positions."""
    b, rows, half = ctx.b, ctx.rows, ctx.plan.model.turned // 2
    with b.descriptors(3) as (index, d, a):
        b.load(index, ctx.spad("record", "INT32", (rows, 1, 1), (1, 0, 0), offset=4 * ctx.memory.record.positions))
        last = len(ctx.plan.model.ropes) - 1
        for number in range(last + 1):
            here, there = 4 * number * rows * half, 4 * number * ctx.plan.options.context * half
            for name in ("cos", "sin"):
                b.load(d, ctx.spad(name, "FP32", (rows, 1, half), (half, 0, 1), offset=here, xe=Cell.ROWS))
                b.load(a, ctx.dram(name, "FP32", (rows, 1, half), (half, 0, 1), offset=there, xe=Cell.ROWS, via=index))
                b.copy(Queue.L, d, a, post="load_full" if name == "sin" and number == last else "")
    b.sync(Queue.V, wait="load_full")

"""An in-order queue before a unit: entries with copied descriptors, the head resolved, started instructions till
they end.

The head starts when its tokens are there and its unit is ready. What does nothing (SYNC, an empty extent) ends in the
cycle after its start, and like everything no earlier than the one before it.
"""

from __future__ import annotations

from typing import Any, Final

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from systolith.isa.descriptor import FIELDS
from systolith.isa.registry import BY_NAME
from systolith.spec import SEMAPHORES, Chip

from .ports import COMMANDS, command_layout

__all__ = ["COPY", "DESCRIPTOR", "LETTERS", "RIDERS", "Queue", "entry_layout"]

DESCRIPTOR: Final = data.StructLayout(
    {name.replace("[", "").replace("]", ""): signed(bits) if sign else unsigned(bits) for name, bits, sign in FIELDS}
)
"""A packed descriptor; `ext[0]` is `ext0`."""

IN_FLIGHT: Final = 8
"""Started instructions of a queue whose ends are still to come, at least; a start waits where there are as many."""
RIDERS: Final = 4
"""Instructions of a queue that may end in one cycle."""
TIME_BITS: Final = 40

_SYNC, _PUT = BY_NAME["SYNC"].OPCODE, BY_NAME["PUT"].OPCODE
_GOVERNS: Final = {"W": "d", "L": "d", "S": "d", "V": "a", "M": "ab", "C": ""}


def in_flight(chip: Chip, queue: str) -> int:
    """Started instructions whose ends a queue keeps: on M as many as the shortest products in a row have under way."""
    if queue != "M":
        return IN_FLIGHT
    block = chip.passes_per_block * -(-chip.blocks_per_pass * chip.accumulator_interval_cycles // chip.passes_per_block)
    tail = (
        chip.array_skew_cycles + chip.normalise_cycles + chip.blocks_per_pass * chip.fp32_add_cycles + chip.bank_cycles
    )
    return max(IN_FLIGHT, 2 + -(-(2 * chip.bank_cycles + block + tail) // block))


def entry_layout(queue: str) -> data.StructLayout:
    """What dispatch puts into a queue beside the descriptors."""
    members: dict[str, Any] = {"op": 6, "pc": 16, "wait": SEMAPHORES, "post": SEMAPHORES, "fields": 50, "present": 6}
    if queue == "M":
        members["zero"] = 1
    if queue == "V":
        members |= {"r_hi": 32, "r_j": 32, "r_w": 32}
    if queue == "C":
        members["cell"] = 6
    return data.StructLayout(members)


LETTERS: Final = "dabcef"
"""Operands in the order in which dispatch copies them; bit i of `present` is letter i."""

COPY: Final = data.StructLayout({"d": DESCRIPTOR, "list": 40})
"""A descriptor as it is copied, with the base of its index list."""


def resolve(m: Module, queue: Any, present: Any, copy: Any, letter: str, out: Any) -> None:
    """Resolve an operand of the head: cells into base and extent, all zero where it is absent."""
    d = copy.d
    shift, move = Signal(32, name=f"{letter}_shift"), Signal(signed(66), name=f"{letter}_move")
    byte_move = Signal(signed(66), name=f"{letter}_bytes")
    extent = Signal(32, name=f"{letter}_extent")
    m.d.comb += [
        getattr(queue, f"xb_{letter}_cell").eq(d.xb),
        getattr(queue, f"xe_{letter}_cell").eq(d.xe),
        shift.eq(Mux(d.xb == 0, 0, getattr(queue, f"xb_{letter}_value"))),
        extent.eq(Mux(d.xe == 0, d.ext0, getattr(queue, f"xe_{letter}_value"))),
        move.eq(Mux(d.via == 0, Cat(shift, Const(0, 1)).as_signed() * d.step, 0)),
    ]
    with m.Switch(d.format):
        with m.Case(0):
            m.d.comb += byte_move.eq(move >> 1)
        with m.Case(3, 4):
            m.d.comb += byte_move.eq(move << 2)
        with m.Default():
            m.d.comb += byte_move.eq(move)
    bad = Signal(name=f"{letter}_bad")
    m.d.comb += bad.eq(present & (d.xe != 0) & (getattr(queue, f"xe_{letter}_value") > d.ext0))
    queue.bad.append(bad)
    with m.If(present):
        m.d.comb += [
            out.present.eq(1),
            out.space.eq(d.space),
            out.format.eq(d.format),
            out.scale.eq(d.scale),
            out.base.eq(d.base + byte_move),
            out.sbase.eq(Mux(d.scale, d.sbase + (move >> 5), d.sbase)),
            out.ext0.eq(extent),
            out.ext1.eq(d.ext1),
            out.ext2.eq(d.ext2),
            out.stride0.eq(d.stride0),
            out.stride1.eq(d.stride1),
            out.stride2.eq(d.stride2),
            out.via.eq(d.via != 0),
            out.unit.eq(d.unit),
            out.row.eq(Mux(d.via == 0, 0, shift)),
            out.list.eq(copy.list),
        ]


class Queue(wiring.Component):
    """A queue of `Chip.queue_depth` entries.

    Members, beside those of `ports.handshake` turned round:
    copied, copy : dispatch writes a descriptor into the entry after the last, for operand i of COMMANDS where bit i of
    copy is set. push, entry : it writes the rest; the entry can start in the next cycle. full : the level of the
    cycle before.
    tokens : semaphores that have one. take : those that the head takes as it starts. now : cycle.
    posts0 .. posts3 : masks of instructions that end in this cycle.
    settle, settle_end : the first instruction without an end ends at that cycle or later (DMA); else `done` is now.
    NAME_cell out, NAME_value in, for each NAME of `looks` : cells read by the head.
    fault : a head has started whose cell asks for more than the extent that it replaces; for good.
    started, start_pc, ended : for the instrumentation; empty : nothing waits, and nothing is under way after this
    cycle.
    """

    def __init__(self, chip: Chip, name: str) -> None:
        self.chip, self.name, self.depth = chip, name, chip.queue_depth(name)
        self.dma = name in "WLS"
        members: dict[str, Any] = {
            "push": In(1),
            "entry": In(entry_layout(name)),
            "copied": In(COPY),
            "copy": In(len(COMMANDS[name])),
            "full": Out(1),
            "tokens": In(SEMAPHORES),
            "now": In(TIME_BITS),
            "take": Out(SEMAPHORES),
            "start": Out(1),
            "valid": Out(1),
            "nothing": Out(1),
            "command": Out(command_layout(name)),
            "ready": In(1),
            "done": In(1),
            "settle": In(1),
            "settle_end": In(TIME_BITS),
            "started": Out(1),
            "start_pc": Out(16),
            "ended": Out(range(RIDERS + 1)),
            "empty": Out(1),
            "waits": Out(1),
            "fault": Out(1),
        }
        members |= {f"posts{i}": Out(SEMAPHORES) for i in range(RIDERS)}
        self.looks = [f"{kind}_{letter}" for letter in COMMANDS[name].lower() for kind in ("xb", "xe")]
        if name == "C":
            self.looks.append("first")
        for look in self.looks:
            members |= {f"{look}_cell": Out(6), f"{look}_value": In(32)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        slots = self.depth + 1  # one more than counts: copies go on while the queue is full
        head, tail = Signal(range(slots)), Signal(range(slots))
        count = Signal(range(self.depth + 1))
        entry = data.View(entry_layout(self.name), self._store(m, "words", self.push, self.entry, head, tail))
        self.copies = [
            data.View(COPY, self._store(m, f"copies_{letter}", self.copy[i], self.copied, head, tail))
            for i, letter in enumerate(COMMANDS[self.name].lower())
        ]
        m.d.comb += [self.full.eq(count == self.depth), self.valid.eq(count != 0)]
        with m.If(self.push):
            m.d.sync += tail.eq(Mux(tail == self.depth, 0, tail + 1))
        go = Signal()
        with m.If(go):
            m.d.sync += head.eq(Mux(head == self.depth, 0, head + 1))
        m.d.sync += count.eq(count + self.push - go)
        self.bad: list[Any] = []
        self._resolve(m, entry)
        with m.If(go & Cat(*self.bad).any()):
            m.d.sync += self.fault.eq(1)
        free = Signal()
        waits = (entry.wait & ~self.tokens) == 0
        # M's SYNCs pass an array that is busy; V and C hold them back, DMA engines count them as flights.
        able = self.ready | (self.nothing if self.name == "M" else Const(0))
        m.d.comb += [
            go.eq(self.valid & waits & able & free),
            self.waits.eq(self.valid & ~waits),
            self.take.eq(Mux(go, entry.wait, 0)),
            self.start.eq(go & (Const(1) if self.dma else ~self.nothing)),
            self.started.eq(go),
            self.start_pc.eq(entry.pc),
        ]
        self._flights(m, go, entry.post, free, count)
        return m

    def _store(self, m: Module, name: str, en: Any, value: Any, head: Any, tail: Any) -> Any:
        """A part of every entry: written at the tail, read at the head."""
        width = len(Value.cast(value))
        store = m.submodules[name] = memory.Memory(shape=unsigned(width), depth=self.depth + 1, init=[])
        write, read = store.write_port(), store.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(en), write.addr.eq(tail), write.data.eq(Value.cast(value)), read.addr.eq(head)
        ]  # fmt: skip
        return read.data

    def _resolve(self, m: Module, entry: Any) -> None:
        """Make the command of the head."""
        command = self.command
        m.d.comb += [command.op.eq(entry.op), command.pc.eq(entry.pc), command.fields.eq(entry.fields)]
        if self.name == "M":
            m.d.comb += command.zero.eq(entry.zero)
        if self.name == "V":
            m.d.comb += [command.r_hi.eq(entry.r_hi), command.r_j.eq(entry.r_j), command.r_w.eq(entry.r_w)]
        if self.name == "C":
            m.d.comb += self.first_cell.eq(entry.cell)
            m.d.comb += command.first.eq(Mux(entry.cell == 0, 0, self.first_value))
        for copy, letter in zip(self.copies, COMMANDS[self.name].lower(), strict=True):
            resolve(m, self, entry.present[LETTERS.index(letter)], copy, letter, command[letter])
        nothing: Any = entry.op == _SYNC
        ring = entry.op == BY_NAME["RING"].OPCODE
        for letter in _GOVERNS[self.name]:
            op = command[letter]
            empty = (op.ext0 == 0) | (op.ext1 == 0) | (op.ext2 == 0)
            if self.name == "S":
                a = command.a
                empty = Mux(ring, (a.ext0 == 0) | (a.ext1 == 0) | (a.ext2 == 0), empty)
            nothing = nothing | empty
        m.d.comb += self.nothing.eq(nothing)

    def _flights(self, m: Module, go: Signal, post: Any, free: Signal, waiting: Signal) -> None:
        """Keep what has started till its end, the oldest first; end up to RIDERS of them in a cycle, in order."""
        n = in_flight(self.chip, self.name)
        posts = [Signal(SEMAPHORES, name=f"post{i}") for i in range(n)]
        known = [Signal(name=f"known{i}") for i in range(n)]
        ends = [Signal(TIME_BITS, name=f"end{i}") for i in range(n)]
        level = Signal(range(n + 1))
        m.d.comb += free.eq(level != n)
        settle: Any = self.settle if self.dma else self.done
        end: Any = self.settle_end if self.dma else self.now
        # What does nothing has an end from the start; the others get theirs in turn: the first without one.
        lacks = [(i < level) & ~known[i] for i in range(n)]
        now_known, now_ends = [], []
        earlier: Any = Const(0)
        for i in range(n):
            mine = Signal(name=f"settles{i}")
            m.d.comb += mine.eq(settle & lacks[i] & ~earlier)
            earlier = earlier | lacks[i]
            now_known.append(known[i] | mine)
            now_ends.append(Mux(mine, end, ends[i]))
        going: Any = Const(1)
        ended: Any = Const(0)
        for i in range(RIDERS):
            gone = Signal(name=f"gone{i}")
            m.d.comb += gone.eq(going & (i < level) & now_known[i] & (now_ends[i] <= self.now))
            m.d.comb += getattr(self, f"posts{i}").eq(Mux(gone, posts[i], 0))
            going, ended = gone, ended + gone
        m.d.comb += self.ended.eq(ended)
        after = Signal(range(n + 1))
        m.d.comb += after.eq(level - self.ended)
        m.d.sync += level.eq(after + go)
        for i in range(n):
            with m.If(go & (after == i)):
                m.d.sync += [posts[i].eq(post), known[i].eq(self.nothing), ends[i].eq(self.now + 1)]
            with m.Else(), m.Switch(self.ended):
                for k in range(min(RIDERS, n - 1 - i) + 1):
                    with m.Case(k):
                        m.d.sync += [
                            posts[i].eq(posts[i + k]),
                            known[i].eq(now_known[i + k]),
                            ends[i].eq(now_ends[i + k]),
                        ]
        m.d.comb += self.empty.eq((waiting == 0) & (level == self.ended) & ~go)

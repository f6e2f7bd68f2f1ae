"""PUT: the sender reads its source once; the network brings it to every member and counts arrivals by the rule's times.

`CollectiveUnit` is the sender of a slice, `Network` what joins the slices: for each message the times of
`timing.collective`, messages in the order of their starts, then of ranks. Data travel on wires of the network's latency
and are written as they come; a member learns of them when its ingress has taken the last flit.
"""

from __future__ import annotations

from typing import Any, Final

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from systolith.isa import facts as F
from systolith.isa.descriptor import Space
from systolith.isa.registry import layout_of
from systolith.spec import CELLS, SEMAPHORES, Chip

from .counts import Counts
from .leaf import leaf_of
from .legal import bad_copy, outside
from .mover import Mover
from .ports import Port, handshake, port_members
from .queue import TIME_BITS

__all__ = ["CollectiveUnit", "Network"]

RANK: Final = 9
COUNTERS: Final = 16
MESSAGE: Final = data.StructLayout(
    {
        "all": 1,
        "first": 32,
        "count": 11,
        "apart": 4,
        "flits": 32,
        "arrive": 1,
        "sem": 5,
        "counter": 4,
        "expect": 11,
    }
)
ARRIVAL: Final = data.StructLayout({"time": TIME_BITS, "arrive": 1, "sem": 5, "counter": 4, "expect": 11})
_PENDING: Final = 8
"""Arrivals on their way from one sender to one member."""


def piece_layout(chip: Chip) -> data.StructLayout:
    """What a wire of the network carries in a cycle: a write in every member."""
    n = chip.bank_bytes
    return data.StructLayout(
        {"en": 1, "all": 1, "first": 32, "count": 11, "apart": 4, "addr": 32, "data": 8 * n, "mask": n}
    )


def member(message: Any, rank: int) -> Any:
    """Whether a rank is one of a message's: first, first + 2^apart, ..., count of them."""
    away = (rank - message.first)[:RANK]
    place = away >> message.apart
    there = ((place << message.apart)[:RANK] == away) & (place < message.count)
    return message.all | ((message.first <= rank) & there)


class CollectiveUnit(wiring.Component):
    """Members: `handshake("C")`, memory ports, and

    send, message : a PUT has started in the cycle before. sent : in, when its egress is free again (that cycle).
    piece : a write on its way out. moving : more are to come. fault : a destination that is not the scratchpad.
    hold : in, no piece leaves in this cycle (back-pressure of a test; arrivals wait for it).
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        n = chip.bank_bytes
        self.ports = [Port(f"list{i}", Space.SPAD, 4) for i in range(2)]
        self.ports += [Port("r_spad", Space.SPAD, n), Port("r_cell", Space.CELL, n)]
        super().__init__(
            handshake("C")
            | port_members(self.ports)
            | {
                "now": In(TIME_BITS),
                "send": Out(1),
                "message": Out(MESSAGE),
                "sent": In(TIME_BITS),
                "piece": Out(piece_layout(chip)),
                "moving": Out(1),
                "fault": Out(1),
                "hold": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        chip, bank, n = self.chip, int(F.facts(self.chip)[F.BANK]), self.chip.bank_bytes
        held = Signal(self.command.shape())
        busy, fresh, moving = Signal(), Signal(), Signal()
        counts = Counts(chip)
        leaf_of(m, "systolith_counts", counts)
        m.d.comb += [counts.restart.eq(self.start), counts.put.eq(1), counts.d.eq(held.d), counts.a.eq(held.a)]
        m.d.sync += fresh.eq(self.start)
        a, d = held.a, held.d
        empty = (d.ext0 == 0) | (d.ext1 == 0) | (d.ext2 == 0)
        m.d.comb += [
            self.moving.eq(moving),
            self.done.eq(busy & ~fresh & (self.now >= self.sent) & ~moving),
            self.ready.eq(~busy | self.done),
        ]
        with m.If(self.start):
            m.d.sync += [held.eq(self.command), busy.eq(1), moving.eq(1)]
        with m.Elif(self.done):
            m.d.sync += busy.eq(0)
        f = held.fields

        def part(name: str, width: int) -> Any:
            at = layout_of("PUT", name)
            return f[at : at + width]

        count = part("count", 11)
        m.d.comb += [
            self.send.eq(fresh), self.message.all.eq(count == 0), self.message.first.eq(held.first),
            self.message.count.eq(count), self.message.apart.eq(part("apart", 4)),
            self.message.flits.eq(counts.flits), self.message.arrive.eq(part("arrive", 1)),
            self.message.sem.eq(part("sem", 5)), self.message.counter.eq(part("counter", 4)),
            self.message.expect.eq(part("expect", 11)),
        ]  # fmt: skip
        with m.If(fresh & (held.d.space != Space.SPAD)):
            m.d.sync += self.fault.eq(1)
        mover = Mover(n)
        leaf_of(m, "systolith_mover", mover)
        size = chip.scratchpad_bytes
        far = (d.space == Space.SPAD) & outside(mover.step, mover.dst, mover.bytes, size)
        far |= (a.space == Space.SPAD) & outside(mover.step, mover.src, mover.valid, size)
        far |= (a.space == Space.CELL) & outside(mover.step, mover.src, mover.valid, 4 * CELLS)
        with m.If(far | (fresh & bad_copy(d, a))):
            m.d.sync += self.fault.eq(1)
        # An index list of a PUT has no lead to be read in: its first entry costs the mover a cycle.
        listed = Signal()
        m.d.sync += listed.eq(Mux(self.start, ~(self.command.d.via | self.command.a.via), 1))
        m.d.comb += [
            mover.a.eq(held.a),
            mover.d.eq(held.d),
            mover.step.eq(moving & ~empty & ~self.hold & (listed | ~(a.via | held.d.via))),
        ]
        for i, x in enumerate("da"):
            op = held[x]
            first = (op.list + ((op.row >> op.unit) << 2))[:32]
            page, seen = Signal(32, name=f"page_{x}"), Signal(name=f"seen_{x}")
            port_data = getattr(self, f"list{i}_data")
            m.d.comb += [
                getattr(self, f"list{i}_en").eq(op.via & (fresh | mover.step)),
                getattr(self, f"list{i}_addr").eq(Mux(fresh, first, getattr(mover, f"list_{x}_addr"))),
                getattr(mover, f"list_{x}_data").eq(port_data),
                getattr(mover, f"page_{x}").eq(Mux(seen, page, port_data)),
            ]
            m.d.sync += seen.eq(~fresh & ~self.start)
            with m.If(~seen):
                m.d.sync += page.eq(port_data)
        with m.If(~self.start & ((mover.step & mover.last) | (moving & empty))):
            m.d.sync += moving.eq(0)
        later: dict[str, Any] = {
            "step": mover.step, "src": a.space, "at": mover.dst[:32], "bytes": mover.bytes, "valid": mover.valid,
            "all": self.message.all, "first": held.first, "count": count,
            "apart": self.message.apart,
        }  # fmt: skip
        for i in range(bank):
            for name, value in later.items():
                s = Signal(len(value), name=f"{name}_{i}")
                m.d.sync += s.eq(value)
                later[name] = s
        for name, space in (("r_spad", Space.SPAD), ("r_cell", Space.CELL)):
            m.d.comb += [
                getattr(self, f"{name}_en").eq(mover.step & (a.space == space)),
                getattr(self, f"{name}_addr").eq(mover.src),
            ]
        source = Signal(8 * n)
        m.d.comb += source.eq(Mux(later["src"] == Space.CELL, self.r_cell_data, self.r_spad_data))
        out = self.piece
        m.d.comb += [
            out.en.eq(later["step"]), out.all.eq(later["all"]), out.first.eq(later["first"]),
            out.count.eq(later["count"]), out.apart.eq(later["apart"]), out.addr.eq(later["at"]),
            out.mask.eq(~(Const((1 << n) - 1, n) << later["bytes"])[:n]),
            out.data.eq(Cat(Mux(i < later["valid"], source.word_select(i, 8), 0) for i in range(n))),
        ]  # fmt: skip
        return m


class Network(wiring.Component):
    """Joins the collective units of all slices.

    For each slice R: send_R, message_R, piece_R, moving_R in; sent_R out; write_S_R out: the write that sender S
    makes in R, after
    the network's latency; posts_R out: tokens of its arrivals; idle_R: nothing is on its way to R after this cycle.
    slices : in, how many take part. now : in.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip, self.n = chip, chip.slices
        members: dict[str, Any] = {"now": In(TIME_BITS), "slices": In(16)}
        layout = piece_layout(chip)
        for r in range(self.n):
            members |= {f"send_{r}": In(1), f"message_{r}": In(MESSAGE), f"piece_{r}": In(layout)}
            members[f"moving_{r}"] = In(1)
            members |= {f"sent_{r}": Out(TIME_BITS), f"posts_{r}": Out(SEMAPHORES), f"idle_{r}": Out(1)}
            members |= {f"write_{s}_{r}": Out(layout) for s in range(self.n)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        f = F.facts(self.chip)
        latency, bank = int(f[F.NET_LATENCY]), int(f[F.BANK])
        ingress: list[Any] = [Signal(TIME_BITS, name=f"ingress{r}") for r in range(self.n)]
        registers = list(ingress)
        self._unsettled = [Signal(name=f"unsettled_{s}") for s in range(self.n)]
        self._unsettled_own = [Signal(name=f"unsettled_own_{s}") for s in range(self.n)]
        waits: list[list[Any]] = [[] for _ in range(self.n)]
        for s in range(self.n):
            send, message = getattr(self, f"send_{s}"), getattr(self, f"message_{s}")
            first_flit = self.now - 1 + bank  # it started in the cycle before
            sent: Any = first_flit + message.flits
            for r in range(self.n):
                mine = send & member(message, r) & (r < self.slices)
                begin = Signal(TIME_BITS, name=f"begin_{s}_{r}")
                if r == s:
                    m.d.comb += begin.eq(first_flit)
                else:
                    at = first_flit + latency
                    m.d.comb += begin.eq(Mux(at < ingress[r], ingress[r], at))
                    after = Signal(TIME_BITS, name=f"ingress_{s}_{r}")
                    m.d.comb += after.eq(Mux(mine, begin + message.flits, ingress[r]))
                    ingress[r] = after
                    own = begin + message.flits - latency
                    sent = Mux(mine & (sent < own), own, sent)
                    named = Signal(TIME_BITS, name=f"sent_{s}_{r}")
                    m.d.comb += named.eq(sent)
                    sent = named
                waits[r].append(self._pending(m, s, r, mine, message, begin + message.flits + bank))
            # A source whose rows are slower to walk than the rule counts holds its arrivals back.
            moving = getattr(self, f"moving_{s}")
            late = Signal(latency + bank + 1, name=f"late_{s}")
            # Its newest message is pushed in the cycle after the start, and is late from then on only.
            moves = moving & ~send
            m.d.sync += late.eq(Cat(moves, late))
            m.d.comb += [
                self._unsettled[s].eq(moves | (late[: latency + bank] != 0)),
                self._unsettled_own[s].eq(moves | (late[:bank] != 0)),  # no network on the way to itself
            ]
            kept = Signal(TIME_BITS, name=f"kept_{s}")
            with m.If(send):
                m.d.sync += kept.eq(sent)
            m.d.comb += getattr(self, f"sent_{s}").eq(kept)
            self._wires(m, s, latency)
        m.d.sync += [register.eq(value) for register, value in zip(registers, ingress, strict=True)]
        for r in range(self.n):
            m.d.comb += getattr(self, f"idle_{r}").eq(Cat(*waits[r]) == 0)
            self._count(m, r)
        return m

    def _pending(self, m: Module, s: int, r: int, push: Any, message: Any, time: Any) -> Any:
        """Keep arrivals from s at r till their time; give whether some are left after this cycle."""
        slots = Array(Signal(ARRIVAL, name=f"arrival_{s}_{r}_{i}") for i in range(_PENDING))
        head, tail = Signal(range(_PENDING), name=f"head_{s}_{r}"), Signal(range(_PENDING), name=f"tail_{s}_{r}")
        new, first, pop = (
            Signal(ARRIVAL, name=f"new_{s}_{r}"),
            Signal(ARRIVAL, name=f"first_{s}_{r}"),
            Signal(name=f"pop_{s}_{r}"),
        )
        newest = (head + 1)[: len(head)] == tail
        unsettled = self._unsettled_own[s] if r == s else self._unsettled[s]
        m.d.comb += [
            new.time.eq(time), new.arrive.eq(message.arrive), new.sem.eq(message.sem),
            new.counter.eq(message.counter), new.expect.eq(message.expect),
            first.eq(Array(Value.cast(x) for x in slots)[head]),
            pop.eq((head != tail) & (first.time <= self.now) & ~(newest & unsettled)),
        ]  # fmt: skip
        with m.If(push), m.Switch(tail):
            for i in range(_PENDING):
                with m.Case(i):
                    m.d.sync += slots[i].eq(new)
        m.d.sync += [tail.eq(tail + push), head.eq(head + pop)]
        setattr(self, f"_first_{s}_{r}", first)
        setattr(self, f"_pop_{s}_{r}", pop)
        return push | ((head + pop)[: len(head)] != tail)

    def _count(self, m: Module, r: int) -> None:
        """Arrival counters of a slice."""
        counters: list[Any] = [Signal(16, name=f"counter_{r}_{i}") for i in range(COUNTERS)]
        registers = list(counters)
        posts: Any = Const(0, SEMAPHORES)
        for s in range(self.n):
            arrival, pop = getattr(self, f"_first_{s}_{r}"), getattr(self, f"_pop_{s}_{r}")
            expect = Mux(arrival.expect == 0, self.slices, arrival.expect)
            taken = Signal(16, name=f"taken_{s}_{r}")
            m.d.comb += taken.eq(Array(counters)[arrival.counter] + 1)
            counts = pop & arrival.arrive
            posts = posts | Mux(counts & (taken >= expect), (Const(1, 1) << arrival.sem)[:SEMAPHORES], 0)
            after = []
            for i, value in enumerate(counters):
                new = Signal(16, name=f"counter_{s}_{r}_{i}")
                m.d.comb += new.eq(
                    Mux(counts & (arrival.counter == i), Mux(taken >= expect, taken - expect, taken), value)
                )
                after.append(new)
            counters = after
        m.d.sync += [register.eq(value) for register, value in zip(registers, counters, strict=True)]
        m.d.comb += getattr(self, f"posts_{r}").eq(posts)

    def _wires(self, m: Module, s: int, latency: int) -> None:
        """Bring a sender's writes to every slice."""
        piece = getattr(self, f"piece_{s}")
        delayed: Any = piece
        for i in range(latency):
            new = Signal(piece.shape(), name=f"wire_{s}_{i}")
            m.d.sync += new.eq(delayed)
            delayed = new
        for r in range(self.n):
            out, from_ = getattr(self, f"write_{s}_{r}"), piece if r == s else delayed
            m.d.comb += [out.eq(from_), out.en.eq(from_.en & member(from_, r) & (r < self.slices))]

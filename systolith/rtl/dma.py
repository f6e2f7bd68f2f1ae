"""A DMA engine of queue W, L or S: set-up, flights, and a mover that touches memory as the channel gives bursts.

An instruction sets up while requests of the one before it go out, begins when they are out, and is settled (its end is
known) when the channel has given its last burst and the mover has moved its last piece. `timing.dma` has the same
times.
"""

from __future__ import annotations

from typing import Any, Final

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from systolith.isa import facts as F
from systolith.isa.descriptor import Format, Space
from systolith.isa.registry import BY_NAME, layout_of
from systolith.spec import CELLS, Chip

from .counts import Counts
from .leaf import leaf_of
from .legal import bad_copy, outside
from .mover import Mover
from .ports import Port, command_layout, port_members
from .queue import TIME_BITS

__all__ = ["UNIT_BITS", "DmaEngine", "DmaPort"]

FIXED, READ, WRITE = range(3)
UNIT_BITS: Final = TIME_BITS + 8
"""Time in units of the channel."""
SOURCES: Final = {"W": (Space.DRAM,), "L": (Space.DRAM, Space.SPAD), "S": (Space.SPAD, Space.CELL)}
TARGETS: Final = {"W": (Space.SLOT,), "L": (Space.SPAD, Space.CELL), "S": (Space.DRAM,)}
_RING: Final = BY_NAME["RING"].OPCODE


class DmaPort:
    """Signals of an engine to the channel and to the memory outside, for a signature (directions from the engine).

    c_valid, c_eligible : a burst wants the channel, from that time on (units). grant, begun : it is given, from then.
    m_en, m_addr, m_data (, m_mask for writes, m_bytes for reads) : a piece of memory; read data come in the next cycle.
    """

    @staticmethod
    def members(piece: int, write: bool) -> dict[str, Any]:
        """Give the members."""
        members: dict[str, Any] = {
            "c_valid": Out(1),
            "c_eligible": Out(UNIT_BITS),
            "grant": In(1),
            "begun": In(UNIT_BITS),
            "m_en": Out(1),
            "m_addr": Out(40),
        }
        if not write:
            members["m_bytes"] = Out(range(piece + 1))
        if write:
            return members | {"m_data": Out(8 * piece), "m_mask": Out(piece)}
        return members | {"m_data": In(8 * piece)}


class DmaEngine(wiring.Component):
    """Members: a `DmaPort`, memory ports, and

    start, command, ready, valid, nothing, settle, settle_end, now : to its queue.
    ring_valid, ring_words, ring_data, ring_last : words to the host (S).
    idle : nothing is under way. hold_host : the host takes no words in this cycle (back-pressure of a test).
    fault : a copy that `isa` traps, or an address outside a space; for good.
    """

    def __init__(self, chip: Chip, queue: str) -> None:
        self.chip, self.queue = chip, queue
        self.f = F.facts(chip)
        self.piece = chip.bank_bytes
        self.table = 2
        while self.table < 2 * chip.queue_depth(queue):
            self.table *= 2
        self.ports = [Port(f"list{i}", Space.SPAD, 4) for i in range(2)]
        # L has a mover for copies inside the chip beside the one that the memory feeds: they go on side by side.
        self.movers = {"": SOURCES[queue]} if queue != "L" else {"": (Space.DRAM,), "own_": (Space.SPAD,)}
        for prefix, sources in self.movers.items():
            self.ports += [Port(f"{prefix}list_{x}", Space.SPAD, 4) for x in "da"]
            self.ports += [_port(prefix, s, self.piece, False) for s in sources if s != Space.DRAM]
            self.ports += [_port(prefix, s, self.piece, True) for s in TARGETS[queue] if s != Space.DRAM]
        super().__init__(
            DmaPort.members(self.piece, queue == "S")
            | port_members(self.ports)
            | {
                "start": In(1),
                "valid": In(1),
                "nothing": In(1),
                "command": In(command_layout(queue)),
                "ready": Out(1),
                "settle": Out(1),
                "settle_end": Out(TIME_BITS),
                "now": In(TIME_BITS),
                "idle": Out(1),
                "hold_host": In(1),
                "fault": Out(1),
            }
            | (
                {"ring_words": Out(range(self.piece // 4 + 1)), "ring_data": Out(8 * self.piece), "ring_last": Out(1)}
                if queue == "S"
                else {}
            )
        )

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        f, n = self.f, self.table
        self.units = int(f[F.UNITS_PER_CYCLE])
        # Set-up: one instruction.
        self.held = held = Signal(command_layout(self.queue))
        self.busy, self.kind, self.started = Signal(), Signal(2), Signal(TIME_BITS)
        counts = Counts(self.chip)
        leaf_of(m, "systolith_counts", counts)
        ring = held.op == _RING
        takes, passes = self.start & ~self.nothing, self.start & self.nothing
        m.d.comb += [counts.restart.eq(takes), counts.d.eq(held.d), counts.a.eq(held.a)]
        with m.If(takes):
            m.d.sync += [held.eq(self.command), self.started.eq(self.now)]
        self.bad: list[Any] = [self.busy & self._illegal(held, ring)]
        from_dram, to_dram = held.a.space == Space.DRAM, held.d.space == Space.DRAM
        # A copy of nothing but zeros asks the memory for nothing.
        inside = ring | (counts.bursts == 0)
        m.d.comb += self.kind.eq(Mux(inside, FIXED, Mux(from_dram, READ, Mux(to_dram, WRITE, FIXED))))
        bank, dma, latency = int(f[F.BANK]), int(f[F.DMA]), int(f[F.DRAM_LATENCY])
        lead = dma + Mux(from_dram & ~ring, 0, bank)
        tail = Mux(ring, 0, Mux(to_dram, latency, bank))
        words = held.a.ext0 * held.a.ext1 * held.a.ext2
        hold = Mux(ring, words, Mux((self.kind == FIXED), counts.beats, counts.requests))[:32]

        # Begin: the lead is over, the requests of the one before are out.
        asked, ahead = Signal(TIME_BITS), Signal(33)  # ahead: bursts asked for and not served
        most = int(f[F.OUTSTANDING])
        last_grant, on_cycle = Signal(), Signal()
        m.d.comb += on_cycle.eq(self.begun == self.now * self.units)
        self.tail, self.chan, self.mov, self.set = (Signal(range(n), name=x) for x in ("tail", "chan", "mov", "set"))
        room = (self.tail + 1)[: len(self.tail)] != self.set
        self.own_busy, self.own_index = Signal(), Signal(range(n))  # L: the mover inside the chip has one copy
        due = self.busy & (self.now >= self.started + lead) & (self.now >= asked) & counts.known & room
        due = due & ~self.own_busy  # a copy inside the chip makes its requests, too, till its last piece
        begin_a, begin = Signal(), Signal()
        m.d.comb += [
            begin_a.eq(due & (ahead <= most)),
            begin.eq(begin_a | (due & self.grant & on_cycle & (ahead <= most + 1))),
        ]
        bursty = (self.kind == READ) | (self.kind == WRITE)
        bursts = Mux(bursty, counts.bursts, 0)
        m.d.sync += ahead.eq(ahead + Mux(begin, bursts, 0) - self.grant)
        with m.If(takes):
            m.d.sync += self.busy.eq(1)
        with m.Elif(begin):
            m.d.sync += self.busy.eq(0)
        with m.If(begin):
            m.d.sync += asked.eq(self.now + hold)

        # First entries of the index lists, read in set-up.
        pages = [Signal(32, name=f"page_{x}") for x in "da"]
        for i, x in enumerate("da"):
            op = held[x]
            m.d.comb += [
                self.port(f"list{i}", "en").eq(self.busy & op.via),
                self.port(f"list{i}", "addr").eq(op.list + ((op.row >> op.unit) << 2)),
                pages[i].eq(self.port(f"list{i}", "data")),
            ]

        # Flights.
        layout = data.StructLayout(
            {"command": command_layout(self.queue), "kind": 2, "page_d": 32, "page_a": 32, "same": 1}
        )
        store = m.submodules.store = memory.Memory(shape=unsigned(layout.size), depth=n, init=[])
        put, get = store.write_port(), store.read_port(domain="comb")
        fresh = Signal(layout)
        same = (held.a.space == held.d.space) & (
            (held.a.base // int(f[F.BANK_SIZE])) == (held.d.base // int(f[F.BANK_SIZE]))
        )
        m.d.comb += [
            fresh.command.eq(held), fresh.kind.eq(self.kind), fresh.page_d.eq(pages[0]), fresh.page_a.eq(pages[1]),
            fresh.same.eq(same & ~ring), put.en.eq(begin), put.addr.eq(self.tail), put.data.eq(Value.cast(fresh)),
        ]  # fmt: skip
        kinds = Array(Signal(2, name=f"kind{i}") for i in range(n))
        lefts = Array(Signal(32, name=f"left{i}") for i in range(n))
        owns = Array(Signal(UNIT_BITS, name=f"own{i}") for i in range(n))
        ready_at = Array(Signal(UNIT_BITS, name=f"eligible{i}") for i in range(n))
        ends = Array(Signal(TIME_BITS, name=f"end{i}") for i in range(n))
        tails = Array(Signal(range(latency + bank + 1), name=f"tail{i}") for i in range(n))
        given = Array(Signal(32, name=f"given{i}") for i in range(n))
        moved = Array(Signal(TIME_BITS, name=f"moved{i}") for i in range(n))
        eligible = (self.now + Mux(self.kind == READ, latency, 0)) * self.units
        with m.If(begin):
            m.d.sync += [
                self.tail.eq(self.tail + 1), kinds[self.tail].eq(self.kind), lefts[self.tail].eq(bursts),
                owns[self.tail].eq(counts.own), ready_at[self.tail].eq(eligible), tails[self.tail].eq(tail),
                ends[self.tail].eq(self.now + hold + tail), given[self.tail].eq(0),
            ]  # fmt: skip

        # The channel takes the bursts of the oldest flight; one that begins in this cycle may be served at once.
        none, by = self.chan == self.tail, Signal()
        m.d.comb += by.eq(none & begin_a & bursty)
        here_kind = kinds[self.chan]
        here_bursty = ~none & ((here_kind == READ) | (here_kind == WRITE))
        here_at = Mux(by, eligible, ready_at[self.chan])
        here_own = Mux(by, counts.own, owns[self.chan])
        here_left = Mux(by, bursts, lefts[self.chan])
        here_tail = Mux(by, tail, tails[self.chan])
        burst = int(f[F.BURST_UNITS])
        data_end = Signal(TIME_BITS)
        m.d.comb += [
            self.c_valid.eq(by | here_bursty),
            self.c_eligible.eq(here_at),
            # (begun + burst) / units, rounded up; begun lies in this cycle
            data_end.eq(self.now + (self.begun - self.now * self.units + (burst + self.units - 1)) // self.units),
            last_grant.eq(self.grant & (here_left == 1)),
        ]
        flying, depth = Signal(range(n + 2)), self.chip.queue_depth(self.queue)
        extra = Signal(range(n + 2))
        m.d.comb += flying.eq((self.tail - self.chan)[: len(self.tail)] + self.busy + extra)
        blocked = Signal(TIME_BITS)
        is_full = flying + self.start >= depth
        with m.If(self.grant):
            m.d.sync += [
                lefts[self.chan].eq(here_left - 1),
                ready_at[self.chan].eq(here_at + here_own),
                given[self.chan].eq(Mux(by, 0, given[self.chan]) + 1),
            ]
            with m.If(here_left == 1):
                m.d.sync += [ends[self.chan].eq(data_end + here_tail), self.chan.eq(self.chan + 1)]
                with m.If(is_full):
                    m.d.sync += blocked.eq(data_end + here_tail)
        with m.Elif(~none & ~here_bursty):
            m.d.sync += self.chan.eq(self.chan + 1)
            with m.If(is_full):
                m.d.sync += blocked.eq(ends[self.chan])
        pops = last_grant | (~none & ~here_bursty)
        self._riders(m, takes, passes, begin, pops, by, none, extra)

        # Start of the next instruction.
        finished, barrier = Signal(TIME_BITS), Signal()
        head, free = self.command, self.command.fields[layout_of("COPY", "free")]
        if self.queue == "L":
            ordered = ~self.nothing & (head.a.space != Space.DRAM) & ~free
            with m.If(self.start):
                m.d.sync += barrier.eq(takes & (head.d.space == Space.CELL) & ~free)
        else:
            ordered = Const(0)
        still = (self.set == self.tail) & ~self.busy & (self.now >= finished)
        m.d.comb += [
            self.ready.eq(
                (~self.busy | begin) & (flying < depth) & (self.now >= blocked) & (still | ~(ordered | barrier))
            ),
            self.idle.eq((self.set == self.tail) & ~self.busy),
        ]

        # Settled: nothing more can change the end.
        settling = (self.set != self.chan) & (self.set != self.mov)
        if "own_" in self.movers:
            settling = settling & ~((kinds[self.set] == FIXED) & self.own_busy & (self.own_index == self.set))
        end_now = Signal(TIME_BITS)
        m.d.comb += [
            end_now.eq(Mux(ends[self.set] < moved[self.set], moved[self.set], ends[self.set])),
            self.settle.eq(settling),
            self.settle_end.eq(end_now),
        ]
        with m.If(settling):
            m.d.sync += self.set.eq(self.set + 1)
            with m.If(self.settle & (end_now > finished)):
                m.d.sync += finished.eq(end_now)
        self._move(m, data.View(layout, get.data), get, fresh, begin_a, given, moved)
        if "own_" in self.movers:
            self._move_inside(m, fresh, begin, moved)
        with m.If(Cat(*self.bad).any()):
            m.d.sync += self.fault.eq(1)
        return m

    def _illegal(self, held: Any, ring: Any) -> Any:
        """What `isa` traps of a copy as a whole: spaces, formats, blocks; and lists that leave the scratchpad."""
        a, d = held.a, held.d

        def among(space: Any, spaces: tuple[Space, ...]) -> Any:
            return Cat(*(space == s for s in spaces)).any()

        bad = ~among(a.space, SOURCES[self.queue]) | ~among(d.space, TARGETS[self.queue]) | bad_copy(d, a)
        for op in (a, d):
            rows = d.ext0 if op is d else Mux(a.ext0 < d.ext0, a.ext0, d.ext0)
            last = op.list + (((op.row + rows - 1) >> op.unit) << 2)
            bad |= op.via & (rows != 0) & outside(Const(1), last[:40], 4, self.chip.scratchpad_bytes)
        if self.queue == "S":
            bad = Mux(ring, (a.format != Format.INT32) | ~among(a.space, (Space.SPAD, Space.CELL)), bad)
        return bad

    def port(self, name: str, part: str) -> Any:
        """A signal of a memory port."""
        return getattr(self, f"{name}_{part}")

    def _riders(
        self, m: Module, takes: Any, passes: Any, begin: Any, pops: Any, by: Any, none: Any, extra: Any
    ) -> None:
        """Count what does nothing behind a flight till the channel is done with that: it too is in flight."""
        n = self.table
        riders = Array(Signal(4, name=f"riders{i}") for i in range(n))
        waiting, young = Signal(4), Signal(range(n))
        m.d.comb += young.eq(self.tail - 1)
        popped = Mux(none, waiting, riders[self.chan])
        alone = pops & Mux(none, by, (self.chan == young) & ~self.busy)  # the youngest goes in this cycle
        joins = passes & ~alone & (self.busy | ~none)
        m.d.sync += extra.eq(extra + joins - Mux(pops, popped, 0))
        with m.If(takes):
            m.d.sync += waiting.eq(0)
        with m.Elif(joins & self.busy & ~begin):
            m.d.sync += waiting.eq(waiting + 1)
        with m.If(begin):
            m.d.sync += riders[self.tail].eq(waiting + joins)
        with m.Elif(joins & ~self.busy):
            m.d.sync += riders[young].eq(riders[young] + 1)

    def _mover(self, m: Module, prefix: str, flight: Any) -> tuple[Any, Any]:
        """A mover for a flight, and whether that is a RING."""
        mover = Mover(self.piece)
        leaf_of(m, "systolith_mover", mover)
        command, ring = flight.command, flight.command.op == _RING
        m.d.comb += [
            mover.a.eq(command.a), mover.d.eq(Mux(ring, Value.cast(command.a), Value.cast(command.d))),
            mover.page_d.eq(flight.page_d), mover.page_a.eq(flight.page_a),
        ]  # fmt: skip
        for x in "da":
            name = f"{prefix}list_{x}"
            m.d.comb += [
                self.port(name, "en").eq(getattr(mover, f"list_{x}_en") & mover.step),
                self.port(name, "addr").eq(getattr(mover, f"list_{x}_addr")),
                getattr(mover, f"list_{x}_data").eq(self.port(name, "data")),
            ]
        return mover, ring

    def _move_inside(self, m: Module, fresh: Any, begin: Any, moved: Any) -> None:
        """L: move the pieces of a copy inside the chip, from the cycle in which it begins."""
        bank = int(self.f[F.BANK])
        kept, begins, turn = Signal(fresh.shape()), Signal(), Signal()
        m.d.comb += begins.eq(begin & (self.kind == FIXED))
        flight = data.View(fresh.shape(), Mux(self.own_busy, Value.cast(kept), Value.cast(fresh)))
        mover, ring = self._mover(m, "own_", flight)
        index = Mux(self.own_busy, self.own_index, self.tail)
        # Inside one bank reads and writes take turns; a piece of zeros is no read.
        reads = mover.valid != 0
        m.d.comb += mover.step.eq((self.own_busy | begins) & ~(flight.same & turn & reads))
        m.d.sync += turn.eq(mover.step & ~mover.last & reads)
        with m.If(begins):
            m.d.sync += [kept.eq(fresh), self.own_index.eq(self.tail)]
        with m.If(mover.step & mover.last):
            m.d.sync += [self.own_busy.eq(0), moved[index].eq(self.now + bank + 1)]
        with m.Elif(begins):
            m.d.sync += self.own_busy.eq(1)
        self._pipe(m, "own_", mover, flight.command, ring)

    def _move(self, m: Module, stored: Any, get: Any, fresh: Any, begin: Any, given: Any, moved: Any) -> None:
        """Move pieces of the oldest flight that is not moved."""
        f, bank = self.f, int(self.f[F.BANK])
        none = self.mov == self.tail
        flight = data.View(stored.shape(), Mux(none, Value.cast(fresh), Value.cast(stored)))
        m.d.comb += get.addr.eq(self.mov)
        mover, ring = self._mover(m, "", flight)
        # Bursts that the pieces so far have touched; a piece moves when the channel has given all of its own.
        bits = int(f[F.BURST]).bit_length() - 1
        reads = flight.kind == READ
        address = Mux(reads, mover.src, mover.dst)
        size = Mux(reads, mover.valid, mover.bytes)
        low, high = Signal(40), Signal(40)
        m.d.comb += [low.eq(address >> bits), high.eq((address + size - 1) >> bits)]
        before, touched, need = Signal(40), Signal(32), Signal(33)
        m.d.comb += need.eq(Mux(size == 0, touched, touched + ((touched == 0) | (low != before)) + (low != high)))
        now_given = Signal(33)
        m.d.comb += now_given.eq(Mux(none, 0, given[self.mov]) + (self.grant & (self.chan == self.mov)))
        all_given = ~none & (self.chan != self.mov)
        fixed = flight.kind == FIXED
        others = fixed if "own_" in self.movers else Const(0)  # the other mover's business
        there = Mux(none, begin, 1)
        m.d.comb += mover.step.eq(
            there & ~others & ~(ring & self.hold_host) & (fixed | all_given | (need <= now_given))
        )
        last = mover.step & mover.last
        with m.If(mover.step & (size != 0)):
            m.d.sync += [before.eq(high), touched.eq(need)]
        with m.If(last):
            m.d.sync += [touched.eq(0), moved[self.mov].eq(self.now + bank + Mux(ring, 0, 1))]
        with m.If(last | (~none & others)):
            m.d.sync += self.mov.eq(self.mov + 1)
        self._pipe(m, "", mover, flight.command, ring)

    def _pipe(self, m: Module, prefix: str, mover: Any, command: Any, ring: Any) -> None:
        """Read now, write `bank_cycles` later."""
        bank = int(self.f[F.BANK])
        later: dict[str, Any] = {
            "step": mover.step, "src": command.a.space, "dst": command.d.space, "at": mover.dst, "bytes": mover.bytes,
            "valid": mover.valid, "ring": ring, "last": mover.last,
        }  # fmt: skip
        for i in range(bank):
            for name, value in later.items():
                s = Signal(len(value), name=f"{prefix}{name}_{i}")
                m.d.sync += s.eq(value)
                later[name] = s
        source: Any = Const(0, 8 * self.piece)
        for space in self.movers[prefix]:
            if space == Space.DRAM:
                m.d.comb += [self.m_en.eq(mover.step & (mover.valid != 0)), self.m_addr.eq(mover.src)]
                m.d.comb += self.m_bytes.eq(mover.valid)
                found = self.m_data
                for i in range(bank - 1):  # outside it takes one cycle
                    s = Signal(8 * self.piece, name=f"m_late_{i}")
                    m.d.sync += s.eq(found)
                    found = s
            else:
                name = _port(prefix, space, 0, False).name
                m.d.comb += [
                    self.port(name, "en").eq(mover.step & (command.a.space == space)),
                    self.port(name, "addr").eq(mover.src),
                ]
                found = self.port(name, "data")
                here = mover.step & (command.a.space == space)
                self.bad.append(outside(here, mover.src, mover.valid, self._size(space)))
            source = Mux(later["src"] == space, found, source)
        payload, mask = Signal(8 * self.piece, name=f"{prefix}payload"), Signal(self.piece, name=f"{prefix}mask")
        full = (1 << self.piece) - 1
        m.d.comb += [
            mask.eq(~(Const(full, self.piece) << later["bytes"])[: self.piece]),
            payload.eq(Cat(Mux(i < later["valid"], source.word_select(i, 8), 0) for i in range(self.piece))),
        ]
        for space in TARGETS[self.queue]:
            if space == Space.DRAM:
                m.d.comb += [
                    self.m_en.eq(later["step"] & ~later["ring"]), self.m_addr.eq(later["at"]),
                    self.m_data.eq(payload), self.m_mask.eq(mask),
                ]  # fmt: skip
                m.d.comb += [
                    self.ring_words.eq(Mux(later["step"] & later["ring"], later["bytes"] >> 2, 0)),
                    self.ring_data.eq(payload),
                    self.ring_last.eq(later["step"] & later["ring"] & later["last"]),
                ]
            else:
                name = _port(prefix, space, 0, True).name
                m.d.comb += [
                    self.port(name, "en").eq(later["step"] & (later["dst"] == space)),
                    self.port(name, "addr").eq(later["at"]),
                    self.port(name, "data").eq(payload),
                    self.port(name, "mask").eq(mask),
                ]
                here = later["step"] & (later["dst"] == space)
                self.bad.append(outside(here, later["at"], later["bytes"], self._size(space)))

    def _size(self, space: Space) -> int:
        """Bytes of a space on the chip."""
        chip = self.chip
        return {Space.SPAD: chip.scratchpad_bytes, Space.SLOT: chip.slots_bytes, Space.CELL: 4 * CELLS}[space]


def _port(prefix: str, space: Space, size: int, write: bool) -> Port:
    """A mover's port into a memory of the slice."""
    return Port(f"{prefix}{'w' if write else 'r'}_{space.name.lower()}", space, size, write)

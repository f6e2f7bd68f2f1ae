"""GROUP: sorts pairs (key, number) by counting, and lists the distinct keys.

Keys arrive in the order of their numbers. Pair i meets all pairs before it, `lanes` a cycle: its place is the number of
those with a key up to its own, and every one with a larger key moves up a place. The first pair of a key keeps the
key's rank among the distinct ones and how many pairs it has, in the same way. Then the pairs go by once more, one a
cycle, and are written to their places.
"""

from __future__ import annotations

from typing import Final

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith.isa.choice import GROUP_MAX
from systolith.spec import Chip

__all__ = ["KEY_BITS", "PAIR_BITS", "GroupEngine"]

KEY_BITS: Final = 20
"""Keys lie below an extent."""
PAIR_BITS: Final = 13
"""Numbers of pairs, and their count."""


class GroupEngine(wiring.Component):
    """Keys x0.., count of them (0: none), in row order; pairs: how many come; inner: of a row. go: an instruction
    starts.

    Out, one pair a cycle: write; number, row and place of the pair; leads: it is the first of its key, which has
    `rank` among the distinct keys and `members` pairs; key. counted: for one cycle, `distinct` is final.
    """

    def __init__(self, chip: Chip) -> None:
        self.lanes, self.log2 = chip.lanes, chip.log2_lanes
        super().__init__(
            {f"x{i}": In(32) for i in range(self.lanes)}
            | {
                "go": In(1), "count": In(range(self.lanes + 1)), "pairs": In(PAIR_BITS), "inner": In(20),
                "write": Out(1), "number": Out(PAIR_BITS), "row": Out(PAIR_BITS), "place": Out(PAIR_BITS),
                "leads": Out(1), "rank": Out(PAIR_BITS), "members": Out(PAIR_BITS), "key": Out(KEY_BITS),
                "counted": Out(1), "distinct": Out(PAIR_BITS),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        lanes, log = self.lanes, self.log2
        depth = GROUP_MAX // lanes
        loaded = Signal(PAIR_BITS)
        i = Signal(PAIR_BITS)  # the pair that meets the others, or that is written
        beat = Signal(range(depth))
        ranks, writes = Signal(), Signal()
        home, lane_of = i >> log, i[:log]
        following = Signal(PAIR_BITS)
        m.d.comb += following.eq(i + 1)
        with m.If(self.go):
            m.d.sync += [loaded.eq(0), i.eq(0), beat.eq(0), ranks.eq(1), writes.eq(0), self.distinct.eq(0)]
        with m.Elif(self.count != 0):
            m.d.sync += loaded.eq(loaded + self.count)

        # Memories of a lane: keys, and {place, rank, members, leads}. A beat of all lanes is read, changed and written.
        x = Array([getattr(self, f"x{k}") for k in range(lanes)])
        there: list[Value] = []
        keys, states, writers = [], [], []
        own_keys: list[Value] = []
        next_keys: list[Value] = []
        at = Signal(range(depth))
        m.d.comb += at.eq(Mux(writes, home, beat))
        for lane in range(lanes):
            m.submodules[f"keys{lane}"] = key_memory = Memory(shape=KEY_BITS, depth=depth, init=[])
            m.submodules[f"states{lane}"] = state_memory = Memory(shape=3 * PAIR_BITS + 1, depth=depth, init=[])
            put = key_memory.write_port()
            get, own, after = (key_memory.read_port(domain="comb") for _ in range(3))
            which = Signal(log, name=f"which{lane}")  # of the arriving beat, the element for this lane
            m.d.comb += [
                which.eq(lane - loaded),
                put.addr.eq((loaded + which) >> log),
                put.data.eq(x[which]),
                put.en.eq(which < self.count),
                get.addr.eq(at),
                own.addr.eq(home),
                after.addr.eq(following >> log),
            ]
            state, write = state_memory.read_port(domain="comb"), state_memory.write_port()
            m.d.comb += [state.addr.eq(at), write.addr.eq(at)]
            keys.append(get.data)
            own_keys.append(own.data)
            next_keys.append(after.data)
            states.append(state.data)
            writers.append(write)
            there.append(((beat << log) + lane) < i)
        key, ahead, before = Signal(KEY_BITS), Signal(KEY_BITS), Signal(KEY_BITS, reset_less=True)
        m.d.comb += [key.eq(Array(own_keys)[lane_of]), ahead.eq(Array(next_keys)[following[:log]])]

        # A pair that meets the others must know from the start whether one of them has its key: the pair before it has
        # asked for it, beat by beat, and is asked itself here.
        seen, known = Signal(), Signal()
        double = Signal()
        m.d.comb += double.eq(known | ((i != 0) & (key == before)))
        meets, closes = Signal(), Signal()
        all_there = loaded == self.pairs
        m.d.comb += [
            meets.eq(ranks & (loaded > i) & ((i == 0) | (loaded > following) | all_there)),
            closes.eq(meets & (beat == home)),
        ]
        place, rank = Signal(PAIR_BITS), Signal(PAIR_BITS)  # of pair i, among the beats before this one
        places: Value = place
        found_rank: Value = rank
        asks: Value = seen
        parts = []
        for lane in range(lanes):
            old, mine = states[lane], there[lane]
            p, r, c = (old[PAIR_BITS * k : PAIR_BITS * (k + 1)] for k in range(3))
            leads = old[-1]
            less, same = Signal(name=f"less{lane}"), Signal(name=f"same{lane}")
            m.d.comb += [less.eq(mine & (keys[lane] < key)), same.eq(mine & (keys[lane] == key))]
            places = places + (less | same)
            found_rank = found_rank + (less & leads)
            asks = asks | (mine & (keys[lane] == ahead))
            parts.append((p, r, c, leads, mine & ~less & ~same, same))
        new_place, new_rank, new_seen = Signal(PAIR_BITS), Signal(PAIR_BITS), Signal()
        m.d.comb += [new_place.eq(places), new_rank.eq(found_rank), new_seen.eq(asks)]
        for lane, (p, r, c, leads, more, same) in enumerate(parts):
            fresh = Signal(name=f"fresh{lane}")
            moved = Cat(
                (p + more)[:PAIR_BITS], (r + (more & ~double))[:PAIR_BITS], (c + (same & leads))[:PAIR_BITS], leads
            )
            m.d.comb += [
                fresh.eq(closes & (lane_of == lane)),
                writers[lane].en.eq(meets & (there[lane] | fresh)),
                writers[lane].data.eq(Mux(fresh, Cat(new_place, new_rank, Const(1, PAIR_BITS), ~double), moved)),
            ]
        row, inside = Signal(PAIR_BITS), Signal(20)
        with m.If(meets):
            m.d.sync += [place.eq(new_place), rank.eq(new_rank), seen.eq(new_seen), beat.eq(beat + 1)]
            with m.If(closes):
                m.d.sync += [
                    place.eq(0), rank.eq(0), seen.eq(0), known.eq(new_seen), beat.eq(0), i.eq(following),
                    before.eq(key), self.distinct.eq(self.distinct + ~double),
                ]  # fmt: skip
                with m.If(following == self.pairs):
                    m.d.sync += [ranks.eq(0), writes.eq(1), i.eq(0)]
        with m.If(writes):
            m.d.sync += [i.eq(following), inside.eq(inside + 1)]
            with m.If(inside == self.inner - 1):
                m.d.sync += [inside.eq(0), row.eq(row + 1)]
            with m.If(following == self.pairs):
                m.d.sync += writes.eq(0)
        with m.If(self.go):
            m.d.sync += [place.eq(0), rank.eq(0), seen.eq(0), known.eq(0), row.eq(0), inside.eq(0)]
        state = Signal(3 * PAIR_BITS + 1)
        m.d.comb += [
            state.eq(Array(states)[lane_of]),
            self.write.eq(writes),
            self.number.eq(i),
            self.row.eq(row),
            self.key.eq(key),
            Cat(self.place, self.rank, self.members, self.leads).eq(state),
            self.counted.eq(writes & (i == 0)),
        ]
        return m

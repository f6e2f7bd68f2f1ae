"""The counts of `isa.runs` and the times of `isa.cycles.transfer` in hardware, for an instruction in set-up.

Made from registers that stand still while the engine sets up; where rows lie at unequal places of a burst they are
counted one a cycle.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.isa import facts as F
from systolith.isa.cycles import COUNTED
from systolith.isa.descriptor import Space
from systolith.spec import Chip

from .mover import least
from .ports import OPERAND

__all__ = ["Counts"]


def up(value: Any, by: int) -> Any:
    """Quotient rounded up by a power of two."""
    assert by & (by - 1) == 0
    return (value + (by - 1)) >> (by.bit_length() - 1)


class Counts(wiring.Component):
    """Members:

    restart : in, the cycle in which the operands are taken. d, a : steady from the cycle after. put, ring : which rule.
    known : out, the counts stand. bursts, requests, beats, size (bytes), own (units), hold : as in `isa.cycles`.
    """

    def __init__(self, chip: Chip) -> None:
        self.f = F.facts(chip)
        super().__init__(
            {
                "restart": In(1),
                "d": In(OPERAND),
                "a": In(OPERAND),
                "put": In(1),
                "known": Out(1),
                "bursts": Out(32),
                "requests": Out(32),
                "beats": Out(32),
                "flits": Out(32),
                "own": Out(40),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        f, d, a = self.f, self.d, self.a
        ext = [d[f"ext{i}"] for i in range(3)]
        both = [least(a[f"ext{i}"], d[f"ext{i}"]) for i in range(3)]
        counting: Any = Const(0)
        pieces: dict[str, Any] = {}
        runs: dict[str, Any] = {}
        for name, side, e in (("a", a, both), ("d", d, ext)):
            got = self._side(m, name, side, e)
            pieces[name], runs[name], busy = got["pieces"], got["runs"], got["busy"]
            counting = counting | busy
            size = got["size"]  # of D: zeros travel too
        a_dram, d_dram = a.space == Space.DRAM, d.space == Space.DRAM
        read, write = Mux(a_dram, 0, pieces["a"]), Mux(d_dram, 0, pieces["d"])
        same = (a.space == d.space) & ((a.base // int(f[F.BANK_SIZE])) == (d.base // int(f[F.BANK_SIZE])))
        m.d.comb += [
            self.known.eq(~counting),
            self.bursts.eq(Mux(a_dram, pieces["a"], Mux(d_dram, pieces["d"], 0))),
            self.requests.eq(Mux(a_dram, runs["a"], Mux(d_dram, runs["d"], 0))),
        ]
        most = Signal(32)  # A PUT to memory counts its reads alone: the channel takes its bursts.
        m.d.comb += [
            most.eq(Mux(read < write, write, read)),
            self.beats.eq(Mux((self.bursts == 0) & same, read + write, most)),
        ]
        number, den = int(f[F.NET_NUM]), int(f[F.NET_DEN])
        flits, least_flits = Signal(40), Signal(40)
        m.d.comb += [
            least_flits.eq((size * den + (number - 1)) // number),
            flits.eq(Mux(least_flits < most, most, least_flits)),
            self.flits.eq(Mux(flits == 0, 1, flits)),
        ]
        # Pace of a burst: the channel's, the slower of requests and beats, or what latency and bursts in flight allow.
        units = int(f[F.UNITS_PER_CYCLE])
        floor = max(int(f[F.BURST_UNITS]), -(-int(f[F.DRAM_LATENCY]) * units // int(f[F.OUTSTANDING])))
        slow, pace = Signal(32), Signal(40)
        m.d.comb += [
            slow.eq(Mux(self.put, self.flits, Mux(self.requests < self.beats, self.beats, self.requests))),
            pace.eq((slow * units + self.bursts - 1)[:44].as_unsigned() // Mux(self.bursts == 0, 1, self.bursts)),
            self.own.eq(Mux(pace < floor, floor, pace)),
        ]
        return m

    def _side(self, m: Module, name: str, side: Any, e: list[Any]) -> dict[str, Any]:
        """`isa.runs.runs` of one operand."""
        f = self.f
        grain_of = {
            Space.DRAM: int(f[F.BURST]), Space.SPAD: int(f[F.BANK_BYTES]), Space.SLOT: int(f[F.LOAD_BYTES]),
            Space.ACC: int(f[F.BANK_BYTES]), Space.CELL: 4,
        }  # fmt: skip
        burst = int(f[F.BURST])

        def signal(bits: int, what: str, value: Any) -> Signal:
            s = Signal(bits, name=f"{name}_{what}")
            m.d.comb += s.eq(value)
            return s

        single = signal(1, "single", (side.stride2 != 1) & (e[2] > 1))
        join1 = signal(1, "join1", ~single & ((e[1] == 1) | (side.stride1 == e[2])))
        row = signal(40, "row", Mux(single, 1, Mux(join1, e[1] * e[2], e[2])))
        n1 = signal(40, "n1", Mux(single, e[1] * e[2], Mux(join1, 1, e[1])))
        unit = Const(1, 21) << side.unit
        follows = (n1 == 1) & (side.stride0 == row)
        joins0 = (n1 == 1) & ((side.stride0 == row) | (e[0] == 1)) & ~side.via
        in_unit = Mux(unit < e[0], unit, e[0])
        pages = follows & side.via
        length = signal(44, "length", Mux(pages, row * in_unit, Mux(joins0, row * e[0], row)))
        n0 = signal(21, "n0", Mux(pages, (e[0] + unit - 1) >> side.unit, Mux(joins0, 1, e[0])))
        s0 = Mux(pages, side.stride0 << side.unit, side.stride0)
        s1 = Mux(single, side.stride2, side.stride1)
        form = side.format
        four, word = form == 0, (form == 3) | (form == 4)

        def sized(value: Any) -> Any:
            return Mux(four, value >> 1, Mux(word, value << 2, value))

        sizes = (
            signal(44, "bytes0", Mux(four, (length + 1) >> 1, sized(length))),
            signal(44, "bytes1", up(length, 32)),
        )
        empty = (e[0] == 0) | (e[1] == 0) | (e[2] == 0)
        runs = signal(40, "runs", Mux(empty, 0, n0 * n1))
        total_runs = signal(40, "total", Mux(side.scale, runs << 1, runs))
        size = signal(44, "size", runs * (sizes[0] + Mux(side.scale, sizes[1], 0)))
        # On the chip a piece begins with its run.
        pieces: Any = Const(0)
        for space, grain in grain_of.items():
            if space != Space.DRAM:
                each = up(sizes[0], grain) + Mux(side.scale, up(sizes[1], grain), 0)
                pieces = Mux(side.space == space, runs * each, pieces)
        chip_side = signal(44, "pieces", pieces)
        # In memory pieces lie at multiples of a burst: all rows alike, or counted one by one.
        alike: list[Any] = []
        evens: list[Any] = []
        steps = []
        for part, base in ((0, side.base), (1, side.sbase)):
            b0 = signal_s(m, f"{name}_b0_{part}", sized(s0) if part == 0 else s0 >> 5)
            b1 = signal_s(m, f"{name}_b1_{part}", sized(s1) if part == 0 else s1 >> 5)
            steps.append((b0, b1))
            first = base % burst
            alike.append((first + sizes[part] - 1 + burst) // burst)
            even = ((b0 % burst == 0) | (n0 == 1)) & ((b1 % burst == 0) | (n1 == 1))
            evens.append(signal(1, f"even{part}", even))
        is_dram = side.space == Space.DRAM
        # Places inside a burst are all that counts. Codes and scales side by side, COUNTED runs a cycle.
        fresh = Signal(name=f"{name}_fresh")
        m.d.sync += fresh.eq(self.restart)
        counts: list[Any] = []
        working: Any = Const(0)
        for part, base in ((0, side.base), (1, side.sbase)):
            wanted = is_dram & (runs != 0) & ~evens[part] & (Const(1) if part == 0 else side.scale)
            counted, busy = self._count(m, f"{name}_{part}", fresh, wanted, base, sizes[part], n0, n1, steps[part])
            closed = signal(44, f"closed{part}", runs * alike[part])
            counts.append(Mux(evens[part], closed, counted))
            working = working | (wanted & (busy | fresh))
        bursts = counts[0] + Mux(side.scale, counts[1], 0)
        return {
            "pieces": Mux(is_dram, Mux(runs == 0, 0, bursts), chip_side),
            "runs": Mux(runs == 0, 0, total_runs),
            "size": size,
            "busy": working,
        }

    def _count(
        self, m: Module, name: str, fresh: Any, wanted: Any, base: Any, size: Any, n0: Any, n1: Any, steps: Any
    ) -> tuple[Any, Any]:
        """Count the bursts that runs touch, one after another: the count, and whether it goes on."""
        burst = int(self.f[F.BURST])
        bits = burst.bit_length() - 1
        i0, i1 = Signal(21, name=f"{name}_i0"), Signal(40, name=f"{name}_i1")
        place0, place1 = Signal(bits, name=f"{name}_p0"), Signal(bits, name=f"{name}_p1")
        counted, busy = Signal(44, name=f"{name}_counted"), Signal(name=f"{name}_busy")
        state: list[Any] = [i0, i1, place0, place1, counted, busy]
        for k in range(COUNTED):
            j0, j1, p0, p1, total, going = state
            here = (base[:bits] + p0 + p1)[:bits]
            row_ends = j1 + 1 == n1
            after = [
                Mux(row_ends, j0 + 1, j0), Mux(row_ends, 0, j1 + 1), Mux(row_ends, p0 + steps[0], p0),
                Mux(row_ends, 0, p1 + steps[1]), total + ((here + size - 1 + burst) >> bits),
                going & ~(row_ends & (j0 + 1 == n0)),
            ]  # fmt: skip
            new = []
            for old, value, what in zip(state, after, ("i0", "i1", "p0", "p1", "n", "go"), strict=True):
                s = Signal(len(old), name=f"{name}_{what}{k}")
                m.d.comb += s.eq(Mux(going, value, old))
                new.append(s)
            state = new
        with m.If(fresh):
            m.d.sync += [i0.eq(0), i1.eq(0), place0.eq(0), place1.eq(0), counted.eq(0), busy.eq(wanted)]
        with m.Else():
            m.d.sync += [old.eq(new) for old, new in zip((i0, i1, place0, place1, counted, busy), state, strict=True)]
        return counted, busy


def signal_s(m: Module, name: str, value: Any) -> Signal:
    """Give a signed value a name."""
    from amaranth.hdl import signed

    s = Signal(signed(40), name=name)
    m.d.comb += s.eq(value)
    return s

"""PICK: sampling in 20 sweeps over a row, whatever k, P and the weights are (docs/numerics.md rule 8).

Sweeps 0 to 7 find the key of the k-th best value, four bits a sweep; 8 the largest value; 9 sums the weights that are
kept; 10 to 17 find the threshold of P, four bits a sweep; 18 sums what is left; 19 finds the pick. Equal values are
kept from the lowest index on, so each sweep counts them again. Sweep i < 5 reads word i of the record.
"""

from __future__ import annotations

from typing import Final

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.numerics.philox import _M0, _M1, _W0, _W1
from systolith.spec import Chip

from .lane import is_nan

__all__ = ["PICK_SWEEPS", "PickEngine", "order_key"]

PICK_SWEEPS: Final = 20
_DIGITS: Final = 8
_BEST, _SUM, _THRESHOLD, _LEFT, _PICK = 8, 9, 10, 18, 19
_SUM_BITS: Final = 53


def order_key(x: Value) -> Value:
    """FP32 bits as an unsigned integer in the order of rule 8: NaN lowest, -0 as +0."""
    return Mux(is_nan(x), 0, Mux(x[:31] == 0, 0x80000000, Mux(x[31], ~x, x | 0x80000000)))[:32]


class PickEngine(wiring.Component):
    """Beats of logits x0.. and weights w0.., count of them, ends of the sweep, its number, a word of the record.

    write : for one cycle, the index is good    go : an instruction starts
    """

    def __init__(self, chip: Chip) -> None:
        self.lanes = chip.lanes
        super().__init__(
            {f"x{i}": In(32) for i in range(self.lanes)}
            | {f"w{i}": In(32) for i in range(self.lanes)}
            | {
                "go": In(1), "count": In(range(self.lanes + 1)), "ends": In(1), "sweep": In(5), "elements": In(20),
                "record": In(32), "position": In(32), "write": Out(1), "index": Out(32),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        lanes, sweep = self.lanes, self.sweep
        live = Signal()
        closes = Signal()
        m.d.comb += [live.eq(self.count != 0), closes.eq(live & self.ends)]
        record = [Signal(32, name=f"record{i}", reset_less=True) for i in range(5)]
        for i in range(5):
            with m.If(closes & (sweep == i)):
                m.d.sync += record[i].eq(self.record)
        position, first = Signal(32, reset_less=True), Signal()
        with m.If(live & (sweep == 0) & first):
            m.d.sync += position.eq(self.position)
        with m.If(self.go):
            m.d.sync += first.eq(1)
        with m.Elif(live):
            m.d.sync += first.eq(0)

        # The k best: key above the k-th, or equal to it and among the first `ties`.
        bound, ties, some = Signal(32), Signal(21), Signal()
        seen, base = Signal(21), Signal(20)  # equal ones and elements of this sweep before this beat
        keys, equal, kept = [], [], []
        before: Value = seen
        for i in range(lanes):
            key = Signal(32, name=f"key{i}")
            same, keep = Signal(name=f"same{i}"), Signal(name=f"keep{i}")
            m.d.comb += [
                key.eq(order_key(getattr(self, f"x{i}"))),
                same.eq((key == bound) & (self.count > i)),
                keep.eq((self.count > i) & (~some | (key > bound) | (same & (before < ties)))),
            ]
            after = Signal(21, name=f"equal{i}")
            m.d.comb += after.eq(before + same)
            before = after
            keys.append(key)
            equal.append(same)
            kept.append(keep)
        with m.If(live):
            m.d.sync += [seen.eq(Mux(self.ends, 0, before)), base.eq(Mux(self.ends, 0, base + self.count))]
        with m.If(self.go):
            m.d.sync += [seen.eq(0), base.eq(0), some.eq(0)]

        # A digit of four bits: how much each of its values has, among what agrees with the digits above.
        by_key = Signal()
        digit_place = Signal(3)
        prefix = Signal(32)
        m.d.comb += [by_key.eq(sweep < _DIGITS), digit_place.eq(Mux(by_key, sweep, sweep - _THRESHOLD)[:3])]
        above = Signal(32)
        m.d.comb += above.eq(~((Const(0xFFFFFFFF, 64) >> (digit_place << 2))[:32]))
        digits = by_key | ((sweep >= _THRESHOLD) & (sweep < _LEFT))
        sums = [Signal(_SUM_BITS, name=f"sum{d}") for d in range(16)]
        amounts, places = [], []
        for i in range(lanes):
            word, amount, place = (
                Signal(32, name=f"word{i}"),
                Signal(32, name=f"amount{i}"),
                Signal(4, name=f"digit{i}"),
            )
            counts = Signal(name=f"counts{i}")
            m.d.comb += [
                word.eq(Mux(by_key, keys[i], getattr(self, f"w{i}"))),
                counts.eq((self.count > i) & (((word ^ prefix) & above) == 0) & (by_key | kept[i])),
                amount.eq(Mux(counts, Mux(by_key, 1, word), 0)),
                place.eq((word << (digit_place << 2))[28:32]),
            ]
            amounts.append(amount)
            places.append(place)
        totals = [Signal(_SUM_BITS, name=f"total{d}") for d in range(16)]
        for d in range(16):
            here: Value = sums[d]
            for i in range(lanes):
                here = here + Mux(places[i] == d, amounts[i], 0)
            m.d.comb += totals[d].eq(here)
            with m.If(live & digits):
                m.d.sync += sums[d].eq(Mux(self.ends, 0, totals[d]))
            with m.If(self.go):
                m.d.sync += sums[d].eq(0)
        # The highest digit at which the values from there up reach what is left.
        left = Signal(_SUM_BITS)
        asked = Signal(_SUM_BITS)
        m.d.comb += asked.eq(Mux(sweep == 0, self.record, left))
        reach: Value = Const(0, _SUM_BITS)
        digit, rest, reached = Signal(4), Signal(_SUM_BITS), Signal()
        for d in range(15, -1, -1):
            with_d = Signal(_SUM_BITS, name=f"reach{d}")
            m.d.comb += with_d.eq(reach + totals[d])
            with m.If((with_d >= asked) & (reach < asked)):
                m.d.comb += [digit.eq(d), rest.eq(asked - reach), reached.eq(1)]
            reach = with_d
        chosen = Signal(32)
        m.d.comb += chosen.eq(prefix | (Cat(Const(0, 28), digit) >> (digit_place << 2))[:32])
        none = Signal()  # P asks for more than there is: everything is kept
        with m.If(closes & digits):
            m.d.sync += [prefix.eq(Mux(digit_place == 7, 0, chosen)), left.eq(rest)]
            with m.If(sweep == 0):
                m.d.sync += some.eq(0)
            with m.If(sweep == _DIGITS - 1):
                m.d.sync += [
                    bound.eq(chosen), ties.eq(rest[:21]),
                    some.eq((record[0] != 0) & (record[0] < self.elements)),
                ]  # fmt: skip
            with m.If((sweep == _THRESHOLD) & ~reached):
                m.d.sync += none.eq(1)
        threshold = Signal(32)
        with m.If(closes & (sweep == _LEFT - 1)):
            m.d.sync += threshold.eq(Mux(none, 0, chosen))
        with m.If(self.go):
            m.d.sync += [prefix.eq(0), none.eq(0)]

        # The largest value, the lowest index among equals.
        best_key, best, found_any = Signal(32), Signal(20), Signal()
        level: list[tuple[Value, Value, Value]] = [(best_key, best, found_any)]
        level += [(keys[i], base + i, self.count > i) for i in range(lanes)]
        number = 0
        while len(level) > 1:
            up = []
            for i in range(0, len(level) - 1, 2):
                (k0, i0, l0), (k1, i1, l1) = level[i], level[i + 1]
                second, key, at = (
                    Signal(name=f"right{number}"),
                    Signal(32, name=f"up{number}"),
                    Signal(20, name=f"at{number}"),
                )
                m.d.comb += [second.eq(l1 & (~l0 | (k1 > k0))), key.eq(Mux(second, k1, k0)), at.eq(Mux(second, i1, i0))]
                number += 1
                up.append((key, at, l0 | l1))
            level = up + level[len(level) // 2 * 2 :]
        with m.If(live & (sweep == _BEST)):
            m.d.sync += [best_key.eq(level[0][0]), best.eq(level[0][1]), found_any.eq(1)]
        with m.If(self.go):
            m.d.sync += found_any.eq(0)

        # Sums of what is kept, and the place where they pass r.
        total, running = Signal(_SUM_BITS), Signal(_SUM_BITS)
        r = Signal(_SUM_BITS)
        over: Value = running
        hit, where = Signal(), Signal(20)
        for i in range(lanes):
            w = getattr(self, f"w{i}")
            stays = Signal(name=f"stays{i}")
            m.d.comb += stays.eq(kept[i] & ((sweep == _SUM) | (w >= threshold)))
            more = Signal(_SUM_BITS, name=f"running{i}")
            m.d.comb += more.eq(over + Mux(stays, w, 0))
            with m.If((more > r) & ~(over > r)):
                m.d.comb += [hit.eq(1), where.eq(base + i)]
            over = more
        sums_now = (sweep == _SUM) | (sweep == _LEFT) | (sweep == _PICK)
        with m.If(live & sums_now):
            m.d.sync += running.eq(Mux(self.ends, 0, over))
            with m.If(self.ends & (sweep != _PICK)):
                m.d.sync += total.eq(over)
        with m.If(self.go):
            m.d.sync += running.eq(0)
        word = self._philox(m, sweep, record, position)
        share = Signal(64 + _SUM_BITS)
        need = Signal(_SUM_BITS + 1)
        P = Cat(record[1], record[2])
        m.d.comb += [
            share.eq(P * total),
            need.eq((share + 0xFFFFFFFF)[32 : 32 + _SUM_BITS + 1]),
            r.eq((word * total)[32:]),
        ]
        huge = P > (1 << 32)
        with m.If((sweep == _THRESHOLD) & live & (base == 0)):
            pass
        empty = Signal()
        settle = Signal()  # the cycle after the sum is known
        m.d.sync += settle.eq(closes & (sweep == _SUM))
        with m.If(settle):
            m.d.sync += [
                left.eq(Mux(huge, (1 << _SUM_BITS) - 1, Mux(need == 0, 1, need)[:_SUM_BITS])),
                empty.eq(total == 0),
            ]
        found, place = Signal(), Signal(20)
        with m.If(self.go):
            m.d.sync += [found.eq(0), place.eq(0)]
        with m.If(live & (sweep == _PICK) & hit & ~found):
            m.d.sync += [found.eq(1), place.eq(where)]
        finished = Signal()
        m.d.sync += finished.eq(closes & (sweep == _PICK))
        m.d.comb += [self.write.eq(finished), self.index.eq(Mux(empty, best, place))]
        return m

    def _philox(self, m: Module, sweep: Value, record: list[Signal], position: Signal) -> Signal:
        """Word 0 of Philox4x32-10, a round a cycle from sweep 6 on."""
        c = [Signal(32, name=f"counter{i}", reset_less=True) for i in range(4)]
        k = [Signal(32, name=f"seed{i}", reset_less=True) for i in range(2)]
        turn = Signal(4)
        p0, p1 = Signal(64), Signal(64)
        m.d.comb += [p0.eq(c[0] * _M0), p1.eq(c[2] * _M1)]
        with m.If(sweep < 6):
            m.d.sync += [c[0].eq(position), c[1].eq(0), c[2].eq(0), c[3].eq(0), turn.eq(0)]
            m.d.sync += [k[0].eq(record[3]), k[1].eq(record[4])]
        with m.Elif(turn != 10):
            m.d.sync += [
                turn.eq(turn + 1), c[0].eq(p1[32:] ^ c[1] ^ k[0]), c[1].eq(p1[:32]), c[2].eq(p0[32:] ^ c[3] ^ k[1]),
                c[3].eq(p0[:32]), k[0].eq(k[0] + _W0), k[1].eq(k[1] + _W1),
            ]  # fmt: skip
        return c[0]

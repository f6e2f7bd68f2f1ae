"""Walks both tensors of a copy in step: one piece of at most a bank's width a cycle, codes first, then scales.

Rows that follow each other on both sides make one run, as in `isa.runs`; with an index list the rows of one index do.
What lies outside the source is a piece of zeros.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .ports import OPERAND

__all__ = ["Mover"]

ADDRESS = 40


def least(a: Any, b: Any) -> Any:
    """The smaller of two."""
    return Mux(a < b, a, b)


class Mover(wiring.Component):
    """Members:

    d, a : in, the operands, steady until `last` is stepped over. page_d, page_a : in, the first entries of their lists.
    step : in, the piece is taken. src, dst : out, byte addresses. bytes : of the piece; valid : of those, from the
    source, the rest are zeros. last : nothing follows. new_run : the piece begins a run.
    list_d_*, list_a_* : ports to the index lists.
    """

    def __init__(self, piece: int) -> None:
        self.piece = piece
        size = range(piece + 1)
        super().__init__(
            {
                "d": In(OPERAND),
                "a": In(OPERAND),
                "page_d": In(32),
                "page_a": In(32),
                "step": In(1),
                "src": Out(ADDRESS),
                "dst": Out(ADDRESS),
                "bytes": Out(size),
                "valid": Out(size),
                "last": Out(1),
                "list_d_en": Out(1),
                "list_d_addr": Out(32),
                "list_d_data": In(32),
                "list_a_en": Out(1),
                "list_a_addr": Out(32),
                "list_a_data": In(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Make the hardware."""
        m = Module()
        d, a, n = self.d, self.a, self.piece
        ext = [Signal(20, name=f"ext{i}") for i in range(3)]
        have = [Signal(20, name=f"have{i}") for i in range(3)]
        m.d.comb += [e.eq(d[f"ext{i}"]) for i, e in enumerate(ext)]
        m.d.comb += [h.eq(least(ext[i], a[f"ext{i}"])) for i, h in enumerate(have)]
        part = Signal()  # 0 codes, 1 scales
        i0, i1, i2, at = Signal(20), Signal(20), Signal(20), Signal(32)  # at: bytes of the run that are done
        single = Signal()  # every element is a run of its own
        join1, join0, length = Signal(), Signal(), Signal(40)
        m.d.comb += [
            single.eq(((a.stride2 != 1) | (d.stride2 != 1)) & (ext[2] > 1)),
            join1.eq(
                ~single
                & (
                    (ext[1] == 1)
                    | ((a.stride1 == ext[2]) & (d.stride1 == ext[2]) & (have[1] == ext[1]) & (have[2] == ext[2]))
                )
            ),
            length.eq(Mux(join1, ext[1] * ext[2], ext[2])),
            join0.eq(join1 & (a.stride0 == length) & (d.stride0 == length) & (have[1] == ext[1]) & (have[2] == ext[2])),
        ]

        def to_bytes(value: Any, begun: bool = False) -> Any:
            """Bytes of a number of elements of the part at hand. begun : a block that has begun has its scale."""
            f = a.format
            sized = Mux(f == 0, value >> 1, Mux((f == 3) | (f == 4), value << 2, value))
            return Mux(part, (value + 31 * begun) >> 5, sized)

        # Rows that one run takes along dimension 0.
        rows, left_rows = Signal(21), Signal(21)
        inside0 = i0 < have[0]
        m.d.comb += left_rows.eq(ext[0] - i0)  # a run goes on into the rows that the source does not have
        limit: Any = left_rows
        for side in (a, d):
            j = (i0 + side.row)[:21]
            unit = Const(1, 21) << side.unit
            in_page = (unit - (j & (unit - 1)))[:21]
            limit = Mux(side.via, least(limit, in_page), limit)
        m.d.comb += rows.eq(Mux(join0, limit, 1))

        # Run: its length, and how much of it the source has.
        run, real, real_rows = Signal(40), Signal(40), Signal(21)
        m.d.comb += real_rows.eq(least(rows, have[0] - i0))  # where i0 lies inside
        inside = inside0 & (i1 < have[1])
        real_length = Mux(join1 & (have[2] == ext[2]), length, have[2])
        m.d.comb += [
            run.eq(to_bytes(Mux(single, Const(1, 2), length * rows))),
            real.eq(
                Mux(
                    inside & (~single | (i2 < have[2])),
                    to_bytes(Mux(single, Const(1, 2), real_length * real_rows), True),
                    0,
                )
            ),
        ]
        rest, more = Signal(40), Signal(40)
        m.d.comb += [rest.eq(run - at), more.eq(Mux(real > at, real - at, 0))]
        m.d.comb += [self.bytes.eq(least(rest, n)), self.valid.eq(least(least(more, rest), n))]

        # Addresses.
        for name, side, out in (("a", a, self.src), ("d", d, self.dst)):
            page = Signal(32, name=f"{name}_page")
            first_row = Signal(name=f"{name}_first", init=1)
            j, row = Signal(32, name=f"{name}_j"), Signal(signed(34), name=f"{name}_row")
            unit = Const(1, 32) << side.unit
            current = Mux(first_row, getattr(self, f"page_{name}"), getattr(self, f"list_{name}_data"))
            held = Signal(name=f"{name}_held")  # the entry of this run has been kept
            index = Mux(held, page, current)
            m.d.comb += [
                j.eq(i0 + side.row),
                row.eq(Mux(side.via, (index << side.unit)[:32] | (j & (unit - 1)), i0)),
            ]
            offset = Signal(signed(64), name=f"{name}_offset")
            m.d.comb += offset.eq(row * side.stride0 + i1 * side.stride1 + Mux(single, i2 * side.stride2, 0))
            base = Mux(part, side.sbase, side.base)
            m.d.comb += out.eq(base + to_bytes(offset) + at)
            # The entry of the next run is read while this one moves.
            next_row = Signal(32, name=f"{name}_next")
            wraps = i0 + rows >= ext[0]
            m.d.comb += [
                next_row.eq(Mux(wraps, side.row, j + rows)),
                getattr(self, f"list_{name}_en").eq(side.via),
                getattr(self, f"list_{name}_addr").eq(side.list + ((next_row >> side.unit) << 2)),
            ]
            with m.If(self.step):
                m.d.sync += [held.eq(1), page.eq(index)]
                with m.If(self.end_of_rows):
                    m.d.sync += [held.eq(0), first_row.eq(0)]
                with m.If(self.last):
                    m.d.sync += [held.eq(0), first_row.eq(1)]

        # Steps.
        run_ends, row_ends, part_ends = Signal(), Signal(), Signal()
        last2 = Signal()
        m.d.comb += [
            run_ends.eq(rest <= n),
            last2.eq(~single | (i2 + 1 == ext[2])),
            row_ends.eq(run_ends & last2 & (join1 | (i1 + 1 == ext[1]))),
            part_ends.eq(row_ends & (i0 + rows >= ext[0])),
            self.last.eq(part_ends & (part | ~a.scale)),
            self.end_of_rows.eq(row_ends),
        ]
        with m.If(self.step):
            m.d.sync += at.eq(Mux(run_ends, 0, at + n))
            with m.If(run_ends):
                m.d.sync += i2.eq(Mux(last2, 0, i2 + 1))
                with m.If(last2):
                    m.d.sync += i1.eq(Mux(row_ends, 0, i1 + 1))
            with m.If(row_ends):
                m.d.sync += i0.eq(Mux(part_ends, 0, i0 + rows))
            with m.If(part_ends):
                m.d.sync += part.eq(~self.last)
        return m

    @property
    def end_of_rows(self) -> Any:
        """The piece ends a run of rows of dimension 0."""
        if not hasattr(self, "_end_of_rows"):
            self._end_of_rows = Signal(name="end_of_rows")
        return self._end_of_rows

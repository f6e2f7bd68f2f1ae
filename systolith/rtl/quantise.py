"""Quantise on write: beats wait until the largest of their block is known, then leave as codes, one beat a cycle.

docs/numerics.md rule 4. A whole row with one scale (ROWSCALE) needs no waiting: its scale is known before it comes.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolith.isa.descriptor import Format
from systolith.spec import BLOCK, Chip

from .convert import Encode, scale_code
from .functions import delayed
from .leaf import leaf
from .ports import ADDRESS_BITS

__all__ = ["Quantise"]


class Quantise(wiring.Component):
    """Beats in: x0.., count (0: none), last (of the row), address and scale_address of the beat. form.
    whole : 1: `scale` holds for all values, no block, no scale is written.

    Out, `convert_cycles` after the block's last beat and one beat a cycle (whole: `convert_cycles` - 1 after the beat):
    write, write_address, data, bytes (of codes; the last beat of a part block brings zeros up to the block's end);
    scale_write, scale_to, scale_data, scales (bytes).
    """

    def __init__(self, chip: Chip) -> None:
        self.lanes, self.convert = chip.lanes, chip.convert_cycles
        self.beats = max(1, BLOCK // self.lanes)
        """Beats of a block."""
        self.blocks = max(1, self.lanes // BLOCK)
        """Blocks of a beat."""
        self.width = max(BLOCK, self.lanes)
        """Most codes of one write."""
        super().__init__(
            {f"x{i}": In(32) for i in range(self.lanes)}
            | {
                "count": In(range(self.lanes + 1)), "last": In(1), "address": In(ADDRESS_BITS),
                "scale_address": In(ADDRESS_BITS), "form": In(4), "whole": In(1), "scale": In(8),
                "write": Out(1), "write_address": Out(ADDRESS_BITS), "data": Out(8 * self.width),
                "bytes": Out(range(self.width + 1)),
                "scale_write": Out(1), "scale_to": Out(ADDRESS_BITS), "scale_data": Out(8 * self.blocks),
                "scales": Out(range(self.blocks + 1)),
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        """Build the module."""
        m = Module()
        lanes, blocks = self.lanes, self.blocks
        x = [getattr(self, f"x{i}") for i in range(lanes)]
        live = Signal()
        m.d.comb += live.eq((self.count != 0) & ~self.whole)

        # The largest magnitude of each block so far.
        beat = Signal(range(self.beats + 1))
        ends = Signal()
        m.d.comb += ends.eq(live & (self.last | (beat == self.beats - 1)))
        found = []
        for b in range(blocks):
            kept = Signal(31, name=f"largest{b}")
            group = range(b * lanes // blocks, (b + 1) * lanes // blocks)
            level: list[Value] = [Mux(self.count > i, x[i][:31], 0) for i in group]
            if self.beats > 1:
                level.append(kept)
            number = 0
            while len(level) > 1:
                above: list[Value] = []
                for i in range(0, len(level) - 1, 2):
                    node = Signal(31, name=f"block{b}_{number}")
                    number += 1
                    m.d.comb += node.eq(Mux(level[i] > level[i + 1], level[i], level[i + 1]))
                    above.append(node)
                level = above + level[len(level) // 2 * 2 :]
            found.append(level[0])
            with m.If(live):
                m.d.sync += kept.eq(Mux(ends, 0, level[0]))
        with m.If(live):
            m.d.sync += beat.eq(Mux(ends, 0, beat + 1))

        # Beats and scales wait side by side.
        depth = 4 * self.beats
        head = Cat(*x, self.count, ends, self.address, self.scale_address)
        m.submodules.waiting = waiting = Memory(shape=len(head), depth=depth, init=[])
        m.submodules.scales_waiting = scales = Memory(shape=8 * blocks, depth=depth, init=[])
        put, get = Signal(range(depth)), Signal(range(depth))
        put_scale, get_scale = Signal(range(depth)), Signal(range(depth))
        complete = Signal(range(depth + 1))
        for memory, where, enable, data in (
            (waiting, put, live, head),
            (scales, put_scale, ends, Cat(*(scale_code(f, self.form) for f in found))),
        ):
            port = memory.write_port()
            m.d.comb += [port.addr.eq(where), port.en.eq(enable), port.data.eq(data)]
            with m.If(enable):
                m.d.sync += where.eq(where + 1)
        oldest, oldest_scale = waiting.read_port(domain="comb"), scales.read_port(domain="comb")
        m.d.comb += [oldest.addr.eq(get), oldest_scale.addr.eq(get_scale)]
        leaves, closes = Signal(), Signal()
        y, count, y_ends, address, scale_address = [], Signal(range(lanes + 1)), Signal(), Signal(32), Signal(32)
        for i in range(lanes):
            y.append(oldest.data[32 * i : 32 * i + 32])
        m.d.comb += [
            Cat(count, y_ends, address, scale_address).eq(oldest.data[32 * lanes :]),
            leaves.eq(complete != 0),
            closes.eq(leaves & y_ends),
        ]
        with m.If(leaves):
            m.d.sync += get.eq(get + 1)
        with m.If(closes):
            m.d.sync += get_scale.eq(get_scale + 1)
        m.d.sync += complete.eq(complete + ends - closes)

        # Codes.
        whole = self.whole
        n = Signal(range(lanes + 1))
        m.d.comb += n.eq(Mux(whole, self.count, Mux(leaves, count, 0)))
        codes = []
        for i in range(lanes):
            value, scale, code = Signal(32, name=f"value{i}"), Signal(8, name=f"scale{i}"), Signal(8, name=f"code{i}")
            b = i * blocks // lanes
            m.d.comb += [
                value.eq(Mux(whole, x[i], y[i])),
                scale.eq(Mux(whole, self.scale, oldest_scale.data[8 * b : 8 * b + 8])),
            ]
            m.submodules[f"encode{i}"] = leaf(
                "encode", Encode, whole=False, i_value=value, i_scale=scale, i_form=self.form, o_code=code
            )
            codes.append(Mux(n > i, code, 0)[:8])
        narrow = self.form == Format.E2M1
        packed = Cat(*(Cat(c[:4]) for c in codes))
        out_beat = Signal(range(self.beats + 1))
        with m.If(leaves):
            m.d.sync += out_beat.eq(Mux(y_ends, 0, out_beat + 1))
        full = Signal(range(self.width + 1))  # codes written: to the block's end with its last beat
        if self.beats > 1:
            m.d.comb += full.eq(Mux(y_ends, BLOCK - out_beat * lanes, lanes))
        else:
            m.d.comb += full.eq((count + BLOCK - 1) & ~Const(BLOCK - 1, len(full)))
        taken = Signal(range(self.width + 1))
        m.d.comb += taken.eq(Mux(whole, n, full))
        late = {
            "write": n != 0,
            "write_address": Mux(whole, self.address, address),
            "data": Mux(narrow, packed, Cat(*codes))[: 8 * lanes],
            "bytes": Mux(narrow, (taken + 1) >> 1, taken),
            "scale_write": closes,
            "scale_to": scale_address,
            "scale_data": oldest_scale.data,
            "scales": (count + (BLOCK - 1)) >> 5 if blocks > 1 else Const(1, 1),
        }
        for name, value in late.items():
            here = Signal(len(getattr(self, name)), name=f"{name}_now")
            m.d.comb += [here.eq(value), getattr(self, name).eq(delayed(m, here, self.convert - 1, name))]
        return m

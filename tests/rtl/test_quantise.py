"""The converter on write with more lanes than a block has elements, in Amaranth's simulator."""

import numpy as np
import pytest

pytest.importorskip("amaranth")

from amaranth.hdl import Module
from amaranth.sim import Simulator

from systolith.numerics import formats
from systolith.numerics.blocks import quantise_row
from systolith.numerics.fp32 import from_bits
from systolith.rtl import quantise
from systolith.spec import load


def beside(name, make, *, whole=True, **ports):
    """Put a leaf's component where its instance would stand: the simulator knows no instances."""
    m = Module()
    m.submodules.part = part = make()
    for port, value in ports.items():
        side, inner = port.split("_", 1)
        m.d.comb += getattr(part, inner).eq(value) if side == "i" else value.eq(getattr(part, inner))
    return m


@pytest.mark.parametrize(("lanes", "number"), [(64, 0), (64, 1), (64, 2)])
def test_blocks_side_by_side(monkeypatch, lanes, number):
    monkeypatch.setattr(quantise, "leaf", beside)
    chip = load("micro").vary(lanes=lanes, bank_bytes=4 * lanes, accumulator_bytes=64 << 10)
    unit, fmt = quantise.Quantise(chip), (formats.E2M1, formats.E4M3, formats.INT8)[number]
    rng = np.random.default_rng(lanes + number)
    rows = [
        (rng.standard_normal(n) * 2.0 ** rng.integers(-20, 20)).astype(np.float32) for n in (1, 31, 33, 64, 65, 200, 96)
    ]
    codes, scales = np.full(4096, 0xEE, np.uint8), np.full(128, 0xEE, np.uint8)

    async def feed(ctx):
        ctx.set(unit.form, number)
        for r, row in enumerate(rows):
            for at in range(0, len(row), lanes):
                part = row[at : at + lanes]
                for i, bits in enumerate(part.view(np.uint32).tolist()):
                    ctx.set(getattr(unit, f"x{i}"), bits)
                ctx.set(unit.count, len(part))
                ctx.set(unit.last, at + lanes >= len(row))
                ctx.set(unit.address, 256 * r + at * fmt.bits // 8)
                ctx.set(unit.scale_address, 8 * r + at // 32)
                await ctx.tick()
        ctx.set(unit.count, 0)
        for _ in range(6):
            await ctx.tick()

    async def watch(ctx):
        while True:
            if ctx.get(unit.write):
                n, at = ctx.get(unit.bytes), ctx.get(unit.write_address)
                codes[at : at + n] = np.frombuffer(ctx.get(unit.data).to_bytes(unit.width, "little"), np.uint8)[:n]
            if ctx.get(unit.scale_write):
                n, at = ctx.get(unit.scales), ctx.get(unit.scale_to)
                scales[at : at + n] = np.frombuffer(ctx.get(unit.scale_data).to_bytes(8, "little"), np.uint8)[:n]
            await ctx.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(feed)
    simulator.add_testbench(watch, background=True)
    simulator.run()
    for r, row in enumerate(rows):
        wanted = quantise_row([from_bits(b) for b in row.view(np.uint32).tolist()], fmt)
        blocks = len(wanted.scales)
        assert scales[8 * r : 8 * r + 8].tolist() == [*wanted.scales, *[0xEE] * (8 - blocks)]
        padded = np.array([*wanted.codes, *[0] * (32 * blocks - len(row))], np.uint8)
        if fmt.bits == 4:
            padded = padded[0::2] | padded[1::2] << 4
        assert codes[256 * r : 256 * r + len(padded)].tolist() == padded.tolist()
        assert codes[256 * r + len(padded)] == 0xEE

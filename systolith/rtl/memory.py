"""On-chip memories: bytes behind ports at any byte address. A module of their own, which a macro can replace.

A read's address is taken in one cycle, its data stands `latency` cycles later; a read sees what was written in the
cycles before it. What lies outside reads as 0 and is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import ClockSignal, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.spec import CELLS

from .leaf import text_leaf
from .ports import ADDRESS_BITS, Port

__all__ = ["ByteMemory", "Cells"]


def memory_text(name: str, size: int, ports: Sequence[Port], latency: int) -> str:
    """Verilog of a memory of `size` bytes with these ports."""
    top = ADDRESS_BITS - 1
    heads, body, reads = ["input wire clk"], [], []
    for port in ports:
        n, wide = port.name, 8 * port.bytes
        heads += [f"input wire {n}_en", f"input wire [{top}:0] {n}_addr"]
        if port.write:
            heads += [f"input wire [{wide - 1}:0] {n}_data", f"input wire [{port.bytes - 1}:0] {n}_mask"]
            lines = [
                f"if ({n}_mask[{i}] && {n}_addr + {i} < {size}) mem[{n}_addr + {i}] <= {n}_data[{8 * i + 7}:{8 * i}];"
                for i in range(port.bytes)
            ]
            body.append(f"if ({n}_en) begin\n      " + "\n      ".join(lines) + "\n    end")
        else:
            heads.append(f"output wire [{wide - 1}:0] {n}_data")
            parts = ", ".join(
                f"({n}_addr + {i} < {size} ? mem[{n}_addr + {i}] : 8'd0)" for i in reversed(range(port.bytes))
            )
            names = [f"{n}_r{i}" for i in range(latency)]
            reads.append(f"  reg [{wide - 1}:0] {', '.join(names)};\n  assign {n}_data = {names[-1]};")
            body.append(f"if ({n}_en) {names[0]} <= {{{parts}}};")
            body += [f"{new} <= {old};" for old, new in zip(names, names[1:], strict=False)]
    return (
        f"module {name}(\n  " + ",\n  ".join(heads) + "\n);\n"
        "  /*verilator no_inline_module*/\n"
        f"  reg [7:0] mem [0:{size - 1}];\n" + "\n".join(reads) + "\n"
        "  always @(posedge clk) begin\n    " + "\n    ".join(body) + "\n  end\nendmodule\n"
    )


class ByteMemory:
    """Joins the signals of ports to a memory leaf. `signals[port.name, "en" | "addr" | "data" | "mask"]`."""

    def __init__(self, name: str, size: int, latency: int) -> None:
        self.name, self.size, self.latency = name, size, latency
        self.ports: list[Port] = []
        self.signals: dict[str, Any] = {}

    def add(self, owner: str, unit: Any, port: Port) -> None:
        """Join a port of a unit; `owner` makes its name unique."""
        name = f"{owner}_{port.name}"
        self.ports.append(Port(name, port.space, port.bytes, port.write))
        for part in ("en", "addr", "data") + (("mask",) if port.write else ()):
            out = part == "data" and not port.write
            self.signals[f"{'o' if out else 'i'}_{name}_{part}"] = getattr(unit, f"{port.name}_{part}")

    def instance(self) -> Instance:
        """Give the leaf."""
        return text_leaf(
            self.name,
            lambda: memory_text(self.name, self.size, self.ports, self.latency),
            i_clk=ClockSignal(),
            **self.signals,
        )


class Cells(wiring.Component):
    """64 words of 32 bits, all of them visible to the queues; ports as those of a memory, at word addresses x 4.

    Members: `values` (out, word n in bits 32n..32n+31) and the signals that `add` joins.
    """

    def __init__(self, latency: int) -> None:
        super().__init__({"values": Out(32 * CELLS), "unused": In(1)})
        self.latency = latency
        self._ports: list[tuple[Any, Port]] = []

    def add(self, unit: Any, port: Port) -> None:
        """Join a port of a unit."""
        self._ports.append((unit, port))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        cells = [Signal(32, name=f"x{n}") for n in range(CELLS)]
        for n, cell in enumerate(cells):
            m.d.comb += self.values[32 * n : 32 * n + 32].eq(cell)
        flat = self.values
        for unit, port in self._ports:
            en, addr = getattr(unit, f"{port.name}_en"), getattr(unit, f"{port.name}_addr")
            data = getattr(unit, f"{port.name}_data")
            word = addr[2:8]
            if port.write:
                mask = getattr(unit, f"{port.name}_mask")
                for k in range(max(1, port.bytes // 4)):
                    with m.If(en & mask[4 * k]), m.Switch((word + k)[:6]):
                        for n, cell in enumerate(cells):
                            with m.Case(n):
                                m.d.sync += cell.eq(data.word_select(k, 32))
            else:
                stages = [Signal(8 * port.bytes, name=f"{port.name}_{i}") for i in range(self.latency)]
                with m.If(en):
                    m.d.sync += stages[0].eq(flat >> (addr[:8] << 3))
                for old, new in zip(stages, stages[1:], strict=False):
                    m.d.sync += new.eq(old)
                m.d.comb += data.eq(stages[-1])
        return m

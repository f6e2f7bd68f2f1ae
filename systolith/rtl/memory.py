"""On-chip memories: bytes behind ports at any byte address. A module of their own, which a macro can replace.

A read's address is taken in one cycle, its data stands `latency` cycles later; a read sees what was written in the
cycles before it. What lies outside reads as 0 and is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from amaranth.hdl import ClockSignal, Instance, Signal

from systolith.spec import CELLS, QUEUES

from .leaf import text_leaf
from .ports import ADDRESS_BITS, Port

__all__ = ["ByteMemory", "Cells", "WordMemory"]

JOURNAL: Final = 32
"""Bytes of a write that one call of the journal takes."""
_IMPORT: Final = (
    "`ifdef SYSTOLITH_JOURNAL\n"
    '  import "DPI-C" context function void systolith_write('
    "input int owner, input int space, input int unsigned addr,\n"
    f"    input bit [{8 * JOURNAL - 1}:0] data, input int unsigned mask);\n"
    "`endif\n"
)


def journal(port: Port) -> str:
    """Verilog that tells the harness of a write, where the build asks for it: whose port it is, and what it writes.

    The owner is the number of a queue, or 8 + the sender of what comes from the network.
    """
    n = port.name
    owner = 8 + int(n[1:].split("_")[0]) if n[0] == "N" else QUEUES.index(n[0])
    calls = []
    for low in range(0, port.bytes, JOURNAL):
        count = min(JOURNAL, port.bytes - low)
        data, mask = f"{n}_data[{8 * (low + count) - 1}:{8 * low}]", f"{n}_mask[{low + count - 1}:{low}]"
        if count < JOURNAL:
            data, mask = f"{{{8 * (JOURNAL - count)}'d0, {data}}}", f"{{{JOURNAL - count}'d0, {mask}}}"
        calls.append(f"systolith_write({owner}, {int(port.space)}, {n}_addr + {low}, {data}, {mask});")
    return "`ifdef SYSTOLITH_JOURNAL\n      " + "\n      ".join(calls) + "\n`endif\n      "


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
            body.append(f"if ({n}_en) begin\n{journal(port)}" + "\n      ".join(lines) + "\n    end")
        else:
            heads.append(f"output wire [{wide - 1}:0] {n}_data")
            parts = ", ".join(
                f"({n}_addr + {i} < {size} ? mem[{n}_addr + {i}] : 8'd0)" for i in reversed(range(port.bytes))
            )
            names = [f"{n}_r{i}" for i in range(latency)]
            reads.append(f"  reg [{wide - 1}:0] {', '.join(names)};\n  assign {n}_data = {names[-1]};")
            body.append(f"if ({n}_en) {names[0]} <= {{{parts}}};")
            body += [f"{new} <= {old};" for old, new in pairwise(names)]
    return (
        f"module {name}(\n  " + ",\n  ".join(heads) + "\n);\n"
        "  /*verilator no_inline_module*/\n" + _IMPORT + f"  reg [7:0] mem [0:{size - 1}];\n  integer i;\n"
        f"  initial for (i = 0; i < {size}; i = i + 1) mem[i] = 0;\n" + "\n".join(reads) + "\n"
        "  always @(posedge clk) begin\n    " + "\n    ".join(body) + "\n  end\nendmodule\n"
    )


def words_text(name: str, width: int, depth: int) -> str:
    """Verilog of a memory of words: one port to read, a cycle after its address, and one to write."""
    bits = max(1, (depth - 1).bit_length())
    return (
        f"module {name}(\n  input wire clk,\n  input wire [{bits - 1}:0] r_addr,\n"
        f"  output reg [{width - 1}:0] r_data,\n"
        f"  input wire w_en,\n  input wire [{bits - 1}:0] w_addr,\n  input wire [{width - 1}:0] w_data\n);\n"
        f"  reg [{width - 1}:0] mem [0:{depth - 1}];\n"
        "  always @(posedge clk) begin\n    r_data <= mem[r_addr];\n    if (w_en) mem[w_addr] <= w_data;\n"
        "  end\nendmodule\n"
    )


class WordMemory:
    """A memory of words (program memory): address signals in, data a cycle later."""

    def __init__(self, name: str, width: int, depth: int) -> None:
        self.name, self.width, self.depth = name, width, depth
        bits = max(1, (depth - 1).bit_length())
        self.r_addr, self.r_data = Signal(bits, name="r_addr"), Signal(width, name="r_data")
        self.w_en, self.w_addr, self.w_data = (
            Signal(name="w_en"),
            Signal(bits, name="w_addr"),
            Signal(width, name="w_data"),
        )

    def instance(self) -> Instance:
        """Give the leaf."""
        return text_leaf(
            self.name, lambda: words_text(self.name, self.width, self.depth), i_clk=ClockSignal(), i_r_addr=self.r_addr,
            o_r_data=self.r_data, i_w_en=self.w_en, i_w_addr=self.w_addr, i_w_data=self.w_data,
        )  # fmt: skip


class _Joined:
    """Joins the ports of units to a leaf: `signals` by the names of the leaf's own ports."""

    def __init__(self) -> None:
        self.ports: list[Port] = []
        self.signals: dict[str, Any] = {}

    def add(self, owner: str, unit: Any, port: Port) -> None:
        """Join a port of a unit; `owner` makes its name unique."""
        name = f"{owner}_{port.name}"
        self.ports.append(Port(name, port.space, port.bytes, port.write))
        for part in ("en", "addr", "data") + (("mask",) if port.write else ()):
            out = part == "data" and not port.write
            self.signals[f"{'o' if out else 'i'}_{name}_{part}"] = getattr(unit, f"{port.name}_{part}")


class ByteMemory(_Joined):
    """A memory of bytes with the ports that units ask for."""

    def __init__(self, name: str, size: int, latency: int) -> None:
        super().__init__()
        self.name, self.size, self.latency = name, size, latency

    def instance(self) -> Instance:
        """Give the leaf."""
        return text_leaf(
            self.name,
            lambda: memory_text(self.name, self.size, self.ports, self.latency),
            i_clk=ClockSignal(),
            **self.signals,
        )


class Cells(_Joined):
    """64 words of 32 bits: ports like those of a memory, at word addresses x 4, and `look(index)`, read at once."""

    def __init__(self, latency: int) -> None:
        super().__init__()
        self.latency = latency
        self._looks = 0

    def look(self, index: Any, value: Any) -> None:
        """Join a cell number (6 bits) and the value that it names in the same cycle."""
        self.signals[f"i_look{self._looks}"], self.signals[f"o_look{self._looks}_data"] = index, value
        self._looks += 1

    def instance(self) -> Instance:
        """Give the leaf."""
        return text_leaf("systolith_cells", self._text, i_clk=ClockSignal(), **self.signals)

    def _text(self) -> str:
        heads, body, reads = ["input wire clk"], [], []
        for i in range(self._looks):
            heads += [f"input wire [5:0] look{i}", f"output wire [31:0] look{i}_data"]
            reads.append(f"  assign look{i}_data = x[look{i}];")
        for port in self.ports:
            n, wide = port.name, 8 * port.bytes
            heads += [f"input wire {n}_en", f"input wire [{ADDRESS_BITS - 1}:0] {n}_addr"]
            words = max(1, port.bytes // 4)
            index = [f"{n}_i{k}" for k in range(words)]
            reads += [f"  wire [5:0] {name} = {n}_addr[7:2] + 6'd{k};" for k, name in enumerate(index)]
            if port.write:
                heads += [f"input wire [{wide - 1}:0] {n}_data", f"input wire [{port.bytes - 1}:0] {n}_mask"]
                lines = [
                    f"if ({n}_mask[{4 * k}]) x[{index[k]}] <= {n}_data[{32 * k + 31}:{32 * k}];" for k in range(words)
                ]
                body.append(f"if ({n}_en) begin\n{journal(port)}" + "\n      ".join(lines) + "\n    end")
            else:
                heads.append(f"output wire [{wide - 1}:0] {n}_data")
                names = [f"{n}_r{i}" for i in range(self.latency)]
                first = ", ".join(f"x[{name}]" for name in reversed(index))
                reads.append(f"  reg [{wide - 1}:0] {', '.join(names)};\n  assign {n}_data = {names[-1]};")
                found = f"{{{first}}}" if port.bytes >= 4 else f"x[{index[0]}] >> {{{n}_addr[1:0], 3'b0}}"
                body.append(f"if ({n}_en) {names[0]} <= {found};")
                body += [f"{new} <= {old};" for old, new in pairwise(names)]
        return (
            "module systolith_cells(\n  " + ",\n  ".join(heads) + "\n);\n"
            f"  /*verilator no_inline_module*/\n{_IMPORT}  reg [31:0] x [0:{CELLS - 1}];\n" + "\n".join(reads) + "\n"
            "  integer i;\n  initial for (i = 0; i < 64; i = i + 1) x[i] = 0;\n"
            "  always @(posedge clk) begin\n    " + "\n    ".join(body) + "\n  end\nendmodule\n"
        )

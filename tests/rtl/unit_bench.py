"""One unit in Verilator with memories in C++: commands in, cycles and memories out."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from systolith.isa.descriptor import Space
from systolith.isa.state import Slice
from systolith.rtl.emit import with_leaves
from systolith.rtl.ports import OPERAND, command_layout
from systolith.spec import CELLS, Chip

from .leaves import build

MEMORIES = (Space.SPAD, Space.SLOT, Space.ACC, Space.CELL)


def pack(layout: Any, values: dict[str, Any]) -> int:
    """Pack a struct of amaranth.lib.data; a nested one is a dict."""
    word = 0
    for key, field in layout:
        value = values.get(key, 0)
        if isinstance(value, dict):
            value = pack(field.shape, value)
        width = field.shape.size if hasattr(field.shape, "size") else len_of(field.shape)
        word |= (int(value) & ((1 << width) - 1)) << field.offset
    return word


def len_of(shape: Any) -> int:
    from amaranth.hdl import Shape

    return Shape.cast(shape).width


def operand(s: Slice, number: int) -> dict[str, int]:
    """What the queue hands to a unit for a descriptor register."""
    v = s.view(number)
    d = v.descriptor
    return {
        "present": 1, "space": d.space, "format": d.format, "scale": d.scale, "base": v.base, "sbase": v.sbase,
        "ext0": v.ext[0], "ext1": v.ext[1], "ext2": v.ext[2], "stride0": d.stride[0], "stride1": d.stride[1],
        "stride2": d.stride[2], "via": int(d.via > 0), "unit": d.unit, "row": v.rows,
        "list": s.descriptors[d.via].base if d.via else 0,
    }  # fmt: skip


def main_code(loop: str, unit: Any, memories: Sequence[Space], layout: Any, chip: Chip) -> str:
    """C++ of a bench: memories as wide as a unit's ports ask, and its `loop`, in which @READS@, @WRITES@ and @LOADS@
    are what the ports do before an edge, before it and behind it."""
    lines, reads, loads, writes = [], [], [], []
    for port in unit.ports:
        n, space = port.name, memories.index(port.space)
        if port.write:
            writes.append(f"if (u.{n}_en) put(mem[{space}], u.{n}_addr, u.{n}_data, u.{n}_mask, {port.bytes});")
            continue
        lines.append(f"static uint8_t line_{n}[LATENCY][{port.bytes}];")
        reads.append(
            f"for (int k = LATENCY - 1; k > 0; k--) memcpy(line_{n}[k], line_{n}[k - 1], {port.bytes});\n"
            f"if (u.{n}_en) get(mem[{space}], u.{n}_addr, line_{n}[0], {port.bytes});"
        )
        loads.append(f"memcpy(&u.{n}_data, line_{n}[LATENCY - 1], {port.bytes});")
    code = _MEMORIES + loop
    for mark, text in (
        ("READS", "\n".join(reads)), ("WRITES", "\n".join(writes)), ("LOADS", "\n".join(loads)),
        ("LINES", "\n".join(lines)), ("WORDS", str((layout.size + 31) // 32)), ("LATENCY", str(chip.bank_cycles)),
        ("SPACES", str(len(memories))),
    ):  # fmt: skip
        code = code.replace(f"@{mark}@", text)
    return code


class UnitBench:
    """A build of one unit of a chip."""

    def __init__(self, unit: Any, queue: str, chip: Chip, folder: Path) -> None:
        self.chip, self.queue, self.folder = chip, queue, folder
        self.layout = command_layout(queue)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "unit.v").write_text(with_leaves(unit, "unit"))
        main = main_code(_MAIN, unit, MEMORIES, self.layout, chip)
        (folder / "main.cpp").write_text(main)
        build(folder, "unit")

    def sizes(self) -> list[int]:
        """Bytes of each memory."""
        c = self.chip
        return [c.scratchpad_bytes, c.slots_bytes, c.accumulator_bytes, 4 * CELLS]

    def run(
        self, memory: dict[Space, bytes], commands: list[int], limit: int = 1 << 20
    ) -> tuple[list[int], list[dict[Space, np.ndarray]]]:
        """Cycles from start to done of each command, negative where `fault` stands then, and all memories after each.

        A fault is for good: nothing after it says whether it was legal.
        """
        words = (self.layout.size + 31) // 32
        head = np.array([len(commands), limit, *self.sizes()], np.uint32).tobytes()
        sized = list(zip(MEMORIES, self.sizes(), strict=True))
        images = b"".join(bytes(memory.get(space, b"")).ljust(size, b"\0") for space, size in sized)
        body = b"".join(c.to_bytes(4 * words, "little") for c in commands)
        done = subprocess.run(["./bench"], cwd=self.folder, input=head + images + body, capture_output=True, check=True)
        cycles, states, at = [], [], 0
        data = done.stdout
        for _ in commands:
            cycles.append(int.from_bytes(data[at : at + 4], "little", signed=True))
            at += 4
            state = {}
            for space, size in zip(MEMORIES, self.sizes(), strict=True):
                state[space] = np.frombuffer(data, np.uint8, size, at)
                at += size
            states.append(state)
        return cycles, states


assert OPERAND.size
_MEMORIES = """
#include "Vunit.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>
constexpr int LATENCY = @LATENCY@;
static std::vector<uint8_t> mem[@SPACES@];
@LINES@
static void get(const std::vector<uint8_t>& m, uint32_t at, uint8_t* out, int n) {
  for (int i = 0; i < n; i++) { uint32_t a = at + i; out[i] = a < m.size() ? m[a] : 0; }
}
template <class T, class M> static void put(std::vector<uint8_t>& m, uint32_t at, const T& data, const M& mask, int n) {
  const uint8_t* d = reinterpret_cast<const uint8_t*>(&data);
  const uint8_t* k = reinterpret_cast<const uint8_t*>(&mask);
  for (int i = 0; i < n; i++) { uint32_t a = at + i; if (k[i / 8] >> (i % 8) & 1 && a < m.size()) m[a] = d[i]; }
}
"""
_MAIN = """
int main() {
  uint32_t head[6];
  if (fread(head, 4, 6, stdin) != 6) return 1;
  for (int i = 0; i < 4; i++) {
    mem[i].resize(head[2 + i]);
    if (fread(mem[i].data(), 1, head[2 + i], stdin) != head[2 + i]) return 1;
  }
  VerilatedContext context;
  Vunit& u = *new Vunit{&context};
  u.clk = 0; u.rst = 1; u.start = 0; u.eval(); u.clk = 1; u.eval(); u.clk = 0; u.rst = 0; u.eval();
  uint32_t command[@WORDS@];
  for (uint32_t c = 0; c < head[0]; c++) {
    if (fread(command, 4, @WORDS@, stdin) != @WORDS@) return 1;
    uint32_t t = 0, done = 0;
    for (;; t++) {
      u.start = t == 0;
      if (t == 0) memcpy(&u.command, command, sizeof command); else memset(&u.command, 0xA5, sizeof command);
      u.eval();
      if (t == 0 && !u.ready) return 3;
      if (t > 0 && u.done) { done = u.fault ? -t : t; break; }
      if (t > head[1]) { done = 0; break; }
      // Reads see the memory before this cycle's writes; their data appears after the edge.
      @READS@
      @WRITES@
      u.clk = 1; u.eval();
      @LOADS@
      u.clk = 0; u.eval();
    }
    fwrite(&done, 4, 1, stdout);
    for (auto& m : mem) fwrite(m.data(), 1, m.size(), stdout);
  }
  return 0;
}
"""

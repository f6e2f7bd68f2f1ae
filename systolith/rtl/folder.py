"""The folder that `systolith rtl` writes: Verilog, file list, clock constraint, memories, ports, parameters."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Final

from systolith.spec import Chip, ConfigError

from .emit import sha256, verilog_of

__all__ = ["FILES", "write_folder"]

FILES: Final = {
    "systolith.v": "Verilog of the chip, top module systolith",
    "systolith.f": "file list for a tool",
    "systolith.sdc": "clock constraint",
    "memories.txt": "modules that a macro may replace: name, bytes or words, ports",
    "ports.md": "ports of the top module",
    "parameters.txt": "the chip's record",
}
"""What stands in the folder."""

_GROUPS: Final = (
    (r"clk|rst", "clock, and a synchronous reset of control state"),
    (r"run|slices|now", "start of all slices (held), how many take part, cycle since the start"),
    (r"word_.*|const_.*|sem_we.*|load_addr.*", "program memory and semaphores of a slice, written before the start"),
    (r"hold.*", "no burst of the memory channel, no piece of a PUT, of a RING in this cycle (back-pressure of a test)"),
    (r"look.*", "a memory of the slice read by the host, data `bank_cycles` later"),
    (r"halted.*|cause.*|halt_time.*|fault.*", "end of the slice: HALT's cause and cycle; causes of a fault"),
    (r"ring_.*", "words that RING sends, last of a record"),
    (r"m_[WLS]_.*", "memory outside: a piece of a bank's width at a byte address; read data in the next cycle"),
    (
        r"started_.*|pc_.*|ended_.*|issued.*|full_stall.*|bus_busy.*|waits.*|queued.*",
        "instrumentation: starts and ends",
    ),
)


def write_folder(chip: Chip, folder: Path) -> list[Path]:
    """Emit a chip into a folder that is new or empty; give the files. Raises ConfigError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: it is there and not an empty folder; name another one or empty it.")
    text = verilog_of(chip)
    folder.mkdir(parents=True, exist_ok=True)
    period = 10**9 / chip.clock_hz
    contents = {
        "systolith.v": text,
        "systolith.f": "systolith.v\n",
        "systolith.sdc": f"create_clock -name clk -period {period:.3f} [get_ports clk]\n",
        "memories.txt": _memories(text),
        "ports.md": _ports(chip, text),
        "parameters.txt": "".join(
            f"{f.name} = {getattr(chip, f.name)}\n" for f in fields(chip) if f.name not in ("config", "warnings")
        )
        + f"sha256 = {chip.sha256}\nverilog_sha256 = {sha256(text)}\n",
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in contents]


def _memories(text: str) -> str:
    """Modules that hold a memory, from the Verilog itself."""
    lines = []
    for module, body in re.findall(r"^module (systolith_\w+)\((.*?)^endmodule", text, re.DOTALL | re.MULTILINE):
        for width, last in re.findall(r"reg \[(\d+):0\] (?:mem|x) \[0:(\d+)\]", body):
            reads = len(re.findall(r"output (?:wire|reg) ", body))
            writes = len(re.findall(r"_mask,?\n|w_data\n", body))
            lines.append(f"{module}: {int(last) + 1} x {int(width) + 1} bits, {reads} reads, {writes} writes")
    return "\n".join(lines) + "\n"


def _ports(chip: Chip, text: str) -> str:
    """Ports of the top, in groups."""
    found = re.search(r"^module systolith\((.*?)\);\n(.*?)^endmodule", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    declared = re.findall(r"^  (input|output)(?: \[(\d+):0\])? (\w+);", found.group(2), re.MULTILINE)
    lines = [f"# Ports of `systolith`, {chip.name}", "", "A name that ends in _R belongs to slice R.", ""]
    for pattern, meaning in _GROUPS:
        mine = [(way, width, name) for way, width, name in declared if re.fullmatch(pattern, name)]
        if mine:
            lines += [f"## {meaning[0].upper()}{meaning[1:]}", ""]
            lines += [f"- `{name}`: {way}, {int(width) + 1 if width else 1} bits" for way, width, name in mine] + [""]
    return "\n".join(lines)

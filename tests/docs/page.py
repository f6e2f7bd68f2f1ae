"""A page of docs whose blocks run: files are written, commands run in their order, and what they print is compared.

A fence says what its block is. `LANGUAGE file=NAME` is a file of that name. `console` holds commands behind `$ `, each
with what it prints on both streams; in what it prints, `...` stands for any text, on a line of its own for any lines.
A command must end with 0. Variables that are exported hold for the rest of the page.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "\x1e"


@dataclass(frozen=True)
class Block:
    """info : what stands behind the fence.    line : of the fence, from 1."""

    info: str
    body: str
    line: int

    @property
    def file(self) -> str | None:
        found = re.search(r"\bfile=(\S+)", self.info)
        return found[1] if found else None

    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command, which a line that ends in a backslash continues, and the lines it must print."""
        found: list[tuple[str, list[str]]] = []
        lines = iter(self.body.splitlines())
        for line in lines:
            if not line.startswith("$ "):
                assert found, f"line {self.line}: a console block begins with a command"
                found[-1][1].append(line)
                continue
            command = line[2:]
            while command.endswith("\\"):
                command += "\n" + next(lines)
            found.append((command, []))
        return found


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page. Indented code is no block: such a page shows nothing that does not run."""
    text = page.read_text(encoding="utf-8")
    return [Block(m["info"].strip(), m["body"], text.count("\n", 0, m.start()) + 1) for m in _FENCE.finditer(text)]


def play(page: Path, folder: Path) -> list[str]:
    """Go through a page in a directory of its own; give what differs, a text for each command."""
    tools = folder / "tools"
    tools.mkdir()
    for name, more in (("python", ""), ("systolith", "-m systolith ")):
        shim = tools / name
        path = f'PYTHONPATH="{ROOT}${{PYTHONPATH:+:$PYTHONPATH}}"'
        shim.write_text(f'#!/bin/sh\n{path} exec "{sys.executable}" {more}"$@"\n')
        shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    work = folder / "work"
    work.mkdir()
    faults: list[str] = []
    for block in blocks(page):
        if block.file is not None:
            (work / block.file).parent.mkdir(parents=True, exist_ok=True)
            (work / block.file).write_text(block.body, encoding="utf-8")
        else:
            assert block.info == "console", f"{page.name}:{block.line}: {block.info!r} says not how the block is run"
            faults += [f"{page.name}:{block.line}: {fault}" for fault in _run(block, folder, tools)]
    return faults


def _run(block: Block, folder: Path, tools: Path) -> list[str]:
    kept = folder / "exported"
    script = [f'. "{kept}"'] if kept.exists() else []
    commands = block.commands()
    for command, _ in commands:
        script += [command, f"printf '{_MARK}%d{_MARK}' $?"]
    script.append(f'export -p > "{kept}"')
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PATH": f"{tools}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder / "work", env=env, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip
    parts = ended.stdout.split(_MARK)
    faults = []
    for number, (command, want) in enumerate(commands):
        out, code = parts[2 * number : 2 * number + 2]
        if code != "0":
            faults.append(f"{command} ended with {code}:\n{out}")
        elif not re.fullmatch(pattern(want), tidy(out)):
            faults.append(f"{command} must print\n" + "\n".join(want) + f"\nand printed\n{tidy(out)}")
    return faults


def tidy(text: str) -> str:
    """A text without blanks at the ends of its lines and of itself."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def pattern(lines: list[str]) -> str:
    """What the lines of a page match."""
    found = ""
    for line in tidy("\n".join(lines)).splitlines():
        whole = r"(?:.*\n)*?" if line.strip() == "..." else ".*?".join(map(re.escape, line.split("..."))) + r"\n"
        found += whole
    return found.removesuffix(r"\n") if not found.endswith(r"(?:.*\n)*?") else found + ".*"

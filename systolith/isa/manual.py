"""The manual: docs/isa, one page an instruction, made from the records; `python -m systolith.isa.manual` writes it."""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

from .asm import _keyed, _positional
from .choice import check_operands
from .descriptor import DESCRIPTOR_BITS, DESCRIPTOR_BYTES, FIELDS, Descriptor, Format, Space
from .dma import copy_rows
from .instruction import OP_BITS, OP_LOW, Bits, Instruction, Kind, Queue
from .matrix import block_sum, blocks_of
from .registry import INSTRUCTIONS
from .state import View

__all__ = ["main", "pages"]

_HELPERS: Final[dict[str, tuple[Callable[..., Any], ...]]] = {
    "COPY": (copy_rows,), "PUT": (copy_rows,), "MATMUL": (blocks_of, block_sum),
    "TOPK": (check_operands,), "GROUP": (check_operands,),
}  # fmt: skip
_CYCLES: Final = {
    "COPY": "copy", "MATMUL": "matmul", "VEC": "vector", "PICK": "vector", "TOPK": "vector",
    "GROUP": "vector", "PUT": "put", "RING": "work", "SYNC": "work",
}  # fmt: skip
_KINDS: Final = {
    Kind.UNSIGNED: "", Kind.SIGNED: "signed", Kind.DESC: "D", Kind.REG: "R", Kind.CELL: "X", Kind.MASK: "mask",
    Kind.LABEL: "word", Kind.LENGTH: "words", Kind.CONST: "constant", Kind.SEMAPHORE: "semaphore",
}  # fmt: skip
_NOTE: Final = "<!-- Made by `python -m systolith.isa.manual` from the instruction records; do not edit. -->\n"


def pages() -> dict[str, str]:
    """Give each page of docs/isa by file name."""
    result = {"README.md": _index(), "descriptor.md": _descriptor(), "assembler.md": _assembler()}
    return result | {f"{cls.NAME.lower()}.md": _page(cls) for cls in INSTRUCTIONS.values()}


def main(folder: str = "docs/isa") -> None:
    """Write all pages into a folder."""
    for name, text in pages().items():
        (Path(folder) / name).write_text(text)


def _page(cls: type[Instruction]) -> str:
    doc = inspect.cleandoc(cls.__doc__ or "")
    errors = (
        (*cls.ERRORS, "An access outside its space.") if cls.NAME not in ("SET", "ALU", "LOOP", "BR") else cls.ERRORS
    )
    return "\n".join(
        [
            _NOTE,
            f"# {cls.NAME}: {cls.SUMMARY}\n",
            doc + "\n",
            "## Syntax\n",
            f"    {_syntax(cls)}\n",
            "## Bits\n",
            "| bits | field | kind | meaning |",
            "|---|---|---|---|",
            f"| {OP_LOW + OP_BITS - 1}:{OP_LOW} | op | | {cls.OPCODE} |",
            *(_bits(bits) for bits in sorted(cls.LAYOUT, key=lambda b: -b.low)),
            "\nAll other bits are zero.\n",
            *_choices(cls),
            "## Definition\n",
            "```python",
            _definition(cls),
            "```\n",
            "## Cycles\n",
            _cycles(cls),
            "## Errors\n",
            *([f"- {line}" for line in errors] or ["None."]),
            "",
        ]
    )


def _syntax(cls: type[Instruction]) -> str:
    optional = {f.name for f in fields(cls) if f.default is not MISSING}
    name = f"{cls.NAME}.{{queue}}" if any(bits.name == "on" for bits in cls.LAYOUT) else cls.NAME
    places = [bits.name for bits in _positional(cls)]
    keys = [f"[{bits.name}=...]" if bits.name in optional else f"{bits.name}=..." for bits in _keyed(cls)]
    return (
        " ".join([name, ", ".join(f"[{p}]" if p in optional else p for p in places), *keys]).replace("  ", " ").strip()
    )


def _bits(bits: Bits) -> str:
    place = str(bits.low) if bits.width == 1 else f"{bits.low + bits.width - 1}:{bits.low}"
    return f"| {place} | {bits.name} | {_KINDS[bits.kind]} | {bits.text} |"


def _choices(cls: type[Instruction]) -> list[str]:
    out = []
    for bits in cls.LAYOUT:
        if bits.choices is not None and bits.choices is not Queue:
            names = ", ".join(f"{c.value} {c.name.lower()}" for c in bits.choices)
            out.append(f"{bits.name}: {names}.\n")
    return out


def _definition(cls: type[Instruction]) -> str:
    functions: list[Callable[..., Any]] = [cls.execute]
    functions += [f for name, f in vars(cls).items() if _is_helper(name, f)]
    return _source(*functions, *_HELPERS.get(cls.NAME, ()))


def _is_helper(name: str, member: object) -> bool:
    """Whether a member of a record is a step of its definition."""
    return inspect.isfunction(member) and name.startswith("_") and not name.startswith("__")


def _source(*functions: Callable[..., Any]) -> str:
    return "\n".join(textwrap.dedent(inspect.getsource(f)) for f in functions).rstrip()


def _cycles(cls: type[Instruction]) -> str:
    rule = _CYCLES.get(cls.NAME)
    if rule is None:
        return (
            "One issue of the sequencer (`Chip.issue_cycles`); a jump or the way back of a loop adds `branch_cycles`.\n"
        )
    return (
        f"`cycles.{rule}` in `systolith/isa/cycles.py` is the rule: a function of the chip and of the resolved row.\n"
    )


def _index() -> str:
    lines = [
        _NOTE,
        "# The instruction set\n",
        "docs/decisions/0001-isa.md says why; [descriptor](descriptor.md) and [assembler](assembler.md) say how",
        "tensors and programs are written. Each page shows the code that defines its instruction.\n",
        "| opcode | instruction | queue | does |",
        "|---|---|---|---|",
    ]
    queues = {"COPY": "W, L, S", "MATMUL": "M", "VEC": "V", "PICK": "V", "PUT": "C", "SYNC": "any",
              "RING": "S", "TOPK": "V", "GROUP": "V"}  # fmt: skip
    for cls in INSTRUCTIONS.values():
        name = cls.NAME
        lines.append(
            f"| {cls.OPCODE} | [{name}]({name.lower()}.md) | {queues.get(name, 'sequencer')} | {cls.SUMMARY} |"
        )
    return "\n".join(lines) + "\n"


def _descriptor() -> str:
    low, rows = 0, []
    for name, width, signed in FIELDS:
        rows.append(f"| {low + width - 1}:{low} | {name} | {'signed' if signed else ''} |")
        low += width
    return "\n".join(
        [
            _NOTE,
            "# Descriptors\n",
            f"{DESCRIPTOR_BITS} bits; a constant takes {DESCRIPTOR_BYTES} bytes of program memory.\n",
            "| bits | field | |",
            "|---|---|---|",
            *rows,
            "",
            f"Spaces: {', '.join(f'{s.value} {s.name}' for s in Space)}. "
            f"Formats: {', '.join(f'{f.value} {f.name}' for f in Format)}.\n",
            "Elements are addressed, and read, by this code:\n",
            "```python",
            _source(Descriptor.advance, View.__init__, View.row, View.codes, View.scales, View.numbers),
            "```",
            "",
        ]
    )


def _assembler() -> str:
    return _NOTE + textwrap.dedent(
        """
        # Assembler text

        One instruction a line: its name, operands by place, then fields as `name=value`, then masks; `;` begins a
        comment.

            .name "linear"                                  ; name of the program, JSON text or plain
            .require slices=1 dram_bytes=16384              ; what it needs of a chip
            .pairs INT8xINT8                                ; operand pairs that it uses
            .meta {"model": "none"}                         ; JSON
            .sem WE 0 2                                     ; name, number, tokens at start (0 if left out)
            .const w space=DRAM format=INT8 scale=1 base=1024 sbase=5120 ext=1,8,128 stride=1024,128,1

                    DESC    D6, w
                    LOOP    done    count=4                 ; the words up to the label
                    COPY.W  D7, D6  wait=WE post=WF         ; queue after the dot
            done:
                    HALT

        Operands: `D5` descriptor, `R5` register, `X5` cell, `-` none; trailing ones may be left out. Choices are
        written in lower case (`op1=mul`). A mask lists semaphores by name or number, `wait=WE,3`. LOOP takes the
        label after its last word, or `+n`; BR the label of its target, or a number. Fields that are not written
        are 0.

        `asm.assemble(text)` makes a Program, `asm.disassemble(program)` the text; both ways round give the same words,
        constants, semaphores, requirements and meta. Images are not text.
        """
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

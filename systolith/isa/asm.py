"""Assembler and disassembler of `.sasm` text; docs/isa/assembler.md is its description for people.

`assemble(disassemble(program))` has the same words, constants, semaphores, requirements and meta. Images and source
lines are not text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from enum import IntEnum
from typing import Any, Final, NoReturn

from systolith.spec import SEMAPHORES, ProgramError

from .descriptor import FIELDS, ZERO, Descriptor, Format, Space
from .instruction import OPERAND_LOW, Bits, Instruction, Kind, Queue
from .program import Program, Requires
from .registry import BY_NAME
from .sequencer import Br, Loop

__all__ = ["assemble", "disassemble", "line_of"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_LETTER: Final = {Kind.DESC: "D", Kind.REG: "R", Kind.CELL: "X"}
_NONE: Final = "-"
_QUEUED: Final = "on"


def _positional(cls: type[Instruction]) -> list[Bits]:
    """Fields that are written by place: operand slots, cells, constants and words of the program."""
    slots = set(OPERAND_LOW.values())
    late = (Kind.CELL, Kind.CONST, Kind.LABEL, Kind.LENGTH)
    return [bits for bits in cls.LAYOUT if bits.low in slots or bits.kind in late]


def _required(cls: type[Instruction]) -> set[str]:
    """Fields without a default; they come before the others that are written by place."""
    return {f.name for f in fields(cls) if f.default is MISSING}


def _keyed(cls: type[Instruction]) -> list[Bits]:
    """Fields that are written name=value, masks last."""
    rest = [bits for bits in cls.LAYOUT if bits not in _positional(cls) and bits.name != _QUEUED]
    return sorted(rest, key=lambda bits: bits.kind is Kind.MASK)


# --- to text ---


def line_of(instruction: Instruction, label: Callable[[Bits, int], str] | None = None) -> str:
    """Write one instruction; label: gives the name of a word or constant, numbers if left out."""
    cls = type(instruction)
    places = []
    for bits in _positional(cls):
        value, kind = getattr(instruction, bits.name), instruction.kind_of(bits)
        if label is not None and kind in (Kind.CONST, Kind.LABEL, Kind.LENGTH):
            places.append(label(bits, value))
        elif kind in _LETTER:
            places.append(_NONE if value == 0 and kind is not Kind.REG else f"{_LETTER[kind]}{value}")
        else:
            places.append(f"+{value}" if kind is Kind.LENGTH else str(value))
    needed = sum(bits.name in _required(cls) for bits in _positional(cls))
    while len(places) > needed and places[-1] == _NONE:
        places.pop()
    keys = [
        f"{bits.name}={_value(bits, getattr(instruction, bits.name))}"
        for bits in _keyed(cls)
        if getattr(instruction, bits.name)
    ]
    return " ".join(filter(None, [instruction.mnemonic, ", ".join(places), *keys]))


def _value(bits: Bits, value: int) -> str:
    if isinstance(value, IntEnum):
        return value.name.lower()
    if bits.kind is Kind.MASK:
        return ",".join(str(n) for n in range(SEMAPHORES) if value >> n & 1)
    return f"{_LETTER.get(bits.kind, '')}{value}"


def disassemble(program: Program) -> str:
    """Write a program as text."""
    needs = program.requires
    out = [f".name {json.dumps(program.name)}"]
    out.append(".require " + " ".join(f"{f.name}={getattr(needs, f.name)}" for f in fields(needs) if f.name != "pairs"))
    if needs.pairs:
        out.append(f".pairs {' '.join(needs.pairs)}")
    if program.meta:
        out.append(f".meta {json.dumps(program.meta, sort_keys=True)}")
    out += [f".sem S{n} {n} {count}" for n, count in enumerate(program.sem_init) if count]
    out += [f".const k{k} {_constant(d)}".rstrip() for k, d in enumerate(program.constants)]
    targets = {i.target for i in program.code if isinstance(i, Br)}
    targets |= {pc + 1 + i.len for pc, i in enumerate(program.code) if isinstance(i, Loop)}
    for pc, instruction in enumerate(program.code):
        if pc in targets:
            out.append(f"L{pc}:")

        def label(bits: Bits, value: int, here: int = pc) -> str:
            if bits.kind is Kind.CONST:
                return f"k{value}"
            return f"L{here + 1 + value if bits.kind is Kind.LENGTH else value}"

        out.append(f"    {line_of(instruction, label)}")
    if len(program.code) in targets:
        out.append(f"L{len(program.code)}:")
    return "\n".join(out) + "\n"


def _constant(d: Descriptor) -> str:
    parts = []
    for name in dict.fromkeys(name.split("[")[0] for name, _, _ in FIELDS):
        value = getattr(d, name)
        if value == getattr(ZERO, name) and name not in ("space", "format"):
            continue
        text = (
            value.name
            if isinstance(value, IntEnum)
            else ",".join(map(str, value))
            if isinstance(value, tuple)
            else value
        )
        parts.append(f"{name}={text}")
    return " ".join(parts)


# --- from text ---


def assemble(text: str, file: str = "program.sasm") -> Program:
    """Read a program; raises ProgramError, one sentence, that begins with file and line."""
    return _Assembler(file).read(text)


class _Assembler:
    """State of one pass over the text: words are built at the end, when every label is known."""

    def __init__(self, file: str) -> None:
        self.file, self.line = file, 0
        self.name = ""
        self.needs: dict[str, Any] = {}
        self.meta: dict[str, Any] = {}
        self.constants: dict[str, Descriptor] = {}
        self.sems: dict[str, int] = {}
        self.counts = [0] * SEMAPHORES
        self.labels: dict[str, int] = {}
        self.pending: list[tuple[int, str, list[str]]] = []

    def fail(self, message: str) -> NoReturn:
        raise ProgramError(f"{self.file}:{self.line}: {message}")

    def read(self, text: str) -> Program:
        for self.line, raw in enumerate(text.splitlines(), 1):  # the line is part of every message
            stripped = raw.strip() if raw.lstrip().startswith((".meta", ".name")) else raw.split(";")[0].strip()
            while (
                (head := stripped.partition(":"))[1]
                and _NAME.fullmatch(head[0].strip())
                and not stripped.startswith(".")
            ):
                self.define(self.labels, head[0].strip(), len(self.pending), "label")
                stripped = head[2].strip()
            if stripped.startswith("."):
                self.directive(*stripped[1:].split(None, 1))
            elif stripped:
                head_word, *rest = stripped.split()
                self.pending.append((self.line, head_word, rest))
        instructions = [self.instruction(pc, *item) for pc, item in enumerate(self.pending)]
        try:
            return Program(
                name=self.name,
                words=tuple(i.encode() for i in instructions),
                constants=tuple(self.constants.values()),
                sem_init=tuple(self.counts),
                requires=Requires(**self.needs),
                lines=tuple(f"{self.file}:{line}" for line, _, _ in self.pending),
                meta=self.meta,
            )
        except ProgramError as fault:
            raise ProgramError(f"{self.file}: {fault}") from None

    def define(self, table: dict[str, Any], name: str, value: Any, what: str) -> None:
        if not _NAME.fullmatch(name):
            self.fail(f"{what} {name!r} must be a letter or underscore, then letters, digits, dots and underscores.")
        if name in table:
            self.fail(f"{what} {name!r} is already defined; take another name.")
        table[name] = value

    def directive(self, what: str, rest: str = "") -> None:
        words = rest.split()
        if what == "name":
            self.name = self.json(rest) if rest.startswith('"') else rest.strip()
        elif what == "meta":
            self.meta = self.json(rest)
        elif what == "require":
            known = [f.name for f in fields(Requires) if f.name != "pairs"]
            for key, value in self.pairs(words):
                if key not in known:
                    self.fail(f".require {key} is unknown; known are {', '.join(known)}.")
                self.needs[key] = self.number(value)
        elif what == "pairs":
            self.needs["pairs"] = tuple(words)
        elif what == "sem" and len(words) in (2, 3):
            number, count = self.number(words[1]), self.number(words[2]) if len(words) == 3 else 0
            if not 0 <= number < SEMAPHORES:
                self.fail(f"semaphore {number} must be in 0..{SEMAPHORES - 1}.")
            self.define(self.sems, words[0], number, "semaphore")
            self.counts[number] = count
        elif what == "const" and words:
            self.define(self.constants, words[0], self.constant(words[1:]), "constant")
        else:
            self.fail(
                f".{what} is not understood; write .name TEXT, .require KEY=N, .pairs PAIR, .meta JSON, "
                ".sem NAME NUMBER [COUNT] or .const NAME KEY=VALUE."
            )

    def json(self, text: str) -> Any:
        try:
            value = json.loads(text)
        except ValueError:
            self.fail(f"{text!r} is not JSON.")
        return value

    def constant(self, words: list[str]) -> Descriptor:
        values: dict[str, Any] = {}
        known = list(dict.fromkeys(name.split("[")[0] for name, _, _ in FIELDS))
        for key, value in self.pairs(words):
            if key not in known:
                self.fail(f"descriptor field {key!r} is unknown; known are {', '.join(known)}.")
            if key in ("space", "format"):
                values[key] = self.choice(Space if key == "space" else Format, value, key)
            elif key in ("ext", "stride"):
                values[key] = tuple(map(self.number, value.split(",")))
                if len(values[key]) != 3:
                    self.fail(f"{key}={value} must be three numbers, dimension 0 first.")
            else:
                values[key] = self.number(value)
        try:
            return Descriptor(**values)
        except ProgramError as fault:
            self.fail(str(fault))

    def pairs(self, words: Iterable[str]) -> list[tuple[str, str]]:
        result = []
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                self.fail(f"{word!r} must be written key=value.")
            result.append((key, value))
        return result

    def number(self, text: str) -> int:
        try:
            return int(text, 0)
        except ValueError:
            self.fail(f"{text!r} is not a number.")

    def choice(self, choices: type[IntEnum], text: str, what: str) -> int:
        if text.upper() not in choices.__members__:
            self.fail(f"{what}={text} must be one of {', '.join(c.name.lower() for c in choices)}.")
        return choices[text.upper()]

    def instruction(self, pc: int, line: int, mnemonic: str, words: list[str]) -> Instruction:
        self.line = line
        name, dot, queue = mnemonic.upper().partition(".")
        cls = BY_NAME.get(name)
        if cls is None:
            self.fail(f"instruction {mnemonic} is unknown; known are {', '.join(BY_NAME)}.")
        values: dict[str, Any] = {}
        has_queue = any(bits.name == _QUEUED for bits in cls.LAYOUT)
        if has_queue != bool(dot):
            advice = f"write {name} and a queue, as in {name}.L" if has_queue else f"write {name}; it has no queue"
            self.fail(f"{mnemonic}: {advice}.")
        if has_queue:
            values[_QUEUED] = self.choice(Queue, queue, "queue")
        keyed = {bits.name: bits for bits in _keyed(cls)}
        places = iter(_positional(cls))
        for word in (w.rstrip(",") for w in words):
            key, equals, value = word.partition("=")
            if not equals:
                bits = next(places, None)
                if bits is None:
                    self.fail(f"{name} does not take {word!r}: it takes {len(_positional(cls))} operands.")
                values[bits.name] = self.place(pc, bits, word)
            elif key in keyed:
                values[key] = self.keyed(keyed[key], value)
            else:
                self.fail(f"{name} has no field {key!r}; it has {', '.join(keyed) or 'none'}.")
        try:
            return cls(**values)
        except ProgramError as fault:
            self.fail(str(fault))
        except TypeError:
            missing = ", ".join(b.name for b in _positional(cls) if b.name not in values)
            self.fail(f"{name} needs operands {missing}.")

    def place(self, pc: int, bits: Bits, word: str) -> int:
        if word == _NONE:
            return 0
        if bits.kind is Kind.CONST:
            return list(self.constants).index(word) if word in self.constants else self.number(word)
        if bits.kind in (Kind.LABEL, Kind.LENGTH):
            length = bits.kind is Kind.LENGTH
            if word in self.labels:
                return self.labels[word] - (pc + 1 if length else 0)
            if word[0].isdigit() or (length and word[0] == "+"):
                return self.number(word)
            self.fail(f"label {word!r} is not defined.")
        letters = _LETTER[bits.kind] + ("R" if bits.name == "c" else "")
        if word[0].upper() not in letters or not word[1:].isdigit():
            self.fail(f"operand {bits.name}={word} must be written {_LETTER[bits.kind]}n, or - for none.")
        return int(word[1:])

    def keyed(self, bits: Bits, value: str) -> int:
        if bits.kind is Kind.MASK:
            mask = 0
            for part in value.split(","):
                n = self.sems[part] if part in self.sems else self.number(part)
                if not 0 <= n < SEMAPHORES:
                    self.fail(f"semaphore {n} must be in 0..{SEMAPHORES - 1}.")
                mask |= 1 << n
            return mask
        if bits.choices is not None:
            return self.choice(bits.choices, value, bits.name)
        if bits.kind is Kind.SEMAPHORE and value in self.sems:
            return self.sems[value]
        return self.number(value.lstrip("Rr") if bits.kind is Kind.REG else value)

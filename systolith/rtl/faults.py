"""Faults in a Verilog text: one operator changed at each of many places, switched on one at a time in a single build.

The top gets an input `systolith_fault`; place k has its other operator where the input is k + 1. A build without it is
the chip itself.
"""

from __future__ import annotations

import random
import re
from typing import Final

from systolith.spec import ConfigError

__all__ = ["OPERATORS", "SELECT", "changed", "places", "with_faults"]

SELECT: Final = "systolith_fault"
OPERATORS: Final = {
    "+": "-", "-": "+", "&": "|", "|": "&", "^": "|", "==": "!=", "!=": "==", "<": ">=", ">=": "<",
}  # fmt: skip
"""What becomes of each operator."""
_PLACE: Final = re.compile(
    r"^  assign (?P<target>[^=;]+?) = (?P<left>[^;?\n]*[\w\])}]) (?P<op>\+|-|&|\||\^|==|!=|<|>=) "
    r"(?P<right>[\w({~$\\][^;?\n]*);$",
    re.MULTILINE,
)


def places(text: str) -> list[re.Match[str]]:
    """Assignments with an operator between two operands, in modules of the chip."""
    return [m for m in _PLACE.finditer(text) if "/*" not in m.group(0)]


def changed(text: str, seed: int) -> tuple[str, str]:
    """A text with one operator changed, drawn by a seed, and which."""
    place = random.Random(seed).choice(places(text))
    new = OPERATORS[place.group("op")]
    return text[: place.start("op")] + new + text[place.end("op") :], _name(text, place)


def with_faults(text: str, count: int, seed: int) -> tuple[str, list[str]]:
    """A text with `count` faults that its top's input chooses from, and what each is. Raises ConfigError."""
    found = places(text)
    if len(found) < count:
        raise ConfigError(f"count={count}: the Verilog has {len(found)} places for a fault; ask for fewer.")
    drawn = sorted(random.Random(seed).sample(found, count), key=lambda m: m.start())
    names = [_name(text, m) for m in drawn]
    for k, m in reversed(list(enumerate(drawn))):
        target, left, op, right = (m.group(x) for x in ("target", "left", "op", "right"))
        line = (
            f"  assign {target} = systolith.{SELECT} == {k + 1} ? {left} {OPERATORS[op]} {right} : {left} {op} {right};"
        )
        text = text[: m.start()] + line + text[m.end() :]
    head = re.search(r"^module systolith\((.*?)\);\n", text, re.DOTALL | re.MULTILINE)
    if head is None:
        raise ConfigError("the Verilog has no module systolith; emit it with `systolith rtl`.")
    ports = f"module systolith({head.group(1)}, {SELECT});\n  input [15:0] {SELECT};\n  wire [15:0] {SELECT};\n"
    return text[: head.start()] + ports + text[head.end() :], names


def _name(text: str, place: re.Match[str]) -> str:
    """Module, line and operator of a place."""
    module = re.findall(r"^module (\\?\S+?) ?\(", text[: place.start()], re.MULTILINE)[-1]
    line = text.count("\n", 0, place.start()) + 1
    op = place.group("op")
    return f"{module}, line {line}: {place.group('target').strip()}: {op} became {OPERATORS[op]}"

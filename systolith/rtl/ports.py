"""What a unit shows to the slice: a start/done handshake with a resolved instruction, and ports into its memories.

docs/decisions/0010-rtl.md has the conventions. A unit names its memory ports in a list; `port_members` makes the
signals, and the slice joins them to the memories by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from amaranth.hdl import signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from systolith.isa.descriptor import Space

__all__ = ["COMMANDS", "OPERAND", "Port", "command_layout", "handshake", "port_members"]

OPERAND: Final = data.StructLayout(
    {
        "present": 1,  # the instruction has this operand
        "space": 3,
        "format": 4,
        "scale": 1,
        "base": 40,  # bytes, after xb
        "sbase": 40,
        "ext0": 20,  # after xe
        "ext1": 20,
        "ext2": 20,
        "stride0": signed(32),  # elements
        "stride1": signed(32),
        "stride2": signed(32),
        "via": 1,  # rows of dimension 0 lie where an index list says
        "unit": 4,  # log2 of the rows that one index stands for
        "row": 32,  # X[xb]: added to i0 before the list is looked up
        "list": 40,  # byte address in SPAD of entry 0 of the list
    }
)
"""A tensor as an instruction meets it: `isa.state.View`. All zero where the operand is not there."""

COMMANDS: Final = {"W": "DA", "L": "DA", "M": "DAB", "V": "DABCEF", "S": "DA", "C": "DA"}
"""Operands that an instruction of each queue may have, in the order in which dispatch copies them."""


def command_layout(queue: str) -> data.StructLayout:
    """What a unit gets with `start`: operands `d`, `a`, ... and the word's fields, resolved.

    op : opcode    fields : bits [49:0] of the word    zero : MATMUL starts from +0
    first, b_cell : PUT's first rank    r_hi, r_j, r_w : VEC's registers R[c], R[rj], R[rw], copied at dispatch
    """
    members: dict[str, Any] = {"op": 6, "pc": 16, "fields": 50}
    if queue == "M":
        members["zero"] = 1
    if queue == "V":
        members |= {"r_hi": signed(32), "r_j": signed(32), "r_w": signed(32)}
    if queue == "C":
        members["first"] = 32
    members |= {letter.lower(): OPERAND for letter in COMMANDS[queue]}
    return data.StructLayout(members)


def handshake(queue: str) -> dict[str, Any]:
    """Signals between a queue and its unit; see the decision for the cycle each belongs to."""
    return {
        "start": In(1),
        "command": In(command_layout(queue)),
        "ready": Out(1),
        "done": Out(1),
    }


@dataclass(frozen=True)
class Port:
    """One port of a unit into a memory of its slice, at any byte address.

    Read: `NAME_en`, `NAME_addr` out in a cycle; `NAME_data` in `bank_cycles` later, `bytes` bytes, the lowest address
    in the lowest bits. Write: `NAME_en`, `NAME_addr`, `NAME_data`, `NAME_mask` (a bit a byte) out in a cycle; a read
    of the next cycle sees it.
    """

    name: str
    space: Space
    bytes: int
    write: bool = False


ADDRESS_BITS: Final = 32
"""Bits of a byte address in a memory of the slice."""


def port_members(ports: Iterable[Port]) -> dict[str, Any]:
    """Signals of a unit's ports, for its signature."""
    members: dict[str, Any] = {}
    for port in ports:
        members[f"{port.name}_en"] = Out(1)
        members[f"{port.name}_addr"] = Out(ADDRESS_BITS)
        if port.write:
            members[f"{port.name}_data"] = Out(8 * port.bytes)
            members[f"{port.name}_mask"] = Out(port.bytes)
        else:
            members[f"{port.name}_data"] = In(8 * port.bytes)
    return members

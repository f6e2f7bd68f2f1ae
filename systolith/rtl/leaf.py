"""Modules that are emitted once and used many times: rows of an array, lanes, memories.

Amaranth emits every instance of a component as a module of its own. A leaf is named by its parameters, so that equal
leaves share one module; `rtl.emit` writes each of them once beside the chip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import Instance

__all__ = ["collect", "leaf", "text_leaf"]

_components: dict[str, tuple[Callable[[], Any], bool]] = {}
_texts: dict[str, str] = {}


def leaf(name: str, make: Callable[[], Any], *, whole: bool = True, **ports: Any) -> Instance:
    """Instantiate module `name`, made by `make()`, a component with a signature.

    ports : `i_clk=ClockSignal()`, `i_x=...`, `o_y=...` as `Instance` takes them; a component with clocked logic has
    ports clk and rst. whole : keep it a module of its own in Verilator (`no_inline_module`).
    """
    _components.setdefault(name, (make, whole))
    return Instance(name, **ports)


def text_leaf(name: str, text: Callable[[], str], **ports: Any) -> Instance:
    """Instantiate module `name`, whose Verilog is `text()`."""
    if name not in _texts:
        _texts[name] = text()
    return Instance(name, **ports)


def collect() -> tuple[dict[str, tuple[Callable[[], Any], bool]], dict[str, str]]:
    """Give and forget the leaves used since the last call: components and texts by name."""
    found = dict(_components), dict(_texts)
    _components.clear()
    _texts.clear()
    return found

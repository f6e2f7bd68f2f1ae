"""Modules that are emitted once and used many times: rows of an array, lanes, memories.

Amaranth emits every instance of a component as a module of its own. A leaf is named by its parameters, so that equal
leaves share one module; `rtl.emit` writes each of them once beside the chip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amaranth.hdl import ClockSignal, Instance, ResetSignal, Value
from amaranth.lib.wiring import In

__all__ = ["collect", "leaf", "leaf_of", "text_leaf"]

_components: dict[str, tuple[Callable[[], Any], bool]] = {}
_texts: dict[str, str] = {}


def leaf(name: str, make: Callable[[], Any], *, whole: bool = True, **ports: Any) -> Instance:
    """Instantiate module `name`, made by `make()`, a component with a signature.

    ports : `i_clk=ClockSignal()`, `i_x=...`, `o_y=...` as `Instance` takes them; a component with clocked logic has
    ports clk and rst. whole : keep it a module of its own in Verilator (`no_inline_module`).
    """
    _components.setdefault(name, (make, whole))
    return Instance(name, **ports)


def leaf_of(m: Any, name: str, component: Any, *, whole: bool = True) -> None:
    """Stand module `name` in for a component with a signature: its members are joined to the leaf's ports.

    The members stay usable as signals; leaves of one name must be made alike.
    """
    ports: dict[str, Any] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
    for path, member, value in component.signature.flatten(component):
        ports[f"{'i' if member.flow == In else 'o'}_{'__'.join(map(str, path))}"] = Value.cast(value)
    if name in _components:
        # The first one of a name is elaborated for all: Amaranth would warn of the others, which lend their signals.
        component._MustUse__used = True
    m.submodules += leaf(name, lambda: component, whole=whole, **ports)


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

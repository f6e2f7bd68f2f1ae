"""What a layer of a decode step waits for, along the critical path: the router's dependency, issue, semaphores,
collectives, memory, work. The rows sum up to the step.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ["StepPath", "layer_path", "lines_of"]

StepPath = Counter[tuple[str, str, str]]
"""Cycles of a critical path by (kernel line, part of the waterfall, why)."""

ROWS = ("router", "issue", "semaphores", "collectives", "memory", "work")
"""router: what its words and the way to the first bytes of experts cost, without the three rows that follow; memory:
weights, keys, values and what else passes the channel; work: matrix and vector unit."""

_OUTSIDE = ("embed", "head", "sample", "start", "mail")
"""Names of kernels outside of layers."""


def lines_of(path: StepPath) -> Counter[str]:
    """The same by "line: why"."""
    lines: Counter[str] = Counter()
    for (line, _, why), cycles in path.items():
        lines[f"{line}: {why}"] += cycles
    return lines


def layer_path(path: StepPath, layers: int, hz: int) -> dict[str, Any]:
    """Microseconds of a layer by row, their sum over all layers, and of what is outside of layers.

    layers : of the model.    hz : clock. `step_us` = `layers` * `layer_us` + `outside_us`, the whole path.
    """
    inside: Counter[str] = Counter()
    routed: Counter[str] = Counter()
    outside = 0
    for (line, part, why), cycles in path.items():
        name = _kernel(line)
        if name is None:
            outside += cycles
            continue
        router = name == "router" or (
            name == "expert gate" and part == "weights" and why in ("memory latency", "set-up")
        )
        if router:
            routed[part] += cycles
        if part in ("issue", "semaphores", "collectives"):
            inside[part] += cycles
        elif router:
            inside["router"] += cycles
        else:
            inside["memory" if part in ("weights", "kv") else "work"] += cycles

    def us(cycles: float) -> float:
        return cycles / hz * 1e6

    total = sum(inside.values())
    found: dict[str, Any] = {
        "layers": layers,
        "per_layer_us": {row: us(inside[row] / layers) for row in ROWS if row != "router" or routed},
        "all_layers_us": {row: us(inside[row]) for row in ROWS if row != "router" or routed},
        "layer_us": us(total / layers),
        "outside_us": us(outside),
        "step_us": us(total + outside),
    }
    if routed:
        found["router_per_layer_us"] = {part: us(cycles / layers) for part, cycles in routed.most_common()}
    return found


def _kernel(line: str) -> str | None:
    """Name of the tensor or kernel of a line, None outside of layers. Looking up experts belongs to the router."""
    place, _, name = line.partition(" ")
    if name:
        return None if name in _OUTSIDE else name
    return "router" if place.startswith("kernels/route.py") else None

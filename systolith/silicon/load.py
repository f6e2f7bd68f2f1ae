"""What a timed decode step asks of a chip, as counts that energy is paid for.

Bytes from memory and multiply-adds are those the step must move and make (`runtime.bound`), less than what a program
moves; what the network and the vector unit do is counted from the model's shapes.
"""

from __future__ import annotations

from systolith.runtime.estimate import Estimate
from systolith.silicon.power import Load

__all__ = ["decode_load"]

NORM_PASSES, GATE_PASSES, SCORE_PASSES = 8, 6, 4
"""Passes of V over an element of the residual stream a layer (two norms, residual adds), of h, and of a score."""


def decode_load(timed: Estimate) -> Load:
    """The load of the middle one of an estimate's decode steps."""
    step, plan, chip = timed.decodes[len(timed.decodes) // 2], timed.compiled.plan, timed.compiled.plan.chip
    model, rows = plan.model, timed.question.batch
    inner = 0  # columns of h, of all experts that a row takes
    for name, matrix in model.matrices.items():
        if name.endswith("up"):
            taken = model.experts.top_k if model.experts is not None and name.startswith("expert_") else 1
            inner += matrix.weight.shape[0] * taken * len(model.layers_of(name))
    wide = model.layers * (2 * model.hidden + model.heads * model.head_dim) + inner
    scores = model.heads * sum(
        step.context if kind.window is None else min(step.context, kind.window) for kind in model.kinds
    )
    elements = model.layers * model.hidden * NORM_PASSES + inner * GATE_PASSES + scores * SCORE_PASSES
    # A code and its share of a scale, to all slices.
    received = rows * wide * (1 + 1 / 32) * chip.slices if chip.slices > 1 else 0.0
    cost = step.cost
    return Load(
        step.cycles / chip.clock_hz, rows, {pair: float(n) for pair, n in cost.macs.items()}, float(cost.bytes),
        received, float(rows * elements),
    )  # fmt: skip

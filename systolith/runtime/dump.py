"""Intermediates that a program compiled with `dump` has stored, under the names that the golden traces have.

`NN-name`: NN counts the values of a name in order. x: the embedding, then the stream after attention and after the
feed-forward of each layer; r: of each norm; q, k after rotary and v [heads, tokens, d] (of latent attention: q and k as
they meet, and the sum of latents); attention, heads padded to whole blocks, and h [tokens, width], but of experts,
whose rows are no tokens. FP32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from systolith.compiler import Compiled
from systolith.compiler.memory import dump_widths
from systolith.compiler.plan import padded
from systolith.runtime.device import Machine

__all__ = ["read_dump"]

Array = NDArray[np.float32]


def read_dump(machine: Machine, compiled: Compiled, tokens: int) -> dict[str, Array]:
    """All intermediates of the first `tokens` positions by name."""
    return dict(_values(machine, compiled, tokens))


def _values(machine: Machine, compiled: Compiled, tokens: int) -> Iterator[tuple[str, Array]]:
    plan = compiled.plan
    model, dp, d = plan.model, plan.dp, plan.model.head_dim
    widths = dump_widths(plan) | {"x0": padded(model.hidden)}
    kept = max(plan.options.log_rows, plan.rows)

    def read(name: str, layer: int) -> Array:
        """[tokens, width]: every slice has written its own columns and left the others 0."""
        width = widths[name]
        words = np.zeros(kept * width, np.uint32)
        address = compiled.memory.dram[f"dump_{name}"] + 4 * layer * kept * width
        for rank in range(plan.slices):
            words |= np.frombuffer(machine.read_dram(rank, address, 4 * kept * width), "<u4")
        return words.view(np.float32).reshape(kept, width)[:tokens]

    def heads(name: str, count: int, layer: int) -> Array:
        array = read(name, layer).reshape(tokens, count, dp)[:, :, :d]
        return np.ascontiguousarray(array.transpose(1, 0, 2))

    def latent_heads(name: str, count: int, layer: int) -> Array:
        """[heads, tokens, rank + turned]: the latent and the turned part, without what pads either."""
        array = read(name, layer).reshape(tokens, count, plan.kp)
        both = np.concatenate([array[..., :d], array[..., dp : dp + model.turned]], -1)
        return np.ascontiguousarray(both.transpose(1, 0, 2))

    def columns(name: str, count: int, layer: int) -> Array:
        return np.ascontiguousarray(read(name, layer)[:, :count])

    norms = [name for name in ("r_attention", "r_q", "r_ffn") if name in widths]
    yield "00-x", columns("x0", model.hidden, 0)
    for n in range(model.layers):
        for place, name in enumerate(norms):
            yield f"{len(norms) * n + place:02d}-r", columns(name, 1, n)
        if model.latent is None:
            yield f"{n:02d}-q", heads("q", model.heads, n)
            yield f"{n:02d}-k", heads("k", model.kv_heads, n)
            yield f"{n:02d}-v", heads("v", model.kv_heads, n)
        else:
            yield f"{n:02d}-q", latent_heads("q", model.heads, n)
            yield f"{n:02d}-k", latent_heads("k", 1, n)
            yield f"{n:02d}-latent", heads("latent", model.heads, n)
        yield f"{n:02d}-attention", columns("attention", model.heads * plan.vp, n)
        yield f"{2 * n + 1:02d}-x", columns("x_attention", model.hidden, n)
        if "h" in widths:
            yield f"{n:02d}-h", columns("h", model.inner, n)
        yield f"{2 * n + 2:02d}-x", columns("x_ffn", model.hidden, n)
    yield f"{len(norms) * model.layers:02d}-r", columns("r_attention", 1, model.layers)

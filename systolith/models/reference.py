"""The graph in plain FP32 NumPy: what the model means before any of its numbers is quantised.

It is compared with transformers (1e-4 in logits) and is what an operator of the chip is sketched from. It is not the
numerics contract: sums are in NumPy's order. One sequence at a time; `Interpreter` keeps the KV cache between calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolith.models.checkpoint import Checkpoint
from systolith.models.graph import IDS, ModelGraph, Node, X, unsupported
from systolith.models.rope import frequencies
from systolith.spec.errors import ModelError

__all__ = ["OPERATIONS", "Interpreter", "interpret"]

Array = NDArray[np.float32]
Value = NDArray[Any]
"""FP32, or the token ids that `embed` takes."""

_QUERY_ROWS = 256
"""Query rows scored at once: bounds the memory of a long prompt."""


@dataclass
class _Context:
    """What an operation sees besides its inputs: the layer, the position of the first row, its cache, weights."""

    layer: int | None
    start: int
    caches: dict[int, tuple[Array, Array]]
    weight: Callable[[Node, str, int | None], Array | None]
    picked: slice


@dataclass
class Interpreter:
    """Runs a graph on the tensors of a checkpoint, keeping the KV cache of one sequence.

    graph : taken instead of the checkpoint's own, to try a change.    sinks : test instrument, one value a query head.
    keep : whether tensors stay in memory as FP32 after their first use.
    """

    checkpoint: Checkpoint
    graph: ModelGraph | None = None
    sinks: Sequence[float] | None = None
    keep: bool = True
    position: int = field(default=0, init=False)
    _caches: dict[int, tuple[Array, Array]] = field(default_factory=dict, init=False, repr=False)
    _tensors: dict[str, Array] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.graph is None:
            self.graph = self.checkpoint.graph
        missing = unsupported(self.graph, OPERATIONS)
        if missing:
            raise ModelError(
                f"the reference interpreter lacks the operations {', '.join(missing)} of {self.graph.name}"
            )

    def step(self, ids: Sequence[int], *, last_only: bool = False) -> Array:
        """Append tokens to the sequence; return logits [T, vocab] of these positions, or [1, vocab] of the last one.

        Raises ModelError for a token that is not in the vocabulary and for a sequence longer than the context.
        """
        graph = self.graph
        assert graph is not None
        if not ids:
            raise ModelError("the prompt is empty; give at least one token")
        bad = next((i for i in ids if not 0 <= i < graph.vocab), None)
        if bad is not None:
            raise ModelError(f"token id {bad} must be within 0..{graph.vocab - 1}, the vocabulary of {graph.name}")
        if self.position + len(ids) > graph.context:
            raise ModelError(
                f"the sequence has {self.position + len(ids)} tokens, {graph.name} takes at most {graph.context}; "
                "give a shorter prompt"
            )
        x: Value = np.asarray(ids, np.int64)
        picked = slice(len(ids) - 1 if last_only else 0, len(ids))
        for section, layer, nodes in graph.sections():
            context = _Context(layer, self.position, self._caches, self._weight_reader(layer), picked)
            values: dict[str, Value] = {IDS if section == "embed" else X: x}
            with np.errstate(over="ignore", invalid="ignore"):  # weights that are not finite are legal
                for node in nodes:
                    values[node.out] = OPERATIONS[node.op](context, node, [values[name] for name in node.ins])
            x = values[nodes[-1].out] if nodes else x
        self.position += len(ids)
        return np.asarray(x, np.float32)

    def _weight_reader(self, layer: int | None) -> Callable[[Node, str, int | None], Array | None]:
        def read(node: Node, role: str, expert: int | None) -> Array | None:
            if role == "sinks" and self.sinks is not None:
                return np.asarray(self.sinks, np.float32)
            if role not in node.weights:
                return None
            name = node.weights[role].at(layer, expert)
            if name in self._tensors:
                return self._tensors[name]
            tensor = self.checkpoint.tensor(name)
            if self.keep:
                self._tensors[name] = tensor
            return tensor

        return read


def interpret(graph: ModelGraph, checkpoint: Checkpoint, ids: Sequence[int]) -> Array:
    """Logits FP32 [T, vocab] of every position of a sequence, prefilled at once."""
    return Interpreter(checkpoint, graph).step(ids)


def _required(context: _Context, node: Node, role: str, expert: int | None = None) -> Array:
    weight = context.weight(node, role, expert)
    assert weight is not None, (node.op, role)
    return weight


def _heads(x: Array, heads: int) -> Array:
    """[T, heads * d] as [heads, T, d]."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def _embed(context: _Context, node: Node, ins: list[Value]) -> Array:
    rows: Array = _required(context, node, "table")[ins[0]]
    scale = node.float_attr("scale")
    return rows if scale == 1 else rows * np.float32(scale)


def _normalise(x: Array, eps: float) -> Array:
    mean: Array = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    normal: Array = x / np.sqrt(mean + np.float32(eps))
    return normal


def _rms_norm(context: _Context, node: Node, ins: list[Value]) -> Array:
    return _normalise(ins[0], node.float_attr("eps", context.layer)) * _required(context, node, "g")


def _head_norm(context: _Context, node: Node, ins: list[Value]) -> Array:
    x = ins[0].reshape(len(ins[0]), node.int_attr("heads", context.layer), -1)
    y = _normalise(x, node.float_attr("eps", context.layer)) * _required(context, node, "g")
    return y.reshape(ins[0].shape)


def _linear(context: _Context, node: Node, ins: list[Value]) -> Array:
    y = ins[0] @ _required(context, node, "w").T
    bias = context.weight(node, "bias", None)
    return y if bias is None else y + bias


def _rope(context: _Context, node: Node, ins: list[Value]) -> Array:
    x, layer = ins[0], context.layer
    heads, dim, theta = node.int_attr("heads", layer), node.int_attr("head_dim", layer), node.float_attr("theta", layer)
    scaling, factor = node.text_attr("scaling", layer), 1.0
    if scaling is None:
        frequency = (theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)).astype(np.float32)
    else:
        frequency, factor = frequencies(dim, theta, scaling)
    angle = np.arange(context.start, context.start + len(x), dtype=np.float32)[:, None] * frequency
    cos, sin = (f(angle)[:, None, :] * np.float32(factor) for f in (np.cos, np.sin))
    if node.attr("interleaved", layer):
        pairs = x.reshape(len(x), heads, dim // 2, 2).swapaxes(2, 3)
    else:
        pairs = x.reshape(len(x), heads, 2, dim // 2)
    first, second = pairs[:, :, 0], pairs[:, :, 1]
    turned = np.stack([first * cos - second * sin, second * cos + first * sin], axis=2)
    return turned.reshape(x.shape).astype(np.float32, copy=False)


def _cache_append(context: _Context, node: Node, ins: list[Value]) -> Array:
    """Returns K of the cache; `attention` takes both parts from the context."""
    assert context.layer is not None
    heads = node.int_attr("kv_heads", context.layer)
    new = tuple(_heads(x, heads) for x in ins)
    old = context.caches.get(context.layer)
    k, v = (np.concatenate([o, n], axis=1) for o, n in zip(old, new, strict=True)) if old else new
    context.caches[context.layer] = (k, v)
    return k


def _attention(context: _Context, node: Node, ins: list[Value]) -> Array:
    layer = context.layer
    assert layer is not None
    heads, kv_heads, dim = (node.int_attr(name, layer) for name in ("heads", "kv_heads", "head_dim"))
    scale = node.attr("scale", layer)
    factor = np.float32(1 / math.sqrt(dim) if scale is None else scale)
    window = node.attr("window", layer)
    sinks = context.weight(node, "sinks", None)
    k, v = context.caches[layer]
    q = _heads(ins[0], heads)
    out = np.empty_like(q)
    key_positions = np.arange(k.shape[1])
    for first in range(0, q.shape[1], _QUERY_ROWS):
        rows = slice(first, min(first + _QUERY_ROWS, q.shape[1]))
        positions = np.arange(context.start + rows.start, context.start + rows.stop)[:, None]
        visible = key_positions <= positions
        if window is not None:
            visible &= positions - key_positions < int(window)
        for head in range(heads):
            group = head * kv_heads // heads
            scores = np.where(visible, (q[head, rows] @ k[group].T) * factor, np.float32(-np.inf))
            top = scores.max(axis=1, keepdims=True)
            if sinks is not None:
                top = np.maximum(top, sinks[head])
            p = np.exp(scores - top)
            total = p.sum(axis=1, keepdims=True)
            if sinks is not None:
                total = total + np.exp(sinks[head] - top)
            out[head, rows] = (p @ v[group]) / total
    return out.transpose(1, 0, 2).reshape(ins[0].shape)


def _columns(context: _Context, node: Node, ins: list[Value]) -> Array:
    start, width = node.int_attr("start", context.layer), node.int_attr("width", context.layer)
    heads = ins[0].reshape(len(ins[0]), node.int_attr("heads", context.layer), -1)
    return heads[..., start : start + width].reshape(len(heads), -1)


def _head_linear(context: _Context, node: Node, ins: list[Value]) -> Array:
    heads = node.int_attr("heads", context.layer)
    x = ins[0].reshape(len(ins[0]), heads, -1)
    parts = [x[:, head] @ _required(context, node, "w", head).T for head in range(heads)]
    return np.concatenate(parts, axis=1)


def _latent_append(context: _Context, node: Node, ins: list[Value]) -> Array:
    """Returns the latent rows of the cache; `latent_attention` takes both parts from the context."""
    assert context.layer is not None
    old = context.caches.get(context.layer)
    latent, turned = (np.concatenate([o, n]) for o, n in zip(old, ins, strict=True)) if old else ins
    context.caches[context.layer] = (latent, turned)
    return latent


def _latent_attention(context: _Context, node: Node, ins: list[Value]) -> Array:
    layer = context.layer
    assert layer is not None
    heads, scale = node.int_attr("heads", layer), np.float32(node.float_attr("scale", layer))
    (q_latent, q_turned), (latent, turned) = (_heads(x, heads) for x in ins[:2]), context.caches[layer]
    out = np.empty_like(q_latent)
    for first in range(0, q_latent.shape[1], _QUERY_ROWS):
        rows = slice(first, min(first + _QUERY_ROWS, q_latent.shape[1]))
        positions = np.arange(context.start + rows.start, context.start + rows.stop)[:, None]
        visible = np.arange(len(latent)) <= positions
        for head in range(heads):
            scores = (q_latent[head, rows] @ latent.T + q_turned[head, rows] @ turned.T) * scale
            scores = np.where(visible, scores, np.float32(-np.inf))
            p = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[head, rows] = (p @ latent) / p.sum(axis=1, keepdims=True)
    return out.transpose(1, 0, 2).reshape(ins[0].shape)


def _silu(x: Array) -> Array:
    y: Array = x / (1 + np.exp(-x))  # where exp overflows the quotient is zero
    return y


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    y: Array = np.float32(0.5) * x * (1 + np.tanh(inner))
    return y


def _silu_mul(context: _Context, node: Node, ins: list[Value]) -> Array:
    h: Array = np.multiply(_silu(ins[0]), ins[1], dtype=np.float32)
    return h


def _gelu_mul(context: _Context, node: Node, ins: list[Value]) -> Array:
    h: Array = np.multiply(_gelu_tanh(ins[0]), ins[1], dtype=np.float32)
    return h


def _best(values: Array, count: int) -> NDArray[np.int64]:
    """Columns of the largest values of each row, largest first, the lower column first among equals."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :count]


def _route(context: _Context, node: Node, ins: list[Value]) -> Value:
    """Weight of each expert for each row, FP32 [T, experts], 0 for those that are not chosen."""
    layer = context.layer
    scores: Array = _linear(context, node, ins)
    top_k, groups = node.int_attr("top_k", layer), node.int_attr("groups", layer)
    sigmoid, rows = node.attr("score", layer) == "sigmoid", np.arange(len(scores))[:, None]
    if sigmoid:
        scores = (1 / (1 + np.exp(-scores))).astype(np.float32, copy=False)
    elif node.attr("score", layer) == "softmax_all":
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = scores / scores.sum(axis=1, keepdims=True)
    correction = context.weight(node, "correction", None)
    choice = scores if correction is None else scores + correction
    if groups > 1:
        parts = choice.reshape(len(choice), groups, -1)
        total = np.sort(parts, axis=-1)[..., -2:].sum(axis=-1)
        stay = np.zeros(total.shape, bool)
        stay[rows, _best(total, node.int_attr("top_groups", layer))] = True
        choice = np.where(stay[..., None], parts, np.float32(-np.inf)).reshape(choice.shape)
    chosen = _best(choice, top_k)
    weights = scores[rows, chosen]
    if node.attr("score", layer) == "softmax":
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        weights = weights / weights.sum(axis=1, keepdims=True)
    elif sigmoid and node.attr("normalise", layer):
        weights = weights / (weights.sum(axis=1, keepdims=True) + np.float32(1e-20))
    table = np.zeros(scores.shape, np.float32)
    table[rows, chosen] = weights * np.float32(node.float_attr("scale", layer))
    return table


def _experts(context: _Context, node: Node, ins: list[Value]) -> Array:
    x, routes = ins
    layer, total = context.layer, np.zeros(ins[0].shape, np.float32)
    kind, limit = node.attr("activation", layer), np.float32(node.float_attr("limit", layer))
    alpha = np.float32(node.float_attr("alpha", layer))

    def project(role: str, expert: int, rows: Array) -> Array:
        y: Array = rows @ _required(context, node, role, expert).T
        bias = context.weight(node, f"{role}_bias", expert)
        return y if bias is None else y + bias

    for expert in np.flatnonzero((routes != 0).any(axis=0)).tolist():
        rows = np.flatnonzero(routes[:, expert])
        gate, up = project("gate", expert, x[rows]), project("up", expert, x[rows])
        if kind == "swiglu_clamped":
            gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
            h = (up + 1) * (gate / (1 + np.exp(-gate * alpha)))
        else:
            h = (_silu if kind == "silu" else _gelu_tanh)(gate) * up
        total[rows] += routes[rows, expert, None] * project("down", expert, h)
    return total


def _add(context: _Context, node: Node, ins: list[Value]) -> Array:
    total: Array = ins[0] + ins[1]
    return total


def _select(context: _Context, node: Node, ins: list[Value]) -> Array:
    return ins[0][context.picked]


OPERATIONS: dict[str, Callable[[_Context, Node, list[Value]], Array]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "head_norm": _head_norm,
    "rope": _rope,
    "cache_append": _cache_append,
    "attention": _attention,
    "columns": _columns,
    "head_linear": _head_linear,
    "latent_append": _latent_append,
    "latent_attention": _latent_attention,
    "silu_mul": _silu_mul,
    "gelu_mul": _gelu_mul,
    "route": _route,
    "experts": _experts,
    "add": _add,
    "select": _select,
}
"""The interpreter's rule for each operation of the graph."""

"""What the compiler knows of a model: its graph, matched against the operations that have kernels.

A graph with an operation or an arrangement that no kernel serves is refused with the whole list, never in part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from systolith.models.graph import ModelGraph, Node, WeightRef, unsupported
from systolith.spec.errors import ModelError

__all__ = ["DecoderModel", "Matrix", "match"]

KERNELS = (
    "embed", "rms_norm", "linear", "head_norm", "rope", "cache_append", "attention", "silu_mul", "add", "select",
)  # fmt: skip
"""Operations that have a kernel."""

_QKV = ("rms_norm", "linear", "linear", "linear")
_REST = (
    "rope", "rope", "cache_append", "attention", "linear", "add",
    "rms_norm", "linear", "linear", "silu_mul", "linear", "add",
)  # fmt: skip
_LAYERS = ((*_QKV, *_REST), (*_QKV, "head_norm", "head_norm", *_REST))
"""Operations of a layer: without and with norms of the heads of q and k."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix [N, K] and its bias [N]; names carry `{layer}`."""

    weight: WeightRef
    bias: WeightRef | None


@dataclass(frozen=True, slots=True)
class DecoderModel:
    """A pre-norm decoder with rotary grouped attention and a gated feed-forward. Sizes are unpadded; `eps`, `theta` and
    `scale` (None: 1/sqrt(d)) are binary64 as in the config; `scaling` is a `RopeScaling.text` or None; `window` in
    tokens or None."""

    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    layers: int
    context: int
    eps: float
    theta: float
    scaling: str | None
    scale: float | None
    window: int | None
    tied: bool
    table: WeightRef
    attention_norm: WeightRef
    ffn_norm: WeightRef
    final_norm: WeightRef
    matrices: dict[str, Matrix]
    sinks: WeightRef | None
    head_norms: tuple[WeightRef, WeightRef] | None
    """Gains [d] of the norms of the heads of q and of k."""

    def bias(self, name: str) -> bool:
        """Whether the matrices of a class have a bias."""
        return self.matrices[name].bias is not None


def match(graph: ModelGraph) -> DecoderModel:
    """Read a graph as a decoder. Raises ModelError with everything that has no kernel."""
    faults = [f"operation {name}" for name in unsupported(graph, KERNELS)]
    if tuple(node.op for node in graph.layer) not in _LAYERS:
        faults.append("a layer other than norm, q, k, v, rotary, attention, o, add, norm, gate, up, silu, down, add")
    if graph.special:
        faults.append(f"layers with a body of their own ({', '.join(map(str, sorted(graph.special)))})")
    if tuple(node.op for node in graph.head) != ("select", "rms_norm", "linear") or len(graph.embed) != 1:
        faults.append("an embedding or head other than table, select, norm, linear")
    if any("bias" in node.weights for node in graph.head):
        faults.append("a bias of the head")
    for node in graph.layer:
        varying = [k for k, v in node.attrs.items() if isinstance(v, tuple) and len(set(v)) > 1]
        faults += [f"{node.op}.{name} that differs from layer to layer" for name in varying]
    ropes = {(node.attr("theta", 0), node.attr("scaling", 0)) for node in graph.layer if node.op == "rope"}
    if len(ropes) > 1:
        faults.append("rotary that differs between q and k")
    if faults:
        raise ModelError(
            f"model {graph.name}: no kernel for {'; '.join(dict.fromkeys(faults))}; register kernels for them"
        )
    linears = [node for node in graph.layer if node.op == "linear"]
    names = ("q", "k", "v", "o", "gate", "up", "down")
    matrices = {name: Matrix(n.weights["w"], n.weights.get("bias")) for name, n in zip(names, linears, strict=True)}
    head = graph.head[2]
    matrices["head"] = Matrix(head.weights["w"], head.weights.get("bias"))
    rope, attention = _only(graph.layer, "rope"), _only(graph.layer, "attention")
    norms = [node for node in graph.layer if node.op == "rms_norm"] + [graph.head[1]]
    head_norms = [node for node in graph.layer if node.op == "head_norm"]
    if len({n.attr("eps", 0) for n in (*norms, *head_norms)}) > 1:
        raise ModelError(f"model {graph.name}: no kernel for norms with different eps; register a kernel for them")
    scale, window = attention.attr("scale", 0), attention.attr("window", 0)
    return DecoderModel(
        name=graph.name,
        hidden=graph.hidden,
        inner=matrices["gate"].weight.shape[0],
        heads=attention.int_attr("heads", 0),
        kv_heads=attention.int_attr("kv_heads", 0),
        head_dim=attention.int_attr("head_dim", 0),
        vocab=graph.vocab,
        layers=graph.layers,
        context=graph.context,
        eps=norms[0].float_attr("eps", 0),
        theta=rope.float_attr("theta", 0),
        scaling=rope.text_attr("scaling", 0),
        scale=None if scale is None else attention.float_attr("scale", 0),
        window=None if window is None else attention.int_attr("window", 0),
        tied=graph.tied,
        table=graph.embed[0].weights["table"],
        attention_norm=norms[0].weights["g"],
        ffn_norm=norms[1].weights["g"],
        final_norm=norms[2].weights["g"],
        matrices=matrices,
        sinks=attention.weights.get("sinks"),
        head_norms=(head_norms[0].weights["g"], head_norms[1].weights["g"]) if head_norms else None,
    )


def _only(nodes: Iterable[Node], op: str) -> Node:
    return next(node for node in nodes if node.op == op)

"""What the compiler knows of a model: its graph, matched against the operations that have kernels.

A graph with an operation or an arrangement that no kernel serves is refused with the whole list, never in part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from systolith.models.graph import ModelGraph, Node, WeightRef, unsupported
from systolith.spec.errors import ModelError

__all__ = ["DecoderModel", "Experts", "LayerKind", "Matrix", "match", "periods"]

KERNELS = (
    "embed", "rms_norm", "linear", "head_norm", "rope", "cache_append", "attention", "route", "experts", "add",
    "select",
)  # fmt: skip
"""Operations that have a kernel, beside the activations (kernels/activation.py)."""

_QKV = ("rms_norm", "linear", "linear", "linear")
_ATTENTION = ("rope", "rope", "cache_append", "attention", "linear")
_DENSE = ("linear", "linear", "activation", "linear")
_EXPERTS = ("route", "experts")
_LAYERS = tuple(
    (*_QKV, *norms, *_ATTENTION, *post, "add", "rms_norm", *ffn, *post, "add")
    for norms in ((), ("head_norm", "head_norm"))
    for post in ((), ("rms_norm",))
    for ffn in (_DENSE, _EXPERTS)
    if not post or ffn is not _EXPERTS
)
"""Operations of a layer: without and with norms of the heads of q and k; without and with norms before what is added;
one feed-forward or a mixture of experts."""

MAX_BODY = 8
"""Most layers in the body of a loop."""

_MAY_VARY = {("attention", "window"), ("rope", "theta"), ("rope", "scaling")}
"""Attributes that kernels take layer by layer."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix [N, K] and its bias [N]; names carry `{layer}`."""

    weight: WeightRef
    bias: WeightRef | None


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in every layer. count: experts; top_k: of them for a row; score, scale: as in the operation
    `route`; activation, alpha, limit: as in `experts`."""

    count: int
    top_k: int
    score: str
    scale: float
    activation: str
    alpha: float
    limit: float


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What may differ between layers. window: tokens that a row sees, or None; rope: index of the rotary table."""

    window: int | None
    rope: int = 0


@dataclass(frozen=True, slots=True)
class DecoderModel:
    """A pre-norm decoder with rotary grouped attention and a gated feed-forward. Sizes are unpadded; `eps` and
    `scale` (None: 1/sqrt(d)) are binary64 as in the config; `ropes` has (theta, `RopeScaling.text` or None) of each
    rotary table; `activation` is the operation of gate and up ("" with experts); `embed_scale` multiplies the table's
    rows; `post_norms` are the gains of norms of what o and down give, before it is added; `inner` is that of
    one expert where there are `experts`; `kinds` has an entry for each layer."""

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
    ropes: tuple[tuple[float, str | None], ...]
    scale: float | None
    tied: bool
    table: WeightRef
    attention_norm: WeightRef
    ffn_norm: WeightRef
    final_norm: WeightRef
    matrices: dict[str, Matrix]
    sinks: WeightRef | None
    head_norms: tuple[WeightRef, WeightRef] | None
    """Gains [d] of the norms of the heads of q and of k."""
    post_norms: tuple[WeightRef, WeightRef] | None
    experts: Experts | None
    kinds: tuple[LayerKind, ...]
    activation: str
    embed_scale: float

    @property
    def layer_norms(self) -> tuple[WeightRef, ...]:
        """Gains of a layer in the order of their use: before q, k, v; of what o gives; before gate and up; of what down
        gives."""
        first, second = self.attention_norm, self.ffn_norm
        return (first, second) if self.post_norms is None else (first, self.post_norms[0], second, self.post_norms[1])

    def bias(self, name: str) -> bool:
        """Whether the matrices of a class have a bias."""
        return self.matrices[name].bias is not None


def periods(kinds: Sequence[LayerKind]) -> list[tuple[tuple[LayerKind, ...], int]]:
    """Cut the layers into loops: (kinds of the layers of a body, times), so that a program does not grow with layers.

    From left to right the run that covers most layers is taken, with the shortest body that repeats.
    """
    cuts: list[tuple[tuple[LayerKind, ...], int]] = []
    at = 0
    while at < len(kinds):
        best = (1, 1)
        for size in range(1, MAX_BODY + 1):
            body, times = kinds[at : at + size], 1
            while kinds[at + times * size : at + (times + 1) * size] == body and len(body) == size:
                times += 1
            if (times > 1 or size == 1) and size * times > best[0] * best[1]:
                best = (size, times)
        size, times = best
        cuts.append((tuple(kinds[at : at + size]), times))
        at += size * times
    return cuts


def match(graph: ModelGraph, activations: Collection[str] = ("silu_mul", "gelu_mul")) -> DecoderModel:
    """Read a graph as a decoder. activations: operations (gate, up) that have a kernel.

    Raises ModelError with everything that has no kernel.
    """
    faults = [f"operation {name}" for name in unsupported(graph, {*KERNELS, *activations})]
    gates = [node.op for node in graph.layer if node.op in activations]
    if tuple("activation" if node.op in activations else node.op for node in graph.layer) not in _LAYERS:
        faults.append(
            "a layer other than norm, q, k, v, rotary, attention, o, add, norm and gate, up, activation, down, add or "
            "route, experts, add"
        )
    if graph.special:
        faults.append(f"layers with a body of their own ({', '.join(map(str, sorted(graph.special)))})")
    if tuple(node.op for node in graph.head) != ("select", "rms_norm", "linear") or len(graph.embed) != 1:
        faults.append("an embedding or head other than table, select, norm, linear")
    if any("bias" in node.weights for node in graph.head):
        faults.append("a bias of the head")
    for node in graph.layer:
        varying = [k for k, v in node.attrs.items() if isinstance(v, tuple) and len(set(v)) > 1]
        faults += [
            f"{node.op}.{name} that differs from layer to layer" for name in varying if (node.op, name) not in _MAY_VARY
        ]
        if node.op == "route" and (node.attr("score", 0) == "sigmoid" or "correction" in node.weights):
            faults.append("a router with sigmoid scores or a correction")
        if node.op == "experts" and node.attr("activation", 0) not in ("silu", "swiglu_clamped"):
            faults.append(f"experts with {node.attr('activation', 0)}")
    ropes = [_ropes(graph, node) for node in graph.layer if node.op == "rope"]
    if any(each != ropes[0] for each in ropes):
        faults.append("rotary that differs between q and k")
    if faults:
        raise ModelError(
            f"model {graph.name}: no kernel for {'; '.join(dict.fromkeys(faults))}; register kernels for them"
        )
    linears = [node for node in graph.layer if node.op == "linear"]
    names = ("q", "k", "v", "o", "gate", "up", "down")[: len(linears)]
    matrices = {name: Matrix(n.weights["w"], n.weights.get("bias")) for name, n in zip(names, linears, strict=True)}
    experts = _experts(graph, matrices)
    head = graph.head[2]
    matrices["head"] = Matrix(head.weights["w"], head.weights.get("bias"))
    attention = _only(graph.layer, "attention")
    norms = [node for node in graph.layer if node.op == "rms_norm"] + [graph.head[1]]
    head_norms = [node for node in graph.layer if node.op == "head_norm"]
    if len({n.attr("eps", 0) for n in (*norms, *head_norms)}) > 1:
        raise ModelError(f"model {graph.name}: no kernel for norms with different eps; register a kernel for them")
    scale = attention.attr("scale", 0)
    windows = [attention.attr("window", layer) for layer in range(graph.layers)]
    tables = tuple(dict.fromkeys(ropes[0]))
    before = norms if len(norms) == 3 else [norms[0], norms[2], norms[4]]
    return DecoderModel(
        name=graph.name,
        hidden=graph.hidden,
        inner=matrices["expert_gate" if experts else "gate"].weight.shape[0],
        heads=attention.int_attr("heads", 0),
        kv_heads=attention.int_attr("kv_heads", 0),
        head_dim=attention.int_attr("head_dim", 0),
        vocab=graph.vocab,
        layers=graph.layers,
        context=graph.context,
        eps=norms[0].float_attr("eps", 0),
        ropes=tables,
        scale=None if scale is None else attention.float_attr("scale", 0),
        tied=graph.tied,
        table=graph.embed[0].weights["table"],
        attention_norm=before[0].weights["g"],
        ffn_norm=before[1].weights["g"],
        final_norm=before[2].weights["g"],
        post_norms=(norms[1].weights["g"], norms[3].weights["g"]) if len(norms) == 5 else None,
        matrices=matrices,
        sinks=attention.weights.get("sinks"),
        head_norms=(head_norms[0].weights["g"], head_norms[1].weights["g"]) if head_norms else None,
        experts=experts,
        kinds=tuple(
            LayerKind(window if isinstance(window, int) else None, tables.index(rope))
            for window, rope in zip(windows, ropes[0], strict=True)
        ),
        embed_scale=graph.embed[0].float_attr("scale", 0) if "scale" in graph.embed[0].attrs else 1.0,
        activation=gates[0] if gates else "",
    )


def _ropes(graph: ModelGraph, node: Node) -> list[tuple[float, str | None]]:
    """(theta, scaling) of each layer."""
    return [(node.float_attr("theta", layer), node.text_attr("scaling", layer)) for layer in range(graph.layers)]


def _experts(graph: ModelGraph, matrices: dict[str, Matrix]) -> Experts | None:
    """The mixture of a layer, its matrices added to the others; None where there is none."""
    if not any(node.op == "experts" for node in graph.layer):
        return None
    route, experts = _only(graph.layer, "route"), _only(graph.layer, "experts")
    matrices["router"] = Matrix(route.weights["w"], route.weights.get("bias"))
    for name in ("gate", "up", "down"):
        matrices[f"expert_{name}"] = Matrix(experts.weights[name], experts.weights.get(f"{name}_bias"))
    return Experts(
        count=experts.int_attr("experts", 0),
        top_k=route.int_attr("top_k", 0),
        score=str(route.attr("score", 0)),
        scale=route.float_attr("scale", 0),
        activation=str(experts.attr("activation", 0)),
        alpha=experts.float_attr("alpha", 0),
        limit=experts.float_attr("limit", 0),
    )


def _only(nodes: Iterable[Node], op: str) -> Node:
    return next(node for node in nodes if node.op == op)

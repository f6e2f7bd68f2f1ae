"""What the compiler knows of a model: its graph, matched against the operations that have kernels.

A graph with an operation or an arrangement that no kernel serves is refused with the whole list, never in part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from systolith.models.graph import ModelGraph, Node, WeightRef, unsupported
from systolith.spec.errors import ModelError

__all__ = ["DecoderModel", "Experts", "LayerKind", "Matrix", "match", "periods"]

KERNELS = (
    "embed", "rms_norm", "linear", "head_norm", "rope", "cache_append", "attention", "route", "experts", "add",
    "select", "columns", "head_linear", "latent_append", "latent_attention",
)  # fmt: skip
"""Operations that have a kernel, beside the activations (kernels/activation.py)."""

_QKV = ("rms_norm", "linear", "linear", "linear")
_ATTENTION = ("rope", "rope", "cache_append", "attention", "linear")
_DENSE = ("linear", "linear", "activation", "linear")
_EXPERTS = ("route", "experts")
_SHARED = (*_EXPERTS, *_DENSE, "add")
_LATENT = tuple(
    ("rms_norm", *q, "columns", "head_linear", "columns", "rope", "linear", "columns", "rms_norm", "columns", "rope",
     "latent_append", "latent_attention", "head_linear", "linear")
    for q in (("linear",), ("linear", "rms_norm", "linear"))
)  # fmt: skip
"""Operations of latent attention: q of one matrix, or of two with a norm between them."""
_LAYERS = tuple((*latent, "add", "rms_norm", *ffn, "add") for latent in _LATENT for ffn in (_DENSE, _EXPERTS, _SHARED))
_LAYERS += tuple(
    (*_QKV, *norms, *_ATTENTION, *post, "add", "rms_norm", *ffn, *post, "add")
    for norms in ((), ("head_norm", "head_norm"))
    for post in ((), ("rms_norm",))
    for ffn in (_DENSE, _EXPERTS, _SHARED)
    if not post or ffn is _DENSE
)
"""Operations of a layer: without and with norms of the heads of q and k; without and with norms before what is added;
one feed-forward, a mixture of experts, or one with an expert that all rows share."""

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
    """A mixture of experts. count: experts; top_k: of them for a row; score, normalise, scale, groups, top_groups: as
    in the operation `route`; activation, alpha, limit: as in `experts`; correction: what enters the choice only."""

    count: int
    top_k: int
    score: str
    normalise: bool
    scale: float
    groups: int
    top_groups: int
    activation: str
    alpha: float
    limit: float
    correction: WeightRef | None


@dataclass(frozen=True, slots=True)
class Latent:
    """Latent attention: one row for all heads. rank: elements of the latent; plain, turned: of a head of q; value: of
    what a head gives; q_rank: between the two matrices of q, or None; interleaved: whether pairs lie side by side;
    q_norm, norm: gains; eps: of both norms."""

    rank: int
    plain: int
    turned: int
    value: int
    q_rank: int | None
    interleaved: bool
    q_norm: WeightRef | None
    norm: WeightRef
    eps: float


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What may differ between layers. window: tokens that a row sees, or None; rope: index of the rotary table;
    experts: whether it has a mixture of experts."""

    window: int | None
    rope: int = 0
    experts: bool = False


@dataclass(frozen=True, slots=True)
class DecoderModel:
    """A pre-norm decoder with rotary attention, grouped or latent, and a gated feed-forward. Sizes are unpadded; `eps`
    and `scale` (None: 1/sqrt(d)) are binary64 as in the config; `ropes` has (theta, `RopeScaling.text` or None) of each
    rotary table; `activation` is the operation of gate and up ("" where all are experts); `embed_scale` multiplies the
    table's rows; `post_norms` are the gains of norms of what o and down give, before it is added; `inner` is that of
    one expert where there are `experts`; `kinds` has an entry for each layer. Matrices by class; an expert that all
    rows share has classes shared_gate, shared_up and shared_down. With `latent` attention there is one KV head, the
    latent, and head_dim is its rank; q makes the heads of q, from what q_a gives where that is there, kv_a the latent
    and the turned row; k and v are the matrices of each head."""

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
    latent: Latent | None = None

    @property
    def turned(self) -> int:
        """Elements of a head that rotary turns."""
        return self.head_dim if self.latent is None else self.latent.turned

    @property
    def value_dim(self) -> int:
        """Elements of a head of what o takes."""
        return self.head_dim if self.latent is None else self.latent.value

    @property
    def layer_norms(self) -> tuple[WeightRef, ...]:
        """Gains of a layer in the order of their use: before q, k, v; of what o gives; before gate and up; of what down
        gives."""
        first, second = self.attention_norm, self.ffn_norm
        return (first, second) if self.post_norms is None else (first, self.post_norms[0], second, self.post_norms[1])

    def bias(self, name: str) -> bool:
        """Whether the matrices of a class have a bias; of "qkv", if those of q have one."""
        return self.matrices["q" if name == "qkv" else name].bias is not None

    def inner_of(self, name: str) -> int:
        """Columns of the gates of a class, unpadded: "gate", "shared_gate" or "expert_gate"."""
        return self.matrices[name].weight.shape[0]

    def layers_of(self, name: str) -> tuple[int, ...]:
        """Numbers of the layers that have a matrix of a class."""
        if name in ("gate", "up", "down"):
            return tuple(n for n, kind in enumerate(self.kinds) if not kind.experts)
        if name == "router" or name.startswith(("expert_", "shared_")):
            return tuple(n for n, kind in enumerate(self.kinds) if kind.experts)
        return tuple(range(self.layers))


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
    layers = [graph.body(number) for number in range(graph.layers)]
    bodies: list[tuple[Node, ...]] = []
    for body in layers:
        if body not in bodies:
            bodies.append(body)
    faults = [f"operation {name}" for name in unsupported(graph, {*KERNELS, *activations})]
    if not all(tuple("activation" if n.op in activations else n.op for n in body) in _LAYERS for body in bodies):
        faults.append(
            "a layer other than norm, q, k, v, rotary, attention, o, add, norm and gate, up, activation, down, add or "
            "route, experts, add"
        )
    elif _differ(bodies, activations):
        faults.append("layers that differ in more than whether they have experts")
    if tuple(node.op for node in graph.head) != ("select", "rms_norm", "linear") or len(graph.embed) != 1:
        faults.append("an embedding or head other than table, select, norm, linear")
    if any("bias" in node.weights for node in graph.head):
        faults.append("a bias of the head")
    for body in bodies:
        faults += _attr_faults(body)
    ropes = [_ropes(graph, node) for node in bodies[0] if node.op == "rope"]
    if any(each != ropes[0] for each in ropes):
        faults.append("rotary that differs between q and k")
    if faults:
        raise ModelError(
            f"model {graph.name}: no kernel for {'; '.join(dict.fromkeys(faults))}; register kernels for them"
        )
    layer = bodies[0]
    matrices: dict[str, Matrix] = {}
    for body in bodies:
        matrices |= _matrices_of(body)
    head = graph.head[2]
    matrices["head"] = Matrix(head.weights["w"], head.weights.get("bias"))
    latent = _latent(layer)
    attention = _only(layer, "attention" if latent is None else "latent_attention")
    norms = [node for node in layer if node.op == "rms_norm"] + [graph.head[1]]
    if latent is not None:
        norms = [layer[0], layer[_second_norm(layer)], graph.head[1]]
    head_norms = [node for node in layer if node.op == "head_norm"]
    if len({n.attr("eps", 0) for n in (*norms, *head_norms)}) > 1:
        raise ModelError(f"model {graph.name}: no kernel for norms with different eps; register a kernel for them")
    scale = attention.attr("scale", 0)  # null is 1 / sqrt(head_dim)
    tables = tuple(dict.fromkeys(ropes[0]))
    before = norms if len(norms) == 3 else [norms[0], norms[2], norms[4]]
    experts = [body for body in bodies if _mixed(body)]
    return DecoderModel(
        name=graph.name,
        hidden=graph.hidden,
        inner=matrices["expert_gate" if experts else "gate"].weight.shape[0],
        heads=attention.int_attr("heads", 0),
        kv_heads=attention.int_attr("kv_heads", 0) if latent is None else 1,
        head_dim=attention.int_attr("head_dim", 0) if latent is None else latent.rank,
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
        experts=_experts(experts[0]) if experts else None,
        kinds=tuple(
            LayerKind(_window(attention, number), tables.index(rope), _mixed(body))
            for number, (body, rope) in enumerate(zip(layers, ropes[0], strict=True))
        ),
        embed_scale=graph.embed[0].float_attr("scale", 0) if "scale" in graph.embed[0].attrs else 1.0,
        activation=next((node.op for body in bodies for node in body if node.op in activations), ""),
        latent=latent,
    )


def _latent(body: Sequence[Node]) -> Latent | None:
    """The latent attention of a layer, where it has one."""
    if not any(node.op == "latent_attention" for node in body):
        return None
    attention, rope = _only(body, "latent_attention"), _only(body, "rope")
    norms = [node for node in body[1 : _second_norm(body)] if node.op == "rms_norm"]
    key, value = (node.weights["w"] for node in body if node.op == "head_linear")
    return Latent(
        rank=attention.int_attr("latent", 0),
        plain=key.shape[1],
        turned=attention.int_attr("rope_dim", 0),
        value=value.shape[0],
        q_rank=norms[0].weights["g"].shape[0] if len(norms) == 2 else None,
        interleaved=bool(rope.attr("interleaved", 0)),
        q_norm=norms[0].weights["g"] if len(norms) == 2 else None,
        norm=norms[-1].weights["g"],
        eps=norms[-1].float_attr("eps", 0),
    )


def _mixed(body: Iterable[Node]) -> bool:
    """Whether a layer has a mixture of experts."""
    return any(node.op == "experts" for node in body)


def _differ(bodies: Sequence[tuple[Node, ...]], activations: Collection[str]) -> bool:
    """Whether layers differ in more than this: some have a mixture of experts where others have a feed-forward."""
    if len(bodies) > 2 or len({_mixed(body) for body in bodies}) < len(bodies):
        return True
    gates = {node.op for body in bodies for node in body if node.op in activations}
    starts = {_second_norm(body): body for body in bodies}
    return (
        len(gates) > 1
        or len(starts) > 1
        or any(body[: _second_norm(body) + 1] != bodies[0][: _second_norm(body) + 1] for body in bodies)
    )


def _second_norm(body: Sequence[Node]) -> int:
    """Place of the norm that the feed-forward part starts from: behind the first addition to the stream."""
    return next(place for place, node in enumerate(body) if node.op == "add") + 1


def _attr_faults(body: Iterable[Node]) -> Iterator[str]:
    """Attributes of a layer's nodes that no kernel takes."""
    for node in body:
        for name, value in node.attrs.items():
            if isinstance(value, tuple) and len(set(value)) > 1 and (node.op, name) not in _MAY_VARY:
                yield f"{node.op}.{name} that differs from layer to layer"
        if node.op == "experts" and node.attr("activation", 0) not in ("silu", "swiglu_clamped"):
            yield f"experts with {node.attr('activation', 0)}"


def _window(attention: Node, layer: int) -> int | None:
    window = attention.attr("window", layer) if attention.op == "attention" else None
    return window if isinstance(window, int) else None


def _ropes(graph: ModelGraph, node: Node) -> list[tuple[float, str | None]]:
    """(theta, scaling) of each layer."""
    return [(node.float_attr("theta", layer), node.text_attr("scaling", layer)) for layer in range(graph.layers)]


def _matrices_of(body: Sequence[Node]) -> dict[str, Matrix]:
    """The matrices of a layer by class."""
    dense, names = ("gate", "up", "down"), ["q", "k", "v", "o"]
    matrices: dict[str, Matrix] = {}
    if _mixed(body):
        route, experts = _only(body, "route"), _only(body, "experts")
        matrices["router"] = Matrix(route.weights["w"], route.weights.get("bias"))
        for name in dense:
            matrices[f"expert_{name}"] = Matrix(experts.weights[name], experts.weights.get(f"{name}_bias"))
        dense = ("shared_gate", "shared_up", "shared_down")
    linears = [node for node in body if node.op == "linear"]
    heads = [node for node in body if node.op == "head_linear"]
    if heads:
        names = ["q", "kv_a", "o"] if body[2].op == "columns" else ["q_a", "q", "kv_a", "o"]
        matrices |= {name: Matrix(n.weights["w"], None) for name, n in zip("kv", heads, strict=True)}
    names += dense[: len(linears) - len(names)]
    first = {name: Matrix(n.weights["w"], n.weights.get("bias")) for name, n in zip(names, linears, strict=True)}
    return first | matrices


def _experts(body: Sequence[Node]) -> Experts:
    """The mixture of a layer."""
    route, experts = _only(body, "route"), _only(body, "experts")
    return Experts(
        count=experts.int_attr("experts", 0),
        top_k=route.int_attr("top_k", 0),
        score=str(route.attr("score", 0)),
        normalise=bool(route.attr("normalise", 0)),
        scale=route.float_attr("scale", 0),
        groups=route.int_attr("groups", 0),
        top_groups=route.int_attr("top_groups", 0),
        activation=str(experts.attr("activation", 0)),
        alpha=experts.float_attr("alpha", 0),
        limit=experts.float_attr("limit", 0),
        correction=route.weights.get("correction"),
    )


def _only(nodes: Iterable[Node], op: str) -> Node:
    return next(node for node in nodes if node.op == op)

"""The operations of the model graph: one record each, with inputs, weights, attributes and the rule of shapes.

`graph` holds the nodes and graphs that are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from systolith.models.rope import RopeScaling
from systolith.spec.errors import ModelError

if TYPE_CHECKING:
    from systolith.models.graph import Node

__all__ = [
    "IDS",
    "MATRICES",
    "OPS",
    "TENSOR_CLASSES",
    "AttrSpec",
    "AttrValue",
    "OpSpec",
    "Scalar",
    "ShapeError",
    "ValueType",
    "X",
    "register_op",
]  # fmt: skip

IDS = "ids"
"""Name of the input of `embed`: token numbers [T]."""

X = "x"
"""Name of the input of a layer and of `head`: the residual stream, FP32 [T, hidden]."""

MATRICES = (
    "q", "k", "v", "o", "gate", "up", "down", "head", "router", "expert_gate", "expert_up", "expert_down",
)  # fmt: skip
"""Classes of matrices that activations are multiplied by: the names of `spans` in a numerics profile."""

TENSOR_CLASSES = (*MATRICES, "embed", "norm", "bias", "sink")
"""Classes of weights."""

Scalar = int | float | str | bool | None
AttrValue = Scalar | tuple[Scalar, ...]


class ShapeError(Exception):
    """A node's operands do not fit; `check` turns it into a line of its list."""


@dataclass(frozen=True, slots=True)
class ValueType:
    """What a value is: `kind` "ids" [T], "tokens" FP32 [T, width], "picked" FP32 [P, width] (rows that need logits),
    "cache" (K and V of the sequence so far in this layer, kv_heads of head_dim; width counts the columns of K), or
    "routes" (for each row the experts it goes to, best first, and their weights; width counts them, out of `experts`).
    """

    kind: str
    width: int
    kv_heads: int = 0
    head_dim: int = 0
    experts: int = 0


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """An attribute of an operation: kind "int", "float", "bool" or "str"; one line on its meaning; the least value
    allowed; whether null is allowed; the default, if it is not required; the strings allowed."""

    kind: str
    doc: str
    low: float | None = None
    nullable: bool = False
    required: bool = True
    default: Scalar = None
    choices: tuple[str, ...] = ()

    def default_value(self, name: str) -> Scalar:
        """The default; KeyError if the attribute is required."""
        if self.required:
            raise KeyError(f"attribute {name} is required")
        return self.default

    def fault(self, value: Scalar) -> str | None:
        """Say why a value is not allowed, or None."""
        if value is None:
            return None if self.nullable else f"must be {self.allowed}"
        types: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
        if not isinstance(value, types[self.kind]) or (isinstance(value, bool) and self.kind != "bool"):
            return f"must be {self.allowed}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"must be {self.allowed}"
        if self.low is not None and not isinstance(value, str) and value < self.low:
            return f"must be {self.allowed}"
        if self.choices and value not in self.choices:
            return f"must be {self.allowed}"
        return None

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        words = {"int": "an integer", "float": "a finite number", "bool": "true or false", "str": "a string"}[self.kind]
        if self.choices:
            words = "one of " + ", ".join(self.choices)
        if self.low is not None:
            words += f" of at least {self.low:g}"
        return words + (" or null" if self.nullable else "")


@dataclass(frozen=True)
class OpSpec:
    """An operation: number and meaning of its inputs, its weights (True: required), its attributes, its shape rule.

    `shape(node, ins, layer)` gives the type of the result or raises ShapeError; it is called when the names, weights
    and attributes have been found legal.
    """

    name: str
    ins: tuple[str, ...]
    weights: Mapping[str, bool]
    attrs: Mapping[str, AttrSpec]
    shape: Callable[[Node, list[ValueType], int | None], ValueType]
    doc: str


def _rows(value: ValueType, what: str, width: int | None = None) -> ValueType:
    """The value, if it is rows of FP32 (of a given width)."""
    if value.kind not in ("tokens", "picked"):
        raise ShapeError(f"{what} is {value.kind}, must be rows")
    if width is not None and value.width != width:
        raise ShapeError(f"{what} has {value.width} columns, must have {width}")
    return value


def _weight(node: Node, role: str, shape: tuple[int, ...]) -> None:
    """Hold the shape of a weight, where the node has it, against what it must be."""
    if role in node.weights and node.weights[role].shape != shape:
        raise ShapeError(f"weight {role} has shape {node.weights[role].shape}, must have {shape}")


def _embed(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    if ins[0].kind != "ids":
        raise ShapeError(f"{node.ins[0]} is {ins[0].kind}, must be token ids")
    shape = node.weights["table"].shape
    if len(shape) != 2:
        raise ShapeError(f"weight table has shape {shape}, must have (vocabulary, hidden)")
    return ValueType("tokens", shape[1])


def _rms_norm(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    x = _rows(ins[0], node.ins[0])
    _weight(node, "g", (x.width,))
    return x


def _linear(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    x = _rows(ins[0], node.ins[0])
    shape = node.weights["w"].shape
    if len(shape) != 2 or shape[1] != x.width:
        raise ShapeError(f"weight w has shape {shape}, must have (N, {x.width})")
    _weight(node, "bias", (shape[0],))
    return ValueType(x.kind, shape[0])


def _head_norm(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    heads, dim = node.int_attr("heads", layer), node.int_attr("head_dim", layer)
    _weight(node, "g", (dim,))
    return _rows(ins[0], node.ins[0], heads * dim)


def _rope(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    heads, dim = node.int_attr("heads", layer), node.int_attr("head_dim", layer)
    if dim % 2:
        raise ShapeError(f"head_dim={dim} must be even, rotary turns pairs (i, i + head_dim / 2)")
    scaling = node.attr("scaling", layer)
    if scaling is not None:
        try:
            RopeScaling.from_text(str(scaling))
        except ValueError as error:
            raise ShapeError(f"scaling={scaling!r} {error}") from None
    return _rows(ins[0], node.ins[0], heads * dim)


def _cache_append(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    heads, dim = node.int_attr("kv_heads", layer), node.int_attr("head_dim", layer)
    for value, name in zip(ins, node.ins, strict=True):
        _rows(value, name, heads * dim)
    return ValueType("cache", heads * dim, heads, dim)


def _attention(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    heads, kv_heads, dim = (node.int_attr(name, layer) for name in ("heads", "kv_heads", "head_dim"))
    if heads % kv_heads:
        raise ShapeError(f"heads={heads} must be a multiple of kv_heads={kv_heads}")
    q = _rows(ins[0], node.ins[0], heads * dim)
    if ins[1].kind != "cache" or (ins[1].kv_heads, ins[1].head_dim) != (kv_heads, dim):
        raise ShapeError(f"{node.ins[1]} must be a cache of {kv_heads} heads of {dim}")
    _weight(node, "sinks", (heads,))
    return q


def _same(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    a, b = (_rows(value, name) for value, name in zip(ins, node.ins, strict=True))
    if a != b:
        raise ShapeError(f"{node.ins[0]} has {a.width} columns and {node.ins[1]} {b.width}, must have equally many")
    return a


def _select(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    x = _rows(ins[0], node.ins[0])
    if x.kind == "picked":
        raise ShapeError(f"the rows of {node.ins[0]} have been selected before")
    return ValueType("picked", x.width)


def _columns(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    heads, dim, start, width = (node.int_attr(name, layer) for name in ("heads", "head_dim", "start", "width"))
    if start + width > dim:
        raise ShapeError(f"start={start} and width={width} must lie within head_dim={dim}")
    return ValueType(_rows(ins[0], node.ins[0], heads * dim).kind, heads * width)


def _head_linear(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    heads, ref = node.int_attr("heads", layer), node.weights["w"]
    if ref.experts != heads:
        raise ShapeError(f"weight w belongs to {ref.experts} heads, must belong to each of {heads}")
    if len(ref.shape) != 2 or heads * ref.shape[1] != ins[0].width:
        raise ShapeError(f"weight w has shape {ref.shape}, must have (N, {ins[0].width // heads})")
    return ValueType(_rows(ins[0], node.ins[0]).kind, heads * ref.shape[0])


def _latent_append(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    latent, turned = (_rows(value, name).width for value, name in zip(ins, node.ins, strict=True))
    return ValueType("cache", latent + turned, 1, latent + turned)


def _latent_attention(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    heads, latent, turned = (node.int_attr(name, layer) for name in ("heads", "latent", "rope_dim"))
    _rows(ins[1], node.ins[1], heads * turned)
    if ins[2].kind != "cache" or (ins[2].kv_heads, ins[2].head_dim) != (1, latent + turned):
        raise ShapeError(f"{node.ins[2]} must be a cache of 1 head of {latent + turned}")
    return _rows(ins[0], node.ins[0], heads * latent)


def _route(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    x = _rows(ins[0], node.ins[0])
    shape = node.weights["w"].shape
    if len(shape) != 2 or shape[1] != x.width:
        raise ShapeError(f"weight w has shape {shape}, must have (experts, {x.width})")
    count, top_k = shape[0], node.int_attr("top_k", layer)
    groups, top_groups = node.int_attr("groups", layer), node.int_attr("top_groups", layer)
    for role in ("bias", "correction"):
        _weight(node, role, (count,))
    if node.attr("score", layer) != "sigmoid" and (groups != 1 or "correction" in node.weights):
        raise ShapeError("groups and a correction go with the score sigmoid only")
    if count % groups or (groups > 1 and count < 2 * groups):
        raise ShapeError(f"groups={groups} must divide the {count} experts into equal groups of at least 2")
    if top_groups > groups:
        raise ShapeError(f"top_groups={top_groups} must be at most groups={groups}")
    if top_k > count // groups * top_groups:
        raise ShapeError(f"top_k={top_k} must be at most the {count // groups * top_groups} experts of the best groups")
    return ValueType("routes", top_k, experts=count)


def _experts(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    x, count = _rows(ins[0], node.ins[0]), node.int_attr("experts", layer)
    if ins[1].kind != "routes":
        raise ShapeError(f"{node.ins[1]} is {ins[1].kind}, must be routes")
    if ins[1].experts != count:
        raise ShapeError(f"{node.ins[1]} chooses from {ins[1].experts} experts, there are {count}")
    for role, ref in node.weights.items():
        if ref.experts != count:
            raise ShapeError(f"weight {role} belongs to {ref.experts} experts, must belong to each of {count}")
    shape = node.weights["gate"].shape
    if len(shape) != 2 or shape[1] != x.width:
        raise ShapeError(f"weight gate has shape {shape}, must have (N, {x.width})")
    for role, want in (("up", shape), ("down", shape[::-1]), ("gate_bias", shape[:1]), ("up_bias", shape[:1])):
        _weight(node, role, want)
    _weight(node, "down_bias", (x.width,))
    return x


_COUNT = AttrSpec("int", "number of heads", low=1)
_DIM = AttrSpec("int", "elements of a head, unpadded", low=1)
_EPS = AttrSpec("float", "added to the mean square, binary64 as in the config (NUMERICS rounds it to FP32)", low=0.0)
_SCALE = AttrSpec("float", "multiplies the scores; null is 1 / sqrt(head_dim), exactly", nullable=True, required=False)
_THETA = AttrSpec("float", "base of the wavelengths, binary64", low=1.0)
_SCALING = AttrSpec("str", "`RopeScaling.text`; null is the plain embedding", nullable=True, required=False)
_WINDOW = AttrSpec("int", "i sees position j when i - j < window; null sees all", 1, nullable=True, required=False)

_START = AttrSpec("int", "first column of each head that is kept", low=0)
_WIDTH = AttrSpec("int", "columns of each head that are kept", low=1)
_INTERLEAVED = AttrSpec(
    "bool", "pairs (2i, 2i + 1), whose turned values become columns i and i + head_dim / 2",
    required=False, default=False,
)  # fmt: skip
_LATENT = AttrSpec("int", "elements of the latent row that all heads share", low=1)
_ROPE_DIM = AttrSpec("int", "elements of the turned row that all heads share", low=1)
_SCORE_SCALE = AttrSpec("float", "multiplies the scores", low=0.0)
_EMBED_SCALE = AttrSpec("float", "multiplies the rows, once rounded to FP32", low=0.0, required=False, default=1.0)
_TOP_K = AttrSpec("int", "experts that a row goes to", low=1)
_SCORE = AttrSpec(
    "str", "softmax over the chosen; softmax_all over all; sigmoid of each by itself",
    choices=("softmax", "softmax_all", "sigmoid"),
)  # fmt: skip
_NORMALISE = AttrSpec("bool", "sigmoid: whether weights are divided by their sum", required=False, default=True)
_ROUTE_SCALE = AttrSpec("float", "multiplies the weights at last", low=0.0, required=False, default=1.0)
_GROUPS = AttrSpec("int", "equal groups of experts; the best of them stay (sigmoid only)", 1, required=False, default=1)
_TOP_GROUPS = AttrSpec("int", "groups that stay", 1, required=False, default=1)
_EXPERTS = AttrSpec("int", "number of experts", low=1)
_ACTIVATION = AttrSpec("str", "of gate and up", choices=("silu", "swiglu_clamped", "gelu_tanh"))
_ALPHA = AttrSpec("float", "of swiglu_clamped: gain inside its sigmoid", low=0.0, required=False, default=1.702)
_LIMIT = AttrSpec("float", "of swiglu_clamped: where gate and up are cut off", low=0.0, required=False, default=7.0)

OPS: dict[str, OpSpec] = {}
"""The operations by name. `register_op` adds one from outside of the package."""


def register_op(spec: OpSpec) -> OpSpec:
    """Add an operation. Raises ModelError if the name is taken."""
    if spec.name in OPS:
        raise ModelError(f"the operation {spec.name} is registered already; choose another name")
    OPS[spec.name] = spec
    return spec


for _spec in (
    OpSpec("embed", (IDS,), {"table": True}, {"scale": _EMBED_SCALE}, _embed, "row of the table for each token"),
    OpSpec("rms_norm", ("x",), {"g": True}, {"eps": _EPS}, _rms_norm, "x / sqrt(mean(x^2) + eps) * g"),
    OpSpec("linear", ("x",), {"w": True, "bias": False}, {}, _linear, "x times w transposed, plus bias"),
    OpSpec(
        "head_norm", ("x",), {"g": True}, {"heads": _COUNT, "head_dim": _DIM, "eps": _EPS}, _head_norm,
        "rms_norm of each head by itself, one g for all heads",
    ),
    OpSpec(
        "rope", ("x",), {},
        {"heads": _COUNT, "head_dim": _DIM, "theta": _THETA, "scaling": _SCALING, "interleaved": _INTERLEAVED},
        _rope, "rotary position embedding of each head by the position of the row; pairs (i, i + head_dim / 2)",
    ),
    OpSpec(
        "cache_append", ("k", "v"), {}, {"kv_heads": _COUNT, "head_dim": _DIM}, _cache_append,
        "store K and V of these rows at their positions; the result is the cache with them in it",
    ),
    OpSpec(
        "attention", ("q", "kv"), {"sinks": False},
        {"heads": _COUNT, "kv_heads": _COUNT, "head_dim": _DIM, "scale": _SCALE, "window": _WINDOW}, _attention,
        "causal attention of each query head to KV head floor(h * kv_heads / heads); a sink adds exp(sink) to the sum",
    ),
    OpSpec(
        "columns", ("x",), {}, {"heads": _COUNT, "head_dim": _DIM, "start": _START, "width": _WIDTH}, _columns,
        "some columns of each head",
    ),
    OpSpec("head_linear", ("x",), {"w": True}, {"heads": _COUNT}, _head_linear, "each head times a matrix of its own"),
    OpSpec(
        "latent_append", ("latent", "turned"), {}, {}, _latent_append,
        "store the latent and the turned row of these rows; the result is the cache with them in it",
    ),
    OpSpec(
        "latent_attention", ("q_latent", "q_turned", "kv"), {},
        {"heads": _COUNT, "latent": _LATENT, "rope_dim": _ROPE_DIM, "scale": _SCORE_SCALE}, _latent_attention,
        "causal attention of each head to the latent and the turned rows; what is summed is the latent",
    ),
    OpSpec("silu_mul", ("gate", "up"), {}, {}, _same, "silu(gate) * up"),
    OpSpec("gelu_mul", ("gate", "up"), {}, {}, _same, "gelu_tanh(gate) * up, GELU with its tanh approximation"),
    OpSpec(
        "route", ("x",), {"w": True, "bias": False, "correction": False},
        {
            "top_k": _TOP_K, "score": _SCORE, "normalise": _NORMALISE, "scale": _ROUTE_SCALE, "groups": _GROUPS,
            "top_groups": _TOP_GROUPS,
        },
        _route, "the experts each row goes to, best first, and their weights; a correction enters the choice only",
    ),
    OpSpec(
        "experts", ("x", "routes"),
        {"gate": True, "up": True, "down": True, "gate_bias": False, "up_bias": False, "down_bias": False},
        {"experts": _EXPERTS, "activation": _ACTIVATION, "alpha": _ALPHA, "limit": _LIMIT}, _experts,
        "sum over the chosen experts of weight * (down of activation(gate of x, up of x))",
    ),
    OpSpec("add", ("a", "b"), {}, {}, _same, "a + b; x of the residual stream comes first"),
    OpSpec("select", ("x",), {}, {}, _select, "keep the rows that need logits"),
):  # fmt: skip
    register_op(_spec)

"""The model graph: tensor operations on the rows of a step, with explicit operations on the KV cache.

A graph has three sections. `embed` runs once and makes the residual row of every token; the body of a layer runs
`layers` times; `head` turns the rows that need logits into logits. A section's result is the value of its last node.
Values are named; a name is defined once in its section. The inputs that are there before a section starts are `IDS`
for `embed` and `X` (the residual) for a layer and for `head`.

Layers differ in three ways, so that no family needs another kind of graph: weight names carry `{layer}`; an attribute
that is a tuple holds one entry a layer (sliding window on alternate layers, another theta); `special` replaces the
whole body of single layers (the dense first layers of a mixture of experts).

Operations are records in `OPS`: what they take, what they give, which weights and attributes they know, and the rule of
their shapes. `check` holds a graph against these records and lists everything that is wrong with it; the compiler's
`unsupported` names what a target cannot do, all at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from systolith.models.ops import (
    IDS,
    OPS,
    TENSOR_CLASSES,
    AttrSpec,
    AttrValue,
    OpSpec,
    Scalar,
    ShapeError,
    ValueType,
    X,
    register_op,
)
from systolith.spec.errors import ModelError

__all__ = [
    "IDS",
    "OPS",
    "TENSOR_CLASSES",
    "AttrSpec",
    "AttrValue",
    "ModelGraph",
    "Node",
    "OpSpec",
    "Scalar",
    "ShapeError",
    "ValueType",
    "WeightRef",
    "X",
    "check",
    "default_lanes",
    "register_op",
    "require",
    "unsupported",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightRef:
    """A tensor of the checkpoint that a node reads.

    name : as in the checkpoint, with `{layer}` where the number of the layer stands, `{expert}` or `{head}` where that
    of the expert or head does.
    shape : (N, K) for a matrix in the layout of PyTorch (K is contracted), (N,) for a vector, (V, hidden) for a table;
    of one expert or head, where each has its own.
    tensor : class of the tensor, one of TENSOR_CLASSES; formats and spans of a profile are chosen by it.
    experts : number of experts, or of heads, that have such a tensor each; 0 where it belongs to none.
    """

    name: str
    shape: tuple[int, ...]
    tensor: str
    experts: int = 0

    def at(self, layer: int | None, expert: int | None = None) -> str:
        """Name for one layer (None outside of layers) and one expert or head (None: `{expert}` or `{head}` stays)."""
        name = self.name if layer is None else self.name.replace("{layer}", str(layer))
        return name if expert is None else name.replace("{expert}", str(expert)).replace("{head}", str(expert))

    @property
    def elements(self) -> int:
        """Number of elements of one instance."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """One operation.

    op : name in OPS.      out : name of the value it defines.      ins : names of the values it reads.
    weights : by the role the operation gives them ("w", "bias", "g", "table", "sinks", "gate", "up", "down", ...).
    attrs : scalars; a tuple has one entry for each layer.
    """

    op: str
    out: str
    ins: tuple[str, ...]
    weights: Mapping[str, WeightRef] = field(default_factory=dict)
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.op, self.out, self.ins))

    def attr(self, name: str, layer: int | None = None) -> Scalar:
        """Value of an attribute in a layer; the operation's default where the node does not give it.

        Raises KeyError for an attribute the operation does not have, and for a required one that is missing.
        """
        value = self.attrs[name] if name in self.attrs else OPS[self.op].attrs[name].default_value(name)
        if not isinstance(value, tuple):
            return value
        if layer is None:
            raise KeyError(f"{self.op}.{name} differs from layer to layer and no layer was given")
        return value[layer]

    def int_attr(self, name: str, layer: int | None = None) -> int:
        """The same for an attribute that is an integer."""
        value = self.attr(name, layer)
        if not isinstance(value, int):
            raise KeyError(f"{self.op}.{name}={value!r} is no integer")
        return value

    def float_attr(self, name: str, layer: int | None = None) -> float:
        """The same for an attribute that is a binary64 number."""
        value = self.attr(name, layer)
        if isinstance(value, str) or value is None:
            raise KeyError(f"{self.op}.{name}={value!r} is no number")
        return float(value)

    def text_attr(self, name: str, layer: int | None = None) -> str | None:
        """The same for an attribute that is a string or null."""
        value = self.attr(name, layer)
        if value is not None and not isinstance(value, str):
            raise KeyError(f"{self.op}.{name}={value!r} is no string")
        return value


@dataclass(frozen=True)
class ModelGraph:
    """A model: what is computed, without the numbers.

    name : for people.     architecture : as in config.json.     hidden, vocab, layers : sizes, unpadded.
    context : most positions of a sequence.      eos_ids : tokens that stop; bos_id : first token or None.
    special : bodies of single layers that replace `layer`.
    """

    name: str
    architecture: str
    hidden: int
    vocab: int
    layers: int
    context: int
    embed: tuple[Node, ...]
    layer: tuple[Node, ...]
    head: tuple[Node, ...]
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    special: Mapping[int, tuple[Node, ...]] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.name, self.architecture, self.hidden, self.vocab, self.layers, self.context, self.layer))

    def body(self, layer: int) -> tuple[Node, ...]:
        """Nodes of one layer."""
        return self.special.get(layer, self.layer)

    def sections(self) -> Iterator[tuple[str, int | None, tuple[Node, ...]]]:
        """All sections in the order of execution: (name, layer or None, nodes)."""
        yield "embed", None, self.embed
        for layer in range(self.layers):
            yield "layer", layer, self.body(layer)
        yield "head", None, self.head

    def weights(self) -> Iterator[tuple[str, WeightRef]]:
        """Each tensor the graph reads, once, as (name in the checkpoint, reference), in the order of first use.

        A tied table appears with the reference of its first use, class "embed"; the tensors of experts one by one.
        """
        for ref, layer in self.references():
            if ref.experts:
                yield from ((ref.at(layer, expert), ref) for expert in range(ref.experts))
            else:
                yield ref.at(layer), ref

    def references(self) -> Iterator[tuple[WeightRef, int | None]]:
        """The same with the tensors of all experts as one: (reference, layer or None outside of layers)."""
        seen: set[str] = set()
        for _, layer, nodes in self.sections():
            for node in nodes:
                for ref in node.weights.values():
                    name = ref.at(layer)
                    if name not in seen:
                        seen.add(name)
                        yield ref, layer

    @property
    def tied(self) -> bool:
        """Whether the head multiplies by the embedding table."""
        tables = {ref.name for node in self.embed for ref in node.weights.values() if ref.tensor == "embed"}
        return any(ref.name in tables for node in self.head for ref in node.weights.values() if ref.tensor == "head")

    @property
    def latent(self) -> bool:
        """Whether a layer attends to latent rows, which are key and value at once."""
        return any(node.op == "latent_attention" for body in (self.layer, *self.special.values()) for node in body)

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied table counted once, the experts all of them."""
        return sum(ref.elements * max(ref.experts, 1) for ref, _ in self.references())

    @property
    def kv_heads(self) -> int:
        """Most KV heads of a layer: what the default number of attention lanes is derived from."""
        return self._most("kv_heads")

    @property
    def heads(self) -> int:
        """Most query heads of a layer."""
        return self._most("heads")

    def _most(self, name: str) -> int:
        most = 0
        for _, layer, body in self.sections():
            for node in body:
                if node.op == "latent_attention" and name == "kv_heads":
                    most = max(most, 1)  # all heads read the one latent
                elif node.op in ("attention", "latent_attention"):
                    most = max(most, node.int_attr(name, layer))
        return most

    def with_attr(self, op: str, **attrs: AttrValue) -> ModelGraph:
        """Copy in which every node of one operation has these attributes."""

        def change(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
            return tuple(replace(n, attrs={**n.attrs, **attrs}) if n.op == op else n for n in nodes)

        return replace(
            self,
            embed=change(self.embed),
            layer=change(self.layer),
            head=change(self.head),
            special={number: change(nodes) for number, nodes in self.special.items()},
        )


def default_lanes(kv_heads: int) -> int:
    """Attention lanes R for a number of KV heads: 8 or more: 8; 1: 64; 2: 32; 3: 16; 5: 8. Source: NUMERICS rule 7."""
    if kv_heads >= 8:
        return 8
    return 1 << ((64 // max(kv_heads, 1)).bit_length() - 1)


def check(graph: ModelGraph) -> list[str]:
    """Hold a graph against the operation records; every violation is one line, in order, none twice."""
    faults: dict[str, None] = {}
    for size in ("hidden", "vocab", "layers", "context"):
        if getattr(graph, size) < 1:
            faults[f"{size}={getattr(graph, size)} must be at least 1"] = None
    shapes: dict[str, tuple[int, ...]] = {}
    for section, layer, nodes in graph.sections():
        start = ValueType("ids", 1) if section == "embed" else ValueType("tokens", graph.hidden)
        values = {IDS if section == "embed" else X: start}
        sound = True
        for node in nodes:
            for text in _check_node(node, values, graph.layers, layer):
                faults[f"{section}: {text}"] = None
                sound = False
            for role, ref in node.weights.items():
                name = ref.at(layer)
                if layer is not None and "{layer}" not in ref.name:
                    faults[f"{section}: {node.op} {node.out}: weight {role}, {name}, lacks {{layer}}"] = None
                if shapes.setdefault(name, ref.shape) != ref.shape:
                    faults[f"tensor {name} is used with shapes {shapes[name]} and {ref.shape}"] = None
        if sound:  # a result of the wrong type follows from any other fault and is not told beside one
            last = values[nodes[-1].out] if nodes else start
            want = ValueType("picked", graph.vocab) if section == "head" else ValueType("tokens", graph.hidden)
            if last != want:
                result = f"{last.kind} [{last.width}], must be {want.kind} [{want.width}]"
                faults[f"{section}: its result is {result}"] = None
    for number in graph.special:
        if not 0 <= number < graph.layers:
            faults[f"special: there is no layer {number}, the model has {graph.layers}"] = None
    return list(faults)


def require(graph: ModelGraph) -> ModelGraph:
    """The graph itself if it is legal; else ModelError with all of `check` in one sentence."""
    faults = check(graph)
    if faults:
        raise ModelError(f"model graph {graph.name}: " + "; ".join(faults))
    return graph


def unsupported(graph: ModelGraph, ops: Collection[str]) -> list[str]:
    """Operations of the graph that are not among `ops`, each with the number of its nodes: ["head_norm (2)", ...].

    A target (the compiler, the interpreter) refuses a graph with this whole list, never with its first entry only.
    """
    counts: dict[str, int] = {}
    for nodes in (graph.embed, graph.layer, *graph.special.values(), graph.head):
        for node in nodes:
            if node.op not in ops:
                counts[node.op] = counts.get(node.op, 0) + 1
    return [f"{op} ({count})" for op, count in sorted(counts.items())]


def _check_node(node: Node, values: dict[str, ValueType], layers: int, layer: int | None) -> Iterator[str]:
    """Check one node and add its result to `values`; after a fault the result is unknown, and no further fault."""
    where = f"{node.op} {node.out}"
    unknown = ValueType("unknown", -1)
    redefined = node.out in values
    ins = [values.get(name, unknown) for name in node.ins]
    missing = [name for name in node.ins if name not in values]
    values[node.out] = unknown
    if redefined:
        yield f"{where}: the value {node.out} is defined twice"
    if missing:
        yield f"{where}: reads {', '.join(missing)}, which no earlier node of the section defines"
    spec = OPS.get(node.op)
    if spec is None:
        yield f"{where}: there is no operation {node.op} (known: {', '.join(sorted(OPS))})"
        return
    faults = list(_check_record(node, spec, layers, layer))
    yield from (f"{where}: {fault}" for fault in faults)
    if faults or unknown in ins:
        return
    try:
        values[node.out] = spec.shape(node, ins, layer)
    except ShapeError as error:
        yield f"{where}: {error}"


def _check_record(node: Node, spec: OpSpec, layers: int, layer: int | None) -> Iterator[str]:
    """Faults of a node's own record: number of inputs, roles and classes of weights, names and values of attributes."""
    if len(node.ins) != len(spec.ins):
        yield f"has {len(node.ins)} inputs, must have {len(spec.ins)} ({', '.join(spec.ins)})"
    for role in sorted(set(node.weights) - set(spec.weights)):
        yield f"has no weight {role} (known: {', '.join(spec.weights) or 'none'})"
    for role in (r for r, needed in spec.weights.items() if needed and r not in node.weights):
        yield f"lacks its weight {role}"
    for role, ref in node.weights.items():
        if ref.tensor not in TENSOR_CLASSES:
            yield f"the class {ref.tensor} of weight {role} is none of {', '.join(TENSOR_CLASSES)}"
        if any(size < 1 for size in ref.shape):
            yield f"the shape {ref.shape} of weight {role} must have sizes of at least 1"
        if (ref.experts > 0) != ("{expert}" in ref.name or "{head}" in ref.name):
            yield f"weight {role} belongs to {ref.experts} experts, its name {ref.name} must have {{expert}} if to any"
    for name in sorted(set(node.attrs) - set(spec.attrs)):
        yield f"has no attribute {name} (known: {', '.join(spec.attrs) or 'none'})"
    for name, attr in spec.attrs.items():
        if name not in node.attrs:
            if attr.required:
                yield f"lacks its attribute {name}, {attr.allowed}"
            continue
        value = node.attrs[name]
        if isinstance(value, tuple) and (layer is None or len(value) != layers):
            yield f"{name} has {len(value)} entries, must have one for each of {layers} layers"
            continue
        for entry in dict.fromkeys(value) if isinstance(value, tuple) else (value,):
            fault = attr.fault(entry)
            if fault:
                yield f"{name}={entry!r} {fault}"

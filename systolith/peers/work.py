"""What a model asks of any device: its products, attention, vector traffic and reductions, counted from its graph.

Engines run fewer kernels than a graph has nodes: products of one input are one (q, k and v; gate and up), a norm takes
the addition before it along, a rotary turn the append to the cache. The rules stand in KERNELS and `_fused`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from systolith.models.graph import ModelGraph, Node, WeightRef, X
from systolith.models.ops import Scalar
from systolith.peers.architectures import model_graph

__all__ = ["Attend", "Product", "Work", "work_of"]

KERNELS = {
    "embed": 1, "rms_norm": 1, "layer_norm": 1, "head_norm": 0, "rope": 0, "cache_append": 1, "latent_append": 1,
    "attention": 2, "latent_attention": 2, "silu_mul": 1, "gelu_mul": 1, "gelu": 0, "route": 2, "experts": 8, "add": 0,
    "select": 0, "columns": 0, "linear": 1, "head_linear": 1,
}  # fmt: skip
"""Kernels of a node: 0 where it runs in that of another. Attention: over parts of the context, and their merging.
route: scores, and the choice. experts: rows counted and sorted by expert (3), spread, two products, an activation, the
weighted sum, as TensorRT-LLM's cutlass_kernels/moe_gemm has them."""


@dataclass(frozen=True)
class Product:
    """Rows times a matrix [n, k], once in each of `layers` layers.

    copies : matrices of a layer, one a head or an expert.      top_k : copies that a row meets; 0: all of them.
    split : how tensor parallelism cuts it: "column" (by n), "row" (by k), "whole" (not), "expert".
    tensor : "linear", "expert", "head" or "router": what its format follows from.
    """

    name: str
    n: int
    k: int
    layers: int
    copies: int
    top_k: int
    split: str
    tensor: str

    @property
    def elements(self) -> int:
        """Elements of the weights of one layer."""
        return self.n * self.k * self.copies

    @property
    def products(self) -> int:
        """Multiply-adds of a row in one layer."""
        return self.n * self.k * (self.top_k or self.copies)

    @property
    def io(self) -> tuple[int, int]:
        """Elements of a row that go in and come out, in one layer."""
        if self.tensor == "expert":
            return self.top_k * self.k, self.top_k * self.n
        return self.k * self.copies, self.n * self.copies


@dataclass(frozen=True)
class Attend:
    """Attention of `layers` layers.

    kv : elements kept of a token and layer.      kv_heads : heads that tensor parallelism may deal out; 1 for a latent.
    products : multiply-adds of a pair of a row and a position it sees, all heads; first : of a prompt's own pairs.
    width : columns of q and of what is summed, all heads.      window : positions seen; None: all.
    """

    layers: int
    heads: int
    kv_heads: int
    kv: int
    products: int
    first: int
    width: int
    window: int | None


@dataclass(frozen=True)
class Work:
    """All of a model. Elements are of a row in a step, over all layers.

    whole : vector elements that every device of a tensor-parallel group moves; split : those it moves its part of.
    kernels : of a step.      quantised : products whose rows a kernel of its own narrows, where activations are narrow.
    reductions : all-reduces of a tensor-parallel step.
    exchanges : layers whose rows go to experts.      latent : whether keys and values are one latent row.
    """

    name: str
    hidden: int
    vocab: int
    layers: int
    context: int
    products: tuple[Product, ...]
    attends: tuple[Attend, ...]
    whole: int
    split: int
    kernels: int
    quantised: int
    reductions: int
    exchanges: int
    top_k: int
    latent: bool
    embed: int
    native_expert_bits: float | None

    @property
    def parameters(self) -> int:
        """Elements of all matrices and of the embedding table."""
        return self.embed + sum(p.elements * p.layers for p in self.products)

    def kv_elements(self, context: int) -> int:
        """Elements that a sequence keeps, all layers."""
        return sum(a.layers * a.kv * (context if a.window is None else min(context, a.window)) for a in self.attends)


@functools.cache
def work_of(name: str) -> Work:
    """Count a model of the package. Raises ModelError for one that it has no config facts of."""
    return count(model_graph(name))


def count(graph: ModelGraph) -> Work:
    """Count a graph."""
    products: dict[Product, int] = {}
    attends: dict[Attend, int] = {}
    whole = split = kernels = reductions = exchanges = 0
    top_k = 0
    for section, layer, nodes in graph.sections():
        for product in _products(nodes, layer, graph.latent):
            products[product] = products.get(product, 0) + 1
            top_k = max(top_k, product.top_k)
        for attend in _attends(nodes, layer):
            attends[attend] = attends.get(attend, 0) + 1
        a, b = _vector(nodes, layer, graph.hidden)
        whole, split = whole + a, split + b
        kernels += sum(KERNELS[node.op] for node in nodes) - _fused(nodes)
        if section == "layer":
            reductions += _reductions(nodes)
            exchanges += any(node.op == "experts" for node in nodes)
    return Work(
        name=graph.name,
        hidden=graph.hidden,
        vocab=graph.vocab,
        layers=graph.layers,
        context=graph.context,
        products=tuple(replace(p, layers=n) for p, n in products.items()),
        attends=tuple(replace(a, layers=n) for a, n in attends.items()),
        whole=whole,
        split=split,
        kernels=kernels,
        quantised=sum(n for p, n in products.items() if p.tensor in ("linear", "expert")),
        reductions=reductions,
        exchanges=exchanges,
        top_k=top_k,
        latent=graph.latent,
        embed=0 if graph.tied else graph.vocab * graph.hidden,
        native_expert_bits=4.25 if graph.architecture == "GptOssForCausalLM" else None,
    )


def _groups(nodes: Sequence[Node]) -> list[list[Node]]:
    """The linear nodes, those of one input together."""
    found: dict[str, list[Node]] = {}
    for node in nodes:
        if node.op == "linear":
            found.setdefault(node.ins[0], []).append(node)
    return list(found.values())


def _fused(nodes: Sequence[Node]) -> int:
    """Kernels that a graph's linear nodes do not cost, as those of one input are one product."""
    return sum(len(group) - 1 for group in _groups(nodes))


def _products(nodes: Sequence[Node], layer: int | None, latent: bool) -> Iterator[Product]:
    for group in _groups(nodes):
        refs = [node.weights["w"] for node in group]
        classes = {ref.tensor for ref in refs}
        split = "row" if classes <= {"o", "down"} else "column"
        if latent and "k" in classes:
            split = "whole"  # the low rows, which every head reads
        tensor = "head" if classes == {"head"} else "linear"
        name = "+".join(node.out for node in group)
        yield Product(name, sum(ref.shape[0] for ref in refs), refs[0].shape[1], 1, 1, 0, split, tensor)
    for node in nodes:
        if node.op == "head_linear":
            ref = node.weights["w"]
            yield Product(node.out, ref.shape[0], ref.shape[1], 1, ref.experts, 0, "column", "linear")
        elif node.op == "route":
            ref = node.weights["w"]
            yield Product("router", ref.shape[0], ref.shape[1], 1, 1, 0, "whole", "router")
        elif node.op == "experts":
            gate, down = node.weights["gate"], node.weights["down"]
            top_k = _top_k(nodes, node, layer)
            yield Product(
                "expert_gate_up", 2 * gate.shape[0], gate.shape[1], 1, gate.experts, top_k, "expert", "expert"
            )
            yield Product("expert_down", down.shape[0], down.shape[1], 1, down.experts, top_k, "expert", "expert")


def _top_k(nodes: Sequence[Node], experts: Node, layer: int | None) -> int:
    route = next(node for node in nodes if node.out == experts.ins[1])
    return route.int_attr("top_k", layer)


def _attends(nodes: Sequence[Node], layer: int | None) -> Iterator[Attend]:
    for node in nodes:
        if node.op == "attention":
            heads, kv_heads, dim = (node.int_attr(name, layer) for name in ("heads", "kv_heads", "head_dim"))
            window: Scalar = node.attr("window", layer)
            seen = window if isinstance(window, int) else None
            yield Attend(
                1, heads, kv_heads, 2 * kv_heads * dim, 2 * heads * dim, 2 * heads * dim, 2 * heads * dim, seen
            )
        elif node.op == "latent_attention":
            heads, rank, turned = (node.int_attr(name, layer) for name in ("heads", "latent", "rope_dim"))
            to_key, to_value = (n.weights["w"] for n in nodes if n.op == "head_linear")
            first = heads * (to_key.shape[1] + turned + to_value.shape[0])  # a prompt's keys and values are made
            yield Attend(
                1, heads, 1, rank + turned, heads * (2 * rank + turned), first, heads * (2 * rank + turned), None
            )


def _vector(nodes: Sequence[Node], layer: int | None, hidden: int) -> tuple[int, int]:
    """Elements that kernels other than products read and write of a row: (by all devices, dealt out)."""
    whole = split = 0
    widths = _widths(nodes)
    for node in nodes:
        if node.op in ("rms_norm", "layer_norm"):
            width = node.weights["g"].shape[0]
            whole += 4 * width if width == hidden else 2 * width  # with the addition: two in, two out
        elif node.op in ("silu_mul", "gelu_mul"):
            split += 3 * widths[node.ins[0]]
        elif node.op == "embed":
            whole += 2 * hidden
        elif node.op in ("attention", "latent_attention"):
            attend = next(_attends([n for n in nodes if n is node or n.op == "head_linear"], layer))
            split += 2 * attend.width + 2 * attend.kv  # turned, then read and summed
        elif node.op == "experts":
            top_k, inner = _top_k(nodes, node, layer), node.weights["gate"].shape[0]
            split += 3 * top_k * inner
            whole += 2 * hidden + 2 * top_k * hidden  # permuted, and summed with weights
    return whole, split


def _widths(nodes: Sequence[Node]) -> dict[str, int]:
    def width(ref: WeightRef) -> int:
        return ref.shape[0]

    return {node.out: width(node.weights["w"]) for node in nodes if node.op == "linear"}


def _reductions(nodes: Sequence[Node]) -> int:
    """Additions to the residual stream: what is added must be whole there, and not before."""
    residual = {X}
    found = 0
    for node in nodes:
        if node.op == "add" and node.ins[0] in residual:
            residual.add(node.out)
            found += 1
    return found

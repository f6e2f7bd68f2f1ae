"""Feed-forward parts of a layer: from its normed rows `b` to what is added to the residual stream.

A part is a run of nodes; the value of its last node is the result. Names of tensors carry `{layer}` and, of experts,
`{expert}`.
"""

from __future__ import annotations

from systolith.models.config import ModelConfig
from systolith.models.graph import Node, WeightRef
from systolith.models.ops import AttrValue

__all__ = ["dense", "mixture", "projection"]

_LAYER = "model.layers.{layer}."


def projection(name: str, out: int, contracted: int, kind: str, bias: bool = False) -> dict[str, WeightRef]:
    """Weights of a `linear` in a layer: `name`.weight [out, contracted] of a class, and `name`.bias."""
    weights = {"w": WeightRef(f"{_LAYER}{name}.weight", (out, contracted), kind)}
    return weights | ({"bias": WeightRef(f"{_LAYER}{name}.bias", (out,), "bias")} if bias else {})


def dense(
    config: ModelConfig,
    *,
    inner: int | None = None,
    bias: bool = False,
    activation: str = "silu_mul",
    at: str = "mlp",
    prefix: str = "",
) -> tuple[Node, ...]:
    """down(activation(gate, up)).

    inner : columns of gate and up (none: intermediate_size).      at : where its matrices are found in a layer.
    prefix : of the names of its values, where a layer has two such parts.
    """
    hidden, inner = config.integer("hidden_size"), inner or config.integer("intermediate_size")
    gate, up, h = (prefix + name for name in ("gate", "up", "h"))
    return (
        Node("linear", gate, ("b",), projection(f"{at}.gate_proj", inner, hidden, "gate", bias)),
        Node("linear", up, ("b",), projection(f"{at}.up_proj", inner, hidden, "up", bias)),
        Node(activation, h, (gate, up)),
        Node("linear", prefix + "down", (h,), projection(f"{at}.down_proj", hidden, inner, "down", bias)),
    )


def mixture(
    config: ModelConfig,
    inner: int,
    experts: int,
    *,
    route: dict[str, AttrValue],
    router: str = "mlp.gate",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    at: str = "mlp.experts",
    router_bias: bool = False,
    correction: str | None = None,
    bias: bool = False,
    activation: dict[str, AttrValue] | None = None,
    shared: tuple[Node, ...] = (),
) -> tuple[Node, ...]:
    """A mixture of experts of `inner` columns of gate and up each.

    route : attributes of the node `route`.      router : name of its matrix.      names, at : of the experts' matrices.
    correction : name of the tensor that enters the choice only.    activation : of the experts and its numbers.
    shared : a dense part that every row also goes through.
    """
    hidden = config.integer("hidden_size")
    routed = projection(router, experts, hidden, "router", router_bias)
    if correction is not None:
        routed["correction"] = WeightRef(_LAYER + correction, (experts,), "bias")
    sizes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    weights: dict[str, WeightRef] = {}
    for name, (role, shape) in zip(names, sizes.items(), strict=True):
        path = f"{_LAYER}{at}.{{expert}}.{name}"
        weights[role] = WeightRef(f"{path}.weight", shape, f"expert_{role}", experts)
        if bias:
            weights[f"{role}_bias"] = WeightRef(f"{path}.bias", shape[:1], "bias", experts)
    chosen = activation or {"activation": "silu"}
    nodes = (
        Node("route", "routes", ("b",), routed, route),
        Node("experts", "y", ("b", "routes"), weights, {"experts": experts, **chosen}),
    )
    if not shared:
        return nodes
    return (*nodes, *shared, Node("add", "y_shared", ("y", shared[-1].out)))

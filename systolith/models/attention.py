"""Grouped attention of a layer: from its normed rows `a` to what o gives, several query heads for each KV head."""

from __future__ import annotations

from collections.abc import Mapping

from systolith.models.config import ModelConfig
from systolith.models.feed_forward import projection
from systolith.models.graph import Node, WeightRef
from systolith.models.ops import AttrValue

__all__ = ["grouped"]


def grouped(
    config: ModelConfig,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    qk_norm: bool = False,
    sinks: bool = False,
    window: AttrValue = None,
    scale: float | None = None,
    rope: Mapping[str, AttrValue] | None = None,
) -> tuple[Node, ...]:
    """Nodes of grouped attention; the sizes are read from the config, and theta and scaling unless `rope` has them.

    qk_norm : each head of q and k is normed before it is turned.      sinks : a sink for each query head.
    window : one number, null, or a tuple with an entry a layer.      scale : of the scores (none: 1 / sqrt(head_dim)).
    """
    hidden = config.integer("hidden_size")
    heads, kv_heads, dim = (config.integer(n) for n in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    q_size, kv_size = heads * dim, kv_heads * dim
    if rope is None:
        scaling = config.values.get("rope_scaling")
        scaled: dict[str, AttrValue] = {"scaling": scaling} if isinstance(scaling, str) else {}
        rope = {"theta": config.number("rope_theta"), **scaled}
    turn = {"head_dim": dim, **rope}
    attention: dict[str, AttrValue] = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "window": window}
    if scale is not None:
        attention["scale"] = scale

    def head_norm(name: str, count: int) -> tuple[Node, ...]:
        if not qk_norm:
            return ()
        gain = WeightRef("model.layers.{layer}.self_attn." + name + "_norm.weight", (dim,), "norm")
        size: dict[str, AttrValue] = {"heads": count, "head_dim": dim, "eps": config.number("rms_norm_eps")}
        return (Node("head_norm", f"{name}_normed", (f"{name}_raw",), {"g": gain}, size),)

    turned = "normed" if qk_norm else "raw"
    sink = {"sinks": WeightRef("model.layers.{layer}.self_attn.sinks", (heads,), "sink")} if sinks else {}
    return (
        Node("linear", "q_raw", ("a",), projection("self_attn.q_proj", q_size, hidden, "q", qkv_bias)),
        Node("linear", "k_raw", ("a",), projection("self_attn.k_proj", kv_size, hidden, "k", qkv_bias)),
        Node("linear", "v", ("a",), projection("self_attn.v_proj", kv_size, hidden, "v", qkv_bias)),
        *head_norm("q", heads),
        *head_norm("k", kv_heads),
        Node("rope", "q", (f"q_{turned}",), attrs={"heads": heads, **turn}),
        Node("rope", "k", (f"k_{turned}",), attrs={"heads": kv_heads, **turn}),
        Node("cache_append", "kv", ("k", "v"), attrs={"kv_heads": kv_heads, "head_dim": dim}),
        Node("attention", "attention", ("q", "kv"), sink, attention),
        Node("linear", "o", ("attention",), projection("self_attn.o_proj", hidden, q_size, "o", o_bias)),
    )

"""Multi-head latent attention of a layer: from its normed rows `a` to what o gives, all heads reading one latent row.

The latent and a turned row are all that is kept of a token. Keys and values follow from the latent by one matrix for
each head. They are not made here: q is taken through the matrix of the keys, the sum of latents through that of the
values (the absorbed form), so that a step reads the latent only. docs/numerics.md, "MLA", has the rules.

Source: "DeepSeek-V2", arXiv:2405.04434, section 2.1; DeepseekV3Attention of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping

from systolith.models.config import ModelConfig
from systolith.models.feed_forward import projection
from systolith.models.graph import Node, WeightRef
from systolith.models.layout import Stored
from systolith.models.ops import AttrValue

__all__ = ["LATENT_EPS", "key_layout", "latent"]

LATENT_EPS = 1e-6
"""Of the norms of both latents, whatever the config says of the others."""

_KV = "model.layers.{layer}.self_attn.kv_b_proj"
_KEY, _VALUE = _KV + ".{head}.key.weight", _KV + ".{head}.value.weight"


def latent(config: ModelConfig, *, rope: Mapping[str, AttrValue], scale: float, bias: bool) -> tuple[Node, ...]:
    """Nodes of latent attention. rope : theta, scaling, interleaved.      scale : of the scores.

    The fields q_lora_rank (null: q has one matrix), kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim and v_head_dim are
    read from the config.
    """
    hidden, heads, rank = (config.integer(n) for n in ("hidden_size", "num_attention_heads", "kv_lora_rank"))
    plain, turned, value = (config.integer(n) for n in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    q_rank, size = config.optional("q_lora_rank"), plain + turned

    def norm(name: str, width: int) -> dict[str, WeightRef]:
        return {"g": WeightRef("model.layers.{layer}.self_attn." + name + ".weight", (width,), "norm")}

    def columns(out: str, x: str, count: int, dim: int, start: int, width: int) -> Node:
        return Node("columns", out, (x,), {}, {"heads": count, "head_dim": dim, "start": start, "width": width})

    eps: dict[str, AttrValue] = {"eps": LATENT_EPS}
    if q_rank is None:
        queries: tuple[Node, ...] = (
            Node("linear", "q", ("a",), projection("self_attn.q_proj", heads * size, hidden, "q")),
        )
    else:
        queries = (
            Node("linear", "q_low", ("a",), projection("self_attn.q_a_proj", q_rank, hidden, "q", bias)),
            Node("rms_norm", "q_normed", ("q_low",), norm("q_a_layernorm", q_rank), eps),
            Node("linear", "q", ("q_normed",), projection("self_attn.q_b_proj", heads * size, q_rank, "q")),
        )
    turn = {"head_dim": turned, **rope}
    to_key = {"w": WeightRef(_KEY, (rank, plain), "k", heads)}
    to_value = {"w": WeightRef(_VALUE, (value, rank), "v", heads)}
    down = projection("self_attn.kv_a_proj_with_mqa", rank + turned, hidden, "k", bias)
    attrs: dict[str, AttrValue] = {"heads": heads, "latent": rank, "rope_dim": turned, "scale": scale}
    return (
        *queries,
        columns("q_plain", "q", heads, size, 0, plain),
        Node("head_linear", "q_latent", ("q_plain",), to_key, {"heads": heads}),
        columns("q_raw", "q", heads, size, plain, turned),
        Node("rope", "q_turned", ("q_raw",), attrs={"heads": heads, **turn}),
        Node("linear", "kv_low", ("a",), down),
        columns("latent_raw", "kv_low", 1, rank + turned, 0, rank),
        Node("rms_norm", "latent", ("latent_raw",), norm("kv_a_layernorm", rank), eps),
        columns("k_raw", "kv_low", 1, rank + turned, rank, turned),
        Node("rope", "k_turned", ("k_raw",), attrs={"heads": 1, **turn}),
        Node("latent_append", "kv", ("latent", "k_turned")),
        Node("latent_attention", "summed", ("q_latent", "q_turned", "kv"), {}, attrs),
        Node("head_linear", "attention", ("summed",), to_value, {"heads": heads}),
        Node("linear", "o", ("attention",), projection("self_attn.o_proj", hidden, heads * value, "o", bias)),
    )


def key_layout(config: ModelConfig, name: str, coding: str) -> Stored | None:
    """Where the matrix of a head lies in `kv_b_proj`; None for the name of another tensor."""
    plain, value = config.integer("qk_nope_head_dim"), config.integer("v_head_dim")
    if name == _KEY:
        return Stored(_KV + ".weight", transposed=True, coding=coding, pitch=plain + value)
    if name == _VALUE:
        return Stored(_KV + ".weight", coding=coding, pitch=plain + value, start=plain)
    return None

"""Llama and what is built like it: the fields of a dense decoder and its graph.

Source: LlamaForCausalLM of transformers 5.23; "LLaMA: Open and Efficient Foundation Language Models", section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping

from systolith.models.attention import grouped
from systolith.models.config import Field, ModelConfig
from systolith.models.family import Family
from systolith.models.feed_forward import dense
from systolith.models.graph import IDS, ModelGraph, Node, WeightRef, X
from systolith.models.ops import AttrValue
from systolith.models.rope import read_rope

__all__ = ["DENSE_FIELDS", "LLAMA", "decoder", "derive_dense"]

DENSE_FIELDS = (
    Field("hidden_size", "int", low=1, high=1 << 20),
    Field("intermediate_size", "int", low=1, high=1 << 22),
    Field("num_hidden_layers", "int", low=1, high=4096),
    Field("num_attention_heads", "int", low=1, high=1 << 16),
    Field("num_key_value_heads", "int", None, low=1, high=1 << 16, nullable=True),
    Field("head_dim", "int", None, low=2, high=1 << 14, nullable=True),
    Field("vocab_size", "int", low=1, high=1 << 24),
    Field("max_position_embeddings", "int", 2048, low=1, high=1 << 24),
    Field("rms_norm_eps", "float", 1e-6, low=0, high=1),
    Field("hidden_act", "str", "silu", choices=("silu", "swish")),
    Field("tie_word_embeddings", "bool", False),
    Field("bos_token_id", "int", 1, low=0, high=(1 << 24) - 1, nullable=True),
    Field("eos_token_id", "ids", 2, high=(1 << 24) - 1, nullable=True),
    Field("rope_theta", "any", None, nullable=True),
    Field("rope_scaling", "any", None, nullable=True),
    Field("rope_parameters", "any", None, nullable=True),
)
"""Fields of a dense decoder with rotary positions; positions stay below 2^24, where FP32 holds them exactly."""


def derive_dense(raw: Mapping[str, object], values: dict[str, object], theta: float = 10000.0) -> list[str]:
    """Fill in what follows from other fields (KV heads, size of a head, theta, scaling); return what contradicts.

    theta : the family's base of the wavelengths, where the file has none.
    """
    theta, scaling, faults = read_rope(raw, theta, values.get("max_position_embeddings"))
    for name in ("rope_scaling", "rope_parameters"):
        values.pop(name, None)
    values["rope_theta"] = theta
    if scaling is not None:  # a model without one keeps the hash it has always had
        values["rope_scaling"] = scaling.text
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    if isinstance(heads, int):
        if values["num_key_value_heads"] is None:
            values["num_key_value_heads"] = heads
        kv_heads = values["num_key_value_heads"]
        assert isinstance(kv_heads, int)
        if heads % kv_heads:
            faults.append(f"num_key_value_heads={kv_heads} must divide num_attention_heads={heads}")
        if values["head_dim"] is None and isinstance(hidden, int):
            if hidden % heads:
                faults.append(
                    f"hidden_size={hidden} must be a multiple of num_attention_heads={heads}, or head_dim must be given"
                )
            else:
                values["head_dim"] = hidden // heads
    head_dim = values["head_dim"]
    if isinstance(head_dim, int) and (head_dim % 2 or head_dim < 2):
        faults.append(f"head_dim={head_dim} must be even")
    vocab = values.get("vocab_size")
    for name in ("bos_token_id", "eos_token_id"):
        ids = values[name] if isinstance(values[name], list) else [values[name]]
        assert isinstance(ids, list)
        for token in ids:
            if isinstance(token, int) and isinstance(vocab, int) and token >= vocab:
                faults.append(f"{name}={token} must be below vocab_size={vocab}")
    return faults


def decoder(
    config: ModelConfig,
    attention: tuple[Node, ...],
    feed_forward: tuple[Node, ...],
    *,
    special: Mapping[int, tuple[Node, ...]] | None = None,
    sandwich: bool = False,
    embed_scale: float = 1.0,
) -> ModelGraph:
    """Graph of a decoder: RMSNorm, attention, RMSNorm, feed-forward, one residual stream.

    attention : from the first norm, `a`, to what is added (`attention.grouped`, `mla.latent`).
    feed_forward : from the second norm, `b`, to what is added (`feed_forward.dense`, `feed_forward.mixture`).
    special : the feed-forward of single layers.      sandwich : what both parts give is normed, before it is added.
    The sizes, eps and tokens are read from the config.
    """
    hidden, vocab = config.integer("hidden_size"), config.integer("vocab_size")
    eps: dict[str, AttrValue] = {"eps": config.number("rms_norm_eps")}

    def norm(name: str) -> dict[str, WeightRef]:
        return {"g": WeightRef(f"model.{name}.weight", (hidden,), "norm")}

    attended = (Node("rms_norm", "a", (X,), norm("layers.{layer}.input_layernorm"), eps), *attention)
    second = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"

    def added(x: str, part: tuple[Node, ...], gain: str, out: str) -> tuple[Node, ...]:
        """A part and its addition to the residual stream, normed before where the model has it so."""
        last = part[-1].out
        normed = (Node("rms_norm", f"{last}_normed", (last,), norm(f"layers.{{layer}}.{gain}"), eps),) * sandwich
        return (*part, *normed, Node("add", out, (x, normed[0].out if normed else last)))

    def body(part: tuple[Node, ...]) -> tuple[Node, ...]:
        return (
            *added(X, attended, "post_attention_layernorm", "x_attention"),
            Node("rms_norm", "b", ("x_attention",), norm("layers.{layer}." + second), eps),
            *added("x_attention", part, "post_feedforward_layernorm", "x_ffn"),
        )

    scaled_rows: dict[str, AttrValue] = {} if embed_scale == 1 else {"scale": embed_scale}
    table = "model.embed_tokens.weight"
    head_table = table if config.flag("tie_word_embeddings") else "lm_head.weight"
    head = (
        Node("select", "picked", (X,)),
        Node("rms_norm", "final", ("picked",), norm("norm"), eps),
        Node("linear", "logits", ("final",), {"w": WeightRef(head_table, (vocab, hidden), "head")}),
    )
    return ModelGraph(
        name=config.family,
        architecture=config.architecture,
        hidden=hidden,
        vocab=vocab,
        layers=config.integer("num_hidden_layers"),
        context=config.integer("max_position_embeddings"),
        embed=(Node("embed", X, (IDS,), {"table": WeightRef(table, (vocab, hidden), "embed")}, scaled_rows),),
        layer=body(feed_forward),
        head=head,
        eos_ids=config.ids("eos_token_id"),
        bos_id=config.optional("bos_token_id"),
        special={number: body(part) for number, part in (special or {}).items()},
    )


def _build(config: ModelConfig) -> ModelGraph:
    bias = config.flag("attention_bias")
    return decoder(config, grouped(config, qkv_bias=bias, o_bias=bias), dense(config, bias=config.flag("mlp_bias")))


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields=(
        *DENSE_FIELDS,
        Field("attention_bias", "bool", False),
        Field("mlp_bias", "bool", False),
        Field("sliding_window", "any", None, nullable=True, choices=(None,)),
    ),
    derive=derive_dense,
    build=_build,
)
"""Llama 1 to 3, with linear, llama3 or YaRN rotary scaling or none; biases where the config says so."""

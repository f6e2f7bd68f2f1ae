"""Qwen3-MoE: Qwen3's attention and a mixture of experts in each layer, or in each n-th, the others being dense.

Source: Qwen3MoeForCausalLM of transformers 5.23; "Qwen3 Technical Report", arXiv:2505.09388, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

from systolith.models._text import show
from systolith.models.attention import grouped
from systolith.models.config import Field, ModelConfig
from systolith.models.family import Family
from systolith.models.feed_forward import dense, mixture
from systolith.models.graph import ModelGraph
from systolith.models.layout import Stored
from systolith.models.llama import DENSE_FIELDS, decoder, derive_dense
from systolith.models.mixtral import count_faults

__all__ = ["QWEN3_MOE", "expert_layouts"]


def _derive(raw: Mapping[str, object], values: dict[str, object]) -> list[str]:
    """What a dense decoder derives; the two names of the number of experts; the dense layers."""
    faults = derive_dense(raw, values)
    other = values.pop("num_local_experts")
    if other is not None and "num_experts" in raw and other != values["num_experts"]:
        faults.append(f"num_experts={values['num_experts']} and num_local_experts={other} must be equal")
    values["num_experts"] = other if other is not None and "num_experts" not in raw else values["num_experts"]
    layers, only, step = values.get("num_hidden_layers"), values["mlp_only_layers"], values["decoder_sparse_step"]
    assert isinstance(step, int)
    if isinstance(layers, int):
        only = [] if only is None else only
        if not isinstance(only, list) or not all(type(i) is int and 0 <= i < layers for i in only):
            faults.append(f"mlp_only_layers={show(only)} must be a list of layers 0..{layers - 1}, or null")
            only = []
        values["mlp_only_layers"] = [i for i in range(layers) if i in only or (i + 1) % step]
    return faults + count_faults(values, "num_experts_per_tok", "num_experts")


def _build(config: ModelConfig) -> ModelGraph:
    bias = config.flag("attention_bias")
    window = config.optional("sliding_window") if config.flag("use_sliding_window") else None
    score = "softmax" if config.flag("norm_topk_prob") else "softmax_all"
    part = mixture(
        config,
        config.integer("moe_intermediate_size"),
        config.integer("num_experts"),
        route={"top_k": config.integer("num_experts_per_tok"), "score": score},
    )
    attention = grouped(config, qkv_bias=bias, o_bias=bias, qk_norm=True, window=window)
    return decoder(config, attention, part, special=dict.fromkeys(config.ids("mlp_only_layers"), dense(config)))


def expert_layouts(config: ModelConfig, name: str) -> tuple[Stored, ...]:
    """Published: a matrix of an expert by itself; as transformers 5 holds them in memory: stacks, gate above up."""
    stacks = {"gate_proj": ("gate_up_proj", 0, 2), "up_proj": ("gate_up_proj", 1, 2), "down_proj": ("down_proj", 0, 1)}
    for role, (stack, part, parts) in stacks.items():
        end = "{expert}." + role + ".weight"
        if name.endswith(end):
            return Stored(name), Stored(name.removesuffix(end) + stack, part, parts)
    return (Stored(name),)


_DEFAULTS = {
    "intermediate_size": Field("intermediate_size", "int", 6144, low=1, high=1 << 22),
    "num_key_value_heads": Field("num_key_value_heads", "int", 4, low=1, high=1 << 16, nullable=True),
    "max_position_embeddings": Field("max_position_embeddings", "int", 32768, low=1, high=1 << 24),
    "bos_token_id": Field("bos_token_id", "int", None, low=0, high=(1 << 24) - 1, nullable=True),
    "eos_token_id": Field("eos_token_id", "ids", None, high=(1 << 24) - 1, nullable=True),
}

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fields=(
        *(_DEFAULTS.get(field.name, field) for field in DENSE_FIELDS),
        Field("moe_intermediate_size", "int", 768, low=1, high=1 << 22),
        Field("num_experts", "int", 128, low=1, high=4096),
        Field("num_local_experts", "int", None, low=1, high=4096, nullable=True),
        Field("num_experts_per_tok", "int", 8, low=1, high=4096),
        Field("norm_topk_prob", "bool", False),
        Field("decoder_sparse_step", "int", 1, low=1, high=1 << 24),
        Field("mlp_only_layers", "any", None, nullable=True),
        Field("attention_bias", "bool", False),
        Field("use_sliding_window", "bool", False),
        Field("sliding_window", "int", 4096, low=1, high=1 << 24, nullable=True),
        Field("max_window_layers", "any", None, nullable=True),
    ),
    derive=_derive,
    build=_build,
    layouts=expert_layouts,
)
"""Qwen3-30B-A3B, -235B-A22B and their kind. norm_topk_prob: softmax over the chosen experts, else over all."""

"""Mixtral: Mistral's attention, and in place of the feed-forward eight experts of which each row takes two.

Source: MixtralForCausalLM of transformers 5.23; "Mixtral of Experts", arXiv:2401.04088, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

from systolith.models.attention import grouped
from systolith.models.config import Field, ModelConfig
from systolith.models.family import Family
from systolith.models.feed_forward import mixture
from systolith.models.graph import ModelGraph
from systolith.models.layout import Stored
from systolith.models.llama import DENSE_FIELDS, decoder, derive_dense

__all__ = ["MIXTRAL"]


def _build(config: ModelConfig) -> ModelGraph:
    part = mixture(
        config,
        config.integer("intermediate_size"),
        config.integer("num_local_experts"),
        route={"top_k": config.integer("num_experts_per_tok"), "score": "softmax"},
        router="block_sparse_moe.gate",
        at="block_sparse_moe.experts",
        names=("w1", "w3", "w2"),
    )
    return decoder(config, grouped(config, window=config.optional("sliding_window")), part)


def _derive(raw: Mapping[str, object], values: dict[str, object]) -> list[str]:
    return derive_dense(raw, values, theta=1e6) + count_faults(values, "num_experts_per_tok", "num_local_experts")


def count_faults(values: Mapping[str, object], few: str, many: str) -> list[str]:
    """A fault if the number `few` is above the number `many`."""
    a, b = values.get(few), values.get(many)
    return [f"{few}={a} must be at most {many}={b}"] if isinstance(a, int) and isinstance(b, int) and a > b else []


def _layouts(config: ModelConfig, name: str) -> tuple[Stored, ...]:
    """Published: a matrix of an expert by itself; as transformers 5 holds them in memory: stacks, gate above up."""
    other = name.replace(".block_sparse_moe.", ".mlp.")
    for role, stack in (("w1", ("gate_up_proj", 0, 2)), ("w3", ("gate_up_proj", 1, 2)), ("w2", ("down_proj", 0, 1))):
        end = "{expert}." + role + ".weight"
        if other.endswith(end):
            return Stored(name), Stored(other.removesuffix(end) + stack[0], *stack[1:])
    return (Stored(name),) if other == name else (Stored(name), Stored(other))


_DEFAULTS = {
    "num_key_value_heads": Field("num_key_value_heads", "int", 8, low=1, high=1 << 16, nullable=True),
    "max_position_embeddings": Field("max_position_embeddings", "int", 131072, low=1, high=1 << 24),
    "rms_norm_eps": Field("rms_norm_eps", "float", 1e-5, low=0, high=1),
}

MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    fields=(
        *(_DEFAULTS.get(field.name, field) for field in DENSE_FIELDS),
        Field("sliding_window", "int", None, low=1, high=1 << 24, nullable=True),
        Field("num_local_experts", "int", 8, low=1, high=4096),
        Field("num_experts_per_tok", "int", 2, low=1, high=4096),
        Field("attention_bias", "bool", False, choices=(False,)),
        Field("mlp_bias", "bool", False, choices=(False,)),
    ),
    derive=_derive,
    build=_build,
    layouts=_layouts,
)
"""Mixtral 8x7B, 8x22B and their kind: softmax over the chosen experts."""

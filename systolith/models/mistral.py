"""Mistral: Llama's graph with a sliding window that every layer shares (or none).

Source: MistralForCausalLM of transformers 5.23; "Mistral 7B", section 2.
"""

from __future__ import annotations

from systolith.models.attention import grouped
from systolith.models.config import Field, ModelConfig
from systolith.models.family import Family
from systolith.models.feed_forward import dense
from systolith.models.graph import ModelGraph
from systolith.models.llama import DENSE_FIELDS, decoder, derive_dense

__all__ = ["MISTRAL"]


def _build(config: ModelConfig) -> ModelGraph:
    return decoder(config, grouped(config, window=config.optional("sliding_window")), dense(config))


_DEFAULTS = {
    "num_key_value_heads": Field("num_key_value_heads", "int", 8, low=1, high=1 << 16, nullable=True),
    "max_position_embeddings": Field("max_position_embeddings", "int", 131072, low=1, high=1 << 24),
}

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    fields=(
        *(_DEFAULTS.get(field.name, field) for field in DENSE_FIELDS),
        Field("sliding_window", "int", 4096, low=1, high=1 << 24, nullable=True),
        Field("attention_bias", "bool", False, choices=(False,)),
        Field("mlp_bias", "bool", False, choices=(False,)),
    ),
    derive=derive_dense,
    build=_build,
)
"""Mistral 7B and its kind; an absent sliding_window is 4,096, as transformers has it, and null is none."""

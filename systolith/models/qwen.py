"""Qwen2 (biases on q, k and v) and dense Qwen3 (norms of each head of q and k): Llama's graph otherwise.

Source: Qwen2ForCausalLM and Qwen3ForCausalLM of transformers 5.23; "Qwen2 Technical Report", arXiv:2407.10671, section
2; "Qwen3 Technical Report", arXiv:2505.09388, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

from systolith.models.attention import grouped
from systolith.models.config import Field, ModelConfig
from systolith.models.family import Family
from systolith.models.feed_forward import dense
from systolith.models.graph import ModelGraph
from systolith.models.llama import DENSE_FIELDS, decoder, derive_dense
from systolith.models.ops import AttrValue
from systolith.models.windows import FULL, SLIDING, by_kind, read_kinds

__all__ = ["QWEN2", "QWEN3"]


def _derive(raw: Mapping[str, object], values: dict[str, object]) -> list[str]:
    """What a dense decoder derives, and the kind of attention of each layer."""
    faults = derive_dense(raw, values)
    layers, first = values.get("num_hidden_layers"), values["max_window_layers"]
    window = values["sliding_window"] if values["use_sliding_window"] is True else None
    if not isinstance(layers, int):
        return faults
    assert isinstance(first, int)
    usual = [SLIDING if window is not None and i >= first else FULL for i in range(layers)]
    kinds, more = read_kinds(values["layer_types"], usual)
    if window is None and SLIDING in kinds:
        more.append("layer_types names sliding_attention: use_sliding_window must be true and sliding_window a number")
    values["layer_types"] = kinds
    return faults + more


def _window(config: ModelConfig) -> AttrValue:
    """The window, one for all layers or one each."""
    return by_kind(config.values["layer_types"], None, config.optional("sliding_window"))


_WINDOWS = (
    Field("use_sliding_window", "bool", False),
    Field("sliding_window", "int", 4096, low=1, high=1 << 24, nullable=True),
    Field("max_window_layers", "int", 28, low=0, high=1 << 24),
    Field("layer_types", "any", None, nullable=True),
)
_DEFAULTS = {
    "max_position_embeddings": Field("max_position_embeddings", "int", 32768, low=1, high=1 << 24),
    "bos_token_id": Field("bos_token_id", "int", None, low=0, high=(1 << 24) - 1, nullable=True),
    "eos_token_id": Field("eos_token_id", "ids", None, high=(1 << 24) - 1, nullable=True),
}
_FIELDS = (*(_DEFAULTS.get(field.name, field) for field in DENSE_FIELDS), *_WINDOWS)


def _build2(config: ModelConfig) -> ModelGraph:
    return decoder(config, grouped(config, qkv_bias=True, window=_window(config)), dense(config))


def _build3(config: ModelConfig) -> ModelGraph:
    bias = config.flag("attention_bias")
    attention = grouped(config, qkv_bias=bias, o_bias=bias, qk_norm=True, window=_window(config))
    return decoder(config, attention, dense(config))


QWEN2 = Family(
    model_type="qwen2", architecture="Qwen2ForCausalLM", fields=_FIELDS, derive=_derive, build=_build2
)  # fmt: skip
"""Qwen2 and Qwen2.5, dense: q, k and v have biases."""

_HEAD_DIM = Field("head_dim", "int", 128, low=2, high=1 << 14)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields=(
        *(_HEAD_DIM if field.name == "head_dim" else field for field in _FIELDS),
        Field("attention_bias", "bool", False),
    ),
    derive=_derive,
    build=_build3,
)
"""Qwen3, dense: each head of q and k is normed; an absent head_dim is 128, as transformers has it."""

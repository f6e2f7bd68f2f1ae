"""gpt-oss: biases, attention sinks, a window on every other layer, YaRN, and experts that are stored as MXFP4 blocks.

Source: GptOssForCausalLM of transformers 5.23; "gpt-oss-120b & gpt-oss-20b Model Card", arXiv:2508.10925, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping

from systolith.models._text import show
from systolith.models.attention import grouped
from systolith.models.config import Field, ModelConfig
from systolith.models.family import Family
from systolith.models.feed_forward import mixture
from systolith.models.graph import ModelGraph
from systolith.models.layout import Stored
from systolith.models.llama import DENSE_FIELDS, decoder, derive_dense
from systolith.models.mixtral import count_faults
from systolith.models.windows import FULL, SLIDING, by_kind, read_kinds

__all__ = ["GPT_OSS"]

_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
"""Rotary scaling of a config that says nothing of it."""

_MXFP4_KEYS = ("quant_method", "modules_to_not_convert", "dequantize")


def _derive(raw: Mapping[str, object], values: dict[str, object]) -> list[str]:
    """What a dense decoder derives, the kinds of layers, and what the names of the first release repeat."""
    if raw.get("rope_scaling") is None and raw.get("rope_parameters") is None:
        raw = {**raw, "rope_scaling": _YARN}
    faults = derive_dense(raw, values, theta=150000.0)
    layers = values.get("num_hidden_layers")
    if isinstance(layers, int):
        kinds, more = read_kinds(values["layer_types"], [FULL if i % 2 else SLIDING for i in range(layers)])
        values["layer_types"] = kinds
        faults += more
    twice = values.pop("experts_per_token")
    if twice is not None and twice != values["num_experts_per_tok"]:
        wanted = values["num_experts_per_tok"]
        faults.append(f"experts_per_token={show(twice)} and num_experts_per_tok={wanted} must be equal")
    values.pop("initial_context_length")  # stands in the rotary scaling
    faults += count_faults(values, "num_experts_per_tok", "num_local_experts")
    coding = values["quantization_config"]
    values["quantization_config"] = None
    if coding is not None:
        if not isinstance(coding, dict) or coding.get("quant_method") != "mxfp4" or set(coding) - set(_MXFP4_KEYS):
            keys = ", ".join(_MXFP4_KEYS)
            faults.append(
                f"quantization_config={show(coding)} must be null or an object with quant_method mxfp4 (keys: {keys})"
            )
        values["quantization_config"] = "mxfp4"
        for name in ("hidden_size", "intermediate_size"):
            size = values.get(name)
            if isinstance(size, int) and size % 32:
                faults.append(f"{name}={size} must be a multiple of 32, the block of MXFP4")
    return faults


def _build(config: ModelConfig) -> ModelGraph:
    bias = config.flag("attention_bias")
    part = mixture(
        config,
        config.integer("intermediate_size"),
        config.integer("num_local_experts"),
        route={"top_k": config.integer("num_experts_per_tok"), "score": "softmax"},
        router="mlp.router",
        router_bias=True,
        bias=True,
        activation={
            "activation": "swiglu_clamped",
            "alpha": config.number("swiglu_alpha"),
            "limit": config.number("swiglu_limit"),
        },
    )
    window = by_kind(config.values["layer_types"], None, config.optional("sliding_window"))
    return decoder(config, grouped(config, qkv_bias=bias, o_bias=bias, sinks=True, window=window), part)


def _layouts(config: ModelConfig, name: str) -> tuple[Stored, ...]:
    """Stacks of all experts; gate and up in turn, row by row; [K, N] where they are not MXFP4 blocks."""
    at, _, role = name.partition("{expert}.")
    parts = {"gate": ("gate_up_proj", 0, 2), "up": ("gate_up_proj", 1, 2), "down": ("down_proj", 0, 1)}
    if not role:
        return (Stored(name),)
    stack, part, count = parts[role.split("_")[0]]
    if role.endswith(".bias"):
        return (Stored(f"{at}{stack}_bias", part, count, interleaved=True),)
    plain = Stored(at + stack, part, count, interleaved=True, transposed=True)
    if config.values["quantization_config"] is None:
        return (plain,)
    return Stored(at + stack, part, count, interleaved=True, coding="mxfp4"), plain


_DEFAULTS = {
    "head_dim": Field("head_dim", "int", 64, low=2, high=1 << 14, nullable=True),
    "num_key_value_heads": Field("num_key_value_heads", "int", 8, low=1, high=1 << 16, nullable=True),
    "max_position_embeddings": Field("max_position_embeddings", "int", 131072, low=1, high=1 << 24),
    "rms_norm_eps": Field("rms_norm_eps", "float", 1e-5, low=0, high=1),
    "bos_token_id": Field("bos_token_id", "int", None, low=0, high=(1 << 24) - 1, nullable=True),
    "eos_token_id": Field("eos_token_id", "ids", None, high=(1 << 24) - 1, nullable=True),
}

GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    fields=(
        *(_DEFAULTS.get(field.name, field) for field in DENSE_FIELDS),
        Field("attention_bias", "bool", True),
        Field("sliding_window", "int", 128, low=1, high=1 << 24, nullable=True),
        Field("layer_types", "any", None, nullable=True),
        Field("num_local_experts", "int", 128, low=1, high=4096),
        Field("num_experts_per_tok", "int", 4, low=1, high=4096),
        Field("experts_per_token", "any", None, nullable=True),
        Field("initial_context_length", "any", None, nullable=True),
        Field("swiglu_alpha", "float", 1.702, low=0, high=1e3),
        Field("swiglu_limit", "float", 7.0, low=0, high=1e30),
        Field("quantization_config", "any", None, nullable=True),
    ),
    derive=_derive,
    build=_build,
    layouts=_layouts,
)
"""gpt-oss-20b and -120b; experts in MXFP4 where the config says so, else in a type that FP32 holds."""

"""DeepSeek V3 and R1: latent attention, dense first layers, then experts chosen by groups and one that all rows share.

Of the published checkpoints the matrices are FP8 with a scale for each 128 x 128 values. Layers beyond the last, which
predict further tokens, are not read.

Source: DeepseekV3ForCausalLM of transformers 5.23; "DeepSeek-V3 Technical Report", arXiv:2412.19437, section 2.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Context, Decimal

from systolith.models._text import show
from systolith.models.config import Field, ModelConfig
from systolith.models.family import Family
from systolith.models.feed_forward import dense, mixture
from systolith.models.graph import ModelGraph
from systolith.models.layout import Stored
from systolith.models.llama import DENSE_FIELDS, decoder, derive_dense
from systolith.models.mixtral import count_faults
from systolith.models.mla import key_layout, latent
from systolith.models.ops import AttrValue
from systolith.models.qwen_moe import expert_layouts
from systolith.models.rope import yarn_mscale

__all__ = ["DEEPSEEK_V3"]

_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
_FP8_KEYS = (*_FP8, "activation_scheme", "modules_to_not_convert")


def _derive(raw: Mapping[str, object], values: dict[str, object]) -> list[str]:
    """What a dense decoder derives, the scale of the scores, and what follows from the sizes of a head."""
    faults: list[str] = []
    turned, plain = values["qk_rope_head_dim"], values["qk_nope_head_dim"]
    assert isinstance(turned, int)
    assert isinstance(plain, int)
    for name, want in (("head_dim", turned), ("qk_head_dim", turned + plain)):
        given = values.pop(name)
        if given is not None and given != want:
            faults.append(f"{name}={show(given)} must be {want}, which follows from the other sizes of a head")
    values["head_dim"] = turned  # what is turned is what a dense decoder has as its head
    faults += [text.replace("head_dim=", "qk_rope_head_dim=", 1) for text in derive_dense(raw, values)]
    del values["head_dim"]
    heads, kv_heads = values.get("num_attention_heads"), values["num_key_value_heads"]
    if kv_heads != heads and isinstance(heads, int):
        faults.append(f"num_key_value_heads={kv_heads} must be num_attention_heads={heads}, all heads read one latent")
    values["score_scale"] = _score_scale(raw, turned + plain)
    for name, default in (("q_lora_rank", None), ("norm_topk_prob", True), ("n_group", 1), ("topk_group", 1)):
        values[name] = default if values[name] is None else values[name]
    faults += _check_experts(values) + _check_quantisation(values)
    return faults


def _score_scale(raw: Mapping[str, object], size: int) -> float:
    """1 / sqrt(size of q and k), times the square of YaRN's factor where `mscale_all_dim` is given; rounded once."""
    table = raw.get("rope_parameters") or raw.get("rope_scaling")
    scale = Context(prec=50)
    mscale = Decimal(1)
    if isinstance(table, dict) and table.get("rope_type", table.get("type", "default")) != "default":
        factor, given = table.get("factor"), table.get("mscale_all_dim")
        if all(isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < 1e6 for x in (factor, given)):
            mscale = yarn_mscale(float(factor), float(given))  # type: ignore[arg-type]
    return float(scale.divide(scale.multiply(mscale, mscale), scale.sqrt(Decimal(size))))


def _check_experts(values: Mapping[str, object]) -> list[str]:
    """Faults of the numbers of experts and groups."""
    count, groups, top = (values[name] for name in ("n_routed_experts", "n_group", "topk_group"))
    assert isinstance(count, int)
    assert isinstance(groups, int)
    assert isinstance(top, int)
    if count % groups or (groups > 1 and count < 2 * groups):
        return [f"n_group={groups} must divide n_routed_experts={count} into equal groups of at least 2"]
    faults = count_faults(values, "topk_group", "n_group")
    allowed, chosen = count // groups * top, values["num_experts_per_tok"]
    if not faults and isinstance(chosen, int) and chosen > allowed:
        faults.append(f"num_experts_per_tok={chosen} must be at most {allowed}, the experts of {top} groups")
    return faults


def _check_quantisation(values: dict[str, object]) -> list[str]:
    """Faults of `quantization_config`, of which "fp8" or null stays."""
    coding, values["quantization_config"] = values["quantization_config"], None
    if coding is None:
        return []
    values["quantization_config"] = "fp8"
    known = isinstance(coding, dict) and not set(coding) - set(_FP8_KEYS)
    if known and isinstance(coding, dict) and all(coding.get(key, want) == want for key, want in _FP8.items()):
        return []
    words = ", ".join(f"{key} {show(want)}" for key, want in _FP8.items())
    return [f"quantization_config={show(coding)} must be null or an object with {words} (keys: {', '.join(_FP8_KEYS)})"]


def _build(config: ModelConfig) -> ModelGraph:
    rope: dict[str, AttrValue] = {"theta": config.number("rope_theta"), "interleaved": config.flag("rope_interleave")}
    scaling = config.values.get("rope_scaling")
    if isinstance(scaling, str):
        rope["scaling"] = scaling
    attention = latent(config, rope=rope, scale=config.number("score_scale"), bias=config.flag("attention_bias"))
    inner = config.integer("moe_intermediate_size")
    part = mixture(
        config,
        inner,
        config.integer("n_routed_experts"),
        route={
            "top_k": config.integer("num_experts_per_tok"),
            "score": "sigmoid",
            "normalise": config.flag("norm_topk_prob"),
            "scale": config.number("routed_scaling_factor"),
            "groups": config.integer("n_group"),
            "top_groups": config.integer("topk_group"),
        },
        correction="mlp.gate.e_score_correction_bias",
        shared=dense(
            config, inner=inner * config.integer("n_shared_experts"), at="mlp.shared_experts", prefix="shared_"
        ),
    )
    first = min(config.integer("first_k_dense_replace"), config.integer("num_hidden_layers"))
    return decoder(config, attention, part, special=dict.fromkeys(range(first), dense(config)))


_NOT_FP8 = ("norm.weight", "mlp.gate.weight", "embed_tokens.weight", "lm_head.weight", "_bias")


def _layouts(config: ModelConfig, name: str) -> tuple[Stored, ...]:
    """Matrices in FP8 where the config says so, else plain; those of a head in one matrix with all others."""
    codings: tuple[str, ...] = ("plain",)
    if config.values["quantization_config"] == "fp8" and not name.endswith(_NOT_FP8):
        codings = ("fp8", "plain")
    ways: list[Stored] = []
    for coding in codings:
        ways.append(key_layout(config, name, coding) or Stored(name, coding=coding))
    return (*ways, *expert_layouts(config, name)[1:])


def _unused(config: ModelConfig, name: str) -> bool:
    """Tensors of the layers beyond the last, which predict further tokens."""
    found = re.match(r"model\.layers\.(\d{1,6})\.", name)
    last, more = config.integer("num_hidden_layers"), config.integer("num_nextn_predict_layers")
    return found is not None and last <= int(found[1]) < last + more


_DEFAULTS = {
    "num_key_value_heads": Field("num_key_value_heads", "int", 128, low=1, high=1 << 16, nullable=True),
    "max_position_embeddings": Field("max_position_embeddings", "int", 4096, low=1, high=1 << 24),
    "bos_token_id": Field("bos_token_id", "int", 0, low=0, high=(1 << 24) - 1, nullable=True),
    "eos_token_id": Field("eos_token_id", "ids", 1, high=(1 << 24) - 1, nullable=True),
}

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fields=(
        *(_DEFAULTS.get(field.name, field) for field in DENSE_FIELDS),
        Field("attention_bias", "bool", False),
        Field("q_lora_rank", "int", 1536, low=1, high=1 << 20, nullable=True),
        Field("kv_lora_rank", "int", 512, low=1, high=1 << 20),
        Field("qk_nope_head_dim", "int", 128, low=1, high=1 << 14),
        Field("qk_rope_head_dim", "int", 64, low=2, high=1 << 14),
        Field("qk_head_dim", "any", None, nullable=True),
        Field("v_head_dim", "int", 128, low=1, high=1 << 14),
        Field("rope_interleave", "bool", True),
        Field("moe_intermediate_size", "int", 2048, low=1, high=1 << 22),
        Field("n_shared_experts", "int", 1, low=1, high=4096),
        Field("n_routed_experts", "int", 256, low=1, high=4096),
        Field("num_experts_per_tok", "int", 8, low=1, high=4096),
        Field("n_group", "int", 8, low=1, high=4096, nullable=True),
        Field("topk_group", "int", 4, low=1, high=4096, nullable=True),
        Field("routed_scaling_factor", "float", 2.5, low=0, high=1e6),
        Field("norm_topk_prob", "bool", True, nullable=True),
        Field("first_k_dense_replace", "int", 3, low=0, high=4096),
        Field("num_nextn_predict_layers", "int", 1, low=0, high=4096),
        Field("quantization_config", "any", None, nullable=True),
        Field("moe_layer_freq", "int", 1, choices=(1,)),
        Field("scoring_func", "str", "sigmoid", choices=("sigmoid",)),
        Field("topk_method", "str", "noaux_tc", choices=("noaux_tc",)),
        *(
            Field(name, "any", None, nullable=True)
            for name in ("num_mtp_layers", "auto_map", "ep_size", "aux_loss_alpha", "seq_aux", "n_local_experts")
        ),
    ),
    derive=_derive,
    build=_build,
    layouts=_layouts,
    unused=_unused,
)  # fmt: skip
"""DeepSeek V3, R1 and their kind."""

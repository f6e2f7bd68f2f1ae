"""Gemma 3, its text: norms before and after each part, gains 1 + g, GELU, and windows with a rotary base of their own.

Every sixth layer sees all of the context and turns q and k by another base than the layers with a window. Rows of the
embedding are multiplied by sqrt(hidden), rounded to the type in which the model was published. Of a model that also
takes images (`gemma3`) the text half is read; its other tensors are not looked at.

Source: Gemma3ForCausalLM and Gemma3ForConditionalGeneration of transformers 5.23; "Gemma 3 Technical Report",
arXiv:2503.19786, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from systolith.models._text import show
from systolith.models.attention import grouped
from systolith.models.config import Field, ModelConfig, check_fields
from systolith.models.family import Family
from systolith.models.feed_forward import dense
from systolith.models.graph import ModelGraph
from systolith.models.layout import Stored
from systolith.models.llama import DENSE_FIELDS, decoder, derive_dense
from systolith.models.rope import read_rope
from systolith.models.windows import FULL, SLIDING, by_kind, read_kinds

__all__ = ["GEMMA3", "GEMMA3_TEXT"]


def _derive(raw: Mapping[str, object], values: dict[str, object]) -> list[str]:
    """What a dense decoder derives, the kinds of layers, the two rotary embeddings, the scale of the embedding."""
    tables = raw.get("rope_parameters")
    both = isinstance(tables, dict) and set(tables) <= {FULL, SLIDING}
    faults = [] if tables is None or both else [f"rope_parameters={show(tables)} must have {FULL} and {SLIDING}"]
    tables = tables if isinstance(tables, dict) and both else {}
    wide = {"rope_theta": raw.get("rope_theta"), "rope_scaling": raw.get("rope_scaling")}
    faults += derive_dense({**wide, "rope_parameters": tables.get(FULL)}, values, theta=1e6)
    near = {"rope_theta": raw.get("rope_local_base_freq"), "rope_parameters": tables.get(SLIDING)}
    theta, scaling, more = read_rope(near, 1e4, values["max_position_embeddings"])
    faults += [text.replace("rope_theta", "rope_local_base_freq", 1) for text in more]
    values["rope_local_base_freq"] = theta
    values["rope_local_scaling"] = None if scaling is None else scaling.text
    layers, every = values.get("num_hidden_layers"), values.pop("sliding_window_pattern")
    assert isinstance(every, int)
    values.pop("_sliding_window_pattern")  # transformers 5 writes it beside layer_types and does not read it
    if isinstance(layers, int):
        kinds, more = read_kinds(values["layer_types"], [SLIDING if (i + 1) % every else FULL for i in range(layers)])
        values["layer_types"] = kinds
        faults += more
    kind = raw.get("dtype") or raw.get("torch_dtype")
    hidden = values.get("hidden_size")
    if isinstance(hidden, int):
        values["embed_scale"] = _rounded(math.sqrt(hidden), kind)
    return faults


def _rounded(x: float, kind: object) -> float:
    """A number rounded to the type of a model: "bfloat16", "float16", or FP32."""
    single = np.float32(x)
    if kind == "float16":
        return float(np.float16(single))
    if kind == "bfloat16":
        bits = int(single.view(np.uint32))
        return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))
    return float(single)


def _build(config: ModelConfig) -> ModelGraph:
    bias, dim, scalar = (
        config.flag("attention_bias"),
        config.integer("head_dim"),
        config.number("query_pre_attn_scalar"),
    )
    kinds = config.values["layer_types"]
    wide, near = config.values.get("rope_scaling"), config.values["rope_local_scaling"]
    scaling = by_kind(kinds, wide if isinstance(wide, str) else None, near if isinstance(near, str) else None)
    rope = {"theta": by_kind(kinds, config.number("rope_theta"), config.number("rope_local_base_freq"))}
    attention = grouped(
        config,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        scale=None if scalar == dim else scalar**-0.5,
        rope=rope if scaling is None else {**rope, "scaling": scaling},
        window=by_kind(kinds, None, config.optional("sliding_window")),
    )
    part = dense(config, activation="gelu_mul")
    return decoder(config, attention, part, sandwich=True, embed_scale=config.number("embed_scale"))


def _layouts(config: ModelConfig, name: str) -> tuple[Stored, ...]:
    """Under its own name; a gain as its difference to 1."""
    return (Stored(name, coding="plus_one" if name.endswith("norm.weight") else "plain"),)


def _layouts_of_both(config: ModelConfig, name: str) -> tuple[Stored, ...]:
    """The same, among the tensors that deal with images: as published, and as transformers 5 holds them in memory."""
    coding = _layouts(config, name)[0].coding
    inner = name.removeprefix("model.")
    if name == inner:  # the head
        return Stored(f"language_model.{name}"), Stored(name)
    paths = (f"language_model.model.{inner}", f"model.language_model.{inner}", name)
    return tuple(Stored(path, coding=coding) for path in paths)


_SIZES = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


def _with_default(field: Field) -> Field:
    """A field of a dense decoder with the default that it has here."""
    default = _SIZES.get(field.name, field.default)
    return Field(field.name, field.kind, default, field.low, field.high, field.nullable, field.choices)


_FIELDS = (
    *(_with_default(field) for field in DENSE_FIELDS if field.name != "hidden_act"),
    Field("hidden_activation", "str", "gelu_pytorch_tanh", choices=("gelu_pytorch_tanh",)),
    Field("attention_bias", "bool", False),
    Field("query_pre_attn_scalar", "float", 256, low=1, high=1 << 24),
    Field("sliding_window", "int", 4096, low=1, high=1 << 24, nullable=True),
    Field("sliding_window_pattern", "int", 6, low=1, high=4096),
    Field("_sliding_window_pattern", "any", None, nullable=True),
    Field("layer_types", "any", None, nullable=True),
    Field("rope_local_base_freq", "any", None, nullable=True),
    Field("attn_logit_softcapping", "any", None, nullable=True, choices=(None,)),
    Field("final_logit_softcapping", "any", None, nullable=True, choices=(None,)),
    Field("use_bidirectional_attention", "bool", False, nullable=True, choices=(False,)),
)

GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    fields=_FIELDS,
    derive=_derive,
    build=_build,
    layouts=_layouts,
)
"""Gemma 3 1B and other models of text alone."""

_OF_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def _derive_both(raw: Mapping[str, object], values: dict[str, object]) -> list[str]:
    """The values of `text_config` in place of those of the whole file."""
    text = values["text_config"]
    values.clear()
    if not isinstance(text, dict):
        return [f"text_config={show(text)} must be an object"]
    whole = {name: raw[name] for name in _OF_THE_WHOLE if name in raw}
    inside, faults = check_fields({**text, **whole}, _FIELDS, "gemma3_text")
    faults += _derive({**text, **whole}, inside)
    values |= inside
    return [f"text_config: {fault}" for fault in faults]


_OF_THE_WHOLE = ("bos_token_id", "eos_token_id", "tie_word_embeddings", "dtype", "torch_dtype")
"""Fields beside `text_config` that win over those in it."""

GEMMA3 = Family(
    model_type="gemma3",
    architecture="Gemma3ForConditionalGeneration",
    fields=(
        Field("text_config", "any"),
        *(Field(name, "any", None, nullable=True) for name in ("bos_token_id", "eos_token_id", "tie_word_embeddings")),
        *(
            Field(name, "any", None, nullable=True)
            for name in (
                "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index",
                "image_token_id", "boi_token_id", "eoi_token_id",
            )
        ),
    ),
    derive=_derive_both,
    build=_build,
    layouts=_layouts_of_both,
    unused=lambda config, name: name.startswith(_OF_IMAGES),
)  # fmt: skip
"""Gemma 3 4B, 12B and 27B, of which the text is read."""

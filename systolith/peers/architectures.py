"""Models that were measured on other chips: their names, their config facts, and the families this chip does not run.

Falcon, GPT-J and Llama 4 have graphs here, of the operations of `models.graph` and two more, so that their work on a
device can be counted. They have no kernels and no reference, so `models.family` does not know them.

Source: FalconForCausalLM, GPTJForCausalLM and Llama4ForCausalLM of transformers 5.23.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from systolith.models._text import read_json_object
from systolith.models.attention import grouped
from systolith.models.config import Field, ModelConfig, check_fields
from systolith.models.family import Family, build_graph, load_config, packaged_configs
from systolith.models.feed_forward import dense, mixture, projection
from systolith.models.graph import IDS, OPS, ModelGraph, Node, OpSpec, WeightRef, X, register_op, require
from systolith.models.llama import DENSE_FIELDS, decoder, derive_dense
from systolith.models.ops import AttrSpec, AttrValue, ValueType
from systolith.spec.errors import ModelError

__all__ = ["FAMILIES", "known_models", "model_graph"]


def _same(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
    return ins[0]


_EPS = {"eps": AttrSpec("float", "added to the variance", low=0.0)}
for _spec in (
    OpSpec("layer_norm", ("x",), {"g": True, "bias": True}, _EPS, _same, "(x - mean) / deviation * g + bias"),
    OpSpec("gelu", ("x",), {}, {}, _same, "GELU of each element"),
):
    if _spec.name not in OPS:
        register_op(_spec)


def _norm(name: str, hidden: int) -> dict[str, WeightRef]:
    return {
        "g": WeightRef(f"{name}.weight", (hidden,), "norm"),
        "bias": WeightRef(f"{name}.bias", (hidden,), "bias"),
    }


def _parallel(config: ModelConfig, norms: int, inner: int, bias: bool) -> ModelGraph:
    """A decoder whose attention and feed-forward read the same residual rows and are added to it together."""
    hidden, vocab = config.integer("hidden_size"), config.integer("vocab_size")
    eps: dict[str, AttrValue] = {"eps": config.number("rms_norm_eps")}
    second = "b" if norms == 2 else "a"
    names = ("model.layers.{layer}.ln_attn", "model.layers.{layer}.ln_mlp")
    layer = (
        *(
            Node("layer_norm", out, (X,), _norm(name, hidden), eps)
            for out, name in zip("ab"[:norms], names, strict=False)
        ),
        *grouped(config),
        Node("linear", "up", (second,), projection("mlp.dense_h_to_4h", inner, hidden, "up", bias)),
        Node("gelu", "h", ("up",)),
        Node("linear", "down", ("h",), projection("mlp.dense_4h_to_h", hidden, inner, "down", bias)),
        Node("add", "both", ("o", "down")),
        Node("add", "x_next", (X, "both")),
    )
    table = "model.embed_tokens.weight"
    head = table if config.flag("tie_word_embeddings") else "lm_head.weight"
    return ModelGraph(
        name=config.family,
        architecture=config.architecture,
        hidden=hidden,
        vocab=vocab,
        layers=config.integer("num_hidden_layers"),
        context=config.integer("max_position_embeddings"),
        embed=(Node("embed", X, (IDS,), {"table": WeightRef(table, (vocab, hidden), "embed")}),),
        layer=layer,
        head=(
            Node("select", "picked", (X,)),
            Node("layer_norm", "final", ("picked",), _norm("model.ln_f", hidden), eps),
            Node("linear", "logits", ("final",), {"w": WeightRef(head, (vocab, hidden), "head")}),
        ),
    )


_PARALLEL_FIELDS = tuple(
    Field("hidden_act", "str", "gelu", choices=("gelu", "gelu_new")) if field.name == "hidden_act" else field
    for field in DENSE_FIELDS
)


def _falcon(config: ModelConfig) -> ModelGraph:
    return _parallel(config, config.integer("norms"), config.integer("intermediate_size"), bias=False)


def _gptj(config: ModelConfig) -> ModelGraph:
    return _parallel(config, 1, config.integer("intermediate_size"), bias=True)


def _derive_llama4(raw: Mapping[str, object], values: dict[str, object]) -> list[str]:
    return derive_dense(raw, values, theta=500000.0)


def _llama4(config: ModelConfig) -> ModelGraph:
    """Three of four layers see a chunk of the context only; each n-th layer has experts, one of them for all rows."""
    layers, step = config.integer("num_hidden_layers"), config.integer("interleave_moe_layer_step")
    chunk, every = config.integer("attention_chunk_size"), config.integer("no_rope_layer_interval")
    window = tuple(None if (i + 1) % every == 0 else chunk for i in range(layers))
    inner = config.integer("intermediate_size")
    part = mixture(
        config,
        inner,
        config.integer("num_local_experts"),
        route={"top_k": config.integer("num_experts_per_tok"), "score": "sigmoid", "normalise": False},
        router="feed_forward.router",
        at="feed_forward.experts",
        shared=dense(config, inner=inner, at="feed_forward.shared_expert", prefix="shared_"),
    )
    plain = dense(config, inner=config.integer("intermediate_size_mlp"))
    special = {i: plain for i in range(layers) if (i + 1) % step}
    return decoder(config, grouped(config, window=window), part, special=special)


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="falcon",
            architecture="FalconForCausalLM",
            fields=(*_PARALLEL_FIELDS, Field("norms", "int", 2, low=1, high=2)),
            derive=derive_dense,
            build=_falcon,
        ),
        Family(
            model_type="gptj",
            architecture="GPTJForCausalLM",
            fields=_PARALLEL_FIELDS,
            derive=derive_dense,
            build=_gptj,
        ),
        Family(
            model_type="llama4",
            architecture="Llama4ForConditionalGeneration",
            fields=(
                *DENSE_FIELDS,
                Field("intermediate_size_mlp", "int", low=1, high=1 << 22),
                Field("num_local_experts", "int", 16, low=1, high=4096),
                Field("num_experts_per_tok", "int", 1, low=1, high=4096),
                Field("interleave_moe_layer_step", "int", 1, low=1, high=4096),
                Field("attention_chunk_size", "int", 8192, low=1, high=1 << 24),
                Field("no_rope_layer_interval", "int", 4, low=1, high=4096),
            ),
            derive=_derive_llama4,
            build=_llama4,
        ),
    )
}
"""Families of models that other chips were measured on and this one does not run."""


@functools.cache
def known_models() -> Mapping[str, Path]:
    """Config facts by name: those of `models` and those that only peers have run."""
    mine = {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.json"))}
    return {**packaged_configs(), **mine}


@functools.cache
def model_graph(name: str) -> ModelGraph:
    """The graph of a model whose config facts the package has. Raises ModelError."""
    known = known_models()
    if name not in known:
        raise ModelError(f"model {name}: its config is not known here; known are {', '.join(known)}")
    path = known[name]
    raw = read_json_object(path, "config.json")
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        return replace(build_graph(load_config(path)), name=name)
    values, faults = check_fields(raw, family.fields, family.model_type)
    faults += family.derive(raw, values)
    if faults:
        raise ModelError(f"{path}: " + "; ".join(faults) + "; correct the file")
    config = ModelConfig(family.model_type, family.architecture, values, str(path))
    return replace(require(family.build(config)), name=name)

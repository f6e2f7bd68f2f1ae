"""The config facts in the package: each is read whole, and means the model that was published."""

from __future__ import annotations

import json
from typing import Any

import pytest

from systolith.compiler.model import match
from systolith.models.family import build_graph, load_config, packaged_configs
from systolith.models.graph import check

PUBLISHED = {  # parameters in billions as the model cards say, layers, context
    "llama-3.1-8b": (8.03, 32, 131072),
    "llama-3.1-70b": (70.55, 80, 131072),
    "llama-3.1-405b": (405.85, 126, 131072),
    "llama-2-7b": (6.74, 32, 4096),
    "llama-2-13b": (13.02, 40, 4096),
    "llama-2-70b": (68.98, 80, 4096),
    "qwen3-8b": (8.19, 36, 40960),
    "qwen3-30b-a3b": (30.53, 48, 40960),
    "qwen3-235b-a22b": (235.09, 94, 40960),
    "mixtral-8x7b": (46.70, 32, 32768),
    "gpt-oss-20b": (20.91, 24, 131072),
    "gpt-oss-120b": (116.83, 36, 131072),
    "deepseek-r1": (671.03, 61, 163840),
}
ACTIVE = {  # parameters that a token meets, in billions, as published
    "qwen3-30b-a3b": 3.3, "qwen3-235b-a22b": 22, "mixtral-8x7b": 13, "gpt-oss-20b": 3.6, "gpt-oss-120b": 5.1,
    "deepseek-r1": 37,
}  # fmt: skip


def test_every_config_has_a_line_in_the_table_of_sources() -> None:
    assert set(packaged_configs()) == set(PUBLISHED)
    page = (next(iter(packaged_configs().values())).parent / "README.md").read_text()
    for name, path in packaged_configs().items():
        graph = build_graph(load_config(path))
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {graph.parameters:,} |" in line


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_is_read_and_its_graph_has_the_published_size(name: str) -> None:
    billions, layers, context = PUBLISHED[name]
    path = packaged_configs()[name]
    graph = build_graph(load_config(path))
    assert check(graph) == []
    assert round(graph.parameters / 1e9, 2) == billions
    assert (graph.layers, graph.context, graph.tied) == (layers, context, False)
    assert graph.parameters == by_hand(json.loads(path.read_text()))


def by_hand(raw: dict[str, Any]) -> int:
    """Parameters of a config, counted again."""
    hidden, vocab, layers = raw["hidden_size"], raw["vocab_size"], raw["num_hidden_layers"]
    if raw["model_type"] == "deepseek_v3":
        return latent_by_hand(raw)
    dim = raw.get("head_dim", hidden // raw["num_attention_heads"])
    q, kv = raw["num_attention_heads"] * dim, raw["num_key_value_heads"] * dim
    kind = raw["model_type"]
    layer = 2 * hidden * q + 2 * hidden * kv + 2 * hidden + (2 * dim if kind.startswith("qwen3") else 0)
    experts = raw.get("num_local_experts", raw.get("num_experts", 0))
    inner = raw.get("moe_intermediate_size", raw["intermediate_size"])
    layer += 3 * hidden * inner * max(experts, 1) + experts * hidden
    if kind == "gpt_oss":  # biases of everything, a sink for each head
        layer += q + 2 * kv + hidden + raw["num_attention_heads"] + experts * (1 + 2 * inner + hidden)
    return int(layers * layer + 2 * vocab * hidden + hidden)


def latent_by_hand(raw: dict[str, Any]) -> int:
    """The same for latent attention, dense first layers and a shared expert."""
    hidden, layers, first = raw["hidden_size"], raw["num_hidden_layers"], raw["first_k_dense_replace"]
    heads, rank, q_rank = raw["num_attention_heads"], raw["kv_lora_rank"], raw["q_lora_rank"]
    plain, turned, value = raw["qk_nope_head_dim"], raw["qk_rope_head_dim"], raw["v_head_dim"]
    attention = hidden * q_rank + q_rank + q_rank * heads * (plain + turned)
    attention += hidden * (rank + turned) + rank + rank * heads * (plain + value) + heads * value * hidden
    experts, inner = raw["n_routed_experts"], raw["moe_intermediate_size"]
    sparse = (experts + raw["n_shared_experts"]) * 3 * hidden * inner + experts * hidden + experts
    dense = 3 * hidden * raw["intermediate_size"]
    body = layers * (attention + 2 * hidden) + first * dense + (layers - first) * sparse
    return int(body + 2 * raw["vocab_size"] * hidden + hidden)


@pytest.mark.parametrize("name", ACTIVE)
def test_a_token_meets_as_many_parameters_as_published(name: str) -> None:
    """Of the experts those that are chosen; gpt-oss counts the head and not the table, the others both."""
    graph = build_graph(load_config(packaged_configs()[name]))
    top_k = next(node for node in graph.layer if node.op == "route").int_attr("top_k")
    active = sum(
        ref.elements * (top_k if "{expert}" in ref.name else max(ref.experts, 1)) for ref, _ in graph.references()
    )
    if name.startswith("gpt-oss"):
        active -= graph.vocab * graph.hidden
    assert active / 1e9 == pytest.approx(ACTIVE[name], rel=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_compiler_has_kernels_for_it(name: str) -> None:
    decoder = match(build_graph(load_config(packaged_configs()[name])))
    assert (decoder.head_norms is not None) == name.startswith("qwen3")
    assert (decoder.experts is not None) == (name in ACTIVE)


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_it_the_same(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    path = packaged_configs()[name]
    raw = json.loads(path.read_text())
    theirs = transformers.AutoConfig.for_model(**raw)
    ours = load_config(path)
    for field in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads"):
        assert ours.values[field] == getattr(theirs, field), field
    dim = ours.values.get("head_dim", ours.values.get("qk_rope_head_dim"))
    assert dim == (theirs.head_dim or theirs.hidden_size // theirs.num_attention_heads)
    assert theirs.rope_parameters["rope_theta"] == ours.number("rope_theta")

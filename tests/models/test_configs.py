"""The config facts in the package: each is read whole, and means the model that was published."""

from __future__ import annotations

import json

import pytest

from systolith.compiler.model import match
from systolith.models.family import build_graph, load_config, packaged_configs
from systolith.models.graph import check

PUBLISHED = {  # parameters in billions as the model cards say, layers, context
    "llama-3.1-8b": (8.03, 32, 131072),
    "llama-3.1-70b": (70.55, 80, 131072),
    "llama-3.1-405b": (405.85, 126, 131072),
    "qwen3-8b": (8.19, 36, 40960),
}


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
    raw = json.loads(path.read_text())
    hidden, inner, vocab = raw["hidden_size"], raw["intermediate_size"], raw["vocab_size"]
    dim = raw.get("head_dim", hidden // raw["num_attention_heads"])
    q, kv = raw["num_attention_heads"] * dim, raw["num_key_value_heads"] * dim
    norms = 2 * hidden + (2 * dim if name.startswith("qwen3") else 0)
    layer = 2 * hidden * q + 2 * hidden * kv + 3 * hidden * inner + norms
    assert graph.parameters == layers * layer + 2 * vocab * hidden + hidden
    decoder = match(graph)  # the compiler has kernels for all of it
    assert (decoder.scaling is None, decoder.head_norms is None) == (name == "qwen3-8b", name != "qwen3-8b")


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_it_the_same(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    path = packaged_configs()[name]
    raw = json.loads(path.read_text())
    theirs = transformers.AutoConfig.for_model(**raw)
    ours = load_config(path)
    for field in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "head_dim"):
        assert ours.values[field] == getattr(theirs, field), field
    assert theirs.rope_parameters["rope_theta"] == ours.number("rope_theta")

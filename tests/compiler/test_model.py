"""Matching: a graph that has no kernels is refused with the whole list."""

from __future__ import annotations

from dataclasses import replace

import pytest

from systolith.compiler.model import LayerKind, match, periods
from systolith.models.graph import ModelGraph
from systolith.models.profile import Profile
from systolith.spec import ModelError

from .conftest import Make


@pytest.fixture
def graph(make: Make) -> ModelGraph:
    return make().graph


def test_a_llama_is_a_decoder(make: Make) -> None:
    found = match(make(attention_bias=True, tied=False, theta=500000.0).graph)
    assert (found.hidden, found.inner, found.heads, found.kv_heads, found.head_dim) == (64, 96, 2, 1, 32)
    assert (found.vocab, found.layers, found.context, found.ropes) == (70, 2, 512, ((500000.0, None),))
    assert found.kinds == (LayerKind(None),) * 2
    assert [name for name in found.matrices if found.bias(name)] == ["q", "k", "v", "o"]
    assert not found.tied
    assert found.matrices["head"].weight.at(None) == "lm_head.weight"
    assert found.matrices["down"].weight.at(1) == "model.layers.1.mlp.down_proj.weight"


def test_norms_of_heads_are_both_there_or_none(make: Make) -> None:
    graph = make(family="qwen3").graph
    gains = match(graph).head_norms
    assert gains is not None
    assert [g.at(1) for g in gains] == [f"model.layers.1.self_attn.{name}_norm.weight" for name in "qk"]
    assert match(make().graph).head_norms is None
    one = tuple(n if n.out != "k" else replace(n, ins=("k_raw",)) for n in graph.layer if n.out != "k_normed")
    with pytest.raises(ModelError, match=r"^model \w+: no kernel for a layer other than norm, q, k, v, rotary"):
        match(replace(graph, layer=one))


def test_q_and_k_turn_alike(make: Make) -> None:
    linear = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    graph = make(extra=linear).graph
    ((_, scaling),) = match(graph).ropes
    assert scaling is not None
    assert '"kind":"linear"' in scaling
    k = tuple(replace(n, attrs={**n.attrs, "scaling": None}) if n.out == "k" else n for n in graph.layer)
    with pytest.raises(
        ModelError, match=r"^model \w+: no kernel for rotary that differs between q and k; register kernels for them$"
    ):
        match(replace(graph, layer=k))


def test_a_window_is_read_and_may_be_set_by_the_profile(make: Make, graph: ModelGraph) -> None:
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 24}
    assert match(Profile(window=9).apply(graph)).kinds == (LayerKind(9),) * 2
    assert match(make(extra=mistral).graph).kinds == (LayerKind(24),) * 2


def test_everything_without_a_kernel_is_told_at_once(graph: ModelGraph) -> None:
    layer = list(graph.layer)
    layer[4] = replace(layer[4], op="layer_norm")
    layer[13] = replace(layer[13], op="layer_norm")
    strange = replace(graph, layer=tuple(layer), special={1: graph.layer})
    with pytest.raises(
        ModelError,
        match=r"^model m: no kernel for operation layer_norm \(2\); a layer other than norm, q, k, v, rotary, "
        r"attention, o, add, norm and gate, up, activation, down, add or route, experts, add; register kernels for "
        r"them$",
    ):
        match(strange)


def test_layers_may_differ_in_whether_they_have_experts_only(make: Make) -> None:
    mixed = {"mlp_only_layers": [0], "intermediate_size": 224}
    graph = make(family="qwen3_moe", experts=4, extra=mixed).graph
    found = match(graph)
    assert [kind.experts for kind in found.kinds] == [False, True]
    assert (found.layers_of("gate"), found.layers_of("router"), found.layers_of("q")) == ((0,), (1,), (0, 1))
    narrow = tuple(replace(n, weights={}) if n.op == "head_norm" else n for n in graph.special[0])
    with pytest.raises(ModelError, match="no kernel for layers that differ in more than whether they have experts;"):
        match(replace(graph, special={0: narrow}))


def test_a_head_or_embedding_of_another_kind(graph: ModelGraph) -> None:
    with pytest.raises(
        ModelError,
        match=r"^model m: no kernel for an embedding or head other than table, select, norm, linear; register kernels "
        r"for them$",
    ):
        match(replace(graph, head=graph.head[:2]))


def test_what_differs_from_layer_to_layer(graph: ModelGraph) -> None:
    varied = graph.with_attr("attention", window=(5, None), scale=(0.5, 0.25)).with_attr("rope", theta=(1e4, 1e6))
    with pytest.raises(
        ModelError,
        match=r"^model m: no kernel for attention\.scale that differs from layer to layer; register kernels for them$",
    ):
        match(varied)
    found = match(varied.with_attr("attention", scale=0.5))
    assert found.kinds == (LayerKind(5, 0), LayerKind(None, 1))
    assert found.ropes == ((1e4, None), (1e6, None))


def test_layers_are_cut_into_loops_of_equal_bodies() -> None:
    a, b = LayerKind(128), LayerKind(None)
    assert periods((b,) * 80) == [((b,), 80)]
    assert periods((a, b) * 18) == [((a, b), 18)]
    gemma = ((a,) * 5 + (b,)) * 4 + (a, a)
    assert periods(gemma) == [((a, a, a, a, a, b), 4), ((a,), 2)]
    assert periods((b, b, b, *(a,) * 58)) == [((b,), 3), ((a,), 58)]
    for kinds in (gemma, (a, b, b, a, b), (a,)):
        assert tuple(k for body, times in periods(kinds) for _ in range(times) for k in body) == kinds


def test_norms_of_different_eps(graph: ModelGraph) -> None:
    head = tuple(replace(n, attrs={**n.attrs, "eps": 0.5}) if n.op == "rms_norm" else n for n in graph.head)
    with pytest.raises(
        ModelError,
        match=r"^model m: no kernel for norms with different eps; register a kernel for them$",
    ):
        match(replace(graph, head=head))

"""The operation records and the checker of graphs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from systolith.models.checkpoint import Checkpoint
from systolith.models.family import build_graph, parse_config
from systolith.models.graph import (
    OPS,
    ModelGraph,
    Node,
    OpSpec,
    WeightRef,
    check,
    default_lanes,
    register_op,
    require,
    unsupported,
)
from systolith.models.ops import ShapeError, ValueType
from systolith.models.reference import OPERATIONS
from systolith.models.rope import RopeScaling
from systolith.spec.errors import ModelError

from .conftest import SMALL_LLAMA, tensors_of

FULL_SIZE = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def small() -> ModelGraph:
    return build_graph(parse_config(SMALL_LLAMA, "config.json"))


def changed(graph: ModelGraph, at: str, **changes: Any) -> ModelGraph:
    """The graph with one node of its layer changed, the one that defines `at`."""
    assert any(node.out == at for node in graph.layer)
    return replace(graph, layer=tuple(replace(n, **changes) if n.out == at else n for n in graph.layer))


def test_a_llama_is_legal_and_lists_its_tensors() -> None:
    graph = small()
    assert check(graph) == []
    assert {name: ref.shape for name, ref in graph.weights()} == {
        n: t.shape for n, t in tensors_of(SMALL_LLAMA).items()
    }
    assert (graph.heads, graph.kv_heads, graph.tied) == (4, 2, False)
    assert build_graph(parse_config({**SMALL_LLAMA, "tie_word_embeddings": True}, "c")).tied
    assert graph.eos_ids == (2,)
    assert graph.bos_id == 1


def test_config_alone_counts_the_parameters_of_a_full_size_model() -> None:
    graph = build_graph(parse_config(FULL_SIZE, "config.json"))
    assert graph.parameters == 70_553_706_496  # Llama 3 70B


@pytest.mark.parametrize(("kv_heads", "lanes"), [(1, 64), (2, 32), (3, 16), (4, 16), (5, 8), (7, 8), (8, 8), (64, 8)])
def test_default_lanes_follow_rule_7(kv_heads: int, lanes: int) -> None:
    assert default_lanes(kv_heads) == lanes


def test_every_operation_of_a_graph_has_a_rule_in_the_interpreter() -> None:
    # Two that only graphs of peers have are registered where these are imported.
    assert set(OPERATIONS) == set(OPS) - {"gelu", "layer_norm"}
    assert unsupported(small(), OPERATIONS) == []


def test_equal_graphs_are_one_key_and_survive_a_process_boundary() -> None:
    graph = small()
    assert {graph, small(), pickle.loads(pickle.dumps(graph))} == {graph}
    assert graph.with_attr("attention", window=5) != graph


def test_what_a_target_lacks_is_listed_whole() -> None:
    assert unsupported(small(), {"embed", "linear", "add"}) == [
        "attention (1)",
        "cache_append (1)",
        "rms_norm (3)",
        "rope (2)",
        "select (1)",
        "silu_mul (1)",
    ]


@pytest.mark.parametrize(
    ("out", "changes", "fault"),
    [
        (
            "o",
            {"op": "linaer"},
            "layer: linaer o: there is no operation linaer (known: " + ", ".join(sorted(OPS)) + ")",
        ),
        ("o", {"ins": ("atention",)}, "layer: linear o: reads atention, which no earlier node of the section defines"),
        ("o", {"ins": ()}, "layer: linear o: has 0 inputs, must have 1 (x)"),
        ("h", {"attrs": {"x": 1}}, "layer: silu_mul h: has no attribute x (known: none)"),
        ("h", {"ins": ("gate", "a")}, "layer: silu_mul h: gate has 48 columns and a 32, must have equally many"),
        ("h", {"out": "gate"}, "layer: silu_mul gate: the value gate is defined twice"),
        ("a", {"attrs": {}}, "layer: rms_norm a: lacks its attribute eps, a finite number of at least 0"),
        ("a", {"attrs": {"eps": "x"}}, "layer: rms_norm a: eps='x' must be a finite number of at least 0"),
        ("a", {"attrs": {"eps": (0.0,)}}, "layer: rms_norm a: eps has 1 entries, must have one for each of 2 layers"),
        ("a", {"weights": {}}, "layer: rms_norm a: lacks its weight g"),
        (
            "a",
            {"weights": {"g": WeightRef("model.norm.weight", (32,), "norm")}},
            "layer: rms_norm a: weight g, model.norm.weight, lacks {layer}",
        ),
        (
            "a",
            {"weights": {"g": WeightRef("{layer}", (33,), "norm")}},
            "layer: rms_norm a: weight g has shape (33,), must have (32,)",
        ),
        (
            "a",
            {"weights": {"g": WeightRef("{layer}", (32,), "gain")}},
            "layer: rms_norm a: the class gain of weight g is none of "
            "q, k, v, o, gate, up, down, head, router, expert_gate, expert_up, expert_down, embed, norm, bias, sink",
        ),
        (
            "attention",
            {"attrs": {"heads": 4, "kv_heads": 3, "head_dim": 8}},
            "layer: attention attention: heads=4 must be a multiple of kv_heads=3",
        ),
        ("x_ffn", {"op": "select", "ins": ("x",)}, "layer: its result is picked [32], must be tokens [32]"),
    ],
)
def test_the_checker_names_a_fault(out: str, changes: dict[str, Any], fault: str) -> None:
    assert fault in check(changed(small(), out, **changes))


def test_a_graph_with_several_faults_is_refused_with_all_of_them() -> None:
    bad = changed(changed(small(), "a", attrs={}), "o", ins=("p",))
    with pytest.raises(
        ModelError,
        match=r"^model graph llama: layer: rms_norm a: lacks its attribute eps, a finite number of at least 0; "
        r"layer: linear o: reads p, which no earlier node of the section defines$",
    ):
        require(bad)


def test_attributes_may_differ_from_layer_to_layer() -> None:
    graph = small().with_attr("attention", window=(None, 16))
    assert check(graph) == []
    attention = next(node for node in graph.layer if node.op == "attention")
    assert [attention.attr("window", layer) for layer in range(2)] == [None, 16]
    with pytest.raises(KeyError, match="differs from layer to layer"):
        attention.attr("window")


def test_a_rotary_scaling_is_canonical_text_and_absent_where_there_is_none() -> None:
    scaled = build_graph(parse_config({**SMALL_LLAMA, "rope_scaling": {"type": "linear", "factor": 2}}, "c"))
    assert scaled != small()
    assert [set(node.attrs) for node in small().layer if node.op == "rope"] == [{"heads", "head_dim", "theta"}] * 2
    text = next(node for node in scaled.layer if node.op == "rope").text_attr("scaling", 0)
    assert text == RopeScaling("linear", 2.0).text
    assert RopeScaling.from_text(text) == RopeScaling("linear", 2.0)
    for wrong in ("", "[]", "{}", text.replace("linear", "liner"), text + " "):
        bad = small().with_attr("rope", scaling=wrong)
        assert check(bad)[0] == f"layer: rope q: scaling={wrong!r} is no rotary scaling"


def test_single_layers_may_have_another_body(make_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(make_model())
    graph = replace(checkpoint.graph, special={1: ()})
    assert check(graph) == []
    assert sum(name.startswith("model.layers.") for name, _ in graph.weights()) == 9
    assert check(replace(graph, special={2: ()})) == ["special: there is no layer 2, the model has 2"]


def test_an_operation_can_be_added_once() -> None:
    def shape(node: Node, ins: list[ValueType], layer: int | None) -> ValueType:
        raise ShapeError("never fits")

    spec = OpSpec("test_only", ("x",), {}, {}, shape, "an operation of a test")
    register_op(spec)
    try:
        assert "layer: test_only h: never fits" in check(changed(small(), "h", op="test_only", ins=("x",)))
        with pytest.raises(ModelError, match=r"^the operation test_only is registered already; choose another name$"):
            register_op(spec)
    finally:
        del OPS["test_only"]

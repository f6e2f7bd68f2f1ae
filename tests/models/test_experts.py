"""Mixtures of experts: their graphs, and the layouts in which their tensors may lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from systolith.models.checkpoint import Checkpoint
from systolith.models.family import build_graph, parse_config
from systolith.models.graph import ModelGraph, WeightRef, check
from systolith.models.reference import interpret
from systolith.spec.errors import ModelError

from .conftest import SMALL_LLAMA, tensors_of
from .test_reference import GPT_OSS, MIXTRAL, MXFP4, QWEN3_MOE

MakeModel = Callable[..., Path]


def graph_of(**changes: Any) -> ModelGraph:
    return build_graph(parse_config({**SMALL_LLAMA, **changes}, "c"))


@pytest.mark.parametrize("config", [MIXTRAL, QWEN3_MOE, {**QWEN3_MOE, "mlp_only_layers": [0]}])
def test_the_graph_lists_each_matrix_of_each_expert(config: dict[str, Any]) -> None:
    graph = graph_of(**config)
    tensors = tensors_of({**SMALL_LLAMA, **config})
    assert check(graph) == []
    assert {name: ref.shape for name, ref in graph.weights()} == {name: t.shape for name, t in tensors.items()}
    assert graph.parameters == sum(t.size for t in tensors.values())


def test_how_often_each_expert_is_chosen_follows_the_config() -> None:
    def route(graph: ModelGraph) -> Any:
        return next(node for node in graph.layer if node.op == "route").attrs

    assert route(graph_of(**MIXTRAL)) == {"top_k": 2, "score": "softmax"}
    assert route(graph_of(**QWEN3_MOE)) == {"top_k": 3, "score": "softmax_all"}
    assert route(graph_of(**QWEN3_MOE, norm_topk_prob=True)) == {"top_k": 3, "score": "softmax"}
    names = {**QWEN3_MOE, "num_local_experts": 9}
    del names["num_experts"]
    assert graph_of(**names) == graph_of(**QWEN3_MOE)
    dense = graph_of(**QWEN3_MOE, num_hidden_layers=7, decoder_sparse_step=3, mlp_only_layers=[2])
    assert sorted(dense.special) == [0, 1, 2, 3, 4, 6]
    assert [node.op for node in dense.body(5)][-3:] == ["route", "experts", "add"]
    assert "experts" not in {node.op for node in dense.body(2)}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {**MIXTRAL, "num_experts_per_tok": 6},
            r"^c: num_experts_per_tok=6 must be at most num_local_experts=5; correct the file$",
        ),
        (
            {**QWEN3_MOE, "num_local_experts": 8},
            r"^c: num_experts=9 and num_local_experts=8 must be equal; correct the file$",
        ),
        (
            {**QWEN3_MOE, "mlp_only_layers": [2]},
            r"^c: mlp_only_layers=\[2\] must be a list of layers 0\.\.1, or null; correct the file$",
        ),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        graph_of(**config)


def changed(op: str, weights: dict[str, WeightRef] | None = None, **attrs: Any) -> list[str]:
    """Faults of a small Mixtral with weights and attributes of one operation changed."""
    graph = graph_of(**MIXTRAL)
    nodes = tuple(
        replace(n, weights={**n.weights, **(weights or {})}, attrs={**n.attrs, **attrs}) if n.op == op else n
        for n in graph.layer
    )
    return check(replace(graph, layer=nodes))


def test_the_checker_knows_what_a_router_may_do() -> None:
    assert changed("route") == []
    assert changed("route", score="sigmoid", normalise=False, scale=2.5) == []
    assert changed("route", top_k=6) == [
        "layer: route routes: top_k=6 must be at most the 5 experts of the best groups"
    ]
    assert changed("route", score="best") == [
        "layer: route routes: score='best' must be one of softmax, softmax_all, sigmoid"
    ]
    assert changed("route", score="sigmoid", groups=2) == [
        "layer: route routes: groups=2 must divide the 5 experts into equal groups of at least 2"
    ]
    assert changed("route", groups=5) == ["layer: route routes: groups and a correction go with the score sigmoid only"]
    assert changed("experts", experts=4) == ["layer: experts y: routes chooses from 5 experts, there are 4"]
    other = WeightRef("{layer}.{expert}", (32, 47), "expert_down", 5)
    assert changed("experts", {"down": other}) == [
        "layer: experts y: weight down has shape (32, 47), must have (32, 48)"
    ]
    assert changed("experts", {"down": replace(other, experts=0)}) == [
        "layer: experts y: weight down belongs to 0 experts, its name {layer}.{expert} must have {expert} if to any"
    ]


def stack_experts(path: Path, gate: str, up: str, down: str) -> None:
    """Store the experts of a model as transformers 5 holds them in memory: one stack each of gate over up, and down."""
    tensors = load_file(path / "model.safetensors")
    out = {name: value for name, value in tensors.items() if ".experts." not in name}
    found = {name.split("experts.")[0] + "experts." for name in tensors if ".experts." in name}
    for at in found:
        count = sum(name.startswith(at) and f".{down}." in name for name in tensors)
        both = [[tensors[f"{at}{e}.{name}.weight"] for name in (gate, up)] for e in range(count)]
        out[at.replace("block_sparse_moe", "mlp") + "gate_up_proj"] = np.stack([np.concatenate(b) for b in both])
        downs = [tensors[f"{at}{e}.{down}.weight"] for e in range(count)]
        out[at.replace("block_sparse_moe", "mlp") + "down_proj"] = np.stack(downs)
    out = {name.replace("block_sparse_moe", "mlp"): value for name, value in out.items()}
    save_file(out, path / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "names"), [(MIXTRAL, ("w1", "w3", "w2")), (QWEN3_MOE, ("gate_proj", "up_proj", "down_proj"))]
)
def test_stacked_experts_are_the_same_model(
    config: dict[str, Any], names: tuple[str, str, str], make_model: MakeModel
) -> None:
    single, stacked = Checkpoint.open(make_model("a", **config)), make_model("b", **config)
    stack_experts(stacked, *names)
    both = Checkpoint.open(stacked)
    assert both.bytes == single.bytes
    for name, ref in single.graph.weights():
        np.testing.assert_array_equal(both.tensor(name), single.tensor(name))
        np.testing.assert_array_equal(both.rows(name, 1, 3), single.tensor(name)[1:3])
        assert both.tensor(name).shape == ref.shape
    expert = next(node for node in both.graph.layer if node.op == "experts").weights["up"]
    np.testing.assert_array_equal(both.weight(expert, 1, 2), single.tensor(expert.at(1, 2)))
    assert both.blocks(expert, 1, 2) is None
    np.testing.assert_array_equal(interpret(both.graph, both, [3, 4, 5]), interpret(single.graph, single, [3, 4, 5]))


def test_what_is_missing_of_experts_is_named_once(make_model: MakeModel) -> None:
    path = make_model(**MIXTRAL)
    stack_experts(path, "w1", "w3", "w2")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.down_proj"]
    tensors["model.layers.0.mlp.experts.gate_up_proj"] = tensors["model.layers.0.mlp.experts.gate_up_proj"][:4]
    save_file(tensors, path / "model.safetensors")
    at = r"model\.layers\.1\.block_sparse_moe\.experts"
    with pytest.raises(
        ModelError,
        match=rf"^.*model: lacks the tensors {at}\.0\.w2\.weight, {at}\.1\.w2\.weight, {at}\.2\.w2\.weight and 2 more, "
        r"which the config asks for; tensor model\.layers\.0\.mlp\.experts\.gate_up_proj of model\.safetensors has "
        r"shape \[4, 96, 32\], must have \[5, 96, 32\]; use the config\.json that belongs to these tensors$",
    ):
        Checkpoint.open(path)


@pytest.mark.torch
@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("config", [MIXTRAL, QWEN3_MOE], ids=["mixtral", "qwen3_moe"])
def test_what_transformers_saves_is_read(
    config: dict[str, Any], published: bool, make_model: MakeModel, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    path = make_model(**config)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    model.save_pretrained(tmp_path / "saved", save_original_format=published)
    first, saved = Checkpoint.open(path), Checkpoint.open(tmp_path / "saved")
    assert ("model.layers.0.mlp.experts.gate_up_proj" in saved.files) != published
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == config["model_type"]
    assert saved.graph.layer == first.graph.layer
    for name, _ in first.graph.weights():
        np.testing.assert_array_equal(saved.tensor(name), first.tensor(name))


def dequantise(path: Path) -> dict[str, np.ndarray]:
    """Rewrite a gpt-oss directory with what transformers makes of its MXFP4 blocks; give the stacks."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0 (CPU)")
    pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = load_file(path / "model.safetensors")
    stacks = {}
    for name in [name for name in tensors if name.endswith("_blocks")]:
        parts = (torch.from_numpy(tensors.pop(name.replace("_blocks", end))) for end in ("_blocks", "_scales"))
        stacks[name.removesuffix("_blocks")] = convert_moe_packed_tensors(*parts, dtype=torch.float32).numpy()
    save_file(tensors | stacks, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    return stacks


@pytest.mark.torch
def test_mxfp4_is_decoded_as_by_transformers_bit_for_bit(make_model: MakeModel) -> None:
    path, other = (make_model(name, **{**GPT_OSS, **MXFP4}) for name in ("blocks", "plain"))
    for directory in (path, other):  # scales of all sizes: the smallest values are subnormal, the largest infinite
        tensors = load_file(directory / "model.safetensors")
        for name in tensors:
            if name.endswith("_scales") and ".0." in name:
                tensors[name] = np.arange(tensors[name].size, dtype=np.uint32).reshape(tensors[name].shape) % 255
                tensors[name] = tensors[name].astype(np.uint8)
        save_file(tensors, directory / "model.safetensors")
    stacks, checkpoint = dequantise(other), Checkpoint.open(path)
    node = next(node for node in checkpoint.graph.layer if node.op == "experts")
    for layer in range(2):
        at = f"model.layers.{layer}.mlp.experts."
        for role, stack, rows in (
            ("gate", "gate_up_proj", slice(0, None, 2)),
            ("up", "gate_up_proj", slice(1, None, 2)),
            ("down", "down_proj", slice(None)),
        ):
            for expert in range(6):
                ref, want = node.weights[role], np.ascontiguousarray(stacks[at + stack][expert].T[rows])
                got = checkpoint.weight(ref, layer, expert)
                np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
                blocks = checkpoint.blocks(ref, layer, expert)
                assert blocks is not None
                packed = load_file(path / "model.safetensors")[f"{at}{stack}_blocks"][expert][rows]
                np.testing.assert_array_equal(blocks[0][:, 0::2], (packed & 15).reshape(len(want), -1))
                np.testing.assert_array_equal(blocks[0][:, 1::2], (packed >> 4).reshape(len(want), -1))
                scales = load_file(path / "model.safetensors")[f"{at}{stack}_scales"][expert][rows]
                np.testing.assert_array_equal(blocks[1], scales)


@pytest.mark.torch
def test_a_model_in_mxfp4_is_the_model_that_transformers_dequantises(make_model: MakeModel) -> None:
    path, other = (make_model(name, **{**GPT_OSS, **MXFP4}) for name in ("blocks", "plain"))
    dequantise(other)
    blocks, plain = Checkpoint.open(path), Checkpoint.open(other)
    ids = [3, 4, 5, 60, 7]
    np.testing.assert_array_equal(interpret(blocks.graph, blocks, ids), interpret(plain.graph, plain, ids))
    assert blocks.bytes < plain.bytes / 3
    bias = next(node for node in blocks.graph.layer if node.op == "experts").weights["up_bias"]
    stack = load_file(path / "model.safetensors")["model.layers.1.mlp.experts.gate_up_proj_bias"]
    np.testing.assert_array_equal(blocks.weight(bias, 1, 4), stack[4, 1::2])


def test_a_scale_of_255_is_not_a_number(make_model: MakeModel) -> None:
    path = make_model(**{**GPT_OSS, **MXFP4})
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.mlp.experts.down_proj_scales"][2, 5, 1] = 255
    save_file(tensors, path / "model.safetensors")
    got = Checkpoint.open(path).tensor("model.layers.0.mlp.experts.2.down_proj.weight")
    assert np.argwhere(np.isnan(got)).tolist() == [[5, column] for column in range(32, 64)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"quantization_config": {"quant_method": "gptq"}},
            r'quantization_config=\{"quant_method": "gptq"\} must be null or an object with quant_method mxfp4 '
            r"\(keys: quant_method, modules_to_not_convert, dequantize\); hidden_size=48 must be a multiple of 32, the "
            r"block of MXFP4",
        ),
        (
            {"experts_per_token": 4, "layer_types": ["full"]},
            r'layer_types=\["full"\] must be a list with full_attention or sliding_attention for each of 2 layers, or '
            r"null; experts_per_token=4 and num_experts_per_tok=3 must be equal",
        ),
    ],
)
def test_a_gpt_oss_config_is_checked(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=rf"^c: {sentence}; correct the file$"):
        graph_of(**{**GPT_OSS, "hidden_size": 48, "intermediate_size": 64, **changes})


def test_a_checkpoint_and_its_config_must_agree_on_mxfp4(make_model: MakeModel) -> None:
    path = make_model(**{**GPT_OSS, **MXFP4})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    at = r"model\.layers\.[01]\.mlp\.experts\."
    with pytest.raises(
        ModelError,
        match=rf"^.*lacks the tensors {at}gate_up_proj, {at}down_proj, {at}gate_up_proj and 1 more, which the config "
        rf"asks for; holds the tensors {at}\w+, {at}\w+, {at}\w+ and 5 more, for which the config has no use; use .*$",
    ):
        Checkpoint.open(path)

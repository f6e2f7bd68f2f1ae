"""Gemma 3: what its config means beyond the comparison with transformers, and the files with an image half."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from systolith.models.checkpoint import Checkpoint
from systolith.models.family import build_graph, parse_config
from systolith.models.graph import ModelGraph, Node
from systolith.models.reference import interpret
from systolith.spec.errors import ModelError

from .conftest import SMALL_LLAMA
from .test_reference import GEMMA

MakeModel = Callable[..., Path]
TEXT = {key: value for key, value in {**SMALL_LLAMA, **GEMMA}.items() if key != "hidden_act"}


def graph_of(**changes: Any) -> ModelGraph:
    return build_graph(parse_config({**TEXT, **changes}, "c"))


def node(graph: ModelGraph, op: str) -> Node:
    return next(n for n in (*graph.embed, *graph.layer) if n.op == op)


def test_layers_with_a_window_have_a_rotary_base_of_their_own() -> None:
    graph = graph_of()
    assert node(graph, "attention").attrs["window"] == (24, None, 24)
    assert node(graph, "rope").attrs["theta"] == (300.0, 5e4, 300.0)
    assert node(graph, "attention").attrs["scale"] == 12.0**-0.5
    assert "scale" not in node(graph_of(query_pre_attn_scalar=8), "attention").attrs  # 1 / sqrt(head_dim), exactly
    ops = [n.op for n in graph.layer]
    assert ops.count("rms_norm") == 4
    assert ops[ops.index("gelu_mul") :] == ["gelu_mul", "linear", "rms_norm", "add"]


@pytest.mark.parametrize(
    ("kind", "scale"), [(None, float(np.sqrt(np.float32(32)))), ("bfloat16", 5.65625), ("float16", 5.65625)]
)
def test_the_embedding_is_scaled_in_the_type_of_the_model(kind: str | None, scale: float) -> None:
    assert node(graph_of(torch_dtype=kind), "embed").attrs["scale"] == scale


@pytest.mark.parametrize(
    ("prefix", "vision"),
    [("language_model.model.", "vision_tower."), ("model.language_model.", "model.multi_modal_projector.")],
)
def test_the_text_of_a_model_that_takes_images_is_read(prefix: str, vision: str, make_model: MakeModel) -> None:
    text, both = make_model("text", **GEMMA, tie_word_embeddings=True), make_model("both", **GEMMA)
    tensors = load_file(text / "model.safetensors")
    tensors = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
    tensors[vision + "weight"] = np.ones((3, 4), np.float32)
    save_file(tensors, both / "model.safetensors")
    inner = json.loads((text / "config.json").read_text())
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {"depth": 3},
        "eos_token_id": [1, 5], "boi_token_index": 7, "text_config": {**inner, "architectures": None},
    }  # fmt: skip
    (both / "config.json").write_text(json.dumps(config))
    plain, read = Checkpoint.open(text), Checkpoint.open(both)
    assert read.graph.eos_ids == (1, 5)
    assert read.graph.layer == plain.graph.layer
    np.testing.assert_array_equal(interpret(read.graph, read, [3, 4]), interpret(plain.graph, plain, [3, 4]))
    gain = "model.layers.0.input_layernorm.weight"
    np.testing.assert_array_equal(
        read.tensor(gain), np.float32(1) + tensors[f"{prefix}layers.0.input_layernorm.weight"]
    )


def test_faults_of_the_text_are_told_with_its_name() -> None:
    both = {"model_type": "gemma3", "text_config": {**TEXT, "hiden_size": 3, "final_logit_softcapping": 30.0}}
    with pytest.raises(
        ModelError,
        match=r"^c: text_config: hiden_size=3 is no known field of a gemma3_text model \(did you mean hidden_size\?\); "
        r"text_config: final_logit_softcapping=30\.0 must be null; correct the file$",
    ):
        parse_config(both, "c")
    with pytest.raises(
        ModelError,
        match=r'^c: rope_parameters=\{"rope_type": "default"\} must have full_attention and sliding_attention; '
        r"correct the file$",
    ):
        graph_of(rope_parameters={"rope_type": "default"})


@pytest.mark.torch
def test_transformers_reads_the_text_of_a_model_that_takes_images_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0 (CPU)")
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=TEXT, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.3 if value.ndim == 1 else value.shape[-1] ** -0.5)
        model.tie_weights()
        model.save_pretrained(tmp_path)
        ids = list(range(3, 43))
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    checkpoint = Checkpoint.open(tmp_path)
    assert any("vision_tower" in name for name in checkpoint.files)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(interpret(checkpoint.graph, checkpoint, ids), expected, rtol=0, atol=1e-4)

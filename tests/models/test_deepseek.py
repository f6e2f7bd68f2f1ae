"""DeepSeek V3: its graph, its FP8 checkpoints, and what its config may not say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from systolith.models.checkpoint import Checkpoint
from systolith.models.family import build_graph, parse_config
from systolith.models.graph import ModelGraph, check, unsupported
from systolith.models.reference import interpret
from systolith.spec.errors import ModelError

from .conftest import SMALL_LLAMA, tensors_of
from .test_reference import DEEPSEEK, DEEPSEEK_YARN

MakeModel = Callable[..., Path]
WIDE = {**DEEPSEEK, "hidden_size": 160, "qk_nope_head_dim": 48, "v_head_dim": 40, "kv_lora_rank": 136}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def graph_of(**changes: Any) -> ModelGraph:
    return build_graph(parse_config({**SMALL_LLAMA, **DEEPSEEK, **changes}, "c"))


def test_the_graph_has_the_parameters_of_the_tensors() -> None:
    graph = graph_of()
    assert check(graph) == []
    assert graph.parameters == sum(t.size for t in tensors_of({**SMALL_LLAMA, **DEEPSEEK}).values())
    assert (graph.heads, graph.kv_heads, sorted(graph.special)) == (4, 1, [0])
    assert unsupported(graph, {"linear", "rms_norm", "add", "rope", "embed", "select", "silu_mul"}) == [
        "columns (8)", "experts (1)", "head_linear (4)", "latent_append (2)", "latent_attention (2)", "route (1)",
    ]  # fmt: skip


def test_the_scale_of_the_scores_has_the_square_of_yarns_factor() -> None:
    def scale(**changes: Any) -> float:
        graph = graph_of(**changes)
        return next(node for node in graph.layer if node.op == "latent_attention").float_attr("scale")

    assert scale() == pytest.approx(20**-0.5, rel=1e-15)
    mscale = 0.1 * np.log(40) + 1
    assert scale(rope_scaling=DEEPSEEK_YARN) == pytest.approx(20**-0.5 * mscale**2, rel=1e-14)
    rope = next(node for node in graph_of(rope_scaling=DEEPSEEK_YARN).layer if node.op == "rope")
    assert '"attention_factor":1.0' in str(rope.attrs["scaling"])  # mscale over mscale_all_dim
    assert rope.attrs["interleaved"] is True


def to_fp8(path: Path) -> dict[str, np.ndarray]:
    """Rewrite the matrices of a directory as published: FP8 under scales of 128 x 128; give them dequantised."""
    tensors, exact = load_file(path / "model.safetensors"), {}
    plain = ("norm.weight", "mlp.gate.weight", "embed_tokens.weight", "lm_head.weight", "_bias")
    for name in [name for name in tensors if not name.endswith(plain)]:
        w = tensors[name]
        rows, columns = (-(-size // 128) for size in w.shape)
        scale = np.random.default_rng(rows).uniform(0.5, 2, (rows, columns)).astype(np.float32) / 300
        spread = np.kron(scale, np.ones((128, 128), np.float32))[: w.shape[0], : w.shape[1]]
        tensors[name] = (w / spread).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
        tensors[name + "_scale_inv"] = scale
        exact[name] = tensors[name].astype(np.float32) * spread
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": FP8}))
    return exact


def test_fp8_blocks_are_code_times_scale_rounded_once(make_model: MakeModel) -> None:
    path, other = make_model("fp8", **WIDE), make_model("plain", **WIDE)
    exact = to_fp8(path)
    save_file({**load_file(other / "model.safetensors"), **exact}, other / "model.safetensors")
    fp8, plain = Checkpoint.open(path), Checkpoint.open(other)
    assert fp8.bytes < plain.bytes / 2
    for name, ref in plain.graph.weights():
        np.testing.assert_array_equal(fp8.tensor(name), plain.tensor(name), name)
        assert fp8.tensor(name).shape == ref.shape
    ids = [3, 4, 5, 60]
    np.testing.assert_array_equal(interpret(fp8.graph, fp8, ids), interpret(plain.graph, plain, ids))
    key, value = (f"model.layers.1.self_attn.kv_b_proj.3.{part}.weight" for part in ("key", "value"))
    whole = exact["model.layers.1.self_attn.kv_b_proj.weight"]
    np.testing.assert_array_equal(fp8.tensor(key), whole[3 * 88 : 3 * 88 + 48].T)
    np.testing.assert_array_equal(fp8.tensor(value), whole[3 * 88 + 48 : 4 * 88])
    np.testing.assert_array_equal(fp8.rows(value, 2, 5), whole[3 * 88 + 50 : 3 * 88 + 53])


def test_layers_that_predict_further_tokens_are_not_read(make_model: MakeModel) -> None:
    path = make_model(**DEEPSEEK)
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.3.eh_proj.weight"] = np.ones((32, 64), np.float32)
    save_file(tensors, path / "model.safetensors")
    Checkpoint.open(path)
    tensors["model.layers.4.eh_proj.weight"] = np.ones((32, 64), np.float32)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(
        ModelError,
        match=r"^.*: holds the tensor model\.layers\.4\.eh_proj\.weight, for which the config has no use; use .*$",
    ):
        Checkpoint.open(path)


@pytest.mark.torch
def test_what_transformers_saves_is_read(make_model: MakeModel, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    path = make_model(**DEEPSEEK)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    model.save_pretrained(tmp_path / "saved", save_original_format=False)
    first, saved = Checkpoint.open(path), Checkpoint.open(tmp_path / "saved")
    assert saved.graph.layer == first.graph.layer
    for name, _ in first.graph.weights():
        np.testing.assert_array_equal(saved.tensor(name), first.tensor(name))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_key_value_heads": 2}, r"num_key_value_heads=2 must be num_attention_heads=4, all heads read one latent"),
        (
            {"n_group": 5, "qk_head_dim": 21},
            r"qk_head_dim=21 must be 20, which follows from the other sizes of a head; n_group=5 must divide "
            r"n_routed_experts=12 into equal groups of at least 2",
        ),
        ({"topk_group": 1}, r"num_experts_per_tok=4 must be at most 3, the experts of 1 groups"),
        (
            {"qk_rope_head_dim": 7, "head_dim": None, "scoring_func": "softmax"},
            r'scoring_func="softmax" must be "sigmoid"; qk_rope_head_dim=7 must be even',
        ),
        (
            {"quantization_config": {**FP8, "weight_block_size": [64, 64]}},
            r'quantization_config=\{.* must be null or an object with quant_method "fp8", fmt "e4m3", '
            r"weight_block_size \[128, 128\] \(keys: quant_method, fmt, weight_block_size, activation_scheme, "
            r"modules_to_not_convert\)",
        ),
    ],
)
def test_a_config_is_checked(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=rf"^c: {sentence}; correct the file$"):
        graph_of(**changes)

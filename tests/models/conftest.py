"""Random checkpoints in Hugging Face layout for the tests of models."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from systolith.spec.errors import SystolithError

SMALL_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MakeModel = Callable[..., Path]


def tensors_of(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors a config asks for, by the names and shapes of transformers, written apart from the package."""
    generator = np.random.default_rng(seed)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or hidden // heads
    q, kv = heads * dim, (config.get("num_key_value_heads") or heads) * dim
    out = {"model.embed_tokens.weight": generator.normal(0, 1, (vocab, hidden))}
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        matrices = {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
        }
        if config["model_type"] == "deepseek_v3":
            matrices = latent_attention(config)
            for name in ("q_a", "kv_a")[config["q_lora_rank"] is None :]:
                width = config[f"{name[:-2]}_lora_rank"]
                out[f"{base}self_attn.{name}_layernorm.weight"] = 1 + generator.normal(0, 0.2, width)
            if "mlp.gate" in feed_forward(config, layer):
                correction = generator.normal(0, 0.1, config["n_routed_experts"])
                out[f"{base}mlp.gate.e_score_correction_bias"] = correction
        for name, (rows, columns) in (matrices | feed_forward(config, layer)).items():
            out[f"{base}{name}.weight"] = generator.normal(0, columns**-0.5, (rows, columns))
            bias = config.get("attention_bias" if "self_attn" in name else "mlp_bias")
            kind = config["model_type"]
            if kind == "deepseek_v3" and name.endswith(("q_proj", "b_proj")):
                bias = False
            if bias or (kind == "qwen2" and name[-6] in "qkv") or kind == "gpt_oss":
                out[f"{base}{name}.bias"] = generator.normal(0, 0.3, rows)
        if config["model_type"] == "gpt_oss":
            out[f"{base}self_attn.sinks"] = generator.normal(0, 1, heads)
            out |= stacks(config, generator, f"{base}mlp.experts.")
        gemma = config["model_type"].startswith("gemma3")
        if gemma or config["model_type"].startswith("qwen3"):
            for name in ("q_norm", "k_norm"):
                out[f"{base}self_attn.{name}.weight"] = (not gemma) + generator.normal(0, 0.3, dim)
        more = ("pre_feedforward_layernorm", "post_feedforward_layernorm") if gemma else ()
        for name in ("input_layernorm", "post_attention_layernorm", *more):
            out[f"{base}{name}.weight"] = (not gemma) + generator.normal(0, 0.1, hidden)
    out["model.norm.weight"] = (not config["model_type"].startswith("gemma3")) + generator.normal(0, 0.1, hidden)
    if not config.get("tie_word_embeddings"):
        out["lm_head.weight"] = generator.normal(0, hidden**-0.5, (vocab, hidden))
    return {name: value if value.dtype == np.uint8 else value.astype(np.float32) for name, value in out.items()}


def stacks(config: dict[str, Any], generator: np.random.Generator, at: str) -> dict[str, np.ndarray]:
    """The experts of gpt-oss: stacks [E, K, N], or MXFP4 blocks [E, N, K / 32, 16] and scales; gate and up in turn."""
    experts, hidden, inner = (config[n] for n in ("num_local_experts", "hidden_size", "intermediate_size"))
    out = {}
    for name, n, k in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        if config.get("quantization_config"):
            out[f"{at}{name}_blocks"] = generator.integers(0, 256, (experts, n, k // 32, 16)).astype(np.uint8)
            out[f"{at}{name}_scales"] = generator.integers(120, 125, (experts, n, k // 32)).astype(np.uint8)
        else:
            out[at + name] = generator.normal(0, k**-0.5, (experts, k, n))
        out[f"{at}{name}_bias"] = generator.normal(0, 0.3, (experts, n))
    return out


def latent_attention(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Names and shapes [N, K] of the matrices of a layer's attention in DeepSeek V3."""
    hidden, heads, rank, q_rank = (
        config[n] for n in ("hidden_size", "num_attention_heads", "kv_lora_rank", "q_lora_rank")
    )
    plain, turned, value = (config[n] for n in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    q = heads * (plain + turned)
    queries = {"q_a_proj": (q_rank, hidden), "q_b_proj": (q, q_rank)} if q_rank else {"q_proj": (q, hidden)}
    rest = {
        "kv_a_proj_with_mqa": (rank + turned, hidden),
        "kv_b_proj": (heads * (plain + value), rank),
        "o_proj": (hidden, heads * value),
    }
    return {f"self_attn.{name}": shape for name, shape in (queries | rest).items()}


def feed_forward(config: dict[str, Any], layer: int) -> dict[str, tuple[int, int]]:
    """Names and shapes [N, K] of the matrices of a layer's feed-forward part, as published."""
    hidden, inner, kind = config["hidden_size"], config["intermediate_size"], config["model_type"]
    if kind == "gpt_oss":
        return {"mlp.router": (config["num_local_experts"], hidden)}
    if kind == "mixtral":
        experts = config["num_local_experts"]
        shapes = {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}
        router, names = "block_sparse_moe.gate", ("block_sparse_moe.experts.{}.{}", shapes)
    else:
        step, only = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
        sparse = kind == "qwen3_moe" and layer not in only and (layer + 1) % step == 0
        if kind == "deepseek_v3":
            sparse = layer >= config["first_k_dense_replace"]
        size = config["moe_intermediate_size"] if sparse else inner
        shapes = {"gate_proj": (size, hidden), "up_proj": (size, hidden), "down_proj": (hidden, size)}
        if not sparse:
            return {f"mlp.{name}": shape for name, shape in shapes.items()}
        experts = config["n_routed_experts" if kind == "deepseek_v3" else "num_experts"]
        router, names = "mlp.gate", ("mlp.experts.{}.{}", shapes)
    matrices = {router: (experts, hidden)}
    if kind == "deepseek_v3":
        size *= config["n_shared_experts"]
        for name, shape in (("gate_proj", (size, hidden)), ("up_proj", (size, hidden)), ("down_proj", (hidden, size))):
            matrices[f"mlp.shared_experts.{name}"] = shape
    for expert in range(experts):
        matrices |= {names[0].format(expert, name): shape for name, shape in names[1].items()}
    return matrices


def write_model(path: Path, *, seed: int = 0, shards: int = 1, **changes: Any) -> Path:
    """Write a small Llama (SMALL_LLAMA with changes; None for a value removes nothing) and return its directory."""
    path.mkdir(parents=True, exist_ok=True)
    config = {**SMALL_LLAMA, **changes}
    if config["model_type"].startswith("gemma3"):
        del config["hidden_act"]  # it has hidden_activation
    (path / "config.json").write_text(json.dumps(config, indent=1))
    tensors = tensors_of(config, seed)
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return path
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, path / file)
        weight_map |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


@dataclass
class FuzzReport:
    """How attempts on a damaged file ended."""

    normal: int = 0
    refusals: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def fuzz_file(
    file: Path, attempt: Callable[[], object], *, seed: int, places: Sequence[int] = (), count: int = 500
) -> FuzzReport:
    """Change bytes of a file `count` times and try it; anything but a normal end or a refusal is raised as it comes.

    Half of the changes go to `places`, if there are any. Refusals are checked to be one line of printable text.
    """
    original = file.read_bytes()
    source = random.Random(seed)
    report = FuzzReport()
    for _ in range(count):
        data = bytearray(original)
        for _ in range(source.choice((1, 1, 1, 4))):
            at = source.choice(places) if places and source.random() < 0.5 else source.randrange(len(data))
            data[at] = source.choice((source.randrange(256), *b"0123456789-.e,"))
        file.write_bytes(data)
        start = time.perf_counter()
        try:
            attempt()
            report.normal += 1
        except SystolithError as error:
            report.refusals.append(str(error))
        report.slowest_s = max(report.slowest_s, time.perf_counter() - start)
    file.write_bytes(original)
    assert [text for text in report.refusals if not text.isprintable()] == []
    assert report.slowest_s < 10
    return report


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """`make_model(**changes)`: a model directory under the test's own path."""

    def make(name: str = "model", **changes: Any) -> Path:
        return write_model(tmp_path / name, **changes)

    return make

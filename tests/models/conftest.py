"""Random checkpoints in Hugging Face layout for the tests of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

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
    random = np.random.default_rng(seed)
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or hidden // heads
    q, kv = heads * dim, (config.get("num_key_value_heads") or heads) * dim
    out = {"model.embed_tokens.weight": random.normal(0, 1, (vocab, hidden))}
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        for name, (rows, columns) in {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            out[f"{base}{name}.weight"] = random.normal(0, columns**-0.5, (rows, columns))
            if config.get("attention_bias" if "self_attn" in name else "mlp_bias"):
                out[f"{base}{name}.bias"] = random.normal(0, 0.3, rows)
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"{base}{name}.weight"] = 1 + random.normal(0, 0.1, hidden)
    out["model.norm.weight"] = 1 + random.normal(0, 0.1, hidden)
    if not config.get("tie_word_embeddings"):
        out["lm_head.weight"] = random.normal(0, hidden**-0.5, (vocab, hidden))
    return {name: value.astype(np.float32) for name, value in out.items()}


def write_model(path: Path, *, seed: int = 0, shards: int = 1, **changes: Any) -> Path:
    """Write a small Llama (SMALL_LLAMA with changes; None for a value removes nothing) and return its directory."""
    path.mkdir(parents=True, exist_ok=True)
    config = {**SMALL_LLAMA, **changes}
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


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """`make_model(**changes)`: a model directory under the test's own path."""

    def make(name: str = "model", **changes: Any) -> Path:
        return write_model(tmp_path / name, **changes)

    return make

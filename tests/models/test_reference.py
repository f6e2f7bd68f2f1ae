"""The reference interpreter against transformers, and its own invariants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from systolith.models.checkpoint import Checkpoint
from systolith.models.reference import Interpreter, interpret
from systolith.spec.errors import ModelError

ODD = {"hidden_size": 144, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 48, "vocab_size": 1003}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}

QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
WINDOWS = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
MIXTRAL = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 5, "num_experts_per_tok": 2,
}  # fmt: skip
QWEN3_MOE = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 9, "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_local_experts": 6, "num_experts_per_tok": 3,
    "sliding_window": 24,
}  # fmt: skip
GEMMA = {
    "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "sliding_window": 24,
    "num_hidden_layers": 3, "query_pre_attn_scalar": 12, "rope_theta": 5e4, "rope_local_base_freq": 300.0,
    "sliding_window_pattern": 2,
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "num_key_value_heads": 4,
    "num_hidden_layers": 3, "first_k_dense_replace": 1, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 10, "n_routed_experts": 12, "num_experts_per_tok": 4, "n_group": 4,
    "topk_group": 2, "moe_intermediate_size": 24, "n_shared_experts": 1,
}  # fmt: skip
DEEPSEEK_YARN = {
    "type": "yarn", "factor": 40, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
    "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
MXFP4 = {"hidden_size": 64, "intermediate_size": 96, "quantization_config": {"quant_method": "mxfp4"}}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
WIDE = {"head_dim": 32, "max_position_embeddings": 256}

MODELS: dict[str, dict[str, Any]] = {
    "llama_untied": ODD,
    "llama_tied": {**ODD, "tie_word_embeddings": True},
    "llama_biases": {**ODD, "attention_bias": True, "mlp_bias": True},
    "llama_wide_gqa": {"num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 96, "head_dim": 32},
    "llama_all_heads_alike": {"num_key_value_heads": None, "head_dim": None},
    "llama_theta_in_rope_parameters": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "mistral_window": {**MISTRAL, "sliding_window": 24, "max_position_embeddings": 256},
    "mistral_no_window": {**MISTRAL, "sliding_window": None, "head_dim": None},
    "llama_linear": {**WIDE, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama_llama3": {**WIDE, "rope_scaling": LLAMA3},
    "llama_yarn": {**WIDE, "rope_theta": None, "rope_parameters": {**YARN, "rope_theta": 5e4, "truncate": False}},
    "llama_yarn_options": {
        **WIDE,
        "rope_scaling": {**YARN, "beta_fast": 8.0, "beta_slow": 0.5, "attention_factor": 1.25},
    },
    "qwen2": {**QWEN2, **ODD},
    "qwen2_tied_yarn": {**QWEN2, **WIDE, "tie_word_embeddings": True, "rope_scaling": {**YARN, "type": "yarn"}},
    "qwen2_windows": {**QWEN2, **WIDE, **WINDOWS},
    "qwen3": {**QWEN3, **ODD, "sliding_window": None},
    "qwen3_biases_tied": {**QWEN3, **WIDE, "attention_bias": True, "tie_word_embeddings": True},
    "qwen3_windows_yarn": {
        **QWEN3, **WIDE, "use_sliding_window": True, "sliding_window": 20, "rope_scaling": YARN,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_oss": {**GPT_OSS, **ODD},
    "gpt_oss_options": {
        **GPT_OSS, **WIDE, "num_hidden_layers": 3, "swiglu_limit": 0.75, "swiglu_alpha": 1.5, "rope_scaling": YARN,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "num_experts_per_tok": 6,
    },
    "gemma": {**GEMMA, **ODD, "tie_word_embeddings": True},
    "gemma_options": {
        **GEMMA, **WIDE, "sliding_window_pattern": 6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "attention_bias": True,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "gemma_in_rope_parameters": {
        **GEMMA, "rope_theta": None, "rope_local_base_freq": None, "query_pre_attn_scalar": 8, "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 7e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
        },
    },
    "deepseek": {**DEEPSEEK, "n_shared_experts": 2},
    "deepseek_yarn": {**DEEPSEEK, "rope_scaling": DEEPSEEK_YARN, "qk_rope_head_dim": 16, "head_dim": 16},
    "deepseek_options": {
        **DEEPSEEK, "q_lora_rank": None, "rope_interleave": False, "norm_topk_prob": False, "attention_bias": True,
        "rope_scaling": {**DEEPSEEK_YARN, "mscale": 0.7}, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
    },
    "mixtral": {**MIXTRAL, **ODD},
    "mixtral_window": {**MIXTRAL, "sliding_window": 24, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    "qwen3_moe": {**QWEN3_MOE, **ODD},
    "qwen3_moe_normalised": {**QWEN3_MOE, **WIDE, "norm_topk_prob": True, "attention_bias": True},
    "qwen3_moe_dense_layers": {
        **QWEN3_MOE, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        "use_sliding_window": True, "sliding_window": 30,
    },
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_logits_agree_with_transformers(name: str, make_model: Callable[..., Path]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0 (CPU)")
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    path = make_model(**MODELS[name])
    checkpoint = Checkpoint.open(path)
    ids = np.random.default_rng(1).integers(0, checkpoint.graph.vocab, 100).tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    got = interpret(checkpoint.graph, checkpoint, ids)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert np.abs(expected).max() > 1  # logits of a size at which 1e-4 says something
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {**MISTRAL, "sliding_window": 5}, {**GPT_OSS, "sliding_window": 5}, DEEPSEEK],
    ids=["llama", "mistral_window", "gpt_oss", "deepseek"],
)
def test_token_by_token_and_chunks_equal_prefill(changes: dict[str, Any], make_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(make_model(**changes))
    ids = list(range(3, 33))
    whole = interpret(checkpoint.graph, checkpoint, ids)
    decode = Interpreter(checkpoint)
    np.testing.assert_allclose(np.concatenate([decode.step([i]) for i in ids]), whole, rtol=0, atol=1e-5)
    chunks = Interpreter(checkpoint, keep=False)
    parts = [chunks.step(ids[at : at + 7]) for at in range(0, len(ids), 7)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-5)
    assert chunks.position == len(ids)
    last = Interpreter(checkpoint).step(ids, last_only=True)
    assert last.shape == (1, checkpoint.graph.vocab)
    np.testing.assert_allclose(last[0], whole[-1], rtol=0, atol=1e-5)


def test_a_window_changes_later_rows_only(make_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(make_model())
    ids = list(range(3, 33))
    free = interpret(checkpoint.graph, checkpoint, ids)
    windowed = interpret(checkpoint.graph.with_attr("attention", window=6), checkpoint, ids)
    np.testing.assert_array_equal(free[:6], windowed[:6])
    assert np.abs(free[6:] - windowed[6:]).max() > 1e-3


def test_a_sink_takes_a_share_of_attention(make_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(make_model())
    ids = list(range(3, 13))
    plain = interpret(checkpoint.graph, checkpoint, ids)
    none = Interpreter(checkpoint, sinks=[-1e9] * 4).step(ids)
    some = Interpreter(checkpoint, sinks=[0.0] * 4).step(ids)
    np.testing.assert_allclose(none, plain, rtol=0, atol=1e-6)
    assert np.abs(some - plain).max() > 1e-3


def test_errors_are_whole_sentences(make_model: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(make_model())
    with pytest.raises(ModelError, match=r"^token id 64 must be within 0\.\.63, the vocabulary of model$"):
        interpret(checkpoint.graph, checkpoint, [1, 64])
    with pytest.raises(
        ModelError, match=r"^the sequence has 129 tokens, model takes at most 128; give a shorter prompt$"
    ):
        interpret(checkpoint.graph, checkpoint, [1] * 129)
    with pytest.raises(ModelError, match=r"^the prompt is empty; give at least one token$"):
        interpret(checkpoint.graph, checkpoint, [])

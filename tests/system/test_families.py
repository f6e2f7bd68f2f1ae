"""Random models of the families, and of the rotary scalings, have the reference's bits on every kind of chip.

Qwen2 has biases on q, k and v only, Qwen3 norms of the heads of q and k; Mixtral, Qwen3-MoE and gpt-oss choose experts
on the device; gpt-oss and Gemma 3 have layers that differ, some of Qwen3-MoE have no experts; DeepSeek has latent
attention, groups of experts and one that all rows share. Intermediates are compared too: a later quantisation hides
an ulp.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.make_model import make_llama

from systolith.runtime.job import Request, Sampling, layout, write_job
from systolith.sim.sanitizer import Sanitizer

from .harness import Subject, chip, compiled, generate, prefill, same_bits, same_trace

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SIZES: dict[str, Any] = {"hidden": 96, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 160, "vocab": 300}


@dataclass(frozen=True)
class Case:
    """A model, and the entries of its profile that are not the default."""

    model: dict[str, Any]
    profile: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama3_rope": Case({"head_dim": 64, "extra": {"rope_scaling": LLAMA3}}),
    "linear_rope": Case({"head_dim": 16, "extra": {"rope_scaling": {"type": "linear", "factor": 2.5}}}),
    "qwen2": Case({"family": "qwen2", "head_dim": 48, "tied": False}),
    "qwen2_yarn": Case({"family": "qwen2", "head_dim": 64, "extra": {"rope_scaling": YARN}}),
    "qwen3": Case({"family": "qwen3", "head_dim": 48}),  # a head of one and a half blocks
    "qwen3_wide": Case({"family": "qwen3", "head_dim": 128, "layers": 3, "theta": 1e6}),  # halves of whole blocks
    "qwen3_biases": Case({"family": "qwen3", "head_dim": 64, "attention_bias": True, "tied": False}),
    "qwen3_yarn": Case(
        {"family": "qwen3", "head_dim": 40, "extra": {"rope_scaling": {**YARN, "attention_factor": 1.25}}},
        {"deferred_norm": False, "spans": {"q": 2, "k": 3}},
    ),
    "qwen3_e4m3": Case(
        {"family": "qwen3", "head_dim": 80},
        {"weights": "E2M1", "activations": "E4M3", "k": "E4M3", "v": "E4M3"},
    ),
    "mixtral": Case({"family": "mixtral", "head_dim": 32, "experts": 5, "tied": False}),
    "mixtral_late": Case(
        {"family": "mixtral", "head_dim": 32, "intermediate": 96, "experts": 3, "top_k": 3},
        {"deferred_norm": False, "spans": {"expert_up": 2, "expert_down": 3, "router": 2}},
    ),
    "qwen3_moe": Case({"family": "qwen3_moe", "head_dim": 48, "experts": 40, "top_k": 8, "intermediate": 64}),
    "qwen3_moe_all": Case(
        {"family": "qwen3_moe", "head_dim": 32, "experts": 9, "top_k": 3, "extra": {"norm_topk_prob": False}},
        {"weights": "E2M1", "activations": "E4M3", "k": "E4M3", "v": "E4M3"},
    ),
    "qwen3_moe_mixed": Case(
        {
            "family": "qwen3_moe",
            "head_dim": 32,
            "experts": 5,
            "layers": 5,
            "intermediate": 96,
            "extra": {"mlp_only_layers": [0], "decoder_sparse_step": 2, "intermediate_size": 224},
        },
    ),
    "gpt_oss": Case(
        {"family": "gpt_oss", "head_dim": 32, "experts": 6, "top_k": 4, "mxfp4": True, "layers": 4, "intermediate": 96},
        {"experts": "E2M1", "weights": "INT8x2"},
    ),
    "deepseek": Case({"family": "deepseek_v3", "head_dim": 16, "experts": 9, "top_k": 3, "layers": 3}),
    "deepseek_late": Case(
        {
            "family": "deepseek_v3",
            "head_dim": 32,
            "experts": 6,
            "top_k": 2,
            "attention_bias": True,
            "tied": False,
            "extra": {
                "kv_lora_rank": 96,
                "qk_nope_head_dim": 32,
                "v_head_dim": 64,
                "rope_interleave": False,
                "n_group": 2,
                "topk_group": 1,
            },
        },
        {"deferred_norm": False, "spans": {"q": 2, "k": 2, "v": 3, "gate": 2, "o": 2}},
    ),
    "deepseek_e4m3": Case(
        {
            "family": "deepseek_v3",
            "head_dim": 48,
            "experts": 6,
            "top_k": 2,
            "extra": {"q_lora_rank": None, "norm_topk_prob": False, "n_group": 1, "topk_group": 1},
        },
        {"weights": "E2M1", "activations": "E4M3", "k": "E4M3", "v": "E4M3"},
    ),
    "gemma3": Case({"family": "gemma3_text", "head_dim": 32, "layers": 5}),
    "gemma3_late": Case({"family": "gemma3_text", "head_dim": 48, "layers": 2}, {"deferred_norm": False}),
}
CHIPS = ("nano", "mini", "three", "server")
IDS = np.random.default_rng(7).integers(0, 300, 290).tolist()


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """All models, by case."""
    root: Path = tmp_path_factory.mktemp("families")
    return {
        name: Subject.open(make_llama(root / name, **{**SIZES, **case.model, "seed": number}))
        for number, (name, case) in enumerate(CASES.items())
    }


@pytest.mark.parametrize("name", CASES)
def test_logits_and_intermediates_are_the_references(name: str, subjects: dict[str, Subject]) -> None:
    subject = subjects[name]
    profile = subject.profile(CASES[name].profile)
    want = subject.expected(profile, IDS[:75], trace=True)
    for where in CHIPS:
        ran = prefill(subject, chip(where), profile, IDS[:75], dump=where != "server")
        same_bits(ran.logits[0], want.logits, where)
        if where != "server":
            same_trace(ran.dumped(), want.trace, 75)


@pytest.mark.parametrize(
    "name",
    [
        "llama3_rope", "qwen2_yarn", "qwen3", "qwen3_wide", "mixtral", "qwen3_moe", "qwen3_moe_mixed", "gpt_oss",
        "deepseek", "gemma3",
    ],
)  # fmt: skip
def test_a_batch_and_decoding_change_nothing(name: str, subjects: dict[str, Subject]) -> None:
    """Two prompts, the longer one of two chunks of attention, then tokens made on the device."""
    subject = subjects[name]
    profile = subject.profile(CASES[name].profile)
    prompts, sampling = (IDS, IDS[:9]), Sampling(0.8, 40, 0.95, 5)
    ran = generate(subject, chip("three"), profile, prompts, 4, sampling, prefill_chunk=96)
    for prompt, tokens, logits in zip(prompts, ran.tokens, ran.logits, strict=True):
        assert len(tokens) == 4
        want = subject.expected(profile, [*prompt, *tokens[:-1]]).logits
        same_bits(logits, want[len(prompt) - 1 :], f"{len(prompt)} tokens")


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("qwen2", "nano"), ("qwen3_biases", "nano"), ("qwen3_yarn", "mini"), ("qwen3", "three"),
        ("mixtral_late", "three"), ("qwen3_moe", "nano"), ("qwen3_moe_mixed", "three"), ("gpt_oss", "mini"),
        ("gemma3", "three"), ("gemma3_late", "nano"), ("deepseek", "three"), ("deepseek_late", "nano"),
        ("deepseek_e4m3", "mini"),
    ],
)  # fmt: skip
def test_the_sanitizer_finds_nothing(name: str, where: str, subjects: dict[str, Subject]) -> None:
    subject = subjects[name]
    requests = [Request(tuple(IDS[:20]), 3), Request(tuple(IDS[:3]), 3)]
    program = compiled(subject, chip(where), subject.profile(CASES[name].profile), requests).program
    sanitizer = Sanitizer(chip(where), program)
    write_job(sanitizer, program, requests, layout(program, requests))
    sanitizer.run()
    assert [str(finding) for finding in sanitizer.findings if not finding.warning] == []

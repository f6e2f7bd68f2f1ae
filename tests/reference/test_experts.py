"""The reference of mixtures of experts: its pieces against float64 and brute force, and properties of the whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import contract
from .arith import quantise
from .exact import gelu_constants
from .experts import Router, best, gelu_mul, mxfp4, prepare, route, swiglu_clamped
from .make_model import make_llama

SIZES: dict[str, Any] = {
    "hidden": 48, "heads": 3, "kv_heads": 1, "head_dim": 16, "intermediate": 64, "vocab": 130, "tied": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"family": "mixtral"},
    "qwen3_moe": {"family": "qwen3_moe", "experts": 9, "top_k": 3},
    "gpt_oss": {"family": "gpt_oss", "top_k": 4, "hidden": 64, "mxfp4": True},
}
IDS = [(7 * i * i + i) % 130 for i in range(90)]


def bits(x: Any) -> Any:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def test_the_best_come_first_and_the_lower_index_among_equals() -> None:
    row = np.array([[-0.0, 1.0, np.nan, 0.0, 1.0, -np.inf, np.nan]], np.float32)
    assert best(row, 7).tolist() == [[1, 4, 0, 3, 5, 2, 6]]


@pytest.mark.parametrize("score", ["softmax", "softmax_all", "sigmoid"])
def test_weights_are_those_of_float64(score: str) -> None:
    logits = np.random.default_rng(1).normal(0, 3, (200, 16)).astype(np.float32)
    chosen, weights = route(Router(3, score, scale=2.5), logits, None)
    wide = logits.astype(np.float64)
    for row, which, got in zip(wide, chosen, weights, strict=True):
        assert which.tolist() == sorted(range(16), key=lambda i: -row[i])[:3]
        p = 1 / (1 + np.exp(-row)) if score == "sigmoid" else np.exp(row - row.max())
        want = 2.5 * p[which] / (p.sum() if score == "softmax_all" else p[which].sum())
        np.testing.assert_allclose(got, want, rtol=3e-5)  # F is fixed to 2^-16
    with_nan = logits[:1].copy()
    with_nan[0, 4] = np.nan
    chosen, weights = route(Router(16, score), with_nan, None)
    assert chosen[0, -1] == 4
    assert np.isnan(weights).all()  # the sum over the slots has it
    spared = route(Router(3, score), with_nan, None)[1]
    assert np.isnan(spared).all() == (score == "softmax_all")


def test_groups_and_a_correction_enter_the_choice_only() -> None:
    logits = np.random.default_rng(2).normal(0, 1, (300, 12)).astype(np.float32)
    correction = np.random.default_rng(3).normal(0, 1, 12).astype(np.float32)
    router = Router(4, "sigmoid", normalise=False, groups=4, top_groups=2)
    chosen, weights = route(router, logits, correction)
    for row, which, got in zip(logits.astype(np.float64), chosen, weights, strict=True):
        g = 1 / (1 + np.exp(-row))
        c = (g + correction).reshape(4, 3)
        groups = sorted(range(4), key=lambda n: -np.sort(c[n])[1:].sum())[:2]
        allowed = [3 * n + i for n in groups for i in range(3)]
        assert which.tolist() == sorted(allowed, key=lambda i: -c.reshape(-1)[i])[:4]
        np.testing.assert_allclose(got, g[which], rtol=3e-5)


def test_activations_are_those_of_float64() -> None:
    gate, up = np.random.default_rng(4).normal(0, 4, (2, 5000)).astype(np.float32)
    x = gate.astype(np.float64)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    np.testing.assert_allclose(gelu_mul(gate, up), 0.5 * x * (1 + np.tanh(inner)) * up, rtol=2e-4, atol=1e-5)
    g, u = np.minimum(x, 3), np.clip(up.astype(np.float64), -3, 3)
    got = swiglu_clamped(1.702, 3.0)(gate, up)
    np.testing.assert_allclose(got, (u + 1) * g / (1 + np.exp(-1.702 * g)), rtol=1e-4, atol=1e-5)
    assert np.isnan(swiglu_clamped(1.702, 3.0)(np.float32([np.nan, 1]), np.float32([1, np.nan]))).all()
    assert [hex(c.view(np.uint32)) for c in gelu_constants()] == ["0x3fcc422a", "0x3d922279"]


def test_mxfp4_blocks_are_taken_code_for_code(tmp_path: Path) -> None:
    model = contract.load_model(make_llama(tmp_path, **{**SIZES, **FAMILIES["gpt_oss"]}))
    mixture = prepare(model, contract.Profile(experts="E2M1"), 0)
    assert mixture is not None
    packed = model.codes["model.layers.0.mlp.experts.gate_up_proj_blocks"]
    scales = model.codes["model.layers.0.mlp.experts.gate_up_proj_scales"]
    up = mixture.experts[2]["up"][0]
    assert up.scales.tolist() == scales[2, 1::2].tolist()
    assert up.elements[0, :2].tolist() == mxfp4(packed[2, 1:2], scales[2, 1:2]).elements[0, :2].tolist()
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    byte = int(packed[2, 1, 0, 0])
    assert [abs(e) for e in up.elements[0, :2]] == [magnitudes[byte & 7], magnitudes[byte >> 4 & 7]]
    other = prepare(model, contract.Profile(), 0)
    assert other is not None
    assert np.array_equal(other.experts[2]["up"][0].elements, quantise(up.dequantise(), "INT8").elements)


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_and_profiles(family: str, tmp_path: Path) -> None:
    """Prefill in pieces has the bits of prefill at once; each format of experts and router gives other bits."""
    model = contract.load_model(make_llama(tmp_path, **{**SIZES, **FAMILIES[family]}))
    seen = set()
    for profile in (
        {},
        {"experts": "E2M1", "router": "INT8"},
        {"deferred_norm": False},
        {"spans": {"router": 2, "expert_gate": 2, "expert_down": 2}},
        {"weights": "E2M1", "activations": "E4M3", "head": "E4M3", "embed": "E4M3"},
    ):
        whole = contract.run(model, profile, IDS, trace=True)
        assert whole.trace["00-choice"].shape == (90, FAMILIES[family].get("top_k", 2))
        assert whole.trace["01-h"].shape == (FAMILIES[family].get("top_k", 2), 90, 64)
        state = contract.State()
        for low, high in [(0, 1), (1, 50), (50, 90)]:
            part = contract.run(model, profile, IDS[low:high], state=state)
            assert np.array_equal(bits(part.logits), bits(whole.logits[low:high]))
        seen.add(whole.logits.tobytes())
    assert len(seen) >= 4  # spans of so short sums may not round differently in INT8

"""The PyTorch emulation: plain, it is transformers' Llama; quantised, the contract's reference within its bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import contract
from .arith import contraction, quantise_weight, silu
from .arith import quantise as contract_quantise
from .exact import rotary_table
from .make_model import make_llama

torch = pytest.importorskip("torch", reason="torch is not installed: make test installs it (the test extra)")
from . import torch_emulation as emulation  # noqa: E402 - needs torch

pytestmark = pytest.mark.torch
GOLDEN = Path(__file__).parent.parent / "golden" / "llama-int8"
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 64, "truncate": False,
}  # fmt: skip


def tensor(x: Any) -> Any:
    return torch.from_numpy(np.array(x, np.float64))


def spread(seed: int, *shape: int) -> Any:
    """FP32 values of many magnitudes."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * np.exp2(random.integers(-6, 4, shape))).astype(np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"tied": True},
        {"tied": False, "kv_heads": 1, "head_dim": 24, "dtype": "bfloat16", "shards": 3, "attention_bias": True},
        {"kv_heads": 4, "extra": {"rope_parameters": LLAMA3}},
        {"extra": {"rope_parameters": YARN}},
    ],
    ids=["tied", "gqa-bias-bf16-shards", "llama3-rope", "yarn-rope"],
)
def test_plain_mode_is_transformers_llama(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make test installs it")
    root = make_llama(tmp_path, hidden=64, heads=4, **changes)
    theirs = transformers.LlamaForCausalLM.from_pretrained(root, dtype=torch.float32, attn_implementation="eager")
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 512, (2, 200)))
    with torch.inference_mode():
        want = theirs(ids).logits
    got = emulation.EmulatedLlama(root).logits(ids)
    assert want.std() > 0.5
    assert (got - want).abs().max() < 1e-4


@pytest.mark.parametrize("fmt", ["E2M1", "E4M3", "INT8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantise_equals_the_contract(fmt: str, dtype: Any) -> None:
    x = spread(2, 50, 100)
    want = contract_quantise(x, fmt).dequantise()[:, :100]
    assert np.array_equal(emulation.quantise(torch.from_numpy(x).to(dtype), fmt).numpy(), want)


@pytest.mark.parametrize(
    ("fmt_a", "fmt_w", "spans"), [("INT8", "INT8", 1), ("INT8", "INT8x2", 2), ("E4M3", "E2M1", 3), ("E4M3", "E4M3", 1)]
)
def test_linear_is_within_its_bound(fmt_a: str, fmt_w: str, spans: int) -> None:
    x, w = spread(3, 40, 700), spread(4, 60, 700)
    chip = contraction(contract_quantise(x, fmt_a), quantise_weight(w, fmt_w), spans)
    error = (tensor(chip) - emulation.linear(tensor(x), tensor(w), fmt_a, fmt_w)).abs()
    limit = emulation.linear_bound(tensor(x), tensor(w), fmt_a, fmt_w, spans)
    assert (error <= limit).all()
    assert (limit <= 3e-5 * (tensor(chip).abs() + tensor(chip).abs().mean())).all(), "too loose to find anything"


def test_swiglu_norm_and_rotary_are_within_their_bounds() -> None:
    gate, up = spread(5, 100, 100), spread(6, 100, 100)
    gate[0, :4] = [90, -90, -120, 0]
    x, gain = spread(7, 40, 144), spread(8, 144)
    cosines, sines = rotary_table(np.arange(40), 48, {"rope_theta": 1e4})
    heads = spread(9, 3, 40, 48)
    pairs = {
        "swiglu": (silu(gate) * up, (gate, up)),
        "rmsnorm": (contract.norm(x, gain, np.float32(1e-5)), (x, gain, 1e-5)),
        "rmsnorm_scale": (contract.norm_scale(x, np.float32(1e-5)), (x, 1e-5)),
        "rotary": (contract.rotary(heads, cosines, sines), (heads, cosines, sines)),
    }
    for name, (chip, raw) in pairs.items():
        operands = [value if isinstance(value, float) else tensor(value) for value in raw]
        error = (tensor(chip) - getattr(emulation, name)(*operands)).abs()
        limit = getattr(emulation, name + "_bound")(*operands)
        assert (error <= limit).all(), name
        assert (error / limit).max() > 0.1, name


@pytest.mark.parametrize("fmt", ["INT8", "E4M3"])
@pytest.mark.parametrize(("window", "sinks"), [(None, None), (300, [0.5, -1.0, 2.0])])
def test_attention_is_within_its_bound(fmt: str, window: int | None, sinks: Any) -> None:
    model = contract.load_model(GOLDEN)
    ids = [int(token) for token in (GOLDEN / "ids.txt").read_text().split(",")][:520]
    profile = {"k": fmt, "v": fmt, "p": fmt}
    trace = contract.run(model, profile, ids, trace=True, window=window, sinks=sinks).trace
    q, k, v = (tensor(trace[f"01-{name}"])[None] for name in "qkv")
    options: dict[str, Any] = {"fmt_k": fmt, "fmt_v": fmt, "fmt_p": fmt, "window": window}
    options["sinks"] = None if sinks is None else tensor(sinks)
    chip = tensor(trace["01-attention"]).reshape(len(ids), 3, 64)[..., :48].transpose(0, 1)[None]
    error = (chip - emulation.attention(q, k, v, **options)).abs()
    limit = emulation.attention_bound(q, k, v, **options)
    assert (error <= limit).all()
    assert (error / limit).max() > 0.05


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"weights": "INT8x2", "deferred_norm": False},
        {"weights": "E2M1", "activations": "E4M3", "head": "E4M3", "embed": "E4M3"},
    ],
    ids=["int8", "int8x2", "mxfp4-mxfp8"],
)
def test_a_quantised_model_is_the_contract_reference_in_perplexity(tmp_path: Path, profile: dict[str, Any]) -> None:
    root = make_llama(tmp_path, hidden=96, heads=6, kv_heads=3, head_dim=24, intermediate=200, tied=False, seed=4)
    windows = np.random.default_rng(10).integers(0, 512, (3, 200))
    model, ours = contract.load_model(root), emulation.EmulatedLlama(root, profile)
    losses = []
    for window in windows:
        logits = torch.from_numpy(contract.run(model, profile, window.tolist()).logits).double()
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(window[1:]), reduction="none"))
    chip, emulated = torch.stack(losses), ours.losses(windows)
    plain = emulation.EmulatedLlama(root).losses(windows)
    # Token by token an ulp flips a code here and there, and each layer spreads it (float32 and float64 emulations
    # differ as much); it must have no direction, and stay well below what the quantisation itself does.
    error = chip - emulated
    assert error.mean().abs() < 4 * error.std() / error.numel() ** 0.5
    assert error.abs().mean() < 0.4 * (plain - emulated).abs().mean()
    assert ours.perplexity(windows) == pytest.approx(float(emulated.mean().exp()))


def test_golden_logits_are_near() -> None:
    ids = [int(token) for token in (GOLDEN / "ids.txt").read_text().split(",")][:160]
    got = emulation.EmulatedLlama(GOLDEN, GOLDEN / "profile.toml").logits([ids])[0].numpy()
    want = np.load(GOLDEN / "logits.npy")
    assert (got.argmax(-1) == want.argmax(-1)).mean() > 0.97
    assert json.loads((GOLDEN / "config.json").read_text())["tie_word_embeddings"]
    assert np.sqrt(np.mean((got - want) ** 2)) < 0.02 * want.std()
